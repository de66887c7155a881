//! Tunnels of UDP: DNS with a client of the test, and HTTP/3 with libcurl.

use std::net::Ipv4Addr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::core::v1::Service;
use kube::Api;

use super::servers::publish;
use super::{account, client, file, libcurl};
use crate::fixture::{Fixture, SHOP};
use crate::packages;
use crate::support::connect::Version;
use crate::support::connect_udp::UdpTunnel;
use crate::support::dns::{self, DNS_PORT, dnsmasq, query};
use crate::support::eventually;
use crate::support::program::{Program, command_in_namespace};

/// Last octets of the pods' addresses.
const DNS: [u8; 2] = [19, 20];
const HTTP3: u8 = 24;
const HTTP3_PORT: u16 = 443;

/// Address that the DNS server answers with.
const ADDRESS: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 53);

/// Time after which a query is repeated.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(1);
const VERSIONS: [Version; 2] = [Version::Http1, Version::Http2];

async fn open(fixture: &Fixture, token: &str, version: Version, to: &str) -> Result<UdpTunnel> {
    let (bastion, ca) = (fixture.bastion.secure, &fixture.cluster.ca.file);
    UdpTunnel::open(bastion, ca, token, version, to).await
}

/// Asks for the address of the known name.
async fn ask(tunnel: &mut UdpTunnel, id: u16) -> Result<()> {
    tunnel.send(&query(id)).await?;
    let answer = dns::address(&tunnel.receive().await?, id)?;
    ensure!(answer == ADDRESS, "{answer}");
    Ok(())
}

pub async fn dns_answers_through_udp_tunnels(fixture: &mut Fixture) -> Result<()> {
    let token = account(fixture, "resolver").await?;
    let [first, second] = DNS.map(|last| fixture.namespace.address(last));
    let server = dnsmasq(&fixture.namespace, first, ADDRESS).await?;
    publish(fixture, "dns", (DNS_PORT, "UDP"), &[first]).await?;
    let host = format!("dns.{SHOP}.svc");
    let services = Api::<Service>::namespaced(fixture.cluster.client.clone(), SHOP);
    let spec = services.get("dns").await?.spec;
    let address = spec.and_then(|spec| spec.cluster_ip);
    let address = address.context("the API server assigns an address")?;
    eventually("an endpoint of dns", async || {
        let tunnel = open(fixture, &token, Version::Http1, &format!("{host}/53")).await;
        Ok(tunnel.is_ok())
    })
    .await?;
    let mut tunnels = Vec::new();
    for version in VERSIONS {
        for target in [
            format!("{host}/53"),
            format!("{host}.cluster.local/53"),
            format!("{address}/53"),
            format!("dns-0.{SHOP}.pod/53"),
            format!("{first}/53"),
        ] {
            let mut tunnel = open(fixture, &token, version, &target).await?;
            for id in 0..3 {
                let asked = ask(&mut tunnel, id).await;
                asked.with_context(|| format!("{target} over {version:?}"))?;
            }
            tunnels.push(tunnel);
        }
        for (target, expected) in [
            (format!("web.{SHOP}.svc/80"), "404"),
            (format!("nobody.{SHOP}.svc/53"), "404"),
            ("example.com/53".into(), "403"),
            (format!("{host}/0"), "400"),
        ] {
            let opened = open(fixture, &token, version, &target).await;
            let error = opened.err().context("no tunnel")?.to_string();
            ensure!(error.contains(expected), "{target}: {error}");
        }
    }
    // The port is for UDP only.
    let tcp = client(fixture, &fixture.bastion, &token, Version::Http1);
    let refused = tcp.open(&format!("{host}:53")).await;
    let refused = refused.err().context("no tunnel")?.to_string();
    ensure!(refused.contains("404"), "{refused}");

    // A flow ends with its endpoint, and another one has the next endpoint.
    drop(server);
    for tunnel in &mut tunnels {
        // The ICMP message that ends the flow may be lost: the system limits their rate.
        eventually("the end of a flow", async || {
            let asked = tokio::time::timeout(ANSWER_TIMEOUT, ask(tunnel, 7)).await;
            Ok(asked.is_ok_and(|answer| answer.is_err()))
        })
        .await?;
    }
    let _server = dnsmasq(&fixture.namespace, second, ADDRESS).await?;
    let (objects, labels) = (&fixture.objects, serde_json::json!({"app": "dns"}));
    let ports = serde_json::json!([]);
    objects.pod("dns-1", labels, second, ports).await?;
    objects.delete_pod("dns-0").await?;
    for version in VERSIONS {
        eventually("an answer of the second pod", async || {
            let mut tunnel = open(fixture, &token, version, &format!("{host}/53")).await?;
            let answer = tokio::time::timeout(ANSWER_TIMEOUT, ask(&mut tunnel, 9)).await;
            Ok(answer.is_ok_and(|answer| answer.is_ok()))
        })
        .await?;
    }
    Ok(())
}

/// libcurl, which opens the UDP tunnel, and aioquic know nothing of the bastion.
pub async fn http3_passes_through_udp_tunnels(fixture: &mut Fixture) -> Result<()> {
    let token = account(fixture, "http3-user").await?;
    let (packages, python) = (packages::pip("tunnels")?, packages::python()?);
    let host = format!("http3.{SHOP}.svc");
    let (cluster, address) = (&fixture.cluster, fixture.namespace.address(HTTP3));
    let tls = cluster
        .ca
        .server(cluster.folder.path(), "http3", &[&host])?;
    let mut command = command_in_namespace(&fixture.namespace, &python);
    command
        .arg(file("http3_server.py"))
        .args([address.to_string(), HTTP3_PORT.to_string()])
        .args([&tls.certificate, &tls.key])
        .arg("http3-0")
        .env("PYTHONPATH", &packages);
    let mut server = Program::start(&mut command)?;
    server.wait_for_line("listening").await?;
    publish(fixture, "http3", (HTTP3_PORT, "UDP"), &[address]).await?;
    eventually("an endpoint of http3", async || {
        let target = format!("{host}/{HTTP3_PORT}");
        Ok(open(fixture, &token, Version::Http1, &target).await.is_ok())
    })
    .await?;
    for version in ["1.1", "2"] {
        for (path, bytes, length) in [("/name", 0, 0), ("/large", 0, 1_000_000), ("/", 300_000, 0)]
        {
            let url = format!("https://{host}{path}");
            let output = libcurl(fixture, &token, [version, "3"], &url, bytes).await?;
            let text = format!("http3-0 {path} after {bytes} bytes");
            ensure!(
                output.contains("response 200 over HTTP/3")
                    && output.contains(&text)
                    && output.lines().any(|line| line.len() >= length),
                "{path} over {version}: {output}"
            );
        }
        let url = format!("https://{host}/name");
        let output = libcurl(fixture, "wrong", [version, "3"], &url, 0).await?;
        ensure!(output.contains("407"), "{version}: {output}");
    }
    Ok(())
}
