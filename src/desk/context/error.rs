//! Errors of the flags and the kubeconfig.

use std::io;
use std::path::PathBuf;

use crate::desk::connect::{ProxyUrlError, TlsSetupError};
use crate::desk::credentials::CredentialsError;
use crate::kubeconfig::{Fault, Files, KubeconfigError};
use crate::model::similar::similar;

/// Reason why flags and kubeconfig select no usable cluster. Contains no credentials.
#[derive(Debug, thiserror::Error)]
pub enum ContextError {
    #[error(transparent)]
    Kubeconfig(#[from] KubeconfigError),
    #[error(
        "the {kind} {name:?} ({origin}) is not in the kubeconfig {files}{}",
        alternatives(kind, name, names)
    )]
    NotFound {
        /// `context`, `cluster` or `user`.
        kind: &'static str,
        name: String,
        /// Flag or field that has the name.
        origin: &'static str,
        files: Files,
        names: Vec<String>,
    },
    #[error("the {kind} {name:?} of the kubeconfig {files} {fault}")]
    Entry {
        kind: &'static str,
        name: String,
        files: Files,
        fault: Box<Fault>,
    },
    #[error(
        "no cluster: there is no kubeconfig (--kubeconfig, $KUBECONFIG, ~/.kube/config), no \
         --server, and this is not a pod with a service account; set --kubeconfig=FILE or \
         --server=URL (kubectl would try localhost:8080)"
    )]
    NoCluster,
    #[error(
        "the kubeconfig {files} has no current context; set --context=NAME or --server=URL{}",
        list("context", names)
    )]
    NoCurrentContext { files: Files, names: Vec<String> },
    #[error(
        "the context {context:?} of the kubeconfig {files} names no cluster; set --cluster=NAME or \
         --server=URL{}",
        list("cluster", names)
    )]
    ContextWithoutCluster {
        context: String,
        files: Files,
        names: Vec<String>,
    },
    #[error("the server {url:?} cannot be used: {reason}; use https://HOST:PORT")]
    Server { url: String, reason: &'static str },
    #[error("--server has URLs with http:// and with https://; use one scheme for all servers")]
    MixedSchemes,
    #[error("cannot read the CA {path:?} of the cluster (certificate-authority)")]
    Authority { path: PathBuf, source: io::Error },
    #[error(
        "certificate-authority-data of the cluster {cluster:?} is not base64; use \
         certificate-authority with the path of a PEM file"
    )]
    AuthorityData { cluster: String },
    #[error(
        "a CA (certificate-authority) and insecure-skip-tls-verify exclude each other; remove one \
         of them"
    )]
    InsecureWithAuthority,
    #[error(transparent)]
    Proxy(#[from] ProxyUrlError),
    #[error(transparent)]
    Tls(#[from] TlsSetupError),
    #[error(transparent)]
    Credentials(#[from] CredentialsError),
    #[error("cannot discover the API servers (--discover): {reason}")]
    Discover { reason: String },
}

fn alternatives(kind: &str, name: &str, names: &[String]) -> String {
    let candidates: Vec<_> = names.iter().map(String::as_str).collect();
    let suggestion = similar(name, &candidates)
        .map_or_else(String::new, |name| format!("; did you mean {name:?}?"));
    list(kind, names) + &suggestion
}

fn list(kind: &str, names: &[String]) -> String {
    if names.is_empty() {
        format!("; it has no {kind}s")
    } else {
        format!("; its {kind}s are: {}", names.join(", "))
    }
}
