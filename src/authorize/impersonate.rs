//! Authorization of impersonation: each requested attribute is checked (CONFORMANCE C61).

use std::sync::Arc;
use std::time::Duration;

use super::{AuthorizationError, Authorizer};
use crate::authenticate::{Caller, Impersonation};
use crate::model::identity::with_implied;
use crate::model::{Attributes, ClientAddress, Identity, Verb, dns};
use crate::review::ReviewFailure;

/// Time limit for all reviews of one impersonation: each value needs one, and they are sent one
/// after the other.
const MAX_DURATION: Duration = Duration::from_secs(30);
const AUTHENTICATION: &str = "authentication.k8s.io";
const SERVICE_ACCOUNT: &str = "system:serviceaccount:";

impl Authorizer {
    /// Returns the identity with which the caller acts: its own, or that of the user whom it
    /// impersonates.
    ///
    /// # Errors
    /// As [`Self::impersonate`].
    pub async fn acting(
        &self,
        caller: Caller,
        client: ClientAddress,
    ) -> Result<Arc<Identity>, AuthorizationError> {
        match caller.impersonates {
            None => Ok(caller.identity),
            // Boxed, because it is large and rare.
            Some(requested) => {
                Box::pin(self.impersonate(&caller.identity, *requested, client)).await
            }
        }
    }

    /// Returns the identity that `caller` requests. User, groups, uid and extra attributes are each
    /// authorized with the verb `impersonate`, as in kube-apiserver.
    ///
    /// # Errors
    /// As [`Self::authorize`], for the first attribute that is denied.
    pub async fn impersonate(
        &self,
        caller: &Identity,
        requested: Impersonation,
        client: ClientAddress,
    ) -> Result<Arc<Identity>, AuthorizationError> {
        let reviews = self.review_impersonation(caller, requested, client);
        tokio::time::timeout(MAX_DURATION, reviews)
            .await
            .unwrap_or_else(|_| {
                let failure = ReviewFailure::ImpersonationTimeout(MAX_DURATION);
                Err(AuthorizationError::Unavailable(failure))
            })
    }

    async fn review_impersonation(
        &self,
        caller: &Identity,
        requested: Impersonation,
        client: ClientAddress,
    ) -> Result<Arc<Identity>, AuthorizationError> {
        let Impersonation {
            user,
            uid,
            mut groups,
            extra,
        } = requested;
        let account = service_account(&user);
        let check_impersonate =
            async |group, resource, subresource: &str, namespace: &str, name: &str| {
                let verb = Verb::Impersonate;
                self.require(
                    caller,
                    &Attributes {
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

/// Returns namespace and name of a service account's user name.
fn service_account(user: &str) -> Option<(&str, &str)> {
    let (namespace, name) = user.strip_prefix(SERVICE_ACCOUNT)?.split_once(':')?;
    (dns::is_label(namespace) && dns::is_subdomain(name)).then_some((namespace, name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn recognizes_service_accounts_by_user_name() {
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
}
