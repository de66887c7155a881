//! `SubjectAccessReviews`, remembered for a while.

use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::authorization::v1::{ResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec};

use super::{AuthorizeError, Decision};
use crate::config;
use crate::metrics::CacheCounters;
use crate::model::{Attributes, ClientAddress, Identity};
use crate::review::{NO_STATUS, ReviewError, Reviewer, cut_text};
use crate::ttl_cache::{Fetched, Lookup, Ticket, TtlCache};

type Verdict = Result<Decision, AuthorizeError>;
/// A hash of everything that the verdict depends on: names of any length take the same memory.
type CacheKey = u128;

/// Authorizes by SubjectAccessReview.
#[derive(Debug)]
pub struct Reviews {
    reviewer: Reviewer<SubjectAccessReview>,
    settings: config::Authorization,
    verdicts: TtlCache<CacheKey, Verdict>,
    hasher: QuestionHasher,
}

impl Reviews {
    pub fn new(
        reviewer: Reviewer<SubjectAccessReview>,
        settings: config::Authorization,
        stale_on_error: Duration,
        counters: CacheCounters,
    ) -> Self {
        let verdicts = TtlCache::new(settings.cache_size, stale_on_error, counters);
        Self { reviewer, settings, verdicts, hasher: QuestionHasher::default() }
    }

    pub(super) async fn decide(
        self: &Arc<Self>,
        identity: &Identity,
        attributes: Attributes<'_>,
        client: ClientAddress,
    ) -> Verdict {
        let key = self.hasher.key(identity, attributes);
        match self.verdicts.get(&key, || self.reviewer.is_unreachable()) {
            Lookup::Hit(verdict) => return verdict,
            Lookup::Due(verdict, ticket) => {
                self.refresh(review(identity, attributes), ticket);
                return verdict;
            }
            Lookup::Miss => {}
        }
        let fetch = async { self.accept(self.reviewer.ask(review(identity, attributes), client).await) };
        self.verdicts.get_or_fetch(&key, fetch).await
    }

    /// Removes what can serve no more.
    pub fn purge(&self) {
        self.verdicts.purge();
    }

    /// Asks in the background while the old verdict still serves.
    fn refresh(self: &Arc<Self>, review: SubjectAccessReview, ticket: Ticket<CacheKey>) {
        let Some(place) = self.reviewer.try_enter() else { return self.verdicts.postpone(&ticket) };
        let this = Arc::clone(self);
        self.reviewer.control().spawn(async move {
            let fetch = async { this.accept(this.reviewer.ask_in(review, place).await) };
            this.verdicts.refresh(ticket, fetch).await;
        });
    }

    fn accept(&self, review: Result<SubjectAccessReview, ReviewError>) -> Fetched<Verdict> {
        let status = match review.map(|review| review.status) {
            Ok(Some(status)) => status,
            Ok(None) => return Fetched::Failed { error: Err(AuthorizeError::Unavailable(NO_STATUS.into())) },
            Err(ReviewError::Rejected(rejection)) => return Fetched::NotAsked { error: Err(rejection.into()) },
            Err(ReviewError::Unreachable(fault)) => {
                return Fetched::Unreachable { error: Err(AuthorizeError::Unavailable(fault)) };
            }
            Err(ReviewError::Refused(fault)) => {
                return Fetched::Failed { error: Err(AuthorizeError::Unavailable(fault)) };
            }
        };
        if let Some(error) = &status.evaluation_error {
            tracing::debug!(error, "the authorizer evaluated with an error");
        }
        if status.allowed && status.denied != Some(true) {
            let ttl = self.settings.allowed_cache_ttl;
            Fetched::Answer { value: Ok(Decision::Allow), ttl, usable_for: Duration::MAX }
        } else {
            let reason = cut_text(status.reason.unwrap_or_default());
            Fetched::Denial { value: Ok(Decision::Deny(reason.into())), ttl: self.settings.denied_cache_ttl }
        }
    }
}

/// Hashes questions by `SipHash` under two keys of this process. Two questions with one key would share a verdict, and
/// nobody can look for such a pair: the keys are random and no hash leaves the process. SHA-256 in its place took 6 % of
/// the instructions of a request (callgrind), because it is computed for every one.
#[derive(Debug, Default)]
struct QuestionHasher([RandomState; 2]);

impl QuestionHasher {
    fn key(&self, identity: &Identity, attributes: Attributes<'_>) -> CacheKey {
        let [high, low] =
            self.0.each_ref().map(|state| u128::from(state.hash_one((identity.fingerprint(), attributes))));
        high << 64 | low
    }
}

fn review(identity: &Identity, attributes: Attributes<'_>) -> SubjectAccessReview {
    SubjectAccessReview { spec: spec(identity, attributes), ..SubjectAccessReview::default() }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Verb;

    #[test]
    fn questions_with_the_same_letters_in_other_places_have_other_keys() {
        let jane = Identity::new("jane", "", vec![], Default::default());
        let attributes = |subresource, namespace, name| Attributes {
            verb: Verb::Get,
            group: "",
            resource: "pods",
            subresource,
            namespace,
            name,
        };
        let hasher = QuestionHasher::default();
        let keys: std::collections::HashSet<_> = [
            attributes("proxy", "ab", "c"),
            attributes("proxy", "a", "bc"),
            attributes("proxyab", "", "c"),
            attributes("proxy", "", "abc"),
            Attributes { verb: Verb::List, ..attributes("proxy", "ab", "c") },
            Attributes { resource: "services", ..attributes("proxy", "ab", "c") },
        ]
        .into_iter()
        .map(|attributes| hasher.key(&jane, attributes))
        .collect();
        assert_eq!(keys.len(), 6);
        let joe = Identity::new("joe", "", vec![], Default::default());
        assert!(!keys.contains(&hasher.key(&joe, attributes("proxy", "ab", "c"))));
    }
}
