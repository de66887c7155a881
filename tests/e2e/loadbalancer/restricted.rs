//! Bastions with the security contexts of `deploy/`.

use std::net::SocketAddr;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde_json::json;
use tokio::net::TcpListener;

use super::{Services, condition, configuration, events, stop};
use crate::fixture::{Fixture, SHOP};
use crate::support::bastion::Bastion;
use crate::support::client::get_plain;
use crate::support::cluster::{HOME, KubeconfigUser, kubeconfig};
use crate::support::eventually;
use crate::support::net::Namespace;
use crate::support::program::command_in_namespace;
use crate::support::relay::Relay;

/// Security context of a component.
struct Security {
    /// `runAsUser`, also the group.
    user: u32,
    /// For `--bounding-set` of setpriv(1).
    capabilities: &'static str,
}

/// `load-balancer-controller`: that of the Deployment.
const DEPLOYMENT: Security = Security {
    user: 65532,
    capabilities: "-all",
};
/// `load-balancer-controller-host-network`.
const HOST_NETWORK: Security = Security {
    user: 0,
    capabilities: "-all,+net_bind_service",
};
/// Last octet of the pod of the bastion.
const LAST: u8 = 55;
const PORT: u16 = 80;

/// Sets the sysctl of the component `load-balancer-controller`.
fn set_first_unprivileged_port(namespace: &Namespace, port: u16) -> Result<()> {
    let setting = format!("net.ipv4.ip_unprivileged_port_start={port}");
    let mut command = command_in_namespace(namespace, Path::new("sysctl"));
    let output = command.args(["--write", &setting]).output()?;
    let error = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{setting}: {error}");
    Ok(())
}

/// Starts the bastion in the network namespace of the pods, with copies of its files that its user may read.
async fn start(
    fixture: &Fixture,
    Security { user, capabilities }: Security,
    folder: &Path,
    config: &str,
) -> Result<Bastion> {
    let owner = Some(user);
    let (cluster, namespace) = (&fixture.cluster, &fixture.namespace);
    let copy = |from: &Path, name: &str, mode: u32| -> Result<String> {
        let to = folder.join(name);
        std::fs::copy(from, &to)?;
        chown(&to, owner, owner)?;
        std::fs::set_permissions(&to, PermissionsExt::from_mode(mode))?;
        Ok(to.display().to_string())
    };
    let program = copy(
        Path::new(env!("CARGO_BIN_EXE_kube-bastion")),
        "serve",
        0o500,
    )?;
    let certificate = copy(&fixture.serving.certificate, "tls.crt", 0o400)?;
    let key = copy(&fixture.serving.key, "tls.key", 0o400)?;
    let ca = copy(&cluster.ca.file, "ca.crt", 0o400)?;
    let token = cluster.token(HOME, HOME, None).await?;
    let account = KubeconfigUser::Token(&token);
    let own = kubeconfig(folder, "own", &cluster.server, ca.as_ref(), &account)?;
    let config_file = folder.join("config.yaml");
    std::fs::write(&config_file, config)?;
    for path in [folder, &own, &config_file] {
        chown(path, owner, owner)?;
    }
    let mut command = command_in_namespace(namespace, Path::new("setpriv"));
    command
        .args([format!("--reuid={user}"), format!("--regid={user}")])
        .args(["--clear-groups", "--no-new-privs"])
        .args(["--inh-caps=-all", "--bounding-set", capabilities])
        .args([&program, "serve", "--config"])
        .arg(&config_file)
        .arg("--kubeconfig")
        .arg(&own)
        .args([
            "--tls-cert-file",
            &certificate,
            "--tls-private-key-file",
            &key,
        ]);
    Bastion::run(command)
}

pub async fn low_port_needs_the_sysctl_or_the_capability(fixture: &mut Fixture) -> Result<()> {
    let namespace = &fixture.namespace;
    // The namespace reaches the API server at the same address.
    let server: SocketAddr = fixture
        .cluster
        .server
        .trim_start_matches("https://")
        .parse()?;
    let inside = TcpListener::from_std(namespace.bind(server)?)?;
    let _relay = Relay::serve(inside, server)?;
    let listener = SocketAddr::from((namespace.address(LAST), PORT));
    let settings = json!({"bindAddresses": [listener.ip()]});
    let config = configuration(fixture, "lb-restricted", &settings)?;
    let folder = tempfile::tempdir()?;
    let bastion = start(fixture, DEPLOYMENT, folder.path(), &config).await?;

    let services = Services::new(fixture);
    services
        .create("lb-low", &[(PORT, "TCP")], json!({}))
        .await?;
    let status = services.reason("lb-low", "BindFailed").await?;
    let message = condition(&status)["message"].to_string();
    ensure!(
        message.contains("permission denied: set the sysctl net.ipv4.ip_unprivileged_port_start"),
        "{message}"
    );
    events(fixture, "lb-low", &["SyncLoadBalancerFailed"]).await?;
    set_first_unprivileged_port(namespace, 1)?;
    let ready = services.reason("lb-low", "Ready").await;
    // Other scenarios bind as root.
    set_first_unprivileged_port(namespace, 1024)?;
    ready?;
    eventually("an answer of an endpoint", async || {
        Ok(get_plain(listener, "/name").await?.0 == 200)
    })
    .await
    .with_context(|| format!("{SHOP}/lb-low at {listener}"))?;
    stop(bastion).await?;

    let folder = tempfile::tempdir()?;
    let bastion = start(fixture, HOST_NETWORK, folder.path(), &config).await?;
    eventually("an answer by the capability", async || {
        let answer = get_plain(listener, "/name").await;
        Ok(answer.is_ok_and(|(status, _)| status == 200))
    })
    .await
    .with_context(|| bastion.log())?;
    services.delete("lb-low").await?;
    stop(bastion).await
}
