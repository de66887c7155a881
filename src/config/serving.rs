//! Sections `serving`, `admin` and `drain`: ports, connections and shutdown of the process.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::values::{MAX_CONNECTIONS, MAX_WORKERS, fields};
use crate::model::Networks;

/// Default of `serving.maxConnections`: 14 KiB for each idle TLS connection take a quarter of the
/// 512 MiB of the deployment.
const DEFAULT_MAX_CONNECTIONS: usize = 10_000;

/// Ports, certificates and limits of client connections.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct Serving {
    /// Address of the HTTPS port as `IP:port`. Port 0 selects a free port.
    #[serde(deserialize_with = "fields::address")]
    #[schemars(with = "String", extend("x-type" = "IP:port"))]
    pub secure_listen_address: SocketAddr,
    /// Address of the plain HTTP port as `IP:port`; no such port unless set. Tokens cross this port
    /// in clear text.
    #[serde(deserialize_with = "fields::optional_address")]
    #[schemars(with = "Option<String>", extend("x-type" = "IP:port"))]
    pub insecure_listen_address: Option<SocketAddr>,
    /// PEM file with the serving certificate and its intermediates; reloaded when it changes. If
    /// unset, a self-signed certificate is generated at start and its SHA-256 fingerprint is
    /// logged, regardless of `log.level`; see `selfSignedDir`.
    #[serde(deserialize_with = "fields::optional_path")]
    #[schemars(extend("x-type" = "file path"))]
    pub tls_cert_file: Option<PathBuf>,
    /// PEM file with the private key of `tlsCertFile`; reloaded when it changes.
    #[serde(deserialize_with = "fields::optional_path")]
    #[schemars(extend("x-type" = "file path"))]
    pub tls_private_key_file: Option<PathBuf>,
    /// Directory for the self-signed certificate, for trials: `ca.crt` for clients, `tls.crt` and
    /// `tls.key`. It is created if it is missing. The certificate is used again at the next start
    /// unless it expires within 30 days, or lacks the host name or the listen address. If unset,
    /// each start generates another certificate. Cannot be set beside `tlsCertFile`.
    #[serde(deserialize_with = "fields::optional_path")]
    #[schemars(extend("x-type" = "directory path"))]
    pub self_signed_dir: Option<PathBuf>,
    /// Minimum TLS version: `VersionTLS12` or `VersionTLS13`.
    pub tls_min_version: TlsVersion,
    /// PEM file with the CAs that verify client certificates; reloaded when it changes. If unset,
    /// the CAs that the cluster publishes in `kube-system/extension-apiserver-authentication` are
    /// used and kept current.
    #[serde(rename = "clientCAFile")]
    #[serde(deserialize_with = "fields::optional_path")]
    #[schemars(extend("x-type" = "file path"))]
    pub client_ca_file: Option<PathBuf>,
    /// Number of worker threads, at most 1024. 0 starts one per core of the CPU quota of the
    /// cgroup.
    #[serde(deserialize_with = "fields::count::<_, 0, MAX_WORKERS>")]
    #[schemars(range(max = MAX_WORKERS))]
    pub workers: usize,
    /// Maximum number of open client connections, tunnels included, at most 10000000; further ones
    /// wait in the listen queue. 0 removes the limit. An idle TLS connection takes 14 KiB, so the
    /// default takes a quarter of a memory limit of 512 MiB.
    #[serde(deserialize_with = "fields::count::<_, 0, MAX_CONNECTIONS>")]
    #[schemars(range(max = MAX_CONNECTIONS))]
    pub max_connections: usize,
    /// Maximum number of open connections per client address (IPv6: per /64 network); further
    /// ones are closed. 0 removes the limit. The address is all that
    /// identifies a client before it authenticates. The default is a quarter of the default of
    /// `maxConnections`, because clients behind a load balancer or NAT gateway share an address.
    #[serde(deserialize_with = "fields::count::<_, 0, MAX_CONNECTIONS>")]
    #[schemars(range(max = MAX_CONNECTIONS))]
    pub max_connections_per_client: usize,
    /// Maximum age of an upgraded connection (WebSocket, SPDY) or tunnel (CONNECT), for example
    /// `12h`; unlimited unless set. Independently of it, the credentials and the permission of the
    /// caller are checked again at three quarters of the shorter cache TTL.
    #[serde(with = "fields::optional_duration")]
    #[schemars(with = "Option<String>", extend("x-type" = "duration"))]
    pub tunnel_max_age: Option<Duration>,
    #[serde(deserialize_with = "fields::or_default")]
    pub proxy_protocol: ProxyProtocol,
    /// Front proxies, such as ingress controllers, whose `X-Forwarded-For`, `X-Forwarded-Proto` and
    /// `X-Forwarded-Host` count: the client is the rightmost address that is not in the list. List
    /// addresses of proxies only, because a client in the list can name any client. It does not
    /// affect who may name a user (`X-Remote-User`).
    #[serde(with = "fields::networks")]
    #[schemars(with = "Vec<String>", extend("x-type" = "list of CIDRs"))]
    pub trusted_proxies: Networks,
    /// Timeout of a TLS handshake with a client, header of the PROXY protocol included.
    #[serde(with = "fields::duration")]
    #[schemars(with = "String", extend("x-type" = "duration"))]
    pub handshake_timeout: Duration,
    /// Timeout of a connection without a request, and of the bastion's own responses, errors
    /// included, while their client does not read them. The default is kube-apiserver's for
    /// connections without a request.
    #[serde(with = "fields::duration")]
    #[schemars(with = "String", extend("x-type" = "duration"))]
    pub idle_timeout: Duration,
    /// Timeout from the first byte of an HTTP/1.1 request head to its last, of the start of an HTTP/2
    /// connection, and of an HTTP/2 head whose frames are incomplete. The default is
    /// kube-apiserver's.
    #[serde(with = "fields::duration")]
    #[schemars(with = "String", extend("x-type" = "duration"))]
    pub head_timeout: Duration,
    /// Time for which a client may send nothing of an HTTP/1.1 request body that it has begun, while
    /// the endpoint waits for it.
    #[serde(with = "fields::duration")]
    #[schemars(with = "String", extend("x-type" = "duration"))]
    pub body_timeout: Duration,
    /// Time for which a client may read nothing of a proxied response while there is more to send. A
    /// paused download longer than this is aborted.
    #[serde(with = "fields::duration")]
    #[schemars(with = "String", extend("x-type" = "duration"))]
    pub write_timeout: Duration,
    /// Maximum memory of all request heads beyond 16 KiB each, for example `16Mi`, at most
    /// 1024Gi. A head of up to 1 MiB is valid; while the memory is used up, larger heads than 16 KiB
    /// are rejected with 431. HTTP/2 connections whose incomplete heads or trailers exceed it are
    /// closed.
    #[serde(with = "fields::bytes")]
    #[schemars(with = "String", extend("x-type" = "size"))]
    pub max_head_memory: usize,
}

impl Default for Serving {
    fn default() -> Self {
        Self {
            secure_listen_address: SocketAddr::from(([0, 0, 0, 0], 8443)),
            insecure_listen_address: None,
            tls_cert_file: None,
            tls_private_key_file: None,
            self_signed_dir: None,
            tls_min_version: TlsVersion::default(),
            client_ca_file: None,
            workers: 0,
            max_connections: DEFAULT_MAX_CONNECTIONS,
            max_connections_per_client: DEFAULT_MAX_CONNECTIONS / 4,
            tunnel_max_age: None,
            proxy_protocol: ProxyProtocol::default(),
            trusted_proxies: Networks::default(),
            handshake_timeout: Duration::from_secs(10),
            // As kube-apiserver (CONFORMANCE C102).
            idle_timeout: Duration::from_secs(90),
            head_timeout: Duration::from_secs(32),
            // Longer than pauses of people and of busy endpoints, and short enough that abandoned
            // transfers do not pile up.
            body_timeout: Duration::from_mins(5),
            write_timeout: Duration::from_mins(5),
            max_head_memory: 16 * 1024 * 1024,
        }
    }
}

/// PROXY protocol, versions 1 and 2, with which load balancers name the client of a connection.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct ProxyProtocol {
    /// Load balancers whose connections to the HTTPS port and the plain HTTP port begin with a
    /// header of the protocol; without a valid one they are closed. From other addresses, a header
    /// is not accepted.
    #[serde(with = "fields::networks")]
    #[schemars(with = "Vec<String>", extend("x-type" = "list of CIDRs"))]
    pub from: Networks,
}

/// TLS version, in the notation of kube-apiserver's `--tls-min-version`.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema, clap::ValueEnum,
)]
pub enum TlsVersion {
    #[default]
    #[serde(rename = "VersionTLS12")]
    #[value(name = "VersionTLS12")]
    Tls12,
    #[serde(rename = "VersionTLS13")]
    #[value(name = "VersionTLS13")]
    Tls13,
}

/// Port for probes and metrics.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct Admin {
    /// Address of `/livez`, `/readyz` and `/metrics` as `IP:port`, plain HTTP. Port 0 selects a
    /// free port.
    #[serde(deserialize_with = "fields::address")]
    #[schemars(with = "String", extend("x-type" = "IP:port"))]
    pub listen_address: SocketAddr,
}

impl Default for Admin {
    fn default() -> Self {
        Self {
            listen_address: SocketAddr::from(([0, 0, 0, 0], 8080)),
        }
    }
}

/// Graceful shutdown.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct Drain {
    /// Time after SIGTERM or SIGINT in which open requests and tunnels may finish; the remaining
    /// ones are then closed.
    #[serde(with = "fields::duration")]
    #[schemars(with = "String", extend("x-type" = "duration"))]
    pub timeout: Duration,
}

impl Default for Drain {
    fn default() -> Self {
        Self {
            timeout: Duration::from_secs(30),
        }
    }
}
