//! Section `apiServers`.

use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::values::fields;

/// Name in the serving certificates of API servers, by which pods connect to them.
const IN_CLUSTER_NAME: &str = "kubernetes.default.svc";

/// Load balancing of all other paths to the API servers of the cluster, which authenticate and
/// authorize these requests themselves.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct ApiServers {
    /// Passes requests whose path is not that of a target of the bastion to an API server, so that
    /// `kubectl --server https://bastion` works. If false, they get a 404.
    #[serde(deserialize_with = "fields::flag")]
    pub enabled: bool,
    /// The API servers. If empty, those that the cluster publishes in the EndpointSlices of the
    /// service `kubernetes` in the namespace `default`.
    #[serde(deserialize_with = "fields::or_default")]
    pub servers: Vec<ListedServer>,
    /// Name for which the certificate of a server must be valid, unless the list of servers has
    /// another one.
    #[serde(rename = "tlsServerName")]
    pub tls_server_name: String,
    /// PEM file with the CAs of the servers' certificates. If not set, those of the cluster source
    /// are used.
    #[serde(deserialize_with = "fields::optional_path")]
    #[schemars(extend("x-type" = "file path"))]
    pub certificate_authority: Option<PathBuf>,
    /// Passes requests without credentials, as `kubeadm join` sends them. The API server decides on
    /// them as the user `system:anonymous`. If false, they get a 401.
    #[serde(deserialize_with = "fields::flag")]
    pub anonymous: bool,
    /// Means of telling the API server the identity of a caller who is authenticated by a client
    /// certificate, or by another front proxy. A bearer token passes unchanged instead.
    #[serde(deserialize_with = "fields::or_default")]
    pub client_certificates: CertificateCallers,
    /// PEM file with a client certificate of the CA that the API servers trust for front proxies
    /// (`--requestheader-client-ca-file`). For `clientCertificates: frontProxy`.
    #[serde(deserialize_with = "fields::optional_path")]
    #[schemars(extend("x-type" = "file path"))]
    pub front_proxy_client_certificate: Option<PathBuf>,
    /// PEM file with the private key of `frontProxyClientCertificate`.
    #[serde(deserialize_with = "fields::optional_path")]
    #[schemars(extend("x-type" = "file path"))]
    pub front_proxy_client_key: Option<PathBuf>,
}

impl Default for ApiServers {
    fn default() -> Self {
        Self {
            enabled: false,
            servers: Vec::new(),
            tls_server_name: IN_CLUSTER_NAME.into(),
            certificate_authority: None,
            anonymous: true,
            client_certificates: CertificateCallers::default(),
            front_proxy_client_certificate: None,
            front_proxy_client_key: None,
        }
    }
}

/// API server of the list.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct ListedServer {
    /// Host and port, for example `10.0.0.1:6443` or `api-1.example.com:6443`.
    #[serde(deserialize_with = "fields::host_port")]
    pub address: String,
    /// Name for which the certificate must be valid. If not set, that of the section is used.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls_server_name: Option<String>,
}

/// Means of telling an API server the identity of callers with client certificates.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema, clap::ValueEnum,
)]
#[serde(rename_all = "camelCase")]
pub enum CertificateCallers {
    /// They get a 401 that says so.
    #[default]
    Reject,
    /// Headers of a front proxy (`X-Remote-User` and others), on a connection with
    /// `frontProxyClientCertificate`.
    FrontProxy,
    /// Impersonation by the bastion's own account, which needs the verb `impersonate`.
    Impersonation,
}
