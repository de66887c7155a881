//! Typed settings, one section per component: `kind: BastionConfiguration` of
//! `kube-bastion.dev/v1alpha1`.
//!
//! A field is read once, checked where it is read, and handed on as the type that its component
//! wants. What a field is for, its default and its unit stand in its doc comment, which is also its
//! description in `config/bastionconfiguration.schema.json`.

mod values;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::model::address::AddressType;

use values::{
    MAX_ATTEMPTS, MAX_BUDGET_PER_SECOND, MAX_CACHE, MAX_CONNECTIONS, MAX_IDLE, MAX_PERCENT,
    MAX_REVIEWS, MAX_WORKERS,
};
pub use values::{parse_address, parse_bytes, parse_duration, parse_log_level, parse_workers};

/// The only version so far.
pub const API_VERSION: &str = "kube-bastion.dev/v1alpha1";
pub const KIND: &str = "BastionConfiguration";

/// The whole configuration of a bastion. All but `apiVersion` and `kind` may be left out.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Config {
    /// The version of this format: `kube-bastion.dev/v1alpha1`.
    #[serde(deserialize_with = "values::api_version")]
    #[schemars(extend("const" = API_VERSION))]
    pub api_version: String,
    /// `BastionConfiguration`.
    #[serde(deserialize_with = "values::kind")]
    #[schemars(extend("const" = KIND))]
    pub kind: String,
    #[serde(default, deserialize_with = "values::or_default")]
    pub serving: Serving,
    #[serde(default, deserialize_with = "values::or_default")]
    pub admin: Admin,
    #[serde(default, deserialize_with = "values::or_default")]
    pub source: Source,
    #[serde(default, deserialize_with = "values::or_default")]
    pub authentication: Authentication,
    #[serde(default, deserialize_with = "values::or_default")]
    pub authorization: Authorization,
    #[serde(default, deserialize_with = "values::or_default")]
    pub reviews: Reviews,
    #[serde(default, deserialize_with = "values::or_default")]
    pub targets: Targets,
    #[serde(default, deserialize_with = "values::or_default")]
    pub upstream: Upstream,
    #[serde(default, deserialize_with = "values::or_default")]
    pub rewriting: Rewriting,
    #[serde(default, deserialize_with = "values::or_default")]
    pub log: Log,
    #[serde(default, deserialize_with = "values::or_default")]
    pub drain: Drain,
}

/// 24.5 KiB for each idle connection of TLS is half of the deployment's 512 MiB.
const DEFAULT_MAX_CONNECTIONS: usize = 10_000;

/// How callers reach the bastion.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct Serving {
    /// `IP:port` for HTTPS. Port 0 takes a free one.
    #[serde(deserialize_with = "values::address")]
    #[schemars(with = "String")]
    pub secure_listen_address: SocketAddr,
    /// `IP:port` for plain HTTP; none unless set. Tokens cross this port in clear text.
    #[serde(deserialize_with = "values::optional_address")]
    #[schemars(with = "Option<String>")]
    pub insecure_listen_address: Option<SocketAddr>,
    /// PEM file with the serving certificate and its intermediates, read again when it changes.
    /// Without one, a self-signed certificate is made at start and its fingerprint logged, whatever
    /// `log.level` is.
    pub tls_cert_file: Option<PathBuf>,
    /// PEM file with the private key of `tlsCertFile`.
    pub tls_private_key_file: Option<PathBuf>,
    /// The oldest TLS version that is spoken: `VersionTLS12` or `VersionTLS13`.
    pub tls_min_version: TlsVersion,
    /// PEM file with the CAs of client certificates. Without one, the CAs that the cluster
    /// publishes in `kube-system/extension-apiserver-authentication` are followed.
    #[serde(rename = "clientCAFile")]
    pub client_ca_file: Option<PathBuf>,
    /// Threads that serve requests; 0 takes one per core that the cgroup's CPU quota allows. 1024
    /// at most.
    #[serde(deserialize_with = "values::count::<_, 0, MAX_WORKERS>")]
    #[schemars(range(max = MAX_WORKERS))]
    pub workers: usize,
    /// Connections served at once, tunnels included; further ones wait. An idle connection takes
    /// 24.5 KiB with TLS, so that the default takes half of a memory limit of 512 MiB. 0 sets no
    /// limit; else 10000000 at most.
    #[serde(deserialize_with = "values::count::<_, 0, MAX_CONNECTIONS>")]
    #[schemars(range(max = MAX_CONNECTIONS))]
    pub max_connections: usize,
    /// Connections of one client address (IPv6: of one /64 network), which is all that can be told
    /// of callers before they authenticate; further ones are closed. The default is a quarter of
    /// `maxConnections`, because behind a load balancer or a gateway that translates addresses many
    /// callers share one. 0 sets no limit; else 10000000 at most.
    #[serde(deserialize_with = "values::count::<_, 0, MAX_CONNECTIONS>")]
    #[schemars(range(max = MAX_CONNECTIONS))]
    pub max_connections_per_client: usize,
    /// Longest life of an upgraded connection (WebSocket, SPDY), as `12h`; unlimited unless set.
    /// Whatever it is, the caller's credentials and rights are checked again as often as their
    /// cached results expire.
    #[serde(with = "values::optional_duration")]
    #[schemars(with = "Option<String>")]
    pub tunnel_max_age: Option<Duration>,
    /// How long a TLS handshake may take, as `10s`.
    #[serde(with = "values::duration")]
    #[schemars(with = "String")]
    pub handshake_timeout: Duration,
    /// How long a connection may stay without a request, and how long the head of a request may
    /// take, as `90s`.
    #[serde(with = "values::duration")]
    #[schemars(with = "String")]
    pub idle_timeout: Duration,
}

impl Default for Serving {
    fn default() -> Self {
        Self {
            secure_listen_address: SocketAddr::from(([0, 0, 0, 0], 8443)),
            insecure_listen_address: None,
            tls_cert_file: None,
            tls_private_key_file: None,
            tls_min_version: TlsVersion::default(),
            client_ca_file: None,
            workers: 0,
            max_connections: DEFAULT_MAX_CONNECTIONS,
            max_connections_per_client: DEFAULT_MAX_CONNECTIONS / 4,
            tunnel_max_age: None,
            handshake_timeout: Duration::from_secs(10),
            // What kube-apiserver waits (CONFORMANCE C102).
            idle_timeout: Duration::from_secs(90),
        }
    }
}

/// TLS versions, spelled as kube-apiserver's `--tls-min-version` spells them.
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

/// The port for probes and Prometheus.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct Admin {
    /// `IP:port` for `/livez`, `/readyz` and `/metrics`, plain HTTP. Port 0 takes a free one.
    #[serde(deserialize_with = "values::address")]
    #[schemars(with = "String")]
    pub listen_address: SocketAddr,
}

impl Default for Admin {
    fn default() -> Self {
        Self {
            listen_address: SocketAddr::from(([0, 0, 0, 0], 8080)),
        }
    }
}

/// Where the facts come from: nodes, pods, services, endpoints, and who may do what.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct Source {
    /// `kubernetes` asks a Kubernetes API, `manifests` reads a folder of YAML.
    #[serde(rename = "type")]
    pub kind: SourceKind,
    /// For type `kubernetes`.
    #[serde(deserialize_with = "values::or_default")]
    pub kubernetes: KubernetesSource,
    /// For type `manifests`.
    #[serde(deserialize_with = "values::or_default")]
    pub manifests: ManifestsSource,
}

/// The kinds of source.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum SourceKind {
    #[default]
    Kubernetes,
    Manifests,
}

/// How the Kubernetes API is reached.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct KubernetesSource {
    /// A kubeconfig file. Without one, the pod's service account.
    pub kubeconfig: Option<PathBuf>,
    /// The context of the kubeconfig; its current one unless set.
    pub context: Option<String>,
}

/// A folder of manifests instead of a Kubernetes API.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct ManifestsSource {
    /// A folder whose `*.yaml`, `*.yml` and `*.json` files hold Node, Pod, Service, EndpointSlice,
    /// Role, `ClusterRole`, `RoleBinding` and `ClusterRoleBinding` objects; read again when a file
    /// changes.
    pub directory: Option<PathBuf>,
    /// A file of bearer tokens in kube-apiserver's format: `token,user,uid,"group1,group2"`, a line
    /// each.
    pub token_auth_file: Option<PathBuf>,
}

/// How callers prove who they are.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct Authentication {
    /// Lets callers without credentials in as `system:anonymous`; what they may do is the
    /// authorizer's to say.
    #[serde(deserialize_with = "values::flag")]
    pub anonymous: bool,
    #[serde(deserialize_with = "values::or_default")]
    pub token_review: TokenReview,
}

/// Bearer tokens, asked of the API by TokenReview.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct TokenReview {
    /// How long a good token is remembered, as `10s`; never past its own expiry.
    #[serde(rename = "cacheTTL", with = "values::duration")]
    #[schemars(with = "String")]
    pub cache_ttl: Duration,
    /// How long a bad token is remembered, as `2s`.
    #[serde(rename = "failureCacheTTL", with = "values::duration")]
    #[schemars(with = "String")]
    pub failure_cache_ttl: Duration,
    /// How many tokens are remembered at most, from 1 to 1000000.
    #[serde(deserialize_with = "values::count::<_, 1, MAX_CACHE>")]
    #[schemars(range(min = 1, max = MAX_CACHE))]
    pub cache_size: usize,
    /// How long the API may take to answer, as `10s`.
    #[serde(with = "values::duration")]
    #[schemars(with = "String")]
    pub timeout: Duration,
    /// Audiences that a token may be meant for; the API's own where empty.
    #[serde(deserialize_with = "values::or_default")]
    pub audiences: Vec<String>,
}

impl Default for TokenReview {
    fn default() -> Self {
        Self {
            cache_ttl: Duration::from_secs(10),
            failure_cache_ttl: Duration::from_secs(2),
            cache_size: 16_384,
            timeout: Duration::from_secs(10),
            audiences: Vec::new(),
        }
    }
}

/// What callers may do, asked of the API by SubjectAccessReview.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct Authorization {
    /// How long a yes is remembered, as `10s`.
    #[serde(rename = "allowedCacheTTL", with = "values::duration")]
    #[schemars(with = "String")]
    pub allowed_cache_ttl: Duration,
    /// How long a no is remembered, as `10s`.
    #[serde(rename = "deniedCacheTTL", with = "values::duration")]
    #[schemars(with = "String")]
    pub denied_cache_ttl: Duration,
    /// How many answers are remembered at most, from 1 to 1000000.
    #[serde(deserialize_with = "values::count::<_, 1, MAX_CACHE>")]
    #[schemars(range(min = 1, max = MAX_CACHE))]
    pub cache_size: usize,
    /// How long the API may take to answer, as `10s`.
    #[serde(with = "values::duration")]
    #[schemars(with = "String")]
    pub timeout: Duration,
    /// Asks a second time with the bare name where the id with its scheme and port is denied, so
    /// that a rule whose `resourceNames` list `web` covers `http:web:80` too. kube-apiserver does
    /// not.
    #[serde(deserialize_with = "values::flag")]
    pub accept_bare_names: bool,
}

impl Default for Authorization {
    fn default() -> Self {
        Self {
            allowed_cache_ttl: Duration::from_secs(10),
            denied_cache_ttl: Duration::from_secs(10),
            cache_size: 65_536,
            timeout: Duration::from_secs(10),
            accept_bare_names: false,
        }
    }
}

/// Limits on TokenReviews and SubjectAccessReviews. Each holds for both kinds apart.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct Reviews {
    /// Reviews that the API has not answered yet, from 2 to 10000. A client address has at most
    /// half of them. The default is far below the API server's own limit of 200 mutating requests,
    /// which other clients need too.
    #[serde(deserialize_with = "values::count::<_, 2, MAX_REVIEWS>")]
    #[schemars(range(min = 2, max = MAX_REVIEWS))]
    pub max_in_flight: usize,
    /// Reviews that wait for one in flight to end, from 8 to 10000. A client address has at most an
    /// eighth of them: beyond that its requests get 429, and 503 where the whole queue is full. The
    /// default is what the API answers in a few seconds.
    #[serde(deserialize_with = "values::count::<_, 8, MAX_REVIEWS>")]
    #[schemars(range(min = 8, max = MAX_REVIEWS))]
    pub max_queued: usize,
    /// Longest wait in the queue, as `5s`; the request gets 503 after it. Less than clients' usual
    /// timeouts, so that they read why.
    #[serde(with = "values::duration")]
    #[schemars(with = "String")]
    pub queue_timeout: Duration,
    /// Time for which an expired result stays valid while the API cannot be reached (no connection,
    /// no answer in time, 429 or 5xx), as `5m`; `0s` turns it off. A denial is never overruled, and
    /// no token outlives its own expiry. The default outlasts the restart of a control plane.
    #[serde(with = "values::duration_or_zero")]
    #[schemars(with = "String")]
    pub stale_on_error: Duration,
}

impl Default for Reviews {
    fn default() -> Self {
        Self {
            max_in_flight: 64,
            max_queued: 1024,
            queue_timeout: Duration::from_secs(5),
            stale_on_error: Duration::from_mins(5),
        }
    }
}

/// Which targets may be reached, and how nodes are.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct Targets {
    /// Which of a node's addresses is dialled: the first of these types that it has.
    pub kubelet_preferred_address_types: Vec<AddressType>,
    /// PEM file with the CAs of the kubelets' serving certificates; unverified without one, as with
    /// kube-apiserver.
    pub kubelet_certificate_authority: Option<PathBuf>,
    /// PEM file with the client certificate that is shown to kubelets.
    pub kubelet_client_certificate: Option<PathBuf>,
    /// PEM file with the private key of `kubeletClientCertificate`.
    pub kubelet_client_key: Option<PathBuf>,
    /// Shows the bastion's own service account token to kubelets that `kubeletCertificateAuthority`
    /// verifies, where there is no `kubeletClientCertificate`. Off, because every node's serving
    /// certificate verifies as a kubelet's: one compromised node collects the token, and with it
    /// the bastion's rights on all nodes. A client certificate proves the bastion without giving
    /// anything away.
    #[serde(deserialize_with = "values::flag")]
    pub kubelet_service_account_token: bool,
    /// The cluster's DNS domain: links to the service that was asked for are rewritten in this
    /// spelling of its name too.
    #[serde(deserialize_with = "values::dns_domain")]
    pub cluster_domain: String,
    /// Serves endpoints that no pod of the service's namespace stands behind (services without a
    /// selector).
    #[serde(deserialize_with = "values::flag")]
    pub pod_less_endpoints: bool,
    /// Longest wait of a request for the look-up of a node's host name, as `5s`: two tries of the
    /// system's resolver with a DNS server that answers, while one that does not is not waited for.
    #[serde(with = "values::duration")]
    #[schemars(with = "String")]
    pub lookup_timeout: Duration,
    /// Lets loopback addresses be dialled: for a first look and for tests on one machine, never in
    /// a cluster.
    #[serde(deserialize_with = "values::flag")]
    pub allow_loopback: bool,
}

impl Default for Targets {
    fn default() -> Self {
        use AddressType::{ExternalDns, ExternalIp, Hostname, InternalDns, InternalIp};
        Self {
            // Node names rarely resolve outside a node, so the address comes before them
            // (CONFORMANCE C34).
            kubelet_preferred_address_types: vec![
                InternalIp,
                Hostname,
                InternalDns,
                ExternalDns,
                ExternalIp,
            ],
            kubelet_certificate_authority: None,
            kubelet_client_certificate: None,
            kubelet_client_key: None,
            kubelet_service_account_token: false,
            cluster_domain: "cluster.local".into(),
            pod_less_endpoints: false,
            lookup_timeout: Duration::from_secs(5),
            allow_loopback: false,
        }
    }
}

/// Connections towards targets.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct Upstream {
    /// Time limit of one connect, TLS handshake included, to a pod, a node, or the only endpoint of
    /// a service, as `30s`. For a choice of endpoints, `retry.connectDeadline` is the limit if it
    /// is shorter.
    #[serde(with = "values::duration")]
    #[schemars(with = "String")]
    pub dial_timeout: Duration,
    /// Time limit of one connect, TLS handshake included, while another endpoint can be tried
    /// instead, as `2s`.
    #[serde(with = "values::duration")]
    #[schemars(with = "String")]
    pub failover_dial_timeout: Duration,
    /// How long a TLS handshake may take, as `10s`.
    #[serde(with = "values::duration")]
    #[schemars(with = "String")]
    pub tls_handshake_timeout: Duration,
    /// How long an idle connection is kept for reuse, as `90s`.
    #[serde(with = "values::duration")]
    #[schemars(with = "String")]
    pub idle_timeout: Duration,
    /// Idle connections kept per endpoint and worker, from 1 to 65535.
    #[serde(deserialize_with = "values::count::<_, 1, MAX_IDLE>")]
    #[schemars(range(min = 1, max = MAX_IDLE))]
    pub max_idle_per_endpoint: usize,
    /// An endpoint of several that lets a request wait for the head of its response for longer than
    /// this, or than ten times its own recent 99th percentile if that is longer, and that answers
    /// nothing meanwhile, gets no new requests until it answers, as `1s`. A shorter limit skips a
    /// frozen endpoint earlier, a longer one tolerates longer pauses.
    #[serde(with = "values::duration")]
    #[schemars(with = "String")]
    pub slow_endpoint_timeout: Duration,
    #[serde(deserialize_with = "values::or_default")]
    pub retry: Retry,
}

impl Default for Upstream {
    fn default() -> Self {
        Self {
            dial_timeout: Duration::from_secs(30),
            failover_dial_timeout: Duration::from_secs(2),
            tls_handshake_timeout: Duration::from_secs(10),
            idle_timeout: Duration::from_secs(90),
            max_idle_per_endpoint: 256,
            // Longer than a garbage collection or a CPU throttled for a few periods; shorter than
            // what users wait for.
            slow_endpoint_timeout: Duration::from_secs(1),
            retry: Retry::default(),
        }
    }
}

/// Repetition of a request on another connection or endpoint.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct Retry {
    /// Endpoints tried per request, the first included, from 1 to 10. A reused connection that
    /// turns out to be closed does not count.
    #[serde(deserialize_with = "values::count::<_, 1, MAX_ATTEMPTS>")]
    #[schemars(range(min = 1, max = MAX_ATTEMPTS))]
    pub max_attempts: usize,
    /// Total time that one request may spend connecting where endpoints can be chosen, as `10s`.
    #[serde(with = "values::duration")]
    #[schemars(with = "String")]
    pub connect_deadline: Duration,
    /// Retries allowed of a service port as a percentage of its requests of the last ten to twenty
    /// seconds, from 0 to 100, so that retries cannot multiply the load of a service that is
    /// failing. What reached no endpoint needs none.
    #[serde(deserialize_with = "values::count::<_, 0, MAX_PERCENT>")]
    #[schemars(range(max = MAX_PERCENT))]
    pub budget_percent: usize,
    /// Retries allowed of a service port in a second however few requests there are, from 0 to
    /// 10000, so that quiet services have failover too.
    #[serde(deserialize_with = "values::count::<_, 0, MAX_BUDGET_PER_SECOND>")]
    #[schemars(range(max = MAX_BUDGET_PER_SECOND))]
    pub budget_min_per_second: usize,
}

impl Default for Retry {
    fn default() -> Self {
        Self {
            // One endpoint is gone, and the next goes in the same moment (a rolling restart): the
            // third serves.
            max_attempts: 3,
            // Two attempts of `failoverDialTimeout` and six seconds for the last, below the usual
            // 15 s of clients.
            connect_deadline: Duration::from_secs(10),
            // What Envoy and Linkerd take.
            budget_percent: 20,
            budget_min_per_second: 10,
        }
    }
}

/// Rewriting of the links in HTML pages.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct Rewriting {
    /// Memory that all pages that are being rewritten may hold together, as `32Mi`: a page needs
    /// some 16 KiB, one with a content coding some 448 KiB, and up to 0.5 MiB more while it has
    /// many elements. Pages beyond it pass unmodified and are counted in
    /// `kube_bastion_rewriting_pages_passed_total`. 0 turns rewriting off; 1024Gi at most.
    #[serde(with = "values::bytes")]
    #[schemars(with = "String")]
    pub max_memory: usize,
}

impl Default for Rewriting {
    fn default() -> Self {
        // Some seventy pages with a content coding at a time, in a small part of a pod's memory
        // limit.
        Self {
            max_memory: 32 * 1024 * 1024,
        }
    }
}

/// What is written to standard error (events) and standard output (requests).
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct Log {
    /// `off`, `error`, `warn`, `info`, `debug`, `trace`, or directives as
    /// `info,kube_bastion::watch=debug`.
    #[serde(deserialize_with = "values::log_level")]
    pub level: String,
    /// How events and requests are written: `text` for people, `json` for machines.
    pub format: LogFormat,
    /// One line per request.
    #[serde(deserialize_with = "values::flag")]
    pub access: bool,
}

impl Default for Log {
    fn default() -> Self {
        Self {
            level: "info".into(),
            format: LogFormat::Text,
            access: true,
        }
    }
}

/// The form of log lines.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema, clap::ValueEnum,
)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    #[default]
    Text,
    Json,
}

/// How the bastion ends.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct Drain {
    /// How long requests and tunnels that run at SIGTERM may go on, as `30s`.
    #[serde(with = "values::duration")]
    #[schemars(with = "String")]
    pub timeout: Duration,
}

impl Default for Drain {
    fn default() -> Self {
        Self {
            timeout: Duration::from_secs(30),
        }
    }
}

/// Why there is no configuration to run with.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("cannot read the configuration file {path:?}")]
    Read {
        path: PathBuf,
        source: std::io::Error,
    },
    /// The parser's own words: line, column, field, value and what would be right, with the lines
    /// around it.
    #[error("the configuration file {path:?} is refused\n{report}")]
    Parse { path: PathBuf, report: String },
    /// Fields that are right by themselves and do not go together.
    #[error("{field}: {fault}")]
    Conflict { field: &'static str, fault: String },
}

impl Config {
    /// The defaults, as a file that says nothing gives them.
    pub fn new() -> Self {
        Self {
            api_version: API_VERSION.into(),
            kind: KIND.into(),
            ..Self::default()
        }
    }

    /// # Errors
    /// Where the file cannot be read, or a field is unknown or its value no good.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path).map_err(|source| ConfigError::Read {
            path: path.into(),
            source,
        })?;
        Self::parse(&text).map_err(|report| ConfigError::Parse {
            path: path.into(),
            report,
        })
    }

    /// # Errors
    /// The parser's report, ready to be shown.
    pub fn parse(text: &str) -> Result<Self, String> {
        serde_saphyr::from_str(text).map_err(|error| error.to_string())
    }

    /// Checks what no field can tell by itself. Called once flags and environment are in.
    ///
    /// # Errors
    /// Names the field that is missing or does not go with another.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let Serving {
            tls_cert_file: cert,
            tls_private_key_file: key,
            ..
        } = &self.serving;
        require_both(
            "serving.tlsPrivateKeyFile",
            "serving.tlsCertFile",
            key.as_ref(),
            cert.as_ref(),
        )?;
        let Targets {
            kubelet_client_certificate: cert,
            kubelet_client_key: key,
            ..
        } = &self.targets;
        require_both(
            "targets.kubeletClientKey",
            "targets.kubeletClientCertificate",
            key.as_ref(),
            cert.as_ref(),
        )?;
        if self.targets.kubelet_service_account_token
            && self.targets.kubelet_certificate_authority.is_none()
        {
            return Err(ConfigError::Conflict {
                field: "targets.kubeletCertificateAuthority",
                fault: "not set, but targets.kubeletServiceAccountToken is: give the CA of the kubelets' serving \
                        certificates (--kubelet-certificate-authority); the token is shown to no kubelet that is not \
                        verified"
                    .into(),
            });
        }
        if self.targets.kubelet_preferred_address_types.is_empty() {
            return Err(ConfigError::Conflict {
                field: "targets.kubeletPreferredAddressTypes",
                fault: "an empty list lets no node be reached; leave the field out for the default order".into(),
            });
        }
        let Source {
            kubernetes,
            manifests,
            ..
        } = &self.source;
        match self.source.kind {
            SourceKind::Manifests if manifests.directory.is_none() => Err(ConfigError::Conflict {
                field: "source.manifests.directory",
                fault:
                    "not set, but source.type is \"manifests\": give a folder of YAML files (--manifests-dir), or use \
                        source.type \"kubernetes\""
                        .into(),
            }),
            SourceKind::Kubernetes if *manifests != ManifestsSource::default() => Err(ConfigError::Conflict {
                field: "source.manifests",
                fault: "set, but source.type is \"kubernetes\": set source.type to \"manifests\", or leave \
                        source.manifests out"
                    .into(),
            }),
            SourceKind::Kubernetes if kubernetes.kubeconfig.is_none() && kubernetes.context.is_some() => {
                Err(ConfigError::Conflict {
                    field: "source.kubernetes.kubeconfig",
                    fault: "not set, but source.kubernetes.context is: give the kubeconfig that the context is of \
                            (--kubeconfig), or no context"
                        .into(),
                })
            }
            SourceKind::Kubernetes | SourceKind::Manifests => Ok(()),
        }
    }

    /// The configuration as a file that would give it. It holds names of files, never what is in
    /// them.
    pub fn to_yaml(&self) -> String {
        serde_saphyr::to_string(self).expect("the configuration is plain data")
    }
}

/// The JSON schema (draft 2020-12) of the file, made from the types.
pub fn schema() -> String {
    let schema = schemars::schema_for!(Config);
    serde_json::to_string_pretty(&schema).expect("a schema is plain data") + "\n"
}

fn require_both(
    first: &'static str,
    second: &'static str,
    a: Option<&PathBuf>,
    b: Option<&PathBuf>,
) -> Result<(), ConfigError> {
    let (field, other, set) = match (a, b) {
        (Some(set), None) => (second, first, set),
        (None, Some(set)) => (first, second, set),
        _ => return Ok(()),
    };
    Err(ConfigError::Conflict {
        field,
        fault: format!("not set, but {other} is {set:?}: give both or neither"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEAD: &str = "apiVersion: kube-bastion.dev/v1alpha1\nkind: BastionConfiguration\n";

    fn refused(body: &str) -> String {
        Config::parse(&format!("{HEAD}{body}")).unwrap_err()
    }

    #[test]
    fn a_file_that_says_nothing_gives_the_defaults() {
        assert_eq!(Config::parse(HEAD).unwrap(), Config::new());
    }

    #[test]
    fn a_section_of_which_nothing_is_said_is_left_out() {
        let body = "serving:\nadmin: ~\nsource: {kubernetes: , manifests: null}\nauthentication: {tokenReview: }\n\
                    authorization:\ntargets:\nupstream:\nrewriting:\nlog:\ndrain:\n";
        assert_eq!(
            Config::parse(&format!("{HEAD}{body}")).unwrap(),
            Config::new()
        );
    }

    #[test]
    fn the_effective_configuration_reads_back() {
        let mut config = Config::new();
        config.serving.insecure_listen_address = Some("127.0.0.1:0".parse().unwrap());
        config.upstream.dial_timeout = Duration::from_millis(1500);
        config.serving.tls_cert_file = Some("a.pem".into());
        assert_eq!(Config::parse(&config.to_yaml()).unwrap(), config);
    }

    #[test]
    fn bad_input_is_refused_with_line_field_value_and_what_would_be_right() {
        let cases = [
            ("servin: {}\n", &["line 3", "`servin`", "serving"][..]),
            (
                "serving:\n  secureListenAddress: localhost\n",
                &[
                    "line 4",
                    "secureListenAddress",
                    "\"localhost\"",
                    "0.0.0.0:8443",
                ],
            ),
            (
                "serving:\n  workers: -1\n",
                &["line 4", "workers", "\"-1\"", "whole number"],
            ),
            (
                "serving:\n  tlsMinVersion: VersionTLS10\n",
                &["line 4", "VersionTLS10", "VersionTLS12"],
            ),
            (
                "upstream:\n  dialTimeout: 30\n",
                &["line 4", "dialTimeout", "\"30\"", "30s"],
            ),
            (
                "upstream:\n  maxIdlePerEndpoint: 0\n",
                &["line 4", "maxIdlePerEndpoint", "\"0\"", "from 1 to 65535"],
            ),
            (
                "upstream:\n  retry:\n    maxAttempts: 11\n",
                &["line 5", "maxAttempts", "\"11\"", "from 1 to 10"],
            ),
            (
                "upstream: {retry: {budgetPercent: 101}}\n",
                &["line 3", "budgetPercent", "from 0 to 100"],
            ),
            (
                "serving:\n  workers: 1000000\n",
                &["line 4", "workers", "\"1000000\"", "from 0 to 1024"],
            ),
            (
                "serving:\n  maxConnections: 99999999999\n",
                &["line 4", "maxConnections", "from 0 to 10000000"],
            ),
            (
                "serving:\n  maxConnectionsPerClient: -1\n",
                &["line 4", "maxConnectionsPerClient", "from 0 to 10000000"],
            ),
            (
                "authorization:\n  cacheSize: 99999999999999\n",
                &[
                    "line 4",
                    "cacheSize",
                    "\"99999999999999\"",
                    "from 1 to 1000000",
                ],
            ),
            (
                "authentication:\n  tokenReview:\n    cacheSize: 1000001\n",
                &["line 5", "cacheSize", "from 1 to 1000000"],
            ),
            (
                "serving:\n  workers:\n",
                &["workers:", "whole number", "or leave the field out"],
            ),
            (
                "serving:\n  workers:\n  maxConnections: 1\n",
                &["workers:", "whole number", "or leave the field out"],
            ),
            (
                "serving: {secureListenAddress: ~}\n",
                &["line 3", "secureListenAddress", "IP:port", "or leave"],
            ),
            (
                "log:\n  access: null\n",
                &[
                    "line 4",
                    "access",
                    "true or false",
                    "or leave the field out",
                ],
            ),
            (
                "rewriting:\n  maxMemory: 32MB\n",
                &["line 4", "maxMemory", "\"32MB\"", "32Mi"],
            ),
            (
                "log:\n  level: inf\n",
                &["line 4", "level", "\"inf\"", "info", "trace"],
            ),
            (
                "targets:\n  clusterDomain: .local.\n",
                &["line 4", "clusterDomain", "\".local.\"", "cluster.local"],
            ),
            (
                "log:\n  level: loud=much\n",
                &["line 4", "level", "loud", "info"],
            ),
            (
                "source:\n  type: etcd\n",
                &["line 4", "etcd", "kubernetes", "manifests"],
            ),
            (
                "targets:\n  kubeletPreferredAddressTypes: [Internal]\n",
                &["line 4", "Internal", "InternalIP"],
            ),
        ];
        for (body, told) in cases {
            let report = refused(body);
            for word in told {
                assert!(
                    report.contains(word),
                    "{body:?} should be told {word:?}:\n{report}"
                );
            }
        }
    }

    #[test]
    fn another_kind_or_version_is_refused() {
        let report = Config::parse("apiVersion: kube-bastion.dev/v1\nkind: BastionConfiguration\n")
            .unwrap_err();
        assert!(
            report.contains("line 1") && report.contains("kube-bastion.dev/v1alpha1"),
            "{report}"
        );
        let report =
            Config::parse("apiVersion: kube-bastion.dev/v1alpha1\nkind: Pod\n").unwrap_err();
        assert!(
            report.contains("line 2") && report.contains("BastionConfiguration"),
            "{report}"
        );
    }

    #[test]
    fn fields_that_do_not_go_together_are_named() {
        let mut config = Config::new();
        config.serving.tls_cert_file = Some("tls.crt".into());
        let error = config.validate().unwrap_err().to_string();
        assert!(
            error.starts_with("serving.tlsPrivateKeyFile: not set") && error.contains("tls.crt"),
            "{error}"
        );

        let mut config = Config::new();
        config.source.kind = SourceKind::Manifests;
        assert!(
            config
                .validate()
                .unwrap_err()
                .to_string()
                .starts_with("source.manifests.directory")
        );
        let mut config = Config::new();
        config.targets.kubelet_service_account_token = true;
        let error = config.validate().unwrap_err().to_string();
        assert!(
            error.starts_with("targets.kubeletCertificateAuthority: not set"),
            "{error}"
        );
        config.targets.kubelet_certificate_authority = Some("ca.crt".into());
        assert!(config.validate().is_ok());
        assert!(Config::new().validate().is_ok());
    }
}
