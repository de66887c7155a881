//! Section `targets`: nodes, pods and services that can be reached.

use std::path::PathBuf;
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::values::fields;
use crate::model::address::AddressType;
use crate::model::path::SubPathDecoding;

/// Resolution of targets, and credentials for kubelets.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct Targets {
    /// Types of node addresses in order of preference. The first type that a node has is dialed.
    pub kubelet_preferred_address_types: Vec<AddressType>,
    /// PEM file with the CAs that verify the serving certificates of kubelets. If unset, they are
    /// not verified, as with kube-apiserver.
    #[serde(deserialize_with = "fields::optional_path")]
    #[schemars(extend("x-type" = "file path"))]
    pub kubelet_certificate_authority: Option<PathBuf>,
    /// PEM file with the client certificate that is presented to kubelets.
    #[serde(deserialize_with = "fields::optional_path")]
    #[schemars(extend("x-type" = "file path"))]
    pub kubelet_client_certificate: Option<PathBuf>,
    /// PEM file with the private key of `kubeletClientCertificate`.
    #[serde(deserialize_with = "fields::optional_path")]
    #[schemars(extend("x-type" = "file path"))]
    pub kubelet_client_key: Option<PathBuf>,
    /// Sends the bastion's own service account token to kubelets that are verified by
    /// `kubeletCertificateAuthority`, unless `kubeletClientCertificate` is set. Off by default:
    /// every node's serving certificate verifies as a kubelet's, so one compromised node can
    /// collect the token and with it the bastion's permissions on all nodes. A client certificate
    /// authenticates without revealing a secret.
    #[serde(deserialize_with = "fields::flag")]
    pub kubelet_service_account_token: bool,
    /// DNS domain of the cluster. Links to the target's own names in this domain are rewritten.
    #[serde(deserialize_with = "fields::dns_domain")]
    pub cluster_domain: String,
    /// Sub-paths that are decoded and encoded again as by kube-apiserver, so that `%2F` becomes `/`.
    pub sub_path_decoding: SubPathDecoding,
    /// Sends requests to endpoints that do not belong to a pod of the service's namespace, too, such
    /// as those of services without a selector. Tunnels and load balancers never lead to them.
    #[serde(deserialize_with = "fields::flag")]
    pub pod_less_endpoints: bool,
    /// Maximum time that a request waits for the DNS lookup of a node's host name. The default
    /// allows two attempts of the system resolver.
    #[serde(with = "fields::duration")]
    #[schemars(with = "String", extend("x-type" = "duration"))]
    pub lookup_timeout: Duration,
    /// Allows loopback addresses as targets. For demos and tests on one machine only; in a cluster
    /// it exposes the ports of the bastion's own pod.
    #[serde(deserialize_with = "fields::flag")]
    pub allow_loopback: bool,
}

impl Default for Targets {
    fn default() -> Self {
        use AddressType::{ExternalDns, ExternalIp, Hostname, InternalDns, InternalIp};
        Self {
            // Node names rarely resolve outside of a node, so the address precedes them
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
            sub_path_decoding: SubPathDecoding::default(),
            pod_less_endpoints: false,
            lookup_timeout: Duration::from_secs(5),
            allow_loopback: false,
        }
    }
}
