//! Events and access lines of the process.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::mpsc::{Receiver, channel};

use nix::sys::signal::Signal;

use super::{
    EVENT_TIMEOUT, Running, assert_contains, assert_plain, failure, wait_for_event, write,
};

/// Starts a bastion on the cluster of an API server.
fn start_on(api: SocketAddr) -> Running {
    let directory = tempfile::tempdir().expect("a directory");
    let kubeconfig = format!(
        "apiVersion: v1\nkind: Config\ncurrent-context: c\n\
         contexts: [{{name: c, context: {{cluster: c, user: u}}}}]\n\
         clusters: [{{name: c, cluster: {{server: 'http://{api}'}}}}]\n\
         users: [{{name: u, user: {{token: t}}}}]\n"
    );
    let kubeconfig = write(directory.path(), "kubeconfig", &kubeconfig);
    Running::serve(
        &[
            "--kubeconfig",
            &*kubeconfig,
            "--insecure-listen-address=127.0.0.1:0",
        ],
        directory,
    )
}

/// Returns the response of the bastion's plain HTTP port to a request without credentials.
fn response_of(address: &str) -> String {
    let mut connection = TcpStream::connect(address).expect("it accepts");
    let request = "GET /api/v1/nodes/n/proxy/ HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
    connection.write_all(request.as_bytes()).expect("it reads");
    let mut response = String::new();
    connection
        .read_to_string(&mut response)
        .expect("it responds");
    response
}

/// Reads a request from a connection, and sends a response.
fn respond(mut connection: TcpStream, response: &str) {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") && connection.read(&mut byte).is_ok_and(|read| read > 0) {
        head.push(byte[0]);
    }
    // The client may have left.
    let _ = connection.write_all(response.as_bytes());
}

/// Starts an API server that sends `response` to each request and closes the connection. Returns its
/// address, and a receiver of a value per request.
fn failing_api(response: String) -> (SocketAddr, Receiver<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("bound");
    let (sender, requests) = channel();
    std::thread::spawn(move || {
        for connection in listener.incoming().map_while(Result::ok) {
            respond(connection, &response);
            if sender.send(()).is_err() {
                return;
            }
        }
    });
    (address, requests)
}

/// Waits until each of the five watches has been retried several times.
fn wait_for_retries(requests: &Receiver<()>) {
    while requests.try_recv().is_ok() {}
    for _ in 0..15 {
        requests.recv_timeout(EVENT_TIMEOUT).expect("a retry");
    }
}

/// Ends a bastion, and returns all its events.
fn events_until_end(running: &Running, events: &Receiver<String>) -> Vec<String> {
    running.signal(Signal::SIGTERM);
    std::iter::from_fn(|| events.recv_timeout(EVENT_TIMEOUT).ok()).collect()
}

/// Ends a bastion, and checks that it has logged nothing about its watches.
fn assert_watches_are_silent(running: &Running, events: &Receiver<String>) {
    let events = events_until_end(running, events);
    let is_about_watches = |line: &String| {
        ["denies", "cannot reach", "watch"]
            .iter()
            .any(|part| line.contains(part))
    };
    assert!(!events.iter().any(is_about_watches), "{events:#?}");
}

/// A cluster without the RBAC objects of the install: one line for all watches although each is
/// retried, and callers get the reason.
#[test]
fn logs_missing_permissions_once() {
    let body = r#"{"kind":"Status","apiVersion":"v1","metadata":{},"status":"Failure",
        "message":"it is forbidden: User \"u\" cannot list it","reason":"Forbidden","code":403}"#;
    let (api, requests) = failing_api(format!(
        "HTTP/1.1 403 Forbidden\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\
         Connection: close\r\n\r\n{body}",
        body.len()
    ));
    let mut running = start_on(api);
    let events = running.events();
    let line = wait_for_event(&events, "insecure=");
    let (_, address) = line.split_once("insecure=").expect("it is there");
    // On a slow machine, a line with the first of them may precede.
    let all = "list on configmaps, endpointslices, nodes, pods and services";
    let denial = wait_for_event(&events, all);
    assert_contains(
        &denial,
        &[
            " WARN the API server denies the bastion list on ",
            "; apply the ClusterRole kube-bastion and its ClusterRoleBinding \
             (deploy/base/rbac.yaml)",
            "; not ready until the initial list succeeds",
            r#" error="it is forbidden: User \"u\" cannot list it""#,
        ],
    );
    assert_plain(&denial);
    assert_contains(
        &response_of(address),
        &[
            "HTTP/1.1 503 ",
            "the API server denies the bastion access to the cluster state",
        ],
    );
    wait_for_retries(&requests);
    assert_watches_are_silent(&running, &events);
}

#[test]
fn logs_an_unreachable_api_server_once_with_its_address() {
    // The port of a client: it has no listener, and no other process gets it.
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let client = TcpStream::connect(listener.local_addr().expect("bound")).expect("it listens");
    let refusing = (client.local_addr().expect("connected"), None);
    // A server that closes each connection without a response.
    let (closing, requests) = failing_api(String::new());
    for (api, requests) in [refusing, (closing, Some(requests))] {
        let mut running = start_on(api);
        let events = running.events();
        let line = wait_for_event(&events, "insecure=");
        let (_, address) = line.split_once("insecure=").expect("it is there");
        let outage = wait_for_event(&events, "cannot reach");
        let expected = format!(
            " WARN cannot reach the API server http://{api}; not ready until the initial list \
             succeeds; retrying error="
        );
        assert_contains(&outage, &[&expected]);
        assert_plain(&outage);
        assert_contains(
            &response_of(address),
            &[
                "HTTP/1.1 503 ",
                "the bastion cannot reach the API server and has not loaded the cluster state yet",
            ],
        );
        if let Some(requests) = requests {
            wait_for_retries(&requests);
        }
        assert_watches_are_silent(&running, &events);
    }
}

/// A log in JSON has no other lines: the reason of a failed start is an event, too.
#[test]
fn all_lines_of_a_log_in_json_have_one_schema() {
    let taken = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = taken.local_addr().expect("bound").to_string();
    let directory = tempfile::tempdir().expect("a directory");
    let manifests = format!("--manifests-dir={}", directory.path().display());
    let stderr = failure(&[
        "serve",
        &manifests,
        "--logging-format=json",
        "--log-level=off",
        "--insecure-listen-address",
        &address,
    ]);
    assert_contains(&stderr, &["the process exits", "in use"]);

    let mut running = Running::start(&[
        "--logging-format=json",
        "--insecure-listen-address=127.0.0.1:0",
    ]);
    let events = running.events();
    let mut stdout = running.child.stdout.take().expect("stdout is piped");
    let line = wait_for_event(&events, "insecure");
    let event: serde_json::Value = serde_json::from_str(&line).expect("JSON");
    response_of(event["insecure"].as_str().expect("an address"));
    let rest = events_until_end(&running, &events);
    let mut access = String::new();
    stdout.read_to_string(&mut access).expect("it ends");
    assert_eq!(access.lines().count(), 1, "{access}");
    let lines = stderr.lines().chain([&*line]);
    let lines = lines
        .chain(rest.iter().map(String::as_str))
        .chain(access.lines());
    for line in lines {
        let event: serde_json::Value =
            serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
        for field in ["ts", "level", "msg"] {
            assert!(event[field].is_string(), "{field} in {line}");
        }
        assert!(line.starts_with(r#"{"ts":""#), "{line}");
    }
}
