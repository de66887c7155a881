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
            "kind is required",
        ),
        (
            "kind: Node\nmetadata: {name: n}\n---\nkind: Pod\nmetadata: {}",
            "line 4: document 2 (Pod)",
            "metadata.name is required",
        ),
        (
            "kind: PodList\nitems: [{metadata: {name: p}}, {metadata: {labels: {}}}]",
            "line 1: document 1, items[1] (Pod)",
            "metadata.name is required",
        ),
        (
            "kind: List\nitems: 5",
            "document 1 (List)",
            "items: invalid type",
        ),
        (
            "kind: Pod\nmetadata: {name: p}\nkind: Pod",
            "a.yaml\", line 3",
            "duplicate key",
        ),
        (
            "kind: Pod\nmetadata: {name: p, namespace: 5}",
            "Pod \"p\"",
            "metadata.namespace: invalid type",
        ),
        (
            "kind: Node\nmetadata: {name: n}\nstatus: {addresses: [{address: h}]}",
            "Node \"n\" is malformed: status.addresses[0]",
            "missing field type",
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

/// Loads files with these contents. Returns kind and key of each object, and the counts.
fn load(texts: &[&str]) -> (Vec<String>, String) {
    let folder = tempfile::tempdir().unwrap();
    for (index, text) in texts.iter().enumerate() {
        std::fs::write(folder.path().join(format!("{index}.yaml")), text).unwrap();
    }
    let manifests = Manifests::load(folder.path().into(), None, Trust::default())
        .unwrap_or_else(|error| panic!("{texts:?}: {}", error_chain(&error)));
    let objects = manifests.objects.as_deref().unwrap().iter();
    let objects = objects.map(|(_, object)| match object {
        Object::Node(node) => format!("Node {}", node.name),
        Object::Pod(key, _) => format!("Pod {key}"),
        Object::Service(key, _) => format!("Service {key}"),
        Object::EndpointSlice(key, _) => format!("EndpointSlice {key}"),
    });
    (objects.collect(), manifests.counts().to_string())
}

/// Output of `helm template`, `kubectl get -o yaml`, `kubectl get -o json`, `kubectl get --raw`,
/// `kubectl create --dry-run=client -o yaml` and the like, reduced to what is unusual in it.
#[test]
fn loads_output_of_kubectl_and_helm() {
    let cases = [
        // Keys without a value, comments, documents without content.
        (
            "---\n# Source: shop/templates/empty.yaml\n---\n# Source: shop/templates/service.yaml\n\
             apiVersion: v1\nkind: Service\nmetadata:\n  name: web\n  namespace:\n  labels:\n  annotations:\n\
             spec:\n  type:\n  selector:\n  ports:\nstatus:\n",
            vec!["Service default/web"],
        ),
        (
            "apiVersion: v1\nkind: Pod\nmetadata:\n  creationTimestamp: null\n  name: p\n  namespace: \"\"\n\
             spec:\n  initContainers:\n  containers:\n  - name: c\n    image: i\n    ports:\n    resources: {}\n\
             status:\n  podIPs:\n  conditions: null\n",
            vec!["Pod default/p"],
        ),
        (
            "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\naddressType: IPv4\nendpoints: null\nports: null\n\
             metadata: {name: s, labels: {kubernetes.io/service-name: web, helm.sh/chart: }}\n",
            vec!["EndpointSlice default/s"],
        ),
        (
            "kind: EndpointSlice\naddressType: IPv4\nmetadata: {name: s, labels: {kubernetes.io/service-name: web}}\n\
             endpoints: [{addresses: null}, {addresses: [10.0.0.1], conditions: null, targetRef: null, zone: null}, null]\n",
            vec!["EndpointSlice default/s"],
        ),
        (
            "kind: Node\nmetadata: {name: n}\nstatus: {addresses: null, daemonEndpoints: null, conditions: null}\n",
            vec!["Node n"],
        ),
        // Lists.
        (
            "apiVersion: v1\nitems:\n- apiVersion: v1\n  kind: Service\n  metadata:\n    name: web\n    namespace: shop\n\
             - apiVersion: apps/v1\n  kind: Deployment\n  metadata: {name: d}\n\
             kind: List\nmetadata:\n  resourceVersion: \"\"\n  selfLink: \"\"\n",
            vec!["Service shop/web"],
        ),
        (
            "apiVersion: v1\nkind: List\nitems: []\nmetadata: {}\n",
            vec![],
        ),
        ("apiVersion: v1\nkind: List\nitems: null\n", vec![]),
        ("apiVersion: v1\nkind: List\n", vec![]),
        (
            "apiVersion: v1\nkind: PodList\nmetadata: null\nitems:\n",
            vec![],
        ),
        (
            r#"{"kind":"ServiceList","apiVersion":"v1","metadata":{"resourceVersion":"7"},"items":[
               {"metadata":{"name":"a","namespace":"ns","creationTimestamp":null}},{"metadata":{"name":"b"}}]}"#,
            vec!["Service ns/a", "Service default/b"],
        ),
        (
            "kind: EndpointSliceList\napiVersion: discovery.k8s.io/v1\nitems:\n\
             - {addressType: IPv6, metadata: {name: s, labels: {kubernetes.io/service-name: web}}}\n",
            vec!["EndpointSlice default/s"],
        ),
        (
            "kind: List\nitems: [{kind: NodeList, items: [{metadata: {name: n}}]}, {kind: Pod, metadata: {name: p}}]\n",
            vec!["Node n", "Pod default/p"],
        ),
        // Lists of other kinds, and other APIs.
        (
            "apiVersion: apps/v1\nkind: DeploymentList\nitems: [{metadata: {name: d}}]\n",
            vec![],
        ),
        (
            "apiVersion: example.com/v1\nkind: AllowList\nmetadata: {name: l}\nitems: [a, b]\n",
            vec![],
        ),
        (
            "apiVersion: serving.knative.dev/v1\nkind: ServiceList\nitems: [5]\n",
            vec![],
        ),
        (
            "apiVersion: kustomize.config.k8s.io/v1beta1\nkind: Kustomization\nresources: [a.yaml]\n",
            vec![],
        ),
        (
            "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: c}\ndata: null\n",
            vec![],
        ),
        // Form of the file.
        ("", vec![]),
        ("# only a comment\n", vec![]),
        (
            "\u{feff}kind: Node\r\nmetadata:\r\n  name: n\r\n---\r\nkind: Pod\r\nmetadata:\r\n  name: p\r\n",
            vec!["Node n", "Pod default/p"],
        ),
        (
            "{\n\t\"kind\": \"Node\",\n\t\"metadata\": {\"name\": \"n\"}\n}\n{\"kind\": \"Pod\", \"metadata\": {\"name\": \"p\"}}\n",
            vec!["Node n", "Pod default/p"],
        ),
        (
            "kind: Pod\nmetadata: &meta\n  name: p\n  namespace: ns\n---\nkind: Service\nmetadata:\n  labels: &labels {a: b}\n\
             \x20 name: s\nspec: {selector: *labels, ports: &ports [{port: 80}]}\n---\nkind: Service\n\
             metadata: {<<: {namespace: ns}, name: t}\n",
            vec!["Pod ns/p", "Service default/s", "Service ns/t"],
        ),
        (
            "kind: Pod\nmetadata: {name: 'on', annotations: {a: on, b: y, c: 0o7, d: 1e3}}\n",
            vec!["Pod default/on"],
        ),
    ];
    for (text, objects) in cases {
        assert_eq!(load(&[text]).0, objects, "{text}");
    }
}

#[test]
fn loads_rbac_objects_with_nulls_and_in_lists() {
    let text = "{kind: Role, metadata: {name: a}, rules: [{apiGroups: null, resources: , verbs: , resourceNames: null}]}
---
{kind: RoleBinding, metadata: {name: a, namespace: ''}, subjects: , roleRef: {apiGroup: , kind: Role, name: a}}
---
{kind: RoleList, apiVersion: rbac.authorization.k8s.io/v1, items: [{metadata: {name: b}, rules: null}]}
---
kind: ClusterRoleBindingList
items: [{metadata: {name: c}, roleRef: {kind: ClusterRole, name: c}, subjects: [{kind: Group, name: g, namespace: null}, null]}]
---
{kind: ClusterRole, metadata: {name: c, annotations: , labels: }, aggregationRule: , rules: [null]}
";
    let counts = load(&[text]).1;
    assert!(counts.ends_with("3 roles, 2 role bindings"), "{counts}");
}

#[test]
fn counts_duplicates_and_uses_the_last_definition() {
    let pod = |ip: &str| {
        format!("kind: Pod\nmetadata: {{name: p}}\nstatus: {{podIPs: [{{ip: {ip}}}]}}\n")
    };
    let list = "kind: PodList\nitems: [{metadata: {name: q}}, {metadata: {name: q, namespace: default}}, {metadata: {name: q, namespace: other}}]\n";
    let role =
        "kind: ClusterRole\nmetadata: {name: p}\n---\nkind: ClusterRole\nmetadata: {name: p}\n";
    let other = "kind: Secret\nmetadata: {name: s}\n---\nkind: Secret\nmetadata: {name: s}\n";
    let (objects, counts) = load(&[&pod("10.0.0.1"), &pod("10.0.0.2"), list, role, other]);
    assert_eq!(objects, ["Pod default/p", "Pod default/q", "Pod other/q"]);
    assert_eq!(
        counts,
        "0 nodes, 3 pods, 0 services, 0 endpointslices, 1 roles, 0 role bindings, 3 duplicates, 2 of unused kinds"
    );
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(
        folder.path().join("a.yaml"),
        pod("10.0.0.1") + "---\n" + &pod("10.0.0.2"),
    )
    .unwrap();
    let manifests = Manifests::load(folder.path().into(), None, Trust::default()).unwrap();
    let Some([(_, Object::Pod(_, pod))]) = manifests.objects.as_deref() else {
        panic!("{:?}", manifests.objects)
    };
    assert_eq!(pod.ips[0].to_string(), "10.0.0.2");
}

#[test]
fn start_names_every_invalid_file_and_object() {
    let folder = tempfile::tempdir().unwrap();
    let text = "kind: Pod\nmetadata: {name: bad}\nspec: 5\n---\nkind: Pod\nmetadata: {name: good}\n---\nkind: Service\nmetadata: {name: worse}\nspec: 5\n";
    std::fs::write(folder.path().join("a.yaml"), text).unwrap();
    std::fs::write(folder.path().join("b.yaml"), "[").unwrap();
    let error = Manifests::load(folder.path().into(), None, Trust::default()).unwrap_err();
    let error = error_chain(&error);
    for part in ["Pod \"bad\"", "Service \"worse\"", "b.yaml"] {
        assert!(error.contains(part), "{error}");
    }
    assert!(!error.contains("good"), "{error}");
    let many: String = (0..20)
        .map(|number| format!("kind: Pod\nmetadata: {{name: bad-{number}}}\nspec: 5\n---\n"))
        .collect();
    std::fs::write(folder.path().join("a.yaml"), many).unwrap();
    let error = Manifests::load(folder.path().into(), None, Trust::default()).unwrap_err();
    assert!(error_chain(&error).ends_with("; and 11 more"), "{error}");
}

/// A malformed object stays as it was, and so do the objects of a file that is not YAML.
#[tokio::test(start_paused = true)]
async fn reload_keeps_only_what_is_invalid() {
    let pod = |name: &str, ip: &str| {
        format!("---\nkind: Pod\nmetadata: {{name: {name}}}\nstatus: {{podIPs: [{{ip: {ip}}}]}}\n")
    };
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
    write("a.yaml", &(pod("a", "10.0.0.1") + &pod("b", "10.0.0.1")));
    write("b.yaml", &pod("c", "10.0.0.1"));
    let (cluster, writer) = Cluster::new(AddressPolicy::default(), false, None);
    let mut registry = Registry::default();
    let (ready, metrics) = (Ready::default(), Metrics::new(&mut registry));
    let manifests = Manifests::load(folder.path().into(), None, Trust::default()).unwrap();
    run(manifests, writer, &ready, &metrics);
    let addresses = || {
        ["a", "b", "c", "d"].map(|name| match cluster.pod("default", name) {
            None => "none".to_owned(),
            Some(pod) => pod.ips[0].to_string(),
        })
    };
    let one = "10.0.0.1";
    eventually(WAIT_TIMEOUT, || addresses() == [one, one, one, "none"]).await;

    // `b` moves to another file as well; `d` has no previous version.
    write("a.yaml", &pod("a", "10.0.0.2"));
    write("c.yaml", &(pod("b", "nowhere") + &pod("d", "nowhere")));
    eventually(WAIT_TIMEOUT, || {
        addresses() == ["10.0.0.2", one, one, "none"]
    })
    .await;
    eventually(WAIT_TIMEOUT, || ready.report().1.contains("[!]manifests")).await;
    let report = ready.report().1;
    for part in [
        "c.yaml",
        "Pod \"b\"",
        "Pod \"d\"",
        "podIPs[0].ip",
        "IP address",
    ] {
        assert!(report.contains(part), "{part}: {report}");
    }
    assert!(
        !report.contains("[+]manifests") && ready.report().0,
        "{report}"
    );
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
    let malformed = "watch_malformed_objects_total{resource=\"manifests\"} 2";
    assert!(text.contains(malformed), "{text}");

    // A file that is not YAML, and one with an object without a name, stay as they were.
    write("b.yaml", &(pod("c", "10.0.0.3") + "kind: ["));
    write("c.yaml", &(pod("b", "10.0.0.3") + "---\nkind: Pod\n"));
    write("a.yaml", &pod("a", "10.0.0.3"));
    eventually(WAIT_TIMEOUT, || {
        addresses() == ["10.0.0.3", one, one, "none"]
    })
    .await;

    // What is removed is deleted, and errors end when they are corrected.
    std::fs::remove_file(folder.path().join("b.yaml")).unwrap();
    write("c.yaml", &(pod("b", "10.0.0.4") + &pod("d", "10.0.0.4")));
    let four = "10.0.0.4";
    eventually(WAIT_TIMEOUT, || {
        addresses() == ["10.0.0.3", four, "none", four]
    })
    .await;
    eventually(WAIT_TIMEOUT, || {
        ready.report().1.contains("[+]manifests ok")
    })
    .await;
    assert!(!ready.report().1.contains("[!]"));

    // Without the folder, everything stays.
    std::fs::rename(folder.path(), folder.path().with_extension("moved")).unwrap();
    eventually(WAIT_TIMEOUT, || ready.report().1.contains("cannot read")).await;
    assert_eq!(addresses(), ["10.0.0.3", four, "none", four]);
    std::fs::rename(folder.path().with_extension("moved"), folder.path()).unwrap();
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
    let (cluster, writer) = Cluster::new(AddressPolicy::default(), false, None);
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

    let (_cluster, writer) = Cluster::new(AddressPolicy::default(), false, None);
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

#[test]
fn malformed_object_falls_back_to_the_definition_in_use() {
    let pod = |ip: &str| {
        format!("---\nkind: Pod\nmetadata: {{name: p}}\nstatus: {{podIPs: [{{ip: {ip}}}]}}\n")
    };
    let used = |before: &[(&str, &[&str])], after: &[(&str, &[&str])]| {
        let folder = tempfile::tempdir().unwrap();
        let write = |files: &[(&str, &[&str])]| {
            for (name, ips) in files {
                let text: String = ips.iter().map(|ip| pod(ip)).collect();
                std::fs::write(folder.path().join(name), text).unwrap();
            }
        };
        write(before);
        let (mut previous, errors) = Folder::read(folder.path(), &mut Folder::default());
        assert!(errors.is_empty(), "{errors:?}");
        write(after);
        let (read, errors) = Folder::read(folder.path(), &mut previous);
        assert_eq!(errors.len(), 1, "{errors:?}");
        let Contents { objects, .. } = read.contents();
        let [(_, Object::Pod(_, pod))] = &*objects else {
            panic!("{objects:?}")
        };
        pod.ips[0].to_string()
    };
    let (one, two, three) = ("10.0.0.1", "10.0.0.2", "10.0.0.3");
    // The last of two definitions counted, in one file and in two.
    assert_eq!(
        used(&[("a.yaml", &[one, two])], &[("a.yaml", &[one, "x"])]),
        two
    );
    let files: [(&str, &[&str]); 2] = [("a.yaml", &[one]), ("b.yaml", &[two])];
    assert_eq!(used(&files, &[("b.yaml", &["x"])]), two);
    // A malformed copy in another file does not replace a valid definition.
    let copied: [(&str, &[&str]); 2] = [("a.yaml", &[three]), ("b.yaml", &["x"])];
    assert_eq!(used(&[("a.yaml", &[one])], &copied), three);
}

#[test]
fn rules_with_unknown_fields_or_null_names_grant_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let load = |rule: &str| {
        let text = format!("{{kind: Role, metadata: {{name: r}}, rules: [{rule}]}}\n");
        std::fs::write(folder.path().join("role.yaml"), text).unwrap();
        Folder::read(folder.path(), &mut Folder::default())
    };
    let (_, errors) = load("{resources: [services], verbs: [get], resourceName: [web]}");
    let error = error_chain(&errors[0]);
    assert!(
        error.contains("rules[0].resourceName: unknown field"),
        "{error}"
    );
    let (folder, errors) = load("{resources: [services], verbs: [get], resourceNames: [~]}");
    assert!(errors.is_empty(), "{errors:?}");
    let role = &folder.contents().rules.roles[0];
    let names = role.rules.as_ref().unwrap()[0].resource_names.as_ref();
    assert_eq!(names.unwrap(), &[""]);
}
