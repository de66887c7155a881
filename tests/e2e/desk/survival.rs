//! Events that a session of `kube-bastion forward` survives, beside `kubectl port-forward`: the table
//! of docs/desk.md.

use std::net::SocketAddr;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use futures::future::try_join_all;
use k8s_openapi::api::core::v1::Service;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio_util::task::AbortOnDropHandle;

use super::forward::{Forward, account, forward};
use super::kubectl;
use super::portforward::{CLOSED, ECHO, POD, RESETTING, SINK, backends};
use crate::fixture::{Fixture, SHOP};
use crate::support::backend::Backend;
use crate::support::eventually;
use crate::support::program::Program;
use crate::support::streaming_kubelet::StreamingKubelet;
use crate::tunnels::publish;

/// The Service of the pods that end, and their last octets.
const OUTLIVED: &str = "outlived";
const ENDING: [(&str, u8); 2] = [("ending-1", 34), ("ending-2", 35)];
/// The Service with a UDP port, and the last octet of its pod.
const DATAGRAMS: &str = "datagrams";
const DATAGRAMS_LAST: u8 = 37;

/// Events that a session survives.
#[derive(Debug, PartialEq, Eq)]
struct Survived {
    parallel: bool,
    half_close: bool,
    gibibyte: bool,
    reset: bool,
    refused: bool,
    pod_deleted: bool,
    udp: bool,
}

/// A program that forwards the ports of its arguments.
struct Forwarder<'a> {
    command: &'a dyn Fn(&[&str]) -> Command,
    /// The argument for a UDP port, of any local port.
    udp: &'a str,
    /// True if a failed connection is expected to end the program.
    ends: bool,
}

/// 100 parallel connections, a half-close, a transfer of 1 GiB, a reset by the backend, a port without a listener, the
/// end of a pod, and a UDP port.
pub async fn forward_survives_what_ends_kubectl_port_forward(fixture: &mut Fixture) -> Result<()> {
    let kubelet =
        StreamingKubelet::start(&fixture.cluster, &fixture.namespace, "node-1", 2).await?;
    kubelet.set_address(SHOP, POD, fixture.namespace.address(11))?;
    let _backends = backends(fixture)?;
    let _datagrams = datagrams(fixture).await?;
    let [bastion, restricted] = account(fixture, "survivor").await?;
    let admin = fixture.cluster.admin_kubeconfig();
    for (kubeconfig, udp) in [(&bastion, true), (&admin, false)] {
        let forwarder = Forwarder {
            command: &|arguments| forward(kubeconfig, arguments),
            udp: ":7/udp",
            ends: false,
        };
        let survived = forwarder.survive(fixture, &kubelet).await?;
        let expected = Survived {
            parallel: true,
            half_close: true,
            gibibyte: true,
            reset: true,
            refused: true,
            pod_deleted: true,
            udp,
        };
        ensure!(survived == expected, "{survived:?}");
    }
    let forwarder = Forwarder {
        command: &|arguments| forward(&restricted, arguments),
        udp: ":7/udp",
        ends: false,
    };
    ensure!(
        forwarder.pod_deleted(fixture, &kubelet).await?,
        "for a user that may not read slices"
    );
    let forwarder = Forwarder {
        command: &|arguments| {
            let mut command = kubectl(fixture, &admin);
            command
                .args(["port-forward", "--address=127.0.0.1"])
                .args(arguments);
            command
        },
        udp: ":7",
        ends: true,
    };
    let survived = forwarder.survive(fixture, &kubelet).await?;
    let expected = Survived {
        parallel: true,
        half_close: true,
        gibibyte: true,
        reset: false,
        refused: false,
        pod_deleted: false,
        udp: false,
    };
    ensure!(survived == expected, "{survived:?}");
    Ok(())
}

/// Publishes a UDP port that echoes.
async fn datagrams(fixture: &Fixture) -> Result<AbortOnDropHandle<()>> {
    let address = fixture.namespace.address(DATAGRAMS_LAST);
    let socket = fixture.namespace.bind_udp(SocketAddr::from((address, 7)))?;
    let socket = UdpSocket::from_std(socket)?;
    publish(fixture, DATAGRAMS, (7, "UDP"), &[address]).await?;
    let serve = async move {
        let mut buffer = [0; 64];
        while let Ok((length, peer)) = socket.recv_from(&mut buffer).await {
            let _ = socket.send_to(&buffer[..length], peer).await;
        }
    };
    Ok(AbortOnDropHandle::new(tokio::spawn(serve)))
}

impl Forwarder<'_> {
    async fn start(&self, arguments: &[&str], ports: usize) -> Result<Forward> {
        Forward::start(&mut (self.command)(arguments), ports).await
    }

    /// Starts a session with the ports of [`backends`].
    async fn start_pod(&self) -> Result<Forward> {
        let ports = [ECHO, SINK, RESETTING, CLOSED].map(|port| format!(":{port}"));
        let ports: Vec<_> = ports.iter().map(String::as_str).collect();
        let pod = format!("pod/{POD}");
        self.start(&[&[&*pod], &ports[..]].concat(), ports.len())
            .await
    }

    /// Starts a session for each event, and finds out if it still forwards after it.
    async fn survive(&self, fixture: &Fixture, kubelet: &StreamingKubelet) -> Result<Survived> {
        let forward = self.start_pod().await?;
        let parallel = try_join_all((0..100).map(async |number| {
            let mut stream = forward.connect(0).await?;
            for _ in 0..3 {
                echo(&mut stream, &format!("{number} ").repeat(2000)).await?;
            }
            anyhow::Ok(())
        }));
        let parallel = parallel.await.is_ok() && is_running(&forward).await;
        let forward = self.start_pod().await?;
        Ok(Survived {
            parallel,
            half_close: half_close(&forward).await?,
            gibibyte: send_gibibyte(&forward).await?,
            reset: self.goes_on_after(2).await?,
            refused: self.goes_on_after(3).await?,
            pod_deleted: self.pod_deleted(fixture, kubelet).await?,
            udp: self.udp().await?,
        })
    }

    /// Connects to a port whose connections fail.
    async fn goes_on_after(&self, port: usize) -> Result<bool> {
        let forward = self.start_pod().await?;
        let mut stream = forward.connect(port).await?;
        // Fails if the connection is reset already.
        let _ = stream.write_all(b"x").await;
        let _ = stream.read_to_end(&mut Vec::new()).await;
        // kubectl ends after it has closed the connection.
        let checks = if self.ends { 200 } else { 20 };
        for _ in 0..checks {
            if !is_running(&forward).await {
                return Ok(false);
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        Ok(true)
    }

    /// Deletes the pod of a connection while another one is ready. Returns true if new connections
    /// reach the other one.
    async fn pod_deleted(&self, fixture: &Fixture, kubelet: &StreamingKubelet) -> Result<bool> {
        let (objects, namespace) = (&fixture.objects, &fixture.namespace);
        let mut backends = Vec::new();
        for (name, last) in ENDING {
            let (labels, address) = (json!({"app": OUTLIVED}), namespace.address(last));
            objects.pod(name, labels, address, json!([])).await?;
            kubelet.set_address(SHOP, name, address)?;
            backends.push((name, Backend::start(namespace, last, 8080, name, None)?));
        }
        let ports = json!([{"port": 80, "targetPort": 8080}]);
        let spec = json!({"selector": {"app": OUTLIVED}, "ports": ports});
        objects.service(OUTLIVED, spec).await?;
        let target = format!("services/{OUTLIVED}:80");
        fixture.wait_until_known(&target).await?;

        let forward = self.start(&[&format!("svc/{OUTLIVED}"), ":80"], 1).await?;
        let deleted = forward.name(0).await?;
        objects.delete_pod(&deleted).await?;
        let of_pod = backends.extract_if(.., |(name, _)| *name == deleted);
        for (_, backend) in of_pod.collect::<Vec<_>>() {
            backend.kill().await;
        }
        let (other, _) = backends.first().context("another pod")?;
        let mut running = true;
        eventually("connections to the other pod, or the end", async || {
            // The first ones may precede the news of the deletion.
            for _ in 0..6 {
                if forward.name(0).await.ok().as_deref() != Some(other) {
                    running = forward.connect(0).await.is_ok();
                    return Ok(!running);
                }
            }
            Ok(true)
        })
        .await
        .with_context(|| forward.program.output().join("\n"))?;
        objects.delete_pod(other).await?;
        objects.delete::<Service>(OUTLIVED).await?;
        Ok(running)
    }

    /// Returns false if the program rejects a UDP port.
    async fn udp(&self) -> Result<bool> {
        const PREFIX: &str = "Forwarding from 127.0.0.1:";
        let target = format!("svc/{DATAGRAMS}");
        let mut program = Program::start(&mut (self.command)(&[&target, self.udp]))?;
        let Ok(line) = program.wait_for_line(PREFIX).await else {
            let output = program.output().join("\n");
            ensure!(output.contains("UDP"), "{output}");
            return Ok(false);
        };
        let port = line.trim_start_matches(PREFIX).split(' ').next();
        let port: u16 = port.context("a port")?.parse()?;
        let socket = UdpSocket::bind("127.0.0.1:0").await?;
        socket.connect(("127.0.0.1", port)).await?;
        eventually("an answer", async || {
            socket.send(b"datagram").await?;
            let mut answer = [0; 64];
            let received = tokio::time::timeout(Duration::from_secs(1), socket.recv(&mut answer));
            Ok(matches!(received.await, Ok(Ok(length)) if answer[..length] == *b"datagram"))
        })
        .await
        .with_context(|| program.output().join("\n"))?;
        Ok(true)
    }
}

async fn is_running(forward: &Forward) -> bool {
    let Ok(mut stream) = forward.connect(0).await else {
        return false;
    };
    echo(&mut stream, "running").await.is_ok()
}

async fn echo(stream: &mut TcpStream, text: &str) -> Result<()> {
    stream.write_all(text.as_bytes()).await?;
    let mut answer = vec![0; text.len()];
    stream.read_exact(&mut answer).await?;
    ensure!(answer == text.as_bytes(), "{answer:?}");
    Ok(())
}

async fn half_close(forward: &Forward) -> Result<bool> {
    let mut stream = forward.connect(1).await?;
    stream.write_all(b"request").await?;
    stream.shutdown().await?;
    let mut response = String::new();
    let read = stream.read_to_string(&mut response).await;
    Ok(read.is_ok() && response == "7 bytes")
}

/// Sends 1 GiB to the backend that counts. Returns true if it has received all.
async fn send_gibibyte(forward: &Forward) -> Result<bool> {
    const LENGTH: usize = 1 << 30;
    let mut stream = forward.connect(1).await?;
    let chunk = vec![7; 1 << 20];
    for _ in 0..LENGTH / chunk.len() {
        if stream.write_all(&chunk).await.is_err() {
            return Ok(false);
        }
    }
    stream.shutdown().await?;
    let mut response = String::new();
    let read = stream.read_to_string(&mut response).await;
    Ok(read.is_ok() && response == format!("{LENGTH} bytes"))
}
