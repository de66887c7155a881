//! Identity of a caller, as `UserInfo` of `authentication.k8s.io/v1`.

use std::collections::BTreeMap;
use std::fmt;

use aws_lc_rs::digest;

/// Group of all authenticated callers.
pub const AUTHENTICATED: &str = "system:authenticated";
/// User name of callers without credentials, if anonymous requests are accepted.
pub const ANONYMOUS_USER: &str = "system:anonymous";
/// Group of callers without credentials.
pub const UNAUTHENTICATED: &str = "system:unauthenticated";

/// Adds [`AUTHENTICATED`] to the groups of an authenticated user unless they contain it or
/// [`UNAUTHENTICATED`], as kube-apiserver does.
pub fn with_authenticated(user: &str, mut groups: Vec<String>) -> Vec<String> {
    if user != ANONYMOUS_USER
        && !groups
            .iter()
            .any(|group| group == AUTHENTICATED || group == UNAUTHENTICATED)
    {
        groups.push(AUTHENTICATED.into());
    }
    groups
}

/// Adds the group that kube-apiserver implies for a user who is impersonated with these groups.
pub fn with_implied(user: &str, mut groups: Vec<String>) -> Vec<String> {
    if user == ANONYMOUS_USER && !groups.iter().any(|group| group == UNAUTHENTICATED) {
        groups.push(UNAUTHENTICATED.into());
    }
    with_authenticated(user, groups)
}

/// Authenticated caller: user name, uid, groups and extra attributes.
#[derive(Clone, PartialEq, Eq)]
pub struct Identity {
    pub user: String,
    pub uid: String,
    pub groups: Vec<String>,
    pub extra: BTreeMap<String, Vec<String>>,
    fingerprint: Fingerprint,
}

/// SHA-256 of everything that an authorizer can evaluate. Identities with the same fingerprint get
/// the same results, so caches use it as key instead of cloned names.
pub type Fingerprint = [u8; digest::SHA256_OUTPUT_LEN];

impl Identity {
    pub fn new(
        user: impl Into<String>,
        uid: impl Into<String>,
        groups: Vec<String>,
        extra: BTreeMap<String, Vec<String>>,
    ) -> Self {
        let (user, uid) = (user.into(), uid.into());
        let fingerprint = fingerprint(&user, &uid, &groups, &extra);
        Self {
            user,
            uid,
            groups,
            extra,
            fingerprint,
        }
    }

    /// Returns the identity of callers without credentials.
    pub fn anonymous() -> Self {
        Self::new(
            ANONYMOUS_USER,
            "",
            vec![UNAUTHENTICATED.into()],
            BTreeMap::new(),
        )
    }

    pub fn fingerprint(&self) -> &Fingerprint {
        &self.fingerprint
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identity")
            .field("user", &self.user)
            .field("groups", &self.groups)
            .finish_non_exhaustive()
    }
}

/// Hashes every string after its length, so that different identities never hash the same bytes.
fn fingerprint(
    user: &str,
    uid: &str,
    groups: &[String],
    extra: &BTreeMap<String, Vec<String>>,
) -> Fingerprint {
    let mut hash = digest::Context::new(&digest::SHA256);
    let mut put = |text: &str| {
        hash.update(&(text.len() as u64).to_le_bytes());
        hash.update(text.as_bytes());
    };
    put(user);
    put(uid);
    put(&groups.len().to_string());
    // In the order of the authenticator: another order only costs a cache miss.
    groups.iter().for_each(|group| put(group));
    for (key, values) in extra {
        put(key);
        put(&values.len().to_string());
        values.iter().for_each(|value| put(value));
    }
    let mut fingerprint = Fingerprint::default();
    fingerprint.copy_from_slice(hash.finish().as_ref());
    fingerprint
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn adds_implied_authentication_group() {
        let groups = |groups: &[&str]| groups.iter().map(ToString::to_string).collect::<Vec<_>>();
        for (user, requested, expected) in [
            ("jane", &[][..], &[AUTHENTICATED][..]),
            ("jane", &["devs"], &["devs", AUTHENTICATED]),
            ("jane", &[AUTHENTICATED], &[AUTHENTICATED]),
            ("jane", &[UNAUTHENTICATED], &[UNAUTHENTICATED]),
            (ANONYMOUS_USER, &[], &[UNAUTHENTICATED]),
            (ANONYMOUS_USER, &[UNAUTHENTICATED], &[UNAUTHENTICATED]),
        ] {
            assert_eq!(
                with_implied(user, groups(requested)),
                groups(expected),
                "{user} {requested:?}"
            );
        }
    }

    fn identity(user: &str, groups: &[&str], extra: &[(&str, &[&str])]) -> Identity {
        let extra = extra
            .iter()
            .map(|(key, values)| {
                (
                    key.to_string(),
                    values.iter().map(ToString::to_string).collect(),
                )
            })
            .collect();
        Identity::new(
            user,
            "",
            groups.iter().map(ToString::to_string).collect(),
            extra,
        )
    }

    #[test]
    fn fingerprints_differ_for_identities_that_an_authorizer_can_distinguish() {
        let all = [
            identity("a", &[], &[]),
            identity("", &["a"], &[]),
            identity("a", &["b", "c"], &[]),
            identity("a", &["bc"], &[]),
            identity("a", &["b"], &[("c", &[])]),
            identity("a", &["b"], &[("c", &["d"])]),
            identity("a", &["b"], &[("c", &[]), ("d", &[])]),
        ];
        for (i, left) in all.iter().enumerate() {
            for (j, right) in all.iter().enumerate() {
                assert_eq!(
                    i == j,
                    left.fingerprint() == right.fingerprint(),
                    "{left:?} {right:?}"
                );
            }
        }
    }
}
