//! Authorization by the RBAC of the cluster, for each kind of credential.

use anyhow::{Result, ensure};
use bytes::Bytes;
use http::Method;
use k8s_openapi::api::core::v1::{ConfigMap, ServiceAccount};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::{Api, Patch, PatchParams};
use serde_json::json;

use crate::fixture::{Fixture, SHOP, path};
use crate::support::client::Client;
use crate::support::eventually;
use crate::support::pki::Ca;

pub async fn authorizes_service_account_tokens_by_rbac(fixture: &mut Fixture) -> Result<()> {
    let mut caller = fixture.client().await?;
    let response = caller
        .send(
            Method::POST,
            &path("pods/web-1/proxy/echo"),
            Bytes::from("x"),
        )
        .await?;
    ensure!(response.status == 200, "create is denied: {response:?}");
    let response = caller
        .send(Method::DELETE, &path("pods/web-1/proxy/"), Bytes::new())
        .await?;
    ensure!(response.status == 403, "delete is allowed: {response:?}");
    let response = caller
        .get("/api/v1/namespaces/default/pods/x/proxy/")
        .await?;
    ensure!(
        response.status == 403,
        "another namespace is allowed: {response:?}"
    );

    let unauthorized = fixture.cluster.token(SHOP, "default", None).await?;
    let mut unauthorized = Client::connect(
        fixture.bastion.secure,
        &fixture.cluster.ca.file,
        Some(&unauthorized),
        None,
    )
    .await?;
    let response = unauthorized
        .get(&path("services/http:web:80/proxy/name"))
        .await?;
    let message = r#"services \"http:web:80\" is forbidden: User \"system:serviceaccount:shop:default\" cannot get resource \"services/proxy\" in API group \"\" in the namespace \"shop\""#;
    ensure!(
        response.status == 403 && response.body.contains(message),
        "{response:?}"
    );
    let response = unauthorized.get(&path("services/not-there/proxy/")).await?;
    ensure!(
        response.status == 403,
        "a caller without access can tell that the object is missing: {response:?}"
    );
    Ok(())
}

pub async fn authorizes_client_certificates_by_rbac(fixture: &mut Fixture) -> Result<()> {
    let folder = fixture.cluster.folder.path();
    fixture
        .objects
        .allow(
            "devs",
            json!({"kind": "Group", "name": "devs"}),
            &["pods/proxy"],
            &["get"],
        )
        .await?;
    let jane = fixture.cluster.ca.client(folder, "jane", "devs")?;
    let mut client = Client::connect(
        fixture.bastion.secure,
        &fixture.cluster.ca.file,
        None,
        Some(&jane),
    )
    .await?;
    let response = client.get(&path("pods/web-1/proxy/name")).await?;
    ensure!(
        response.status == 200 && response.body == "web-1",
        "the group has no access: {response:?}"
    );
    let response = client.get(&path("services/web/proxy/name")).await?;
    ensure!(
        response.status == 403 && response.body.contains(r#"User \"jane\""#),
        "the group has too much access: {response:?}"
    );

    let other = Ca::new(folder, "other-ca")?;
    let mallory = other.client(folder, "mallory", "system:masters")?;
    let mut client = Client::connect(
        fixture.bastion.secure,
        &fixture.cluster.ca.file,
        None,
        Some(&mallory),
    )
    .await?;
    let response = client.get(&path("pods/web-1/proxy/name")).await?;
    ensure!(
        response.status == 401,
        "a certificate of another CA authenticates: {response:?}"
    );
    Ok(())
}

pub async fn returns_causes_to_callers_that_may_use_or_read_the_target(
    fixture: &mut Fixture,
) -> Result<()> {
    fixture
        .objects
        .create::<ServiceAccount>(json!({"metadata": {"name": "viewer"}}))
        .await?;
    let viewer = json!({"kind": "ServiceAccount", "name": "viewer", "namespace": SHOP});
    fixture
        .objects
        .allow(
            "viewer-proxy",
            viewer.clone(),
            &["services/proxy"],
            &["get"],
        )
        .await?;
    fixture
        .objects
        .allow("viewer", viewer, &["services"], &["get"])
        .await?;
    let viewer = fixture.cluster.token(SHOP, "viewer", None).await?;
    let mut viewer = Client::connect(
        fixture.bastion.secure,
        &fixture.cluster.ca.file,
        Some(&viewer),
        None,
    )
    .await?;
    let mut caller = fixture.client().await?;

    let ports = r#""causes":[{"reason":"ServicePort","message":"port \"a\" (80)"},{"reason":"ServicePort","message":"port \"b\" (81)"}]"#;
    // The permission of the proxy suffices for the causes of a 503.
    for client in [&mut viewer, &mut caller] {
        let response = client.get(&path("services/two/proxy/")).await?;
        ensure!(
            response.status == 503 && response.body.contains(ports),
            "the causes lack the ports: {response:?}"
        );
    }

    let response = viewer
        .send(Method::POST, &path("services/web/proxy/"), Bytes::new())
        .await?;
    let review = r#""causes":[{"reason":"AccessReview","message":"SubjectAccessReview denied: verb=\"create\" group=\"\" resource=\"services/proxy\" namespace=\"shop\" name=\"web\""}]"#;
    ensure!(
        response.status == 403 && response.body.contains(review),
        "the causes lack the review: {response:?}"
    );
    let response = caller
        .send(Method::DELETE, &path("services/web/proxy/"), Bytes::new())
        .await?;
    ensure!(
        response.status == 403 && !response.body.contains("causes"),
        "a caller that may not read the target gets causes: {response:?}"
    );

    fixture
        .objects
        .service("gone", json!({"ports": [{"port": 80}]}))
        .await?;
    fixture
        .objects
        .create::<EndpointSlice>(json!({
            "metadata": {"name": "gone-1", "labels": {"kubernetes.io/service-name": "gone"}},
            "addressType": "IPv4",
            "ports": [{"name": "", "port": 80}],
            "endpoints": [
                {"addresses": ["10.254.240.11"]},
                {"addresses": ["10.254.240.12"], "targetRef": {"kind": "Pod", "namespace": SHOP, "name": "web-1"}},
            ],
        }))
        .await?;
    let (no_pod, not_its) = (
        "10.254.240.11: no targetRef to a pod",
        "10.254.240.12: the pod in targetRef",
    );
    eventually("the reasons why endpoints do not serve", async || {
        let response = viewer.get(&path("services/gone/proxy/")).await?;
        Ok(response.status == 503
            && response.body.contains(no_pod)
            && response.body.contains(not_its))
    })
    .await
}

pub async fn returns_401_without_valid_credentials(fixture: &mut Fixture) -> Result<()> {
    for token in [
        None,
        Some("wrong"),
        Some("eyJhbGciOiJub25lIn0.eyJzdWIiOiJhZG1pbiJ9."),
    ] {
        let mut client = Client::connect(
            fixture.bastion.secure,
            &fixture.cluster.ca.file,
            token,
            None,
        )
        .await?;
        let response = client.get(&path("services/web/proxy/name")).await?;
        ensure!(
            response.status == 401 && response.headers["www-authenticate"] == "Bearer",
            "{token:?}: {response:?}"
        );
        ensure!(
            response.body.contains(r#""reason":"Unauthorized""#),
            "{response:?}"
        );
    }
    let log = fixture.bastion.log();
    ensure!(
        !log.contains(&fixture.token) && !log.contains("eyJ"),
        "the log contains a token"
    );
    Ok(())
}

/// The current `kube-system/extension-apiserver-authentication` determines the client CAs. The
/// apiserver adds its CA to the `ConfigMap` every minute, and keeps others.
pub async fn applies_changed_client_cas_to_open_connections(fixture: &mut Fixture) -> Result<()> {
    let folder = fixture.cluster.folder.path();
    let maps = Api::<ConfigMap>::namespaced(fixture.cluster.client.clone(), "kube-system");
    let publish = async |pem: &str| -> Result<()> {
        let patch = json!({"data": {"client-ca-file": pem}});
        maps.patch(
            "extension-apiserver-authentication",
            &PatchParams::default(),
            &Patch::Merge(patch),
        )
        .await?;
        Ok(())
    };
    let guests = Ca::new(folder, "guests-ca")?;
    fixture
        .objects
        .allow(
            "guests",
            json!({"kind": "Group", "name": "guests"}),
            &["pods/proxy"],
            &["get"],
        )
        .await?;
    let guest = guests.client(folder, "guest", "guests")?;
    let mut client = Client::connect(
        fixture.bastion.secure,
        &fixture.cluster.ca.file,
        None,
        Some(&guest),
    )
    .await?;
    let target = path("pods/web-1/proxy/name");
    let response = client.get(&target).await?;
    ensure!(
        response.status == 401,
        "the CA is trusted too early: {response:?}"
    );

    let own = std::fs::read_to_string(&fixture.cluster.ca.file)?;
    publish(&format!("{own}{}", std::fs::read_to_string(&guests.file)?)).await?;
    let added = eventually("the added CA", async || {
        Ok(client.get(&target).await?.status == 200)
    })
    .await;
    publish(&own).await?;
    added?;
    eventually("the removed CA", async || {
        Ok(client.get(&target).await?.status == 401)
    })
    .await
}
