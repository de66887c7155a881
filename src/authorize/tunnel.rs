//! Permission for tunnels: that of kubectl's port-forward, which carries any protocol, too.

use super::{AuthorizationError, Authorizer, Decision};
use crate::model::tunnel::TunnelObject;
use crate::model::{Attributes, ClientAddress, Identity, Resource, Verb};

/// Proof that a caller is allowed to open tunnels to a service or pod.
#[derive(Debug)]
pub struct TunnelPermit<'t> {
    object: &'t TunnelObject,
}

impl<'t> TunnelPermit<'t> {
    pub fn object(&self) -> &'t TunnelObject {
        self.object
    }
}

impl Authorizer {
    /// Checks that `identity` is allowed to `create` the subresource `portforward` of the object.
    /// For a service, the permission for all pods of its namespace suffices, which the role `edit`
    /// grants. A review uses the share of the `client` address.
    ///
    /// # Errors
    /// [`AuthorizationError`].
    pub async fn authorize_tunnel<'t>(
        &self,
        identity: &Identity,
        object: &'t TunnelObject,
        client: ClientAddress,
    ) -> Result<TunnelPermit<'t>, AuthorizationError> {
        let attributes = Attributes {
            verb: Verb::Create,
            group: "",
            resource: object.resource.plural(),
            subresource: "portforward",
            namespace: &object.namespace,
            name: &object.name,
        };
        let error = match self.require(identity, &attributes, client).await {
            Ok(()) => return Ok(TunnelPermit { object }),
            Err(error) => error,
        };
        if object.resource == Resource::Services {
            let all_pods = Attributes {
                resource: Resource::Pods.plural(),
                name: "",
                ..attributes
            };
            let decision = self.decide(identity, &all_pods, client).await;
            // Also if the first review failed: while the API server cannot be reached, only grants
            // are used past their expiry, and a caller with this permission has none for services.
            if let Ok(Decision::Allow) = decision {
                return Ok(TunnelPermit { object });
            }
            if matches!(error, AuthorizationError::Forbidden(_)) {
                decision?;
            }
        }
        Err(error)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use arc_swap::ArcSwap;
    use http_body_util::BodyExt;
    use k8s_openapi::api::authorization::v1::SubjectAccessReview;
    use kube::client::Body;
    use prometheus_client::registry::Registry;
    use serde_json::json;

    use super::*;
    use crate::authorize::{AccessReviewHandler, PolicySource, Reviews};
    use crate::config;
    use crate::metrics::{CacheCounters, Metrics, ReviewMetrics};
    use crate::ready::Ready;
    use crate::review::{Admission, ApiHealth, ReviewApi, Reviewer};
    use crate::trust::RbacRulesBuilder;

    #[tokio::test]
    async fn services_need_their_own_right_or_that_for_all_pods() {
        let binding = "kind: RoleBinding\nmetadata: {name: b, namespace: shop}\n\
                       roleRef: {kind: Role, name: r}\nsubjects: [{kind: User, name: jane}]\n";
        let jane = Identity::new("jane", "", vec![], Default::default());
        let client = ClientAddress::from(std::net::IpAddr::from([192, 0, 2, 1]));
        let (service, pod) = (Resource::Services, Resource::Pods);
        for (resource, verb, names, object, name, namespace, allowed) in [
            (
                "services/portforward",
                "create",
                "[web]",
                service,
                "web",
                "shop",
                true,
            ),
            (
                "services/portforward",
                "create",
                "[web]",
                service,
                "api",
                "shop",
                false,
            ),
            (
                "services/portforward",
                "create",
                "[web]",
                service,
                "web",
                "other",
                false,
            ),
            (
                "services/portforward",
                "create",
                "[]",
                pod,
                "web",
                "shop",
                false,
            ),
            (
                "services/proxy",
                "create",
                "[]",
                service,
                "web",
                "shop",
                false,
            ),
            (
                "services/portforward",
                "get",
                "[]",
                service,
                "web",
                "shop",
                false,
            ),
            (
                "pods/portforward",
                "create",
                "[]",
                service,
                "web",
                "shop",
                true,
            ),
            (
                "pods/portforward",
                "create",
                "[]",
                service,
                "web",
                "other",
                false,
            ),
            // Permission for some pods does not cover the other pods of the service.
            (
                "pods/portforward",
                "create",
                "[web]",
                service,
                "web",
                "shop",
                false,
            ),
            (
                "pods/portforward",
                "create",
                "[web]",
                pod,
                "web",
                "shop",
                true,
            ),
            (
                "pods/portforward",
                "create",
                "[web]",
                pod,
                "api",
                "shop",
                false,
            ),
            ("pods/portforward", "get", "[]", pod, "web", "shop", false),
        ] {
            let role = format!(
                "kind: Role\nmetadata: {{name: r, namespace: shop}}\nrules: [{{apiGroups: [''], \
                 resources: [{resource}], verbs: [{verb}], resourceNames: {names}}}]\n"
            );
            let builder = RbacRulesBuilder {
                roles: vec![serde_saphyr::from_str(&role).unwrap()],
                role_bindings: vec![serde_saphyr::from_str(binding).unwrap()],
                ..RbacRulesBuilder::default()
            };
            let authorizer = Authorizer {
                policy: PolicySource::Rbac(Arc::new(ArcSwap::from_pointee(builder.build()))),
                accept_bare_names: false,
            };
            let object = TunnelObject {
                resource: object,
                namespace: namespace.into(),
                name: name.into(),
                hostname: None,
            };
            let permit = authorizer.authorize_tunnel(&jane, &object, client).await;
            assert_eq!(
                permit.is_ok(),
                allowed,
                "{resource} {verb} {names}: {object:?}"
            );
        }
    }

    /// Returns an authorizer whose API answers reviews for services and for pods with these codes
    /// and decisions.
    fn reviewed(services: (u16, bool), pods: (u16, bool)) -> Authorizer {
        let service = tower::service_fn(move |request: http::Request<Body>| async move {
            let body = request.into_body().collect().await.unwrap().to_bytes();
            let review: SubjectAccessReview = serde_json::from_slice(&body).unwrap();
            let resource = review.spec.resource_attributes.unwrap().resource.unwrap();
            let (code, allowed) = if resource == "services" {
                services
            } else {
                pods
            };
            let response = json!({"spec": {}, "status": {"allowed": allowed}}).to_string();
            let response = http::Response::builder()
                .status(code)
                .body(Body::from(response.into_bytes()));
            Ok::<_, std::convert::Infallible>(response.unwrap())
        });
        let client = kube::Client::new(service, "default");
        let metrics = Metrics::new(&mut Registry::default());
        let api = ReviewApi {
            pooled: client.clone(),
            fresh: client,
            control: tokio::runtime::Handle::current(),
            health: ApiHealth::new(Ready::default(), metrics),
        };
        let admission = Admission::new(&config::Reviews::default(), ReviewMetrics::default());
        let reviewer = Reviewer::new(api, admission, Duration::from_secs(10));
        let handler = AccessReviewHandler(config::Authorization::default());
        let (stale, counters) = (Duration::ZERO, CacheCounters::default());
        Authorizer {
            policy: PolicySource::Review(Arc::new(Reviews::new(
                handler, reviewer, 8, stale, counters,
            ))),
            accept_bare_names: false,
        }
    }

    #[tokio::test]
    async fn failed_review_for_service_leaves_right_for_all_pods() {
        const FAILED: (u16, bool) = (503, false);
        const ALLOWED: (u16, bool) = (201, true);
        const DENIED: (u16, bool) = (201, false);
        let jane = Identity::new("jane", "", vec![], Default::default());
        let client = ClientAddress::from(std::net::IpAddr::from([192, 0, 2, 1]));
        let object = TunnelObject {
            resource: Resource::Services,
            namespace: "shop".into(),
            name: "web".into(),
            hostname: None,
        };
        for (services, pods, expected) in [
            (ALLOWED, FAILED, "allowed"),
            (FAILED, ALLOWED, "allowed"),
            (DENIED, ALLOWED, "allowed"),
            (DENIED, DENIED, "forbidden"),
            // Neither review that failed is taken for a denial.
            (FAILED, DENIED, "unavailable"),
            (DENIED, FAILED, "unavailable"),
            (FAILED, FAILED, "unavailable"),
        ] {
            let authorizer = reviewed(services, pods);
            let outcome = match authorizer.authorize_tunnel(&jane, &object, client).await {
                Ok(_) => "allowed",
                Err(AuthorizationError::Forbidden(_)) => "forbidden",
                Err(_) => "unavailable",
            };
            assert_eq!(outcome, expected, "{services:?} {pods:?}");
        }
    }
}
