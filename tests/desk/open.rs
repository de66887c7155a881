//! `kube-bastion open`: what browsers send to its listener, and what targets receive.

use std::collections::HashMap;
use std::convert::Infallible;
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Arc, Mutex};

use anyhow::{Context, Result, bail, ensure};
use bytes::Bytes;
use http::{Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream};

use crate::support::eventually;
use crate::support::net::PROXY_ENVIRONMENT;
use crate::support::test_bed::{TestBed, read_all, read_until};

/// Response of a target that closes its connection.
const OK: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok";

/// Running command.
struct Open {
    child: Child,
    port: u16,
    stdout: String,
    stderr: Arc<Mutex<String>>,
}

impl Open {
    /// Starts the command and waits for its URLs.
    fn start(kubeconfig: &Path, arguments: &[&str]) -> Result<Self> {
        Self::with(kubeconfig, arguments, &[("SSH_CONNECTION", "1")])
    }

    fn with(kubeconfig: &Path, arguments: &[&str], environment: &[(&str, &str)]) -> Result<Self> {
        let mut child = command(kubeconfig, arguments)
            .envs(environment.iter().copied())
            .spawn()?;
        let stderr = Arc::<Mutex<String>>::default();
        let mut errors = BufReader::new(child.stderr.take().context("a pipe")?);
        let written = Arc::clone(&stderr);
        std::thread::spawn(move || {
            let mut line = String::new();
            while errors.read_line(&mut line).is_ok_and(|length| length > 0) {
                written
                    .lock()
                    .expect("no thread panics with it")
                    .push_str(&std::mem::take(&mut line));
            }
        });
        let mut lines = BufReader::new(child.stdout.take().context("a pipe")?).lines();
        let mut stdout = String::new();
        let targets = arguments
            .iter()
            .filter(|argument| argument.contains('/'))
            .count();
        for _ in 0..targets {
            let Some(line) = lines.next().transpose()? else {
                bail!(
                    "it ended: {}",
                    stderr.lock().expect("no thread panics with it")
                );
            };
            stdout += &format!("{line}\n");
        }
        // Read further, so that the process can write.
        std::thread::spawn(move || lines.map_while(Result::ok).count());
        let port = stdout.rsplit_once(".localhost:").context("a URL")?.1;
        let port = port.trim_end().trim_end_matches('/').parse()?;
        Ok(Self {
            child,
            port,
            stdout,
            stderr,
        })
    }

    fn address(&self) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], self.port))
    }

    fn stderr(&self) -> String {
        self.stderr
            .lock()
            .expect("no thread panics with it")
            .clone()
    }

    async fn prints(&self, text: &str) -> Result<()> {
        eventually(&format!("{text:?} on stderr"), async || {
            Ok(self.stderr().contains(text))
        })
        .await
        .with_context(|| self.stderr())
    }

    /// Sends a request for a host; `lines` end with CRLF. `PORT` stands for the port.
    async fn send(&self, line: &str, host: &str, lines: &str) -> Result<TcpStream> {
        let mut stream = TcpStream::connect(self.address()).await?;
        let head = format!("{line} HTTP/1.1\r\nHost: {host}\r\n{lines}\r\n");
        let head = head.replace("PORT", &self.port.to_string());
        stream.write_all(head.as_bytes()).await?;
        Ok(stream)
    }

    /// Sends a request, and returns the complete response.
    async fn response(&self, line: &str, host: &str, lines: &str) -> Result<String> {
        let lines = format!("Connection: close\r\n{lines}");
        Ok(read_all(&mut self.send(line, host, &lines).await?).await)
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn command(kubeconfig: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_kube-bastion"));
    command
        .arg("open")
        .args(arguments)
        .arg("--kubeconfig")
        .arg(kubeconfig)
        .envs(PROXY_ENVIRONMENT)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

/// Runs the command to its end, which must be an error.
fn fail(kubeconfig: &Path, arguments: &[&str]) -> Result<String> {
    let Output { status, stderr, .. } = command(kubeconfig, arguments).output()?;
    ensure!(status.code() == Some(1), "{status}");
    Ok(String::from_utf8(stderr)?)
}

/// Writes a kubeconfig of a server. `rest` belongs to the cluster.
fn kubeconfig(folder: &Path, server: &str, rest: &str, token: &str) -> Result<std::path::PathBuf> {
    let file = folder.join("kubeconfig");
    let text = format!(
        "apiVersion: v1
kind: Config
clusters: [{{name: c, cluster: {{server: '{server}'{rest}}}}}]
users: [{{name: u, user: {{{token}}}}}]
contexts: [{{name: x, context: {{cluster: c, user: u}}}}]
current-context: x
"
    );
    std::fs::write(&file, text)?;
    Ok(file)
}

fn of_bed(bed: &TestBed, token: &str) -> Result<std::path::PathBuf> {
    let server = format!("https://localhost:{}", bed.bastion.secure.port());
    let ca = format!(", certificate-authority: '{}'", bed.ca.file.display());
    kubeconfig(bed.folder.path(), &server, &ca, &format!("token: {token}"))
}

#[tokio::test]
async fn request_reaches_the_service_unrewritten_through_a_bastion() -> Result<()> {
    let bed = TestBed::new().await?;
    let open = Open::start(&of_bed(&bed, "t")?, &["svc/s"])?;
    ensure!(
        open.stdout
            .starts_with("service/s through the bastion localhost:")
            && open
                .stdout
                .ends_with(&format!(": http://s--default.localhost:{}/\n", open.port)),
        "{}",
        open.stdout
    );
    for host in [
        "s--default.localhost:PORT",
        "127.0.0.1:PORT",
        "localhost:PORT",
    ] {
        let host = host.replace("PORT", &open.port.to_string());
        let lines = format!(
            "Authorization: Basic app\r\nCookie: session=1\r\nOrigin: http://{host}\r\n\
             Accept-Encoding: br\r\nKube-Bastion-Host: forged\r\nConnection: close\r\n"
        );
        let mut client = open.send("GET /a%2Fb//c?q=%zz", &host, &lines).await?;
        let (mut backend, head) = bed.accept().await?;
        ensure!(
            head.starts_with("GET /a%2Fb//c?q=%zz HTTP/1.1\r\n"),
            "{head}"
        );
        for kept in [
            &*format!("Host: {host}"),
            &format!("Origin: http://{host}"),
            &format!("X-Forwarded-Host: {host}"),
            "X-Forwarded-Proto: http",
            "Authorization: Basic app",
            "Cookie: session=1",
            "Accept-Encoding: br",
        ] {
            ensure!(head.contains(&format!("\r\n{kept}\r\n")), "{kept}: {head}");
        }
        ensure!(
            !head.contains("Bearer") && !head.contains("forged"),
            "{head}"
        );
        let fields = "Location: /login\r\nSet-Cookie: session=2; Path=/\r\n\
                      Content-Encoding: br\r\nContent-Type: text/html\r\n";
        let response = format!("HTTP/1.1 302 Found\r\n{fields}Content-Length: 4\r\n\r\n\u{1}abc");
        backend.write_all(response.as_bytes()).await?;
        let response = read_all(&mut client).await;
        ensure!(
            response.starts_with("HTTP/1.1 302 Found\r\n")
                && response.contains(fields)
                && response.ends_with("\r\n\r\n\u{1}abc"),
            "{response}"
        );
    }
    Ok(())
}

#[tokio::test]
async fn bodies_and_streams_pass() -> Result<()> {
    let bed = TestBed::new().await?;
    let open = Open::start(&of_bed(&bed, "t")?, &["svc/s"])?;
    let lines = "Transfer-Encoding: chunked\r\n";
    let mut client = open.send("POST /events", "127.0.0.1:PORT", lines).await?;
    let (mut backend, head) = bed.accept().await?;
    ensure!(head.starts_with("POST /events HTTP/1.1\r\n"), "{head}");
    client.write_all(b"3\r\nabc\r\n").await?;
    read_until(&mut backend, "abc\r\n").await?;
    // Events arrive while the request is still being sent.
    backend
        .write_all(
            b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\
              Transfer-Encoding: chunked\r\n\r\n9\r\ndata: 1\n\n\r\n",
        )
        .await?;
    read_until(&mut client, "data: 1\n\n\r\n").await?;
    client.write_all(b"2\r\nde\r\n0\r\n\r\n").await?;
    read_until(&mut backend, "0\r\n\r\n").await?;
    backend.write_all(b"0\r\n\r\n").await?;
    read_until(&mut client, "0\r\n\r\n").await?;
    Ok(())
}

/// One page opens 30 web sockets (cnpg-playground issue 49).
#[tokio::test]
async fn thirty_websockets_are_open_at_once() -> Result<()> {
    let bed = TestBed::new().await?;
    let open = Open::start(&of_bed(&bed, "t")?, &["svc/s"])?;
    let upgrade = "Connection: Upgrade\r\nUpgrade: websocket\r\n";
    let lines = format!("{upgrade}Origin: http://127.0.0.1:PORT\r\n");
    let mut tunnels = Vec::new();
    for number in 0..30 {
        let line = format!("GET /ws?n={number}");
        let mut client = open.send(&line, "127.0.0.1:PORT", &lines).await?;
        let (mut backend, head) = bed.accept().await?;
        let origin = format!("\r\nOrigin: http://127.0.0.1:{}\r\n", open.port);
        ensure!(
            head.starts_with(&format!("{line} HTTP/1.1\r\n")) && head.contains(&origin),
            "{head}"
        );
        let switched = format!("HTTP/1.1 101 Switching Protocols\r\n{upgrade}\r\n");
        backend.write_all(switched.as_bytes()).await?;
        let response = read_until(&mut client, "\r\n\r\n").await?;
        ensure!(response.starts_with("HTTP/1.1 101 "), "{response}");
        tunnels.push((client, backend));
    }
    for (client, backend) in &mut tunnels {
        client.write_all(b"ping").await?;
        ensure!(read_until(backend, "ping").await? == "ping");
        backend.write_all(b"pong").await?;
        ensure!(read_until(client, "pong").await? == "pong");
    }
    Ok(())
}

#[tokio::test]
async fn requests_of_other_sites_and_hosts_are_rejected() -> Result<()> {
    let bed = TestBed::new().await?;
    let open = Open::start(&of_bed(&bed, "t")?, &["svc/s"])?;
    for (line, host, lines, status) in [
        ("GET /", "evil.example:PORT", "", 421),
        ("GET /", "s--default.localhost.evil.example", "", 421),
        (
            "POST /",
            "127.0.0.1:PORT",
            "Origin: https://evil.example\r\n",
            403,
        ),
        (
            "GET /",
            "127.0.0.1:PORT",
            "Sec-Fetch-Site: cross-site\r\n",
            403,
        ),
        (
            "GET /ws",
            "127.0.0.1:PORT",
            "Upgrade: websocket\r\nOrigin: https://evil.example\r\n",
            403,
        ),
    ] {
        let response = open.response(line, host, lines).await?;
        let url = format!("http://s--default.localhost:{}/", open.port);
        ensure!(
            response.starts_with(&format!("HTTP/1.1 {status} ")) && response.contains(&url),
            "{host} {lines}: {response}"
        );
    }
    let navigation = "Sec-Fetch-Site: cross-site\r\nSec-Fetch-Mode: navigate\r\n\
                      Sec-Fetch-Dest: document\r\n";
    let mut client = open.send("GET /", "127.0.0.1:PORT", navigation).await?;
    let (mut backend, _) = bed.accept().await?;
    backend.write_all(OK).await?;
    read_until(&mut client, "ok").await?;
    Ok(())
}

#[tokio::test]
async fn each_of_several_targets_has_a_host_of_its_own() -> Result<()> {
    let bed = TestBed::new().await?;
    let open = Open::start(&of_bed(&bed, "t")?, &["svc/s", "svc/base", "pod/p"])?;
    for (host, path) in [
        ("s--default.localhost:PORT", "/of-s"),
        ("base--default.localhost:PORT", "/of-base"),
        ("p--default.localhost:PORT", "/of-p"),
    ] {
        let mut client = open.send(&format!("GET {path}"), host, "").await?;
        let (mut backend, head) = bed.accept().await?;
        ensure!(
            head.starts_with(&format!("GET {path} HTTP/1.1\r\n")),
            "{head}"
        );
        backend.write_all(OK).await?;
        read_until(&mut client, "ok").await?;
    }
    let response = open.response("GET /", "127.0.0.1:PORT", "").await?;
    ensure!(
        response.starts_with("HTTP/1.1 421 ")
            && response.contains("http://base--default.localhost:")
            && response.contains("http://p--default.localhost:"),
        "{response}"
    );
    Ok(())
}

#[tokio::test]
async fn says_why_the_target_has_no_endpoint_and_recovers() -> Result<()> {
    let bed = TestBed::new().await?;
    let manifests = bed.folder.path().join("manifests/all.yaml");
    let before = std::fs::read_to_string(&manifests)?;
    let slice = "targetRef: {kind: Pod, namespace: default, name: p}}]";
    std::fs::write(
        &manifests,
        before.replace(slice, &format!("conditions: {{ready: false}}, {slice}")),
    )?;
    let open = Open::start(&of_bed(&bed, "t")?, &["svc/s"])?;
    eventually("a response without an endpoint", async || {
        let get = open.response("GET /", "127.0.0.1:PORT", "");
        let accept = async {
            let (mut backend, _) = bed.accept().await?;
            anyhow::Ok(backend.write_all(OK).await?)
        };
        tokio::select! {
            response = get => Ok(response?.starts_with("HTTP/1.1 503 ")),
            accepted = accept => accepted.map(|()| false),
        }
    })
    .await?;
    open.prints("service/s: no endpoints available for service \"s\"")
        .await?;
    std::fs::write(&manifests, before)?;
    eventually("a response of the endpoint", async || {
        let get = open.response("GET /", "127.0.0.1:PORT", "");
        let accept = async {
            let (mut backend, _) = bed.accept().await?;
            backend.write_all(OK).await?;
            std::future::pending::<Result<()>>().await
        };
        tokio::select! {
            response = get => Ok(response?.ends_with("ok")),
            accepted = accept => accepted.map(|()| false),
        }
    })
    .await?;
    open.prints("service/s: responds again\n").await
}

#[tokio::test]
async fn rejected_credentials_are_an_error_of_the_command_not_of_a_proxy() -> Result<()> {
    let bed = TestBed::new().await?;
    let error = fail(&of_bed(&bed, "wrong")?, &["svc/s"])?;
    ensure!(error.contains("Unauthorized"), "{error}");
    // A token that is revoked later.
    let open = Open::start(&of_bed(&bed, "r")?, &["pod/p"])?;
    std::fs::write(
        bed.folder.path().join("tokens"),
        "t,jane,1,\"system:masters\"\n",
    )?;
    eventually("the token to be rejected", async || {
        let get = open.response("GET /", "127.0.0.1:PORT", "");
        let accept = async {
            let (mut backend, _) = bed.accept().await?;
            anyhow::Ok(backend.write_all(OK).await?)
        };
        tokio::select! {
            response = get => {
                let response = response?;
                Ok(response.starts_with("HTTP/1.1 502 ") && response.contains("log in again"))
            }
            accepted = accept => accepted.map(|()| false),
        }
    })
    .await?;
    open.prints("rejects the credentials of the kubeconfig; log in again")
        .await
}

#[tokio::test]
async fn opens_the_browser_with_the_url() -> Result<()> {
    let bed = TestBed::new().await?;
    let (script, opened) = (
        bed.folder.path().join("browser"),
        bed.folder.path().join("opened"),
    );
    std::fs::write(
        &script,
        format!("#!/bin/sh\necho \"$1\" >> {}\n", opened.display()),
    )?;
    std::fs::set_permissions(&script, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
    let script = script.to_str().context("UTF-8")?;
    let environment = [
        ("BROWSER", script),
        ("DISPLAY", ":0"),
        ("SSH_CONNECTION", ""),
        ("SSH_TTY", ""),
    ];
    let open = Open::with(&of_bed(&bed, "t")?, &["svc/s"], &environment)?;
    eventually("the browser to open", async || Ok(opened.exists())).await?;
    let url = format!("http://s--default.localhost:{}/\n", open.port);
    eventually("the URL", async || {
        Ok(std::fs::read_to_string(&opened)? == url)
    })
    .await
}

#[tokio::test]
async fn ends_on_a_signal_even_with_open_streams() -> Result<()> {
    let bed = TestBed::new().await?;
    let mut open = Open::start(&of_bed(&bed, "t")?, &["svc/s"])?;
    let _client = open.send("GET /", "127.0.0.1:PORT", "").await?;
    let _backend = bed.accept().await?;
    kill(Pid::from_raw(open.child.id().try_into()?), Signal::SIGTERM)?;
    eventually("the command to end", async || {
        Ok(open.child.try_wait()?.is_some())
    })
    .await?;
    ensure!(open.child.wait()?.success());
    Ok(())
}

/// API server with some objects, for tests with several threads, which rejects port-forwarding and echoes requests for `/proxy/`.
async fn api_server(objects: &[(&str, Value)]) -> Result<SocketAddr> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    let objects: HashMap<_, _> = objects
        .iter()
        .map(|(path, object)| ((*path).to_owned(), object.clone()))
        .collect();
    let objects = Arc::new(objects);
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let objects = Arc::clone(&objects);
            let service = service_fn(move |request| {
                let response = respond(&request, &objects);
                async move { Ok::<_, Infallible>(response) }
            });
            let serving = hyper::server::conn::http1::Builder::new()
                .serve_connection(TokioIo::new(stream), service);
            tokio::spawn(serving);
        }
    });
    Ok(address)
}

fn respond(request: &Request<Incoming>, objects: &HashMap<String, Value>) -> Response<Full<Bytes>> {
    let json = |status: StatusCode, body: &Value| {
        let mut response = Response::new(Full::new(body.to_string().into()));
        *response.status_mut() = status;
        let json = "application/json".parse().expect("a media type");
        response.headers_mut().insert(header::CONTENT_TYPE, json);
        response
    };
    let path = request.uri().path();
    if let Some((prefix, rest)) = path.split_once("/proxy/") {
        let mut text = format!("{} {prefix} {rest}\n", request.method());
        for (name, value) in request.headers() {
            text += &format!("{name}: {}\n", String::from_utf8_lossy(value.as_bytes()));
        }
        let mut response = Response::new(Full::new(text.into()));
        let location = format!("{prefix}/proxy/login").parse().expect("a path");
        response.headers_mut().insert(header::LOCATION, location);
        return response;
    }
    if let Some(object) = objects.get(path) {
        return json(StatusCode::OK, object);
    }
    let (code, message) = if path.ends_with("/portforward") {
        (403, "pods \"web-0\" is forbidden")
    } else {
        (404, "not found")
    };
    let status = json!({"kind": "Status", "code": code, "message": message});
    json(StatusCode::from_u16(code).expect("a status"), &status)
}

const SERVICES: &str = "/api/v1/namespaces/default/services";

fn objects() -> [(&'static str, Value); 6] {
    let selector = json!({"app": "web"});
    let pod = |name: &str, ready: &str| {
        json!({
            "metadata": {"name": name},
            "spec": {"containers": [{"name": "c", "ports": [{"containerPort": 8080}]}]},
            "status": {"phase": "Running", "conditions": [{"type": "Ready", "status": ready}]},
        })
    };
    [
        (
            "/api/v1/namespaces/default/services/web",
            json!({"spec": {"selector": selector, "ports": [{"port": 80, "targetPort": 8080}]}}),
        ),
        (
            "/api/v1/namespaces/default/services/rabbit",
            json!({"spec": {"ports": [{"port": 5672, "name": "amqp"}, {"port": 15672, "name": "management"}]}}),
        ),
        (
            SERVICES,
            json!({"items": [{"metadata": {"name": "web"}}, {"metadata": {"name": "rabbit"}}]}),
        ),
        (
            "/api/v1/namespaces/default/pods",
            json!({"items": [pod("web-0", "True"), pod("web-1", "False")]}),
        ),
        (
            "/apis/apps/v1/namespaces/default/deployments/web",
            json!({"spec": {
                "selector": {"matchLabels": selector},
                "template": {"spec": {"containers": [{"name": "c", "ports": [{"containerPort": 8080}]}]}},
            }}),
        ),
        ("/api/v1/nodes/n1", json!({"metadata": {"name": "n1"}})),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn plain_api_server_without_port_forwarding_serves_through_its_subresource() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let server = format!("http://{}", api_server(&objects()).await?);
    let file = kubeconfig(folder.path(), &server, "", "")?;
    for (target, prefix) in [
        ("svc/web", "/api/v1/namespaces/default/services/web"),
        (
            "svc/rabbit:management",
            "/api/v1/namespaces/default/services/rabbit:15672",
        ),
        // Its ready pod.
        ("deploy/web", "/api/v1/namespaces/default/pods/web-0"),
        ("node/n1", "/api/v1/nodes/n1"),
    ] {
        let open = Open::start(&file, &[target])?;
        let response = open.response("GET /a?b", "127.0.0.1:PORT", "").await?;
        ensure!(
            response.contains(&format!("GET {prefix} a\n")),
            "{target}: {response}"
        );
        let kept = format!("GET {prefix}/proxy/a");
        let response = open.response(&kept, "127.0.0.1:PORT", "").await?;
        if target != "deploy/web" {
            ensure!(
                response.contains("\r\nLocation: /login\r\n")
                    || response.contains("\r\nlocation: /login\r\n"),
                "{response}"
            );
        }
        ensure!(
            response.contains(&format!("GET {prefix} a\n")),
            "{target}: {response}"
        );
        open.prints("is opened through /proxy/ of the API server")
            .await?;
        if target == "svc/web" {
            open.prints("cannot forward a port of service/web: the API server refuses port-forward to the pod: pods \"web-0\" is forbidden")
                .await?;
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn errors_are_one_line_with_the_remedy() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let address = api_server(&objects()).await?;
    let file = kubeconfig(folder.path(), &format!("http://{address}"), "", "")?;
    let taken = address.port().to_string();
    for (arguments, expected) in [
        (&["web"][..], r#""web" has no type; use TYPE/NAME, such as svc/web"#.to_owned()),
        (&["ing/web"], r#"unknown type "ing"; use svc, pod, node"#.to_owned()),
        (&["svc/webb"], r#"service "webb" not found in namespace "default"; did you mean "web"?"#.to_owned()),
        (&["svc/x"], r#"service "x" not found in namespace "default"; its services: web, rabbit"#.to_owned()),
        (
            &["svc/rabbit"],
            "service/rabbit has several ports; choose one with --port: 5672 (amqp), 15672 (management)".to_owned(),
        ),
        (
            &["svc/web", "--port", "81"],
            r#"service/web has no port "81"; its ports: 80"#.to_owned(),
        ),
        (
            &["svc/web", "--local-port", &taken],
            format!("port {taken} is in use on 127.0.0.1; choose another with --local-port"),
        ),
        (
            &["svc/web", "--via", "bastion"],
            format!("127.0.0.1:{taken} is not a bastion that forwards requests in absolute form; omit --via=bastion"),
        ),
        (
            &["svc/web", "--via", "bastion", "--as", "jane"],
            "omit --as, or use --via=proxy".to_owned(),
        ),
        (
            &["svc/web", "--via", "port-forward"],
            "cannot forward a port of service/web: the API server refuses port-forward to the pod: pods \"web-0\" is forbidden".to_owned(),
        ),
        (&["node/n1", "--via", "port-forward"], "node/n1 cannot be opened through port-forwarding".to_owned()),
    ] {
        let error = fail(&file, arguments)?;
        ensure!(error.contains(&expected) && error.lines().count() == 1, "{arguments:?}: {error}");
    }
    let unreachable = TcpListener::bind("127.0.0.1:0").await?.local_addr()?;
    let file = kubeconfig(folder.path(), &format!("http://{unreachable}"), "", "")?;
    let error = fail(&file, &["svc/web"])?;
    ensure!(
        error.contains(&format!("cannot connect to {unreachable}")),
        "{error}"
    );
    Ok(())
}
