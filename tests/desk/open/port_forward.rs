//! `kube-bastion open` through the port-forward protocol of a plain API server.

use anyhow::{Context, Result, ensure};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use super::Open;
use super::pods::{App, PodServer};
use crate::api::{Desk, ok};
use crate::support::raw::{Head, websocket_accept};
use crate::support::test_bed::{read_all, read_until};

/// API server, one pod, and the command for its service.
struct Setting {
    server: PodServer,
    app: App,
    open: Open,
    _desk: Desk,
}

impl Setting {
    async fn new<F>(script: F) -> Result<Self>
    where
        F: Fn(&Head, &[u8]) -> Vec<u8> + Send + Sync + 'static,
    {
        let desk = Desk::new()?;
        let server = PodServer::start(&desk).await?;
        let app = App::start(script).await?;
        server.add("web-0", app.address);
        let url = format!("https://{}", server.address);
        desk.kubeconfig(&url, "{token: secret}")?;
        let file = desk.path("kubeconfig");
        let open = Open::start(&file, &["svc/web", "--via", "port-forward"])?;
        ensure!(
            open.stdout.contains("service/web through port-forwarding"),
            "{}",
            open.stdout
        );
        Ok(Self {
            server,
            app,
            open,
            _desk: desk,
        })
    }

    /// Sends a GET that must be answered with 200, and returns the body.
    async fn get(&self, path: &str) -> Result<String> {
        let line = format!("GET {path}");
        let response = self.open.response(&line, "127.0.0.1:PORT", "").await?;
        let (head, body) = response.split_once("\r\n\r\n").context("no head")?;
        ensure!(head.starts_with("HTTP/1.1 200 "), "{response}");
        Ok(body.to_owned())
    }
}

/// Bytes that no text has.
fn binary(length: usize) -> Vec<u8> {
    (0..length).map(|at| (at % 251).to_le_bytes()[0]).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_and_responses_pass_unmodified_by_port_forward() -> Result<()> {
    let compressed = || {
        let body = binary(1000);
        let head = format!(
            "HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Encoding: br\r\n\
             Location: /login\r\nContent-Length: {}\r\n\r\n",
            body.len()
        );
        [head.into_bytes(), body].concat()
    };
    let setting = Setting::new(move |_, _| compressed()).await?;
    let host = format!("web--default.localhost:{}", setting.open.port);
    let lines = format!(
        "Authorization: Basic app\r\nCookie: session=1\r\nOrigin: http://{host}\r\n\
         Accept-Encoding: br\r\nConnection: close\r\n"
    );
    let line = "GET /a%2Fb//c%252F?q=%zz&r=%2F";
    let mut client = setting.open.send(line, &host, &lines).await?;
    let mut received = Vec::new();
    client.read_to_end(&mut received).await?;
    let end = received.windows(4).position(|bytes| bytes == b"\r\n\r\n");
    let (head, body) = received.split_at(end.context("no head")? + 4);
    ensure!(body == binary(1000), "{} bytes", body.len());
    let head = String::from_utf8_lossy(head);
    for kept in [
        "Content-Type: text/html",
        "Content-Encoding: br",
        "Location: /login",
    ] {
        ensure!(head.contains(&format!("\r\n{kept}\r\n")), "{kept}: {head}");
    }
    let requests = setting.app.requests();
    let [request] = &*requests else {
        anyhow::bail!("{requests:?}");
    };
    ensure!(request.line == format!("{line} HTTP/1.1"), "{request:?}");
    for (name, value) in [
        ("host", &*host),
        ("origin", &format!("http://{host}")),
        // Those of the application; the token is for the API server only.
        ("authorization", "Basic app"),
        ("cookie", "session=1"),
        ("accept-encoding", "br"),
    ] {
        let fields = request.fields.iter().filter(|field| field.is(name));
        let values: Vec<_> = fields.map(|field| &*field.value).collect();
        ensure!(values == [value], "{name}: {request:?}");
    }
    let handshake = setting.server.handshake()?;
    ensure!(
        handshake["authorization"] == "Bearer secret",
        "{handshake:?}"
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn large_bodies_pass_in_both_directions_by_port_forward() -> Result<()> {
    const LENGTH: usize = 2 * 1024 * 1024;
    let echo = |_: &Head, body: &[u8]| {
        let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", body.len());
        [head.as_bytes(), body].concat()
    };
    let setting = Setting::new(echo).await?;
    let sent = binary(LENGTH);
    for is_chunked in [false, true] {
        let lines = if is_chunked {
            "Transfer-Encoding: chunked\r\nConnection: close\r\n".to_owned()
        } else {
            format!("Content-Length: {LENGTH}\r\nConnection: close\r\n")
        };
        let client = setting.open.send("POST /upload", "127.0.0.1:PORT", &lines);
        let (mut reader, mut writer) = client.await?.into_split();
        let upload = async {
            if !is_chunked {
                return writer.write_all(&sent).await;
            }
            for chunk in sent.chunks(100_000) {
                let size = format!("{:x}\r\n", chunk.len());
                let chunk = [size.as_bytes(), chunk, b"\r\n"].concat();
                writer.write_all(&chunk).await?;
            }
            writer.write_all(b"0\r\n\r\n").await
        };
        let mut received = Vec::new();
        let (uploaded, read) = tokio::join!(upload, reader.read_to_end(&mut received));
        uploaded?;
        read?;
        let is_ok = received.starts_with(b"HTTP/1.1 200 ");
        ensure!(is_ok && received.ends_with(&sent), "chunked: {is_chunked}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn websockets_open_by_port_forward() -> Result<()> {
    const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";
    let switch = |head: &Head, _: &[u8]| {
        let key = head.value("sec-websocket-key").unwrap_or_default();
        format!(
            "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
             Sec-WebSocket-Accept: {}\r\n\r\n",
            websocket_accept(key)
        )
        .into_bytes()
    };
    let setting = Setting::new(switch).await?;
    let lines = format!(
        "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
         Sec-WebSocket-Key: {KEY}\r\nOrigin: http://127.0.0.1:PORT\r\n"
    );
    let line = "GET /socket?token=a%2Fb";
    let mut tunnels = Vec::new();
    for _ in 0..3 {
        let mut client = setting.open.send(line, "127.0.0.1:PORT", &lines).await?;
        let head = read_until(&mut client, "\r\n\r\n").await?;
        let accept = format!("\r\nSec-WebSocket-Accept: {}\r\n", websocket_accept(KEY));
        ensure!(
            head.starts_with("HTTP/1.1 101 ") && head.contains(&accept),
            "{head}"
        );
        tunnels.push(client);
    }
    for (number, client) in tunnels.iter_mut().enumerate() {
        let sent = format!("frame {number}.");
        client.write_all(sent.as_bytes()).await?;
        ensure!(read_until(client, ".").await? == sent);
    }
    for request in setting.app.requests() {
        ensure!(request.line == format!("{line} HTTP/1.1"), "{request:?}");
        let origin = format!("http://127.0.0.1:{}", setting.open.port);
        ensure!(request.value("origin") == Some(&*origin), "{request:?}");
    }
    // All in one session.
    ensure!(setting.server.sessions() == ["web-0"]);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_of_an_application_are_reused_by_port_forward() -> Result<()> {
    const REQUESTS: usize = 10;
    let setting = Setting::new(|head, _| ok(&head.line)).await?;
    for number in 0..REQUESTS {
        let body = setting.get(&format!("/{number}")).await?;
        ensure!(body == format!("GET /{number} HTTP/1.1"), "{body}");
    }
    // A pause of the machine may let some become too old.
    let connections = setting.app.connections();
    ensure!(connections < REQUESTS / 2, "{connections} connections");
    ensure!(setting.app.requests().len() == REQUESTS);
    Ok(())
}

/// An API server that is restarted ends the session, and with it the idle connection.
#[tokio::test(flavor = "multi_thread")]
async fn session_that_ends_is_replaced() -> Result<()> {
    let setting = Setting::new(|_, body| ok(&String::from_utf8_lossy(body))).await?;
    for round in 1..=3 {
        setting.get("/").await?;
        ensure!(setting.server.sessions() == vec!["web-0"; round]);
        setting.server.cut();
        // It may be sent before the end of the session is known.
        setting.get("/").await?;
        let lines = "Content-Length: 4\r\nConnection: close\r\n";
        let post = setting.open.send("POST /", "127.0.0.1:PORT", lines);
        let mut client = post.await?;
        client.write_all(b"body").await?;
        let response = read_all(&mut client).await;
        ensure!(response.ends_with("\r\n\r\nbody"), "{response}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_go_to_another_pod_when_one_ends() -> Result<()> {
    let setting = Setting::new(|_, _| ok("web-0")).await?;
    ensure!(setting.get("/").await? == "web-0");
    let next = App::start(|_, _| ok("web-1")).await?;
    setting.server.add("web-1", next.address);
    setting.server.remove("web-0");
    // Although the list of pods is used for two seconds.
    ensure!(setting.get("/").await? == "web-1");
    // Without a pod, the browser and the terminal get the reason.
    setting.server.remove("web-1");
    let reason = "no pod matches app=web";
    let failed = setting.open.response("GET /", "127.0.0.1:PORT", "").await?;
    ensure!(
        failed.starts_with("HTTP/1.1 503 ") && failed.contains(reason),
        "{failed}"
    );
    let printed = format!("service/web: {reason}\n");
    setting.open.prints(&printed).await?;
    let last = App::start(|_, _| ok("web-2")).await?;
    setting.server.add("web-2", last.address);
    ensure!(setting.get("/").await? == "web-2");
    setting.open.prints("service/web: responds again\n").await?;
    ensure!(setting.server.sessions().len() >= 3);
    Ok(())
}

/// The pod is ready, and its port is not open yet.
#[tokio::test(flavor = "multi_thread")]
async fn closed_port_of_a_pod_is_an_error_of_one_request() -> Result<()> {
    let setting = Setting::new(|_, _| ok("web-0")).await?;
    ensure!(setting.get("/").await? == "web-0");
    let Setting {
        server, app, open, ..
    } = &setting;
    // Nothing listens there after it is dropped.
    let closed = TcpListener::bind("127.0.0.1:0").await?.local_addr()?;
    server.add("web-0", closed);
    server.cut();
    let failed = open.response("GET /", "127.0.0.1:PORT", "").await?;
    ensure!(
        failed.starts_with("HTTP/1.1 502 ") && failed.contains("refused"),
        "{failed}"
    );
    server.add("web-0", app.address);
    server.cut();
    ensure!(setting.get("/").await? == "web-0");
    Ok(())
}
