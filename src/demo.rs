//! Demo: the bastion, a built-in cluster from manifests, and backends with and without TLS on
//! loopback, in one process.

mod backends;
mod dashboard;
mod files;
mod manifests;
mod server;
mod websocket;

use std::fs::Permissions;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::Args;

use crate::app::{Addresses, Bound};
use crate::config::{Config, Log, SourceKind, ValueError, parse_address};
use crate::drain::Drain;
use crate::telemetry;
use files::Files;

/// Events that the demo prints: warnings, switched endpoints, and changed manifests. `notify` warns
/// of the directory that the demo removes at its end.
const LOG_LEVEL: &str =
    "warn,notify=error,kube_bastion::demo=info,kube_bastion::watch::manifests=info";
/// Time for open requests after Ctrl-C. The demo has no long ones.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(2);

/// Examples and background of the demo, at the end of its `--help`, in lines for terminals of 80
/// columns.
pub const HELP: &str = "\
The demo is one process that needs no cluster: the bastion, a cluster that
consists of manifests in a temporary directory, and backends of its pods and
nodes on loopback. Ctrl-C stops it and removes the directory.

The page that it prints a link to shows load balancing, failover, a WebSocket,
links under a prefix and denied requests. For a shell, source the file env.sh
that it prints, which defines kb USER PATH:

  # Three endpoints take turns
  kb jane /api/v1/namespaces/demo/services/web/proxy/
  # The request as the backend receives it
  kb jane '/api/v1/namespaces/demo/services/whoami/proxy/a/b%2Fc?d=e'
  # A service with TLS
  kb jane /api/v1/namespaces/demo/services/https:secure:443/proxy/
  # A pod, and a node (its kubelet)
  kb jane /api/v1/namespaces/demo/pods/web-2/proxy/
  kb jane /api/v1/nodes/node-a/proxy/healthz
  # An unknown port: 503, with the ports of the service
  kb jane /api/v1/namespaces/demo/services/web:81/proxy/
  # A user without permission: 403
  kb guest /api/v1/namespaces/demo/services/web/proxy/

The commands for the desk work with the kubeconfigs of both users:

  kube-bastion open svc/web --kubeconfig $KB_DIR/jane.kubeconfig
  kube-bastion forward svc/web :80 --kubeconfig $KB_DIR/jane.kubeconfig

Change a manifest, such as the rules in rbac-page.yaml: the bastion reloads it
within seconds, and prints the objects that were added, changed and removed.

The user jane may read all services, pods and nodes, and open tunnels to them;
the user guest may do nothing.
Requests without credentials are those of system:anonymous, which may use the
services of the page only. The page is served as plain HTTP, on loopback only.";

/// Flags of the demo.
#[derive(Clone, Debug, Args)]
pub struct Options {
    /// Address of the page, plain HTTP on loopback, IP:port; port 0 selects a free port
    #[arg(
        long,
        value_name = "ADDRESS",
        default_value = "127.0.0.1:8081",
        value_parser = parse_loopback_address
    )]
    insecure_listen_address: SocketAddr,
    /// Address of the HTTPS port on loopback, IP:port; port 0 selects a free port
    #[arg(
        long,
        value_name = "ADDRESS",
        default_value = "127.0.0.1:8443",
        value_parser = parse_loopback_address
    )]
    secure_listen_address: SocketAddr,
    /// Address of /livez, /readyz and /metrics, IP:port; port 0 selects a free port
    #[arg(
        long,
        value_name = "ADDRESS",
        default_value = "127.0.0.1:8080",
        value_parser = parse_address
    )]
    admin_listen_address: SocketAddr,
    /// Write one line per request to standard output; the page sends several per second
    #[arg(long)]
    access_log: bool,
}

/// Error of an address of the demo.
#[derive(Clone, Debug, thiserror::Error)]
enum AddressError {
    #[error(transparent)]
    Invalid(#[from] ValueError),
    #[error(
        "{0} is not a loopback address, and the demo gives access to the loopback ports of this \
         machine; use 127.0.0.1:PORT"
    )]
    NotLoopback(SocketAddr),
}

fn parse_loopback_address(text: &str) -> Result<SocketAddr, AddressError> {
    let address = parse_address(text)?;
    if address.ip().is_loopback() {
        Ok(address)
    } else {
        Err(AddressError::NotLoopback(address))
    }
}

/// Runs the demo until it is drained.
///
/// # Errors
/// A port that is in use, or a temporary directory that cannot be written.
pub async fn run(options: Options, drain: Drain) -> Result<()> {
    telemetry::init(&Log {
        level: LOG_LEVEL.into(),
        ..Log::default()
    });
    let directory = tempfile::Builder::new()
        .prefix("kube-bastion-demo-")
        .permissions(Permissions::from_mode(0o700))
        .tempdir()
        .context("cannot create a temporary directory")?;
    let directory = directory.path();
    let files = Files::write(directory, options.secure_listen_address)?;
    let (certificate, key) = (&files.certificate, &files.key);
    let ports = backends::start(certificate, key, &files.permissions, &drain).await?;
    files.write_manifests(&ports)?;
    let bastion = Bound::new(config(&options, &files)).await?;
    let url = format!("https://{}", bastion.addresses.secure);
    files.write_clients(directory, &url)?;
    println!("{}", guide(&bastion.addresses, directory, &files));
    bastion.run(drain).await
}

fn config(options: &Options, files: &Files) -> Config {
    let mut config = Config::new();
    config.serving.secure_listen_address = options.secure_listen_address;
    config.serving.insecure_listen_address = Some(options.insecure_listen_address);
    config.serving.tls_cert_file = Some(files.certificate.clone());
    config.serving.tls_private_key_file = Some(files.key.clone());
    config.admin.listen_address = options.admin_listen_address;
    config.source.kind = SourceKind::Manifests;
    config.source.manifests.directory = Some(files.manifests.clone());
    config.source.manifests.token_auth_file = Some(files.tokens.clone());
    // The page sends no credentials. Its permissions are in a manifest.
    config.authentication.anonymous = true;
    // The backends of the demo listen on loopback.
    config.targets.allow_loopback = true;
    config.log.access = options.access_log;
    config.drain.timeout = DRAIN_TIMEOUT;
    config
}

/// Text with the link to the page and commands to paste, in lines of less than 80 characters for
/// the usual directories.
fn guide(addresses: &Addresses, directory: &Path, files: &Files) -> String {
    let page = addresses.insecure.map_or_else(String::new, |page| {
        format!("http://{page}/api/v1/namespaces/demo/services/dashboard/proxy/")
    });
    format!(
        "\
kube-bastion demo: a cluster with two nodes, six pods and four services, all in
this process. Ctrl-C stops it and removes its files.

Open in a browser:

  {page}

Or use a shell, as a user with access and as one without:

  . {environment}
  kb jane /api/v1/namespaces/demo/services/web/proxy/
  kb guest /api/v1/namespaces/demo/services/web/proxy/

More commands: kube-bastion demo --help
Health and metrics: http://{admin}/readyz and /metrics
Manifests, which can be changed: {manifests}

Changes are reported below.
",
        environment = files.environment.display(),
        admin = addresses.admin,
        manifests = directory.join("manifests").display(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn page_is_served_on_loopback_only() {
        for accepted in ["127.0.0.1:0", "127.1.2.3:80", "[::1]:8081"] {
            parse_loopback_address(accepted).unwrap();
        }
        for rejected in ["0.0.0.0:8081", "[::]:8081", "10.0.0.1:80", "192.0.2.1:1"] {
            let error = parse_loopback_address(rejected).unwrap_err().to_string();
            assert!(error.contains("is not a loopback address"), "{error}");
        }
        let error = parse_loopback_address("localhost").unwrap_err();
        assert!(error.to_string().contains("use IP:port"), "{error}");
    }
}
