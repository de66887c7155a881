//! Proxies under load, and their start.

use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};

use crate::conf;
use crate::process::{Process, Server};
use crate::settings::Settings;
use crate::stage::{SMALL, Stage};
use crate::support::bastion::Bastion;
use crate::support::client::Client;
use crate::support::eventually;
use crate::workloads::{APISERVER, BASELINE, BASTION, HAPROXY, HAPROXY_TCP, NGINX};

/// One proxy.
pub struct Peer {
    pub name: &'static str,
    pub address: SocketAddr,
    /// Path before that of the backend.
    pub prefix: String,
    pub process: Process,
}

impl Peer {
    /// Returns the path of a resource of the backends.
    pub fn path(&self, suffix: &str) -> String {
        format!("{}{suffix}", self.prefix)
    }

    pub fn url(&self, suffix: &str) -> String {
        format!("https://{}{}", self.address, self.path(suffix))
    }
}

/// Starts all proxies, and waits until they reach the backends.
///
/// # Errors
/// Returns an error if one of them does not.
pub async fn start_all(stage: &Stage, settings: &Settings) -> Result<Vec<Peer>> {
    let own = Path::new(env!("CARGO_BIN_EXE_kube-bastion"));
    let mut peers = vec![bastion(stage, BASTION, own, &[])?];
    if let Some(baseline) = &settings.baseline {
        peers.push(bastion(stage, BASELINE, baseline, &[])?);
    }
    peers.push(haproxy(stage)?);
    peers.push(nginx(stage)?);
    for peer in &peers {
        reach(stage, peer).await?;
    }
    Ok(peers)
}

/// Returns kube-apiserver as a peer.
///
/// # Errors
/// Returns an error if it does not reach the backends.
pub async fn apiserver(stage: &Stage) -> Result<Peer> {
    let address = stage.cluster.server.trim_start_matches("https://");
    let peer = Peer {
        name: APISERVER,
        address: address.parse()?,
        prefix: "/api/v1/namespaces/bench/services/web:80/proxy".into(),
        process: Process::Apiserver(stage.cluster.apiserver_pid()),
    };
    reach(stage, &peer).await?;
    Ok(peer)
}

/// Starts the proxies in front of the API server.
///
/// # Errors
/// Returns an error if one of them does not reach it.
pub async fn to_api_server(stage: &Stage) -> Result<Vec<Peer>> {
    // The suffix of paths becomes a query, which the API server ignores.
    let prefix = "/version?";
    let own = Path::new(env!("CARGO_BIN_EXE_kube-bastion"));
    let mut peers = vec![bastion(stage, BASTION, own, &["--api-servers"])?];
    for (name, tcp) in [(HAPROXY, false), (HAPROXY_TCP, true)] {
        let port = free_port()?;
        let server = stage.cluster.server.trim_start_matches("https://");
        let ca = &stage.cluster.ca.file;
        let file =
            conf::haproxy_to_api_server(stage.folder(), port, &stage.serving, server, ca, tcp)?;
        let server = Server::start(Command::new("haproxy").arg("-f").arg(file))?;
        peers.push(plain_peer(name, port, server));
    }
    for peer in &mut peers {
        peer.prefix = prefix.into();
        reach(stage, peer).await?;
    }
    Ok(peers)
}

/// Starts the bastion.
///
/// # Errors
/// Returns an error if it does not start.
pub fn bastion(stage: &Stage, name: &'static str, binary: &Path, more: &[&str]) -> Result<Peer> {
    let mut command = Command::new(binary);
    command
        .arg("serve")
        .args(more)
        .arg(format!("--kubeconfig={}", stage.kubeconfig.display()))
        .arg(format!(
            "--tls-cert-file={}",
            stage.serving.certificate.display()
        ))
        .arg(format!(
            "--tls-private-key-file={}",
            stage.serving.key.display()
        ));
    let bastion = Bastion::run(command)?;
    Ok(Peer {
        name,
        address: bastion.secure,
        prefix: "/api/v1/namespaces/bench/services/web/proxy".into(),
        process: Process::Bastion(Box::new(bastion)),
    })
}

fn haproxy(stage: &Stage) -> Result<Peer> {
    let port = free_port()?;
    let file = conf::haproxy(stage.folder(), port, &stage.serving, &stage.backends)?;
    let server = Server::start(Command::new("haproxy").arg("-f").arg(file))?;
    Ok(plain_peer(HAPROXY, port, server))
}

fn nginx(stage: &Stage) -> Result<Peer> {
    let port = free_port()?;
    let file = conf::nginx(stage.folder(), port, &stage.serving, &stage.backends)?;
    let server = Server::start(Command::new("nginx").arg("-c").arg(file))?;
    Ok(plain_peer(NGINX, port, server))
}

/// Returns a peer on a port of loopback that adds no prefix to paths.
pub fn plain_peer(name: &'static str, port: u16, server: Server) -> Peer {
    Peer {
        name,
        address: SocketAddr::from(([127, 0, 0, 1], port)),
        prefix: String::new(),
        process: Process::Server(server),
    }
}

async fn reach(stage: &Stage, peer: &Peer) -> Result<()> {
    let mut last = String::new();
    let what = format!("{} to reach the backends", peer.name);
    let reached = eventually(&what, async || {
        let (ca, token) = (&stage.cluster.ca.file, Some(&*stage.token));
        let answer = match Client::connect(peer.address, ca, token, None).await {
            Ok(mut client) => client.get(&peer.path(SMALL)).await,
            Err(error) => Err(error),
        };
        let is_reached = answer.as_ref().is_ok_and(|answer| answer.status == 200);
        last = format!("{answer:?}");
        Ok(is_reached)
    });
    reached.await.with_context(|| last)
}

/// Returns a port that is free now. HAProxy and nginx read theirs from a file, so it cannot be
/// reserved.
pub fn free_port() -> Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}
