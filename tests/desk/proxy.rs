//! `proxy` in front of servers that take the place of API servers.

use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use http::StatusCode;
use nix::sys::signal::Signal;
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UnixStream};

use crate::api::{Desk, ok};
use crate::support::client::get_plain_over;
use crate::support::eventually;
use crate::support::program::Program;
use crate::support::test_bed::read_until;
use crate::support::tls_endpoint::TlsEndpoint;

const STARTED: &str = "Starting to serve on ";

/// Command `proxy` with flags.
fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_kube-bastion"));
    command
        .arg("proxy")
        .args(arguments)
        .env("HOME", "/nonexistent")
        .env_remove("KUBECONFIG")
        .env_remove("KUBERNETES_SERVICE_HOST");
    command
}

/// Running proxy.
pub struct Proxy {
    program: Program,
    address: SocketAddr,
}

impl Proxy {
    /// Starts the proxy on a free port and waits until it listens.
    pub async fn start(arguments: &[&str]) -> Result<Self> {
        let mut program = Program::start(&mut command(&[arguments, &["--port=0"]].concat()))?;
        let line = program.wait_for_line(STARTED).await?;
        let address = line.strip_prefix(STARTED).context("the line has it")?;
        Ok(Self {
            address: address.parse()?,
            program,
        })
    }

    /// Sends a request and returns the status, the head and the body.
    pub async fn send(&self, line: &str, headers: &str, body: &str) -> Result<Answer> {
        let mut stream = TcpStream::connect(self.address).await?;
        let length = match body.len() {
            0 => String::new(),
            length => format!("Content-Length: {length}\r\n"),
        };
        let request = format!(
            "{line} HTTP/1.1\r\nHost: {}\r\n{headers}{length}Connection: close\r\n\r\n{body}",
            self.address
        );
        stream.write_all(request.as_bytes()).await?;
        let mut text = String::new();
        stream.read_to_string(&mut text).await?;
        Answer::parse(&text)
    }

    pub async fn get(&self, path: &str) -> Result<Answer> {
        self.send(&format!("GET {path}"), "", "").await
    }

    /// Ends the proxy as Ctrl-C does.
    pub async fn stop(mut self) -> Result<Vec<String>> {
        self.program.signal(Signal::SIGINT)?;
        self.program.finish().await?;
        Ok(self.program.output())
    }
}

#[derive(Debug)]
pub struct Answer {
    pub status: StatusCode,
    head: String,
    pub body: String,
}

impl Answer {
    fn parse(text: &str) -> Result<Self> {
        let (head, body) = text.split_once("\r\n\r\n").context("no response")?;
        let status = head.split(' ').nth(1).context("no status")?.parse()?;
        Ok(Self {
            status,
            head: head.to_lowercase(),
            body: body.to_owned(),
        })
    }
}

const TOKEN: &str = "{token: t0k3n}";

#[tokio::test]
async fn adds_credentials_and_keeps_those_of_the_client() -> Result<()> {
    let desk = Desk::new()?;
    let api = desk.api(|head, _| ok(&head.line)).await?;
    let kubeconfig = desk.kubeconfig(&format!("https://{}", api.address), TOKEN)?;
    let proxy = Proxy::start(&[&kubeconfig, "--as=jane", "--as-group=developers"]).await?;
    let answer = proxy.get("/api/v1/pods?watch=1&x=%2F").await?;
    assert_eq!(answer.body, "GET /api/v1/pods?watch=1&x=%2F HTTP/1.1");
    let own = "Authorization: Bearer own\r\nImpersonate-User: bob\r\nUser-Agent: test\r\n";
    proxy.send("POST /api", own, "body").await?;
    let [first, second] = &api.requests()[..] else {
        panic!("{:?}", api.requests());
    };
    let value = |name: &str| (first.value(name), second.value(name));
    assert_eq!(
        value("authorization"),
        (Some("Bearer t0k3n"), Some("Bearer own"))
    );
    assert_eq!(value("impersonate-user"), (Some("jane"), Some("bob")));
    assert_eq!(value("impersonate-group"), (Some("developers"), None));
    let agent = concat!("kube-bastion/", env!("CARGO_PKG_VERSION"));
    assert_eq!(value("user-agent"), (Some(agent), Some("test")));
    let host = api.address.to_string();
    assert_eq!(value("host"), (Some(&*host), Some(&*host)));
    assert_eq!(first.value("x-forwarded-for"), Some("127.0.0.1"));
    let output = proxy.stop().await?;
    assert!(!output.join("\n").contains("t0k3n"), "{output:?}");
    Ok(())
}

#[tokio::test]
async fn balances_over_servers_and_fails_over_without_an_error() -> Result<()> {
    let desk = Desk::new()?;
    let first = desk.api(|_, _| ok("first")).await?;
    let second = desk.api(|_, _| ok("second")).await?;
    let kubeconfig = desk.kubeconfig("https://unused.example", TOKEN)?;
    let flags = [&first, &second].map(|api| format!("--server=https://{}", api.address));
    let proxy = Proxy::start(&[&kubeconfig, &flags[0], &flags[1]]).await?;
    for _ in 0..10 {
        assert_eq!(proxy.get("/api").await?.status, 200);
    }
    assert_eq!((first.requests().len(), second.requests().len()), (5, 5));
    drop(first);
    for _ in 0..10 {
        let answer = proxy.get("/api").await?;
        assert_eq!((answer.status.as_u16(), &*answer.body), (200, "second"));
    }
    drop(second);
    // The first request finds out, and the next ones have nothing to wait for.
    proxy.get("/api").await?;
    let answer = proxy.get("/api").await?;
    assert_eq!(answer.status, 503);
    assert!(answer.head.contains("retry-after: 1"), "{answer:?}");
    let status: Value = serde_json::from_str(&answer.body)?;
    let message = status["message"].as_str().unwrap_or_default();
    assert_eq!(
        (&status["kind"], &status["code"]),
        (&"Status".into(), &503.into())
    );
    assert!(
        message.contains("no API server can be reached"),
        "{message}"
    );
    Ok(())
}

/// kubernetes/kubernetes#8871.
#[tokio::test]
async fn page_of_another_site_reaches_no_api() -> Result<()> {
    let desk = Desk::new()?;
    let api = desk.api(|_, _| ok("ok")).await?;
    let kubeconfig = desk.kubeconfig(&format!("https://{}", api.address), TOKEN)?;
    let proxy = Proxy::start(&[&kubeconfig]).await?;
    for headers in [
        "Origin: https://evil.example\r\nContent-Type: text/plain\r\n",
        "Sec-Fetch-Site: cross-site\r\nSec-Fetch-Mode: no-cors\r\n",
    ] {
        let answer = proxy.send("POST /api/v1/pods", headers, "{}").await?;
        assert_eq!(answer.status, 403, "{headers}");
        assert!(answer.body.starts_with("Forbidden\n"), "{answer:?}");
    }
    assert!(api.requests().is_empty());
    let own = format!("Origin: http://{}\r\n", proxy.address);
    assert_eq!(
        proxy.send("POST /api/v1/pods", &own, "{}").await?.status,
        200
    );
    let open = Proxy::start(&[&kubeconfig, "--disable-filter"]).await?;
    let foreign = "Origin: https://evil.example\r\n";
    assert_eq!(
        open.send("POST /api/v1/pods", foreign, "{}").await?.status,
        200
    );
    Ok(())
}

#[tokio::test]
async fn tunnel_carries_bytes_until_the_proxy_ends() -> Result<()> {
    let desk = Desk::new()?;
    let api = desk
        .api(|_, _| {
            b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n".into()
        })
        .await?;
    let kubeconfig = desk.kubeconfig(&format!("https://{}", api.address), TOKEN)?;
    let proxy = Proxy::start(&[&kubeconfig]).await?;
    let mut stream = TcpStream::connect(proxy.address).await?;
    let request =
        "GET /a?b=c HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n";
    stream.write_all(request.as_bytes()).await?;
    let head = read_until(&mut stream, "\r\n\r\n").await?;
    assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
    stream.write_all(b"to the API server and back;").await?;
    read_until(&mut stream, "back;").await?;
    assert_eq!(api.requests()[0].line, "GET /a?b=c HTTP/1.1");
    proxy.stop().await?;
    assert_eq!(stream.read(&mut [0]).await.unwrap_or(0), 0);
    Ok(())
}

#[tokio::test]
async fn unix_socket_is_private_and_removed_at_the_end() -> Result<()> {
    let desk = Desk::new()?;
    let api = desk
        .api(|head, _| ok(head.value("x-forwarded-for").unwrap_or("none")))
        .await?;
    let kubeconfig = desk.kubeconfig(&format!("https://{}", api.address), TOKEN)?;
    let path = desk.path("proxy.sock");
    let socket = format!("--unix-socket={}", path.display());
    let mut program = Program::start(&mut command(&[&kubeconfig, &socket, "--address=192.0.2.1"]))?;
    let line = program.wait_for_line(STARTED).await?;
    assert_eq!(line, format!("{STARTED}{}", path.display()));
    program.wait_for_line("--address has no effect").await?;
    assert_eq!(
        std::fs::metadata(&path)?.permissions().mode() & 0o777,
        0o700
    );
    let stream = UnixStream::connect(&path).await?;
    let (status, body) = get_plain_over(stream, "localhost", "/api").await?;
    assert_eq!((status, &*body), (200, "none"));
    program.signal(Signal::SIGTERM)?;
    program.finish().await?;
    assert!(!path.exists());
    Ok(())
}

#[tokio::test]
async fn finishes_requests_in_flight_when_it_ends() -> Result<()> {
    let desk = Desk::new()?;
    let endpoint = TlsEndpoint::start_http1(&desk.ca, desk.folder.path(), &["127.0.0.1"]).await?;
    let kubeconfig = desk.kubeconfig(&format!("https://{}", endpoint.address()?), TOKEN)?;
    let mut proxy = Proxy::start(&[&kubeconfig]).await?;
    let mut stream = TcpStream::connect(proxy.address).await?;
    stream
        .write_all(b"GET /api HTTP/1.1\r\nHost: localhost\r\n\r\n")
        .await?;
    let mut server = endpoint.accept_http1().await?;
    read_until(&mut server, "\r\n\r\n").await?;
    proxy.program.signal(Signal::SIGTERM)?;
    server.write_all(&ok("complete")).await?;
    read_until(&mut stream, "complete").await?;
    proxy.program.finish().await?;
    ensure!(
        TcpStream::connect(proxy.address).await.is_err(),
        "the port is open"
    );
    Ok(())
}

#[tokio::test]
async fn opens_the_browser_with_the_prefix_of_the_api() -> Result<()> {
    let desk = Desk::new()?;
    let kubeconfig = desk.kubeconfig("https://127.0.0.1:1", TOKEN)?;
    let browser = desk.path("browser");
    std::fs::write(&browser, "#!/bin/sh\necho \"$1\" > \"$0.opened\"\n")?;
    std::fs::set_permissions(&browser, std::fs::Permissions::from_mode(0o755))?;
    let flags = [&*kubeconfig, "--port=0", "--open", "--api-prefix=/k8s"];
    for display in [false, true] {
        let mut command = command(&flags);
        command
            .env("BROWSER", &browser)
            .env_remove("SSH_CONNECTION")
            .env_remove("SSH_TTY")
            .env_remove("WAYLAND_DISPLAY")
            .env_remove("DISPLAY");
        if display {
            command.env("DISPLAY", ":0");
        }
        let mut program = Program::start(&mut command)?;
        let line = program.wait_for_line("Open ").await?;
        let url = line.strip_prefix("Open ").context("the line has it")?;
        ensure!(
            url.starts_with("http://127.0.0.1:") && url.ends_with("/k8s/"),
            "{url}"
        );
        let opened = desk.path("browser.opened");
        if display {
            eventually("the browser", async || {
                Ok(std::fs::read_to_string(&opened).is_ok_and(|text| text.trim() == url))
            })
            .await?;
        } else {
            program.wait_for_line("without a display").await?;
            ensure!(!opened.exists(), "a browser was opened");
        }
    }
    let output = command(&[&kubeconfig, "--open", "--unix-socket=/tmp/unused"]).output()?;
    let text = String::from_utf8_lossy(&output.stderr);
    ensure!(text.contains("--open needs a port"), "{text}");
    Ok(())
}

#[tokio::test]
async fn connections_beyond_the_limit_wait() -> Result<()> {
    const LIMIT: usize = 256;
    const REQUEST: &[u8] = b"GET /api HTTP/1.1\r\nHost: localhost\r\n\r\n";
    let desk = Desk::new()?;
    let api = desk.api(|_, _| ok("complete")).await?;
    let kubeconfig = desk.kubeconfig(&format!("https://{}", api.address), TOKEN)?;
    let proxy = Proxy::start(&[&kubeconfig]).await?;
    let mut open = Vec::new();
    for _ in 0..LIMIT {
        let mut stream = TcpStream::connect(proxy.address).await?;
        stream.write_all(REQUEST).await?;
        read_until(&mut stream, "complete").await?;
        open.push(stream);
    }
    let mut waiting = TcpStream::connect(proxy.address).await?;
    waiting.write_all(REQUEST).await?;
    // The proxy serves the others meanwhile, for long enough to accept it.
    for _ in 0..LIMIT {
        open[0].write_all(REQUEST).await?;
        read_until(&mut open[0], "complete").await?;
    }
    assert_eq!(api.requests().len(), 2 * LIMIT);
    open.pop();
    read_until(&mut waiting, "complete").await?;
    Ok(())
}

#[tokio::test]
async fn logs_requests_only_if_verbose() -> Result<()> {
    let desk = Desk::new()?;
    let api = desk.api(|_, _| ok("ok")).await?;
    let kubeconfig = desk.kubeconfig(&format!("https://{}", api.address), TOKEN)?;
    for (flag, expected) in [("-v=0", false), ("-v", true)] {
        let proxy = Proxy::start(&[&kubeconfig, flag]).await?;
        proxy.get("/api/v1/pods?secret=x").await?;
        let output = proxy.stop().await?.join("\n");
        let parts = [
            "GET",
            "path=\"/api/v1/pods\"",
            "status=200",
            "milliseconds=",
        ];
        let server = api.address.to_string();
        let logs = parts.iter().all(|part| output.contains(part)) && output.contains(&server);
        assert_eq!(logs, expected, "{output}");
        assert!(!output.contains("secret"), "{output}");
    }
    Ok(())
}

#[tokio::test]
async fn warns_as_kubectl_does() -> Result<()> {
    let desk = Desk::new()?;
    let kubeconfig = desk.kubeconfig("https://127.0.0.1:1/base", TOKEN)?;
    let file = format!("--www={}", desk.path("kubeconfig").display());
    let proxy = Proxy::start(&[&kubeconfig, "--disable-filter", &file]).await?;
    let output = proxy.stop().await?.join("\n");
    for part in [
        "Your kube context contains a server path /base, use --append-server-path",
        "Request filter disabled, your proxy is vulnerable to XSRF attacks, please be cautious",
        "is not a directory",
    ] {
        assert!(output.contains(part), "{part:?} is missing in {output}");
    }
    let proxy = Proxy::start(&[&kubeconfig, "--append-server-path", "--www=/nonexistent"]).await?;
    let output = proxy.stop().await?.join("\n");
    assert!(
        output.contains("Failed to stat static file directory /nonexistent"),
        "{output}"
    );
    assert!(
        !output.contains("server path") && !output.contains("XSRF"),
        "{output}"
    );
    let server = "--server=https://127.0.0.1:1";
    let proxy = Proxy::start(&[server, "--insecure-skip-tls-verify"]).await?;
    let output = proxy.stop().await?.join("\n");
    let warning = "the certificate of https://127.0.0.1:1 is not verified";
    assert!(output.contains(warning), "{output}");
    Ok(())
}

#[tokio::test]
async fn request_timeout_limits_the_wait_for_a_response() -> Result<()> {
    let desk = Desk::new()?;
    // Accepts connections only.
    let silent = TcpListener::bind("127.0.0.1:0").await?;
    let kubeconfig = desk.kubeconfig(&format!("https://{}", silent.local_addr()?), TOKEN)?;
    let proxy = Proxy::start(&[&kubeconfig, "--request-timeout=300ms"]).await?;
    let answer = proxy.get("/api").await?;
    assert_eq!(answer.status, 504);
    assert!(answer.body.contains("--request-timeout"), "{answer:?}");
    Ok(())
}

#[test]
fn rejects_invalid_input_in_one_line() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    let server = "--server=https://127.0.0.1:1";
    let port = format!("--port={port}");
    for (arguments, code, part) in [
        (
            &[server, &*port][..],
            1,
            "is in use (--port); choose another one",
        ),
        (
            &[server, "--address=192.0.2.1"],
            1,
            "is not an address of this machine",
        ),
        (
            &[server, "--unix-socket=/nonexistent/s"],
            1,
            "--unix-socket",
        ),
        (
            &[server, "--unix-socket=/tmp/s", "--port=1"],
            1,
            "cannot set --unix-socket and --port at the same time",
        ),
        (
            &[server, "--accept-paths=("],
            2,
            "is not a regular expression",
        ),
        (&["--port=0"], 1, "--server=URL"),
    ] {
        let output = command(arguments).output().unwrap();
        let text = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {text}");
        assert!(text.contains(part), "{arguments:?}: {text}");
        if code == 1 {
            assert_eq!(text.lines().count(), 1, "{text}");
        }
    }
}
