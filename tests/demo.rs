//! The demo: its printed link and commands, its files, the permissions of the page, changed
//! manifests, and its end by Ctrl-C.

#[path = "demo/process.rs"]
mod process;

use std::fs;
use std::net::IpAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};

use process::{Demo, PAGE, eventually, line, listening_addresses, poll};

fn replace(file: &Path, old: &str, new: &str) {
    let text = fs::read_to_string(file).expect("the manifest is readable");
    assert!(text.contains(old), "{text}");
    fs::write(file, text.replacen(old, new, 1)).expect("the manifest is writable");
}

#[test]
fn printed_commands_return_documented_results() {
    let demo = Demo::start(&["--access-log"]);
    let kb: Vec<&str> = demo
        .guide
        .lines()
        .map(str::trim)
        .filter(|line| line.starts_with("kb "))
        .collect();
    let [web, guest] = *kb else { panic!("{kb:?}") };
    let kb = |command: &str| demo.sh(&format!("{command} --max-time 60"));
    let mut hellos: Vec<String> = (0..3).map(|_| kb(web)).collect();
    hellos.sort();
    assert_eq!(
        hellos,
        [
            "hello from web-1\n",
            "hello from web-2\n",
            "hello from web-3\n"
        ]
    );
    let forbidden = kb(guest);
    assert!(
        forbidden.contains("\"code\": 403") && forbidden.contains("guest"),
        "{forbidden}"
    );

    // The further commands of --help.
    let help = Command::new(env!("CARGO_BIN_EXE_kube-bastion"))
        .args(["demo", "--help"])
        .output()
        .expect("the help");
    let help = String::from_utf8_lossy(&help.stdout).into_owned();
    let commands = help
        .lines()
        .map(str::trim)
        .filter(|line| line.starts_with("kb "));
    let results: Vec<(&str, String)> = commands.map(|command| (command, kb(command))).collect();
    for (path, expected) in [
        ("/services/web/", "hello from web-"),
        ("/services/whoami/", "GET /a/b%2Fc?d=e\n"),
        (
            "/services/https:secure:443/",
            "hello from secure-1 over TLS",
        ),
        ("/pods/web-2/", "hello from web-2"),
        ("/nodes/node-a/", "ok from the kubelet of node-a"),
        ("/services/web:81/", "ServicePort"),
        ("kb guest ", "\"code\": 403"),
    ] {
        let result = results.iter().find(|(command, _)| command.contains(path));
        let (_, result) = result.unwrap_or_else(|| panic!("{path} is not in\n{help}"));
        assert!(
            result.contains(expected) && !result.contains("demo-token"),
            "{path}: {result}"
        );
    }
    assert_eq!(results.len(), 7, "{help}");
    let forward = help.lines().map(str::trim);
    let forward = forward.filter(|line| line.starts_with("kube-bastion forward "));
    let forward = forward.collect::<String>();
    let forward = forward.replacen("kube-bastion", env!("CARGO_BIN_EXE_kube-bastion"), 1);
    let curl = "curl -sS --max-time 60 http://127.0.0.1:$FORWARD_PORT_1/";
    let forwarded = demo.sh(&format!("{forward} -- sh -c '{curl}' 2>&1"));
    assert!(forwarded.contains("hello from web-"), "{forwarded}");
    let forbidden = forward.replace("jane", "guest");
    let forbidden = demo.sh(&format!("{forbidden} -- sh -c '{curl}' 2>&1"));
    assert!(forbidden.contains("\"guest\" cannot create"), "{forbidden}");

    let too_long: Vec<&str> = help
        .lines()
        .skip_while(|line| !line.starts_with("The demo is"))
        .filter(|line| line.len() > 80)
        .collect();
    assert!(too_long.is_empty(), "{too_long:?}");
    assert!(demo.sh("kb jane").starts_with("usage: kb"));

    let admin = line(&demo.guide, "Health and metrics: ");
    let readyz = admin.split(' ').find(|word| word.ends_with("/readyz"));
    let readyz = demo.sh(&format!("curl -sS {}", readyz.expect("its address")));
    assert!(readyz.ends_with("readyz check passed\n"), "{readyz}");

    let log = demo.stop();
    assert!(
        log.contains(r#"resource=services namespace="demo" name="web""#)
            && log.contains(r#"endpointName="web-2""#)
            && !log.contains("demo-token"),
        "{log}"
    );
}

#[test]
fn guide_is_short() {
    let demo = Demo::start(&[]);
    let directory = demo.directory();
    let (long, short) = (
        directory.display().to_string(),
        "/tmp/kube-bastion-demo-ABCDEF",
    );
    for line in demo.guide.lines() {
        // The directory for temporary files may be anywhere.
        let line = line.replace(&long, short);
        assert!(line.len() < 80, "{line:?} has {} characters", line.len());
    }
    assert!(demo.guide.lines().count() < 25, "{}", demo.guide);
}

#[test]
fn files_with_secrets_are_readable_by_their_owner_only() {
    let demo = Demo::start(&[]);
    let directory = demo.directory();
    let mode = |path: &Path| {
        let metadata = fs::metadata(path).unwrap_or_else(|error| panic!("{path:?}: {error}"));
        metadata.permissions().mode() & 0o7777
    };
    assert_eq!(mode(&directory), 0o700);
    assert_eq!(mode(&directory.join("manifests")), 0o700);
    let mut secrets = Vec::new();
    for entry in fs::read_dir(&directory).expect("the directory is readable") {
        let path = entry.expect("an entry").path();
        let Ok(text) = fs::read_to_string(&path) else {
            continue;
        };
        if text.contains("PRIVATE KEY") || text.contains("demo-token") {
            assert_eq!(mode(&path), 0o600, "{path:?}");
            let name = path.file_name().expect("a name").to_string_lossy();
            secrets.push(name.into_owned());
        }
    }
    secrets.sort();
    assert_eq!(
        secrets,
        [
            "guest.header",
            "guest.kubeconfig",
            "jane.header",
            "jane.kubeconfig",
            "tls.key",
            "tokens.csv"
        ]
    );
    assert!(!demo.guide.contains("demo-token"), "{}", demo.guide);
    let log = demo.stop();
    assert!(log.trim().is_empty(), "{log}");
}

#[test]
fn page_needs_no_credentials_and_has_access_to_its_services_only() {
    let demo = Demo::start(&[]);
    assert!(demo.plain.ip().is_loopback());
    let status = |method: &str, path: &str| demo.anonymous(method, path).0;
    let demo_path = |path: &str| format!("/api/v1/namespaces/demo/{path}");
    for (method, path) in [
        ("GET", "services/dashboard/proxy/static/app.js"),
        ("GET", "services/dashboard/proxy/links/orders/2"),
        ("GET", "services/web/proxy/name"),
        ("GET", "services/whoami/proxy/"),
    ] {
        assert_eq!(status(method, &demo_path(path)), 200, "{method} {path}");
    }
    for (method, path) in [
        ("GET", demo_path("services/https:secure:443/proxy/")),
        ("GET", demo_path("services/secure/proxy/")),
        // Permissions name each spelling of an id.
        ("GET", demo_path("services/web:80/proxy/")),
        ("GET", demo_path("pods/web-1/proxy/")),
        ("GET", demo_path("pods/dashboard-1/proxy/")),
        ("POST", demo_path("services/web/proxy/")),
        ("POST", demo_path("services/whoami/proxy/")),
        ("PUT", demo_path("services/dashboard/proxy/")),
        ("DELETE", demo_path("services/dashboard/proxy/")),
        ("GET", "/api/v1/nodes/node-a/proxy/healthz".into()),
        ("GET", "/api/v1/namespaces/other/services/web/proxy/".into()),
        (
            "GET",
            "/api/v1/namespaces/other/services/dashboard/proxy/".into(),
        ),
    ] {
        let (status, body) = demo.anonymous(method, &path);
        assert!(
            status == 403 && body.contains("system:anonymous"),
            "{method} {path}: {status} {body}"
        );
    }
    let (_, page) = demo.anonymous("GET", &demo_path("services/dashboard/proxy/links"));
    assert!(
        page.contains(&format!("src=\"{PAGE}static/app.js\"")),
        "{page}"
    );
}

#[test]
fn page_is_not_served_beyond_loopback() {
    for address in ["0.0.0.0:0", "[::]:0", "192.0.2.1:0"] {
        let mut child = Command::new(env!("CARGO_BIN_EXE_kube-bastion"))
            .args(["demo", "--insecure-listen-address", address])
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the demo runs");
        let exited = poll(|| child.try_wait().expect("the status of a child").is_some());
        let _ = child.kill();
        let output = child.wait_with_output().expect("its output");
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(
            exited && !output.status.success() && error.contains("is not a loopback address"),
            "{error}"
        );
    }
    let demo = Demo::start(&[]);
    // By the sockets of the process: an address of this machine may not be reachable in a sandbox.
    let listening = listening_addresses(&demo);
    assert!(
        listening.len() > 3 && listening.iter().all(IpAddr::is_loopback),
        "{listening:?}"
    );
}

#[test]
fn requests_succeed_while_endpoints_are_switched_off() {
    let demo = Demo::start(&[]);
    let switch = |endpoint: &str, state: &str| {
        let path = format!("{PAGE}api/endpoints/{endpoint}/{state}");
        demo.anonymous("POST", &path).0
    };
    let name = || {
        let path = "/api/v1/namespaces/demo/services/web/proxy/name";
        let (status, body) = demo.anonymous("GET", path);
        assert_eq!(status, 200, "{body}");
        body
    };
    let seen = |endpoint: &str| (0..6).any(|_| name() == endpoint);
    for endpoint in ["web-1", "web-2", "web-3"] {
        assert!(seen(endpoint), "{endpoint}");
    }
    assert_eq!(switch("web-2", "off"), 204);
    let others: Vec<String> = (0..12).map(|_| name()).collect();
    assert!(
        others.iter().all(|name| name == "web-1" || name == "web-3"),
        "{others:?}"
    );
    assert_eq!(switch("web-3", "off"), 204);
    let others: Vec<String> = (0..12).map(|_| name()).collect();
    assert!(others.iter().all(|name| name == "web-1"), "{others:?}");
    assert_eq!(switch("web-2", "on"), 204);
    assert_eq!(switch("web-3", "on"), 204);
    for endpoint in ["web-2", "web-3"] {
        eventually(&format!("{endpoint} responds again"), || seen(endpoint));
    }
    for (endpoint, state) in [("web-4", "off"), ("web-1", "gone"), ("whoami-1", "off")] {
        assert_eq!(switch(endpoint, state), 404, "{endpoint} {state}");
    }
    let log = demo.stop();
    assert!(
        log.contains("web-2 refuses connections") && log.contains("web-2 accepts connections"),
        "{log}"
    );
}

#[test]
fn changed_manifests_take_effect_and_are_reported() {
    let demo = Demo::start(&[]);
    let manifests = demo.directory().join("manifests");
    let secure = "/api/v1/namespaces/demo/services/https:secure:443/proxy/";
    assert_eq!(demo.anonymous("GET", secure).0, 403);
    replace(
        &manifests.join("rbac-page.yaml"),
        "[dashboard, web, whoami]",
        "[dashboard, web, whoami, \"https:secure:443\"]",
    );
    eventually("the permission", || demo.anonymous("GET", secure).0 == 200);
    eventually("the report of a change", || {
        demo.log()
            .contains(r#"added=none changed="Role demo/page" removed=none"#)
    });
    fs::write(
        manifests.join("more.yaml"),
        "kind: Service\nmetadata: {name: more, namespace: demo}\nspec: {ports: [{port: 80}]}\n",
    )
    .expect("the manifest is writable");
    eventually("the report of an added object", || {
        demo.log()
            .contains(r#"added="Service demo/more" changed=none"#)
    });
    fs::remove_file(manifests.join("more.yaml")).expect("the manifest exists");
    eventually("the report of a removed object", || {
        demo.log()
            .contains(r#"added=none changed=none removed="Service demo/more""#)
    });
    fs::write(manifests.join("more.yaml"), "kind: [").expect("the manifest is writable");
    eventually("the report of an error", || {
        let log = demo.log();
        log.contains("more.yaml") && log.contains("serving its last valid version")
    });
    // Not one line per request, between which changes would be lost.
    assert!(!demo.log().contains("endpointName="), "{}", demo.log());
}
