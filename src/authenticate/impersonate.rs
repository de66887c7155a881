//! Parsing of `Impersonate-*` headers (CONFORMANCE C61). The `authorize` stage checks permissions.

use std::collections::BTreeMap;

use http::header::{HeaderMap, HeaderName, HeaderValue};

use super::front_proxy::extra_key;
use crate::http::cgi_starts_with;

const PREFIX: &str = "impersonate-";
const USER: &str = "impersonate-user";
const UID: &str = "impersonate-uid";
const GROUP: &str = "impersonate-group";
const EXTRA: &str = "impersonate-extra-";

/// Maximum length of a user, uid, group, or extra attribute: each becomes part of a review.
const MAX_VALUE_BYTES: usize = 1024;
/// Maximum number of groups and extra attributes, each of which costs a review. Users of large
/// directories have some hundred groups.
const MAX_VALUES: usize = 256;

/// Identity requested by the `Impersonate-*` headers of a request.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Impersonation {
    pub user: String,
    /// Empty if not requested.
    pub uid: String,
    pub groups: Vec<String>,
    pub extra: BTreeMap<String, Vec<String>>,
}

/// Reason why `Impersonate-*` headers are rejected.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ImpersonationError {
    #[error("the value of the header {0} is not UTF-8")]
    NotUtf8(HeaderName),
    #[error("more than {MAX_VALUES} groups and extra attributes to impersonate; send fewer")]
    TooManyValues,
    #[error("a value to impersonate is longer than {MAX_VALUE_BYTES} bytes")]
    ValueTooLong,
    /// The wording follows kube-apiserver's.
    #[error("requested [{requested}] without impersonating a user")]
    NoUser { requested: String },
}

impl Impersonation {
    /// Returns true for an impersonation header, also if spelled with underscores
    /// (`Impersonate_User`).
    pub(super) fn is_header(name: &HeaderName) -> bool {
        cgi_starts_with(name.as_str(), PREFIX)
    }

    /// Removes the headers from the request. Names with underscores (`Impersonate_User`) are
    /// removed too, but their values are ignored: kube-apiserver does not read them, a CGI-like
    /// backend would. Returns `None` without headers.
    ///
    /// # Errors
    /// [`ImpersonationError`]; the request must not run as the caller itself instead.
    pub(super) fn take(headers: &mut HeaderMap) -> Result<Option<Self>, ImpersonationError> {
        // Fast path: most requests do not impersonate.
        if !headers.keys().any(Self::is_header) {
            return Ok(None);
        }
        let names: Vec<_> = headers
            .keys()
            .filter(|name| Self::is_header(name))
            .cloned()
            .collect();
        let mut requested = Self::default();
        let mut invalid = None;
        for name in names {
            let values: Vec<HeaderValue> = headers.get_all(&name).iter().cloned().collect();
            headers.remove(&name);
            let values: Result<Vec<String>, _> = values
                .iter()
                .map(|value| std::str::from_utf8(value.as_bytes()).map(str::to_owned))
                .collect();
            let Ok(values) = values else {
                // The remaining headers still have to be removed.
                invalid.get_or_insert(ImpersonationError::NotUtf8(name));
                continue;
            };
            let first = |values: Vec<String>| values.into_iter().next().unwrap_or_default();
            match name.as_str() {
                USER => requested.user = first(values),
                UID => requested.uid = first(values),
                GROUP => requested.groups = values,
                name => {
                    if let Some(key) = name.strip_prefix(EXTRA) {
                        requested
                            .extra
                            .entry(extra_key(key))
                            .or_default()
                            .extend(values);
                    }
                }
            }
        }
        if let Some(error) = invalid {
            return Err(error);
        }
        requested.check_size()?;
        if requested == Self::default() {
            Ok(None)
        } else if requested.user.is_empty() {
            Err(ImpersonationError::NoUser {
                requested: requested.describe_without_user(),
            })
        } else {
            Ok(Some(requested))
        }
    }

    /// Checks the limits. Runs before any value is put into a review or a message.
    fn check_size(&self) -> Result<(), ImpersonationError> {
        let extra = self
            .extra
            .iter()
            .flat_map(|(key, values)| values.iter().map(move |value| (key, value)));
        if self.groups.len() + extra.clone().count() > MAX_VALUES {
            return Err(ImpersonationError::TooManyValues);
        }
        let mut values = [&self.user, &self.uid].into_iter().chain(&self.groups);
        let is_too_long = |value: &String| value.len() > MAX_VALUE_BYTES;
        if values.any(is_too_long)
            || self.extra.keys().any(is_too_long)
            || extra.clone().any(|(_, value)| is_too_long(value))
        {
            return Err(ImpersonationError::ValueTooLong);
        }
        Ok(())
    }

    fn describe_without_user(&self) -> String {
        let uid = (!self.uid.is_empty()).then(|| format!("the uid {:?}", self.uid));
        let groups = self
            .groups
            .iter()
            .map(|group| format!("the group {group:?}"));
        let extra = self
            .extra
            .keys()
            .map(|key| format!("the extra attribute {key:?}"));
        let parts: Vec<_> = uid.into_iter().chain(groups).chain(extra).collect();
        parts.join(", ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn take(pairs: &[(&'static str, &'static str)]) -> Result<Option<Impersonation>, String> {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(*name, HeaderValue::from_static(value));
        }
        let result = Impersonation::take(&mut headers).map_err(|error| error.to_string());
        assert!(headers.keys().all(|name| name == "x-kept"), "{headers:?}");
        result
    }

    #[test]
    fn reads_and_removes_impersonation_headers() {
        let requested = take(&[
            ("impersonate-user", "jane"),
            ("impersonate-uid", "7"),
            ("impersonate-group", "devs"),
            ("impersonate-group", "ops"),
            ("impersonate-extra-acme.com%2fproject", "a"),
            ("x-kept", "1"),
        ]);
        let requested = requested.unwrap().unwrap();
        assert_eq!((&*requested.user, &*requested.uid), ("jane", "7"));
        assert_eq!(requested.groups, ["devs", "ops"]);
        assert_eq!(requested.extra["acme.com/project"], ["a"]);
        assert_eq!(take(&[("x-kept", "1")]), Ok(None));
        assert_eq!(
            take(&[
                ("impersonate_user", "admin"),
                ("impersonate-extra_k", "v"),
                ("x-kept", "1")
            ]),
            Ok(None)
        );
        let extra = take(&[("impersonate-user", "jane"), ("impersonate-extra-a_b", "v")])
            .unwrap()
            .unwrap()
            .extra;
        assert_eq!(extra["a_b"], ["v"], "underscores of an extra key are kept");
    }

    #[test]
    fn rejects_impersonation_without_user() {
        for (name, expected) in [
            (
                "impersonate-group",
                r#"requested [the group "x"] without impersonating a user"#,
            ),
            (
                "impersonate-uid",
                r#"requested [the uid "x"] without impersonating a user"#,
            ),
            (
                "impersonate-extra-k",
                r#"requested [the extra attribute "k"] without impersonating a user"#,
            ),
        ] {
            assert_eq!(take(&[(name, "x")]).unwrap_err(), expected);
        }
    }

    #[test]
    fn rejects_and_removes_values_that_are_not_utf8() {
        let mut headers = HeaderMap::new();
        headers.insert("impersonate-user", HeaderValue::from_static("jane"));
        headers.insert(
            "impersonate-group",
            HeaderValue::from_bytes(b"\xff").unwrap(),
        );
        headers.insert("impersonate-uid", HeaderValue::from_static("7"));
        assert_eq!(
            Impersonation::take(&mut headers),
            Err(ImpersonationError::NotUtf8(HeaderName::from_static(GROUP)))
        );
        assert!(headers.is_empty());
    }

    /// CONFORMANCE C61.
    #[test]
    fn rejects_too_many_and_too_long_values() {
        let mut headers = HeaderMap::new();
        headers.insert("impersonate-user", HeaderValue::from_static("jane"));
        for _ in 0..=MAX_VALUES {
            headers.append("impersonate-group", HeaderValue::from_static("devs"));
        }
        assert_eq!(
            Impersonation::take(&mut headers),
            Err(ImpersonationError::TooManyValues)
        );
        let long = HeaderValue::try_from("x".repeat(MAX_VALUE_BYTES + 1)).unwrap();
        headers.insert("impersonate-user", long);
        assert_eq!(
            Impersonation::take(&mut headers),
            Err(ImpersonationError::ValueTooLong)
        );
    }
}
