//! Callers that a front proxy vouches for: the proxy shows a certificate of the CA that the cluster publishes for it, and
//! names the caller in headers (CONFORMANCE C60). Everybody else's such headers are a lie, and go no further.

use std::collections::BTreeMap;
use std::sync::Arc;

use arc_swap::ArcSwap;
use http::header::{HeaderMap, HeaderName, HeaderValue};
use percent_encoding::percent_decode_str;

use super::certificate::ClientCertificate;
use crate::model::Identity;
use crate::model::identity::with_authenticated;
use crate::tls::ClientCas;

/// What the cluster publishes of its front proxy. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct FrontProxy {
    pub cas: ClientCas,
    names: Arc<ArcSwap<Names>>,
}

/// Which proxies may vouch, and by which headers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Names {
    /// Common names of the proxies' certificates; any where it is empty.
    pub allowed: Vec<String>,
    pub user: Vec<HeaderName>,
    pub uid: Vec<HeaderName>,
    pub group: Vec<HeaderName>,
    /// In lower case; what follows one in a header's name is the key of an extra attribute.
    pub extra: Vec<String>,
}

/// Who a front proxy says that calls.
#[derive(Debug)]
pub(super) struct Claim {
    identity: Identity,
    names: Arc<Names>,
}

impl FrontProxy {
    pub fn replace(&self, names: Names) {
        self.names.store(Arc::new(names));
    }

    /// Whether a header names a caller.
    pub(super) fn identifies(&self, name: &HeaderName) -> bool {
        self.names.load().identifies(name)
    }

    /// Takes the identity headers off: those that are configured and those that are usual (C112).
    pub(super) fn take(&self, headers: &mut HeaderMap) -> Option<Claim> {
        let names = self.names.load();
        if !headers.keys().any(|name| names.identifies(name)) {
            return None;
        }
        let claim = claim(&names, headers);
        let taken: Vec<_> = headers.keys().filter(|name| names.identifies(name)).cloned().collect();
        for name in taken {
            headers.remove(name);
        }
        claim.map(|identity| Claim { identity, names: Arc::clone(&names) })
    }

    /// The caller of the claim, where the certificate is one of the front proxy's.
    ///
    /// # Errors
    /// Why it is not, for the log.
    pub(super) fn accept(&self, claim: Claim, certificate: &ClientCertificate) -> Result<Arc<Identity>, String> {
        let Claim { identity, names } = claim;
        let proxy = certificate.common_name(&self.cas)?;
        if names.allowed.is_empty() || names.allowed.iter().any(|allowed| **allowed == *proxy) {
            Ok(Arc::new(identity))
        } else {
            Err(format!("{proxy:?} is none of the front proxies that are allowed, {:?}", names.allowed))
        }
    }
}

impl Names {
    fn identifies(&self, name: &HeaderName) -> bool {
        let text = name.as_str();
        matches!(text, "x-remote-user" | "x-remote-uid" | "x-remote-group")
            || text.starts_with("x-remote-extra-")
            || [&self.user, &self.uid, &self.group].into_iter().any(|names| names.contains(name))
            || self.extra.iter().any(|prefix| text.starts_with(prefix))
    }
}

/// None where no user is named: then the headers say nothing.
fn claim(names: &Names, headers: &HeaderMap) -> Option<Identity> {
    let user = first(&names.user, headers)?;
    let uid = first(&names.uid, headers).unwrap_or_default();
    let groups = names.group.iter().flat_map(|name| headers.get_all(name)).filter_map(text).map(str::to_owned);
    let mut extra = BTreeMap::<String, Vec<String>>::new();
    for (name, value) in headers {
        let key = names.extra.iter().find_map(|prefix| name.as_str().strip_prefix(prefix.as_str()));
        if let (Some(key), Some(value)) = (key, text(value)) {
            extra.entry(extra_key(key)).or_default().push(value.to_owned());
        }
    }
    let groups = with_authenticated(user, groups.collect());
    Some(Identity::new(user, uid, groups, extra))
}

fn first<'h>(names: &[HeaderName], headers: &'h HeaderMap) -> Option<&'h str> {
    names.iter().filter_map(|name| text(headers.get(name)?)).find(|value| !value.is_empty())
}

fn text(value: &HeaderValue) -> Option<&str> {
    std::str::from_utf8(value.as_bytes()).ok()
}

/// Keys of extra attributes are percent-encoded where a header's name could not hold them.
pub(super) fn extra_key(encoded: &str) -> String {
    percent_decode_str(encoded).decode_utf8().map_or_else(|_| encoded.to_owned(), Into::into)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names() -> Names {
        let header = HeaderName::from_static;
        Names {
            allowed: vec![],
            user: vec![header("x-remote-user"), header("x-forwarded-user")],
            uid: vec![header("x-remote-uid")],
            group: vec![header("x-forwarded-group")],
            extra: vec!["x-remote-extra-".into()],
        }
    }

    #[test]
    fn headers_name_the_caller_and_are_gone() {
        let mut headers = HeaderMap::new();
        for (name, value) in [
            ("x-remote-user", ""),
            ("x-forwarded-user", "jane"),
            ("x-remote-uid", "7"),
            ("x-forwarded-group", "devs"),
            ("x-forwarded-group", "ops"),
            ("x-remote-extra-acme.com%2fproject", "a"),
            ("x-remote-extra-scopes", "b"),
            ("x-kept", "1"),
        ] {
            headers.append(name, HeaderValue::from_static(value));
        }
        let proxy = FrontProxy::default();
        proxy.replace(names());
        let Claim { identity, .. } = proxy.take(&mut headers).unwrap();
        assert_eq!((&*identity.user, &*identity.uid), ("jane", "7"));
        assert_eq!(identity.groups, ["devs", "ops", "system:authenticated"]);
        assert_eq!(identity.extra["acme.com/project"], ["a"]);
        assert_eq!(identity.extra["scopes"], ["b"]);
        assert_eq!(headers.keys().map(HeaderName::as_str).collect::<Vec<_>>(), ["x-kept"]);
    }

    #[test]
    fn without_a_user_nothing_is_claimed_and_all_is_taken() {
        for names in [names(), Names::default()] {
            let proxy = FrontProxy::default();
            proxy.replace(names);
            let mut headers = HeaderMap::new();
            headers.insert("x-remote-group", HeaderValue::from_static("system:masters"));
            assert!(proxy.take(&mut headers).is_none());
            assert!(headers.is_empty());
        }
    }
}
