//! Current state that callers are authenticated and authorized with; the counterpart of `cluster`.
//! `watch` and the configuration write it; `authenticate`, `authorize` and `tls` read it.

mod client_cas;
mod front_proxy;
mod rbac;
mod token_file;

use std::sync::Arc;

use arc_swap::ArcSwap;

pub use client_cas::{CaError, DynamicClientCas};
pub use front_proxy::{FrontProxy, RequestHeaderConfig};
pub use rbac::{RbacRules, RbacRulesBuilder};
pub use token_file::{TokenFile, TokenFileError};

/// CAs, front proxies, static tokens and RBAC rules. Clones share the state.
#[derive(Clone, Debug, Default)]
pub struct Trust {
    pub client_cas: DynamicClientCas,
    pub front_proxy: FrontProxy,
    /// Used with manifests; empty with a Kubernetes API, which verifies tokens by TokenReview.
    pub token_file: Arc<TokenFile>,
    /// Used with manifests; empty with a Kubernetes API, which authorizes by SubjectAccessReview.
    pub rbac: Arc<ArcSwap<RbacRules>>,
}

impl Trust {
    /// Returns the CAs that a TLS handshake names when it requests a client certificate.
    pub fn handshake_cas(&self) -> [DynamicClientCas; 2] {
        [self.client_cas.clone(), self.front_proxy.cas.clone()]
    }
}
