//! `kube-bastion forward` through the bastion and through the API server, and beside
//! `kubectl port-forward`.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use futures::future::try_join_all;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::ServiceAccount;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::portforward::{ECHO, POD, RESETTING, SINK, backends};
use crate::fixture::{Fixture, SHOP};
use crate::support::backend::Backend;
use crate::support::cluster::KubeconfigUser;
use crate::support::eventually;
use crate::support::program::Program;
use crate::support::streaming_kubelet::StreamingKubelet;

const PREFIX: &str = "Forwarding from 127.0.0.1:";

/// Running program with the local ports that it has printed.
pub(super) struct Forward {
    pub(super) program: Program,
    pub(super) ports: Vec<SocketAddr>,
}

impl Forward {
    pub(super) async fn start(command: &mut Command, count: usize) -> Result<Self> {
        let mut program = Program::start(command)?;
        program.wait_for_line(PREFIX).await?;
        let mut ports = Vec::new();
        eventually("the lines of all ports", async || {
            let lines = program.output();
            let lines = lines.iter().filter_map(|line| line.strip_prefix(PREFIX));
            let numbers = lines.map(|line| line.split(' ').next().unwrap_or_default().parse());
            let numbers = numbers.collect::<Result<Vec<u16>, _>>()?;
            let addresses = numbers.into_iter();
            ports = addresses
                .map(|port| SocketAddr::from(([127, 0, 0, 1], port)))
                .collect();
            Ok(ports.len() == count)
        })
        .await?;
        Ok(Self { program, ports })
    }

    async fn connect(&self, port: usize) -> Result<TcpStream> {
        Ok(TcpStream::connect(self.ports[port]).await?)
    }

    /// Returns the name of the pod that a connection reaches.
    async fn name(&self, port: usize) -> Result<String> {
        let mut stream = self.connect(port).await?;
        let request = b"GET /name HTTP/1.1\r\nHost: web\r\nConnection: close\r\n\r\n";
        stream.write_all(request).await?;
        let mut response = String::new();
        stream.read_to_string(&mut response).await?;
        let name = response.split("\r\n\r\n").nth(1).context("a response")?;
        Ok(name.to_owned())
    }

    async fn is_running(&self, port: usize) -> bool {
        let Ok(mut stream) = self.connect(port).await else {
            return false;
        };
        echo(&mut stream, "running").await.is_ok()
    }
}

pub(super) fn forward(kubeconfig: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_kube-bastion"));
    command
        .args(["forward", "-n", SHOP, "--kubeconfig"])
        .arg(kubeconfig)
        .args(arguments);
    command
}

async fn echo(stream: &mut TcpStream, text: &str) -> Result<()> {
    stream.write_all(text.as_bytes()).await?;
    let mut answer = vec![0; text.len()];
    stream.read_exact(&mut answer).await?;
    ensure!(answer == text.as_bytes(), "{answer:?}");
    Ok(())
}

/// Creates an account that may look up targets and forward ports, not read slices. Returns its
/// kubeconfigs for the bastion and for the API server.
pub(super) async fn account(fixture: &Fixture, name: &str) -> Result<[PathBuf; 2]> {
    let objects = &fixture.objects;
    objects
        .create::<ServiceAccount>(json!({"metadata": {"name": name}}))
        .await?;
    let subject = || json!({"kind": "ServiceAccount", "name": name, "namespace": SHOP});
    let (create, read) = (format!("{name}-create"), format!("{name}-read"));
    objects
        .allow(&create, subject(), &["pods/portforward"], &["create"])
        .await?;
    objects
        .allow(&read, subject(), &["pods", "services"], &["get", "list"])
        .await?;
    let token = fixture.cluster.token(SHOP, name, None).await?;
    let user = KubeconfigUser::Token(&token);
    let cluster = &fixture.cluster;
    let bastion = format!("https://{}", fixture.bastion.secure);
    let through = |server: &str, suffix: &str| {
        let name = format!("{name}-{suffix}");
        cluster.kubeconfig(&name, server, &cluster.ca.file, &user)
    };
    Ok([
        through(&bastion, "bastion")?,
        through(&cluster.server, "api")?,
    ])
}

/// Services, pods and workloads on both ways, each connection to the next pod, also for a user with
/// the verb `create` alone on pods/portforward; the end of a pod ends no other connection.
pub async fn forward_reaches_services_pods_and_workloads(fixture: &mut Fixture) -> Result<()> {
    let kubelet =
        StreamingKubelet::start(&fixture.cluster, &fixture.namespace, "node-1", 2).await?;
    for (pod, last) in [("web-1", 11), ("web-2", 12), ("web-3", 13)] {
        kubelet.set_address(SHOP, pod, fixture.namespace.address(last))?;
    }
    let template = json!({"metadata": {"labels": {"app": "web"}},
        "spec": {"containers": [{"name": "c", "image": "none"}]}});
    let spec = json!({"replicas": 0, "selector": {"matchLabels": {"app": "web"}},
        "template": template});
    fixture
        .objects
        .create::<Deployment>(json!({"metadata": {"name": "web"}, "spec": spec}))
        .await?;
    let [bastion, restricted] = account(fixture, "forwarding").await?;
    let admin = fixture.cluster.admin_kubeconfig();
    for (kubeconfig, targets, shown) in [
        // The bastion of the scenarios passes no look-ups.
        (&bastion, &["svc/web", "pod/web-2"][..], "-> 80"),
        (&restricted, &["svc/web", "pod/web-2"], "-> 8080"),
        (&admin, &["svc/web", "pod/web-2", "deploy/web"], "-> 8080"),
    ] {
        let mut arguments = Vec::new();
        for target in targets {
            let port = if *target == "svc/web" { ":80" } else { ":8080" };
            arguments.extend([*target, port]);
        }
        let mut command = forward(kubeconfig, &arguments);
        let forward = Forward::start(&mut command, targets.len()).await?;
        forward_in_turn(&forward, targets)
            .await
            .with_context(|| format!("{targets:?}: {}", forward.program.output().join("\n")))?;
        let output = forward.program.output();
        ensure!(
            output.iter().any(|line| line.ends_with(shown)),
            "{output:?}"
        );
    }
    for kubeconfig in [&bastion, &restricted] {
        outlive_pod(fixture, &kubelet, kubeconfig).await?;
    }
    Ok(())
}

async fn forward_in_turn(forward: &Forward, targets: &[&str]) -> Result<()> {
    for (port, target) in targets.iter().enumerate() {
        let mut names = BTreeMap::<String, u32>::new();
        for _ in 0..9 {
            *names.entry(forward.name(port).await?).or_default() += 1;
        }
        let expected = if *target == "pod/web-2" {
            json!({"web-2": 9})
        } else {
            json!({"web-1": 3, "web-2": 3, "web-3": 3})
        };
        ensure!(json!(names) == expected, "{target}: {names:?}");
    }
    Ok(())
}

/// A pod is replaced while connections to it and to another are open.
async fn outlive_pod(
    fixture: &Fixture,
    kubelet: &StreamingKubelet,
    kubeconfig: &Path,
) -> Result<()> {
    let mut ended = Vec::new();
    for (name, last) in [("leaving", 34), ("staying", 35)] {
        let ports = json!([]);
        let address = fixture.namespace.address(last);
        let labels = json!({"app": "outlived"});
        fixture.objects.pod(name, labels, address, ports).await?;
        kubelet.set_address(SHOP, name, address)?;
        ended.push(Backend::start(&fixture.namespace, last, 8080, name, None)?);
    }
    let spec =
        json!({"selector": {"app": "outlived"}, "ports": [{"port": 80, "targetPort": 8080}]});
    fixture.objects.service("outlived", spec).await?;
    fixture.wait_until_known("services/outlived:80").await?;
    let mut command = forward(kubeconfig, &["svc/outlived", ":80"]);
    let forward = Forward::start(&mut command, 1).await?;
    let mut names = Vec::new();
    eventually("connections to both pods", async || {
        names.push(forward.name(0).await?);
        Ok(names.contains(&"leaving".into()) && names.contains(&"staying".into()))
    })
    .await?;
    fixture.objects.delete_pod("leaving").await?;
    ended.remove(0).kill().await;
    eventually("all connections to the other pod", async || {
        for _ in 0..6 {
            // The first ones may precede the news of the deletion.
            if forward.name(0).await.ok().as_deref() != Some("staying") {
                return Ok(false);
            }
        }
        Ok(true)
    })
    .await
    .with_context(|| forward.program.output().join("\n"))?;
    fixture.objects.delete_pod("staying").await?;
    fixture
        .objects
        .delete::<k8s_openapi::api::core::v1::Service>("outlived")
        .await
}

/// Events that a session survives: the table of docs/desk.md.
#[derive(Debug, PartialEq, Eq)]
struct Survived {
    parallel: bool,
    half_close: bool,
    gibibyte: bool,
    reset: bool,
    refused: bool,
}

/// 100 parallel connections, a half-close, a transfer of 1 GiB, a reset by the backend, and a port without a listener.
pub async fn forward_survives_what_ends_kubectl_port_forward(fixture: &mut Fixture) -> Result<()> {
    let kubelet =
        StreamingKubelet::start(&fixture.cluster, &fixture.namespace, "node-1", 2).await?;
    kubelet.set_address(SHOP, POD, fixture.namespace.address(11))?;
    let _backends = backends(fixture)?;
    let [bastion, _] = account(fixture, "survivor").await?;
    let admin = fixture.cluster.admin_kubeconfig();
    let ports = [ECHO, SINK, RESETTING, 7005].map(|port| format!(":{port}"));
    let arguments: Vec<_> = ports.iter().map(String::as_str).collect();
    let pod = format!("pod/{POD}");
    let arguments = [&[&*pod], &arguments[..]].concat();
    for kubeconfig in [&bastion, &admin] {
        let survived = survive(&|| forward(kubeconfig, &arguments)).await?;
        let all = Survived {
            parallel: true,
            half_close: true,
            gibibyte: true,
            reset: true,
            refused: true,
        };
        ensure!(survived == all, "{survived:?}");
    }
    let kubectl = || {
        let mut command = super::kubectl(fixture, &admin);
        command
            .args(["port-forward", "--address=127.0.0.1"])
            .args(&arguments);
        command
    };
    let survived = survive(&kubectl).await?;
    let expected = Survived {
        parallel: true,
        half_close: true,
        gibibyte: true,
        reset: false,
        refused: false,
    };
    ensure!(survived == expected, "{survived:?}");
    Ok(())
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

/// Starts a program for each event, and finds out if it still forwards after it.
async fn survive(command: &impl Fn() -> Command) -> Result<Survived> {
    let start = || async { Forward::start(&mut command(), 4).await };
    let forward = start().await?;
    let parallel = try_join_all((0..100).map(async |number| {
        let mut stream = forward.connect(0).await?;
        for _ in 0..3 {
            echo(&mut stream, &format!("{number} ").repeat(2000)).await?;
        }
        anyhow::Ok(())
    }));
    let parallel = parallel.await.is_ok() && forward.is_running(0).await;
    let forward = start().await?;
    let mut stream = forward.connect(1).await?;
    stream.write_all(b"request").await?;
    stream.shutdown().await?;
    let mut response = String::new();
    let half_close = stream.read_to_string(&mut response).await.is_ok() && response == "7 bytes";
    let gibibyte = send_gibibyte(&forward).await?;
    let mut survived = Vec::new();
    for port in [2, 3] {
        let forward = start().await?;
        let mut stream = forward.connect(port).await?;
        // Fails if the connection is reset already.
        let _ = stream.write_all(b"x").await;
        let _ = stream.read_to_end(&mut Vec::new()).await;
        // kubectl ends after it has closed the connection.
        let mut is_running = true;
        for _ in 0..20 {
            is_running &= forward.is_running(0).await;
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
        survived.push(is_running);
    }
    Ok(Survived {
        parallel,
        half_close,
        gibibyte,
        reset: survived[0],
        refused: survived[1],
    })
}
