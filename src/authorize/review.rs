//! Authorization by cached SubjectAccessReviews.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::authorization::v1::{
    ResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec,
};

use super::{AuthorizationError, Decision};
use crate::config;
use crate::model::{Attributes, ClientAddress, Identity};
use crate::review::{CachedReviews, ReviewHandler, Verdict, cut_text};
use crate::ttl_cache::Fetched;

/// Authorizes by SubjectAccessReview.
pub type Reviews = CachedReviews<AccessReviewHandler>;

impl Reviews {
    pub(super) async fn decide(
        self: &Arc<Self>,
        identity: &Identity,
        attributes: &Attributes<'_>,
        client: ClientAddress,
    ) -> Verdict<AccessReviewHandler> {
        let key = (identity.fingerprint(), attributes);
        self.verdict(key, || Ok(review(identity, *attributes)), client)
            .await
    }
}

/// Evaluates SubjectAccessReviews.
#[derive(Debug)]
pub struct AccessReviewHandler(pub config::Authorization);

impl ReviewHandler for AccessReviewHandler {
    type Review = SubjectAccessReview;
    type Outcome = Decision;
    type Error = AuthorizationError;

    fn interpret(
        &self,
        _: &SubjectAccessReview,
        response: SubjectAccessReview,
    ) -> Option<Fetched<Verdict<Self>>> {
        let status = response.status?;
        if let Some(error) = &status.evaluation_error {
            tracing::debug!(error, "the authorizer reported an evaluation error");
        }
        // `denied` wins over `allowed`, as in kube-apiserver's webhook authorizer.
        Some(if status.allowed && status.denied != Some(true) {
            let ttl = self.0.allowed_cache_ttl;
            Fetched::Value {
                value: Ok(Decision::Allow),
                ttl,
                usable_for: Duration::MAX,
            }
        } else {
            let reason = cut_text(status.reason.unwrap_or_default());
            Fetched::Denial {
                value: Ok(Decision::Deny(reason.into())),
                ttl: self.0.denied_cache_ttl,
            }
        })
    }
}

fn review(identity: &Identity, attributes: Attributes<'_>) -> SubjectAccessReview {
    SubjectAccessReview {
        spec: spec(identity, attributes),
        ..SubjectAccessReview::default()
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
