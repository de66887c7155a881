//! Nodes, pods and services, and errors for invalid targets.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use http::Method;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::fixture::{Fixture, path};
use crate::support::client::{get_plain, tls};
use crate::support::cluster::KubeconfigUser;

pub async fn proxies_to_services_pods_and_nodes(fixture: &mut Fixture) -> Result<()> {
    let mut client = fixture.client().await?;
    for (target, name) in [
        ("namespaces/shop/pods/web-2/proxy/name", "web-2"),
        ("namespaces/shop/pods/web-2:8080/proxy/name", "web-2"),
        ("namespaces/shop/pods/http:web-2:http/proxy/name", "web-2"),
        (
            "namespaces/shop/pods/https:safe-1:8443/proxy/name",
            "safe-1",
        ),
        ("namespaces/shop/services/safe/proxy/name", "safe-1"),
        (
            "namespaces/shop/services/https:safe:443/proxy/name",
            "safe-1",
        ),
        ("nodes/node-1:9100/proxy/name", "node-1"),
        ("nodes/http%3Anode-1%3A9100/proxy/name", "node-1"),
    ] {
        let response = client.get(&format!("/api/v1/{target}")).await?;
        ensure!(
            response.status == 200 && response.body == name,
            "{target}: {response:?}"
        );
    }
    for id in ["web", "web:80", "web:http", "http:web:", "http:web:80"] {
        let response = client
            .get(&path(&format!("services/{id}/proxy/name")))
            .await?;
        ensure!(
            response.status == 200 && response.body.starts_with("web-"),
            "{id}: {response:?}"
        );
    }
    Ok(())
}

pub async fn kubectl_output_equals_that_of_the_apiserver_proxy(
    fixture: &mut Fixture,
) -> Result<()> {
    for raw in [
        "/api/v1/nodes/node-1:9100/proxy/name",
        "/api/v1/namespaces/shop/pods/web-1:8080/proxy/name",
        "/api/v1/namespaces/shop/pods/https:safe-1:8443/proxy/name",
        "/api/v1/namespaces/shop/services/https:safe:443/proxy/name",
        "/api/v1/namespaces/shop/services/https:safe:/proxy/name",
    ] {
        let by_apiserver = fixture.cluster.kubectl(&["get", "--raw", raw])?;
        let (ok, by_bastion) = fixture.kubectl_through(&["get", "--raw", raw])?;
        ensure!(
            ok && by_bastion == by_apiserver && !by_bastion.is_empty(),
            "{raw}: bastion {by_bastion:?}, apiserver {by_apiserver:?}"
        );
    }
    Ok(())
}

pub async fn works_behind_kubectl_proxy(fixture: &mut Fixture) -> Result<()> {
    // As browsers use it: kubectl adds the token.
    let server = format!("https://{}", fixture.bastion.secure);
    let by = KubeconfigUser::Token(&fixture.token);
    let kubeconfig =
        fixture
            .cluster
            .kubeconfig("browser", &server, &fixture.cluster.ca.file, &by)?;
    let mut proxy = Command::new(&fixture.cluster.kubectl)
        .args([
            "proxy",
            "--port=0",
            &format!("--kubeconfig={}", kubeconfig.display()),
        ])
        .stdout(Stdio::piped())
        .spawn()?;
    let mut line = String::new();
    BufReader::new(proxy.stdout.take().context("stdout is piped")?).read_line(&mut line)?;
    let address = line
        .trim()
        .strip_prefix("Starting to serve on ")
        .context("kubectl proxy prints its address")?
        .parse()?;
    let response = get_plain(address, &path("services/web/proxy/name")).await;
    proxy.kill()?;
    proxy.wait()?;
    let (code, body) = response?;
    ensure!(code == 200 && body.starts_with("web-"), "{code} {body}");
    Ok(())
}

pub async fn missing_targets_return_the_status_of_the_apiserver(
    fixture: &mut Fixture,
) -> Result<()> {
    let mut client = fixture.client().await?;
    for (target, code, message) in [
        ("pods/nobody/proxy/", 404, r#"pods \"nobody\" not found"#),
        (
            "services/nobody:80/proxy/",
            404,
            r#"services \"nobody\" not found"#,
        ),
        (
            "services/a:b:c/proxy/",
            400,
            r#"invalid service request \"a:b:c\""#,
        ),
        (
            "services/:80/proxy/",
            400,
            r#"invalid service request \":80\""#,
        ),
        (
            "pods/HTTP:web-1:/proxy/",
            400,
            r#"invalid pod request \"HTTP:web-1:\""#,
        ),
        (
            "pods/web-1:nope/proxy/",
            400,
            r#"invalid pod request \"web-1:nope\""#,
        ),
        (
            "pods/web-1:65536/proxy/",
            400,
            r#"invalid pod request \"web-1:65536\""#,
        ),
        (
            "pods/web-1:0/proxy/",
            400,
            r#"invalid pod request \"web-1:0\""#,
        ),
        (
            "pods/%2e%2e/proxy/",
            400,
            r#"Name parameter invalid: \"..\": may not be '..'"#,
        ),
        ("pods/a%2Fb/proxy/", 400, "encoded slash"),
        (
            "services/web:81/proxy/",
            503,
            r#"no service port 81 found for service \"web\""#,
        ),
        (
            "services/web:nope/proxy/",
            503,
            r#"no endpoints available for service \"web:nope\""#,
        ),
        (
            "services/two/proxy/",
            503,
            r#"no endpoints available for service \"two\""#,
        ),
        (
            "services/empty/proxy/",
            503,
            r#"no endpoints available for service \"empty\""#,
        ),
        (
            "services/outside:80/proxy/",
            503,
            r#"no endpoints available for service \"outside:80\""#,
        ),
        (
            "services/outside/proxy/",
            503,
            r#"no endpoints available for service \"outside\""#,
        ),
        (
            "pods/web-1:9/proxy/",
            503,
            "error trying to reach service: dial tcp 10.254.240.11:9: connect: connection refused",
        ),
        (
            "secrets/web/proxy/",
            404,
            "the server could not find the requested resource",
        ),
    ] {
        let response = client.get(&path(target)).await?;
        ensure!(
            response.status == code && response.body.contains(message),
            "{target}: {response:?}"
        );
    }
    let response = client.get(&path("services/web/proxy?a=b")).await?;
    ensure!(
        response.status == 301 && response.headers["location"] == path("services/web/proxy/?a=b"),
        "{response:?}"
    );
    Ok(())
}

pub async fn streams_bodies_and_upgrades_in_both_directions(fixture: &mut Fixture) -> Result<()> {
    let mut client = fixture.client().await?;
    let big = Bytes::from("0123456789abcdef".repeat(1 << 18));
    let response = client
        .send(Method::POST, &path("pods/web-1/proxy/echo"), big.clone())
        .await?;
    ensure!(
        response.status == 200 && response.body == big,
        "4 MiB came back as {} bytes",
        response.body.len()
    );

    let mut stream = tls(fixture.bastion.secure, &fixture.cluster.ca.file, None).await?;
    let request = format!(
        "GET {} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {}\r\nConnection: keep-alive, Upgrade\r\nUpgrade: echo\r\n\r\nearly ",
        path("services/web/proxy/ws?q=%20"),
        fixture.token
    );
    stream.write_all(request.as_bytes()).await?;
    stream.write_all(b"late ").await?;
    // Half-close: the response must still arrive.
    stream.shutdown().await?;
    let mut all = String::new();
    stream.read_to_string(&mut all).await?;
    let (head, rest) = all.split_once("\r\n\r\n").unwrap_or_default();
    ensure!(head.starts_with("HTTP/1.1 101 "), "{all}");
    ensure!(
        rest.contains(" /ws?q=%20\n") && rest.ends_with("early late goodbye\n"),
        "{rest}"
    );
    Ok(())
}
