//! The bastion as in a pod: manifests, mounted service account, termination by SIGTERM.

use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::authentication::v1::BoundObjectReference;
use k8s_openapi::api::core::v1::Secret;
use kube::api::{Api, DeleteParams};
use nix::sys::signal::Signal;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::fixture::{Fixture, SHOP, bastion, path};
use crate::support::bastion::Bastion;
use crate::support::client::{Client, tls};
use crate::support::cluster::HOME;
use crate::support::objects::Objects;

pub async fn api_accepts_the_manifests(fixture: &mut Fixture) -> Result<()> {
    // The namespace exists already, which a dry run requires.
    let output = fixture
        .cluster
        .kubectl(&["apply", "-k", "deploy/", "--dry-run=server"])?;
    for object in [
        "deployment.apps/kube-bastion",
        "networkpolicy",
        "poddisruptionbudget",
        "service/kube-bastion",
    ] {
        ensure!(output.contains(object), "{object} is missing:\n{output}");
    }
    for (component, workload) in [
        ("load-balancer-controller", "deployment.apps/kube-bastion"),
        (
            "load-balancer-controller-host-network",
            "daemonset.apps/kube-bastion",
        ),
    ] {
        let install = install_with(component)?;
        let folder = install.path().display().to_string();
        let output = fixture
            .cluster
            .kubectl(&["apply", "-k", &folder, "--dry-run=server"])?;
        for object in [
            workload,
            "role.rbac.authorization.k8s.io/kube-bastion:load-balancer",
        ] {
            ensure!(output.contains(object), "{object} is missing:\n{output}");
        }
    }
    Objects::new(&fixture.cluster.client, "team-a").await?;
    fixture
        .cluster
        .kubectl(&["apply", "-f", "deploy/examples/", "--dry-run=server"])?;
    Ok(())
}

/// Writes a kustomization of `deploy/` with a component.
fn install_with(component: &str) -> Result<tempfile::TempDir> {
    let folder = tempfile::tempdir()?;
    let path = folder.path().canonicalize()?;
    // kustomize rejects absolute paths.
    let up = "../".repeat(path.components().count() - 1);
    let deploy = concat!(env!("CARGO_MANIFEST_DIR"), "/deploy").trim_start_matches('/');
    let text =
        format!("resources: [{up}{deploy}]\ncomponents: [{up}{deploy}/components/{component}]\n");
    std::fs::write(path.join("kustomization.yaml"), text)?;
    Ok(folder)
}

pub async fn pod_uses_its_service_account_and_reloads_its_token(
    fixture: &mut Fixture,
) -> Result<()> {
    let cluster = &fixture.cluster;
    let account = tempfile::tempdir()?;
    let write = |name: &str, text: &str| std::fs::write(account.path().join(name), text);
    // A token that becomes invalid with its bound object, as in a pod.
    let home = Objects {
        client: cluster.client.clone(),
        namespace: HOME.into(),
    };
    home.create::<Secret>(json!({"metadata": {"name": "bound"}}))
        .await?;
    let secrets = Api::<Secret>::namespaced(cluster.client.clone(), HOME);
    let uid = secrets.get("bound").await?.metadata.uid;
    let bound = BoundObjectReference {
        kind: Some("Secret".into()),
        api_version: Some("v1".into()),
        name: Some("bound".into()),
        uid,
    };
    write("token", &cluster.token(HOME, HOME, Some(bound)).await?)?;
    write("ca.crt", &std::fs::read_to_string(&cluster.ca.file)?)?;
    write("namespace", HOME)?;

    let (host, port) = cluster
        .server
        .trim_start_matches("https://")
        .split_once(':')
        .context("host:port")?;
    let script = "mount -t tmpfs none /run && mkdir -p /run/secrets/kubernetes.io/serviceaccount && \
                  mount --bind \"$1\" /run/secrets/kubernetes.io/serviceaccount && shift && exec \"$@\"";
    let mut command = Command::new("unshare");
    command
        .args([
            "--mount",
            "--propagation",
            "private",
            "sh",
            "-c",
            script,
            "sh",
        ])
        .arg(account.path())
        .arg(env!("CARGO_BIN_EXE_kube-bastion"))
        .arg("serve")
        .arg(format!(
            "--tls-cert-file={}",
            fixture.serving.certificate.display()
        ))
        .arg(format!(
            "--tls-private-key-file={}",
            fixture.serving.key.display()
        ))
        .env("KUBERNETES_SERVICE_HOST", host)
        .env("KUBERNETES_SERVICE_PORT", port);
    let pod = Bastion::run(command)?;
    pod.ready().await?;
    let mut client =
        Client::connect(pod.secure, &cluster.ca.file, Some(&fixture.token), None).await?;
    let response = client.get(&path("services/web/proxy/name")).await?;
    ensure!(response.status == 200, "{response:?}");

    write("token", &cluster.token(HOME, HOME, None).await?)?;
    secrets.delete("bound", &DeleteParams::default()).await?;
    // An unknown token needs a review, which needs the token of the bastion. The bastion reads its
    // file again within a minute.
    for attempt in 0.. {
        let fresh = cluster.token(SHOP, "caller", None).await?;
        let mut client = Client::connect(pod.secure, &cluster.ca.file, Some(&fresh), None).await?;
        let response = client.get(&path("services/web/proxy/name")).await?;
        // The apiserver caches the old token for a while, so early successes prove nothing.
        if response.status == 200 && attempt >= 15 {
            break;
        }
        ensure!(attempt < 100, "the new token is not used: {response:?}");
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    Ok(())
}

pub async fn sigterm_finishes_running_requests(fixture: &mut Fixture) -> Result<()> {
    let kubeconfig = fixture
        .cluster
        .bastion_kubeconfig("draining", &fixture.cluster.server)
        .await?;
    let mut draining = bastion(&kubeconfig, &fixture.serving, &["--drain-timeout=20s"])?;
    draining.ready().await?;
    // A request with an incomplete body, and a tunnel.
    let mut half = tls(draining.secure, &fixture.cluster.ca.file, None).await?;
    let head = |method: &str, target: &str, more: &str| {
        format!(
            "{method} {} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {}\r\n{more}\r\n",
            path(target),
            fixture.token
        )
    };
    half.write_all(head("POST", "pods/web-1/proxy/echo", "Content-Length: 10\r\n").as_bytes())
        .await?;
    half.write_all(b"01234").await?;
    let mut tunnel = tls(draining.secure, &fixture.cluster.ca.file, None).await?;
    tunnel
        .write_all(
            head(
                "GET",
                "pods/web-1/proxy/ws",
                "Connection: Upgrade\r\nUpgrade: echo\r\n",
            )
            .as_bytes(),
        )
        .await?;
    let mut buffer = [0; 1024];
    let mut opened = String::new();
    while !opened.contains("web-1 /ws") {
        let read = tunnel.read(&mut buffer).await?;
        ensure!(read > 0, "the tunnel closed: {opened}");
        opened += &String::from_utf8_lossy(&buffer[..read]);
    }

    draining.signal(Signal::SIGTERM)?;
    crate::support::eventually("the port to close", async || {
        Ok(tokio::net::TcpStream::connect(draining.secure)
            .await
            .is_err())
    })
    .await?;
    let (code, report) = draining.readyz().await.with_context(|| draining.log())?;
    ensure!(code == 503 && report.contains("[-]draining"), "{report}");
    half.write_all(b"56789").await?;
    let mut response = String::new();
    half.read_to_string(&mut response).await?;
    ensure!(
        response.starts_with("HTTP/1.1 200") && response.ends_with("0123456789"),
        "{response}"
    );
    tunnel.write_all(b"still here").await?;
    tunnel.shutdown().await?;
    let mut rest = String::new();
    tunnel.read_to_string(&mut rest).await?;
    ensure!(rest == "still heregoodbye\n", "{rest}");
    let ended = tokio::task::spawn_blocking(move || draining.wait()).await??;
    ensure!(ended.success(), "{ended}");
    Ok(())
}
