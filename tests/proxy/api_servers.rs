//! Requests that pass to several API servers, which a test plays: failover, retries, credentials.

#[path = "api_servers/goaway.rs"]
mod goaway;
#[path = "api_servers/server.rs"]
mod server;
#[path = "api_servers/settings.rs"]
mod settings;

use std::path::Path;

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, Version};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http2::{self, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo};
use nix::sys::signal::Signal;
use serde_json::Value;
use tempfile::TempDir;
use tokio::io::AsyncReadExt;

use crate::support::client::tls;
use crate::support::eventually;
use crate::support::pki::Ca;
use crate::support::test_bed::TestBed;

use server::{Act, Received, SHUTTING_DOWN, Server, ok};

/// Bastion in front of two servers.
struct Setting {
    bed: TestBed,
    servers: [Server; 2],
    _folder: TempDir,
}

impl Setting {
    async fn new(
        first: impl Fn(&Received) -> Act + Send + Sync + 'static,
        second: impl Fn(&Received) -> Act + Send + Sync + 'static,
    ) -> Result<Self> {
        let names = ["kubernetes.default.svc"; 2];
        let list = |[first, second]: [String; 2]| {
            format!("servers: [{{address: '{first}'}}, {{address: '{second}'}}]")
        };
        Self::with(names, list, first, second).await
    }

    /// Starts two servers, each with a certificate for one name. `settings` returns those of
    /// `apiServers` for their addresses.
    async fn with(
        names: [&str; 2],
        settings: impl FnOnce([String; 2]) -> String,
        first: impl Fn(&Received) -> Act + Send + Sync + 'static,
        second: impl Fn(&Received) -> Act + Send + Sync + 'static,
    ) -> Result<Self> {
        kube_bastion::tls::install_provider();
        let folder = tempfile::tempdir()?;
        let ca = Ca::new(folder.path(), "api-ca")?;
        let pair = |name: &str| ca.server(folder.path(), name, &[name]);
        let servers = [
            Server::start(&pair(names[0])?, first).await?,
            Server::start(&pair(names[1])?, second).await?,
        ];
        let addresses = [0, 1].map(|index: usize| servers[index].address.to_string());
        let bed = TestBed::with_api_servers(&settings(addresses), &ca.file).await?;
        Ok(Self {
            bed,
            servers,
            _folder: folder,
        })
    }

    async fn send(&self, request: Request<&'static str>) -> Result<Response<Bytes>> {
        self.send_with("t", request).await
    }

    /// Sends a request over HTTP/2 on a connection of its own.
    async fn send_with(
        &self,
        token: &str,
        request: Request<&'static str>,
    ) -> Result<Response<Bytes>> {
        let request = with_token(token, request)?;
        exchange(&mut connect(&self.bed).await?, request).await
    }

    /// Sends requests until the token has connections that are shared.
    async fn prove_token(&self) -> Result<()> {
        for server in &self.servers {
            eventually("a request over HTTP/2", async || {
                self.send(get("/version")).await?;
                Ok(server
                    .received()
                    .iter()
                    .any(|received| received.version == Version::HTTP_2))
            })
            .await?;
        }
        Ok(())
    }

    fn counts(&self) -> [usize; 2] {
        [0, 1].map(|index: usize| self.servers[index].received().len())
    }
}

/// Connects to a bastion over HTTP/2.
async fn connect(bed: &TestBed) -> Result<SendRequest<Full<Bytes>>> {
    let stream = bed.http2_client().await?;
    let (sender, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await?;
    tokio::spawn(connection);
    Ok(sender)
}

/// Adds a token to a request.
fn with_token(token: &str, mut request: Request<&'static str>) -> Result<Request<&'static str>> {
    let headers = request.headers_mut();
    headers.insert("authorization", format!("Bearer {token}").parse()?);
    Ok(request)
}

/// Sends a request and reads the complete response.
async fn exchange(
    client: &mut SendRequest<Full<Bytes>>,
    request: Request<&'static str>,
) -> Result<Response<Bytes>> {
    let (mut head, body) = request.into_parts();
    head.uri = format!("https://bastion.test{}", head.uri).parse()?;
    let request = Request::from_parts(head, Full::new(Bytes::from_static(body.as_bytes())));
    let (head, body) = client.send_request(request).await?.into_parts();
    Ok(Response::from_parts(head, body.collect().await?.to_bytes()))
}

fn get(path: &str) -> Request<&'static str> {
    Request::get(path).body("").expect("the path is valid")
}

const APPLY: &str = "application/apply-patch+yaml";

#[tokio::test]
async fn requests_alternate_between_servers_as_their_caller() -> Result<()> {
    let setting = Setting::new(|_| ok("a"), |_| ok("b")).await?;
    for _ in 0..10 {
        let request = Request::get("/api/v1/nodes?limit=5")
            .header("x-forwarded-for", "192.0.2.9")
            .header("x-real-ip", "192.0.2.9")
            .header("x-remote-user", "admin")
            .header("impersonate-user", "jane")
            .header("accept", "application/vnd.kubernetes.protobuf")
            .body("")?;
        setting.send(request).await?;
    }
    ensure!(setting.counts() == [5, 5], "{:?}", setting.counts());
    for received in setting.servers.iter().flat_map(Server::received) {
        let header = |name: &str| {
            received
                .headers
                .get(name)
                .map(|value| value.to_str().unwrap())
        };
        ensure!(header("authorization") == Some("Bearer t"));
        ensure!(header("x-forwarded-for") == Some("127.0.0.1"));
        ensure!(header("x-real-ip").is_none() && header("x-remote-user").is_none());
        ensure!(header("impersonate-user") == Some("jane"));
        ensure!(header("accept") == Some("application/vnd.kubernetes.protobuf"));
    }
    Ok(())
}

#[tokio::test]
async fn rejected_tokens_never_share_a_connection_with_valid_ones() -> Result<()> {
    let script = |received: &Received| match received.headers.get("authorization") {
        Some(token) if token == "Bearer t" => ok(""),
        _ => Act::Respond(401, &[], Bytes::new()),
    };
    let setting = Setting::new(script, script).await?;
    setting.prove_token().await?;
    for _ in 0..5 {
        let rejected = setting.send_with("bad", get("/version")).await?;
        ensure!(rejected.status() == 401);
        ensure!(setting.send(get("/version")).await?.status() == 200);
    }
    for server in &setting.servers {
        let received = server.received();
        for rejected in received
            .iter()
            .filter(|received| received.headers["authorization"] == "Bearer bad")
        {
            ensure!(rejected.version == Version::HTTP_11);
            let shares = received.iter().any(|other| {
                other.connection == rejected.connection && other.version == Version::HTTP_2
            });
            ensure!(!shares, "{rejected:?}");
        }
    }
    Ok(())
}

#[tokio::test]
async fn connection_header_of_a_client_removes_no_identity() -> Result<()> {
    let script = |received: &Received| match received.headers.get("authorization") {
        Some(_) => ok(""),
        None => Act::Respond(200, &[], "anonymous".into()),
    };
    let setting = Setting::new(script, script).await?;
    // A token that does not reach the API server is not proven by its response.
    for _ in 0..4 {
        let mut stream = tls(setting.bed.bastion.secure, &setting.bed.ca.file, None).await?;
        let head = "GET /version HTTP/1.1\r\nHost: b\r\nAuthorization: Bearer junk\r\n\
                    Connection: authorization, close\r\n\r\n";
        tokio::io::AsyncWriteExt::write_all(&mut stream, head.as_bytes()).await?;
        let mut received = Vec::new();
        while stream
            .read_buf(&mut received)
            .await
            .is_ok_and(|read| read > 0)
        {}
        let received = String::from_utf8_lossy(&received);
        ensure!(received.ends_with("anonymous"), "{received}");
    }
    setting.send_with("junk", get("/version")).await?;
    for received in setting.servers.iter().flat_map(Server::received) {
        ensure!(received.version == Version::HTTP_11, "{received:?}");
    }
    Ok(())
}

#[tokio::test]
async fn requests_of_a_server_that_shuts_down_go_to_another() -> Result<()> {
    let setting = Setting::new(|_| ok("a"), |_| ok("b")).await?;
    setting.prove_token().await?;
    setting.servers[0].play(|_| {
        Act::Respond(
            429,
            SHUTTING_DOWN,
            "The apiserver is shutting down, please try again later.\n".into(),
        )
    });
    let before = setting.counts()[0];
    for method in [Method::POST, Method::GET, Method::DELETE, Method::POST] {
        let request = Request::builder()
            .method(method)
            .uri("/api/v1/pods")
            .body("{}")?;
        let response = setting.send(request).await?;
        ensure!(
            response.status() == 200 && response.body() == "b",
            "{response:?}"
        );
    }
    let after = setting.counts()[0] - before;
    ensure!(after <= 1, "{after} requests of a server that shuts down");
    let last = setting.servers[1].received().pop().context("no request")?;
    ensure!(last.body == "{}", "{last:?}");
    Ok(())
}

#[tokio::test]
async fn other_429s_pass_and_set_no_server_aside() -> Result<()> {
    let script = |_: &Received| {
        Act::Respond(
            429,
            &[("content-type", "application/json"), ("retry-after", "10")],
            r#"{"kind":"Status","code":429,"reason":"TooManyRequests"}"#.into(),
        )
    };
    let setting = Setting::new(script, script).await?;
    for _ in 0..50 {
        let eviction = Request::post("/api/v1/namespaces/default/pods/p/eviction").body("{}")?;
        let response = setting.send(eviction).await?;
        ensure!(response.status() == 429 && response.headers()["retry-after"] == "10");
    }
    ensure!(setting.counts() == [25, 25], "{:?}", setting.counts());
    Ok(())
}

#[tokio::test]
async fn requests_of_a_broken_server_are_repeated_if_that_has_no_effect() -> Result<()> {
    let setting = Setting::new(|_| ok("a"), |_| ok("b")).await?;
    setting.prove_token().await?;
    setting.servers[0].play(|_| Act::Break);
    let apply = || {
        Request::patch("/api/v1/namespaces/default/configmaps/c?fieldManager=m")
            .header("content-type", APPLY)
            .body("data: {a: b}")
    };
    for _ in 0..4 {
        for request in [get("/api/v1/pods"), apply()?] {
            let response = setting.send(request).await?;
            ensure!(
                response.status() == 200 && response.body() == "b",
                "{response:?}"
            );
        }
    }
    let applied = setting.servers[1].received();
    let applied = applied
        .iter()
        .filter(|received| received.method == Method::PATCH);
    let bodies: Vec<_> = applied.map(|received| received.body.clone()).collect();
    ensure!(
        bodies == vec![Bytes::from_static(b"data: {a: b}"); 4],
        "{bodies:?}"
    );
    Ok(())
}

#[tokio::test]
async fn other_writes_in_flight_on_a_broken_server_are_not_repeated() -> Result<()> {
    let setting = Setting::new(|_| ok("a"), |_| ok("b")).await?;
    setting.prove_token().await?;
    setting.servers[0].play(|_| Act::Break);
    let (before, mut interrupted) = (setting.counts()[1], 0);
    for _ in 0..6 {
        let created = Request::post("/api/v1/namespaces/default/pods").body("{}")?;
        let response = setting.send(created).await?;
        if response.status() == 503 {
            let status: Value = serde_json::from_slice(response.body())?;
            let message = status["message"].as_str().unwrap_or_default();
            ensure!(message.contains("may have been carried out"), "{status}");
            ensure!(!response.headers().contains_key("retry-after"));
            interrupted += 1;
        }
    }
    ensure!(interrupted > 0);
    ensure!(setting.counts()[1] - before == 6 - interrupted);
    Ok(())
}

#[tokio::test]
async fn without_a_server_requests_get_503_immediately() -> Result<()> {
    let setting = Setting::new(|_| ok("a"), |_| ok("b")).await?;
    setting
        .servers
        .iter()
        .for_each(|server| server.task.abort());
    for _ in 0..20 {
        let response = setting.send(get("/version")).await?;
        let status: Value = serde_json::from_slice(response.body())?;
        ensure!(
            response.status() == StatusCode::SERVICE_UNAVAILABLE,
            "{status}"
        );
        ensure!(response.headers()["retry-after"] == "1", "{response:?}");
        ensure!(status["kind"] == "Status" && status["reason"] == "ServiceUnavailable");
        let message = status["message"].as_str().unwrap_or_default();
        ensure!(message.contains("no API server can be reached"), "{status}");
        let port = setting.servers[0].address.port().to_string();
        ensure!(!message.contains(&port), "{status}");
    }
    Ok(())
}

/// Reads a watch over HTTP/1.1 until it ends. Returns what was received, and true for a clean end.
async fn watch(
    setting: &Setting,
    part: &str,
    end: impl FnOnce(&Setting) -> Result<()>,
) -> Result<bool> {
    let mut stream = tls(setting.bed.bastion.secure, &setting.bed.ca.file, None).await?;
    let head = "GET /api/v1/pods?watch=true HTTP/1.1\r\nHost: b\r\nAuthorization: Bearer t\r\n\r\n";
    tokio::io::AsyncWriteExt::write_all(&mut stream, head.as_bytes()).await?;
    let mut received = Vec::new();
    while !String::from_utf8_lossy(&received).contains(part) {
        let read = stream.read_buf(&mut received).await?;
        ensure!(read > 0, "{}", String::from_utf8_lossy(&received));
    }
    end(setting)?;
    // A cut may be a reset.
    while stream
        .read_buf(&mut received)
        .await
        .is_ok_and(|read| read > 0)
    {}
    Ok(received.ends_with(b"0\r\n\r\n"))
}

#[tokio::test]
async fn watch_of_a_dead_server_is_cut() -> Result<()> {
    let setting = Setting::new(|_| Act::Stream("{}\n"), |_| Act::Stream("{}\n")).await?;
    let is_clean = watch(&setting, "{}\n", |setting| {
        setting
            .servers
            .iter()
            .for_each(|server| server.task.abort());
        Ok(())
    });
    ensure!(!is_clean.await?);
    Ok(())
}

#[tokio::test]
async fn watches_end_with_the_drain_cleanly_behind_a_whole_event() -> Result<()> {
    for (part, expected) in [("{\"a\": 1}\n", true), ("{\"a\": ", false)] {
        let setting = Setting::new(move |_| Act::Stream(part), move |_| Act::Stream(part)).await?;
        let is_clean = watch(&setting, part, |setting| {
            setting.bed.bastion.signal(Signal::SIGTERM)
        });
        ensure!(is_clean.await? == expected, "{part}");
    }
    Ok(())
}

impl TestBed {
    /// Starts a test bed that passes requests to API servers, whose certificates are of a CA.
    /// `settings` are further ones of `apiServers`.
    async fn with_api_servers(settings: &str, ca: &Path) -> Result<Self> {
        let more = format!(
            "apiServers: {{enabled: true, {settings}, certificateAuthority: {}}}\n\
             drain: {{timeout: 2s}}\n",
            ca.display()
        );
        Self::with_sections(&more).await
    }
}
