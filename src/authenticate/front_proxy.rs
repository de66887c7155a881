//! Callers that a front proxy vouches for: the proxy shows a certificate of the CA that the cluster
//! publishes for it, and names the caller in headers (CONFORMANCE C60). Everybody else's such
//! headers are a lie, and go no further.

use std::collections::BTreeMap;
use std::sync::Arc;

use http::header::{HeaderMap, HeaderName, HeaderValue};
use percent_encoding::percent_decode_str;

use super::certificate::ClientCertificate;
use crate::model::Identity;
use crate::model::identity::with_authenticated;
use crate::trust::{FrontProxy, RequestHeaderConfig};

/// Authenticates callers by the headers of a front proxy.
#[derive(Clone, Debug, Default)]
pub struct RequestHeaderAuthenticator(pub FrontProxy);

/// Who a front proxy says that calls.
#[derive(Debug)]
pub(super) struct Claim {
    identity: Identity,
    names: Arc<RequestHeaderConfig>,
}

impl RequestHeaderAuthenticator {
    /// Whether a header names a caller.
    pub(super) fn identifies(&self, name: &HeaderName) -> bool {
        self.0.config().identifies(name)
    }

    /// Takes the identity headers off: those that are configured and those that are usual (C112).
    pub(super) fn take(&self, headers: &mut HeaderMap) -> Option<Claim> {
        let names = self.0.config();
        if !headers.keys().any(|name| names.identifies(name)) {
            return None;
        }
        let claim = claim(&names, headers);
        let taken: Vec<_> = headers
            .keys()
            .filter(|name| names.identifies(name))
            .cloned()
            .collect();
        for name in taken {
            headers.remove(name);
        }
        claim.map(|identity| Claim {
            identity,
            names: Arc::clone(&names),
        })
    }

    /// The caller of the claim, where the certificate is one of the front proxy's.
    ///
    /// # Errors
    /// Why it is not, for the log.
    pub(super) fn accept(
        &self,
        claim: Claim,
        certificate: &ClientCertificate,
    ) -> Result<Arc<Identity>, String> {
        let Claim { identity, names } = claim;
        let proxy = certificate.common_name(&self.0.cas)?;
        if names.allowed.is_empty() || names.allowed.iter().any(|allowed| **allowed == *proxy) {
            Ok(Arc::new(identity))
        } else {
            Err(format!(
                "{proxy:?} is none of the front proxies that are allowed, {:?}",
                names.allowed
            ))
        }
    }
}

/// None where no user is named: then the headers say nothing.
fn claim(names: &RequestHeaderConfig, headers: &HeaderMap) -> Option<Identity> {
    let user = first(&names.user, headers)?;
    let uid = first(&names.uid, headers).unwrap_or_default();
    let groups = names
        .group
        .iter()
        .flat_map(|name| headers.get_all(name))
        .filter_map(text)
        .map(str::to_owned);
    let mut extra = BTreeMap::<String, Vec<String>>::new();
    for (name, value) in headers {
        let key = names
            .extra
            .iter()
            .find_map(|prefix| name.as_str().strip_prefix(prefix.as_str()));
        if let (Some(key), Some(value)) = (key, text(value)) {
            extra
                .entry(extra_key(key))
                .or_default()
                .push(value.to_owned());
        }
    }
    let groups = with_authenticated(user, groups.collect());
    Some(Identity::new(user, uid, groups, extra))
}

fn first<'h>(names: &[HeaderName], headers: &'h HeaderMap) -> Option<&'h str> {
    names
        .iter()
        .filter_map(|name| text(headers.get(name)?))
        .find(|value| !value.is_empty())
}

fn text(value: &HeaderValue) -> Option<&str> {
    std::str::from_utf8(value.as_bytes()).ok()
}

/// Keys of extra attributes are percent-encoded where a header's name could not hold them.
pub(super) fn extra_key(encoded: &str) -> String {
    percent_decode_str(encoded)
        .decode_utf8()
        .map_or_else(|_| encoded.to_owned(), Into::into)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names() -> RequestHeaderConfig {
        let header = HeaderName::from_static;
        RequestHeaderConfig {
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
        let proxy = RequestHeaderAuthenticator::default();
        proxy.0.replace(names());
        let Claim { identity, .. } = proxy.take(&mut headers).unwrap();
        assert_eq!((&*identity.user, &*identity.uid), ("jane", "7"));
        assert_eq!(identity.groups, ["devs", "ops", "system:authenticated"]);
        assert_eq!(identity.extra["acme.com/project"], ["a"]);
        assert_eq!(identity.extra["scopes"], ["b"]);
        assert_eq!(
            headers.keys().map(HeaderName::as_str).collect::<Vec<_>>(),
            ["x-kept"]
        );
    }

    #[test]
    fn names_in_disguise_claim_nothing_and_are_gone() {
        let configured = RequestHeaderConfig {
            user: vec![HeaderName::from_static("acme_user")],
            ..names()
        };
        for (name, taken) in [
            ("x_remote_user", true),
            ("x-remote_group", true),
            ("x_remote_extra_scopes", true),
            ("x_forwarded-user", false),
            ("x_forwarded_group", true),
            ("acme_user", true),
            ("acme-user", true),
            ("x_remote", false),
            ("x_remote_users", false),
            ("x_request_id", false),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(name, HeaderValue::from_static("admin"));
            let proxy = RequestHeaderAuthenticator::default();
            proxy.0.replace(configured.clone());
            let claimed = proxy
                .take(&mut headers)
                .map(|claim| claim.identity.user.clone());
            assert_eq!(
                claimed.as_deref(),
                (name == "acme_user").then_some("admin"),
                "{name}"
            );
            assert_eq!(headers.is_empty(), taken, "{name}");
        }
    }

    #[test]
    fn without_a_user_nothing_is_claimed_and_all_is_taken() {
        for names in [names(), RequestHeaderConfig::default()] {
            let proxy = RequestHeaderAuthenticator::default();
            proxy.0.replace(names);
            let mut headers = HeaderMap::new();
            headers.insert("x-remote-group", HeaderValue::from_static("system:masters"));
            assert!(proxy.take(&mut headers).is_none());
            assert!(headers.is_empty());
        }
    }
}
