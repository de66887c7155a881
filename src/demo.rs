//! A first look: the whole bastion in one process, with the manifests source, a built-in cluster
//! and real backends on loopback, TLS included.

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

/// A token that may read everything in the demo's namespace, and one that may nothing.
const JANE: &str = "demo-token-of-jane";
const GUEST: &str = "demo-token-of-guest";

/// How the demo is run.
#[derive(Clone, Debug, Args)]
pub struct Options {
    /// IP:port for HTTPS; port 0 takes a free one
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:8443", value_parser = parse_address)]
    secure_listen_address: SocketAddr,
    /// IP:port for /livez, /readyz and /metrics; port 0 takes a free one
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:8080", value_parser = parse_address)]
    admin_listen_address: SocketAddr,
}

/// Runs the demo until it is drained.
///
/// # Errors
/// Where a port is taken, or the temporary folder cannot be written.
pub async fn run(options: Options, drain: Drain) -> Result<()> {
    telemetry::init(&Log {
        level: "warn".into(),
        ..Log::default()
    });
    let folder = tempfile::Builder::new()
        .prefix("kube-bastion-demo-")
        .tempdir()
        .context("cannot make a folder")?;
    let files = Files::write(folder.path())?;
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
    fn write(folder: &Path) -> Result<Self> {
        let file = |name: &str| folder.join(name);
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
            format!("{JANE},jane,1,\"viewers\"\n{GUEST},guest,2\n"),
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
    // The backends of the demo are on this machine.
    config.targets.allow_loopback = true;
    config
}

/// What to try, ready to be pasted.
fn guide(addresses: &Addresses, files: &Files) -> String {
    let curl = |token: &str, path: &str| {
        format!(
            "curl --cacert {} -H 'Authorization: Bearer {token}' 'https://{}/api/v1/{path}'",
            files.ca.display(),
            addresses.secure
        )
    };
    let namespaced = |token, path: &str| curl(token, &format!("namespaces/demo/{path}"));
    format!(
        "\
kube-bastion demo: a built-in cluster with two nodes, five pods and three services, all on this machine.
Its manifests are in {manifests}: change one and see. Ctrl-C ends it and removes them.

# A service with three endpoints: say it a few times, and each answers in turn
{web}

# A service behind HTTPS, and one that shows what reaches a backend
{secure}
{whoami}

# A pod, and a node (its kubelet's port, HTTPS)
{pod}
{node}

# Somebody who may not: 403, and why
{guest}

# How the bastion is
curl http://{admin}/readyz
curl http://{admin}/metrics

Requests are logged below.
",
        manifests = files.manifests.display(),
        web = namespaced(JANE, "services/web/proxy/"),
        secure = namespaced(JANE, "services/https:secure:443/proxy/"),
        whoami = namespaced(JANE, "services/whoami/proxy/a%2Fb?c=d"),
        pod = namespaced(JANE, "pods/web-2/proxy/"),
        node = curl(JANE, "nodes/node-a/proxy/healthz"),
        guest = namespaced(GUEST, "services/web/proxy/"),
        admin = addresses.admin,
    )
}
