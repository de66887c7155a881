//! Front proxies: the CAs of their certificates, and the headers in which they name callers.

use std::sync::Arc;

use arc_swap::{ArcSwap, Guard};
use http::header::HeaderName;

use super::DynamicClientCas;
use crate::http::reads_as;

/// The names that are usual, whatever is configured (C112).
const USUAL: [&str; 3] = ["x-remote-user", "x-remote-uid", "x-remote-group"];
const USUAL_EXTRA: &str = "x-remote-extra-";

/// The front proxies that the cluster publishes. Clones share the state.
#[derive(Clone, Debug, Default)]
pub struct FrontProxy {
    pub cas: DynamicClientCas,
    config: Arc<ArcSwap<RequestHeaderConfig>>,
}

/// The proxies that may name callers, and the headers in which they do.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RequestHeaderConfig {
    /// Common names of the proxies' certificates; any where it is empty.
    pub allowed: Vec<String>,
    pub user: Vec<HeaderName>,
    pub uid: Vec<HeaderName>,
    pub group: Vec<HeaderName>,
    /// In lower case; what follows one in a header's name is the key of an extra attribute.
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
    /// Returns true if a header of this name identifies a caller. Names in disguise count too:
    /// `X_Remote_User` is the same variable to a CGI-like backend. Only the exact names are
    /// believed.
    pub fn identifies(&self, name: &HeaderName) -> bool {
        let name = name.as_str();
        let configured = [&self.user, &self.uid, &self.group]
            .into_iter()
            .flatten()
            .map(HeaderName::as_str);
        let prefixes = self.extra.iter().map(String::as_str);
        USUAL
            .into_iter()
            .chain(configured)
            .any(|known| name.len() == known.len() && reads_as(name, known))
            || [USUAL_EXTRA]
                .into_iter()
                .chain(prefixes)
                .any(|prefix| reads_as(name, prefix))
    }
}
