//! The cluster's own RBAC decides, for every kind of credential.

use anyhow::{Result, ensure};
use bytes::Bytes;
use http::Method;
use k8s_openapi::api::core::v1::{ConfigMap, ServiceAccount};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::{Api, Patch, PatchParams};
use serde_json::json;

use crate::support::client::Client;
use crate::support::eventually;
use crate::support::pki::Ca;
use crate::world::{SHOP, World, path};

pub async fn rbac_decides_for_tokens_of_service_accounts(world: &mut World) -> Result<()> {
    let mut caller = world.client().await?;
    let answer = caller
        .send(
            Method::POST,
            &path("pods/web-1/proxy/echo"),
            Bytes::from("x"),
        )
        .await?;
    ensure!(answer.status == 200, "create is allowed: {answer:?}");
    let answer = caller
        .send(Method::DELETE, &path("pods/web-1/proxy/"), Bytes::new())
        .await?;
    ensure!(answer.status == 403, "delete is not: {answer:?}");
    let answer = caller
        .get("/api/v1/namespaces/default/pods/x/proxy/")
        .await?;
    ensure!(answer.status == 403, "no other namespace is: {answer:?}");

    let nobody = world.cluster.token(SHOP, "default", None).await?;
    let mut nobody = Client::connect(
        world.bastion.secure,
        &world.cluster.ca.file,
        Some(&nobody),
        None,
    )
    .await?;
    let answer = nobody.get(&path("services/http:web:80/proxy/name")).await?;
    let message = r#"services \"http:web:80\" is forbidden: User \"system:serviceaccount:shop:default\" cannot get resource \"services/proxy\" in API group \"\" in the namespace \"shop\""#;
    ensure!(
        answer.status == 403 && answer.body.contains(message),
        "{answer:?}"
    );
    let answer = nobody.get(&path("services/not-there/proxy/")).await?;
    ensure!(
        answer.status == 403,
        "who may not learns nothing of what exists: {answer:?}"
    );
    Ok(())
}

pub async fn rbac_decides_for_client_certificates(world: &mut World) -> Result<()> {
    let folder = world.cluster.folder.path();
    world
        .objects
        .allow(
            "devs",
            json!({"kind": "Group", "name": "devs"}),
            &["pods/proxy"],
            &["get"],
        )
        .await?;
    let jane = world.cluster.ca.client(folder, "jane", "devs")?;
    let mut client = Client::connect(
        world.bastion.secure,
        &world.cluster.ca.file,
        None,
        Some(&jane),
    )
    .await?;
    let answer = client.get(&path("pods/web-1/proxy/name")).await?;
    ensure!(
        answer.status == 200 && answer.body == "web-1",
        "by her group she may: {answer:?}"
    );
    let answer = client.get(&path("services/web/proxy/name")).await?;
    ensure!(
        answer.status == 403 && answer.body.contains(r#"User \"jane\""#),
        "and no more: {answer:?}"
    );

    let other = Ca::new(folder, "other-ca")?;
    let mallory = other.client(folder, "mallory", "system:masters")?;
    let mut client = Client::connect(
        world.bastion.secure,
        &world.cluster.ca.file,
        None,
        Some(&mallory),
    )
    .await?;
    let answer = client.get(&path("pods/web-1/proxy/name")).await?;
    ensure!(
        answer.status == 401,
        "another CA vouches for nobody: {answer:?}"
    );
    Ok(())
}

pub async fn failures_say_more_to_who_may_see_the_target(world: &mut World) -> Result<()> {
    world
        .objects
        .create::<ServiceAccount>(json!({"metadata": {"name": "seer"}}))
        .await?;
    let seer = json!({"kind": "ServiceAccount", "name": "seer", "namespace": SHOP});
    world
        .objects
        .allow("seer-proxy", seer.clone(), &["services/proxy"], &["get"])
        .await?;
    world
        .objects
        .allow("seer", seer, &["services"], &["get"])
        .await?;
    let seer = world.cluster.token(SHOP, "seer", None).await?;
    let mut seer = Client::connect(
        world.bastion.secure,
        &world.cluster.ca.file,
        Some(&seer),
        None,
    )
    .await?;
    let mut caller = world.client().await?;

    let ports = r#""causes":[{"reason":"ServicePort","message":"port \"a\" (80)"},{"reason":"ServicePort","message":"port \"b\" (81)"}]"#;
    let answer = seer.get(&path("services/two/proxy/")).await?;
    ensure!(
        answer.status == 503 && answer.body.contains(ports),
        "the ports on offer: {answer:?}"
    );
    let answer = caller.get(&path("services/two/proxy/")).await?;
    ensure!(
        answer.status == 503 && !answer.body.contains("causes"),
        "only to those who see: {answer:?}"
    );

    let answer = seer
        .send(Method::POST, &path("services/web/proxy/"), Bytes::new())
        .await?;
    let review = r#""causes":[{"reason":"AccessReview","message":"SubjectAccessReview denied: verb=\"create\" group=\"\" resource=\"services/proxy\" namespace=\"shop\" name=\"web\""}]"#;
    ensure!(
        answer.status == 403 && answer.body.contains(review),
        "what was asked: {answer:?}"
    );
    let answer = caller
        .send(Method::DELETE, &path("services/web/proxy/"), Bytes::new())
        .await?;
    ensure!(
        answer.status == 403 && !answer.body.contains("causes"),
        "only to those who see: {answer:?}"
    );

    world
        .objects
        .service("gone", json!({"ports": [{"port": 80}]}))
        .await?;
    world
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
        "10.254.240.11: no pod stands behind it",
        "10.254.240.12: the pod that its targetRef names",
    );
    eventually("the reasons why endpoints do not serve", async || {
        let answer = seer.get(&path("services/gone/proxy/")).await?;
        Ok(answer.status == 503 && answer.body.contains(no_pod) && answer.body.contains(not_its))
    })
    .await
}

pub async fn who_is_nobody_gets_401(world: &mut World) -> Result<()> {
    for token in [
        None,
        Some("wrong"),
        Some("eyJhbGciOiJub25lIn0.eyJzdWIiOiJhZG1pbiJ9."),
    ] {
        let mut client =
            Client::connect(world.bastion.secure, &world.cluster.ca.file, token, None).await?;
        let answer = client.get(&path("services/web/proxy/name")).await?;
        ensure!(
            answer.status == 401 && answer.headers["www-authenticate"] == "Bearer",
            "{token:?}: {answer:?}"
        );
        ensure!(
            answer.body.contains(r#""reason":"Unauthorized""#),
            "{answer:?}"
        );
    }
    let said = world.bastion.said();
    ensure!(
        !said.contains(&world.token) && !said.contains("eyJ"),
        "a token stands in the log"
    );
    Ok(())
}

/// What is trusted is what `kube-system/extension-apiserver-authentication` says now. The apiserver
/// adds its own CA to the map every minute, and leaves others there.
pub async fn published_cas_are_followed_on_an_open_connection(world: &mut World) -> Result<()> {
    let folder = world.cluster.folder.path();
    let maps = Api::<ConfigMap>::namespaced(world.cluster.client.clone(), "kube-system");
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
    world
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
        world.bastion.secure,
        &world.cluster.ca.file,
        None,
        Some(&guest),
    )
    .await?;
    let target = path("pods/web-1/proxy/name");
    let answer = client.get(&target).await?;
    ensure!(answer.status == 401, "not yet: {answer:?}");

    let own = std::fs::read_to_string(&world.cluster.ca.file)?;
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
