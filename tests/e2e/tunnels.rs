//! Tunnels to services and pods, with the clients in use.

mod databases;
mod faults;
mod names;
mod servers;
mod ssh;
mod udp;

pub use databases::{
    databases_work_through_tunnels, query_outlives_another_pod_and_another_bastion,
};
pub use faults::{
    connections_open_without_the_api, killed_endpoints_end_only_their_own_connections,
    rolling_update_fails_no_new_connection,
};
pub use names::host_name_reaches_its_pod;
pub use servers::publish;
pub use ssh::ssh_works_through_connect;
pub use udp::{dns_answers_through_udp_tunnels, http3_passes_through_udp_tunnels};

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::core::v1::{Service, ServiceAccount};
use k8s_openapi::api::rbac::v1::RoleBinding;
use kube::Api;
use serde_json::json;

use crate::fixture::{Fixture, SHOP};
use crate::packages;
use crate::support::bastion::Bastion;
use crate::support::connect::{TunnelClient, Version};
use crate::support::eventually;
use crate::support::program::{Program, find_program};

/// Returns the token of an account that may open tunnels to all services and pods.
pub async fn account(fixture: &Fixture, name: &str) -> Result<String> {
    let token = fixture.account(name).await?;
    let subject = json!({"kind": "ServiceAccount", "name": name, "namespace": SHOP});
    let role = format!("{name}-tunnels");
    fixture
        .objects
        .allow(&role, subject, &["pods/portforward"], &["create"])
        .await?;
    Ok(token)
}

/// Returns a client of a bastion for tunnels.
fn client(fixture: &Fixture, bastion: &Bastion, token: &str, version: Version) -> TunnelClient {
    let ca = fixture.cluster.ca.file.clone();
    TunnelClient::new(bastion.secure, ca, token, version)
}

/// Runs curl with the bastion as its proxy. Returns its output and error.
async fn curl(fixture: &Fixture, token: &str, arguments: &[&str]) -> Result<String> {
    let user = format!("any:{token}");
    curl_as(fixture, &["--proxy-user", &user], arguments).await
}

/// As [`curl`], with options for the credentials.
async fn curl_as(fixture: &Fixture, credentials: &[&str], arguments: &[&str]) -> Result<String> {
    let curl = find_program(&["curl"], "on Debian, apt-get install curl")?;
    let proxy = format!("https://{}", fixture.bastion.secure);
    let mut command = Command::new(curl);
    command
        .args(["--silent", "--show-error", "--max-time", "25"])
        .args(["--proxy", &proxy, "--proxy-cacert"])
        .arg(&fixture.cluster.ca.file)
        .args(credentials)
        .args(arguments);
    let mut curl = Program::start(&mut command)?;
    let _ = curl.finish().await;
    Ok(curl.output().join("\n"))
}

/// Returns a file of `tests/clients/tunnels`.
fn file(name: &str) -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    root.join("tests/clients/tunnels").join(name)
}

/// Sends a request by libcurl, which opens a tunnel for it: with a version of HTTP to the bastion,
/// and one in the tunnel. Returns its output and error.
async fn libcurl(
    fixture: &Fixture,
    token: &str,
    versions: [&str; 2],
    url: &str,
    bytes: usize,
) -> Result<String> {
    let packages = packages::pip("tunnels")?;
    let mut command = Command::new(packages::python()?);
    command
        .arg(file("curl.py"))
        .arg(format!("https://{}", fixture.bastion.secure))
        .arg(&fixture.cluster.ca.file)
        .args(versions)
        .args([url, &bytes.to_string()])
        .env("PYTHONPATH", packages)
        .env("TOKEN", token);
    let mut curl = Program::start(&mut command)?;
    let _ = curl.finish().await;
    Ok(curl.output().join("\n"))
}

/// Names and addresses of the service and a pod of it.
async fn authorities(fixture: &Fixture) -> Result<Vec<String>> {
    let services = Api::<Service>::namespaced(fixture.cluster.client.clone(), SHOP);
    let address = services.get("web").await?.spec;
    let address = address.and_then(|spec| spec.cluster_ip);
    let address = address.context("the API server assigns an address")?;
    let pod = fixture.namespace.address(11);
    Ok(vec![
        format!("web.{SHOP}.svc:80"),
        format!("web.{SHOP}.svc.cluster.local:80"),
        format!("{address}:80"),
        format!("web-1.{SHOP}.pod:8080"),
        format!("{}.{SHOP}.pod:8080", pod.to_string().replace('.', "-")),
        format!("{pod}:8080"),
    ])
}

pub async fn curl_reaches_services_and_pods_by_connect(fixture: &mut Fixture) -> Result<()> {
    let token = account(fixture, "curling").await?;
    for authority in authorities(fixture).await? {
        let url = format!("http://{authority}/name");
        let output = curl(fixture, &token, &["--proxytunnel", &url]).await?;
        ensure!(output.starts_with("web-"), "{authority}: {output}");
    }
    // CONNECT without an option for an https:// URL, with the TLS of the endpoint.
    let url = format!("https://safe.{SHOP}.svc/name");
    let output = curl(fixture, &token, &["--insecure", &url]).await?;
    ensure!(output == "safe-1", "{output}");
    // The form without a tunnel for an http:// URL.
    let output = curl(fixture, &token, &[&format!("http://web.{SHOP}.svc/name")]).await?;
    ensure!(output.starts_with("web-"), "{output}");

    // The certificate of a user instead of a token.
    let (objects, ca) = (&fixture.objects, &fixture.cluster.ca);
    let group = json!({"kind": "Group", "name": "tunnelers"});
    objects
        .allow("tunnelers", group, &["pods/portforward"], &["create"])
        .await?;
    let folder = fixture.cluster.folder.path();
    for (group, expected) in [("tunnelers", "web-1"), ("others", "response 403")] {
        let pair = ca.client(folder, &format!("tunneler-of-{group}"), group)?;
        let files = [&pair.certificate, &pair.key].map(|file| file.display().to_string());
        let credentials = ["--proxy-cert", &files[0], "--proxy-key", &files[1]];
        let url = format!("http://web-1.{SHOP}.pod:8080/name");
        let output = curl_as(fixture, &credentials, &["--proxytunnel", &url]).await?;
        ensure!(output.contains(expected), "{group}: {output}");
    }

    // Each connection goes to the next endpoint.
    let mut names = BTreeMap::<String, u32>::new();
    for _ in 0..9 {
        let url = format!("http://web.{SHOP}.svc/name");
        let name = curl(fixture, &token, &["--proxytunnel", &url]).await?;
        *names.entry(name).or_default() += 1;
    }
    ensure!(names.into_values().collect::<Vec<_>>() == [3, 3, 3]);

    for (token, url, code) in [
        (&*token, "https://example.com/", 403),
        (&token, "https://nobody.shop.svc/", 404),
        (&token, "https://web.shop.svc:1234/", 404),
        (&token, "https://empty.shop.svc:80/", 503),
        (&token, "https://web-1.shop.pod:9/", 502),
        ("wrong", "https://web.shop.svc:80/", 407),
        (&fixture.token, "https://web.shop.svc:80/", 403),
    ] {
        let output = curl(fixture, token, &[url]).await?;
        let expected = format!("response {code}");
        ensure!(output.contains(&expected), "{url}: {output}");
    }
    Ok(())
}

/// The built-in roles: `edit` may forward ports of pods, `view` may not.
pub async fn built_in_roles_decide_on_tunnels(fixture: &mut Fixture) -> Result<()> {
    for (role, expected) in [("edit", "web-"), ("view", "response 403")] {
        let name = format!("built-in-{role}");
        let objects = &fixture.objects;
        objects
            .create::<ServiceAccount>(json!({"metadata": {"name": name}}))
            .await?;
        objects
            .create::<RoleBinding>(json!({
                "metadata": {"name": name},
                "roleRef": {
                    "apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": role,
                },
                "subjects": [{"kind": "ServiceAccount", "name": name, "namespace": SHOP}],
            }))
            .await?;
        let user = format!("--as=system:serviceaccount:{SHOP}:{name}");
        eventually("the role to be known", async || {
            let list = ["auth", "can-i", "list", "services", "-n", SHOP, &user];
            Ok(fixture.cluster.kubectl(&list).is_ok())
        })
        .await?;
        let token = fixture.cluster.token(SHOP, &name, None).await?;
        for authority in authorities(fixture).await? {
            let url = format!("http://{authority}/name");
            let output = curl(fixture, &token, &["--proxytunnel", &url]).await?;
            ensure!(output.contains(expected), "{role}, {authority}: {output}");
        }
    }
    Ok(())
}

pub async fn curl_opens_tunnels_over_http2(fixture: &mut Fixture) -> Result<()> {
    let token = account(fixture, "curl-http2").await?;
    let send = async |token: &str, url: &str, bytes| {
        let output = libcurl(fixture, token, ["2", "1.1"], url, bytes).await?;
        let negotiated = output.contains("Establishing HTTP/2 proxy tunnel");
        ensure!(negotiated, "{url}: {output}");
        Ok(output)
    };
    for authority in authorities(fixture).await? {
        let output = send(&token, &format!("http://{authority}/name"), 0).await?;
        let answered = output.contains("response 200 over HTTP/1.1\nweb-");
        ensure!(answered, "{authority}: {output}");
    }
    let url = format!("http://web.{SHOP}.svc/echo");
    let output = send(&token, &url, 300_000).await?;
    ensure!(output.contains(&"x".repeat(300_000)), "{output}");
    for (token, authority, code) in [
        (&*token, "example.com", 403),
        (&token, "nobody.shop.svc", 404),
        ("wrong", "web.shop.svc", 407),
    ] {
        let output = send(token, &format!("http://{authority}/"), 0).await?;
        let expected = format!("CONNECT Response Status {code}\n");
        ensure!(output.contains(&expected), "{authority}: {output}");
    }
    Ok(())
}

pub async fn node_opens_tunnels_over_http2(fixture: &mut Fixture) -> Result<()> {
    let token = account(fixture, "node-tunnels").await?;
    let mut asked = authorities(fixture).await?;
    asked.push(format!("nobody.{SHOP}.svc:80"));
    asked.push("example.com:443".into());
    let program = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/tests/clients/node/connect.mjs"
    );
    let mut command = Command::new(packages::node()?);
    command
        .arg(program)
        .arg(format!("https://{}", fixture.bastion.secure))
        .arg(&fixture.cluster.ca.file)
        .args([&*token, "/name"])
        .args(&asked);
    let mut node = Program::start(&mut command)?;
    node.finish().await?;
    let output = node.output();
    ensure!(output.len() == asked.len(), "{output:?}");
    let expected = ["200 web-"; 6].into_iter().chain(["404 ", "403 "]);
    for ((authority, line), expected) in asked.iter().zip(&output).zip(expected) {
        ensure!(line.starts_with(expected), "{authority}: {line}");
    }
    Ok(())
}
