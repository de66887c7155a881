//! Targets through a bastion.

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::io::AsyncWriteExt;

use super::{Open, fail, kubeconfig};
use crate::support::eventually;
use crate::support::test_bed::{TestBed, read_all, read_until};

/// Response of a target that closes its connection.
const OK: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok";

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
             Accept-Encoding: br\r\nKube-Bastion-Host: forged\r\n\
             Proxy-Authorization: Basic forged\r\nX-Hop: forged\r\nConnection: close, X-Hop\r\n"
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
    ensure!(error.contains("log in again (status 401)"), "{error}");
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
