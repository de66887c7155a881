//! Sections `upstream` and `rewriting`: connections to targets and their responses.

use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::TlsVersion;
use super::values::{
    MAX_ATTEMPTS, MAX_BUDGET_PER_SECOND, MAX_IDLE_CONNECTIONS, MAX_PERCENT, fields,
};

/// Connections to targets.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct Upstream {
    /// Timeout of a dial, TLS handshake included, to a pod, a node or the only endpoint of a
    /// service. For services with several endpoints, `retry.connectDeadline` applies if it is
    /// shorter.
    #[serde(with = "fields::duration")]
    #[schemars(with = "String", extend("x-type" = "duration"))]
    pub dial_timeout: Duration,
    /// Timeout of a dial, TLS handshake included, while another endpoint can be tried instead.
    #[serde(with = "fields::duration")]
    #[schemars(with = "String", extend("x-type" = "duration"))]
    pub failover_dial_timeout: Duration,
    /// Timeout of a TLS handshake with a target.
    #[serde(with = "fields::duration")]
    #[schemars(with = "String", extend("x-type" = "duration"))]
    pub tls_handshake_timeout: Duration,
    /// Minimum TLS version of connections to targets, kubelets included: `VersionTLS12` or
    /// `VersionTLS13`. TLS 1.2 is limited to ECDHE with AES-GCM or ChaCha20-Poly1305; targets that
    /// offer only TLS 1.1, CBC suites or RSA key exchange cannot be reached.
    pub tls_min_version: TlsVersion,
    /// Uses HTTP/2 with targets that select it by ALPN, and with service ports whose `appProtocol`
    /// is `kubernetes.io/h2c`. If false, all requests use HTTP/1.1. Requests to
    /// targets that declare that they require HTTP/1.1 use it in any case.
    #[serde(deserialize_with = "fields::flag")]
    pub http2: bool,
    /// Time for which an idle connection is kept for reuse.
    #[serde(with = "fields::duration")]
    #[schemars(with = "String", extend("x-type" = "duration"))]
    pub idle_timeout: Duration,
    /// Maximum number of idle connections per endpoint and worker, from 1 to 65535.
    #[serde(deserialize_with = "fields::count::<_, 1, MAX_IDLE_CONNECTIONS>")]
    #[schemars(range(min = 1, max = MAX_IDLE_CONNECTIONS))]
    pub max_idle_per_endpoint: usize,
    /// Minimum time without a response after which an endpoint counts as stalled; ten times its
    /// recent 99th percentile, at most 10 s, applies if that is longer. A stalled endpoint gets no
    /// new requests until it responds, while other endpoints can serve. A shorter time skips a
    /// frozen endpoint earlier, a longer one tolerates longer pauses.
    #[serde(with = "fields::duration")]
    #[schemars(with = "String", extend("x-type" = "duration"))]
    pub slow_endpoint_timeout: Duration,
    #[serde(deserialize_with = "fields::or_default")]
    pub retry: Retry,
}

impl Default for Upstream {
    fn default() -> Self {
        Self {
            dial_timeout: Duration::from_secs(30),
            failover_dial_timeout: Duration::from_secs(2),
            tls_handshake_timeout: Duration::from_secs(10),
            tls_min_version: TlsVersion::default(),
            http2: true,
            idle_timeout: Duration::from_secs(90),
            max_idle_per_endpoint: 256,
            // Longer than a garbage collection or a few periods of CPU throttling; shorter than
            // the patience of users.
            slow_endpoint_timeout: Duration::from_secs(1),
            retry: Retry::default(),
        }
    }
}

/// Repetition of failed requests on another connection or endpoint.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct Retry {
    /// Maximum number of endpoints tried per request, the first included, from 1 to 10. A reused
    /// connection that turns out to be closed does not count. The default survives the loss of two
    /// endpoints during a rolling restart. Connections of tunnels and load balancers try up to 16,
    /// unless it is 1.
    #[serde(deserialize_with = "fields::count::<_, 1, MAX_ATTEMPTS>")]
    #[schemars(range(min = 1, max = MAX_ATTEMPTS))]
    pub max_attempts: usize,
    /// Maximum total time that a request to a service with several endpoints spends on dials. The
    /// default is below the 15 s that clients usually wait.
    #[serde(with = "fields::duration")]
    #[schemars(with = "String", extend("x-type" = "duration"))]
    pub connect_deadline: Duration,
    /// Retry budget of a service port in percent of its requests in the last ten to twenty seconds,
    /// from 0 to 100. It keeps retries from multiplying the load of a failing service. Attempts
    /// that reached no endpoint do not use it up.
    #[serde(deserialize_with = "fields::count::<_, 0, MAX_PERCENT>")]
    #[schemars(range(max = MAX_PERCENT))]
    pub budget_percent: usize,
    /// Retries per second that a service port always has, from 0 to 10000, so that services with
    /// few requests have failover as well.
    #[serde(deserialize_with = "fields::count::<_, 0, MAX_BUDGET_PER_SECOND>")]
    #[schemars(range(max = MAX_BUDGET_PER_SECOND))]
    pub budget_min_per_second: usize,
}

impl Default for Retry {
    fn default() -> Self {
        Self {
            // In a rolling restart, one endpoint is gone and the next may go at the same moment:
            // the third serves.
            max_attempts: 3,
            // Two attempts of `failoverDialTimeout`, and six seconds for the last one.
            connect_deadline: Duration::from_secs(10),
            // The defaults of Envoy and Linkerd.
            budget_percent: 20,
            budget_min_per_second: 10,
        }
    }
}

/// Rewriting of links in HTML pages.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct Rewriting {
    /// Maximum memory of all pages that are being rewritten, for example `32Mi`, at most 1024Gi; 0
    /// turns rewriting off. A page needs about 16 KiB, a compressed one about 448 KiB, and up to
    /// 0.5 MiB more while it has many open elements. Pages beyond the limit pass unmodified and
    /// are counted by `kube_bastion_rewriting_pages_passed_total`.
    #[serde(with = "fields::bytes")]
    #[schemars(with = "String", extend("x-type" = "size"))]
    pub max_memory: usize,
}

impl Default for Rewriting {
    fn default() -> Self {
        // About seventy compressed pages at a time, in a small part of a pod's memory limit.
        Self {
            max_memory: 32 * 1024 * 1024,
        }
    }
}
