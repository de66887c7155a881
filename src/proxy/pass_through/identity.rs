//! Headers that name a caller to an API server: those of a front proxy, and those of impersonation.

use http::header::{HeaderMap, HeaderName, HeaderValue};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

use crate::model::Identity;
use crate::model::identity::{AUTHENTICATED, UNAUTHENTICATED, with_authenticated, with_implied};
use crate::trust::RequestHeaderConfig;

const IMPERSONATE_USER: HeaderName = HeaderName::from_static("impersonate-user");
const IMPERSONATE_UID: HeaderName = HeaderName::from_static("impersonate-uid");
const IMPERSONATE_GROUP: HeaderName = HeaderName::from_static("impersonate-group");
const IMPERSONATE_EXTRA: &str = "impersonate-extra-";

/// Characters of keys that are escaped: all but those of a header name without `%`.
const ESCAPED: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'!')
    .remove(b'#')
    .remove(b'$')
    .remove(b'&')
    .remove(b'\'')
    .remove(b'*')
    .remove(b'+')
    .remove(b'-')
    .remove(b'.')
    .remove(b'^')
    .remove(b'_')
    .remove(b'`')
    .remove(b'|')
    .remove(b'~');

/// An identity cannot be written as headers.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IdentityHeaderError {
    #[error("the {0} of the caller contains characters that a header cannot have")]
    Value(&'static str),
    /// The API server may read headers by which the caller could name itself another.
    #[error(
        "the bastion does not know the names of the headers by which the API servers let a front \
         proxy name callers; they are in the ConfigMap extension-apiserver-authentication of the \
         namespace kube-system if --requestheader-client-ca-file is set"
    )]
    UnknownNames,
}

/// Adds the headers of a front proxy. Those of the request have been removed before.
pub(super) fn name_caller(
    names: &RequestHeaderConfig,
    identity: &Identity,
    headers: &mut HeaderMap,
) -> Result<(), IdentityHeaderError> {
    let user = names.user.first();
    let user = user.ok_or(IdentityHeaderError::UnknownNames)?;
    headers.insert(user, value(&identity.user, "user name")?);
    // API servers before 1.33 know no header for it.
    if let (Some(uid), false) = (names.uid.first(), identity.uid.is_empty()) {
        headers.insert(uid, value(&identity.uid, "uid")?);
    }
    if let Some(group) = names.group.first() {
        append_groups(identity, with_authenticated, group, headers)?;
    }
    if let Some(extra) = names.extra.first() {
        append_extra(identity, extra, headers)?;
    }
    Ok(())
}

/// Adds the headers of impersonation. Those of the request have been removed before.
pub(super) fn impersonate(
    identity: &Identity,
    headers: &mut HeaderMap,
) -> Result<(), IdentityHeaderError> {
    headers.insert(IMPERSONATE_USER, value(&identity.user, "user name")?);
    if !identity.uid.is_empty() {
        headers.insert(IMPERSONATE_UID, value(&identity.uid, "uid")?);
    }
    append_groups(identity, with_implied, &IMPERSONATE_GROUP, headers)?;
    append_extra(identity, IMPERSONATE_EXTRA, headers)
}

/// Adds the groups without those that the API server implies, which the bastion need not be allowed
/// to impersonate.
fn append_groups(
    identity: &Identity,
    with_implied: fn(&str, Vec<String>) -> Vec<String>,
    name: &HeaderName,
    headers: &mut HeaderMap,
) -> Result<(), IdentityHeaderError> {
    const SPECIAL: [&str; 2] = [AUTHENTICATED, UNAUTHENTICATED];
    let named = identity.groups.iter();
    let named: Vec<_> = named
        .filter(|group| !SPECIAL.contains(&&***group))
        .cloned()
        .collect();
    let implied = with_implied(&identity.user, named.clone());
    let has = |groups: &[String], special: &str| groups.iter().any(|group| group == special);
    let is_implied = SPECIAL
        .iter()
        .all(|special| has(&implied, special) == has(&identity.groups, special));
    let groups = if is_implied { &named } else { &identity.groups };
    for group in groups {
        headers.append(name, value(group, "group")?);
    }
    Ok(())
}

fn append_extra(
    identity: &Identity,
    prefix: &str,
    headers: &mut HeaderMap,
) -> Result<(), IdentityHeaderError> {
    const EXTRA: &str = "extra attribute";
    for (key, values) in &identity.extra {
        let key = utf8_percent_encode(&key.to_lowercase(), ESCAPED).to_string();
        let name = HeaderName::try_from([prefix, &key].concat());
        let name = name.map_err(|_| IdentityHeaderError::Value(EXTRA))?;
        for text in values {
            headers.append(&name, value(text, EXTRA)?);
        }
    }
    Ok(())
}

fn value(text: &str, of: &'static str) -> Result<HeaderValue, IdentityHeaderError> {
    // Leading and trailing spaces would be lost.
    if text.trim() != text {
        return Err(IdentityHeaderError::Value(of));
    }
    HeaderValue::from_bytes(text.as_bytes()).map_err(|_| IdentityHeaderError::Value(of))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity(user: &str) -> Identity {
        let extra = [(
            "acme.com/Project".to_owned(),
            vec!["a".to_owned(), "b".to_owned()],
        )];
        let groups = vec!["devs".into(), "ops".into(), AUTHENTICATED.into()];
        Identity::new(user, "7", groups, extra.into())
    }

    fn text(headers: &HeaderMap) -> Vec<String> {
        let pair = |(name, value): (&HeaderName, &HeaderValue)| {
            format!("{name}: {}", String::from_utf8_lossy(value.as_bytes()))
        };
        let mut lines: Vec<_> = headers.iter().map(pair).collect();
        lines.sort();
        lines
    }

    #[test]
    fn names_caller_with_the_headers_of_a_front_proxy() {
        let mut headers = HeaderMap::new();
        let names = RequestHeaderConfig {
            user: vec![HeaderName::from_static("x-user")],
            uid: vec![HeaderName::from_static("x-remote-uid")],
            group: vec![HeaderName::from_static("x-remote-group")],
            extra: vec!["x-remote-extra-".into()],
            ..RequestHeaderConfig::default()
        };
        name_caller(&names, &identity("jäne"), &mut headers).unwrap();
        assert_eq!(
            text(&headers),
            [
                "x-remote-extra-acme.com%2fproject: a",
                "x-remote-extra-acme.com%2fproject: b",
                "x-remote-group: devs",
                "x-remote-group: ops",
                "x-remote-uid: 7",
                "x-user: jäne",
            ]
        );
    }

    #[test]
    fn names_no_caller_before_the_names_of_the_headers_are_known() {
        let mut headers = HeaderMap::new();
        let named = name_caller(
            &RequestHeaderConfig::default(),
            &identity("j"),
            &mut headers,
        );
        assert_eq!(named, Err(IdentityHeaderError::UnknownNames));
    }

    #[test]
    fn names_caller_with_the_headers_of_impersonation() {
        let mut headers = HeaderMap::new();
        impersonate(&identity("jane"), &mut headers).unwrap();
        assert_eq!(
            text(&headers),
            [
                "impersonate-extra-acme.com%2fproject: a",
                "impersonate-extra-acme.com%2fproject: b",
                "impersonate-group: devs",
                "impersonate-group: ops",
                "impersonate-uid: 7",
                "impersonate-user: jane",
            ]
        );
    }

    #[test]
    fn api_server_completes_the_groups_to_those_of_the_identity() {
        for (user, groups, sent) in [
            ("jane", &[AUTHENTICATED][..], &[][..]),
            ("jane", &["devs", AUTHENTICATED], &["devs"]),
            // `--as=jane --as-group=system:unauthenticated`
            ("jane", &[UNAUTHENTICATED], &[UNAUTHENTICATED]),
            (
                "jane",
                &[UNAUTHENTICATED, AUTHENTICATED],
                &[UNAUTHENTICATED, AUTHENTICATED],
            ),
            ("system:anonymous", &[UNAUTHENTICATED], &[]),
            (
                "system:anonymous",
                &[AUTHENTICATED, UNAUTHENTICATED],
                &[AUTHENTICATED, UNAUTHENTICATED],
            ),
        ] {
            let groups: Vec<String> = groups.iter().map(ToString::to_string).collect();
            let identity =
                Identity::new(user, "", groups.clone(), std::collections::BTreeMap::new());
            let mut headers = HeaderMap::new();
            impersonate(&identity, &mut headers).unwrap();
            let values = headers.get_all(IMPERSONATE_GROUP).iter();
            let values: Vec<_> = values.map(|it| it.to_str().unwrap().to_owned()).collect();
            assert_eq!(values, sent, "{user} {groups:?}");
            assert_eq!(with_implied(user, values).len(), groups.len());
        }
    }

    #[test]
    fn rejects_names_that_a_header_would_change() {
        for user in ["a\nb", " a", "a\r\nimpersonate-group: system:masters", "a "] {
            let mut headers = HeaderMap::new();
            assert!(
                impersonate(&identity(user), &mut headers).is_err(),
                "{user:?}"
            );
        }
    }
}
