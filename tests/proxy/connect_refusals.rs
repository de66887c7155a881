//! Tunnels that are not opened: the answers to CONNECT.

use std::time::Duration;

use anyhow::{Result, ensure};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::uri::Authority;

use crate::connect::{data, http2, port, refused, send, send_http2};
use crate::support::test_bed::{TestBed, read_all, read_until};

/// Authority, status, error of `Proxy-Status`, and a part of the message.
type Refusal<'a> = (&'a str, u16, &'a str, &'a str);

const REFUSALS: [Refusal<'static>; 22] = [
    ("s.default.svc:0", 400, "http_request_error", "invalid port"),
    (
        "s.default.svc:no_port",
        400,
        "http_request_error",
        "invalid authority",
    ),
    (
        "s.default.svc",
        400,
        "http_request_error",
        "invalid authority",
    ),
    (
        "2001:db8::1:443",
        400,
        "http_request_error",
        "invalid authority",
    ),
    (
        "t@s.default.svc:80",
        400,
        "http_request_error",
        "invalid authority",
    ),
    (
        "example.com:443",
        403,
        "destination_ip_prohibited",
        "is not in the cluster; use NAME.NAMESPACE.svc",
    ),
    (
        "localhost:80",
        403,
        "destination_ip_prohibited",
        "is not in the cluster",
    ),
    (
        "n:10250",
        403,
        "destination_ip_prohibited",
        "is not in the cluster",
    ),
    (
        "192.0.2.1:80",
        403,
        "http_request_denied",
        "is not the address of a service or pod",
    ),
    (
        "169.254.169.254:80",
        403,
        "http_request_denied",
        "is not the address of a service or pod",
    ),
    (
        "[::1]:80",
        403,
        "http_request_denied",
        "is not the address of a service or pod",
    ),
    (
        "host.default.pod:22",
        403,
        "destination_ip_prohibited",
        "is on the network of its node",
    ),
    (
        "x.default.svc:80",
        404,
        "destination_not_found",
        "services \\\"x\\\" not found",
    ),
    (
        "x.default.pod:80",
        404,
        "destination_not_found",
        "pods \\\"x\\\" not found",
    ),
    (
        "s.default.svc:81",
        404,
        "destination_not_found",
        "has no TCP port",
    ),
    (
        "s.default.svc:web",
        404,
        "destination_not_found",
        "has no TCP port",
    ),
    (
        "db-7.several.default.svc:27017",
        404,
        "destination_not_found",
        "host name",
    ),
    (
        "db-2.several.default.svc:27017",
        503,
        "destination_unavailable",
        "is not ready",
    ),
    (
        "ended.default.pod:80",
        503,
        "destination_unavailable",
        "has ended",
    ),
    (
        "empty.default.svc:80",
        503,
        "destination_unavailable",
        "no endpoints available",
    ),
    (
        "node-port.default.svc:80",
        503,
        "destination_unavailable",
        "127.0.0.1: the pod in targetRef is on the network of its node and does not declare",
    ),
    (
        "h.node-port.default.svc:80",
        404,
        "destination_not_found",
        "host name",
    ),
];

/// Refusals of ports that this run chose.
fn refused_ports(bed: &TestBed) -> Result<[(String, u16, &'static str, &'static str); 2]> {
    let closed = {
        let listener = std::net::TcpListener::bind("127.0.0.1:0")?;
        listener.local_addr()?.port()
    };
    let own = bed.bastion.secure.port();
    Ok([
        (
            format!("p.default.pod:{closed}"),
            502,
            "connection_refused",
            "connection refused",
        ),
        (
            format!("p.default.pod:{own}"),
            502,
            "proxy_loop_detected",
            "the bastion itself",
        ),
    ])
}

async fn ensure_nothing_dialed(bed: &TestBed) -> Result<()> {
    let dialed = tokio::time::timeout(Duration::from_millis(1), bed.backend.accept()).await;
    ensure!(dialed.is_err(), "an endpoint was dialed");
    Ok(())
}

#[tokio::test]
async fn refusals_have_status_and_proxy_status_and_close_the_connection() -> Result<()> {
    let bed = TestBed::new().await?;
    let ports = refused_ports(&bed)?;
    let ports = ports
        .iter()
        .map(|(authority, code, error, message)| (&**authority, *code, *error, *message));
    for (authority, code, error, message) in REFUSALS.into_iter().chain(ports) {
        let response = refused(&bed, authority).await?;
        let status = format!("Proxy-Status: kube-bastion; error={error}\r\n");
        ensure!(
            response.starts_with(&format!("HTTP/1.1 {code} "))
                && response.contains("Connection: close\r\n")
                && response.contains(message)
                && response.contains(r#""kind":"Status""#)
                && response.contains(&status),
            "{authority}: {response}"
        );
    }
    ensure_nothing_dialed(&bed).await
}

#[tokio::test]
async fn refusals_over_http2_leave_the_connection_open() -> Result<()> {
    let bed = TestBed::new().await?;
    let mut sender = http2(&bed).await?;
    let ports = refused_ports(&bed)?;
    let ports = ports
        .iter()
        .map(|(authority, code, error, message)| (&**authority, *code, *error, *message));
    for (authority, code, error, message) in REFUSALS.into_iter().chain(ports) {
        // The client of this test sends no others.
        if authority.parse::<Authority>().is_err() {
            continue;
        }
        let (response, _stream) = send_http2(&mut sender, authority).await?;
        let (head, mut body) = response.into_parts();
        let mut text = Vec::new();
        while !body.is_end_stream() {
            text.extend_from_slice(&data(&mut body).await?);
        }
        let text = String::from_utf8(text)?;
        ensure!(
            head.status.as_u16() == code
                && head.headers["proxy-status"] == format!("kube-bastion; error={error}")
                && text.contains(message)
                && text.contains(r#""kind":"Status""#),
            "{authority}: {head:?} {text}"
        );
    }
    ensure_nothing_dialed(&bed).await?;
    let (response, _stream) = send_http2(&mut sender, "s.default.svc:80").await?;
    ensure!(response.status().is_success(), "{response:?}");
    Ok(())
}

#[tokio::test]
async fn requires_credentials_with_407_never_401() -> Result<()> {
    let bed = TestBed::new().await?;
    let basic = |text: &str| format!("Proxy-Authorization: Basic {}\r\n", STANDARD.encode(text));
    for lines in [
        String::new(),
        "Authorization: Bearer t\r\n".into(),
        "Proxy-Authorization: Bearer wrong\r\n".into(),
        basic("t:wrong"),
    ] {
        let mut client = send(&bed, "s.default.svc:80", &lines).await?;
        let response = read_all(&mut client).await;
        for expected in [
            "HTTP/1.1 407 ",
            "Proxy-Authenticate: Bearer\r\n",
            "Proxy-Authenticate: Basic realm=\"kube-bastion\"\r\n",
            "Connection: close\r\n",
            "Proxy-Status: kube-bastion; error=http_request_denied\r\n",
        ] {
            ensure!(response.contains(expected), "{lines}: {response}");
        }
    }
    for lines in ["Proxy-Authorization: Bearer t\r\n".into(), basic("any:t")] {
        let mut client = send(&bed, "s.default.svc:80", &lines).await?;
        let head = read_until(&mut client, "\r\n\r\n").await?;
        ensure!(head.starts_with("HTTP/1.1 200 "), "{lines}: {head}");
    }
    Ok(())
}

#[tokio::test]
async fn requires_right_of_portforward_and_hides_owners_of_addresses() -> Result<()> {
    let bed = TestBed::new().await?;
    let port = port(&bed)?;
    for (token, authority, expected) in [
        ("f", "s.default.svc:80".to_owned(), "HTTP/1.1 200 "),
        ("f", "10.96.0.7:80".to_owned(), "HTTP/1.1 200 "),
        (
            "f",
            "several.default.svc:db".to_owned(),
            r#"cannot create resource \"services/portforward\" in API group \"\" in the namespace \"default\""#,
        ),
        (
            "f",
            format!("p.default.pod:{port}"),
            r#"cannot create resource \"pods/portforward\""#,
        ),
        // The right comes before the look-up.
        ("f", "x.default.svc:80".to_owned(), "cannot create resource"),
        // The same for an address of a pod and for one that no pod has.
        (
            "f",
            format!("127-0-0-1.default.pod:{port}"),
            r#"\"127-0-0-1\" is not the address of a service or pod to which you may open tunnels"#,
        ),
        (
            "f",
            format!("192-0-2-1.default.pod:{port}"),
            r#"\"192-0-2-1\" is not the address of a service or pod to which you may open tunnels"#,
        ),
        (
            "f",
            format!("127.0.0.1:{port}"),
            "is not the address of a service or pod to which you may open tunnels",
        ),
        // `get` on the subresource proxy does not permit tunnels.
        ("r", "s.default.svc:80".to_owned(), "HTTP/1.1 403 "),
    ] {
        let lines = format!("Proxy-Authorization: Bearer {token}\r\n");
        let mut client = send(&bed, &authority, &lines).await?;
        let mut response = read_until(&mut client, "\r\n\r\n").await?;
        if !response.starts_with("HTTP/1.1 200 ") {
            response += &read_all(&mut client).await;
        }
        ensure!(
            response.contains(expected),
            "{token} {authority}: {response}"
        );
    }
    // A user that the caller impersonates needs the right, and the caller that to impersonate.
    for (token, user, expected) in [
        ("t", "forwarder", "HTTP/1.1 200 "),
        ("t", "reader", "HTTP/1.1 403 "),
        ("f", "jane", "HTTP/1.1 403 "),
    ] {
        let lines = format!("Proxy-Authorization: Bearer {token}\r\nImpersonate-User: {user}\r\n");
        let mut client = send(&bed, "s.default.svc:80", &lines).await?;
        let head = read_until(&mut client, "\r\n\r\n").await?;
        ensure!(head.starts_with(expected), "{token} {user}: {head}");
    }
    Ok(())
}
