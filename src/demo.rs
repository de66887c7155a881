//! Demo: the bastion, a built-in cluster from manifests, and backends with and without TLS on
//! loopback, in one process.

mod backends;
mod manifests;

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use clap::Args;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};

use crate::app::{Addresses, Bound};
use crate::config::{Config, Log, SourceKind, parse_address};
use crate::drain::Drain;
use crate::telemetry;

/// Token of a user with `get` on the proxy of all targets.
const VIEWER_TOKEN: &str = "demo-token-of-jane";
/// Token of a user without permissions.
const GUEST_TOKEN: &str = "demo-token-of-guest";

/// Flags of the demo.
#[derive(Clone, Debug, Args)]
pub struct Options {
    /// Address of the HTTPS port, IP:port; port 0 selects a free port
    #[arg(
        long,
        value_name = "ADDRESS",
        default_value = "127.0.0.1:8443",
        value_parser = parse_address
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
}

/// Runs the demo until it is drained.
///
/// # Errors
/// A port that is in use, or a temporary directory that cannot be written.
pub async fn run(options: Options, drain: Drain) -> Result<()> {
    telemetry::init(&Log {
        level: "warn".into(),
        ..Log::default()
    });
    let directory = tempfile::Builder::new()
        .prefix("kube-bastion-demo-")
        .tempdir()
        .context("cannot create a temporary directory")?;
    let files = Files::write(directory.path())?;
    let ports = backends::start(&files.certificate, &files.key).await?;
    fs::write(
        files.manifests.join("cluster.yaml"),
        manifests::cluster(&ports),
    )?;
    fs::write(files.manifests.join("rbac.yaml"), manifests::RBAC)?;
    let bastion = Bound::new(config(&options, &files)).await?;
    println!("{}", guide(&bastion.addresses, &files));
    bastion.run(drain).await
}

struct Files {
    ca: PathBuf,
    certificate: PathBuf,
    key: PathBuf,
    manifests: PathBuf,
    tokens: PathBuf,
}

impl Files {
    fn write(directory: &Path) -> Result<Self> {
        let file = |name: &str| directory.join(name);
        let files = Self {
            ca: file("ca.crt"),
            certificate: file("tls.crt"),
            key: file("tls.key"),
            manifests: file("manifests"),
            tokens: file("tokens.csv"),
        };
        let ca_key = KeyPair::generate()?;
        let mut ca = CertificateParams::default();
        ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        ca.distinguished_name
            .push(DnType::CommonName, "kube-bastion demo CA");
        fs::write(&files.ca, ca.self_signed(&ca_key)?.pem())?;
        let key = KeyPair::generate()?;
        let leaf = CertificateParams::new(["localhost", "127.0.0.1", "::1"].map(str::to_owned))?;
        fs::write(
            &files.certificate,
            leaf.signed_by(&key, &Issuer::new(ca, ca_key))?.pem(),
        )?;
        fs::write(&files.key, key.serialize_pem())?;
        fs::create_dir(&files.manifests)?;
        fs::write(
            &files.tokens,
            format!("{VIEWER_TOKEN},jane,1,\"viewers\"\n{GUEST_TOKEN},guest,2\n"),
        )?;
        Ok(files)
    }
}

fn config(options: &Options, files: &Files) -> Config {
    let mut config = Config::new();
    config.serving.secure_listen_address = options.secure_listen_address;
    config.serving.tls_cert_file = Some(files.certificate.clone());
    config.serving.tls_private_key_file = Some(files.key.clone());
    config.admin.listen_address = options.admin_listen_address;
    config.source.kind = SourceKind::Manifests;
    config.source.manifests.directory = Some(files.manifests.clone());
    config.source.manifests.token_auth_file = Some(files.tokens.clone());
    // The backends of the demo listen on loopback.
    config.targets.allow_loopback = true;
    config
}

/// Text with commands to paste.
fn guide(addresses: &Addresses, files: &Files) -> String {
    let curl = |token: &str, path: &str| {
        format!("curl --cacert $CA -H \"Authorization: Bearer ${token}\" \"$URL/{path}\"")
    };
    let namespaced = |token, path: &str| curl(token, &format!("namespaces/demo/{path}"));
    format!(
        "\
kube-bastion demo: a cluster with two nodes, five pods and three services, all on this machine.
Its manifests are in {manifests}:
edit one, and the bastion reloads it. Ctrl-C stops the demo and removes them.

# Variables for the commands below: paste these lines first
CA={ca}
URL=https://{secure_address}/api/v1
TOKEN={VIEWER_TOKEN}
GUEST={GUEST_TOKEN}

# A service with three endpoints, which take turns: repeat the command
{web}

# A service with HTTPS, and a service that prints the request it received
{secure}
{whoami}

# A pod, and a node (its kubelet, over HTTPS)
{pod}
{node}

# A user without access gets 403; an unknown port gets 503 with the ports of the service
{guest}
{no_port}

# Health and metrics
curl http://{admin}/readyz
curl http://{admin}/metrics

Requests are logged below.
",
        manifests = files.manifests.display(),
        ca = files.ca.display(),
        secure_address = addresses.secure,
        web = namespaced("TOKEN", "services/web/proxy/"),
        secure = namespaced("TOKEN", "services/https:secure:443/proxy/"),
        whoami = namespaced("TOKEN", "services/whoami/proxy/a%2Fb?c=d"),
        pod = namespaced("TOKEN", "pods/web-2/proxy/"),
        node = curl("TOKEN", "nodes/node-a/proxy/healthz"),
        guest = namespaced("GUEST", "services/web/proxy/"),
        no_port = namespaced("TOKEN", "services/web:81/proxy/"),
        admin = addresses.admin,
    )
}
