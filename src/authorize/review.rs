//! `SubjectAccessReviews`, remembered for a while.

use std::hash::{Hash, Hasher};
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::authorization::v1::{ResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec};
use kube::api::{Api, PostParams};
use quick_cache::Equivalent;
use tokio::runtime::Handle;

use super::{AuthorizeError, Decision};
use crate::config;
use crate::metrics::CacheCounters;
use crate::model::identity::Fingerprint;
use crate::model::{Attributes, Identity, Resource, Verb};
use crate::remember::Remembered;

/// How long a failure to ask is the answer, as with tokens.
const FAILURE_HOLDS: Duration = Duration::from_millis(500);

type Verdict = Result<Decision, AuthorizeError>;

/// Asks the API what a caller may do.
#[derive(Debug)]
pub struct Reviews {
    api: Api<SubjectAccessReview>,
    /// Reviews run on the control runtime, where the client's connections live.
    control: Handle,
    settings: config::Authorization,
    verdicts: Remembered<Question, Verdict>,
}

impl Reviews {
    /// `client` must not retry by itself: a review has a deadline of its own.
    pub fn new(
        client: kube::Client,
        control: Handle,
        settings: config::Authorization,
        counters: CacheCounters,
    ) -> Self {
        let verdicts = Remembered::new(settings.cache_size, counters);
        Self { api: Api::all(client), control, settings, verdicts }
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
        let (api, timeout) = (self.api.clone(), self.settings.timeout);
        let asked = self
            .control
            .spawn(async move { tokio::time::timeout(timeout, api.create(&PostParams::default(), &review)).await });
        let fault: Arc<str> = match asked.await {
            Ok(Ok(Ok(SubjectAccessReview { status: Some(status), .. }))) => {
                if let Some(error) = &status.evaluation_error {
                    tracing::debug!(user = identity.user, error, "the authorizer evaluated with an error");
                }
                return if status.allowed && status.denied != Some(true) {
                    (Ok(Decision::Allow), self.settings.allowed_cache_ttl)
                } else {
                    let reason = status.reason.unwrap_or_default();
                    (Ok(Decision::Deny(reason.into())), self.settings.denied_cache_ttl)
                };
            }
            Ok(Ok(Ok(SubjectAccessReview { status: None, .. }))) => "the API answered without a status".into(),
            Ok(Ok(Err(error))) => error.to_string().into(),
            Ok(Err(_)) => format!("the API did not answer within {timeout:?}").into(),
            Err(_) => "the bastion is shutting down".into(),
        };
        tracing::warn!(%fault, "a SubjectAccessReview failed");
        (Err(AuthorizeError::Unavailable(fault)), FAILURE_HOLDS)
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
            version: Some("v1".to_owned()),
            resource: Some(attributes.resource.plural().to_owned()),
            subresource: Some("proxy".to_owned()),
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
    resource: Resource,
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
        let Attributes { verb, resource, namespace, name } = attributes;
        Self { who, verb, resource, namespace: namespace.into(), name: name.into() }
    }
}

impl Question {
    fn attributes(&self) -> Attributes<'_> {
        Attributes { verb: self.verb, resource: self.resource, namespace: &self.namespace, name: &self.name }
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
