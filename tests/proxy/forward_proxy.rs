//! Clients that use the bastion as their HTTP proxy.

use anyhow::{Result, ensure};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::{Request, StatusCode, header};
use http_body_util::{BodyExt, Empty};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;

use crate::OK_RESPONSE;
use crate::support::test_bed::{PREFIX, TestBed, read_all, read_until};

/// Sends a request; `lines` follow its `Host` header and end with CRLF.
async fn send(bed: &TestBed, line: &str, lines: &str) -> Result<TlsStream<TcpStream>> {
    let mut client = bed.client().await?;
    let head = format!("{line} HTTP/1.1\r\nHost: ignored.example\r\n{lines}\r\n");
    client.write_all(head.as_bytes()).await?;
    Ok(client)
}

/// Sends a request with a token, and returns the head that the endpoint receives.
async fn received(bed: &TestBed, line: &str, lines: &str) -> Result<String> {
    let lines = format!("Proxy-Authorization: Bearer t\r\n{lines}");
    let mut client = send(bed, line, &lines).await?;
    let (mut backend, head) = bed.accept().await?;
    backend.write_all(OK_RESPONSE).await?;
    ensure!(
        read_until(&mut client, "ok")
            .await?
            .starts_with("HTTP/1.1 200 ")
    );
    Ok(head)
}

#[tokio::test]
async fn forwards_request_for_the_host_of_a_target_as_it_is() -> Result<()> {
    let bed = TestBed::new().await?;
    let lines = "Authorization: Basic app\r\nImpersonate-User: jane\r\nCookie: session=1\r\n\
                 Accept-Encoding: br\r\nAccept: text/html\r\nX-Remote-User: admin\r\n\
                 Proxy-Connection: keep-alive\r\nX-Forwarded-Prefix: /evil\r\n";
    for (host, expected) in [
        ("s.default.svc", "s.default.svc"),
        (
            "s.default.svc.cluster.local:80",
            "s.default.svc.cluster.local:80",
        ),
        ("p.default.pod", "p.default.pod"),
        // It keeps the whole path with its prefix below `/proxy/`; here there is no prefix.
        ("base.default.svc", "base.default.svc"),
    ] {
        let line = format!("GET http://{host}/a%2Fb/../%7E//?q=%zz");
        let head = received(&bed, &line, lines).await?;
        ensure!(
            head.starts_with("GET /a%2Fb/../%7E//?q=%zz HTTP/1.1\r\n"),
            "{head}"
        );
        for kept in [
            &*format!("Host: {expected}"),
            "Authorization: Basic app",
            "Impersonate-User: jane",
            "Cookie: session=1",
            "Accept-Encoding: br",
            &format!("X-Forwarded-Host: {expected}"),
            "X-Forwarded-Proto: http",
            "X-Forwarded-For: 127.0.0.1",
        ] {
            ensure!(head.contains(&format!("\r\n{kept}\r\n")), "{kept}: {head}");
        }
        let lower = head.to_ascii_lowercase();
        for removed in [
            "proxy-",
            "x-remote-user",
            "x-forwarded-prefix",
            "kube-bastion-host",
        ] {
            ensure!(!lower.contains(removed), "{removed}: {head}");
        }
    }
    Ok(())
}

#[tokio::test]
async fn path_of_connect_udp_at_the_host_of_a_target_is_a_request_for_it() -> Result<()> {
    let bed = TestBed::new().await?;
    let path = "/.well-known/masque/udp/p.default.pod/53/";
    for lines in ["", "Connection: Upgrade\r\nUpgrade: connect-udp\r\n"] {
        let head = received(&bed, &format!("GET http://s.default.svc{path}"), lines).await?;
        ensure!(
            head.starts_with(&format!("GET {path} HTTP/1.1\r\n")),
            "{head}"
        );
    }
    Ok(())
}

#[tokio::test]
async fn response_passes_unrewritten() -> Result<()> {
    let bed = TestBed::new().await?;
    let credentials = "Proxy-Authorization: Bearer t\r\nAccept: text/html\r\n";
    let mut client = send(&bed, "GET http://s.default.svc/page", credentials).await?;
    let (mut backend, _) = bed.accept().await?;
    let fields = "Location: http://s.default.svc/login\r\n\
                  Set-Cookie: session=1; Path=/; Domain=s.default.svc\r\n\
                  Content-Type: text/html\r\n\
                  Strict-Transport-Security: max-age=1\r\n";
    let page = "<a href=\"/x\">x</a>";
    let length = page.len();
    let response = format!(
        "HTTP/1.1 302 Found\r\n{fields}Keep-Alive: timeout=5\r\nContent-Length: {length}\r\n\r\n{page}"
    );
    backend.write_all(response.as_bytes()).await?;
    let head = read_until(&mut client, "\r\n\r\n").await?;
    ensure!(
        head.starts_with("HTTP/1.1 302 ") && head.contains(fields),
        "{head}"
    );
    ensure!(
        !head.contains("Keep-Alive") && !head.contains("Cache-Control"),
        "{head}"
    );
    ensure!(read_until(&mut client, page).await? == page);
    Ok(())
}

#[tokio::test]
async fn host_of_the_browser_replaces_that_of_the_url() -> Result<()> {
    let bed = TestBed::new().await?;
    for (lines, expected) in [
        (
            "Kube-Bastion-Host: s--default.localhost:9000\r\n",
            "s--default.localhost:9000",
        ),
        ("Kube-Bastion-Host: not/a host\r\n", "s.default.svc"),
        ("Kube-Bastion-Host:\r\n", "s.default.svc"),
    ] {
        let head = received(&bed, "GET http://s.default.svc/", lines).await?;
        for name in ["Host", "X-Forwarded-Host"] {
            ensure!(
                head.contains(&format!("\r\n{name}: {expected}\r\n")),
                "{head}"
            );
        }
        ensure!(
            !head.to_ascii_lowercase().contains("kube-bastion"),
            "{head}"
        );
    }
    Ok(())
}

#[tokio::test]
async fn accepts_token_as_bearer_and_as_password() -> Result<()> {
    let bed = TestBed::new().await?;
    for credentials in [
        "Bearer t".to_owned(),
        format!("Basic {}", STANDARD.encode("any:t")),
    ] {
        let lines = format!("Proxy-Authorization: {credentials}\r\n");
        let mut client = send(&bed, "GET http://s.default.svc/", &lines).await?;
        let (mut backend, _) = bed.accept().await?;
        backend.write_all(OK_RESPONSE).await?;
        read_until(&mut client, "ok").await?;
    }
    Ok(())
}

/// CONNECT has the same rules: 401 would be a response of the target.
#[tokio::test]
async fn requires_credentials_with_407_and_closes_connection() -> Result<()> {
    let bed = TestBed::new().await?;
    let wrong_password = format!(
        "Proxy-Authorization: Basic {}\r\n",
        STANDARD.encode("t:wrong")
    );
    for lines in [
        "",
        "Authorization: Bearer t\r\n",
        "Proxy-Authorization: Bearer wrong\r\n",
        "Proxy-Authorization: Basic ???\r\n",
        &wrong_password,
    ] {
        let mut client = send(&bed, "POST http://s.default.svc/", lines).await?;
        let response = read_all(&mut client).await;
        ensure!(
            response.starts_with("HTTP/1.1 407 ")
                && response.contains("Proxy-Authenticate: Bearer\r\n")
                && response.contains("Proxy-Authenticate: Basic realm=\"kube-bastion\"\r\n")
                && response.contains("Connection: close\r\n")
                && response.contains(r#""kind":"Status""#)
                && !response.contains("WWW-Authenticate"),
            "{lines}: {response}"
        );
    }
    Ok(())
}

#[tokio::test]
async fn requires_the_permission_of_the_proxy_subresource() -> Result<()> {
    let bed = TestBed::new().await?;
    let credentials = "Proxy-Authorization: Bearer r\r\n";
    for (line, message) in [
        (
            "POST http://p.default.pod/",
            r#"cannot create resource \"pods/proxy\" in API group \"\" in the namespace \"default\""#,
        ),
        (
            "GET http://s.default.svc/",
            r#"cannot get resource \"services/proxy\""#,
        ),
        (
            "GET http://s.default.svc:81/",
            r#"services \"s:81\" is forbidden"#,
        ),
        (
            "GET http://absent.default.svc/",
            r#"services \"absent\" is forbidden"#,
        ),
    ] {
        let mut client = send(&bed, line, credentials).await?;
        let response = read_until(&mut client, "}\n").await?;
        ensure!(
            response.starts_with("HTTP/1.1 403 ") && response.contains(message),
            "{line}: {response}"
        );
    }
    let mut client = send(&bed, "GET http://p.default.pod/", credentials).await?;
    let (mut backend, _) = bed.accept().await?;
    backend.write_all(OK_RESPONSE).await?;
    read_until(&mut client, "ok").await?;
    Ok(())
}

#[tokio::test]
async fn rejects_urls_that_name_no_target() -> Result<()> {
    let bed = TestBed::new().await?;
    let credentials = "Proxy-Authorization: Bearer t\r\n";
    for (url, status, message) in [
        (
            "https://s.default.svc/",
            "400",
            "https:// URLs of services and pods are not forwarded",
        ),
        (
            "http://s.svc/",
            "400",
            "use NAME.NAMESPACE.svc or NAME.NAMESPACE.pod",
        ),
        ("http://a.s.default.svc/", "400", "use NAME.NAMESPACE.svc"),
        ("http://s.default.svc:0/", "400", "a port from 1 to 65535"),
        (
            "http://absent.default.svc/",
            "404",
            r#"services \"absent\" not found"#,
        ),
        (
            "http://absent.default.pod/",
            "404",
            r#"pods \"absent\" not found"#,
        ),
        (
            "http://s.default.svc:81/",
            "503",
            "no service port 81 found",
        ),
    ] {
        let mut client = send(&bed, &format!("GET {url}"), credentials).await?;
        let response = read_until(&mut client, "}\n").await?;
        ensure!(
            response.starts_with(&format!("HTTP/1.1 {status} ")) && response.contains(message),
            "{url}: {response}"
        );
    }
    Ok(())
}

#[tokio::test]
async fn absolute_form_of_another_host_is_a_request_to_the_bastion() -> Result<()> {
    let bed = TestBed::new().await?;
    for url in ["http://bastion.example", "https://bastion.example"] {
        let line = format!("GET {url}{PREFIX}/x");
        let mut client = send(&bed, &line, "Authorization: Bearer t\r\n").await?;
        let (mut backend, head) = bed.accept().await?;
        ensure!(head.starts_with("GET /x HTTP/1.1\r\n"), "{head}");
        backend.write_all(OK_RESPONSE).await?;
        read_until(&mut client, "ok").await?;
        let mut client = send(&bed, &line, "Proxy-Authorization: Bearer t\r\n").await?;
        let response = read_until(&mut client, "}\n").await?;
        ensure!(response.starts_with("HTTP/1.1 401 "), "{response}");
    }
    Ok(())
}

#[tokio::test]
async fn upgrade_passes_with_subprotocols_of_the_application() -> Result<()> {
    let bed = TestBed::new().await?;
    let upgrade = "Connection: Upgrade\r\nUpgrade: websocket\r\n";
    // For /proxy/, the bastion would take the token from the subprotocols.
    let offered = "Sec-WebSocket-Protocol: chat, base64url.bearer.authorization.k8s.io.eA\r\n";
    let lines = format!("Proxy-Authorization: Bearer t\r\n{upgrade}{offered}");
    let mut client = send(&bed, "GET http://s.default.svc/ws?q", &lines).await?;
    let (mut backend, head) = bed.accept().await?;
    ensure!(
        head.starts_with("GET /ws?q HTTP/1.1\r\n") && head.contains(offered),
        "{head}"
    );
    let switched = format!("HTTP/1.1 101 Switching Protocols\r\n{upgrade}\r\n");
    backend.write_all(switched.as_bytes()).await?;
    ensure!(
        read_until(&mut client, "\r\n\r\n")
            .await?
            .starts_with("HTTP/1.1 101 ")
    );
    client.write_all(b"ping").await?;
    ensure!(read_until(&mut backend, "ping").await? == "ping");

    let mut client = send(&bed, "GET http://s.default.svc/ws", &lines).await?;
    let (mut backend, _) = bed.accept().await?;
    backend
        .write_all(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 2\r\n\r\nno")
        .await?;
    let response = read_all(&mut client).await;
    ensure!(
        response.starts_with("HTTP/1.1 403 ") && response.contains("Connection: close\r\n"),
        "{response}"
    );
    Ok(())
}

#[tokio::test]
async fn serves_http2_clients_with_the_scheme_http() -> Result<()> {
    let bed = TestBed::new().await?;
    let io = TokioIo::new(bed.http2_client().await?);
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), io).await?;
    tokio::spawn(connection);
    let request = |url: &str, token: &str| {
        Request::get(url)
            .header(header::PROXY_AUTHORIZATION, format!("Bearer {token}"))
            .body(Empty::<Bytes>::new())
    };
    let response = sender
        .send_request(request("http://s.default.svc/a%2Fb?c", "wrong")?)
        .await?;
    ensure!(
        response.status() == StatusCode::PROXY_AUTHENTICATION_REQUIRED,
        "{response:?}"
    );
    ensure!(
        response.headers()[header::PROXY_AUTHENTICATE] == "Bearer",
        "{response:?}"
    );

    // The connection stays open.
    let sent = sender.send_request(request("http://s.default.svc/a%2Fb?c", "t")?);
    let (response, endpoint) = tokio::join!(sent, async {
        let (mut backend, head) = bed.accept().await?;
        backend.write_all(OK_RESPONSE).await?;
        anyhow::Ok(head)
    });
    let head = endpoint?;
    ensure!(
        head.starts_with("GET /a%2Fb?c HTTP/1.1\r\n") && head.contains("Host: s.default.svc\r\n"),
        "{head}"
    );
    ensure!(response?.into_body().collect().await?.to_bytes() == "ok");

    // The name of the bastion's own service, as clients in the cluster use it.
    let response = sender
        .send_request(request("https://s.default.svc/", "t")?)
        .await?;
    ensure!(
        response.status() == StatusCode::UNAUTHORIZED,
        "{response:?}"
    );
    Ok(())
}
