//! Front proxies: CAs of their certificates and headers that name callers.

use std::sync::Arc;

use arc_swap::{ArcSwap, Guard};
use http::header::HeaderName;

use super::DynamicClientCas;
use crate::http::cgi_starts_with;

/// Default header names, stripped whatever is configured (C112).
const DEFAULT_NAMES: [&str; 3] = ["x-remote-user", "x-remote-uid", "x-remote-group"];
const DEFAULT_EXTRA_PREFIX: &str = "x-remote-extra-";

/// Front proxies that the cluster publishes. Clones share the state.
#[derive(Clone, Debug, Default)]
pub struct FrontProxy {
    pub cas: DynamicClientCas,
    config: Arc<ArcSwap<RequestHeaderConfig>>,
}

/// Allowed front proxies and their headers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RequestHeaderConfig {
    /// Allowed common names of the proxies' certificates; empty allows any.
    pub allowed: Vec<String>,
    pub user: Vec<HeaderName>,
    pub uid: Vec<HeaderName>,
    pub group: Vec<HeaderName>,
    /// Prefixes in lower case; the rest of a header's name is the key of an extra attribute.
    pub extra: Vec<String>,
}

impl FrontProxy {
    pub fn replace(&self, config: RequestHeaderConfig) {
        self.config.store(Arc::new(config));
    }

    pub fn config(&self) -> Guard<Arc<RequestHeaderConfig>> {
        self.config.load()
    }
}

impl RequestHeaderConfig {
    /// Returns true if a header of this name identifies a caller. Matches underscores as hyphens,
    /// because `X_Remote_User` is the same variable to a CGI-like backend. Such headers are
    /// stripped; identities are read from the exact names only.
    pub fn identifies(&self, name: &HeaderName) -> bool {
        let name = name.as_str();
        let configured = [&self.user, &self.uid, &self.group]
            .into_iter()
            .flatten()
            .map(HeaderName::as_str);
        let prefixes = self.extra.iter().map(String::as_str);
        DEFAULT_NAMES
            .into_iter()
            .chain(configured)
            .any(|known| name.len() == known.len() && cgi_starts_with(name, known))
            || [DEFAULT_EXTRA_PREFIX]
                .into_iter()
                .chain(prefixes)
                .any(|prefix| cgi_starts_with(name, prefix))
    }
}
