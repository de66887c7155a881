use std::os::unix::fs::symlink;

use serde_json::json;

use super::*;
use crate::desk::kubeconfig::{Login, Server};

/// As kubectl and people write it: comments, fields of other programs, another indentation.
const FILE: &str = "\
# My clusters
apiVersion: v1
kind: Config
preferences: {colors: true}
clusters:
# The shop
- cluster:
    server: https://shop.example:6443  # do not change
    certificate-authority-data: QUJD
  name: shop
- name: stage
  cluster: {server: \"https://stage.example\", x-owner: jane}

contexts:
  - name: shop
    context:
      cluster: shop
      user: jane
  # Used at night
  - name: stage
    context: {cluster: stage, user: jane}
current-context: shop   # the one for work
users:
- name: jane
  user:
    exec:
      apiVersion: client.authentication.k8s.io/v1
      command: login
      args:
      - --flag
      installHint: |
        Install it.

        - name: bastion
          user: {}
x-tool: [1, 2]
# The end
";

fn entries(name: &str, login: Option<Login>) -> Entries {
    let server = Server {
        url: "https://bastion.example:8443".to_owned(),
        authority: Some("PEM".to_owned()),
        tls_server_name: None,
    };
    Entries::new(name.to_owned(), server, Some("web".to_owned()), login)
}

fn login(user: Value) -> Login {
    Login {
        context: "shop".to_owned(),
        namespace: None,
        user: Some(("jane".to_owned(), user)),
        extensions: Vec::new(),
        files: Vec::new(),
    }
}

struct File {
    directory: tempfile::TempDir,
    path: PathBuf,
}

impl File {
    fn new(text: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("config");
        fs::write(&path, text).unwrap();
        Self { directory, path }
    }

    fn text(&self) -> String {
        fs::read_to_string(&self.path).unwrap()
    }

    fn document(&self) -> Value {
        parse(&self.path, &self.text()).unwrap()
    }
}

#[test]
fn adds_entries_and_keeps_every_other_line() {
    let file = File::new(FILE);
    let merged = merge(&file.path, &entries("bastion", None), Options::default()).unwrap();
    assert!(!merged.is_current && !merged.lost_comments);
    let (old, new): (Vec<_>, String) = (FILE.lines().collect(), file.text());
    let added: Vec<_> = new.lines().filter(|line| !old.contains(line)).collect();
    let expected = [
        "- cluster:",
        "    certificate-authority-data: UEVN",
        "    server: https://bastion.example:8443",
        "  name: bastion",
        "  - context:",
        "      cluster: bastion",
        "      namespace: web",
        "    name: bastion",
    ];
    // The first line is one of the file, too.
    assert_eq!(added, expected[1..]);
    let mut rest: Vec<_> = new.lines().collect();
    for line in expected {
        let position = rest.iter().rposition(|other| *other == line);
        rest.remove(position.unwrap());
    }
    assert_eq!(rest, old);
}

#[test]
fn replaces_entries_of_the_same_server() {
    let file = File::new(FILE);
    let first = entries("bastion", None);
    merge(&file.path, &first, Options::default()).unwrap();
    let once = file.text();
    merge(&file.path, &first, Options::default()).unwrap();
    assert_eq!(file.text(), once);

    let mut second = first;
    second.cluster["certificate-authority-data"] = "TkVX".into();
    merge(&file.path, &second, Options::default()).unwrap();
    assert_eq!(file.text(), once.replace("UEVN", "TkVX"));

    let mut document = file.document();
    let clusters = document["clusters"].as_array_mut().unwrap();
    let bastion = clusters.iter_mut().find(|it| it["name"] == "bastion");
    let cluster = &mut bastion.unwrap()["cluster"];
    cluster["proxy-url"] = "http://proxy.example".into();
    cluster["tls-server-name"] = "other".into();
    fs::write(&file.path, document.to_string()).unwrap();
    merge(&file.path, &second, Options::default()).unwrap();
    let document = file.document();
    let cluster = existing(&document, Section::Clusters, "bastion").unwrap();
    assert_eq!(cluster["proxy-url"], "http://proxy.example");
    assert_eq!(cluster["tls-server-name"], Value::Null);
}

#[test]
fn rejects_the_context_of_another_user() {
    let file = File::new(FILE);
    let mut bastion = entries("bastion", None);
    bastion.context["user"] = "readonly".into();
    merge(&file.path, &bastion, Options::default()).unwrap();
    bastion.context["user"] = "admin".into();
    let error = merge(&file.path, &bastion, Options::default()).unwrap_err();
    assert!(error.to_string().contains("context \"bastion\""), "{error}");
    // The user that somebody has added stays.
    bastion.context.as_object_mut().unwrap().remove("user");
    merge(&file.path, &bastion, Options::default()).unwrap();
    let document = file.document();
    let context = existing(&document, Section::Contexts, "bastion").unwrap();
    assert_eq!(context["user"], "readonly");
}

#[test]
fn rejects_other_entries_of_the_same_name_unless_overwritten() {
    let token = login(json!({"token": "t"}));
    for (entries, kind, flag) in [
        (entries("shop", None), "cluster \"shop\"", "--name"),
        (
            entries("bastion", Some(token)),
            "user \"jane\"",
            "--user-name",
        ),
    ] {
        let file = File::new(FILE);
        let error = merge(&file.path, &entries, Options::default()).unwrap_err();
        let error = error.to_string();
        for part in [kind, flag, "--overwrite"] {
            assert!(error.contains(part), "{error}");
        }
        assert_eq!(file.text(), FILE);
        let options = Options {
            overwrite: true,
            ..Options::default()
        };
        assert!(!merge(&file.path, &entries, options).unwrap().lost_comments);
        for (section, name, fields) in entries.all() {
            let document = file.document();
            let mut list = document[section.key()].as_array().into_iter().flatten();
            let entry = list.find(|entry| entry["name"] == name).unwrap();
            assert_eq!(entry[section.field()], *fields);
        }
    }
}

#[test]
fn becomes_current_on_request_or_if_no_context_is() {
    let set = Options {
        set_current: true,
        ..Options::default()
    };
    for (text, options, is_current) in [
        (FILE, Options::default(), false),
        (FILE, set, true),
        (EMPTY, Options::default(), true),
        ("", Options::default(), true),
        ("current-context: \"\"\n", Options::default(), true),
        ("current-context: bastion\n", Options::default(), true),
    ] {
        let file = File::new(text);
        let merged = merge(&file.path, &entries("bastion", None), options).unwrap();
        assert_eq!(merged.is_current, is_current, "{text:?}");
        let expected = if is_current { "bastion" } else { "shop" };
        assert_eq!(file.document()["current-context"], expected, "{text:?}");
    }
}

#[test]
fn merges_into_every_format_of_lists() {
    for (text, lost_comments) in [
        ("clusters: []\ncontexts: null\nusers:\n", false),
        ("clusters: # none yet\ncontexts: ~\n", false),
        ("clusters:\n-   name: a\n    cluster: {}\n", false),
        ("clusters:\n-\n  name: a\n  cluster: {}", false),
        ("---\nclusters:\n    - name: a\n", false),
        (
            "{\"apiVersion\": \"v1\", \"clusters\": [{\"name\": \"a\"}]}",
            false,
        ),
        ("clusters: [{name: a}] # one\n", true),
        ("\"clusters\": # quoted\n- name: a\n", true),
        ("# Comment\nclusters:\n- name: a\n...\n", true),
    ] {
        let file = File::new(text);
        let entries = entries("bastion", Some(login(json!({"token": "on"}))));
        let mut expected = parse(&file.path, text).unwrap();
        entries.put_into(&mut expected, true);
        let merged = merge(&file.path, &entries, Options::default()).unwrap();
        assert_eq!(file.document(), expected, "{text:?}: {}", file.text());
        assert_eq!(
            merged.lost_comments,
            lost_comments,
            "{text:?}: {}",
            file.text()
        );
    }
}

#[test]
fn file_is_private_and_complete() {
    let file = File::new(FILE);
    fs::set_permissions(&file.path, fs::Permissions::from_mode(0o644)).unwrap();
    let link = file.directory.path().join("link");
    symlink("config", &link).unwrap();
    let new = file.directory.path().join("new/directory/config");
    for path in [&link, &new] {
        merge(path, &entries("bastion", None), Options::default()).unwrap();
        let mode = fs::metadata(path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{path:?}");
    }
    assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
    let directory = fs::metadata(new.parent().unwrap()).unwrap();
    assert_eq!(directory.permissions().mode() & 0o777, 0o700);
    // Neither the lock nor a temporary file is left.
    let mut names: Vec<_> = fs::read_dir(file.directory.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    names.sort();
    assert_eq!(names, ["config", "link", "new"]);
}

#[test]
fn locked_or_foreign_files_stay_as_they_are() {
    let file = File::new(FILE);
    let lock = Lock::acquire(&file.path).unwrap();
    let error = merge(&file.path, &entries("bastion", None), Options::default());
    assert!(error.unwrap_err().to_string().contains("config.lock"));
    drop(lock);
    for (text, part) in [
        ("kind: Pod\n", "not a kubeconfig"),
        ("a: [\n", "not YAML"),
        ("a: 1\n---\nb: 1\n", "several YAML documents"),
    ] {
        let file = File::new(text);
        let error = merge(&file.path, &entries("bastion", None), Options::default());
        let error = error.unwrap_err().to_string();
        assert!(error.contains(part), "{error}");
        assert_eq!(file.text(), text);
    }
}
