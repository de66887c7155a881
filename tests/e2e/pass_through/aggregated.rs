//! An API that the API server does not serve itself, but forwards to a service (`APIService`): that of
//! metrics, for `kubectl top`.

use std::sync::{Arc, Mutex};

use anyhow::{Context, Result, ensure};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::{Request, Response, StatusCode, header};
use hyper::body::Incoming;
use serde_json::{Value, json};

use super::{administrator, kubeconfig_for, passing, run};
use crate::desk::kubectl;
use crate::fixture::{Fixture, SHOP, acceptor};
use crate::support::app::{App, Body, response, status};
use crate::support::cluster::KubeconfigUser;
use crate::support::eventually;

/// Last byte of the address of the server, and its port.
const LAST: u8 = 33;
const PORT: u16 = 8443;
const NAME: &str = "metrics";
const GROUP_VERSION: &str = "/apis/metrics.k8s.io/v1beta1";
const API_SERVICE: &str = "apiservices/v1beta1.metrics.k8s.io";
const ACCOUNT: &str = "top-administrator";

/// Path and user of each request.
type Requests = Arc<Mutex<Vec<(String, String)>>>;

/// The figures come from the aggregated server, which knows the caller of the bastion.
pub async fn kubectl_top_shows_figures_of_an_aggregated_api(fixture: &mut Fixture) -> Result<()> {
    let requests = Requests::default();
    let _server = serve(fixture, &requests)?;
    register(fixture).await?;
    let shown = show(fixture, &requests).await;
    // Without its server, the API would fail the discovery of the scenarios that follow.
    fixture.cluster.kubectl(&["delete", API_SERVICE])?;
    shown
}

async fn show(fixture: &Fixture, requests: &Requests) -> Result<()> {
    let wait = ["wait", "--for=condition=Available", API_SERVICE];
    fixture
        .cluster
        .kubectl(&[&wait[..], &["--timeout=60s"]].concat())?;
    let bastion = passing(fixture, &[]).await?;
    let token = administrator(fixture, ACCOUNT).await?;
    let user = KubeconfigUser::Token(&token);
    let kubeconfig = kubeconfig_for(fixture, &bastion, "top", &user)?;
    let top = |arguments: &[&str]| run(kubectl(fixture, &kubeconfig), arguments);
    // The API server adds the group to its discovery with a delay.
    let discovered = eventually("the group of the API", async || {
        let resources = top(&["api-resources", "--api-group=metrics.k8s.io"]);
        Ok(resources.is_ok_and(|resources| resources.contains("NodeMetrics")))
    });
    discovered.await?;
    for (arguments, name, expected) in [
        (
            &["top", "node", "--no-headers"][..],
            "node-1",
            ["250m", "512Mi"],
        ),
        (&["top", "pod", "--no-headers"], "web-1", ["30m", "96Mi"]),
        (
            &["top", "pod", "--no-headers", "--containers"],
            "web-1",
            ["20m", "64Mi"],
        ),
    ] {
        let output = top(arguments)?;
        let mut lines = output.lines().map(|line| line.split_whitespace());
        let found = lines.any(|mut line| {
            line.clone().next() == Some(name)
                && expected
                    .iter()
                    .all(|figure| line.any(|word| word == *figure))
        });
        ensure!(found, "{arguments:?}:\n{output}");
    }
    let requests = requests.lock().expect("no thread panics with them");
    let caller = format!("system:serviceaccount:{SHOP}:{ACCOUNT}");
    for resource in ["nodes", &format!("namespaces/{SHOP}/pods")] {
        let path = format!("{GROUP_VERSION}/{resource}");
        let mut callers = requests.iter().filter(|request| request.0 == path);
        ensure!(
            callers.any(|(_, user)| *user == caller),
            "{path}: {requests:?}"
        );
    }
    Ok(())
}

fn serve(fixture: &Fixture, requests: &Requests) -> Result<App> {
    let cluster = &fixture.cluster;
    let host = format!("{NAME}.{SHOP}.svc");
    let pair = cluster.ca.server(cluster.folder.path(), NAME, &[&host])?;
    let requests = Arc::clone(requests);
    let tls = Some(acceptor(&pair)?);
    App::start(&fixture.namespace, LAST, PORT, tls, move |request| {
        let response = respond(&request, &requests);
        async move { response }
    })
}

/// Creates the service, its pod and the registration.
async fn register(fixture: &Fixture) -> Result<()> {
    let address = fixture.namespace.address(LAST);
    let (objects, cluster) = (&fixture.objects, &fixture.cluster);
    let labels = json!({"app": NAME});
    objects
        .pod(NAME, labels.clone(), address, json!([]))
        .await?;
    let ports = json!([{"port": 443, "targetPort": PORT}]);
    objects
        .service(NAME, json!({"selector": labels, "ports": ports}))
        .await?;
    let ca = STANDARD.encode(std::fs::read(&cluster.ca.file)?);
    let manifest = json!({
        "apiVersion": "apiregistration.k8s.io/v1", "kind": "APIService",
        "metadata": {"name": "v1beta1.metrics.k8s.io"},
        "spec": {
            "group": "metrics.k8s.io", "version": "v1beta1",
            "groupPriorityMinimum": 100, "versionPriority": 100,
            "service": {"name": NAME, "namespace": SHOP}, "caBundle": ca,
        },
    });
    let file = cluster.folder.path().join("metrics.json");
    std::fs::write(&file, manifest.to_string())?;
    let file = file.to_str().context("the path is UTF-8")?;
    cluster.kubectl(&["apply", "-f", file]).map(drop)
}

fn respond(request: &Request<Incoming>, requests: &Requests) -> Response<Body> {
    let path = request.uri().path();
    let user = request.headers().get("x-remote-user");
    let user = user.and_then(|user| user.to_str().ok()).unwrap_or_default();
    requests
        .lock()
        .expect("no thread panics with them")
        .push((path.to_owned(), user.to_owned()));
    let pods = format!("/namespaces/{SHOP}/pods");
    let object = match path.strip_prefix(GROUP_VERSION) {
        Some("") => resources(),
        Some("/nodes") => list("NodeMetricsList", &node()),
        Some(rest) if rest == pods => list("PodMetricsList", &pod()),
        _ => {
            return status(
                StatusCode::NOT_FOUND,
                header::CONTENT_TYPE,
                "text/plain",
                "not found",
            );
        }
    };
    response("application/json", object.to_string())
}

fn resources() -> Value {
    let resource = |name: &str, kind: &str, namespaced: bool| {
        json!({
            "name": name, "singularName": "", "namespaced": namespaced, "kind": kind,
            "verbs": ["get", "list"],
        })
    };
    json!({
        "kind": "APIResourceList", "apiVersion": "v1", "groupVersion": "metrics.k8s.io/v1beta1",
        "resources": [
            resource("nodes", "NodeMetrics", false), resource("pods", "PodMetrics", true),
        ],
    })
}

fn list(kind: &str, item: &Value) -> Value {
    json!({
        "kind": kind, "apiVersion": "metrics.k8s.io/v1beta1", "metadata": {}, "items": [item],
    })
}

fn node() -> Value {
    json!({
        "metadata": {"name": "node-1"}, "timestamp": "2026-01-01T00:00:00Z", "window": "10s",
        "usage": {"cpu": "250m", "memory": "512Mi"},
    })
}

/// Metrics of a pod with two containers.
fn pod() -> Value {
    let container = |name: &str, cpu: &str, memory: &str| json!({"name": name, "usage": {"cpu": cpu, "memory": memory}});
    json!({
        "metadata": {"name": "web-1", "namespace": SHOP},
        "timestamp": "2026-01-01T00:00:00Z", "window": "10s",
        "containers": [container("c", "20m", "64Mi"), container("d", "10m", "32Mi")],
    })
}
