//! `check`, and the configuration from flags, environment and file.

use super::*;

/// A kubeconfig with this current context.
fn kubeconfig(context: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Config\ncurrent-context: {context}\n\
         contexts: [{{name: prod, context: {{cluster: prod, user: u}}}}, {{name: old, context: {{}}}}]\n\
         clusters: [{{name: prod, cluster: {{server: 'https://127.0.0.1:1'}}}}]\n\
         users: [{{name: u, user: {{token: t}}}}, {{name: w, user: {{auth-provider: {{name: gcp, config: null}}}}}}]\n"
    )
}

#[test]
fn check_uses_variable_and_default_path_of_kubectl() {
    let home = tempfile::tempdir().expect("a directory");
    std::fs::create_dir(home.path().join(".kube")).expect("a directory");
    let default = write(&home.path().join(".kube"), "config", &kubeconfig("prd"));
    let listed = write(home.path(), "listed", &kubeconfig("prod"));
    let check = |arguments: &[&str], variable: Option<&str>, in_pod: bool| {
        let mut command = command(&[&["check", "--load"], arguments].concat());
        command.env("HOME", home.path());
        if let Some(variable) = variable {
            command.env("KUBECONFIG", variable);
        }
        if in_pod {
            command.env("KUBERNETES_SERVICE_HOST", "127.0.0.1");
            command.env("KUBERNETES_SERVICE_PORT", "1");
        }
        let output = command.output().expect("the binary runs");
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        (output.status.success(), stderr)
    };
    let (success, stderr) = check(&[], None, false);
    assert!(!success);
    assert_contains(
        &stderr,
        &[
            &format!("the current context \"prd\" is not in the kubeconfig {default:?}"),
            "; its contexts are: prod, old; did you mean \"prod\"?",
        ],
    );
    let (success, stderr) = check(&["--context=old"], None, false);
    assert!(!success);
    assert_contains(
        &stderr,
        &[&format!(
            "the context \"old\" of the kubeconfig {default:?}: it names no cluster"
        )],
    );
    assert!(check(&["--context=prod"], None, true).0);
    let list = format!("/nonexistent:{listed}:{default}");
    let (success, stderr) = check(&[], Some(&list), true);
    assert!(success, "{stderr}");
    let (success, stderr) = check(&[], Some("/nonexistent"), false);
    assert!(!success);
    assert_contains(&stderr, &["none of the files in $KUBECONFIG exists"]);
    // In a pod, the default path does not count.
    let (success, stderr) = check(&[], None, true);
    assert!(!success);
    assert_contains(&stderr, &["the service account of the pod cannot be used"]);
}

/// A directory of manifests without objects or callers, and with an object that is defined twice.
#[test]
fn check_warns_of_manifests_that_serve_nobody() {
    let directory = tempfile::tempdir().expect("a directory");
    let manifests = format!("--manifests-dir={}", directory.path().display());
    let check = |arguments: &[&str]| {
        let output = run(&[&["check", "--load", &manifests], arguments].concat());
        assert!(output.status.success(), "{output:?}");
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    assert_contains(
        &check(&[]),
        &[
            "the directory of manifests has no *.yaml, *.yml or *.json files",
            "no caller can authenticate: set source.manifests.tokenAuthFile",
        ],
    );
    write(
        directory.path(),
        "a.yaml",
        "kind: Deployment\nmetadata: {name: d}\n",
    );
    assert_contains(
        &check(&[]),
        &[
            "the manifests contain no Node, Pod, Service or EndpointSlice",
            "0 role bindings, 1 of unused kinds",
        ],
    );
    let pod = "kind: Pod\nmetadata: {name: p}\n";
    write(directory.path(), "b.yaml", &format!("{pod}---\n{pod}"));
    let stderr = check(&["--anonymous-auth"]);
    assert_contains(
        &stderr,
        &[
            "Pod \"p\" of the namespace \"default\" is defined twice",
            "b.yaml\", line 1",
            "line 4; using the last definition",
            "0 nodes, 1 pods",
            "1 duplicates",
        ],
    );
    assert!(
        !stderr.contains("no caller") && !stderr.contains("contain no"),
        "{stderr}"
    );
}

#[test]
fn names_line_field_and_value_of_an_invalid_configuration() {
    assert_contains(
        &failure(&["serve", "--config=/nonexistent"]),
        &["cannot read the configuration file \"/nonexistent\""],
    );
    let directory = tempfile::tempdir().expect("a directory");
    let file = write(
        directory.path(),
        "bad.yaml",
        &format!("{HEAD}serving:\n  workers: many\n"),
    );
    let stderr = failure(&["check", "--config", &file]);
    assert_contains(
        &stderr,
        &[
            &file,
            ":4:12: serving.workers: \"many\" is not a valid count",
            "whole number",
        ],
    );
    let file = write(
        directory.path(),
        "typo.yaml",
        &format!("{HEAD}servign: {{}}\n"),
    );
    assert_contains(
        &failure(&["check", "--config", &file]),
        &[":3:1: servign: unknown field", "serving"],
    );
}

/// Without `--load`, `check` reads no file but the configuration. With it, `check` is as strict as
/// `serve`, except for ports.
#[test]
fn check_loads_referenced_files_with_load_only() {
    let missing = [
        "--tls-cert-file=/nonexistent",
        "--tls-private-key-file=/nonexistent",
    ];
    let output = run(&[&["check", "--kubeconfig=/nonexistent"], &missing[..]].concat());
    assert!(output.status.success());
    assert_contains(
        &String::from_utf8_lossy(&output.stderr),
        &["referenced files were not checked", "--load"],
    );
    assert_contains(
        &failure(&[&["check", "--load"], &missing[..]].concat()),
        &["certificates from \"/nonexistent\""],
    );

    let directory = tempfile::tempdir().expect("a directory");
    let taken = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = format!(
        "--secure-listen-address={}",
        taken.local_addr().expect("bound")
    );
    let manifests = format!("--manifests-dir={}", directory.path().display());
    let output = run(&["check", "--load", &manifests, &address]);
    assert!(output.status.success(), "{output:?}");
    assert_contains(
        &String::from_utf8_lossy(&output.stderr),
        &[
            "the files that it names were loaded",
            "the directory of manifests has no *.yaml, *.yml or *.json files",
            "manifests: 0 nodes, 0 pods, 0 services, 0 endpointslices, 0 roles, 0 role bindings",
        ],
    );
    let binding = "kind: ClusterRoleBinding\nmetadata: {name: b}\n\
                   roleRef: {kind: ClusterRole, name: missing}\n---\n\
                   kind: Service\nmetadata: {name: web}\n";
    write(directory.path(), "objects.yaml", binding);
    let output = run(&["check", "--load", &manifests, &address]);
    assert_contains(
        &String::from_utf8_lossy(&output.stderr),
        &[
            "ClusterRoleBinding \"b\" grants nothing: ClusterRole \"missing\" does not exist",
            "1 services, 0 endpointslices, 0 roles, 1 role bindings",
        ],
    );
    assert_contains(
        &String::from_utf8_lossy(&output.stdout),
        &["type: manifests"],
    );

    // A credential plugin of the kubeconfig may prompt the user, so it is not run.
    let kubeconfig = "apiVersion: v1\nkind: Config\ncurrent-context: c\n\
                      contexts: [{name: c, context: {cluster: c, user: u}}]\n\
                      clusters: [{name: c, cluster: {server: 'https://127.0.0.1:1'}}]\n\
                      users: [{name: u, user: {exec: {command: 'false', interactiveMode: Never, \
                      apiVersion: client.authentication.k8s.io/v1}}}]\n";
    let kubeconfig = write(directory.path(), "kubeconfig", kubeconfig);
    let output = run(&["check", "--load", "--kubeconfig", &kubeconfig]);
    assert!(output.status.success(), "{output:?}");
}

#[test]
fn check_prints_the_effective_configuration() {
    let directory = tempfile::tempdir().expect("a directory");
    let file = write(
        directory.path(),
        "good.yaml",
        &format!("{HEAD}serving: {{workers: 3}}\n"),
    );
    let output = run(&["check", "--config", &file, "--log-level=debug"]);
    let printed = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success());
    assert_contains(
        &printed,
        &[
            "workers: 3",
            "level: debug",
            "cacheTTL: 10s",
            "secureListenAddress: 0.0.0.0:8443",
        ],
    );
    // The output is a valid configuration.
    let again = write(directory.path(), "again.yaml", &printed);
    assert_eq!(
        String::from_utf8_lossy(&run(&["check", "--config", &again]).stdout),
        printed
    );
}

type Variables<'a> = &'a [(&'a str, &'a str)];

/// Flags override the environment, and the environment overrides the file.
#[test]
fn source_flags_override_environment_and_file() {
    let directory = tempfile::tempdir().expect("a directory");
    let manifests =
        "source: {type: manifests, manifests: {directory: of-file, tokenAuthFile: of-file.csv}}\n";
    let manifests = &*write(
        directory.path(),
        "manifests.yaml",
        &format!("{HEAD}{manifests}"),
    );
    let kubernetes = "source: {kubernetes: {kubeconfig: of-file, context: of-file}}\n";
    let kubernetes = &*write(
        directory.path(),
        "kubernetes.yaml",
        &format!("{HEAD}{kubernetes}"),
    );
    let context = [("KUBE_BASTION_CONTEXT", "c")];
    let by_environment = [
        ("KUBE_BASTION_MANIFESTS_DIR", "m"),
        ("KUBE_BASTION_TOKEN_AUTH_FILE", "t"),
    ];
    let kubeconfig = [("KUBE_BASTION_KUBECONFIG", "k")];
    let both = [
        ("KUBE_BASTION_MANIFESTS_DIR", "m"),
        ("KUBE_BASTION_KUBECONFIG", "k"),
    ];
    let cases: &[(&[&str], Variables<'_>, [&str; 5])] = &[
        (
            &["--config", manifests],
            &[],
            ["manifests", "null", "null", "of-file", "of-file.csv"],
        ),
        (
            &["--config", manifests, "--kubeconfig=k"],
            &[],
            ["kubernetes", "k", "null", "null", "null"],
        ),
        (
            &["--config", manifests],
            &kubeconfig,
            ["kubernetes", "k", "null", "null", "null"],
        ),
        (
            &["--config", kubernetes, "--context=c"],
            &[],
            ["kubernetes", "of-file", "c", "null", "null"],
        ),
        (
            &["--config", kubernetes],
            &context,
            ["kubernetes", "of-file", "c", "null", "null"],
        ),
        (
            &["--config", kubernetes, "--manifests-dir=m"],
            &[],
            ["manifests", "null", "null", "m", "null"],
        ),
        (
            &["--config", manifests, "--manifests-dir=m"],
            &[],
            ["manifests", "null", "null", "m", "of-file.csv"],
        ),
        (
            &["--config", manifests, "--token-auth-file=t"],
            &context,
            ["manifests", "null", "null", "of-file", "t"],
        ),
        (
            &["--kubeconfig=k"],
            &by_environment,
            ["kubernetes", "k", "null", "null", "null"],
        ),
        (
            &["--manifests-dir=m"],
            &kubeconfig,
            ["manifests", "null", "null", "m", "null"],
        ),
        (
            &["--kubeconfig=line"],
            &both,
            ["kubernetes", "line", "null", "null", "null"],
        ),
        (
            &[],
            &by_environment,
            ["manifests", "null", "null", "m", "t"],
        ),
    ];
    for (line, environment, expected) in cases {
        let output = command(&[&["check"], *line].concat())
            .envs(environment.iter().copied())
            .output()
            .expect("it runs");
        let printed = String::from_utf8_lossy(&output.stdout).into_owned();
        let source = printed.split("\nsource:\n").nth(1).unwrap_or_default();
        let fields = [
            "type",
            "kubeconfig",
            "context",
            "directory",
            "tokenAuthFile",
        ]
        .map(|field| {
            let value = source
                .lines()
                .find_map(|line| line.trim().strip_prefix(field)?.strip_prefix(": "));
            value.unwrap_or("absent")
        });
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(fields, *expected, "{line:?} {environment:?}\n{stderr}");
    }
    let output = command(&["check"]).envs(both).output().expect("it runs");
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(2));
    assert_contains(
        &stderr,
        &[
            "--kubeconfig cannot be used with --manifests-dir",
            "environment variables",
        ],
    );
}
