//! May they? `(Identity, Attributes)` in, [`Permit`] out. A permit can be made here alone, and the
//! later stages ask for one: to forward without authorization does not compile.

mod impersonate;
mod review;

use std::fmt;
use std::sync::Arc;

use arc_swap::ArcSwap;

pub use review::{AccessJudge, Reviews};

use crate::model::quote::GoQuoted;
use crate::model::target::Id;
use crate::model::{Attributes, ClientAddress, Identity, Resource, Target, Verb};
use crate::review::{Rejection, ReviewError};
use crate::trust::RbacRules;

/// Who decides.
#[derive(Debug)]
pub enum PolicySource {
    /// The API, by SubjectAccessReview.
    Review(Arc<Reviews>),
    /// RBAC objects of a folder.
    Rbac(Arc<ArcSwap<RbacRules>>),
}

/// The stage. One per process.
#[derive(Debug)]
pub struct Authorizer {
    pub authorizer: PolicySource,
    /// Asks again with the bare name where the id with scheme and port is denied (CONFORMANCE C19).
    pub accept_bare_names: bool,
}

/// Proof that a caller may act on a target.
#[derive(Debug)]
pub struct Permit<'t> {
    target: &'t Target<'t>,
}

impl<'t> Permit<'t> {
    pub fn target(&self) -> &'t Target<'t> {
        self.target
    }
}

/// What an authorizer says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    Allow,
    /// With the authorizer's reason, often empty.
    Deny(Arc<str>),
}

/// Why there is no permit.
#[derive(Clone, Debug, thiserror::Error)]
pub enum AuthorizeError {
    #[error(transparent)]
    Forbidden(Forbidden),
    /// The authorizer could not say. Denies, as everything but a yes does.
    #[error("the access could not be reviewed: {0}")]
    Unavailable(Arc<str>),
    /// The bastion has too many reviews to send; asking again later may help.
    #[error("the access could not be reviewed: {0}")]
    Rejected(Rejection),
}

impl From<ReviewError> for AuthorizeError {
    fn from(error: ReviewError) -> Self {
        match error {
            ReviewError::Rejected(rejection) => Self::Rejected(rejection),
            ReviewError::Unreachable(fault) | ReviewError::Refused(fault) => {
                Self::Unavailable(fault)
            }
        }
    }
}

impl Authorizer {
    /// Asks whether `identity` may do `verb` on the target. A review takes the share of the
    /// `client` address.
    ///
    /// # Errors
    /// [`AuthorizeError::Forbidden`] for a denial, else why there is no answer.
    pub async fn authorize<'t>(
        &self,
        identity: &Identity,
        verb: Verb,
        target: &'t Target<'t>,
        client: ClientAddress,
    ) -> Result<Permit<'t>, AuthorizeError> {
        let attributes = Attributes::for_proxy(verb, target);
        let denied = match self.require(identity, attributes, client).await {
            Ok(()) => return Ok(Permit { target }),
            Err(denied) => denied,
        };
        if self.accept_bare_names
            && matches!(denied, AuthorizeError::Forbidden(_))
            && let Ok(Id { name, .. }) = target.id()
            && name != target.id
            && self
                .decide(identity, Attributes { name, ..attributes }, client)
                .await?
                == Decision::Allow
        {
            return Ok(Permit { target });
        }
        Err(denied)
    }

    /// Asks what an upgrade needs beside the right to its request: a WebSocket to a kubelet can be
    /// an exec, more than `get` on nodes was ever meant to grant (C111).
    ///
    /// # Errors
    /// As [`Self::authorize`].
    pub async fn authorize_upgrade(
        &self,
        identity: &Identity,
        target: &Target<'_>,
        client: ClientAddress,
    ) -> Result<(), AuthorizeError> {
        if target.resource == Resource::Nodes {
            self.authorize(identity, Verb::Create, target, client)
                .await?;
        }
        Ok(())
    }

    /// Whether `identity` may look at the object behind the target (`get` on the node, pod or
    /// service itself): then it may be told more of it than yes or no. An error is a no.
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
            self.decide(identity, Attributes::for_object(target, name), client)
                .await,
            Ok(Decision::Allow)
        )
    }

    async fn require(
        &self,
        identity: &Identity,
        attributes: Attributes<'_>,
        client: ClientAddress,
    ) -> Result<(), AuthorizeError> {
        match self.decide(identity, attributes, client).await? {
            Decision::Allow => Ok(()),
            Decision::Deny(reason) => Err(AuthorizeError::Forbidden(Forbidden::new(
                identity, attributes, &reason,
            ))),
        }
    }

    async fn decide(
        &self,
        identity: &Identity,
        attributes: Attributes<'_>,
        client: ClientAddress,
    ) -> Result<Decision, AuthorizeError> {
        match &self.authorizer {
            PolicySource::Review(reviews) => reviews.decide(identity, attributes, client).await,
            // Without a reason, as with kube-apiserver's RBAC.
            PolicySource::Rbac(rules) => Ok(if rules.load().allows(identity, attributes) {
                Decision::Allow
            } else {
                Decision::Deny("".into())
            }),
        }
    }
}

/// A no, in the apiserver's words (CONFORMANCE C96).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Forbidden {
    pub group: &'static str,
    pub resource: &'static str,
    pub name: String,
    /// `User "u" cannot get resource …`, with the reason where there is one.
    pub message: String,
    /// The review that was asked, for those who may know.
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
        let who = GoQuoted(&identity.user);
        let verb = verb.as_str();
        let slash = if subresource.is_empty() { "" } else { "/" };
        let what = format!("{resource}{slash}{subresource}");
        let message =
            format!(r#"User {who} cannot {verb} resource "{what}" in API group "{group}" {scope}"#);
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
            GoQuoted(&what),
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
    fn a_no_is_said_in_the_apiservers_words() {
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
    async fn bare_names_are_a_setting() {
        let named = |name: &str| {
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
            let authorize = Authorizer {
                authorizer: named(granted),
                accept_bare_names,
            };
            let path = format!("/api/v1/namespaces/ns/services/{id}/proxy/");
            let target = Target::parse(&path).unwrap();
            let permit = authorize.authorize(&jane, Verb::Get, &target, client).await;
            assert_eq!(
                permit.is_ok(),
                allowed,
                "{granted} {accept_bare_names} {id}"
            );
        }
    }
}
