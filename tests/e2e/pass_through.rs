//! kubectl with the bastion as its server: requests for the API servers pass, as the caller.

mod aggregated;

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::core::v1::ServiceAccount;
use serde_json::{Value, json};
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};

use crate::desk::{kubectl, reach_containers};
use crate::fixture::{Fixture, SHOP, bastion};
use crate::support::bastion::Bastion;
use crate::support::client::{Client, Response};
use crate::support::cluster::KubeconfigUser;
use crate::support::eventually;
use crate::support::pki::Pair;
use crate::support::streaming_kubelet::StreamingKubelet;
pub use aggregated::kubectl_top_shows_figures_of_an_aggregated_api;

/// Starts a bastion that passes requests to the API server.
pub async fn passing(fixture: &Fixture, more: &[&str]) -> Result<Bastion> {
    let own = fixture
        .cluster
        .bastion_kubeconfig("passing-bastion", &fixture.cluster.server)
        .await?;
    let flags = [&["--api-servers"], more].concat();
    let bastion = bastion(&own, &fixture.serving, &flags)?;
    bastion.ready().await?;
    Ok(bastion)
}

/// Writes a kubeconfig for a bastion.
pub fn kubeconfig_for(
    fixture: &Fixture,
    bastion: &Bastion,
    name: &str,
    user: &KubeconfigUser<'_>,
) -> Result<PathBuf> {
    let server = format!("https://{}", bastion.secure);
    let cluster = &fixture.cluster;
    cluster.kubeconfig(name, &server, &cluster.ca.file, user)
}

/// Creates a service account with the role `cluster-admin`. Returns its token.
pub async fn administrator(fixture: &Fixture, name: &str) -> Result<String> {
    let account = json!({"metadata": {"name": name}});
    fixture.objects.create::<ServiceAccount>(account).await?;
    fixture.cluster.kubectl(&[
        "create",
        "clusterrolebinding",
        name,
        "--clusterrole=cluster-admin",
        &format!("--serviceaccount={SHOP}:{name}"),
    ])?;
    fixture.cluster.token(SHOP, name, None).await
}

/// Runs kubectl. Returns its standard output.
fn run(mut command: Command, arguments: &[&str]) -> Result<String> {
    let output = command.args(arguments).output()?;
    ensure!(
        output.status.success(),
        "kubectl {}: {}",
        arguments.join(" "),
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(String::from_utf8(output.stdout)?)
}

/// All commands of kubectl, as a user with a token.
pub async fn kubectl_uses_the_bastion_as_its_server(fixture: &mut Fixture) -> Result<()> {
    let bastion = passing(fixture, &[]).await?;
    let token = administrator(fixture, "administrator").await?;
    let user = KubeconfigUser::Token(&token);
    let kubeconfig = kubeconfig_for(fixture, &bastion, "passing", &user)?;
    objects(fixture, &kubeconfig)?;
    let kubelet =
        StreamingKubelet::start(&fixture.cluster, &fixture.namespace, "node-1", 2).await?;
    reach_containers(fixture, &kubelet, &|| kubectl(fixture, &kubeconfig)).await?;
    let by_spdy = || {
        let mut command = kubectl(fixture, &kubeconfig);
        command
            .env("KUBECTL_REMOTE_COMMAND_WEBSOCKETS", "false")
            .env("KUBECTL_PORT_FORWARD_WEBSOCKETS", "false");
        command
    };
    reach_containers(fixture, &kubelet, &by_spdy).await?;
    // `/proxy/` of services stays with the bastion.
    let path = format!("/api/v1/namespaces/{SHOP}/services/web:http/proxy/name");
    let name = run(kubectl(fixture, &kubeconfig), &["get", "--raw", &path])?;
    ensure!(name.starts_with("web-"), "{name}");
    ensure!(
        bastion
            .metrics()
            .await?
            .contains(r#"kube_bastion_requests_total{kind="apiserver",method="GET",code="200"}"#),
        "requests are counted as those for API servers"
    );
    Ok(())
}

/// Last byte of the address of the pod that leads to the bastion.
const LAST: u8 = 48;

/// kubectl with a bastion as its `HTTPS_PROXY`, by which its `WebSockets` cannot pass: exec and
/// port-forward fall back to SPDY (`kubernetes/kubernetes` issue 126134).
pub async fn kubectl_uses_the_bastion_behind_an_https_proxy(fixture: &mut Fixture) -> Result<()> {
    let bastion = passing(fixture, &[]).await?;
    let token = administrator(fixture, "proxied-administrator").await?;
    // The server is a Service of the cluster, which only the proxy can reach.
    let address = fixture.namespace.address(LAST);
    let listener = fixture.namespace.bind((address, 6443).into())?;
    let secure = bastion.secure;
    let listener = TcpListener::from_std(listener)?;
    let serving = tokio::spawn(async move {
        while let Ok((mut client, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut server = TcpStream::connect(secure).await?;
                copy_bidirectional(&mut client, &mut server).await
            });
        }
    });
    let (labels, ports) = (json!({"app": "bastion"}), json!([{"containerPort": 6443}]));
    let objects = &fixture.objects;
    objects.pod("bastion-0", labels, address, ports).await?;
    let spec = json!({"selector": {"app": "bastion"}, "ports": [{"port": 6443}]});
    objects.service("bastion", spec).await?;
    fixture.wait_until_known("services/bastion").await?;
    let server = format!("https://bastion.{SHOP}.svc:6443");
    let by = KubeconfigUser::Token(&token);
    let ca = &fixture.cluster.ca.file;
    let kubeconfig = fixture.cluster.kubeconfig("proxied", &server, ca, &by)?;
    let port = fixture.bastion.secure.port();
    let proxy = format!("https://any:{token}@localhost:{port}");
    let kubelet =
        StreamingKubelet::start(&fixture.cluster, &fixture.namespace, "node-1", 2).await?;
    let proxied = || {
        let mut command = kubectl(fixture, &kubeconfig);
        command
            .arg("--tls-server-name=localhost")
            .env("HTTPS_PROXY", &proxy)
            .env("SSL_CERT_FILE", ca);
        command
    };
    run(proxied(), &["get", "pods"])?;
    reach_containers(fixture, &kubelet, &proxied).await?;
    serving.abort();
    Ok(())
}

/// Commands that read and write objects.
pub fn objects(fixture: &Fixture, kubeconfig: &Path) -> Result<()> {
    let kubectl = |arguments: &[&str]| run(kubectl(fixture, kubeconfig), arguments);
    let manifest = fixture.cluster.folder.path().join("passed.yaml");
    let manifest = manifest.to_str().context("the path is UTF-8")?;
    let write = |color: &str| -> Result<()> {
        let map = json!({
            "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "passed"},
            "data": {"color": color, "large": "x".repeat(200_000)},
        });
        Ok(std::fs::write(manifest, map.to_string())?)
    };
    let color = ["get", "configmap", "passed", "-o=jsonpath={.data.color}"];
    for side in ["--server-side=false", "--server-side=true"] {
        for expected in ["red", "blue"] {
            write(expected)?;
            kubectl(&["apply", side, "-f", manifest])?;
            ensure!(kubectl(&color)? == expected, "{side}");
        }
        if side == "--server-side=false" {
            kubectl(&["delete", "-f", manifest, "--wait"])?;
        }
    }
    kubectl(&["label", "configmap", "passed", "a=b"])?;
    kubectl(&["annotate", "configmap", "passed", "a=b"])?;
    let watched = kubectl(&[
        "get",
        "configmaps",
        "--watch",
        "--request-timeout=2s",
        "-oname",
    ])?;
    ensure!(watched.contains("configmap/passed\n"), "{watched}");
    kubectl(&["delete", "-f", manifest, "--wait"])?;

    ensure!(kubectl(&["explain", "pod.spec"])?.contains("containers"));
    ensure!(kubectl(&["api-resources"])?.contains("endpointslices"));
    ensure!(kubectl(&["version"])?.contains("Server Version"));
    ensure!(kubectl(&["auth", "can-i", "delete", "nodes"])? == "yes\n");
    let jane: Value = serde_json::from_str(&kubectl(&[
        "auth",
        "whoami",
        "--as=jane",
        "--as-group=devs",
        "-ojson",
    ])?)?;
    ensure!(jane["status"]["userInfo"]["username"] == "jane", "{jane}");
    ensure!(jane["status"]["userInfo"]["groups"][0] == "devs", "{jane}");
    Ok(())
}

/// Sends a request over HTTP/1.1 and HTTP/2. Returns both responses.
async fn get(
    fixture: &Fixture,
    bastion: &Bastion,
    token: Option<&str>,
    path: &str,
) -> Result<[Response; 2]> {
    let ca = &fixture.cluster.ca.file;
    let mut http1 = Client::connect(bastion.secure, ca, token, None).await?;
    let mut http2 = Client::connect_http2(bastion.secure, ca, token, None).await?;
    Ok([http1.get(path).await?, http2.get(path).await?])
}

/// Callers without credentials, with an unknown token, and with client certificates.
pub async fn api_server_decides_on_the_credentials(fixture: &mut Fixture) -> Result<()> {
    let cluster = &fixture.cluster;
    let bastion = passing(fixture, &[]).await?;
    for (token, path, status) in [
        (None, "/version", 200),
        (None, "/api/v1/nodes", 403),
        (Some("unknown"), "/version", 401),
        (Some(&*fixture.token), "/api/v1/nodes", 403),
        (Some(&*fixture.token), "/no/such/path", 403),
        (None, "/api/v1/namespaces/shop/services/web/proxy/", 401),
    ] {
        // Repeated, because an accepted token has other connections.
        for _ in 0..2 {
            for response in get(fixture, &bastion, token, path).await? {
                ensure!(response.status == status, "{token:?} {path}: {response:?}");
            }
        }
    }
    let caller = cluster.ca.client(cluster.folder.path(), "jill", "devs")?;
    let whoami = |bastion: &Bastion, name: &str, more: &[&str]| -> Result<Value> {
        let user = KubeconfigUser::Certificate(&caller);
        let kubeconfig = kubeconfig_for(fixture, bastion, name, &user)?;
        let arguments = [&["auth", "whoami", "-ojson"], more].concat();
        let output = run(kubectl(fixture, &kubeconfig), &arguments)?;
        Ok(serde_json::from_str::<Value>(&output)?["status"]["userInfo"].take())
    };
    let rejected = whoami(&bastion, "rejected", &[]).err();
    let rejected = rejected.context("the certificate is rejected")?.to_string();
    ensure!(rejected.contains("Unauthorized"), "{rejected}");

    let file = cluster.folder.path().join("front-proxy.yaml");
    let pair = cluster
        .front_proxy
        .client(cluster.folder.path(), "front-proxy", "none")?;
    let section = json!({
        "apiVersion": "kube-bastion.dev/v1alpha1", "kind": "BastionConfiguration",
        "apiServers": {
            "clientCertificates": "frontProxy",
            "frontProxyClientCertificate": pair.certificate, "frontProxyClientKey": pair.key,
        },
    });
    std::fs::write(&file, section.to_string())?;
    let config = format!("--config={}", file.display());
    let by_front_proxy = passing(fixture, &[&config]).await?;
    // Its own permissions do not suffice; those of the component do.
    cluster.kubectl(&[
        "apply",
        "-f",
        "deploy/components/apiservers-impersonation/rbac.yaml",
    ])?;
    let flag = "--api-server-client-certificates=impersonation";
    let by_impersonation = passing(fixture, &[flag]).await?;
    for (bastion, name) in [
        (&by_front_proxy, "front-proxy"),
        (&by_impersonation, "impersonation"),
    ] {
        let user = whoami(bastion, name, &[])?;
        ensure!(user["username"] == "jill", "{name}: {user}");
        ensure!(
            user["groups"] == json!(["devs", "system:authenticated"]),
            "{name}: {user}"
        );
        let denied = whoami(bastion, name, &["--as=jane"]).err();
        let denied = denied.context("the impersonation is denied")?.to_string();
        // kubectl replaces the message of the 403.
        ensure!(
            denied.contains("do not have permission"),
            "{name}: {denied}"
        );
        forgeries_have_no_effect(fixture, bastion)?;
        connection_removes_no_identity(fixture, bastion, &caller)?;
    }
    let role = cluster.folder.path().join("impersonator.yaml");
    let rules = json!([
        {"apiGroups": [""], "resources": ["users", "groups"], "verbs": ["impersonate"]},
        {"apiGroups": ["authentication.k8s.io"], "resources": ["userextras/acme.com/team"],
         "verbs": ["impersonate"]},
    ]);
    let manifest = json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole",
        "metadata": {"name": "impersonator"}, "rules": rules,
    });
    std::fs::write(&role, manifest.to_string())?;
    cluster.kubectl(&["apply", "-f", &role.display().to_string()])?;
    cluster.kubectl(&[
        "create",
        "clusterrolebinding",
        "impersonator",
        "--clusterrole=impersonator",
        "--user=jill",
    ])?;
    for (bastion, name) in [
        (&by_front_proxy, "front-proxy"),
        (&by_impersonation, "impersonation"),
    ] {
        let more = [
            "--as=jane",
            "--as-group=ops",
            "--as-user-extra=acme.com/team=red",
        ];
        // The API server learns of the role with a delay.
        eventually("the role of the impersonator", async || {
            Ok(whoami(bastion, name, &more).is_ok())
        })
        .await
        .with_context(|| format!("{name}: {:?}", whoami(bastion, name, &more)))?;
        let user = whoami(bastion, name, &more)?;
        ensure!(user["username"] == "jane", "{name}: {user}");
        ensure!(
            user["extra"]["acme.com/team"] == json!(["red"]),
            "{name}: {user}"
        );
    }
    Ok(())
}

/// A client cannot remove the headers that name it by listing them in `Connection`.
fn connection_removes_no_identity(
    fixture: &Fixture,
    bastion: &Bastion,
    caller: &Pair,
) -> Result<()> {
    for listed in [
        "impersonate-user, impersonate-group, authorization",
        "x-remote-user, x-remote-group",
        "keep-alive, Impersonate-User",
    ] {
        let output = Command::new("curl")
            .args(["--silent", "--show-error", "--http1.1", "--cacert"])
            .arg(&fixture.cluster.ca.file)
            .arg("--cert")
            .arg(&caller.certificate)
            .arg("--key")
            .arg(&caller.key)
            .args(["--header", &format!("Connection: {listed}")])
            .args(["--header", "Content-Type: application/json", "--data"])
            .arg(r#"{"apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview"}"#)
            .arg(format!(
                "https://{}/apis/authentication.k8s.io/v1/selfsubjectreviews",
                bastion.secure
            ))
            .output()?;
        let review: Value =
            serde_json::from_slice(&output.stdout).with_context(|| format!("{output:?}"))?;
        let user = &review["status"]["userInfo"];
        ensure!(user["username"] == "jill", "{listed}: {review}");
        ensure!(user["groups"][0] == "devs", "{listed}: {review}");
    }
    Ok(())
}

/// Headers of front proxies have no effect for any caller.
fn forgeries_have_no_effect(fixture: &Fixture, bastion: &Bastion) -> Result<()> {
    for user in ["X-Remote-User: admin", "X_Remote_User: admin"] {
        let output = Command::new("curl")
            .args(["--silent", "--show-error", "--cacert"])
            .arg(&fixture.cluster.ca.file)
            .args([
                "--header",
                user,
                "--header",
                "X-Remote-Group: system:masters",
            ])
            .args([
                "--header",
                &format!("Authorization: Bearer {}", fixture.token),
            ])
            .args(["--header", "Content-Type: application/json", "--data"])
            .arg(r#"{"apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview"}"#)
            .arg(format!(
                "https://{}/apis/authentication.k8s.io/v1/selfsubjectreviews",
                bastion.secure
            ))
            .output()?;
        let review: Value =
            serde_json::from_slice(&output.stdout).with_context(|| format!("{output:?}"))?;
        let name = &review["status"]["userInfo"]["username"];
        ensure!(*name == "system:serviceaccount:shop:caller", "{review}");
    }
    Ok(())
}
