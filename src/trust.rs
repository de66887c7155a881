//! The second meeting point of facts, beside `cluster`: what callers are authenticated and
//! authorized by. `watch` and the configuration write it; `authenticate`, `authorize` and `tls` read
//! it.

mod client_cas;
mod front_proxy;
mod rbac;
mod token_file;

use std::sync::Arc;

use arc_swap::ArcSwap;

pub use client_cas::{CaError, DynamicClientCas};
pub use front_proxy::{FrontProxy, RequestHeaderConfig};
pub use rbac::{RbacRules, RbacRulesBuilder};
pub use token_file::TokenFile;

/// Everything that is trusted. Clones share the state.
#[derive(Clone, Debug, Default)]
pub struct Trust {
    pub client_cas: DynamicClientCas,
    pub front_proxy: FrontProxy,
    /// Used with manifests; empty with a Kubernetes API, which reviews tokens.
    pub token_file: Arc<TokenFile>,
    /// Used with manifests; empty with a Kubernetes API, which reviews access.
    pub rbac: Arc<ArcSwap<RbacRules>>,
}

impl Trust {
    /// The CAs whose certificates are asked for in a TLS handshake.
    pub fn handshake_cas(&self) -> [DynamicClientCas; 2] {
        [self.client_cas.clone(), self.front_proxy.cas.clone()]
    }
}
