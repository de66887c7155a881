//! May a caller act as somebody else? Each thing that they want to be is asked for (CONFORMANCE
//! C61).

use std::sync::Arc;
use std::time::Duration;

use super::{AuthorizeError, Authorizer};
use crate::authenticate::Impersonation;
use crate::model::identity::{ANONYMOUS_USER, UNAUTHENTICATED, with_authenticated};
use crate::model::{Attributes, ClientAddress, Identity, Verb};

/// Time limit of all reviews that one request to impersonate needs: each value costs one, and they
/// are asked in turn.
const MAX_DURATION: Duration = Duration::from_secs(30);
const AUTHENTICATION: &str = "authentication.k8s.io";
const SERVICE_ACCOUNT: &str = "system:serviceaccount:";

impl Authorizer {
    /// The identity that `caller` wants, where they may take it: user, groups, uid and extra
    /// attributes, each asked for with the verb `impersonate`, as kube-apiserver asks.
    ///
    /// # Errors
    /// As [`Self::authorize`], for the first of them that is denied.
    pub async fn impersonate(
        &self,
        caller: &Identity,
        wanted: Impersonation,
        client: ClientAddress,
    ) -> Result<Arc<Identity>, AuthorizeError> {
        let asked = tokio::time::timeout(
            MAX_DURATION,
            self.ask_to_impersonate(caller, wanted, client),
        );
        asked.await.unwrap_or_else(|_| {
            Err(AuthorizeError::Unavailable(
                format!("the reviews took longer than {MAX_DURATION:?} together").into(),
            ))
        })
    }

    async fn ask_to_impersonate(
        &self,
        caller: &Identity,
        wanted: Impersonation,
        client: ClientAddress,
    ) -> Result<Arc<Identity>, AuthorizeError> {
        let Impersonation {
            user,
            uid,
            mut groups,
            extra,
        } = wanted;
        let account = service_account(&user);
        let check_impersonate =
            async |group, resource, subresource: &str, namespace: &str, name: &str| {
                let verb = Verb::Impersonate;
                self.require(
                    caller,
                    Attributes {
                        verb,
                        group,
                        resource,
                        subresource,
                        namespace,
                        name,
                    },
                    client,
                )
                .await
            };
        match account {
            Some((namespace, name)) => {
                check_impersonate("", "serviceaccounts", "", namespace, name).await?;
            }
            None => check_impersonate("", "users", "", "", &user).await?,
        }
        for group in &groups {
            check_impersonate("", "groups", "", "", group).await?;
        }
        for (key, values) in &extra {
            for value in values {
                check_impersonate(AUTHENTICATION, "userextras", key, "", value).await?;
            }
        }
        if !uid.is_empty() {
            check_impersonate(AUTHENTICATION, "uids", "", "", &uid).await?;
        }
        if let Some((namespace, _)) = account
            && groups.is_empty()
        {
            groups = vec![
                "system:serviceaccounts".into(),
                format!("system:serviceaccounts:{namespace}"),
            ];
        }
        let groups = with_implied(&user, groups);
        Ok(Arc::new(Identity::new(user, uid, groups, extra)))
    }
}

/// Namespace and name of a service account's user name.
fn service_account(user: &str) -> Option<(&str, &str)> {
    let (namespace, name) = user.strip_prefix(SERVICE_ACCOUNT)?.split_once(':')?;
    // A namespace is one DNS label, an account's name several (RFC 1123).
    let label = |label: &str| {
        let inner = label
            .bytes()
            .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-');
        inner
            && !label.is_empty()
            && label.len() <= 63
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    (label(namespace) && name.len() <= 253 && name.split('.').all(label))
        .then_some((namespace, name))
}

/// With the group that whoever has that name is in anyway, unless the caller chose otherwise.
fn with_implied(user: &str, mut groups: Vec<String>) -> Vec<String> {
    if user == ANONYMOUS_USER && !groups.iter().any(|group| group == UNAUTHENTICATED) {
        groups.push(UNAUTHENTICATED.into());
    }
    with_authenticated(user, groups)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn service_accounts_are_told_by_their_user_name() {
        assert_eq!(
            service_account("system:serviceaccount:shop:ci"),
            Some(("shop", "ci"))
        );
        for user in [
            "jane",
            "system:serviceaccount:shop",
            "system:serviceaccount:shop:",
            "system:serviceaccount:a:b:c",
            "system:serviceaccount:Shop_1:x",
        ] {
            assert_eq!(service_account(user), None, "{user}");
        }
    }

    #[test]
    fn everybody_is_either_authenticated_or_not() {
        use crate::model::identity::AUTHENTICATED;
        let groups = |groups: &[&str]| groups.iter().map(ToString::to_string).collect::<Vec<_>>();
        for (user, asked, has) in [
            ("jane", &[][..], &[AUTHENTICATED][..]),
            ("jane", &["devs"], &["devs", AUTHENTICATED]),
            ("jane", &[AUTHENTICATED], &[AUTHENTICATED]),
            ("jane", &[UNAUTHENTICATED], &[UNAUTHENTICATED]),
            (ANONYMOUS_USER, &[], &[UNAUTHENTICATED]),
            (ANONYMOUS_USER, &[UNAUTHENTICATED], &[UNAUTHENTICATED]),
        ] {
            assert_eq!(
                with_implied(user, groups(asked)),
                groups(has),
                "{user} {asked:?}"
            );
        }
    }
}
