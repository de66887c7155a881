//! `kube-bastion forward --socks`: SOCKS5 and HTTP by raw bytes and by curl, against a bastion that
//! the test plays.

use std::net::{Ipv4Addr, SocketAddr};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};

use crate::forward_api_server::objects;
use crate::forward_bastion::Bastion;
use crate::forward_program::{Forward, echo, expect_reset, fail, read_to_end, within};
use crate::support::eventually;
use crate::support::net::PROXY_ENVIRONMENT;
use crate::support::program::find_program;

const GREETING: &[u8] = &[5, 1, 0];
/// Request of a UDP association whose client may have any port.
const ASSOCIATE: &[u8] = &[5, 3, 0, 1, 0, 0, 0, 0, 0, 0];

async fn start(bastion: &Bastion) -> Result<Forward> {
    Forward::start(&bastion.kubeconfig, 1, &["--socks", "127.0.0.1:0"]).await
}

/// Returns a request with a name.
fn request(command: u8, name: &str, port: u16) -> Vec<u8> {
    let length = u8::try_from(name.len()).expect("a short name");
    let head = [5, command, 0, 3, length];
    [&head[..], name.as_bytes(), &port.to_be_bytes()].concat()
}

/// Greets, and sends a request. Returns the code of the reply.
async fn ask(stream: &mut TcpStream, request: &[u8]) -> Result<u8> {
    stream.write_all(GREETING).await?;
    let mut method = [0; 2];
    stream.read_exact(&mut method).await?;
    ensure!(method == [5, 0], "{method:?}");
    stream.write_all(request).await?;
    let mut reply = [0; 10];
    stream.read_exact(&mut reply).await?;
    ensure!(reply[0] == 5 && reply[2..4] == [0, 1], "{reply:?}");
    Ok(reply[1])
}

fn targets(bastion: &Bastion) -> Vec<String> {
    bastion.requests().into_iter().map(|(it, _)| it).collect()
}

/// Runs curl. Returns its output.
async fn curl(arguments: &[&str]) -> Result<String> {
    let curl = find_program(&["curl"], "on Debian, apt-get install curl")?;
    let mut command = Command::new(curl);
    command
        .args(["--silent", "--show-error", "--max-time", "25"])
        .args(arguments)
        .envs(PROXY_ENVIRONMENT);
    let output = tokio::task::spawn_blocking(move || command.output()).await??;
    let output = [output.stdout, output.stderr].concat();
    Ok(String::from_utf8(output)?)
}

#[tokio::test(flavor = "multi_thread")]
async fn socks_connects_to_names_and_addresses() -> Result<()> {
    let bastion = Bastion::start([]).await?;
    let forward = start(&bastion).await?;
    let ipv6 = [&[5, 1, 0, 4][..], &[0; 15], &[1, 0, 7]].concat();
    for request in [
        &request(1, "echo.shop.svc", 7)[..],
        &[5, 1, 0, 1, 10, 96, 0, 1, 0, 7],
        &ipv6,
    ] {
        let mut stream = forward.connect(0).await?;
        ensure!(ask(&mut stream, request).await? == 0);
        echo(&mut stream, "through the tunnel").await?;
        stream.shutdown().await?;
        ensure!(read_to_end(&mut stream).await?.is_empty());
    }
    let expected = ["echo.shop.svc:7", "10.96.0.1:7", "[::1]:7"];
    ensure!(targets(&bastion) == expected, "{:?}", targets(&bastion));
    // All in one, as a client that waits for nothing.
    let mut stream = forward.connect(0).await?;
    let bytes = [GREETING, &request(1, "echo.shop.svc", 7), b"early"].concat();
    stream.write_all(&bytes).await?;
    let mut answer = [0; 2 + 10 + 5];
    stream.read_exact(&mut answer).await?;
    ensure!(answer.ends_with(b"early"), "{answer:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn socks_replies_name_the_cause() -> Result<()> {
    let bastion = Bastion::start([]).await?;
    let forward = start(&bastion).await?;
    for (request, code) in [
        (&request(1, "forbidden.shop.svc", 80)[..], 2),
        (&request(1, "missing.shop.svc", 80), 4),
        (&request(1, "closed.shop.svc", 80), 5),
        (&request(2, "echo.shop.svc", 80), 7),
        (&[5, 1, 0, 9, 0, 0], 8),
        (&request(1, "echo.shop.svc:7@x", 80), 1),
        (&request(1, "", 80), 1),
        (&[4, 1, 0, 1, 0, 0, 0, 0, 0, 0], 1),
    ] {
        let mut stream = forward.connect(0).await?;
        let replied = ask(&mut stream, request).await?;
        ensure!(replied == code, "{request:?}: {replied}");
        ensure!(read_to_end(&mut stream).await?.is_empty());
    }
    let expected = ["forbidden", "missing", "closed"].map(|name| format!("{name}.shop.svc:80"));
    ensure!(targets(&bastion) == expected, "{:?}", targets(&bastion));
    let message = "forbidden.shop.svc:80: jane may not create";
    forward.expect_count(message, 1).await
}

#[tokio::test(flavor = "multi_thread")]
async fn malformed_handshakes_open_no_tunnel() -> Result<()> {
    let bastion = Bastion::start([]).await?;
    let forward = start(&bastion).await?;
    for (bytes, answer) in [
        (&[5, 0][..], &[5, 0xff][..]),
        (&[5, 1, 2], &[5, 0xff]),
        (&[5], &[]),
        (&[5, 9, 0], &[]),
        (&[5, 1, 0, 5, 1], &[5, 0]),
        (
            &[4, 1, 0, 80, 10, 0, 0, 1, 0],
            b"HTTP/1.1 400 Bad Request\r\n",
        ),
        (
            b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
            b"HTTP/1.1 400 Bad Request\r\n",
        ),
        (
            b"GET ftp://a/ HTTP/1.1\r\nHost: a\r\n\r\n",
            b"HTTP/1.1 400 Bad Request\r\n",
        ),
        (
            b"CONNECT a HTTP/1.1\r\nHost: a\r\n\r\n",
            b"HTTP/1.1 400 Bad Request\r\n",
        ),
        (
            b"CONNECT u@a:80 HTTP/1.1\r\nHost: a\r\n\r\n",
            b"HTTP/1.1 400 Bad Request\r\n",
        ),
        (b"\x16\x03\x01\n\n", b"HTTP/1.1 400 Bad Request\r\n"),
        (
            b"CONNECT echo.a.svc:7 HTTP/1.1\r\n",
            b"HTTP/1.1 400 Bad Request\r\n",
        ),
    ] {
        let mut stream = forward.connect(0).await?;
        stream.write_all(bytes).await?;
        stream.shutdown().await?;
        let mut received = Vec::new();
        // It may be reset behind the answer.
        let _ = stream.read_to_end(&mut received).await;
        let is_expected = match answer {
            [] => received.is_empty(),
            answer => received.starts_with(answer),
        };
        let text = String::from_utf8_lossy(&received);
        ensure!(is_expected, "{bytes:?}: {text}");
    }
    let long = format!("GET http://a/{} HTTP/1.1\r\n", "x".repeat(70_000));
    let mut stream = forward.connect(0).await?;
    stream.write_all(long.as_bytes()).await?;
    let mut received = [0; 12];
    stream.read_exact(&mut received).await?;
    ensure!(received == *b"HTTP/1.1 400", "{received:?}");
    ensure!(targets(&bastion).is_empty(), "{:?}", targets(&bastion));
    Ok(())
}

/// The next request of a client may be for another target, with credentials for it.
#[tokio::test(flavor = "multi_thread")]
async fn target_gets_one_request_of_a_client_only() -> Result<()> {
    let bastion = Bastion::start([]).await?;
    let forward = start(&bastion).await?;
    let other =
        "GET http://echo.shop.svc/ HTTP/1.1\r\nHost: echo.shop.svc\r\nCookie: secret\r\n\r\n";
    for (head, body, answer) in [
        (
            "GET http://kept.shop.svc/a HTTP/1.1\r\nHost: x\r\n",
            "",
            "HTTP/1.1 200 OK\r\n",
        ),
        (
            "POST http://kept.shop.svc/a HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n",
            "body",
            "HTTP/1.1 200 OK\r\n",
        ),
        (
            "POST http://kept.shop.svc/a HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n",
            "4\r\nbody\r\n0\r\n\r\n",
            "HTTP/1.1 200 OK\r\n",
        ),
        // One without chunks.
        (
            "GET http://kept.shop.svc/a HTTP/1.0\r\n",
            "",
            "HTTP/1.0 200 OK\r\n",
        ),
    ] {
        let mut stream = forward.connect(0).await?;
        let proxied = "Proxy-Connection: keep-alive\r\nProxy-Authorization: Basic eDp5\r\n\r\n";
        let bytes = [head, proxied, body, other].concat();
        stream.write_all(bytes.as_bytes()).await?;
        let mut response = Vec::new();
        // The unread request resets the connection behind the response.
        let _ = within(async { Ok(stream.read_to_end(&mut response).await) }).await?;
        let response = String::from_utf8(response)?.to_ascii_lowercase();
        ensure!(
            response.starts_with(&answer.to_ascii_lowercase()),
            "{head}: {response}"
        );
        ensure!(response.contains("hello"), "{head}: {response}");
        ensure!(!response.contains("keep-alive: "), "{head}: {response}");
        let is_chunked = response.contains("transfer-encoding: chunked\r\n");
        ensure!(
            is_chunked == answer.starts_with("HTTP/1.1"),
            "{head}: {response}"
        );
        let received = bastion.take_received();
        let line = head.split(' ').next().unwrap_or_default();
        ensure!(
            received.starts_with(&format!("{line} /a HTTP/1.1\r\n")),
            "{received}"
        );
        let received = received.to_ascii_lowercase();
        for expected in ["host: kept.shop.svc\r\n", "connection: close\r\n", body] {
            ensure!(received.contains(expected), "{head}: {received}");
        }
        for absent in ["proxy-", "secret", "host: x"] {
            ensure!(!received.contains(absent), "{head}: {received}");
        }
    }
    let expected = ["kept.shop.svc:80"; 4];
    ensure!(targets(&bastion) == expected, "{:?}", targets(&bastion));
    // A part of a response does not look like all of it.
    let mut stream = forward.connect(0).await?;
    stream
        .write_all(b"GET http://cut.shop.svc/ HTTP/1.0\r\n\r\n")
        .await?;
    expect_reset(&mut stream).await
}

#[tokio::test(flavor = "multi_thread")]
async fn curl_reaches_names_by_socks_and_http() -> Result<()> {
    let bastion = Bastion::start([]).await?;
    let forward = start(&bastion).await?;
    let proxy = forward.ports[0].to_string();
    let url = "http://http.shop.svc/path?a=b";
    for arguments in [
        &["--socks5-hostname", &proxy, url][..],
        &["--proxytunnel", "--proxy", &proxy, url],
        &[
            "--proxy",
            &proxy,
            "--proxy-user",
            "a:b",
            "-H",
            "Connection: x-hop",
            "-H",
            "X-Hop: 1",
            url,
        ],
    ] {
        let output = curl(arguments).await?.to_ascii_lowercase();
        ensure!(
            output.starts_with("get /path?a=b http/1.1\r\nhost: http.shop.svc\r\n"),
            "{arguments:?}: {output}"
        );
        for dropped in ["proxy-", "x-hop"] {
            ensure!(!output.contains(dropped), "{arguments:?}: {output}");
        }
    }
    let expected = ["http.shop.svc:80"; 3];
    ensure!(targets(&bastion) == expected, "{:?}", targets(&bastion));
    for (name, status) in [("forbidden", 403), ("missing", 404), ("closed", 502)] {
        let url = format!("http://{name}.shop.svc/");
        let arguments = ["--proxy", &proxy, "--write-out", "%{http_code}", &url];
        let output = curl(&arguments).await?;
        ensure!(output.ends_with(&status.to_string()), "{output}");
        ensure!(output.contains(&format!("(status {status})")), "{output}");
    }
    Ok(())
}

/// Opens a UDP association for the socket with this port, or for any with 0.
async fn associate(forward: &Forward, port: u16) -> Result<(TcpStream, SocketAddr)> {
    let mut stream = forward.connect(0).await?;
    stream.write_all(GREETING).await?;
    let head = ASSOCIATE[..8].to_vec();
    stream
        .write_all(&[head, port.to_be_bytes().to_vec()].concat())
        .await?;
    let mut answer = [0; 12];
    stream.read_exact(&mut answer).await?;
    ensure!(answer[..6] == [5, 0, 5, 0, 0, 1], "{answer:?}");
    let address: [u8; 4] = answer[6..10].try_into()?;
    let port = u16::from_be_bytes([answer[10], answer[11]]);
    let relay = SocketAddr::from((Ipv4Addr::from(address), port));
    ensure!(relay.ip() == forward.ports[0].ip(), "{relay}");
    Ok((stream, relay))
}

fn datagram(name: &str, payload: &[u8]) -> Vec<u8> {
    let mut datagram = request(0, name, 53);
    datagram[0] = 0;
    datagram.extend(payload);
    datagram
}

async fn receive(socket: &UdpSocket) -> Result<Vec<u8>> {
    let mut buffer = vec![0; 65_536];
    let length = within(async { Ok(socket.recv(&mut buffer).await?) }).await?;
    buffer.truncate(length);
    Ok(buffer)
}

#[tokio::test(flavor = "multi_thread")]
async fn udp_associations_relay_datagrams_of_their_client() -> Result<()> {
    let bastion = Bastion::start([]).await?;
    let forward = start(&bastion).await?;
    let (control, relay) = associate(&forward, 0).await?;
    let (client, other) = (
        UdpSocket::bind("127.0.0.1:0").await?,
        UdpSocket::bind("127.0.0.1:0").await?,
    );
    for socket in [&client, &other] {
        socket.connect(relay).await?;
    }
    // A fragment, what is not a datagram, and datagrams of another socket are dropped.
    let mut fragment = datagram("dropped.shop.svc", b"x");
    fragment[2] = 1;
    client.send(&fragment).await?;
    client.send(b"x").await?;
    for name in ["a.shop.svc", "b.shop.svc", "a.shop.svc"] {
        for payload in [&b"query"[..], b"", &[7; 9000]] {
            let sent = datagram(name, payload);
            client.send(&sent).await?;
            ensure!(receive(&client).await? == sent, "{name}");
        }
        other.send(&datagram("dropped.shop.svc", b"x")).await?;
    }
    let expected = ["udp a.shop.svc/53/", "udp b.shop.svc/53/"];
    ensure!(targets(&bastion) == expected, "{:?}", targets(&bastion));
    // It ends with its connection.
    drop(control);
    eventually("the end of both flows", async || Ok(bastion.resets() == 2)).await?;
    eventually("the end of the relay", async || {
        Ok(UdpSocket::bind(relay).await.is_ok())
    })
    .await?;
    // One that is for the port of a socket from the start.
    let (_control, relay) = associate(&forward, client.local_addr()?.port()).await?;
    for socket in [&client, &other] {
        socket.connect(relay).await?;
    }
    other.send(&datagram("dropped.shop.svc", b"x")).await?;
    let sent = datagram("c.shop.svc", b"query");
    client.send(&sent).await?;
    ensure!(receive(&client).await? == sent);
    let last = targets(&bastion);
    ensure!(last[2..] == ["udp c.shop.svc/53/"], "{last:?}");
    Ok(())
}

/// Each client has a descriptor, and each association two; without a free one, new clients wait.
#[tokio::test(flavor = "multi_thread")]
async fn missing_descriptors_end_neither_the_command_nor_its_connections() -> Result<()> {
    let bastion = Bastion::start([]).await?;
    let arguments = ["--socks", "127.0.0.1:0"];
    let mut forward = Forward::start_with_few_files(&bastion.kubeconfig, &arguments).await?;
    let mut first = forward.connect(0).await?;
    ensure!(ask(&mut first, &request(1, "echo.shop.svc", 7)).await? == 0);
    let mut association = forward.connect(0).await?;
    ensure!(ask(&mut association, ASSOCIATE).await? == 0);
    let mut clients = forward.use_up_files().await?;
    // The client was accepted with the last descriptor, or before: none is left for its socket.
    let code = ask(&mut clients[0], ASSOCIATE).await?;
    ensure!(code == 1, "{code}");
    echo(&mut first, "still open").await?;
    let mut last = clients.pop().expect("there are 60");
    clients.clear();
    ensure!(ask(&mut last, &request(1, "echo.shop.svc", 7)).await? == 0);
    echo(&mut last, "served later").await
}

#[tokio::test(flavor = "multi_thread")]
async fn pac_names_the_proxy() -> Result<()> {
    let bastion = Bastion::start(objects()).await?;
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("cluster.pac");
    let path = file.to_str().context("UTF-8")?;
    let arguments = ["svc/web", ":80", "--socks", "127.0.0.1:0", "--pac", path];
    let arguments = [&arguments[..], &["--cluster-domain", "example.test"]].concat();
    let forward = Forward::start(&bastion.kubeconfig, 2, &arguments).await?;
    let text = std::fs::read_to_string(&file)?;
    let proxy = forward.ports[1];
    ensure!(
        text.contains(&format!("return \"SOCKS5 {proxy}; PROXY {proxy}\""))
            && text.contains("\".svc.example.test\""),
        "{text}"
    );
    echo(&mut forward.connect(0).await?, "a target beside").await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn proxy_that_cannot_start_is_an_error_of_one_line() -> Result<()> {
    let bastion = Bastion::start([]).await?;
    let listener = std::net::TcpListener::bind("127.0.0.1:0")?;
    let taken = listener.local_addr()?.to_string();
    for (arguments, expected) in [
        (
            &["--socks", &taken][..],
            "is in use on 127.0.0.1 (--socks); choose another, or 0",
        ),
        (
            &["--socks", "example.com:1"],
            "is not an address to listen on",
        ),
        (&["--socks", "0", "--via=api-server"], "needs a bastion"),
        (
            &["--socks", "0", "--pac", "/nonexistent/pac"],
            "cannot write",
        ),
        (
            &["--socks", "0", "--pac", "-", "-o", "json"],
            "both write to standard output",
        ),
    ] {
        let error = fail(&bastion.kubeconfig, arguments)?;
        ensure!(error.contains(expected), "{arguments:?}: {error}");
    }
    Ok(())
}
