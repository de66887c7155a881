//! A folder of YAML as the source: the same objects that a cluster holds, without a cluster.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use futures::FutureExt;
use futures::future::BoxFuture;
use k8s_openapi::api::rbac::v1::{ClusterRole, ClusterRoleBinding, Role, RoleBinding};
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::objects::{Item, SlimNode, SlimPod, SlimService, SlimSlice, Watched, remove_nulls};
use super::{Change, Feed};
use crate::cluster::{Kind, Object};
use crate::file_watch::FileWatch;
use crate::metrics::Metrics;
use crate::ready::{BlockReady, Ready};
use crate::trust::{RbacRulesBuilder, Trust};

/// The name under which this source stands in `/readyz` and in the metrics.
const MANIFESTS: &str = "manifests";
/// In the order in which they are sent.
const KINDS: [Kind; 4] = Kind::ALL;
const NAMESPACED: [&str; 5] = ["Pod", "Service", "EndpointSlice", "Role", "RoleBinding"];

/// The API of the kinds that are used here. Others have kinds of the same name, as Knative has a
/// `Service`.
fn api_version(kind: &str) -> &'static str {
    match kind {
        "EndpointSlice" => "discovery.k8s.io/v1",
        "Role" | "ClusterRole" | "RoleBinding" | "ClusterRoleBinding" => {
            "rbac.authorization.k8s.io/v1"
        }
        _ => "v1",
    }
}

/// What is wrong with a folder, and where.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    #[error("cannot read {path:?}: {source}")]
    Read {
        path: PathBuf,
        source: std::io::Error,
    },
    #[error("{path:?}, line {line}: not YAML: {reason}")]
    Yaml {
        path: PathBuf,
        line: u64,
        reason: String,
    },
    #[error("{path:?}: {what} is malformed: {fault}")]
    Malformed {
        path: PathBuf,
        what: String,
        fault: String,
    },
    #[error("the token file {path:?} is refused: {fault}")]
    Tokens { path: PathBuf, fault: String },
}

/// The folder and the token file, and what was read from them.
#[derive(Debug)]
pub struct Manifests {
    directory: PathBuf,
    token_file: Option<PathBuf>,
    trust: Trust,
    /// Read and not sent to the index yet.
    objects: Option<Vec<(Kind, Object)>>,
    /// Made before the first reading, so that no change is missed between the two.
    changes: FileWatch,
}

impl Manifests {
    /// Reads the folder and the token file.
    ///
    /// # Errors
    /// Names the file, the object and what is wrong with it.
    pub fn load(
        directory: PathBuf,
        token_file: Option<PathBuf>,
        trust: Trust,
    ) -> Result<Self, ManifestError> {
        let changes = FileWatch::new(
            [Some(&directory), token_file.as_ref()]
                .into_iter()
                .flatten()
                .cloned()
                .collect(),
        );
        let mut manifests = Self {
            directory,
            token_file,
            trust,
            objects: None,
            changes,
        };
        manifests.read()?;
        Ok(manifests)
    }

    /// The hold that keeps the bastion unready until the last of the kinds is in.
    pub fn block(ready: &Ready) -> (Kind, BlockReady) {
        (KINDS[KINDS.len() - 1], ready.block(MANIFESTS))
    }

    /// Makes the task that sends what was read, and again whenever a file changes. A file that
    /// breaks changes nothing: the last good state serves, and `/readyz`, the log and a metric say
    /// so.
    pub fn follow(
        self,
        feed: Feed,
        ready: Ready,
        metrics: Metrics,
    ) -> impl FnMut() -> BoxFuture<'static, ()> + Send + 'static {
        // Shared by the runs of the task, one at a time: what has been read and not sent yet
        // outlives one that breaks.
        let manifests = Arc::new(tokio::sync::Mutex::new(self));
        move || {
            let (manifests, feed, ready, metrics) = (
                Arc::clone(&manifests),
                feed.clone(),
                ready.clone(),
                metrics.clone(),
            );
            async move { manifests.lock().await.run(&feed, &ready, &metrics).await }.boxed()
        }
    }

    async fn run(&mut self, feed: &Feed, ready: &Ready, metrics: &Metrics) {
        loop {
            if let Some(mut objects) = self.objects.take() {
                for kind in KINDS {
                    let objects = objects
                        .extract_if(.., |(found, _)| *found == kind)
                        .map(|(_, object)| object);
                    feed.send(Change::Reset(kind, objects.collect())).await;
                }
                metrics.watch_event(MANIFESTS);
                metrics.watch_up(MANIFESTS, true);
                ready.clear_degraded(MANIFESTS);
            }
            self.changes.changed().await;
            match self.read() {
                Ok(()) => {
                    tracing::info!(directory = ?self.directory, "the manifests changed and were read");
                }
                Err(error) => {
                    tracing::error!(%error, "the manifests changed and cannot be used; the last good ones serve");
                    metrics.watch_up(MANIFESTS, false);
                    ready.set_degraded(MANIFESTS, error.to_string());
                }
            }
        }
    }

    /// All or nothing: what is read takes effect only when every file is good.
    fn read(&mut self) -> Result<(), ManifestError> {
        let mut found = Found::default();
        for path in files(&self.directory)? {
            let text = read(&path)?;
            // `y`, `n`, `on` and the like are names, as kubectl's YAML has it.
            let options = serde_saphyr::options! { strict_booleans: true, with_snippet: false };
            let documents: Vec<Value> = serde_saphyr::from_multiple_with_options(&text, options)
                .map_err(|error| ManifestError::Yaml {
                    path: path.clone(),
                    line: error.location().map_or(0, |location| location.line()),
                    reason: reason(&error),
                })?;
            for mut document in documents {
                // As Helm renders them: `annotations:` with nothing behind it.
                remove_nulls(&mut document);
                found.take(&path, document)?;
            }
        }
        if let Some(path) = &self.token_file {
            let tokens = |fault| ManifestError::Tokens {
                path: path.clone(),
                fault,
            };
            self.trust
                .token_file
                .replace(&read(path)?)
                .map_err(tokens)?;
        }
        self.trust.rbac.store(Arc::new(found.rules.build()));
        self.objects = Some(found.objects);
        Ok(())
    }
}

/// Describes the fault of a file without anything that stands in it: `/readyz` and the log show it
/// to people who may not read the Secret that somebody put beside the manifests.
fn reason(error: &serde_saphyr::Error) -> String {
    use serde_saphyr::Error;
    match error.without_snippet() {
        // The scanner's own words; what they quote may be of the file.
        Error::ExternalMessage { msg, .. } => without_quotes(msg),
        Error::Eof { .. } => "the file ends too early".into(),
        Error::DuplicateMappingKey { .. } => "a key stands twice in one mapping".into(),
        Error::NonFiniteFloat { .. } => "a number is out of range".into(),
        Error::InvalidUtf8Input => "it is not UTF-8".into(),
        _ => "it cannot be read".into(),
    }
}

/// serde's message without the value that it complains of: `invalid type: string "x", expected
/// u16`.
fn without_value(message: &str) -> String {
    for kind in ["invalid type: ", "invalid value: "] {
        if let (Some(rest), Some((_, expected))) = (
            message.strip_prefix(kind),
            message.rsplit_once(", expected "),
        ) {
            let unexpected: Vec<_> = rest
                .split(' ')
                .take_while(|word| word.bytes().all(|b| b.is_ascii_lowercase()))
                .collect();
            return format!(
                "{kind}{}, expected {}",
                unexpected.join(" "),
                without_quotes(expected)
            );
        }
    }
    without_quotes(message)
}

/// Replaces what stands in quotes or backticks.
fn without_quotes(text: &str) -> String {
    let mut kept = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(start) = rest.find(['"', '\'', '`']) {
        kept.push_str(&rest[..start]);
        kept.push('…');
        let quote = rest[start..].chars().next().unwrap_or('"');
        // To the last of its kind, because the value may hold quotes itself.
        rest = rest[start + 1..]
            .rsplit_once(quote)
            .map_or("", |(_, after)| after);
    }
    kept + rest
}

fn read(path: &Path) -> Result<String, ManifestError> {
    std::fs::read_to_string(path).map_err(|source| ManifestError::Read {
        path: path.into(),
        source,
    })
}

/// The manifests of a folder, in the order of their names. Hidden files are left out, as mounted
/// `ConfigMaps` have them.
fn files(directory: &Path) -> Result<Vec<PathBuf>, ManifestError> {
    let entries = std::fs::read_dir(directory);
    let entries = entries.map_err(|source| ManifestError::Read {
        path: directory.into(),
        source,
    })?;
    let mut paths: Vec<_> = entries
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| {
            let hidden = path
                .file_name()
                .is_some_and(|name| name.to_string_lossy().starts_with('.'));
            let wanted = path
                .extension()
                .is_some_and(|end| end == "yaml" || end == "yml" || end == "json");
            wanted && !hidden && path.is_file()
        })
        .collect();
    paths.sort();
    Ok(paths)
}

#[derive(Debug, Default)]
struct Found {
    objects: Vec<(Kind, Object)>,
    rules: RbacRulesBuilder,
}

impl Found {
    fn take(&mut self, path: &Path, mut document: Value) -> Result<(), ManifestError> {
        // A file may end with `---`.
        if document.is_null() {
            return Ok(());
        }
        let kind = document["kind"].as_str().unwrap_or_default().to_owned();
        let name = document["metadata"]["name"]
            .as_str()
            .unwrap_or_default()
            .to_owned();
        let malformed = |fault: String| ManifestError::Malformed {
            path: path.into(),
            what: format!("{kind} {name:?}"),
            fault: without_value(&fault),
        };
        let of_ours = document
            .get("apiVersion")
            .is_none_or(|version| *version == api_version(&kind));
        if kind == "List" && of_ours {
            let items = document["items"].take();
            let items: Vec<Value> =
                serde_json::from_value(items).map_err(|error| malformed(error.to_string()))?;
            return items.into_iter().try_for_each(|item| self.take(path, item));
        }
        if kind.is_empty() || name.is_empty() {
            return Err(malformed("kind and metadata.name are needed".into()));
        }
        if !of_ours {
            let version = document["apiVersion"].as_str().unwrap_or_default();
            tracing::info!(
                ?path,
                kind,
                version,
                name,
                "an object of an API that is not used here is skipped"
            );
            return Ok(());
        }
        if NAMESPACED.contains(&&*kind) && document["metadata"]["namespace"].is_null() {
            document["metadata"]["namespace"] = "default".into();
        }
        match &*kind {
            "Node" => self.object::<SlimNode>(document),
            "Pod" => self.object::<SlimPod>(document),
            "Service" => self.object::<SlimService>(document),
            "EndpointSlice" => self.object::<SlimSlice>(document),
            "Role" => parse::<Role>(document).map(|role| self.rules.roles.push(role)),
            "ClusterRole" => {
                parse::<ClusterRole>(document).map(|role| self.rules.cluster_roles.push(role))
            }
            "RoleBinding" => {
                parse::<RoleBinding>(document).map(|binding| self.rules.role_bindings.push(binding))
            }
            "ClusterRoleBinding" => parse::<ClusterRoleBinding>(document)
                .map(|binding| self.rules.cluster_role_bindings.push(binding)),
            _ => {
                tracing::info!(
                    ?path,
                    kind,
                    name,
                    "an object of a kind that is not used here is skipped"
                );
                Ok(())
            }
        }
        .map_err(malformed)
    }

    fn object<K: Watched>(&mut self, document: Value) -> Result<(), String> {
        let object = Item::<K>::from_value(document).object()?;
        self.objects.extend(object.map(|object| (K::KIND, object)));
        Ok(())
    }
}

fn parse<T: DeserializeOwned>(document: Value) -> Result<T, String> {
    serde_json::from_value(document).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::{Cluster, Writer};
    use crate::model::address::AddressPolicy;
    use crate::model::{Attributes, Identity, Verb, error_chain};
    use prometheus_client::registry::Registry;

    const POD: &str = "kind: Pod\nmetadata: {name: p}\nstatus: {podIPs: [{ip: 10.0.0.1}]}\n";

    #[test]
    fn a_broken_file_is_named_with_what_is_wrong() {
        let cases = [
            ("kind: Pod\nmetadata: [", "a.yaml", "not YAML"),
            (
                "kind: Pod\nmetadata: {name: p}\nstatus: {podIPs: [{ip: nope}]}",
                "Pod \"p\"",
                "IP address",
            ),
            (
                "kind: Role\nmetadata: {name: r}\nrules: {}",
                "Role \"r\"",
                "malformed",
            ),
            ("metadata: {name: p}", "", "kind and metadata.name"),
        ];
        for (text, place, fault) in cases {
            let folder = tempfile::tempdir().unwrap();
            std::fs::write(folder.path().join("a.yaml"), text).unwrap();
            let error = Manifests::load(folder.path().into(), None, Trust::default())
                .unwrap_err()
                .to_string();
            assert!(error.contains(place) && error.contains(fault), "{error}");
        }
    }

    #[test]
    fn errors_show_nothing_of_the_file() {
        const SECRET: &str = "s3cr3t";
        let pod = |spec: &str| format!("kind: Pod\nmetadata: {{name: p}}\nspec: {spec}\n");
        let port = |port: &str| {
            pod(&format!(
                "{{containers: [{{ports: [{{containerPort: {port}}}]}}]}}"
            ))
        };
        let data = |value: &str| {
            format!("kind: Secret\nmetadata: {{name: s}}\ndata:\n  password: {value}\n")
        };
        let broken = [
            data("\"s3cr3t"),
            data("'s3cr3t"),
            data("s3cr3t: x"),
            data("[s3cr3t"),
            data("*s3cr3t"),
            data("@s3cr3t"),
            data("%s3cr3t"),
            data("\"s3cr3t\\q\""),
            data("1\n  s3cr3t: 2\n  s3cr3t: 3"),
            data("1\n\ts3cr3t"),
            data("!!int s3cr3t"),
            data("!!binary s3cr3t"),
            data("1\n<<: s3cr3t"),
            data("&s3cr3t [*s3cr3t]"),
            port("s3cr3t"),
            port("\"s3cr3t \\\"s3cr3t\\\", expected s3cr3t\""),
            pod("s3cr3t"),
            pod("[s3cr3t]"),
            "kind: Role\nmetadata: {name: r}\nrules: s3cr3t\n".to_owned(),
            "kind: List\nitems: s3cr3t\n".to_owned(),
        ];
        for text in broken {
            let folder = tempfile::tempdir().unwrap();
            std::fs::write(folder.path().join("a.yaml"), &text).unwrap();
            let Err(error) = Manifests::load(folder.path().into(), None, Trust::default()) else {
                continue;
            };
            let error = error_chain(&error);
            assert!(
                !error.contains(SECRET) && error.contains("a.yaml"),
                "{text}\n{error}"
            );
            assert!(
                error.contains(", line ") || error.contains(" is malformed: "),
                "{text}\n{error}"
            );
        }
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("a.yaml"), data("\"s3cr3t")).unwrap();
        let error = Manifests::load(folder.path().into(), None, Trust::default())
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("not YAML: ") && !error.contains("line 0"),
            "{error}"
        );
    }

    #[test]
    fn null_is_the_same_as_absent_in_manifests() {
        let folder = tempfile::tempdir().unwrap();
        let text = "kind: Pod
metadata: {name: p, namespace: , labels: , annotations: }
spec: {containers: [{ports: }]}
status: {phase: , podIPs: }
---
{kind: Service, metadata: {name: s}, spec: {ports: }}
---
{kind: EndpointSlice, addressType: IPv4, metadata: {name: s, labels: {kubernetes.io/service-name: s}}, ports: ,
 endpoints: [{addresses: [10.0.0.1], conditions: , targetRef: }]}
---
{kind: ClusterRole, metadata: {name: r, annotations: }, rules: }
---
{kind: Node, metadata: {name: n}, status: }
";
        std::fs::write(folder.path().join("a.yaml"), text).unwrap();
        let manifests = Manifests::load(folder.path().into(), None, Trust::default()).unwrap();
        let kinds: Vec<_> = manifests
            .objects
            .as_ref()
            .unwrap()
            .iter()
            .map(|(kind, _)| *kind)
            .collect();
        assert_eq!(
            kinds,
            [Kind::Pod, Kind::Service, Kind::EndpointSlice, Kind::Node]
        );
    }

    #[test]
    fn lists_and_several_documents_and_unknown_kinds_are_read() {
        let folder = tempfile::tempdir().unwrap();
        let text = format!(
            "{POD}---\nkind: Deployment\nmetadata: {{name: d}}\n---\nkind: List\nitems: [{{kind: Node, metadata: {{name: n}}}}]\n---\n"
        );
        std::fs::write(folder.path().join("a.yml"), text).unwrap();
        std::fs::write(folder.path().join("README.md"), "not YAML: [").unwrap();
        std::fs::write(folder.path().join(".hidden.yaml"), "[").unwrap();
        let manifests = Manifests::load(folder.path().into(), None, Trust::default()).unwrap();
        let kinds: Vec<_> = manifests
            .objects
            .as_ref()
            .unwrap()
            .iter()
            .map(|(kind, _)| *kind)
            .collect();
        assert_eq!(kinds, [Kind::Pod, Kind::Node]);
    }

    #[test]
    fn kinds_of_other_apis_are_skipped() {
        let folder = tempfile::tempdir().unwrap();
        let text = "{kind: Service, apiVersion: serving.knative.dev/v1, metadata: {name: knative}, spec: {ports: none}}
---
{kind: Role, apiVersion: iam.example.com/v1, metadata: {name: r}, rules: {}}
---
{kind: Service, apiVersion: v1, metadata: {name: core}}
---
{kind: EndpointSlice, apiVersion: discovery.k8s.io/v1, addressType: IPv4, metadata: {name: s, labels: {kubernetes.io/service-name: core}}}
---
{kind: Node, metadata: {name: without}}
";
        std::fs::write(folder.path().join("a.yaml"), text).unwrap();
        let manifests = Manifests::load(folder.path().into(), None, Trust::default()).unwrap();
        let kinds: Vec<_> = manifests
            .objects
            .as_ref()
            .unwrap()
            .iter()
            .map(|(kind, _)| *kind)
            .collect();
        assert_eq!(kinds, [Kind::Service, Kind::EndpointSlice, Kind::Node]);
    }

    #[tokio::test(start_paused = true)]
    async fn changes_are_followed_and_a_broken_file_keeps_the_last_good_state() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("a.yaml");
        std::fs::write(&file, POD).unwrap();
        let (cluster, writer) = Cluster::new(AddressPolicy::default(), false);
        let (ready, metrics) = (Ready::default(), Metrics::new(&mut Registry::default()));
        let manifests = Manifests::load(folder.path().into(), None, Trust::default()).unwrap();
        run(manifests, writer, &ready, &metrics);
        eventually(|| cluster.pod("default", "p").is_some()).await;

        std::fs::write(&file, "kind: [").unwrap();
        eventually(|| ready.report().1.contains("[!]manifests")).await;
        assert!(
            cluster.pod("default", "p").is_some(),
            "the last good state serves"
        );

        std::fs::write(&file, POD.replace("name: p", "name: q")).unwrap();
        eventually(|| cluster.pod("default", "q").is_some()).await;
        assert!(cluster.pod("default", "p").is_none() && !ready.report().1.contains("[!]"));
    }

    #[tokio::test(start_paused = true)]
    async fn rights_and_tokens_are_followed_and_a_broken_token_file_keeps_the_old() {
        const BINDING: &str = "kind: ClusterRoleBinding
metadata: {name: b}
roleRef: {kind: ClusterRole, name: r}
subjects: [{kind: User, name: jane}]
";
        let folder = tempfile::tempdir().unwrap();
        let (binding, file) = (
            folder.path().join("m/binding.yaml"),
            folder.path().join("tokens"),
        );
        std::fs::create_dir(folder.path().join("m")).unwrap();
        let role = "kind: ClusterRole\nmetadata: {name: r}\nrules: [{apiGroups: [''], resources: [pods/proxy], verbs: [get]}]\n";
        std::fs::write(folder.path().join("m/role.yaml"), role).unwrap();
        std::fs::write(&file, "t,jane,1\n").unwrap();

        let (_cluster, writer) = Cluster::new(AddressPolicy::default(), false);
        let (ready, metrics) = (Ready::default(), Metrics::new(&mut Registry::default()));
        let trust = Trust::default();
        let manifests =
            Manifests::load(folder.path().join("m"), Some(file.clone()), trust.clone()).unwrap();
        let (tokens, rules) = (trust.token_file, trust.rbac);
        run(manifests, writer, &ready, &metrics);
        let may = || {
            let jane = Identity::new("jane", "1", Vec::new(), Default::default());
            let attributes = Attributes {
                verb: Verb::Get,
                group: "",
                resource: "pods",
                subresource: "proxy",
                namespace: "default",
                name: "p",
            };
            rules.load().allows(&jane, attributes)
        };
        let knows = |token: &str| tokens.identity(token).is_some();
        assert!(!may() && knows("t"));

        std::fs::write(&binding, BINDING).unwrap();
        eventually(may).await;
        std::fs::write(&binding, BINDING.replace("jane", "joe")).unwrap();
        eventually(|| !may()).await;

        std::fs::write(&file, "new,jane,1\n").unwrap();
        eventually(|| knows("new") && !knows("t")).await;
        std::fs::write(&file, "newer,jane\n").unwrap();
        eventually(|| ready.report().1.contains("[!]manifests")).await;
        assert!(
            knows("new") && !knows("newer") && ready.report().0,
            "the old tokens stay"
        );
        std::fs::write(&file, "newer,jane,1\n").unwrap();
        eventually(|| knows("newer")).await;
        assert!(!ready.report().1.contains("[!]"));
    }

    fn run(manifests: Manifests, writer: Writer, ready: &Ready, metrics: &Metrics) {
        let (feed, index) = crate::watch::feed(writer, vec![Manifests::block(ready)], metrics);
        tokio::spawn(index.run());
        tokio::spawn(manifests.follow(feed, ready.clone(), metrics.clone())());
    }

    async fn eventually(mut is: impl FnMut() -> bool) {
        let waited = async {
            while !is() {
                tokio::time::sleep(std::time::Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(std::time::Duration::from_secs(30), waited)
            .await
            .unwrap();
    }
}
