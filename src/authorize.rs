//! Authorization: turns `(Identity, Verb, Target)` into a [`Permit`]. Only this module can create a
//! permit, and later stages require one, so forwarding without authorization does not compile.

mod impersonate;
mod review;
mod tunnel;

use std::fmt;
use std::sync::Arc;

use arc_swap::ArcSwap;

pub use review::{AccessReviewHandler, Reviews};
pub use tunnel::TunnelPermit;

use crate::model::quote::GoQuoted;
use crate::model::target::Id;
use crate::model::{Attributes, ClientAddress, Identity, Resource, Target, Verb};
use crate::review::{Rejection, ReviewError, ReviewFailure};
use crate::trust::RbacRules;

/// Source of authorization decisions.
#[derive(Debug)]
pub enum PolicySource {
    /// SubjectAccessReviews of the Kubernetes API.
    Review(Arc<Reviews>),
    /// RBAC objects of a directory.
    Rbac(Arc<ArcSwap<RbacRules>>),
}

/// Authorization stage. One per process.
#[derive(Debug)]
pub struct Authorizer {
    pub policy: PolicySource,
    /// If the id with scheme and port is denied, checks the bare name too (CONFORMANCE C19).
    pub accept_bare_names: bool,
}

/// Proof that a caller is allowed to act on a target.
#[derive(Debug)]
pub struct Permit<'t> {
    target: &'t Target<'t>,
}

impl<'t> Permit<'t> {
    pub fn target(&self) -> &'t Target<'t> {
        self.target
    }
}

/// Result of an authorizer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    Allow,
    /// With the authorizer's reason, often empty.
    Deny(Arc<str>),
}

/// Reason why there is no permit.
#[derive(Clone, Debug, thiserror::Error)]
pub enum AuthorizationError {
    /// The caller lacks a permission.
    #[error(transparent)]
    Forbidden(Forbidden),
    /// Upstream error: no decision, which denies the request. A retry may succeed.
    #[error("the access could not be reviewed: {0}")]
    Unavailable(ReviewFailure),
    /// Overload: the review was not sent. A retry may succeed.
    #[error("the access could not be reviewed: {0}")]
    Rejected(Rejection),
}

impl From<ReviewError> for AuthorizationError {
    fn from(error: ReviewError) -> Self {
        match error {
            ReviewError::Rejected(rejection) => Self::Rejected(rejection),
            ReviewError::Failed(failure) => Self::Unavailable(failure),
        }
    }
}

impl Authorizer {
    /// Checks that `identity` is allowed to do `verb` on the target. A review uses the share of the
    /// `client` address.
    ///
    /// # Errors
    /// [`AuthorizationError`].
    pub async fn authorize<'t>(
        &self,
        identity: &Identity,
        verb: Verb,
        target: &'t Target<'t>,
        client: ClientAddress,
    ) -> Result<Permit<'t>, AuthorizationError> {
        let attributes = Attributes::for_proxy(verb, target);
        let error = match self.require(identity, &attributes, client).await {
            Ok(()) => return Ok(Permit { target }),
            Err(error) => error,
        };
        if self.accept_bare_names
            && matches!(error, AuthorizationError::Forbidden(_))
            && Box::pin(self.allows_bare_name(identity, attributes, target, client)).await?
        {
            return Ok(Permit { target });
        }
        // The denial of the whole id, which a role should grant, not that of the bare name.
        Err(error)
    }

    /// Returns true if the identity has access to the name in the id without scheme and port.
    async fn allows_bare_name(
        &self,
        identity: &Identity,
        attributes: Attributes<'_>,
        target: &Target<'_>,
        client: ClientAddress,
    ) -> Result<bool, AuthorizationError> {
        match target.id() {
            Ok(Id { name, .. }) if name != target.id => {
                let attributes = Attributes { name, ..attributes };
                Ok(self.decide(identity, &attributes, client).await? == Decision::Allow)
            }
            _ => Ok(false),
        }
    }

    /// Checks the additional permission of an upgrade: a WebSocket to a kubelet can be an exec,
    /// which `get` on nodes does not grant (C111).
    ///
    /// # Errors
    /// As [`Self::authorize`].
    pub async fn authorize_upgrade(
        &self,
        identity: &Identity,
        target: &Target<'_>,
        client: ClientAddress,
    ) -> Result<(), AuthorizationError> {
        if target.resource == Resource::Nodes {
            self.authorize(identity, Verb::Create, target, client)
                .await?;
        }
        Ok(())
    }

    /// Returns true if `identity` can `get` the node, pod or service of the target, so that an
    /// error may contain details about it. Returns false on errors.
    pub async fn can_get_object(
        &self,
        identity: &Identity,
        target: &Target<'_>,
        client: ClientAddress,
    ) -> bool {
        let Ok(Id { name, .. }) = target.id() else {
            return false;
        };
        matches!(
            self.decide(identity, &Attributes::for_object(target, name), client)
                .await,
            Ok(Decision::Allow)
        )
    }

    async fn require(
        &self,
        identity: &Identity,
        attributes: &Attributes<'_>,
        client: ClientAddress,
    ) -> Result<(), AuthorizationError> {
        match self.decide(identity, attributes, client).await? {
            Decision::Allow => Ok(()),
            Decision::Deny(reason) => Err(AuthorizationError::Forbidden(Forbidden::new(
                identity,
                *attributes,
                &reason,
            ))),
        }
    }

    async fn decide(
        &self,
        identity: &Identity,
        attributes: &Attributes<'_>,
        client: ClientAddress,
    ) -> Result<Decision, AuthorizationError> {
        match &self.policy {
            PolicySource::Review(reviews) => reviews.decide(identity, attributes, client).await,
            // kube-apiserver's RBAC gives no reason either.
            PolicySource::Rbac(rules) => Ok(if rules.load().allows(identity, *attributes) {
                Decision::Allow
            } else {
                Decision::Deny("".into())
            }),
        }
    }
}

/// Denial with kube-apiserver's message (CONFORMANCE C96).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Forbidden {
    pub group: &'static str,
    pub resource: &'static str,
    pub name: String,
    /// `User "u" cannot get resource …`, followed by the reason, if any.
    pub message: String,
    /// Attributes of the denied review, for callers that can `get` the target.
    pub review: String,
}

impl Forbidden {
    fn new(identity: &Identity, attributes: Attributes<'_>, reason: &str) -> Self {
        let Attributes {
            verb,
            group,
            resource,
            subresource,
            namespace,
            name,
        } = attributes;
        let scope = match namespace {
            "" => "at the cluster scope".to_owned(),
            namespace => format!("in the namespace {}", GoQuoted(namespace)),
        };
        let user = GoQuoted(&identity.user);
        let verb = verb.as_str();
        let slash = if subresource.is_empty() { "" } else { "/" };
        let resource_path = format!("{resource}{slash}{subresource}");
        let message = format!(
            r#"User {user} cannot {verb} resource "{resource_path}" in API group "{group}" {scope}"#
        );
        // kube-apiserver escapes the message like this, but not the reason.
        let mut message = message
            .replace('&', "&amp;")
            .replace('<', "&lt;")
            .replace('>', "&gt;");
        if !reason.is_empty() {
            message = format!("{message}: {reason}");
        }
        let review = format!(
            "SubjectAccessReview denied: verb={} group={} resource={} namespace={} name={}",
            GoQuoted(verb),
            GoQuoted(group),
            GoQuoted(&resource_path),
            GoQuoted(namespace),
            GoQuoted(name)
        );
        Self {
            group,
            resource,
            name: name.to_owned(),
            message,
            review,
        }
    }
}

impl std::error::Error for Forbidden {}

impl fmt::Display for Forbidden {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            group,
            resource,
            name,
            message,
            ..
        } = self;
        f.write_str(resource)?;
        if !group.is_empty() {
            write!(f, ".{group}")?;
        }
        match &**name {
            "" => write!(f, " is forbidden: {message}"),
            name => write!(f, " {} is forbidden: {message}", GoQuoted(name)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::trust::RbacRulesBuilder;

    #[test]
    fn formats_denial_like_kube_apiserver() {
        let jane = Identity::new("jane", "", vec![], Default::default());
        let pods = Target::parse("/api/v1/namespaces/ns/pods/https:p:1/proxy").unwrap();
        assert_eq!(
            Forbidden::new(&jane, Attributes::for_proxy(Verb::Get, &pods), "").to_string(),
            r#"pods "https:p:1" is forbidden: User "jane" cannot get resource "pods/proxy" in API group "" in the namespace "ns""#
        );
        let mallory = Identity::new("<b>&", "", vec![], Default::default());
        let nodes = Target::parse("/api/v1/nodes//proxy").unwrap();
        assert_eq!(
            Forbidden::new(&mallory, Attributes::for_proxy(Verb::None, &nodes), "why").to_string(),
            r#"nodes is forbidden: User "&lt;b&gt;&amp;" cannot  resource "nodes/proxy" in API group "" at the cluster scope: why"#
        );
        let scopes = Attributes {
            verb: Verb::Impersonate,
            group: "authentication.k8s.io",
            resource: "userextras",
            subresource: "scopes",
            namespace: "",
            name: "all",
        };
        assert_eq!(
            Forbidden::new(&jane, scopes, "").to_string(),
            r#"userextras.authentication.k8s.io "all" is forbidden: User "jane" cannot impersonate resource "userextras/scopes" in API group "authentication.k8s.io" at the cluster scope"#
        );
    }

    #[tokio::test]
    async fn accepts_bare_names_only_if_configured() {
        let grant = |name: &str| {
            let yaml = format!(
                "kind: ClusterRole\nmetadata: {{name: r}}\nrules: [{{apiGroups: [''], resources: [services/proxy], \
                 verbs: [get], resourceNames: ['{name}']}}]\n"
            );
            let binding = "kind: ClusterRoleBinding\nmetadata: {name: b}\nroleRef: {kind: ClusterRole, name: r}\n\
                           subjects: [{kind: User, name: jane}]\n";
            let builder = RbacRulesBuilder {
                cluster_roles: vec![serde_saphyr::from_str(&yaml).unwrap()],
                cluster_role_bindings: vec![serde_saphyr::from_str(binding).unwrap()],
                ..RbacRulesBuilder::default()
            };
            PolicySource::Rbac(Arc::new(ArcSwap::from_pointee(builder.build())))
        };
        let jane = Identity::new("jane", "", vec![], Default::default());
        let client = ClientAddress::from(std::net::IpAddr::from([192, 0, 2, 1]));
        for (granted, accept_bare_names, id, allowed) in [
            ("web", false, "web", true),
            ("web", false, "http:web:80", false),
            ("web", true, "http:web:80", true),
            ("http:web:80", true, "http:web:80", true),
            ("http:web:80", true, "web", false),
            ("web", true, "a:web:80", false),
        ] {
            let authorizer = Authorizer {
                policy: grant(granted),
                accept_bare_names,
            };
            let path = format!("/api/v1/namespaces/ns/services/{id}/proxy/");
            let target = Target::parse(&path).unwrap();
            let permit = authorizer
                .authorize(&jane, Verb::Get, &target, client)
                .await;
            assert_eq!(
                permit.is_ok(),
                allowed,
                "{granted} {accept_bare_names} {id}"
            );
        }
    }
}
