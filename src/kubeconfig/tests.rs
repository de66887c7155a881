//! Kubeconfigs with entries that are not in use and malformed, and faults of those in use.

use std::fs;

use secrecy::ExposeSecret;
use tempfile::TempDir;

use super::*;
use crate::model::error_chain;

/// Contexts, clusters and users of a kubeconfig that works.
const CONTEXT: &str = "{name: prod, context: {cluster: prod, user: admin}}";
const CLUSTER: &str = "{name: prod, cluster: {server: 'https://192.0.2.1:6443'}}";
const USER: &str = "{name: admin, user: {token: t0k3n}}";

fn write(folder: &TempDir, name: &str, text: &str) -> PathBuf {
    let path = folder.path().join(name);
    fs::write(&path, text).unwrap();
    path
}

/// Loads the context of a kubeconfig. Returns the server and the token, or the error.
async fn load_text(text: &str, context: Option<&str>) -> Result<String, String> {
    let folder = tempfile::tempdir().unwrap();
    load_files(
        vec![write(&folder, "config", text)],
        Origin::Setting,
        context,
    )
    .await
}

async fn load_files(
    paths: Vec<PathBuf>,
    origin: Origin,
    context: Option<&str>,
) -> Result<String, String> {
    crate::tls::install_provider();
    let config = load(paths, origin, context).await;
    let config = config.map_err(|error| error_chain(&error))?;
    let token = config.auth_info.token.as_ref();
    let token = token.map_or("none", |token| token.expose_secret());
    Ok(format!("{} {token}", config.cluster_url))
}

/// A kubeconfig of the working entries and those of the arguments, which come first.
fn with(contexts: &str, clusters: &str, users: &str) -> String {
    let list = |first: &str, working: &str| match first {
        "" => format!("[{working}]"),
        first => format!("[{first}, {working}]"),
    };
    format!(
        "apiVersion: v1\nkind: Config\ncurrent-context: prod\npreferences: {{}}\ncontexts: {}\nclusters: {}\nusers: {}\n",
        list(contexts, CONTEXT),
        list(clusters, CLUSTER),
        list(users, USER)
    )
}

const WORKS: &str = "https://192.0.2.1:6443/ t0k3n";

#[tokio::test]
async fn ignores_faults_of_entries_that_are_not_in_use() {
    let users = [
        "",
        "{name: w, user: {auth-provider: {name: gcp, config: null}}}",
        "{name: w, user: {auth-provider: null}}",
        "{name: w, user: {auth-provider: {}}}",
        "{name: w, user: {auth-provider: gcp}}",
        "{name: w, user: {auth-provider: {name: gcp, config: {expires: 5}}}}",
        "{name: w, user: {exec: null}}",
        "{name: w, user: {exec: {command: aws, args: null, env: null}}}",
        "{name: w, user: {exec: {command: aws, env: [{name: A, value: null}]}}}",
        "{name: w, user: {exec: {interactiveMode: Sometimes}}}",
        "{name: w, user: {exec: [aws]}}",
        "{name: w, user: null}",
        "{name: w, user: ''}",
        "{name: w, user: [1]}",
        "{name: w}",
        "{name: w, user: {token: [a]}}",
        "{name: w, user: {as-groups: 5}}",
        "{name: w, user: {client-certificate-data: '!'}}",
        "{user: {token: unnamed}}",
        "{name: null, user: {token: unnamed}}",
        "{name: 7, user: {token: unnamed}}",
        "{}",
        "null",
        "text",
        "{name: w, user: {token: a}}, {name: w, user: {token: b}}",
    ];
    for user in users {
        assert_eq!(
            load_text(&with("", "", user), None).await.as_deref(),
            Ok(WORKS),
            "{user}"
        );
    }
    let contexts = [
        "{name: w, context: {}}",
        "{name: w, context: null}",
        "{name: w}",
        "{name: w, context: {cluster: null, user: null}}",
        "{name: w, context: {cluster: [], user: {}}}",
        "{name: w, context: {cluster: gone, user: gone}}",
        "{name: w, context: text}",
        "{context: {cluster: prod}}",
        "null",
        "[]",
    ];
    for context in contexts {
        assert_eq!(
            load_text(&with(context, "", ""), None).await.as_deref(),
            Ok(WORKS),
            "{context}"
        );
    }
    let clusters = [
        "{name: w, cluster: null}",
        "{name: w, cluster: {}}",
        "{name: w}",
        "{name: w, cluster: {server: null}}",
        "{name: w, cluster: {server: [a]}}",
        "{name: w, cluster: {server: 'not a URL'}}",
        "{name: w, cluster: {insecure-skip-tls-verify: 'yes'}}",
        "{name: w, cluster: {certificate-authority-data: '!'}}",
        "{name: w, cluster: {certificate-authority: /nonexistent}}",
        "{name: w, cluster: {extensions: [{name: minikube}]}}",
        "null",
    ];
    for cluster in clusters {
        assert_eq!(
            load_text(&with("", cluster, ""), None).await.as_deref(),
            Ok(WORKS),
            "{cluster}"
        );
    }
}

#[tokio::test]
async fn ignores_unknown_fields_and_fields_of_other_programs() {
    let working = with("", "", "");
    let variants = [
        format!("{working}extensions: null\n"),
        format!("{working}extensions: 5\nunknown: {{a: [1]}}\n"),
        working.replace("preferences: {}", "preferences: null"),
        working.replace("preferences: {}", "preferences: {colors: maybe}"),
        working.replace("apiVersion: v1\nkind: Config\n", ""),
        working.replace("apiVersion: v1\n", "apiVersion: null\n"),
        working.replace("user: admin}", "user: admin, namespace: , extensions: 7}"),
        working.replace(
            "6443'",
            "6443', extensions: 7, certificate-authority-data: ''",
        ),
        working.replace(
            "token: t0k3n",
            "token: t0k3n, username: '', exec: null, tokenFile: ",
        ),
        working.replace("token: t0k3n", "token: other, token: t0k3n"),
        working.replace('\n', "\r\n"),
        format!("\u{feff}{working}"),
        format!("# comment\n---\n{working}---\n"),
    ];
    for text in variants {
        assert_eq!(load_text(&text, None).await.as_deref(), Ok(WORKS), "{text}");
    }
    let json = r#"{"kind": "Config", "apiVersion": "v1", "current-context": "c",
	"contexts": [{"name": "c", "context": {"cluster": "c", "user": ""}}],
	"clusters": [{"name": "c", "cluster": {"server": "http://localhost:8080"}}], "users": null}"#;
    assert_eq!(
        load_text(json, None).await.as_deref(),
        Ok("http://localhost:8080/ none")
    );
}

#[tokio::test]
async fn uses_requested_context_without_a_current_one() {
    let text = with(
        "{name: dev, context: {cluster: dev, user: dev}}",
        "{name: dev, cluster: {server: 'https://192.0.2.2'}}",
        "{name: dev, user: {token: d3v}}",
    );
    let dev = Ok("https://192.0.2.2/ d3v");
    assert_eq!(load_text(&text, Some("dev")).await.as_deref(), dev);
    assert_eq!(load_text(&text, Some("")).await.as_deref(), Ok(WORKS));
    for current in ["''", "", "gone", "5", "[a]"] {
        let text = text.replace(
            "current-context: prod",
            &format!("current-context: {current}"),
        );
        assert_eq!(
            load_text(&text, Some("dev")).await.as_deref(),
            dev,
            "{current}"
        );
    }
}

#[tokio::test]
async fn names_the_fault_of_the_context_in_use() {
    let working = with("", "", "");
    let replace = |from: &str, to: &str| working.replace(from, to);
    let cases = [
        (
            replace("current-context: prod", "current-context: ''"),
            "has no current context; set --context (source.kubernetes.context); its contexts are: prod",
        ),
        (
            replace("current-context: prod", "current-context: prd"),
            "the current context \"prd\" is not in the kubeconfig",
        ),
        (
            replace("current-context: prod", "current-context: prd"),
            "did you mean \"prod\"?",
        ),
        ("current-context: a\n".to_owned(), "it has no contexts"),
        ("contexts: {}\n".to_owned(), "has no current context"),
        (
            String::new(),
            "has no current context; set --context (source.kubernetes.context); it has no contexts",
        ),
        (
            replace("context: {cluster: prod, user: admin}", "context: {}"),
            "it names no cluster",
        ),
        (
            replace("context: {cluster: prod, user: admin}", "context: "),
            "it names no cluster",
        ),
        (
            replace("cluster: prod,", "cluster: '',"),
            "it names no cluster",
        ),
        (
            replace("cluster: prod,", "cluster: [prod],"),
            "it is malformed: cluster: invalid type: a list, expected a string",
        ),
        (
            replace("user: admin}", "user: {}}"),
            "it is malformed: user: invalid type: a mapping, expected a string",
        ),
        (
            replace("cluster: prod,", "cluster: gone,"),
            "its cluster \"gone\" is missing",
        ),
        (
            replace(
                "cluster: {server: 'https://192.0.2.1:6443'}",
                "cluster: null",
            ),
            "its cluster \"prod\" has no server",
        ),
        (
            replace("server: 'https://192.0.2.1:6443'", "server: ''"),
            "its cluster \"prod\" has no server",
        ),
        (
            replace("'https://192.0.2.1:6443'", "192.0.2.1:6443"),
            "has the server \"192.0.2.1:6443\", which is not a URL; use https://HOST:PORT",
        ),
        (
            replace("'https://192.0.2.1:6443'", "'https://a b'"),
            "which is not a URL",
        ),
        (
            replace(
                "'https://192.0.2.1:6443'",
                "'https://user:secret@192.0.2.1:6443'",
            ),
            "has a server with user information; use https://HOST:PORT",
        ),
        (
            replace("'https://192.0.2.1:6443'", "[a]"),
            "its cluster \"prod\" is malformed: server: invalid type",
        ),
        (
            replace("{token: t0k3n}", "{auth-provider: {config: {}}}"),
            "its user \"admin\" is malformed: auth-provider: missing field name",
        ),
        (
            replace("{token: t0k3n}", "{exec: {command: [a]}}"),
            "its user \"admin\" is malformed: exec.command: invalid type",
        ),
        (
            replace("{token: t0k3n}", "[t0k3n]"),
            "its user \"admin\" is malformed: ",
        ),
        (
            with("{name: prod, context: {cluster: other}}", "", ""),
            "it is defined more than once",
        ),
        (
            with("", "{name: prod, cluster: {server: 'https://other'}}", ""),
            "its cluster \"prod\" is defined more than once",
        ),
        (
            with("", "", "{name: admin, user: {token: t0k3n2}}"),
            "its user \"admin\" is defined more than once",
        ),
        (
            replace("6443'", "6443', certificate-authority: /nonexistent"),
            "cannot be used: failed to load certificate authority",
        ),
        (
            replace("kind: Config", "kind: Pod"),
            "is not a kubeconfig: its kind is \"Pod\"",
        ),
        (
            replace("apiVersion: v1", "apiVersion: v2"),
            "its apiVersion is \"v2\"",
        ),
        (
            "- a\n".to_owned(),
            "is not a kubeconfig: it is not a mapping",
        ),
        ("a: [\n".to_owned(), "not YAML: unclosed bracket"),
        (replace("{token: t0k3n}", "{token: 't0k3n}"), "not YAML"),
    ];
    for (text, expected) in cases {
        let error = load_text(&text, None).await.unwrap_err();
        assert!(
            error.contains(expected),
            "{expected:?} is missing in {error:?}\n{text}"
        );
        assert!(
            error.contains("config\""),
            "the path is missing in {error:?}"
        );
        assert!(!error.contains("t0k3n"), "{error}");
    }
    // The same entry twice is not ambiguous.
    assert_eq!(
        load_text(&with(CONTEXT, CLUSTER, USER), None)
            .await
            .as_deref(),
        Ok(WORKS)
    );
    let error = load_text(&working, Some("prof")).await.unwrap_err();
    let expected =
        "the context \"prof\" (--context, source.kubernetes.context) is not in the kubeconfig";
    assert!(
        error.starts_with(expected)
            && error.ends_with("; its contexts are: prod; did you mean \"prod\"?"),
        "{error}"
    );
    let error = load_text(&working, Some("staging")).await.unwrap_err();
    assert!(
        error.ends_with("; its contexts are: prod") && !error.contains("did you mean"),
        "{error}"
    );
}

#[tokio::test]
async fn uses_no_credentials_if_the_user_is_missing() {
    for user in ["", "user: ''", "user: gone"] {
        let text = with("", "", "").replace("user: admin", user);
        assert_eq!(
            load_text(&text, None).await.as_deref(),
            Ok("https://192.0.2.1:6443/ none"),
            "{user}"
        );
    }
}

#[tokio::test]
async fn merges_files_of_the_variable_as_kubectl_does() {
    let folder = tempfile::tempdir().unwrap();
    let contexts = write(
        &folder,
        "contexts",
        &format!("current-context: ''\ncontexts: [{CONTEXT}]\n"),
    );
    let rest = write(
        &folder,
        "rest",
        &format!("current-context: prod\nclusters: [{CLUSTER}]\nusers: [{USER}]\n"),
    );
    // A later file does not override an earlier one.
    let other = write(
        &folder,
        "other",
        &with("", "", "")
            .replace("192.0.2.1", "192.0.2.9")
            .replace("t0k3n", "other"),
    );
    let missing = folder.path().join("missing");
    let paths = |paths: &[&PathBuf]| paths.iter().map(|path| (*path).clone()).collect();
    let load = |paths| load_files(paths, Origin::Variable, None);
    assert_eq!(
        load(paths(&[&missing, &contexts, &rest, &other]))
            .await
            .as_deref(),
        Ok(WORKS)
    );
    assert_eq!(
        load(paths(&[&other, &contexts, &rest])).await.as_deref(),
        Ok("https://192.0.2.9:6443/ other")
    );
    let error = load(paths(&[&missing])).await.unwrap_err();
    assert!(
        error.starts_with("none of the files in $KUBECONFIG exists"),
        "{error}"
    );
    let invalid = write(&folder, "invalid", "[");
    let error = load(paths(&[&contexts, &invalid])).await.unwrap_err();
    assert!(
        error.contains("invalid") && error.contains("not YAML"),
        "{error}"
    );
    let error = load_files(vec![missing], Origin::Setting, None)
        .await
        .unwrap_err();
    assert!(error.starts_with("cannot read the kubeconfig"), "{error}");
}

#[tokio::test]
async fn resolves_paths_relative_to_their_file() {
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir(folder.path().join("sub")).unwrap();
    let users = "users: [{name: admin, user: {token: '', tokenFile: tls/token, client-certificate: c.crt, client-key: /c.key, \
                 exec: {command: bin/login}}}]\n";
    let users = write(&folder, "sub/users", users);
    let rest = format!("current-context: prod\ncontexts: [{CONTEXT}]\nclusters: [{CLUSTER}]\n");
    let rest = write(&folder, "rest", &rest);
    let config = load(vec![users, rest], Origin::Variable, None)
        .await
        .unwrap();
    let (user, sub) = (config.auth_info, folder.path().join("sub"));
    let of = |path: &str| Some(sub.join(path).display().to_string());
    assert!(user.token.is_none(), "it would replace the file");
    assert_eq!(user.token_file, of("tls/token"));
    assert_eq!(user.client_certificate, of("c.crt"));
    assert_eq!(user.client_key.as_deref(), Some("/c.key"));
    assert_eq!(user.exec.unwrap().command, of("bin/login"));
    let bare = "users: [{name: admin, user: {exec: {command: aws}}}]\n";
    let bare = write(&folder, "sub/bare", bare);
    let config = load(
        vec![bare, folder.path().join("rest")],
        Origin::Variable,
        None,
    );
    assert_eq!(
        config
            .await
            .unwrap()
            .auth_info
            .exec
            .unwrap()
            .command
            .unwrap(),
        "aws"
    );
}

#[test]
fn selects_setting_then_variable_then_service_account_then_default_path() {
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir(folder.path().join(".kube")).unwrap();
    let default = write(&folder, ".kube/config", "");
    let source = |kubeconfig: Option<&str>, context: Option<&str>| KubernetesSource {
        kubeconfig: kubeconfig.map(PathBuf::from),
        context: context.map(str::to_owned),
    };
    let environment = |variable: Option<&str>, in_pod: bool, has_default: bool| Environment {
        kubeconfig: variable.map(OsString::from),
        in_pod,
        home: has_default.then(|| folder.path().to_owned()),
    };
    let file = |path: &str, origin| Selection::Kubeconfig(vec![path.into()], origin);
    let by_default = || Selection::Kubeconfig(vec![default.clone()], Origin::Default);
    let listed = ["a", "b"].map(PathBuf::from).to_vec();
    let cases = [
        (
            source(Some("k"), None),
            environment(Some("v"), true, true),
            file("k", Origin::Setting),
        ),
        (
            source(None, None),
            environment(Some("v"), true, true),
            file("v", Origin::Variable),
        ),
        (
            source(None, None),
            environment(Some(":a::b:"), true, true),
            Selection::Kubeconfig(listed, Origin::Variable),
        ),
        (
            source(None, None),
            environment(Some(""), true, true),
            Selection::ServiceAccount,
        ),
        (
            source(None, None),
            environment(Some(":"), false, true),
            by_default(),
        ),
        (
            source(None, None),
            environment(None, true, true),
            Selection::ServiceAccount,
        ),
        (
            source(None, None),
            environment(None, false, true),
            by_default(),
        ),
        (
            source(None, Some("c")),
            environment(None, true, true),
            by_default(),
        ),
        (
            source(None, Some("c")),
            environment(None, true, false),
            Selection::None,
        ),
        (
            source(None, None),
            environment(None, false, false),
            Selection::None,
        ),
    ];
    for (source, environment, expected) in cases {
        assert_eq!(
            select(&source, &environment),
            expected,
            "{source:?} {environment:?}"
        );
    }
    let elsewhere = Environment {
        home: Some(folder.path().join("nobody")),
        ..Environment::default()
    };
    assert_eq!(select(&source(None, None), &elsewhere), Selection::None);
}
