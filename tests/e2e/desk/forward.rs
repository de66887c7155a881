//! `kube-bastion forward` through the bastion and through the API server.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::ServiceAccount;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::fixture::{Fixture, SHOP};
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

    pub(super) async fn connect(&self, port: usize) -> Result<TcpStream> {
        Ok(TcpStream::connect(self.ports[port]).await?)
    }

    /// Returns the name of the pod that a connection reaches.
    pub(super) async fn name(&self, port: usize) -> Result<String> {
        let mut stream = self.connect(port).await?;
        let request = b"GET /name HTTP/1.1\r\nHost: web\r\nConnection: close\r\n\r\n";
        stream.write_all(request).await?;
        let mut response = String::new();
        stream.read_to_string(&mut response).await?;
        let name = response.split("\r\n\r\n").nth(1).context("a response")?;
        Ok(name.to_owned())
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
/// the verb `create` alone on pods/portforward.
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
