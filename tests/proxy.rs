//! The wire, on both sides: a bastion with the manifests source before a backend that sends just
//! the bytes that a case asks for and keeps just the bytes that it got.

#[path = "proxy/kubelet.rs"]
mod kubelet;
#[path = "support/mod.rs"]
mod support;
#[path = "proxy/tunnel.rs"]
mod tunnel;

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use http_body_util::BodyExt;
use nix::sys::signal::Signal;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use support::bastion::Bastion;
use support::eventually;
use support::test_bed::{PREFIX, TestBed, read_all, read_until};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;

#[tokio::test]
async fn head_and_body_cross_as_they_are() -> Result<()> {
    let bed = TestBed::new().await?;
    let rest = "X-Odd: a\r\nX-Odd: b\r\nCookie: c=d\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n";
    let mut client = bed.request("POST /a%2Fb//c;d?e=%20f&&g", rest).await?;
    let (mut backend, head) = bed.accept().await?;
    ensure!(
        head.starts_with("POST /a%2Fb//c;d?e=%20f&&g HTTP/1.1\r\n"),
        "{head}"
    );
    for line in [
        "Host: h",
        "X-Odd: a",
        "X-Odd: b",
        "Cookie: c=d",
        "Transfer-Encoding: chunked",
        "X-Forwarded-Proto: https",
    ] {
        ensure!(
            head.contains(&format!("\r\n{line}\r\n")),
            "{line} in {head}"
        );
    }
    ensure!(
        !head.contains("Authorization") && !head.contains("Bearer"),
        "{head}"
    );
    ensure!(
        !head.to_lowercase().contains("user-agent"),
        "none is added: {head}"
    );
    ensure!(read_until(&mut backend, "0\r\n\r\n").await? == "3\r\nabc\r\n0\r\n\r\n");
    backend
        .write_all(b"HTTP/1.1 418 I'm odd\r\nContent-Length: 2\r\nSet-Cookie: a=b\r\nKeep-Alive: x\r\nAccess-Control-Allow-Origin: *\r\n\r\nhi")
        .await?;
    let head = read_until(&mut client, "\r\n\r\n").await?;
    ensure!(head.starts_with("HTTP/1.1 418 "), "{head}");
    ensure!(
        head.contains("Set-Cookie: a=b")
            && head.contains("Audit-Id: ")
            && head.contains("Content-Length: 2"),
        "{head}"
    );
    ensure!(
        !head.contains("Keep-Alive") && !head.contains("Access-Control"),
        "{head}"
    );
    ensure!(read_until(&mut client, "hi").await? == "hi");
    Ok(())
}

const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

#[tokio::test]
async fn an_idle_connection_serves_the_next_request_and_a_stale_one_is_replaced() -> Result<()> {
    let bed = TestBed::new().await?;
    // The bastion has a pool per worker: one client connection stays on one worker.
    let mut client = bed.request("GET /1", "\r\n").await?;
    let (mut backend, _) = bed.accept().await?;
    backend.write_all(ANSWER).await?;
    read_until(&mut client, "ok").await?;
    let request =
        |n: u8| format!("GET {PREFIX}/{n} HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer t\r\n\r\n");
    client.write_all(request(2).as_bytes()).await?;
    ensure!(
        read_until(&mut backend, "\r\n\r\n")
            .await?
            .starts_with("GET /2 "),
        "the same connection serves"
    );
    backend.write_all(ANSWER).await?;
    read_until(&mut client, "ok").await?;
    // It breaks while the third request is on it: the request is sent again, on a new one.
    client.write_all(request(3).as_bytes()).await?;
    read_until(&mut backend, "\r\n\r\n").await?;
    drop(backend);
    let (mut backend, head) = bed.accept().await?;
    ensure!(head.starts_with("GET /3 "), "{head}");
    backend.write_all(ANSWER).await?;
    ensure!(
        read_until(&mut client, "ok")
            .await?
            .starts_with("HTTP/1.1 200 ")
    );
    Ok(())
}

#[tokio::test]
async fn what_may_have_acted_is_not_repeated() -> Result<()> {
    let bed = TestBed::new().await?;
    let mut client = bed
        .request("POST /", "Content-Length: 1\r\nConnection: close\r\n\r\nx")
        .await?;
    let (backend, _) = bed.accept().await?;
    drop(backend);
    let answer = read_all(&mut client).await;
    ensure!(
        answer.starts_with("HTTP/1.1 503 ") && answer.contains("error trying to reach service: "),
        "{answer}"
    );
    let again = tokio::time::timeout(Duration::from_millis(300), bed.accept()).await;
    ensure!(again.is_err(), "the request came a second time");
    Ok(())
}

#[tokio::test]
async fn a_broken_answer_is_cut_and_never_ends_cleanly() -> Result<()> {
    let bed = TestBed::new().await?;
    for (head, part) in [
        ("Transfer-Encoding: chunked", "5\r\nhello\r\n"),
        ("Content-Length: 10", "hello"),
    ] {
        let mut client = bed.request("GET /", "\r\n").await?;
        let (mut backend, _) = bed.accept().await?;
        backend
            .write_all(format!("HTTP/1.1 200 OK\r\n{head}\r\n\r\n{part}").as_bytes())
            .await?;
        read_until(&mut client, "hello").await?;
        drop(backend);
        let rest = read_all(&mut client).await;
        ensure!(!rest.contains("0\r\n\r\n"), "a clean end: {rest:?}");
    }
    Ok(())
}

#[tokio::test]
async fn the_first_byte_does_not_wait_for_the_last() -> Result<()> {
    let bed = TestBed::new().await?;
    let mut client = bed.request("GET /events", "\r\n").await?;
    let (mut backend, _) = bed.accept().await?;
    backend
        .write_all(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
        .await?;
    read_until(&mut client, "\r\n\r\n").await?;
    for event in ["data: 1\n\n", "data: 2\n\n"] {
        backend
            .write_all(format!("{:x}\r\n{event}\r\n", event.len()).as_bytes())
            .await?;
        read_until(&mut client, event).await?;
    }
    // The client goes: the backend is told by the end of its connection.
    drop(client);
    ensure!(backend.read(&mut [0]).await.unwrap_or(0) == 0);
    Ok(())
}

#[tokio::test]
async fn back_pressure_reaches_the_backend() -> Result<()> {
    let bed = TestBed::new().await?;
    let client = bed.request("GET /big", "\r\n").await?;
    let (mut backend, _) = bed.accept().await?;
    backend
        .write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        .await?;
    let chunk = [b"10000\r\n", &vec![b'x'; 0x10000][..], b"\r\n"].concat();
    let mut sent = 0;
    // The client reads nothing: what the bastion and the kernel hold must have an end.
    while let Ok(written) =
        tokio::time::timeout(Duration::from_secs(1), backend.write_all(&chunk)).await
    {
        written?;
        sent += chunk.len();
        ensure!(
            sent < 64 << 20,
            "64 MiB were taken for a client that reads nothing"
        );
    }
    drop(client);
    Ok(())
}

#[tokio::test]
async fn trailers_and_interim_answers_pass() -> Result<()> {
    let bed = TestBed::new().await?;
    let mut client = bed.request("GET /", "TE: trailers\r\n\r\n").await?;
    let (mut backend, head) = bed.accept().await?;
    ensure!(head.contains("Te: trailers"), "{head}");
    backend
        .write_all(b"HTTP/1.1 103 Early Hints\r\nLink: </a.css>; rel=preload\r\n\r\n")
        .await?;
    let hints = read_until(&mut client, "\r\n\r\n").await?;
    ensure!(
        hints.starts_with("HTTP/1.1 103 ") && hints.to_lowercase().contains("link: </a.css>"),
        "{hints}"
    );
    // The next comes with the final answer in one piece, and still goes before it.
    backend
        .write_all(b"HTTP/1.1 103 Early Hints\r\nLink: </b.css>\r\n\r\nHTTP/1.1 200 OK\r\nTrailer: X-Sum\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\nX-Sum: 7\r\n\r\n")
        .await?;
    let hints = read_until(&mut client, "\r\n\r\n").await?;
    ensure!(
        hints.starts_with("HTTP/1.1 103 ") && hints.contains("</b.css>"),
        "{hints}"
    );
    let head = read_until(&mut client, "\r\n\r\n").await?;
    ensure!(
        head.starts_with("HTTP/1.1 200 OK\r\n") && head.contains("Trailer: X-Sum"),
        "{head}"
    );
    let body = read_until(&mut client, "\r\n\r\n").await?;
    ensure!(body.to_lowercase().contains("x-sum: 7"), "{body}");
    Ok(())
}

#[tokio::test]
async fn a_refused_upgrade_is_no_pipe() -> Result<()> {
    // CVE-2018-1002105: bytes behind a refused upgrade must not reach the backend.
    let bed = TestBed::new().await?;
    for code in ["400 Bad Request", "500 Oops"] {
        let mut client = bed
            .request(
                "GET /here",
                "Connection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
            )
            .await?;
        let (mut backend, head) = bed.accept().await?;
        ensure!(
            head.contains("Connection: Upgrade") && head.contains("Upgrade: websocket"),
            "{head}"
        );
        backend
            .write_all(format!("HTTP/1.1 {code}\r\nContent-Length: 4\r\n\r\nnope").as_bytes())
            .await?;
        client
            .write_all(b"GET /there HTTP/1.1\r\nHost: h\r\n\r\n")
            .await?;
        let answer = read_all(&mut client).await;
        ensure!(
            answer.starts_with(&format!("HTTP/1.1 {}", &code[..3])) && answer.ends_with("nope"),
            "{answer}"
        );
        ensure!(!read_all(&mut backend).await.contains("/there"));
    }
    Ok(())
}

#[tokio::test]
async fn a_websocket_is_answered_by_101_or_an_error_alone() -> Result<()> {
    // CVE-2020-8559: a redirect in answer to a WebSocket never leaves.
    let bed = TestBed::new().await?;
    for code in [
        "200 OK",
        "300 Multiple Choices",
        "302 Found",
        "307 Temporary Redirect",
    ] {
        let mut client = bed
            .request("GET /", "Connection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
            .await?;
        let (mut backend, _) = bed.accept().await?;
        backend
            .write_all(
                format!("HTTP/1.1 {code}\r\nLocation: http://evil/\r\nContent-Length: 0\r\n\r\n")
                    .as_bytes(),
            )
            .await?;
        let head = read_until(&mut client, "\r\n\r\n").await?;
        let body = read_until(&mut client, "\n").await?;
        let told = format!("invalid upgrade response: status code {}", &code[..3]);
        ensure!(
            head.starts_with("HTTP/1.1 500 ") && body.contains(&told) && !head.contains("evil"),
            "{head}{body}"
        );
    }
    Ok(())
}

#[tokio::test]
async fn an_upgrade_to_a_node_takes_more_than_get() -> Result<()> {
    let bed = TestBed::new().await?;
    let node = format!(
        "/api/v1/nodes/n:{}/proxy/exec",
        bed.backend.local_addr()?.port()
    );
    let upgrade = "Connection: Upgrade\r\nUpgrade: websocket\r\n";
    for (token, target, upgrade, code) in [
        ("r", &*node, "", "200"),
        ("r", &*node, upgrade, "403"),
        ("t", &*node, upgrade, "101"),
        ("r", PREFIX, upgrade, "101"),
    ] {
        let mut client = bed.client().await?;
        let head = format!(
            "GET {target} HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer {token}\r\n{upgrade}\r\n"
        );
        client.write_all(head.as_bytes()).await?;
        let answered = read_until(&mut client, "\r\n\r\n");
        let serve = async {
            let (mut backend, _) = bed.accept().await?;
            let head = if upgrade.is_empty() {
                "200 OK\r\nContent-Length: 0"
            } else {
                "101 Go\r\nConnection: Upgrade\r\nUpgrade: websocket"
            };
            backend
                .write_all(format!("HTTP/1.1 {head}\r\n\r\n").as_bytes())
                .await?;
            anyhow::Ok(backend)
        };
        let answer = tokio::select! {
            answer = answered => answer?,
            answer = async { let _backend = serve.await; std::future::pending::<String>().await } => answer,
        };
        ensure!(
            answer.starts_with(&format!("HTTP/1.1 {code} ")),
            "{token} {target}: {answer}"
        );
    }
    Ok(())
}

#[tokio::test]
async fn both_length_and_encoding_is_refused() -> Result<()> {
    // Request smuggling: two lengths, two opinions.
    let bed = TestBed::new().await?;
    let rest = "Content-Length: 5\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: h\r\n\r\n";
    let mut client = bed.request("POST /", rest).await?;
    let accepted = tokio::time::timeout(Duration::from_millis(500), bed.accept()).await;
    if let Ok(accepted) = accepted {
        let (mut backend, head) = accepted?;
        ensure!(!head.contains("Content-Length"), "both go on: {head}");
        backend
            .write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
            .await?;
        ensure!(!read_all(&mut backend).await.contains("smuggled"));
    }
    let answer = read_all(&mut client).await;
    ensure!(answer.matches("HTTP/1.1 ").count() <= 1, "{answer}");
    Ok(())
}

#[tokio::test]
async fn large_headers_pass() -> Result<()> {
    let bed = TestBed::new().await?;
    let many: String = (0..80)
        .map(|n| format!("X-{n}: {}\r\n", "v".repeat(12_000)))
        .collect();
    let mut client = bed.request("GET /", &format!("{many}\r\n")).await?;
    let (mut backend, head) = bed.accept().await?;
    ensure!(head.contains("\r\nX-79: v"), "{} bytes arrived", head.len());
    backend
        .write_all(format!("HTTP/1.1 200 OK\r\n{many}Content-Length: 0\r\n\r\n").as_bytes())
        .await?;
    let head = read_until(&mut client, "\r\n\r\n").await?;
    ensure!(head.starts_with("HTTP/1.1 200 ") && head.contains("X-79: v"));
    Ok(())
}

#[tokio::test]
async fn an_upgrade_grants_no_more_than_its_method_does() -> Result<()> {
    let bed = TestBed::new().await?;
    for method in ["DELETE", "POST", "PROPFIND"] {
        let mut client = bed.client().await?;
        let head = format!(
            "{method} {PREFIX}/x HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer r\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
        );
        client.write_all(head.as_bytes()).await?;
        let answer = read_until(&mut client, "\r\n\r\n").await?;
        ensure!(answer.starts_with("HTTP/1.1 403 "), "{method}: {answer}");
    }
    let seen = tokio::time::timeout(Duration::from_millis(100), bed.backend.accept()).await;
    ensure!(seen.is_err(), "the backend must not hear of it");
    Ok(())
}

#[tokio::test]
async fn a_refused_upload_is_sent_again_whole() -> Result<()> {
    let bed = TestBed::new().await?;
    let mut client = bed.client().await?;
    let path = "/api/v1/namespaces/default/services/h2c/proxy/up";
    let pieces: Vec<String> = (0..60).map(|n| format!("{n:04}").repeat(256)).collect();
    let whole = pieces.concat();
    let length = whole.len();
    let head = format!(
        "POST {path} HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer t\r\nContent-Length: {length}\r\n\r\n"
    );
    client.write_all(head.as_bytes()).await?;
    client.write_all(pieces[..50].concat().as_bytes()).await?;

    // The first connection refuses it once most of it is there (RFC 9113 section 8.7).
    let mut first = h2::server::handshake(bed.backend.accept().await?.0).await?;
    let (mut request, mut respond) = first.accept().await.context("a request")??;
    let mut seen = 0;
    while seen < 50 * 1024 {
        let piece = tokio::select! {
            piece = request.body_mut().data() => piece.context("more of the body")??,
            _ = first.accept() => anyhow::bail!("one request is enough"),
        };
        request
            .body_mut()
            .flow_control()
            .release_capacity(piece.len())?;
        seen += piece.len();
    }
    respond.send_reset(h2::Reason::REFUSED_STREAM);
    let closed = tokio::spawn(async move { while first.accept().await.is_some() {} });

    // The second answers at once and reads slowly: what is still to be sent again must not be
    // forgotten with the answer.
    let stream = bed.backend.accept().await?.0;
    let mut second = h2::server::Builder::new()
        .initial_window_size(1000)
        .handshake::<_, bytes::Bytes>(stream)
        .await?;
    let (mut request, mut respond) = second.accept().await.context("it comes again")??;
    let mut answer = respond.send_response(http::Response::new(()), false)?;
    let driven = tokio::spawn(async move { while second.accept().await.is_some() {} });
    client.write_all(pieces[50..].concat().as_bytes()).await?;
    let mut got = Vec::new();
    while let Some(piece) = request.body_mut().data().await {
        let piece = piece?;
        request
            .body_mut()
            .flow_control()
            .release_capacity(piece.len())?;
        got.extend_from_slice(&piece);
    }
    ensure!(
        got == whole.as_bytes(),
        "{} bytes of {length} came",
        got.len()
    );
    answer.send_data("ok".into(), true)?;
    let answer = read_until(&mut client, "ok").await?;
    ensure!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    closed.abort();
    driven.abort();
    Ok(())
}

#[tokio::test]
async fn a_page_that_unfolds_leaves_others_their_turn() -> Result<()> {
    let bed = TestBed::serving("workers: 1", &[]).await?;
    let page = "<a href=/x></a>".repeat(1 << 20);
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    std::io::Write::write_all(&mut encoder, page.as_bytes())?;
    let page = encoder.finish()?;
    let mut hostile = bed.request("GET /page", "\r\n").await?;
    let (mut backend, _) = bed.accept().await?;
    let mut neighbour = bed.request("GET /", "\r\n").await?;
    let (mut other, _) = bed.accept().await?;
    let head = format!(
        "HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Encoding: gzip\r\nContent-Length: {}\r\n\r\n",
        page.len()
    );
    backend.write_all(head.as_bytes()).await?;
    backend.write_all(&page).await?;
    let unfolded = tokio::spawn(async move {
        let mut first = [0; 1];
        let _ = hostile.read_exact(&mut first).await;
        // Read like mad, or it would wait for us and not for its turn.
        tokio::io::copy(&mut hostile, &mut tokio::io::sink()).await
    });
    other
        .write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
        .await?;
    read_until(&mut neighbour, "ok").await?;
    ensure!(
        !unfolded.is_finished(),
        "the neighbour had to wait for all of the page"
    );
    unfolded.abort();
    Ok(())
}

#[tokio::test]
async fn who_breaks_off_an_upload_is_told_so_and_blames_nobody() -> Result<()> {
    let bed = TestBed::new().await?;
    let mut client = bed
        .request("POST /up", "Content-Length: 9\r\n\r\nhalf")
        .await?;
    let _backend = bed.accept().await?;
    client.shutdown().await?;
    let answer = read_all(&mut client).await;
    ensure!(
        answer.starts_with("HTTP/1.1 400 ") && answer.contains("the request's body broke off"),
        "{answer}"
    );
    Ok(())
}

#[tokio::test]
async fn silent_clients_of_http2_are_shown_the_door() -> Result<()> {
    let bed = TestBed::serving("idleTimeout: 200ms", &[]).await?;
    let ca = bed.folder.path().join("ca.crt");
    let mut mute = http2(bed.bastion.secure, &ca).await?;
    read_all(&mut mute).await;
    let io = hyper_util::rt::TokioIo::new(http2(bed.bastion.secure, &ca).await?);
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(hyper_util::rt::TokioExecutor::new(), io).await?;
    let ended = tokio::spawn(connection);
    let request = http::Request::get(format!("https://bastion.test{PREFIX}/slow"))
        .header("authorization", "Bearer t")
        .body(http_body_util::Empty::<bytes::Bytes>::new())?;
    let answer = tokio::spawn(async move { (sender.send_request(request).await, sender) });
    let (mut backend, _) = bed.accept().await?;
    // Long enough for an idle connection, and this one is none.
    tokio::time::sleep(Duration::from_secs(1)).await;
    backend
        .write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
        .await?;
    let (answer, _sender) = answer.await?;
    ensure!(answer?.into_body().collect().await?.to_bytes() == "ok");
    // Now it is.
    ended.await??;
    Ok(())
}

#[tokio::test]
async fn tunnels_count_among_the_connections() -> Result<()> {
    let bed = TestBed::serving(
        "maxConnections: 1, workers: 1",
        &["--insecure-listen-address=127.0.0.1:0"],
    )
    .await?;
    let mut client = bed
        .request("GET /", "Connection: Upgrade\r\nUpgrade: x\r\n\r\n")
        .await?;
    let (mut backend, _) = bed.accept().await?;
    backend
        .write_all(b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n")
        .await?;
    read_until(&mut client, "\r\n\r\n").await?;
    let open = "kube_bastion_connections_open 1\n";
    eventually("the tunnel to be counted", async || {
        Ok(bed.bastion.metrics().await?.contains(open))
    })
    .await?;
    let second = bed.client();
    ensure!(
        tokio::time::timeout(Duration::from_millis(300), second)
            .await
            .is_err(),
        "a second one must wait"
    );
    drop((client, backend));
    bed.client().await?;
    Ok(())
}

#[tokio::test]
async fn early_answers_that_nobody_reads_fill_no_memory() -> Result<()> {
    let bed = TestBed::new().await?;
    let _client = bed.request("GET /", "\r\n").await?;
    let (mut backend, _) = bed.accept().await?;
    let hint = format!(
        "HTTP/1.1 103 Early Hints\r\nLink: {}\r\n\r\n",
        "x".repeat(8000)
    )
    .repeat(100);
    let before = bed.bastion.resident()?;
    for _ in 0..64 {
        backend.write_all(hint.as_bytes()).await?;
    }
    let grown = bed.bastion.resident()?.saturating_sub(before);
    ensure!(
        grown < 16 << 20,
        "of 51 MB of early answers {grown} bytes stay"
    );
    Ok(())
}

#[tokio::test]
async fn http2_clients_reach_http1_backends() -> Result<()> {
    let bed = TestBed::new().await?;
    let stream = http2(bed.bastion.secure, &bed.folder.path().join("ca.crt")).await?;
    let io = hyper_util::rt::TokioIo::new(stream);
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(hyper_util::rt::TokioExecutor::new(), io).await?;
    tokio::spawn(connection);
    let request = http::Request::get(format!("https://bastion.test{PREFIX}/x?y"))
        .header("authorization", "Bearer t")
        .header("cookie", "a=1")
        .header("cookie", "b=2")
        .body(http_body_util::Empty::<bytes::Bytes>::new())?;
    let answer = tokio::spawn(async move { sender.send_request(request).await });
    let (mut backend, head) = bed.accept().await?;
    ensure!(
        head.starts_with("GET /x?y HTTP/1.1\r\n") && head.contains("Host: bastion.test"),
        "{head}"
    );
    ensure!(head.contains("Cookie: a=1; b=2"), "{head}");
    backend
        .write_all(b"HTTP/1.1 200 OK\r\nTrailer: X-Sum\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n2\r\nok\r\n0\r\nX-Sum: 7\r\n\r\n")
        .await?;
    let answer = answer.await??;
    ensure!(
        answer.status() == 200 && answer.headers().get("connection").is_none(),
        "{answer:?}"
    );
    let body = answer.into_body().collect().await?;
    ensure!(
        body.trailers()
            .is_some_and(|trailers| trailers["x-sum"] == "7"),
        "{body:?}"
    );
    ensure!(body.to_bytes() == "ok");
    Ok(())
}

#[tokio::test]
async fn a_changed_certificate_is_served_and_a_broken_one_is_not() -> Result<()> {
    let bed = TestBed::new().await?;
    let served = async || -> Result<Vec<u8>> {
        let stream = bed.client().await?;
        Ok(stream
            .get_ref()
            .1
            .peer_certificates()
            .context("a certificate")?[0]
            .to_vec())
    };
    let before = served().await?;
    let (certificate, key) = (
        bed.folder.path().join("bastion.crt"),
        bed.folder.path().join("bastion.key"),
    );
    std::fs::write(&key, "not a key")?;
    eventually("the broken key to be told", async || {
        Ok(bed.bastion.said().contains("the old one stays"))
    })
    .await?;
    ensure!(served().await? == before);
    // Of the same CA, so that the client still trusts it.
    let renewed = bed
        .ca
        .server(bed.folder.path(), "renewed", &["localhost"])?;
    std::fs::copy(&renewed.key, &key)?;
    std::fs::copy(&renewed.certificate, &certificate)?;
    eventually(
        "the new certificate",
        async || Ok(served().await? != before),
    )
    .await
}

#[tokio::test]
async fn without_certificates_a_self_signed_one_is_made_and_its_fingerprint_told() -> Result<()> {
    kube_bastion::tls::install_provider();
    let folder = tempfile::tempdir()?;
    let bastion = Bastion::start(&[&format!("--manifests-dir={}", folder.path().display())])?;
    let told = bastion.said();
    let (_, rest) = told
        .split_once(r#""sha256":""#)
        .context("the fingerprint is told")?;
    let (fingerprint, _) = rest.split_once('"').context("a JSON string")?;
    let output = Command::new("sh")
        .args([
            "-c",
            &format!(
                "openssl s_client -connect {} </dev/null 2>/dev/null | openssl x509 -noout -fingerprint -sha256",
                bastion.secure
            ),
        ])
        .output()?;
    let seen = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(
        seen.trim().ends_with(fingerprint) && fingerprint.len() == 95,
        "told {fingerprint}, seen {seen}"
    );
    Ok(())
}

#[tokio::test]
async fn plain_http_is_served_where_it_is_asked_for() -> Result<()> {
    let bed = TestBed::with(&["--insecure-listen-address=127.0.0.1:0"]).await?;
    let said = bed.bastion.said();
    let (_, rest) = said
        .split_once(r#""insecure":""#)
        .context("the port is told")?;
    let (address, _) = rest.split_once('"').context("a JSON string")?;
    let mut client = TcpStream::connect(address).await?;
    client
        .write_all(
            format!("GET {PREFIX}/ HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer t\r\n\r\n")
                .as_bytes(),
        )
        .await?;
    let (mut backend, head) = bed.accept().await?;
    ensure!(head.contains("X-Forwarded-Proto: http\r\n"), "{head}");
    backend.write_all(ANSWER).await?;
    ensure!(
        read_until(&mut client, "ok")
            .await?
            .starts_with("HTTP/1.1 200 ")
    );
    Ok(())
}

#[tokio::test]
async fn a_second_signal_ends_at_once() -> Result<()> {
    let mut bed = TestBed::new().await?;
    let mut client = bed
        .request("GET /", "Connection: Upgrade\r\nUpgrade: x\r\n\r\n")
        .await?;
    let (mut backend, _) = bed.accept().await?;
    backend
        .write_all(b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n")
        .await?;
    read_until(&mut client, "\r\n\r\n").await?;
    bed.bastion.signal(Signal::SIGTERM)?;
    eventually("the drain", async || {
        Ok(bed.bastion.said().contains("draining"))
    })
    .await?;
    client.write_all(b"x").await?;
    ensure!(backend.read(&mut [0]).await? == 1, "the tunnel goes on");
    bed.bastion.signal(Signal::SIGTERM)?;
    ensure!(
        backend.read(&mut [0]).await.unwrap_or(0) == 0,
        "the tunnel is cut"
    );
    ensure!(
        tokio::task::spawn_blocking(move || bed.bastion.wait())
            .await??
            .success()
    );
    Ok(())
}

#[tokio::test]
async fn the_deadline_of_the_drain_cuts_a_tunnel() -> Result<()> {
    let mut bed = TestBed::with(&["--drain-timeout=1s"]).await?;
    let mut client = bed
        .request("GET /", "Connection: Upgrade\r\nUpgrade: x\r\n\r\n")
        .await?;
    let (mut backend, _) = bed.accept().await?;
    backend
        .write_all(b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n")
        .await?;
    read_until(&mut client, "\r\n\r\n").await?;
    bed.bastion.signal(Signal::SIGTERM)?;
    // Both sides are held open here: nothing but the deadline ends them.
    let cut = tokio::time::timeout(Duration::from_secs(30), backend.read(&mut [0])).await;
    ensure!(cut.context("the tunnel outlived the drain")?.unwrap_or(0) == 0);
    read_all(&mut client).await;
    let said = tokio::task::spawn_blocking(move || {
        bed.bastion.wait().map(|ended| (ended, bed.bastion.said()))
    });
    let (ended, said) = said.await??;
    ensure!(
        ended.success() && said.contains("the drain's deadline is over"),
        "{ended}: {said}"
    );
    Ok(())
}

#[tokio::test]
async fn old_versions_of_tls_are_refused() -> Result<()> {
    let with_tls12 = async |bed: &TestBed| {
        let mut roots = rustls::RootCertStore::empty();
        roots.add_parsable_certificates(CertificateDer::pem_file_iter(&bed.ca.file)?.flatten());
        let provider = std::sync::Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = rustls::ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS12])?
            .with_root_certificates(roots)
            .with_no_client_auth();
        let stream = TcpStream::connect(bed.bastion.secure).await?;
        let connector = tokio_rustls::TlsConnector::from(std::sync::Arc::new(config));
        anyhow::Ok(connector.connect("localhost".try_into()?, stream).await?)
    };
    let bed = TestBed::new().await?;
    with_tls12(&bed).await.context("TLS 1.2 is served")?;
    // A ClientHello of TLS 1.1 (RFC 4346): version, random, no session, one suite, no compression.
    let hello = [&[3, 2][..], &[7; 32], &[0], &[0, 2, 0, 0x2f], &[1, 0]].concat();
    let length = u8::try_from(hello.len())?;
    let record = [&[22, 3, 1, 0, length + 4, 1, 0, 0, length][..], &hello].concat();
    let mut client = TcpStream::connect(bed.bastion.secure).await?;
    client.write_all(&record).await?;
    let mut alert = [0; 7];
    client.read_exact(&mut alert).await?;
    ensure!((alert[0], alert[5]) == (21, 2), "no fatal alert: {alert:?}");

    let strict = TestBed::with(&["--tls-min-version=VersionTLS13"]).await?;
    let refused = with_tls12(&strict)
        .await
        .err()
        .context("TLS 1.2 was served")?;
    ensure!(
        refused.to_string().contains("ProtocolVersion"),
        "{refused:#}"
    );
    strict.client().await.context("TLS 1.3 is served")?;
    Ok(())
}

#[tokio::test]
async fn a_broken_answer_resets_the_stream_of_http2() -> Result<()> {
    // CONFORMANCE C99: a clean end would make a whole of a part.
    let bed = TestBed::new().await?;
    for (head, part) in [
        ("Transfer-Encoding: chunked", "5\r\nhello\r\n"),
        ("Content-Length: 10", "hello"),
    ] {
        let stream = http2(bed.bastion.secure, &bed.folder.path().join("ca.crt")).await?;
        let (mut sender, connection) = h2::client::handshake(stream).await?;
        tokio::spawn(connection);
        let uri = format!("https://bastion.test{PREFIX}/");
        let request = http::Request::get(uri)
            .header("authorization", "Bearer t")
            .body(())?;
        let (answer, _) = sender.send_request(request, true)?;
        let (mut backend, _) = bed.accept().await?;
        backend
            .write_all(format!("HTTP/1.1 200 OK\r\n{head}\r\n\r\n{part}").as_bytes())
            .await?;
        let mut body = answer.await?.into_body();
        let first = body.data().await.context("a first part")??;
        ensure!(first == "hello", "{first:?}");
        drop(backend);
        let end = body.data().await.context("a clean end")?;
        let error = end.err().context("more of it")?;
        ensure!(error.is_reset() && error.is_remote(), "{error}");
    }
    Ok(())
}

#[tokio::test]
async fn the_bastion_is_no_target() -> Result<()> {
    // CONFORMANCE C110: it would ask itself until nothing is left.
    let bed = TestBed::new().await?;
    for address in [bed.bastion.secure, bed.bastion.admin] {
        let mut client = bed.client().await?;
        let path = format!(
            "/api/v1/namespaces/default/pods/https:p:{}/proxy/",
            address.port()
        );
        let head = format!(
            "GET {path} HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer t\r\nConnection: close\r\n\r\n"
        );
        client.write_all(head.as_bytes()).await?;
        let answer = read_all(&mut client).await;
        let told = "refusing to proxy to the bastion itself";
        ensure!(
            answer.starts_with("HTTP/1.1 503 ") && answer.contains(told),
            "{address}: {answer}"
        );
    }
    Ok(())
}

#[tokio::test]
async fn raises_the_limit_of_open_files_to_the_hard_one() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let mut command = Command::new("sh");
    let script = r#"ulimit -S -n 256 && exec "$0" "$@""#;
    command.args(["-c", script, env!("CARGO_BIN_EXE_kube-bastion"), "serve"]);
    command.arg("--manifests-dir").arg(folder.path());
    let bastion = Bastion::run(command)?;
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", bastion.pid()))?;
    let line = limits
        .lines()
        .find(|line| line.starts_with("Max open files"))
        .context("a limit of open files")?;
    let values: Vec<_> = line.split_whitespace().skip(3).take(2).collect();
    ensure!(values[0] == values[1] && values[0] != "256", "{line}");
    Ok(())
}

#[tokio::test]
async fn broken_manifests_show_nothing_of_their_content() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let bastion = Bastion::start(&["--manifests-dir", folder.path().to_str().context("UTF-8")?])?;
    bastion.ready().await?;
    let secret = "kind: Secret\nmetadata: {name: s}\ndata:\n  password: \"s3cr3t\n";
    std::fs::write(folder.path().join("secret.yaml"), secret)?;
    let broken = async || Ok(bastion.readyz().await?.1.contains("[!]manifests impaired"));
    eventually("the broken file to be noticed", broken).await?;
    let said = bastion.readyz().await?.1 + &bastion.said();
    ensure!(
        said.contains("secret.yaml") && said.contains("not YAML") && !said.contains("s3cr3t"),
        "{said}"
    );
    Ok(())
}

#[tokio::test]
async fn background_tasks_are_supervised_by_name() -> Result<()> {
    let bed = TestBed::new().await?;
    let metrics = bed.bastion.metrics().await?;
    for task in ["admin", "manifests", "serving-tls", "kubelet-tls"] {
        let line = format!(r#"kube_bastion_task_restarts_total{{task="{task}"}} 0"#);
        ensure!(metrics.contains(&line), "{line}:\n{metrics}");
    }
    Ok(())
}

/// The same on HTTP/2.
async fn http2(address: std::net::SocketAddr, ca: &Path) -> Result<TlsStream<TcpStream>> {
    support::client::tls_with_alpn(address, ca, None, &[b"h2"]).await
}
