use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

use futures::FutureExt;
use futures::future::BoxFuture;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};

use super::*;
use crate::apiservers::{ApiServers, Connect, Credential, ServerConfig};
use crate::desk::credentials::Login;
use crate::http::Stream;
use crate::kubeconfig::UserEntry;

/// Connects to scripted servers, one per connection.
#[derive(Debug)]
struct Scripted(Mutex<VecDeque<DuplexStream>>);

impl Connect for Scripted {
    fn connect(&self, credential: Credential, http2: bool) -> BoxFuture<'_, io::Result<Stream>> {
        assert!(matches!(credential, Credential::Own { .. }) && !http2);
        let stream = self.0.lock().unwrap().pop_front();
        let refused = || io::ErrorKind::ConnectionRefused.into();
        futures::future::ready(stream.map(Stream::Memory).ok_or_else(refused)).boxed()
    }
}

/// Connects to the pod `web-1` through a server that answers each request with one of `answers`.
/// Returns the requests, too.
async fn exchange(
    credentials: &Credentials,
    answers: &[&str],
) -> (Result<Session, OpenError>, Vec<String>) {
    let (streams, servers): (VecDeque<_>, Vec<_>) = answers.iter().map(|_| duplex(4096)).unzip();
    let forwarder = ApiForwarder::new(ApiServers::new(vec![ServerConfig {
        name: "scripted:443".into(),
        host: Some(HeaderValue::from_static("scripted")),
        path: String::new(),
        connector: Arc::new(Scripted(Mutex::new(streams))),
    }]));
    let mut requests = Vec::new();
    let serve = async {
        for (mut server, answer) in servers.into_iter().zip(answers) {
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                head.push(server.read_u8().await.unwrap());
            }
            let head = String::from_utf8(head).unwrap();
            server
                .write_all(with_accept(answer, &head).as_bytes())
                .await
                .unwrap();
            // The connection stays open until the end of the exchange.
            requests.push((head, server));
        }
    };
    // A request that is not sent must not hang the test.
    let session = tokio::select! {
        session = open(&forwarder, credentials, "shop", "web-1") => session,
        () = serve.then(|()| futures::future::pending()) => unreachable!(),
    };
    let requests = requests.into_iter().map(|(head, _)| head).collect();
    (session, requests)
}

/// Fills in the `Sec-WebSocket-Accept` for the key of a request.
fn with_accept(answer: &str, head: &str) -> String {
    let key = head.lines().find_map(|line| {
        let (name, value) = line.split_once(": ")?;
        name.eq_ignore_ascii_case("sec-websocket-key")
            .then_some(value)
    });
    let accept = key.map(|key| websocket_accept(&key.parse().unwrap()));
    answer.replace("ACCEPT", &accept.unwrap_or_default())
}

fn credentials() -> Credentials {
    Credentials::none(&Login::default()).unwrap()
}

const WEBSOCKET: &str = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\n\
    Upgrade: websocket\r\nSec-WebSocket-Accept: ACCEPT\r\n\
    Sec-WebSocket-Protocol: SPDY/3.1+portforward.k8s.io\r\n\r\n";
const SPDY: &str = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\n\
    Upgrade: SPDY/3.1\r\nX-Stream-Protocol-Version: portforward.k8s.io\r\n\r\n";
const FORBIDDEN: &str = "HTTP/1.1 403 Forbidden\r\nContent-Length: 41\r\n\r\n\
    {\"kind\":\"Status\",\"message\":\"forbidden\\n\"}";
const UNAUTHORIZED: &str = "HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\n\r\n";

#[tokio::test]
async fn opens_websocket_with_subprotocol() {
    let login = Login {
        user: UserEntry {
            token: Some("secret".to_owned().into()),
            impersonate: Some("jane".into()),
            ..UserEntry::default()
        },
        ..Login::default()
    };
    let credentials = Credentials::new(login).unwrap();
    let (session, requests) = exchange(&credentials, &[WEBSOCKET]).await;
    assert!(session.unwrap().is_open());
    let head = requests[0].to_ascii_lowercase();
    for line in [
        "get /api/v1/namespaces/shop/pods/web-1/portforward http/1.1",
        "host: scripted",
        "authorization: bearer secret",
        "impersonate-user: jane",
        "connection: upgrade",
        "upgrade: websocket",
        "sec-websocket-version: 13",
        "sec-websocket-protocol: spdy/3.1+portforward.k8s.io",
    ] {
        assert!(head.lines().any(|other| other == line), "{line}\n{head}");
    }
}

/// A Role with only `create` (derailed/k9s issue 4144).
#[tokio::test]
async fn falls_back_to_spdy_after_any_other_answer() {
    let other_subprotocol = WEBSOCKET.replace("SPDY/3.1+port", "v2.port");
    let no_subprotocol = WEBSOCKET.replace("Sec-WebSocket-Protocol: SPDY/3.1+", "X: ");
    let wrong_accept = WEBSOCKET.replace("ACCEPT", "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
    let other_protocol = WEBSOCKET.replace("websocket", "h2c");
    let redirect = "HTTP/1.1 302 Found\r\nLocation: /\r\nContent-Length: 0\r\n\r\n";
    for answer in [
        FORBIDDEN,
        "HTTP/1.1 400 Bad Request\r\nContent-Length: 3\r\n\r\nold",
        "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
        redirect,
        &other_subprotocol,
        &no_subprotocol,
        &wrong_accept,
        &other_protocol,
    ] {
        let (session, requests) = exchange(&credentials(), &[answer, SPDY]).await;
        assert!(session.is_ok_and(|session| session.is_open()), "{answer}");
        let head = requests[1].to_ascii_lowercase();
        for line in [
            "post /api/v1/namespaces/shop/pods/web-1/portforward http/1.1",
            "upgrade: spdy/3.1",
            "x-stream-protocol-version: portforward.k8s.io",
        ] {
            assert!(head.lines().any(|other| other == line), "{line}\n{head}");
        }
        assert!(!head.contains("websocket"), "{head}");
    }
}

#[tokio::test]
async fn reports_the_reason_of_the_server() {
    let text = "HTTP/1.1 404 Not Found\r\nContent-Length: 7\r\n\r\n\x1b[31mno";
    let empty = "HTTP/1.1 500 Internal Server Error\r\nContent-Length: 0\r\n\r\n";
    let old = SPDY.replace("portforward", "v0.portforward");
    for (answer, reason) in [
        (FORBIDDEN, "forbidden (403 Forbidden)"),
        (text, "[31mno (404 Not Found)"),
        (empty, "no reason given (500 Internal Server Error)"),
        (
            &old,
            "it switched to another protocol (101 Switching Protocols)",
        ),
    ] {
        let (session, _) = exchange(&credentials(), &[FORBIDDEN, answer]).await;
        let expected = format!("the API server refuses port-forward to the pod: {reason}");
        assert_eq!(session.unwrap_err().to_string(), expected);
    }
    let (session, _) = exchange(&credentials(), &[]).await;
    let error = session.unwrap_err().to_string();
    assert!(error.starts_with("no API server can be reached"), "{error}");
}

/// D-row D11.
#[tokio::test]
async fn renews_credentials_once_after_401() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("token");
    let load = |token: &str| {
        std::fs::write(&file, token).unwrap();
        let user = UserEntry {
            token_file: Some(file.clone()),
            ..UserEntry::default()
        };
        let login = Login {
            user,
            ..Login::default()
        };
        Credentials::new(login).unwrap()
    };
    let credentials = load("old");
    credentials.authorization().await.unwrap();
    std::fs::write(&file, "new").unwrap();
    let (session, requests) = exchange(&credentials, &[UNAUTHORIZED, WEBSOCKET]).await;
    assert!(session.is_ok(), "{session:?}");
    assert!(requests[0].contains("Bearer old"), "{requests:?}");
    assert!(requests[1].contains("Bearer new"), "{requests:?}");
    // Nothing newer can be had.
    let (session, requests) = exchange(&load("same"), &[UNAUTHORIZED]).await;
    assert!(
        matches!(
            session,
            Err(OpenError::Refused {
                status: StatusCode::UNAUTHORIZED,
                ..
            })
        ),
        "{requests:?}"
    );
}

#[test]
fn encodes_names_in_the_path() {
    assert_eq!(
        path("a/../b", "c?d"),
        "/api/v1/namespaces/a%2F..%2Fb/pods/c%3Fd/portforward"
    );
}
