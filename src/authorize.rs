//! May they? `(Identity, Attributes)` in, [`Permit`] out. A permit can be made here alone, and the later stages ask
//! for one: to forward without authorization does not compile.

mod review;
mod rules;

use std::fmt;
use std::sync::Arc;

use arc_swap::ArcSwap;

pub use review::Reviews;
pub use rules::{Rules, RulesBuilder};

use crate::model::quote::Quoted;
use crate::model::target::Id;
use crate::model::{Attributes, Identity, Resource, Target, Verb};

/// Who decides.
#[derive(Debug)]
pub enum Authorizer {
    /// The API, by SubjectAccessReview.
    Review(Box<Reviews>),
    /// RBAC objects of a folder.
    Rules(Arc<ArcSwap<Rules>>),
}

/// The stage. One per process.
#[derive(Debug)]
pub struct Authorize {
    pub authorizer: Authorizer,
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
}

impl Authorize {
    /// Asks whether `identity` may do `verb` on the target.
    ///
    /// # Errors
    /// [`AuthorizeError::Forbidden`] for a no, [`AuthorizeError::Unavailable`] where there is no answer.
    pub async fn authorize<'t>(
        &self,
        identity: &Arc<Identity>,
        verb: Verb,
        target: &'t Target<'t>,
    ) -> Result<Permit<'t>, AuthorizeError> {
        let attributes = Attributes { verb, resource: target.resource, namespace: &target.namespace, name: &target.id };
        let reason = match self.decide(identity, attributes).await? {
            Decision::Allow => return Ok(Permit { target }),
            Decision::Deny(reason) => reason,
        };
        if self.accept_bare_names
            && let Ok(Id { name, .. }) = target.id()
            && name != target.id
            && self.decide(identity, Attributes { name, ..attributes }).await? == Decision::Allow
        {
            return Ok(Permit { target });
        }
        Err(AuthorizeError::Forbidden(Forbidden::new(identity, attributes, &reason)))
    }

    async fn decide(&self, identity: &Arc<Identity>, attributes: Attributes<'_>) -> Result<Decision, AuthorizeError> {
        match &self.authorizer {
            Authorizer::Review(reviews) => reviews.decide(identity, attributes).await,
            Authorizer::Rules(rules) => Ok(rules.load().decide(identity, attributes)),
        }
    }
}

/// A no, in the apiserver's words (CONFORMANCE C96).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Forbidden {
    pub resource: Resource,
    pub name: String,
    /// `User "u" cannot get resource …`, with the reason where there is one.
    pub message: String,
}

impl Forbidden {
    fn new(identity: &Identity, attributes: Attributes<'_>, reason: &str) -> Self {
        let Attributes { verb, resource, namespace, name } = attributes;
        let scope = match namespace {
            "" => "at the cluster scope".to_owned(),
            namespace => format!("in the namespace {}", Quoted(namespace)),
        };
        let who = Quoted(&identity.user);
        let verb = verb.as_str();
        let message = format!(r#"User {who} cannot {verb} resource "{resource}/proxy" in API group "" {scope}"#);
        let mut message = message.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
        if !reason.is_empty() {
            message = format!("{message}: {reason}");
        }
        Self { resource, name: name.to_owned(), message }
    }
}

impl std::error::Error for Forbidden {}

impl fmt::Display for Forbidden {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &*self.name {
            "" => write!(f, "{} is forbidden: {}", self.resource, self.message),
            name => write!(f, "{} {} is forbidden: {}", self.resource, Quoted(name), self.message),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_no_is_said_in_the_apiservers_words() {
        let jane = Identity::new("jane", "", vec![], Default::default());
        let attributes = Attributes { verb: Verb::Get, resource: Resource::Pods, namespace: "ns", name: "https:p:1" };
        assert_eq!(
            Forbidden::new(&jane, attributes, "").to_string(),
            r#"pods "https:p:1" is forbidden: User "jane" cannot get resource "pods/proxy" in API group "" in the namespace "ns""#
        );
        let mallory = Identity::new("<b>&", "", vec![], Default::default());
        let attributes = Attributes { verb: Verb::None, resource: Resource::Nodes, namespace: "", name: "" };
        assert_eq!(
            Forbidden::new(&mallory, attributes, "why").to_string(),
            r#"nodes is forbidden: User "&lt;b&gt;&amp;" cannot  resource "nodes/proxy" in API group "" at the cluster scope: why"#
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
            let builder = RulesBuilder {
                cluster_roles: vec![serde_saphyr::from_str(&yaml).unwrap()],
                cluster_role_bindings: vec![serde_saphyr::from_str(binding).unwrap()],
                ..RulesBuilder::default()
            };
            Authorizer::Rules(Arc::new(ArcSwap::from_pointee(builder.build())))
        };
        let jane = Arc::new(Identity::new("jane", "", vec![], Default::default()));
        for (granted, accept_bare_names, id, allowed) in [
            ("web", false, "web", true),
            ("web", false, "http:web:80", false),
            ("web", true, "http:web:80", true),
            ("http:web:80", true, "http:web:80", true),
            ("http:web:80", true, "web", false),
            ("web", true, "a:web:80", false),
        ] {
            let authorize = Authorize { authorizer: named(granted), accept_bare_names };
            let path = format!("/api/v1/namespaces/ns/services/{id}/proxy/");
            let target = Target::parse(&path).unwrap();
            let permit = authorize.authorize(&jane, Verb::Get, &target).await;
            assert_eq!(permit.is_ok(), allowed, "{granted} {accept_bare_names} {id}");
        }
    }
}
