//! Callers that a front proxy authenticates: the proxy presents a certificate of the CA that the
//! cluster publishes for it and names the caller in headers (CONFORMANCE C60). The headers are
//! stripped from all other requests.

use std::collections::BTreeMap;
use std::sync::Arc;

use http::header::{HeaderMap, HeaderName, HeaderValue};
use percent_encoding::percent_decode_str;

use super::certificate::{CertificateError, ClientCertificate};
use crate::model::Identity;
use crate::model::identity::with_authenticated;
use crate::model::quote::GoQuoted;
use crate::trust::{FrontProxy, RequestHeaderConfig};

/// Authenticates callers by the headers of a front proxy.
#[derive(Clone, Debug, Default)]
pub struct RequestHeaderAuthenticator(pub FrontProxy);

/// Reason why the identity headers of a request are not accepted.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum FrontProxyError {
    #[error(transparent)]
    Certificate(#[from] CertificateError),
    #[error(
        "{} is not the common name of an allowed front proxy (allowed: {allowed})",
        GoQuoted(.common_name)
    )]
    NotAllowed {
        common_name: String,
        /// Comma-separated list of the allowed names.
        allowed: String,
    },
}

/// Caller named by identity headers; not trusted until [`RequestHeaderAuthenticator::accept`].
#[derive(Debug)]
pub(super) struct Claim {
    identity: Identity,
    /// Configuration that the headers were read with.
    config: Arc<RequestHeaderConfig>,
}

impl RequestHeaderAuthenticator {
    /// Returns true if a header identifies a caller.
    pub(super) fn identifies(&self, name: &HeaderName) -> bool {
        self.0.config().identifies(name)
    }

    /// Removes the identity headers, configured and default ones (C112), and returns their claim.
    pub(super) fn take(&self, headers: &mut HeaderMap) -> Option<Box<Claim>> {
        let config = self.0.config();
        if !headers.keys().any(|name| config.identifies(name)) {
            return None;
        }
        let claim = claim(&config, headers);
        let identifying: Vec<_> = headers
            .keys()
            .filter(|name| config.identifies(name))
            .cloned()
            .collect();
        for name in identifying {
            headers.remove(name);
        }
        let config = Arc::clone(&config);
        claim.map(|identity| Box::new(Claim { identity, config }))
    }

    /// Returns the claimed caller if the certificate belongs to an allowed front proxy.
    ///
    /// # Errors
    /// [`FrontProxyError`], for the log.
    pub(super) fn accept(
        &self,
        claim: Claim,
        certificate: &ClientCertificate,
    ) -> Result<Arc<Identity>, FrontProxyError> {
        let Claim { identity, config } = claim;
        let common_name = certificate.common_name(&self.0.cas)?;
        // Without allowed names, kube-apiserver accepts every certificate of the CA.
        if config.allowed.is_empty() || config.allowed.iter().any(|name| **name == *common_name) {
            Ok(Arc::new(identity))
        } else {
            Err(FrontProxyError::NotAllowed {
                common_name: common_name.to_string(),
                allowed: config.allowed.join(", "),
            })
        }
    }
}

/// Reads the caller from the headers. Returns `None` without a user: the other headers are then
/// ignored, as in kube-apiserver.
fn claim(config: &RequestHeaderConfig, headers: &HeaderMap) -> Option<Identity> {
    let user = first(&config.user, headers)?;
    let uid = first(&config.uid, headers).unwrap_or_default();
    let groups = config
        .group
        .iter()
        .flat_map(|name| headers.get_all(name))
        .filter_map(text)
        .map(str::to_owned);
    let mut extra = BTreeMap::<String, Vec<String>>::new();
    for (name, value) in headers {
        let key = config
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

/// Decodes the percent-encoding of an extra attribute's key. A key that is not valid UTF-8 is
/// returned unchanged.
pub(super) fn extra_key(encoded: &str) -> String {
    percent_decode_str(encoded)
        .decode_utf8()
        .map_or_else(|_| encoded.to_owned(), Into::into)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> RequestHeaderConfig {
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
    fn reads_and_removes_identity_headers() {
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
        proxy.0.replace(config());
        let Claim { identity, .. } = *proxy.take(&mut headers).unwrap();
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
    fn removes_header_names_with_underscores_and_ignores_them() {
        let configured = RequestHeaderConfig {
            user: vec![HeaderName::from_static("acme_user")],
            ..config()
        };
        for (name, removed) in [
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
            assert_eq!(headers.is_empty(), removed, "{name}");
        }
    }

    #[test]
    fn ignores_and_removes_identity_headers_without_user() {
        for config in [config(), RequestHeaderConfig::default()] {
            let proxy = RequestHeaderAuthenticator::default();
            proxy.0.replace(config);
            let mut headers = HeaderMap::new();
            headers.insert("x-remote-group", HeaderValue::from_static("system:masters"));
            assert!(proxy.take(&mut headers).is_none());
            assert!(headers.is_empty());
        }
    }
}
