//! API objects of the tests. Statuses are written as kubelets do.

use std::net::Ipv4Addr;

use anyhow::{Context, Result};
use k8s_openapi::api::authorization::v1::SubjectAccessReview;
use k8s_openapi::api::core::v1::{Namespace, Node, Pod, Service};
use k8s_openapi::api::rbac::v1::{ClusterRole, ClusterRoleBinding, Role, RoleBinding};
use kube::api::{Api, DeleteParams, Patch, PatchParams, PostParams};
use kube::{Client, Resource};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::eventually;

/// Client for the objects of one namespace.
pub struct Objects {
    pub client: Client,
    pub namespace: String,
}

impl Objects {
    /// Creates the namespace and waits for its default service account, which pods need.
    ///
    /// # Errors
    /// Returns an error if the API server rejects a request.
    pub async fn new(client: &Client, namespace: &str) -> Result<Self> {
        let objects = Self {
            client: client.clone(),
            namespace: namespace.into(),
        };
        create_global::<Namespace>(client, json!({"metadata": {"name": namespace}})).await?;
        let accounts = Api::<k8s_openapi::api::core::v1::ServiceAccount>::namespaced(
            client.clone(),
            namespace,
        );
        eventually("the default service account", async || {
            Ok(accounts.get_opt("default").await?.is_some())
        })
        .await?;
        Ok(objects)
    }

    /// Creates a running, ready pod at `ip`.
    pub async fn pod(&self, name: &str, labels: Value, ip: Ipv4Addr, ports: Value) -> Result<()> {
        self.pod_with(name, labels, ip, ports, json!({})).await
    }

    /// Creates a pod as [`Self::pod`] does, with further fields of its spec.
    pub async fn pod_with(
        &self,
        name: &str,
        labels: Value,
        ip: Ipv4Addr,
        ports: Value,
        fields: Value,
    ) -> Result<()> {
        let pods = Api::<Pod>::namespaced(self.client.clone(), &self.namespace);
        let mut pod = json!({
            "metadata": {"name": name, "labels": labels},
            "spec": {"nodeName": "node-1", "containers": [{"name": "c", "image": "none", "ports": ports}]},
        });
        if let (Some(spec), Value::Object(fields)) = (pod["spec"].as_object_mut(), fields) {
            spec.extend(fields);
        }
        pods.create(&PostParams::default(), &serde_json::from_value(pod)?)
            .await?;
        let status = json!({"status": {
            "phase": "Running",
            "podIP": ip, "podIPs": [{"ip": ip}],
            "conditions": [{"type": "Ready", "status": "True"}],
        }});
        pods.patch_status(name, &PatchParams::default(), &Patch::Merge(status))
            .await?;
        Ok(())
    }

    pub async fn delete_pod(&self, name: &str) -> Result<()> {
        let pods = Api::<Pod>::namespaced(self.client.clone(), &self.namespace);
        pods.delete(name, &DeleteParams::default().grace_period(0))
            .await?;
        Ok(())
    }

    /// Sets the readiness of a pod, as a kubelet does after a probe.
    pub async fn set_ready(&self, name: &str, ready: bool) -> Result<()> {
        let pods = Api::<Pod>::namespaced(self.client.clone(), &self.namespace);
        let status = json!({"status": {"conditions": [{"type": "Ready", "status": if ready { "True" } else { "False" }}]}});
        pods.patch_status(name, &PatchParams::default(), &Patch::Merge(status))
            .await?;
        Ok(())
    }

    /// Starts to delete a pod, which is terminating until [`Self::delete_pod`].
    pub async fn terminate(&self, name: &str) -> Result<()> {
        let pods = Api::<Pod>::namespaced(self.client.clone(), &self.namespace);
        pods.delete(name, &DeleteParams::default().grace_period(30))
            .await?;
        Ok(())
    }

    pub async fn delete<K>(&self, name: &str) -> Result<()>
    where
        K: Resource<Scope = k8s_openapi::NamespaceResourceScope, DynamicType = ()>
            + Clone
            + DeserializeOwned
            + std::fmt::Debug,
    {
        Api::<K>::namespaced(self.client.clone(), &self.namespace)
            .delete(name, &DeleteParams::default())
            .await?;
        Ok(())
    }

    pub async fn service(&self, name: &str, spec: Value) -> Result<()> {
        self.create::<Service>(json!({"metadata": {"name": name}, "spec": spec}))
            .await
    }

    pub async fn node(&self, name: &str, ip: Ipv4Addr) -> Result<()> {
        create_global::<Node>(&self.client, json!({"metadata": {"name": name}})).await?;
        let status = json!({"status": {"addresses": [{"type": "InternalIP", "address": ip}]}});
        let nodes = Api::<Node>::all(self.client.clone());
        nodes
            .patch_status(name, &PatchParams::default(), &Patch::Merge(status))
            .await?;
        Ok(())
    }

    /// Allows a subject `verbs` on `resources` in the namespace, and waits until the API server
    /// does.
    pub async fn allow(
        &self,
        name: &str,
        subject: Value,
        resources: &[&str],
        verbs: &[&str],
    ) -> Result<()> {
        let rules = json!([{"apiGroups": [""], "resources": resources, "verbs": verbs}]);
        self.create::<Role>(json!({"metadata": {"name": name}, "rules": rules}))
            .await?;
        let role = json!({"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": name});
        let binding = json!({"metadata": {"name": name}, "roleRef": role, "subjects": [&subject]});
        self.create::<RoleBinding>(binding).await?;
        let namespace = Some(&*self.namespace);
        wait_until_allowed(&self.client, namespace, &subject, resources, verbs).await
    }

    /// Allows as [`Self::allow`], in the whole cluster.
    pub async fn allow_cluster_wide(
        &self,
        name: &str,
        subject: Value,
        resources: &[&str],
        verbs: &[&str],
    ) -> Result<()> {
        let rules = json!([{"apiGroups": [""], "resources": resources, "verbs": verbs}]);
        create_global::<ClusterRole>(
            &self.client,
            json!({"metadata": {"name": name}, "rules": rules}),
        )
        .await?;
        let role =
            json!({"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": name});
        let binding = json!({"metadata": {"name": name}, "roleRef": role, "subjects": [&subject]});
        create_global::<ClusterRoleBinding>(&self.client, binding).await?;
        wait_until_allowed(&self.client, None, &subject, resources, verbs).await
    }

    pub async fn create<K>(&self, object: Value) -> Result<()>
    where
        K: Resource<Scope = k8s_openapi::NamespaceResourceScope, DynamicType = ()>
            + Clone
            + DeserializeOwned
            + serde::Serialize
            + std::fmt::Debug,
    {
        let api = Api::<K>::namespaced(self.client.clone(), &self.namespace);
        api.create(&PostParams::default(), &serde_json::from_value(object)?)
            .await?;
        Ok(())
    }
}

async fn create_global<K>(client: &Client, object: Value) -> Result<()>
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + serde::Serialize + std::fmt::Debug,
{
    Api::<K>::all(client.clone())
        .create(&PostParams::default(), &serde_json::from_value(object)?)
        .await?;
    Ok(())
}

/// Waits until the API server allows what a binding grants. Its authorizer reads new bindings from a
/// watch, and the bastion caches 'denied' results.
async fn wait_until_allowed(
    client: &Client,
    namespace: Option<&str>,
    subject: &Value,
    resources: &[&str],
    verbs: &[&str],
) -> Result<()> {
    let name = subject["name"].as_str().context("a subject has a name")?;
    let (user, groups) = match subject["kind"].as_str() {
        Some("ServiceAccount") => {
            let namespace = subject["namespace"].as_str().context("an account")?;
            (format!("system:serviceaccount:{namespace}:{name}"), vec![])
        }
        Some("Group") => ("member".to_owned(), vec![name]),
        _ => (name.to_owned(), vec![]),
    };
    let reviews = Api::<SubjectAccessReview>::all(client.clone());
    for resource in resources {
        let (resource, subresource) = resource.split_once('/').unwrap_or((resource, ""));
        for verb in verbs {
            let review = serde_json::from_value(json!({"spec": {
                "user": user, "groups": groups,
                "resourceAttributes": {
                    "namespace": namespace, "verb": verb,
                    "resource": resource, "subresource": subresource,
                },
            }}))?;
            eventually("the binding to be known", async || {
                let reviewed = reviews.create(&PostParams::default(), &review).await?;
                Ok(reviewed.status.is_some_and(|status| status.allowed))
            })
            .await?;
        }
    }
    Ok(())
}
