//! `kube-bastion forward` of UDP ports through a bastion: tunnels of CONNECT-UDP.

use std::net::SocketAddr;

use anyhow::{Context, Result, ensure};
use tokio::net::UdpSocket;

use crate::forward_api_server::objects;
use crate::forward_bastion::Bastion;
use crate::forward_program::{Forward, echo, fail, within};
use crate::support::eventually;

async fn client(port: SocketAddr) -> Result<UdpSocket> {
    let socket = UdpSocket::bind("127.0.0.1:0").await?;
    socket.connect(port).await?;
    Ok(socket)
}

async fn receive(socket: &UdpSocket) -> Result<Vec<u8>> {
    let mut buffer = vec![0; 65_536];
    let length = within(async { Ok(socket.recv(&mut buffer).await?) }).await?;
    buffer.truncate(length);
    Ok(buffer)
}

/// Sends a datagram and expects it back.
async fn exchange(socket: &UdpSocket, payload: &[u8]) -> Result<()> {
    socket.send(payload).await?;
    let answer = receive(socket).await?;
    ensure!(answer == payload, "{} bytes", answer.len());
    Ok(())
}

fn udp_requests(bastion: &Bastion) -> Vec<String> {
    let requests = bastion.requests().into_iter();
    let requests = requests.filter_map(|(target, _)| Some(target.strip_prefix("udp ")?.to_owned()));
    requests.collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn each_client_has_a_flow_of_its_own() -> Result<()> {
    let bastion = Bastion::start(objects()).await?;
    let arguments = ["svc/web", ":dns/udp", ":80", "deploy/web", ":7@udp"];
    let forward = Forward::start(&bastion.kubeconfig, 3, &arguments).await?;
    let (first, second) = (
        client(forward.ports[0]).await?,
        client(forward.ports[0]).await?,
    );
    for payload in [&b"query"[..], b"", &[7; 1200], &vec![8; 60_000]] {
        exchange(&first, payload).await?;
        exchange(&second, payload).await?;
    }
    echo(&mut forward.connect(1).await?, "a stream of TCP beside").await?;
    exchange(&client(forward.ports[2]).await?, b"a pod").await?;
    let requests = udp_requests(&bastion);
    ensure!(
        requests[..2] == ["web.default.svc/53/", "web.default.svc/53/"]
            && requests[2].ends_with(".default.pod/7/")
            && requests.len() == 3,
        "{requests:?}"
    );
    ensure!(bastion.connections() == 1, "{}", bastion.connections());
    ensure!(
        forward.count("-> 53/udp") >= 1,
        "{:?}",
        forward.program.output()
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn flow_that_ends_is_opened_again_by_the_next_datagram() -> Result<()> {
    let bastion = Bastion::start([]).await?;
    let forward = Forward::start(&bastion.kubeconfig, 1, &["svc/once", ":53/udp"]).await?;
    let socket = client(forward.ports[0]).await?;
    for flows in 1..4 {
        // The end of the flow before may be on its way, and takes a datagram with it.
        eventually("an answer", async || {
            socket.send(b"query").await?;
            let answer = receive(&socket);
            let answer = tokio::time::timeout(std::time::Duration::from_millis(200), answer).await;
            Ok(answer.is_ok())
        })
        .await?;
        ensure!(udp_requests(&bastion).len() >= flows);
    }
    bastion.cut();
    eventually("an answer through another connection", async || {
        socket.send(b"query").await?;
        let answer = receive(&socket);
        let answer = tokio::time::timeout(std::time::Duration::from_millis(200), answer).await;
        Ok(answer.is_ok() && bastion.connections() == 2)
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn least_recently_used_flow_makes_room() -> Result<()> {
    const LIMIT: usize = 64;
    let bastion = Bastion::start([]).await?;
    let forward = Forward::start(&bastion.kubeconfig, 1, &["svc/a", ":53/udp"]).await?;
    let mut sockets = Vec::new();
    for _ in 0..=LIMIT {
        let socket = client(forward.ports[0]).await?;
        exchange(&socket, b"query").await?;
        sockets.push(socket);
    }
    eventually("the end of one flow", async || Ok(bastion.resets() == 1)).await?;
    // The second keeps its flow, and the first gets another, in the place of the third.
    exchange(&sockets[1], b"query").await?;
    ensure!(udp_requests(&bastion).len() == LIMIT + 1);
    exchange(&sockets[0], b"query").await?;
    exchange(&sockets[1], b"query").await?;
    ensure!(udp_requests(&bastion).len() == LIMIT + 2);
    eventually(
        "the end of another flow",
        async || Ok(bastion.resets() == 2),
    )
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn refusals_of_flows_are_printed_once() -> Result<()> {
    let bastion = Bastion::start([]).await?;
    let forward = Forward::start(&bastion.kubeconfig, 1, &["svc/forbidden", ":53/udp"]).await?;
    let message = "service/forbidden: jane may not create services/portforward (status 403)";
    let socket = client(forward.ports[0]).await?;
    eventually("the message", async || {
        socket.send(b"query").await?;
        Ok(forward.count(message) == 1)
    })
    .await?;
    for _ in 0..100 {
        socket.send(b"query").await?;
    }
    ensure!(forward.count(message) == 1);
    let count = udp_requests(&bastion).len();
    ensure!(count < 10, "{count} requests");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn ports_are_looked_up_by_protocol() -> Result<()> {
    let bastion = Bastion::start(objects()).await?;
    for (port, expected) in [
        ("dns", "is of protocol UDP; use dns/udp"),
        (
            "echo/udp",
            r#"service/web has no port "echo"; its ports: 53"#,
        ),
    ] {
        let error = fail(&bastion.kubeconfig, &["svc/web", port])?;
        ensure!(error.contains(expected), "{error}");
    }
    let taken = std::net::UdpSocket::bind("127.0.0.1:0")?;
    let port = taken.local_addr().context("bound")?.port();
    let argument = format!("{port}:dns/udp");
    let arguments = ["svc/web", &argument, "--address=127.0.0.1"];
    let error = fail(&bastion.kubeconfig, &arguments)?;
    ensure!(error.contains("is in use on 127.0.0.1"), "{error}");
    Ok(())
}
