//! Headers of an impersonation.

use http::{HeaderMap, HeaderName, HeaderValue};

use super::CredentialsError;
use crate::kubeconfig::UserEntry;

const USER: HeaderName = HeaderName::from_static("impersonate-user");
const UID: HeaderName = HeaderName::from_static("impersonate-uid");
const GROUP: HeaderName = HeaderName::from_static("impersonate-group");
const EXTRA: &str = "impersonate-extra-";

/// Returns the headers of the impersonation of a user entry. Empty without one.
pub(super) fn headers(user: &UserEntry) -> Result<HeaderMap, CredentialsError> {
    let mut headers = HeaderMap::new();
    let Some(name) = &user.impersonate else {
        let others = user.impersonate_uid.is_some()
            || !user.impersonate_groups.is_empty()
            || !user.impersonate_extra.is_empty();
        return if others {
            Err(CredentialsError::ImpersonationWithoutUser)
        } else {
            Ok(headers)
        };
    };
    headers.insert(USER, value(name)?);
    if let Some(uid) = &user.impersonate_uid {
        headers.insert(UID, value(uid)?);
    }
    for group in &user.impersonate_groups {
        headers.append(GROUP, value(group)?);
    }
    for (key, values) in &user.impersonate_extra {
        let name = format!("{EXTRA}{}", escape(key));
        let name = HeaderName::try_from(name).map_err(|_| CredentialsError::NotAHeader)?;
        for text in values {
            headers.append(name.clone(), value(text)?);
        }
    }
    Ok(headers)
}

fn value(text: &str) -> Result<HeaderValue, CredentialsError> {
    HeaderValue::from_bytes(text.as_bytes()).map_err(|_| CredentialsError::NotAHeader)
}

/// Percent-encodes the bytes of a key that a header name cannot have, as the API server expects.
fn escape(key: &str) -> String {
    let mut escaped = String::new();
    for byte in key.bytes() {
        if byte.is_ascii_alphanumeric() || b"!#$&'*+-.^_`|~".contains(&byte) {
            escaped.push(byte.into());
        } else {
            escaped += &format!("%{byte:02X}");
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn encodes_users_groups_and_extra_as_client_go_does() {
        let extra = [
            ("example.org/scopes", vec!["view", "edit"]),
            ("a%b", vec!["c"]),
        ];
        let extra = extra.map(|(key, values)| {
            let values = values.into_iter().map(str::to_owned).collect();
            (key.to_owned(), values)
        });
        let user = UserEntry {
            impersonate: Some("jäne".into()),
            impersonate_uid: Some("7".into()),
            impersonate_groups: vec!["a".into(), "b,c".into()],
            impersonate_extra: extra.into(),
            ..UserEntry::default()
        };
        let headers = headers(&user).unwrap();
        let all = |name: &str| -> Vec<String> {
            let values = headers.get_all(name).into_iter();
            let text = |value: &HeaderValue| String::from_utf8(value.as_bytes().to_vec()).unwrap();
            values.map(text).collect()
        };
        assert_eq!(all("impersonate-user"), ["jäne"]);
        assert_eq!(all("impersonate-uid"), ["7"]);
        assert_eq!(all("impersonate-group"), ["a", "b,c"]);
        let scopes = all("impersonate-extra-example.org%2Fscopes");
        assert_eq!(scopes, ["view", "edit"]);
        assert_eq!(all("impersonate-extra-a%25b"), ["c"]);
    }

    #[test]
    fn rejects_groups_without_a_user_and_control_characters() {
        let groups = UserEntry {
            impersonate_groups: vec!["a".into()],
            ..UserEntry::default()
        };
        assert!(headers(&groups).unwrap_err().to_string().contains("--as"));
        let user = UserEntry {
            impersonate: Some("a\nb".into()),
            ..UserEntry::default()
        };
        assert!(headers(&user).is_err());
    }
}
