//! Behavior on the wire: a bastion with the manifests source before an endpoint that a test plays
//! byte by byte.

#[path = "proxy/api_servers.rs"]
mod api_servers;
#[path = "proxy/certificates.rs"]
mod certificates;
#[path = "proxy/connect.rs"]
mod connect;
#[path = "proxy/connect_ends.rs"]
mod connect_ends;
#[path = "proxy/connect_log.rs"]
mod connect_log;
#[path = "proxy/connect_refusals.rs"]
mod connect_refusals;
#[path = "proxy/connect_udp.rs"]
mod connect_udp;
#[path = "proxy/endpoint_tls.rs"]
mod endpoint_tls;
#[path = "proxy/exchange.rs"]
mod exchange;
#[path = "proxy/failures.rs"]
mod failures;
#[path = "proxy/flooded.rs"]
mod flooded;
#[path = "proxy/floods.rs"]
mod floods;
#[path = "proxy/forward_proxy.rs"]
mod forward_proxy;
#[path = "proxy/front_proxies.rs"]
mod front_proxies;
#[path = "proxy/http1_fallback.rs"]
mod http1_fallback;
#[path = "proxy/http2.rs"]
mod http2;
#[path = "proxy/kubelet.rs"]
mod kubelet;
#[path = "proxy/listeners.rs"]
mod listeners;
#[path = "proxy/process.rs"]
mod process;
#[path = "proxy/proxy_protocol.rs"]
mod proxy_protocol;
#[path = "proxy/resets.rs"]
mod resets;
#[path = "proxy/rewriting.rs"]
mod rewriting;
#[path = "proxy/server_names.rs"]
mod server_names;
#[path = "support/mod.rs"]
mod support;
#[path = "proxy/transfer.rs"]
mod transfer;
#[path = "proxy/tunnel.rs"]
mod tunnel;
#[path = "proxy/upgrades.rs"]
mod upgrades;

/// A complete response of an endpoint.
const OK_RESPONSE: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

/// The head of a response that switches to the protocol `x`.
const SWITCH_TO_X: &[u8] =
    b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n";
