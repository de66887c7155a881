//! The cluster's own RBAC decides, for every kind of credential.

use anyhow::{Result, ensure};
use bytes::Bytes;
use http::Method;
use serde_json::json;

use crate::support::client::Client;
use crate::support::pki::Ca;
use crate::world::{SHOP, World, path};

pub async fn rbac_decides_for_tokens_of_service_accounts(world: &mut World) -> Result<()> {
    let mut caller = world.client().await?;
    let answer = caller.send(Method::POST, &path("pods/web-1/proxy/echo"), Bytes::from("x")).await?;
    ensure!(answer.status == 200, "create is allowed: {answer:?}");
    let answer = caller.send(Method::DELETE, &path("pods/web-1/proxy/"), Bytes::new()).await?;
    ensure!(answer.status == 403, "delete is not: {answer:?}");
    let answer = caller.get("/api/v1/namespaces/default/pods/x/proxy/").await?;
    ensure!(answer.status == 403, "no other namespace is: {answer:?}");

    let nobody = world.cluster.token(SHOP, "default", None).await?;
    let mut nobody = Client::connect(world.bastion.secure, &world.cluster.ca.file, Some(&nobody), None).await?;
    let answer = nobody.get(&path("services/http:web:80/proxy/name")).await?;
    let message = r#"services \"http:web:80\" is forbidden: User \"system:serviceaccount:shop:default\" cannot get resource \"services/proxy\" in API group \"\" in the namespace \"shop\""#;
    ensure!(answer.status == 403 && answer.body.contains(message), "{answer:?}");
    let answer = nobody.get(&path("services/not-there/proxy/")).await?;
    ensure!(answer.status == 403, "who may not learns nothing of what exists: {answer:?}");
    Ok(())
}

pub async fn rbac_decides_for_client_certificates(world: &mut World) -> Result<()> {
    let folder = world.cluster.folder.path();
    world.objects.allow("devs", json!({"kind": "Group", "name": "devs"}), &["pods/proxy"], &["get"]).await?;
    let jane = world.cluster.ca.client(folder, "jane", "devs")?;
    let mut client = Client::connect(world.bastion.secure, &world.cluster.ca.file, None, Some(&jane)).await?;
    let answer = client.get(&path("pods/web-1/proxy/name")).await?;
    ensure!(answer.status == 200 && answer.body == "web-1", "by her group she may: {answer:?}");
    let answer = client.get(&path("services/web/proxy/name")).await?;
    ensure!(answer.status == 403 && answer.body.contains(r#"User \"jane\""#), "and no more: {answer:?}");

    let other = Ca::new(folder, "other-ca")?;
    let mallory = other.client(folder, "mallory", "system:masters")?;
    let mut client = Client::connect(world.bastion.secure, &world.cluster.ca.file, None, Some(&mallory)).await?;
    let answer = client.get(&path("pods/web-1/proxy/name")).await?;
    ensure!(answer.status == 401, "another CA vouches for nobody: {answer:?}");
    Ok(())
}

pub async fn who_is_nobody_gets_401(world: &mut World) -> Result<()> {
    for token in [None, Some("wrong"), Some("eyJhbGciOiJub25lIn0.eyJzdWIiOiJhZG1pbiJ9.")] {
        let mut client = Client::connect(world.bastion.secure, &world.cluster.ca.file, token, None).await?;
        let answer = client.get(&path("services/web/proxy/name")).await?;
        ensure!(answer.status == 401 && answer.headers["www-authenticate"] == "Bearer", "{token:?}: {answer:?}");
        ensure!(answer.body.contains(r#""reason":"Unauthorized""#), "{answer:?}");
    }
    let said = world.bastion.said();
    ensure!(!said.contains(&world.token) && !said.contains("eyJ"), "a token stands in the log");
    Ok(())
}
