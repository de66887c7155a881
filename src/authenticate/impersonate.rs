//! Who a caller wants to act as (CONFORMANCE C61). Whether they may, `authorize` asks.

use std::collections::BTreeMap;

use http::header::{HeaderMap, HeaderName, HeaderValue};

use super::AuthenticationError;
use super::front_proxy::extra_key;
use crate::http::reads_as;

const PREFIX: &str = "impersonate-";
const USER: &str = "impersonate-user";
const UID: &str = "impersonate-uid";
const GROUP: &str = "impersonate-group";
const EXTRA: &str = "impersonate-extra-";

/// The longest user, uid, group, or extra attribute: each becomes part of a review.
const MAX_VALUE_BYTES: usize = 1024;
/// The most groups and extra attributes, each of which costs a review. Users of large directories
/// have some hundred groups.
const MAX_VALUES: usize = 256;

/// What the `Impersonate-*` headers of a request ask for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Impersonation {
    pub user: String,
    /// Empty where none is asked for.
    pub uid: String,
    pub groups: Vec<String>,
    pub extra: BTreeMap<String, Vec<String>>,
}

impl Impersonation {
    /// Whether a header is one of them, or is one in disguise (`Impersonate_User`).
    pub(super) fn is_header(name: &HeaderName) -> bool {
        reads_as(name.as_str(), PREFIX)
    }

    /// Takes the headers off the request, those in disguise (`Impersonate_User`) too, which mean
    /// nobody. None where there are none.
    ///
    /// # Errors
    /// [`AuthenticationError::Impersonation`] where they name no user, are not text, or are too
    /// long or too many: a caller who sends them must not be taken for themselves.
    pub(super) fn take(headers: &mut HeaderMap) -> Result<Option<Self>, AuthenticationError> {
        // Almost nobody does.
        if !headers.keys().any(Self::is_header) {
            return Ok(None);
        }
        let names: Vec<_> = headers
            .keys()
            .filter(|name| Self::is_header(name))
            .cloned()
            .collect();
        let mut asked = Self::default();
        for name in names {
            let values: Vec<HeaderValue> = headers.get_all(&name).iter().cloned().collect();
            headers.remove(&name);
            let values = values
                .iter()
                .map(|value| std::str::from_utf8(value.as_bytes()).map(str::to_owned));
            let values: Vec<String> = values.collect::<Result<_, _>>().map_err(|_| {
                AuthenticationError::Impersonation(format!(
                    "the header {name} is not UTF-8: nobody can be meant by it"
                ))
            })?;
            let first = |values: Vec<String>| values.into_iter().next().unwrap_or_default();
            match name.as_str() {
                USER => asked.user = first(values),
                UID => asked.uid = first(values),
                GROUP => asked.groups = values,
                name => {
                    if let Some(key) = name.strip_prefix(EXTRA) {
                        asked
                            .extra
                            .entry(extra_key(key))
                            .or_default()
                            .extend(values);
                    }
                }
            }
        }
        asked.check_size()?;
        match asked {
            asked if asked == Self::default() => Ok(None),
            asked if asked.user.is_empty() => {
                Err(AuthenticationError::Impersonation(asked.without_user()))
            }
            asked => Ok(Some(asked)),
        }
    }

    /// Checked before anything is asked or put into a message.
    fn check_size(&self) -> Result<(), AuthenticationError> {
        let extra = self
            .extra
            .iter()
            .flat_map(|(key, values)| values.iter().map(move |value| (key, value)));
        if self.groups.len() + extra.clone().count() > MAX_VALUES {
            let fault =
                format!("more than {MAX_VALUES} groups and extra attributes to impersonate");
            return Err(AuthenticationError::Impersonation(fault));
        }
        let mut values = [&self.user, &self.uid].into_iter().chain(&self.groups);
        let is_long = |value: &String| value.len() > MAX_VALUE_BYTES;
        if values.any(is_long)
            || self.extra.keys().any(is_long)
            || extra.clone().any(|(_, value)| is_long(value))
        {
            let fault = format!("a value to impersonate is longer than {MAX_VALUE_BYTES} bytes");
            return Err(AuthenticationError::Impersonation(fault));
        }
        Ok(())
    }

    fn without_user(&self) -> String {
        let uid = (!self.uid.is_empty()).then(|| format!("the uid {:?}", self.uid));
        let groups = self
            .groups
            .iter()
            .map(|group| format!("the group {group:?}"));
        let extra = self
            .extra
            .keys()
            .map(|key| format!("the extra attribute {key:?}"));
        let asked: Vec<_> = uid.into_iter().chain(groups).chain(extra).collect();
        format!(
            "requested [{}] without impersonating a user",
            asked.join(", ")
        )
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
        let taken = Impersonation::take(&mut headers).map_err(|error| error.to_string());
        assert!(headers.keys().all(|name| name == "x-kept"), "{headers:?}");
        taken
    }

    #[test]
    fn headers_name_whom_to_be() {
        let asked = take(&[
            ("impersonate-user", "jane"),
            ("impersonate-uid", "7"),
            ("impersonate-group", "devs"),
            ("impersonate-group", "ops"),
            ("impersonate-extra-acme.com%2fproject", "a"),
            ("x-kept", "1"),
        ]);
        let asked = asked.unwrap().unwrap();
        assert_eq!((&*asked.user, &*asked.uid), ("jane", "7"));
        assert_eq!(asked.groups, ["devs", "ops"]);
        assert_eq!(asked.extra["acme.com/project"], ["a"]);
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
        assert_eq!(extra["a_b"], ["v"], "an underscore of the key is the key's");
    }

    #[test]
    fn whoever_names_no_user_is_refused() {
        for (name, told) in [
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
            assert_eq!(take(&[(name, "x")]).unwrap_err(), told);
        }
    }
}
