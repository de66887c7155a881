//! `SubjectAccessReviews`, remembered for a while.

use std::hash::{Hash, Hasher};
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::authorization::v1::{ResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec};
use quick_cache::Equivalent;
use tokio::runtime::Handle;

use super::{AuthorizeError, Decision};
use crate::config;
use crate::metrics::CacheCounters;
use crate::model::identity::Fingerprint;
use crate::model::{Attributes, Identity, Verb};
use crate::remember::Remembered;
use crate::review::{FAILURE_HOLDS, Reviewer};

type Verdict = Result<Decision, AuthorizeError>;

/// Asks the API what a caller may do.
#[derive(Debug)]
pub struct Reviews {
    reviewer: Reviewer<SubjectAccessReview>,
    settings: config::Authorization,
    verdicts: Remembered<Question, Verdict>,
}

impl Reviews {
    pub fn new(
        client: kube::Client,
        control: Handle,
        settings: config::Authorization,
        counters: CacheCounters,
    ) -> Self {
        let verdicts = Remembered::new(settings.cache_size, counters);
        Self { reviewer: Reviewer::new(client, control, settings.timeout), settings, verdicts }
    }

    pub(super) async fn decide(&self, identity: &Arc<Identity>, attributes: Attributes<'_>) -> Verdict {
        let asked = Asked { who: *identity.fingerprint(), attributes };
        if let Some(verdict) = self.verdicts.recall(&asked) {
            return verdict;
        }
        self.verdicts.recall_or_ask(&Question::from(asked), self.review(identity, attributes)).await
    }

    async fn review(&self, identity: &Arc<Identity>, attributes: Attributes<'_>) -> (Verdict, Duration) {
        let review = SubjectAccessReview { spec: spec(identity, attributes), ..SubjectAccessReview::default() };
        let status = match self.reviewer.ask(review, |review| review.status).await {
            Ok(status) => status,
            Err(fault) => return (Err(AuthorizeError::Unavailable(fault)), FAILURE_HOLDS),
        };
        if let Some(error) = &status.evaluation_error {
            tracing::debug!(user = identity.user, error, "the authorizer evaluated with an error");
        }
        if status.allowed && status.denied != Some(true) {
            (Ok(Decision::Allow), self.settings.allowed_cache_ttl)
        } else {
            (Ok(Decision::Deny(status.reason.unwrap_or_default().into())), self.settings.denied_cache_ttl)
        }
    }
}

fn spec(identity: &Identity, attributes: Attributes<'_>) -> SubjectAccessReviewSpec {
    let text = |text: &str| (!text.is_empty()).then(|| text.to_owned());
    SubjectAccessReviewSpec {
        user: text(&identity.user),
        uid: text(&identity.uid),
        groups: Some(identity.groups.clone()),
        extra: Some(identity.extra.clone()),
        resource_attributes: Some(ResourceAttributes {
            verb: Some(attributes.verb.as_str().to_owned()),
            group: text(attributes.group),
            version: Some("v1".to_owned()),
            resource: Some(attributes.resource.to_owned()),
            subresource: text(attributes.subresource),
            namespace: text(attributes.namespace),
            name: text(attributes.name),
            ..ResourceAttributes::default()
        }),
        ..SubjectAccessReviewSpec::default()
    }
}

/// The key of a remembered verdict.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Question {
    who: Fingerprint,
    verb: Verb,
    group: &'static str,
    resource: &'static str,
    subresource: Box<str>,
    namespace: Box<str>,
    name: Box<str>,
}

/// The same, borrowed from a request, for look-ups that allocate nothing.
struct Asked<'a> {
    who: Fingerprint,
    attributes: Attributes<'a>,
}

impl From<Asked<'_>> for Question {
    fn from(Asked { who, attributes }: Asked<'_>) -> Self {
        let Attributes { verb, group, resource, subresource, namespace, name } = attributes;
        let (subresource, namespace, name) = (subresource.into(), namespace.into(), name.into());
        Self { who, verb, group, resource, subresource, namespace, name }
    }
}

impl Question {
    fn attributes(&self) -> Attributes<'_> {
        let Self { verb, group, resource, subresource, namespace, name, .. } = self;
        Attributes { verb: *verb, group, resource, subresource, namespace, name }
    }
}

/// Both forms hash the same fields in the same order, as [`Equivalent`] asks.
impl Hash for Question {
    fn hash<H: Hasher>(&self, state: &mut H) {
        (self.who, self.attributes()).hash(state);
    }
}

impl Hash for Asked<'_> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        (self.who, self.attributes).hash(state);
    }
}

impl Equivalent<Question> for Asked<'_> {
    fn equivalent(&self, question: &Question) -> bool {
        self.who == question.who && self.attributes == question.attributes()
    }
}
