//! Control plane, backends and credentials that all peers share.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::json;
use tempfile::TempDir;

use crate::conf;
use crate::index::{GROWN_NETWORK, GROWN_PORT};
use crate::process::Server;
use crate::support::cluster::Cluster;
use crate::support::net::Namespace;
use crate::support::objects::Objects;
use crate::support::pki::Pair;

/// Paths of the backends.
pub const SMALL: &str = "/";
pub const LARGE: &str = "/large";
pub const UPLOAD: &str = "/upload";
pub const STALLED: &str = "/stalled";
/// Size of a large body.
pub const BODY_BYTES: u64 = 10 << 20;
/// Size of a body that does not fit into the buffers of kernel and proxies.
pub const STALLED_BYTES: u64 = 256 << 20;

/// Everything around the peers. The fields are dropped in this order.
pub struct Stage {
    _backends: Server,
    _content: TempDir,
    pub cluster: Cluster,
    pub namespace: Namespace,
    pub objects: Objects,
    pub backends: Vec<SocketAddr>,
    pub serving: Pair,
    /// Token of the caller, a service account.
    pub token: String,
    /// Kubeconfig of the bastions.
    pub kubeconfig: PathBuf,
}

impl Stage {
    /// Starts the control plane with the objects of `deploy/` and one service, and the backends in
    /// a network namespace.
    ///
    /// # Errors
    /// Returns an error if one of them does not start.
    pub async fn start() -> Result<Self> {
        let namespace = Namespace::new()?;
        let cluster = Cluster::start().await?;
        let folder = cluster.folder.path();
        let serving = cluster
            .ca
            .server(folder, "bench", &["localhost", "127.0.0.1"])?;
        cluster.kubectl(&["apply", "-k", "deploy/"])?;
        let objects = Objects::new(&cluster.client, "bench").await?;
        // The endpointslice controller ignores pods on unknown nodes.
        objects.node("node-1", namespace.address(2)).await?;
        let spec = json!({"selector": {"app": "web"}, "ports": [{"port": 80, "targetPort": 8080}]});
        objects.service("web", spec).await?;
        let mut backends = Vec::new();
        for last in 11..14 {
            let (address, ports) = (namespace.address(last), json!([{"containerPort": 8080}]));
            objects
                .pod(
                    &format!("web-{last}"),
                    json!({"app": "web"}),
                    address,
                    ports,
                )
                .await?;
            backends.push(SocketAddr::from((address, 8080)));
        }
        let caller = json!({"kind": "ServiceAccount", "name": "default", "namespace": "bench"});
        objects
            .allow(
                "caller",
                caller,
                &["services/proxy", "pods/portforward"],
                &["get", "create"],
            )
            .await?;
        let token = cluster.token("bench", "default", None).await?;
        let kubeconfig = cluster
            .bastion_kubeconfig("bastion", &cluster.server)
            .await?;
        route_grown_network(&namespace)?;
        let grown = format!("0.0.0.0:{GROWN_PORT}");
        let content = tempfile::tempdir()?;
        let conf = conf::backend(folder, content.path(), &backends, &grown)?;
        let nginx = ["netns", "exec", namespace.name(), "nginx", "-c"];
        let server = Server::start(Command::new("ip").args(nginx).arg(conf))?;
        Ok(Self {
            _backends: server,
            _content: content,
            cluster,
            namespace,
            objects,
            backends,
            serving,
            token,
            kubeconfig,
        })
    }

    /// Temporary folder of the run.
    pub fn folder(&self) -> &Path {
        self.cluster.folder.path()
    }
}

/// Makes a network local to the namespace. The route of the host goes with the namespace.
fn route_grown_network(namespace: &Namespace) -> Result<()> {
    let (name, gateway) = (namespace.name(), namespace.address(11).to_string());
    ip(&[
        "-n",
        name,
        "route",
        "add",
        "local",
        GROWN_NETWORK,
        "dev",
        "lo",
    ])?;
    ip(&["route", "add", GROWN_NETWORK, "via", &gateway])
}

fn ip(arguments: &[&str]) -> Result<()> {
    let output = Command::new("ip")
        .args(arguments)
        .output()
        .context("cannot run ip: install iproute2")?;
    ensure!(
        output.status.success(),
        "ip {}: {}",
        arguments.join(" "),
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(())
}
