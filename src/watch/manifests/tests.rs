//! Folders of manifests and token files, valid and invalid.

use super::*;
use crate::cluster::{Cluster, Writer};
use crate::model::address::AddressPolicy;
use crate::model::{Attributes, Identity, Verb};
use crate::testing::eventually;
use prometheus_client::registry::Registry;
use std::time::Duration;

const WAIT_TIMEOUT: Duration = Duration::from_secs(30);

const POD: &str = "kind: Pod\nmetadata: {name: p}\nstatus: {podIPs: [{ip: 10.0.0.1}]}\n";

#[test]
fn error_names_file_object_and_reason() {
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
        (
            "kind: Pod\nmetadata: {name: p}\nspec: {containers: [{ports: [{containerPort: x}]}]}",
            "spec.containers[0].ports[0]",
            "a string, expected a whole number from 0 to 65535",
        ),
        (
            "metadata: {name: p}",
            "line 1: document 1 (\"p\")",
            "kind and metadata.name are required",
        ),
        (
            "kind: Node\nmetadata: {name: n}\n---\nkind: Pod\nmetadata: {}",
            "line 4: document 2 (Pod)",
            "kind and metadata.name are required",
        ),
    ];
    for (text, place, reason) in cases {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("a.yaml"), text).unwrap();
        let error = error_chain(
            &Manifests::load(folder.path().into(), None, Trust::default()).unwrap_err(),
        );
        assert!(error.contains(place) && error.contains(reason), "{error}");
    }
}

#[test]
fn errors_contain_no_values_of_the_file() {
    const SECRET: &str = "s3cr3t";
    let pod = |spec: &str| format!("kind: Pod\nmetadata: {{name: p}}\nspec: {spec}\n");
    let port = |port: &str| {
        pod(&format!(
            "{{containers: [{{ports: [{{containerPort: {port}}}]}}]}}"
        ))
    };
    let data =
        |value: &str| format!("kind: Secret\nmetadata: {{name: s}}\ndata:\n  password: {value}\n");
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
            error.contains(", line ") && !error.contains("line 0"),
            "{text}\n{error}"
        );
    }
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("a.yaml"), data("\"s3cr3t")).unwrap();
    let error =
        error_chain(&Manifests::load(folder.path().into(), None, Trust::default()).unwrap_err());
    assert!(
        error.contains("not YAML: ") && !error.contains("line 0"),
        "{error}"
    );
}

#[test]
fn treats_null_as_absent() {
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
fn reads_lists_and_documents_and_skips_unused_kinds() {
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
fn skips_kinds_of_other_apis() {
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
async fn follows_changes_and_keeps_last_valid_state() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("a.yaml");
    std::fs::write(&file, POD).unwrap();
    let (cluster, writer) = Cluster::new(AddressPolicy::default(), false);
    let (ready, metrics) = (Ready::default(), Metrics::new(&mut Registry::default()));
    let manifests = Manifests::load(folder.path().into(), None, Trust::default()).unwrap();
    run(manifests, writer, &ready, &metrics);
    eventually(WAIT_TIMEOUT, || cluster.pod("default", "p").is_some()).await;

    std::fs::write(&file, "kind: [").unwrap();
    eventually(WAIT_TIMEOUT, || ready.report().1.contains("[!]manifests")).await;
    assert!(
        cluster.pod("default", "p").is_some(),
        "the last valid state serves"
    );

    std::fs::write(&file, POD.replace("name: p", "name: q")).unwrap();
    eventually(WAIT_TIMEOUT, || cluster.pod("default", "q").is_some()).await;
    assert!(cluster.pod("default", "p").is_none() && !ready.report().1.contains("[!]"));
}

#[tokio::test(start_paused = true)]
async fn follows_rules_and_tokens_and_keeps_last_valid_token_file() {
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
    let allowed = || {
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
    let accepts = |token: &str| tokens.identity(token).is_some();
    assert!(!allowed() && accepts("t"));

    std::fs::write(&binding, BINDING).unwrap();
    eventually(WAIT_TIMEOUT, allowed).await;
    std::fs::write(&binding, BINDING.replace("jane", "joe")).unwrap();
    eventually(WAIT_TIMEOUT, || !allowed()).await;

    std::fs::write(&file, "new,jane,1\n").unwrap();
    eventually(WAIT_TIMEOUT, || accepts("new") && !accepts("t")).await;
    std::fs::write(&file, "newer,jane\n").unwrap();
    eventually(WAIT_TIMEOUT, || ready.report().1.contains("[!]manifests")).await;
    assert!(
        accepts("new") && !accepts("newer") && ready.report().0,
        "the previous tokens stay valid"
    );
    std::fs::write(&file, "newer,jane,1\n").unwrap();
    eventually(WAIT_TIMEOUT, || accepts("newer")).await;
    assert!(!ready.report().1.contains("[!]"));
}

fn run(manifests: Manifests, writer: Writer, ready: &Ready, metrics: &Metrics) {
    let (feed, index) = crate::watch::feed(writer, vec![Manifests::block(ready)], metrics);
    tokio::spawn(index.run());
    tokio::spawn(manifests.follow(feed, ready.clone(), metrics.clone())());
}
