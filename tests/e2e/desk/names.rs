//! `kube-bastion forward` of UDP ports and of all names (`--socks`), through the bastion.

use std::net::{Ipv4Addr, SocketAddr};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::json;
use tokio::net::UdpSocket;

use super::forward::{Forward, account, forward};
use crate::clients::{drive, serve};
use crate::fixture::{Fixture, SHOP};
use crate::support::dns::{self, DNS_PORT, dnsmasq};
use crate::support::eventually;
use crate::support::net::PROXY_ENVIRONMENT;
use crate::support::program::{Program, find_program};
use crate::tunnels::publish;

/// Last octet of the pod's address.
const DNS: u8 = 47;
const ADDRESS: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 54);
/// Id of the queries.
const QUERY: u16 = 7;
/// Time after which a query is repeated.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(1);

/// Runs curl. Returns its output and error.
async fn curl(arguments: &[&str]) -> Result<String> {
    let curl = find_program(&["curl"], "on Debian, apt-get install curl")?;
    let mut command = Command::new(curl);
    command
        .args(["--silent", "--show-error", "--max-time", "25"])
        .args(arguments)
        .envs(PROXY_ENVIRONMENT);
    let mut curl = Program::start(&mut command)?;
    let _ = curl.finish().await;
    Ok(curl.output().join("\n"))
}

/// Asks a DNS server for the known name at a local port until it answers with this address.
pub(super) async fn ask(server: SocketAddr, address: Ipv4Addr) -> Result<()> {
    let socket = UdpSocket::bind("127.0.0.1:0").await?;
    socket.connect(server).await?;
    eventually("an answer", async || {
        socket.send(&dns::query(QUERY)).await?;
        let mut answer = [0; 512];
        let received = tokio::time::timeout(ANSWER_TIMEOUT, socket.recv(&mut answer)).await;
        let Ok(Ok(length)) = received else {
            return Ok(false);
        };
        Ok(dns::address(&answer[..length], QUERY)? == address)
    })
    .await
}

pub async fn forward_reaches_udp_ports_and_all_names(fixture: &mut Fixture) -> Result<()> {
    let [bastion, _] = account(fixture, "naming").await?;
    let address = fixture.namespace.address(DNS);
    let _server = dnsmasq(&fixture.namespace, address, ADDRESS).await?;
    publish(fixture, "resolver", (DNS_PORT, "UDP"), &[address]).await?;
    let file = fixture.cluster.folder.path().join("cluster.pac");
    let arguments = ["svc/resolver", ":53/udp", "--socks", "127.0.0.1:0", "--pac"];
    let mut command = forward(&bastion, &arguments);
    command.arg(&file);
    let forward = Forward::start(&mut command, 2).await?;
    let output = || forward.program.output().join("\n");
    ask(forward.ports[0], ADDRESS).await.with_context(output)?;
    let proxy = forward.ports[1].to_string();
    let url = format!("http://web.{SHOP}.svc/name");
    for arguments in [
        &["--socks5-hostname", &proxy, &url][..],
        &["--proxy", &proxy, &url],
        &["--proxytunnel", "--proxy", &proxy, &url],
    ] {
        let name = curl(arguments).await?;
        ensure!(
            name.starts_with("web-"),
            "{arguments:?}: {name}\n{}",
            output()
        );
    }
    let refused = curl(&["--proxy", &proxy, "http://example.com/"]).await?;
    ensure!(refused.contains("(status 403)"), "{refused}");

    let _site = serve(fixture, "named-site", 8083).await?;
    let base = format!("http://named-site.{SHOP}.svc");
    let pac = std::fs::read_to_string(&file)?;
    let setting = json!({"base": base, "token": null, "pac": pac});
    drive("visit.mjs", setting).await.with_context(output)
}
