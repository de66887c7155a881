//! The official Python and JavaScript clients, which are generated from the API's description. They
//! encode the whole sub-path of a request as one segment.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use http::{Request, Response};
use hyper::body::Incoming;
use k8s_openapi::api::core::v1::ServiceAccount;
use serde_json::json;

use crate::fixture::{Fixture, SHOP};
use crate::packages;
use crate::support::app::{App, Body, response};
use crate::support::cluster::KubeconfigUser;
use crate::support::eventually;
use crate::support::program::Program;

/// Last byte of the address of the pods and nodes.
const LAST: u8 = 56;
const PORT: u16 = 8080;

pub async fn python_client_reaches_sub_paths(fixture: &mut Fixture) -> Result<()> {
    let packages = packages::pip("python")?;
    let program = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/clients/python/sub_paths.py");
    let mut command = Command::new(packages::python()?);
    command.arg(program).env("PYTHONPATH", packages);
    reaches_sub_paths(fixture, "python", &mut command).await
}

pub async fn javascript_client_reaches_sub_paths(fixture: &mut Fixture) -> Result<()> {
    let program = packages::npm("javascript")?.join("sub_paths.mjs");
    let mut command = Command::new(packages::node()?);
    reaches_sub_paths(fixture, "javascript", command.arg(program)).await
}

/// Runs a program with a kubeconfig and the name of its targets as arguments: first for the
/// apiserver, as the reference, then for the bastion.
async fn reaches_sub_paths(fixture: &Fixture, name: &str, command: &mut Command) -> Result<()> {
    let _app = App::start(&fixture.namespace, LAST, PORT, None, request_line)?;
    targets(fixture, name).await?;
    let token = account(fixture, name).await?;
    for server in [
        fixture.cluster.server.clone(),
        format!("https://{}", fixture.bastion.secure),
    ] {
        let kubeconfig = kubeconfig(fixture, name, &server, &token)?;
        // A command keeps its arguments.
        let mut run = Command::new(command.get_program());
        run.args(command.get_args()).arg(kubeconfig).arg(name);
        run.envs(
            command
                .get_envs()
                .filter_map(|(key, value)| Some((key, value?))),
        );
        Program::start(&mut run)?
            .finish()
            .await
            .with_context(|| server.clone())?;
    }
    Ok(())
}

async fn request_line(request: Request<Incoming>) -> Response<Body> {
    let line = format!("{} {}", request.method(), request.uri());
    response("text/plain", line)
}

/// Creates a service, a pod and a node of the same name and waits until they are known.
async fn targets(fixture: &Fixture, name: &str) -> Result<()> {
    let (objects, address) = (&fixture.objects, fixture.namespace.address(LAST));
    objects.node(name, address).await?;
    objects
        .pod(name, json!({"app": name}), address, json!([]))
        .await?;
    let spec = json!({"selector": {"app": name}, "ports": [{"port": 80, "targetPort": PORT}]});
    objects.service(name, spec).await?;
    fixture
        .wait_until_known(&format!("services/{name}:80"))
        .await?;
    fixture
        .wait_until_known(&format!("pods/{name}:{PORT}"))
        .await?;
    let mut client = fixture.client().await?;
    eventually("the bastion to know the node", async || {
        let url = format!("/api/v1/nodes/{name}:{PORT}/proxy");
        Ok(client.get(&url).await?.status == 301)
    })
    .await
}

/// Creates a service account that may use all methods. Returns its token.
async fn account(fixture: &Fixture, name: &str) -> Result<String> {
    const VERBS: [&str; 5] = ["get", "create", "update", "patch", "delete"];
    let objects = &fixture.objects;
    objects
        .create::<ServiceAccount>(json!({"metadata": {"name": name}}))
        .await?;
    let subject = json!({"kind": "ServiceAccount", "name": name, "namespace": SHOP});
    let resources = ["services/proxy", "pods/proxy", "nodes/proxy"];
    objects
        .allow_cluster_wide(&format!("client-{name}"), subject, &resources, &VERBS)
        .await?;
    fixture.cluster.token(SHOP, name, None).await
}

fn kubeconfig(fixture: &Fixture, name: &str, server: &str, token: &str) -> Result<PathBuf> {
    let by = KubeconfigUser::Token(token);
    fixture
        .cluster
        .kubeconfig(name, server, &fixture.cluster.ca.file, &by)
}
