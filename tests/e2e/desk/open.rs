//! `kube-bastion open` in headless Chromium, through a bastion and through the plain API server.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use http::{Request, Response, StatusCode, header};
use hyper::body::Incoming;
use serde_json::json;

use crate::clients::{drive, site};
use crate::fixture::{Fixture, SHOP};
use crate::support::app::{App, Body, status};
use crate::support::cluster::KubeconfigUser;
use crate::support::eventually;
use crate::support::program::Program;
use crate::support::streaming_kubelet::StreamingKubelet;

/// Last byte of the address of both applications, and their ports.
const LAST: u8 = 33;
const PORTS: [u16; 2] = [8083, 8084];
const NAMES: [&str; 2] = ["opened", "opened-too"];

/// The site, whose WebSocket is for its own pages only, as that of applications that guard against
/// other sites.
async fn guarded_site(request: Request<Incoming>) -> Response<Body> {
    let text = |name| {
        request
            .headers()
            .get(name)
            .and_then(|value| value.to_str().ok())
    };
    let host = text(header::HOST).map(|host| format!("http://{host}"));
    if request.uri().path() == "/socket" && text(header::ORIGIN) != host.as_deref() {
        let name = header::CONTENT_TYPE;
        return status(StatusCode::FORBIDDEN, name, "text/plain", "another origin");
    }
    site(request).await
}

/// Two applications with a cookie of the same name keep their logins apart; everything of a site
/// that assumes to be at the root of its host works.
pub async fn open_shows_sites_through_the_bastion_and_the_api_server(
    fixture: &mut Fixture,
) -> Result<()> {
    let kubelet =
        StreamingKubelet::start(&fixture.cluster, &fixture.namespace, "node-1", 2).await?;
    let mut apps = Vec::new();
    for (name, port) in NAMES.into_iter().zip(PORTS) {
        apps.push(App::start(
            &fixture.namespace,
            LAST,
            port,
            None,
            guarded_site,
        )?);
        let address = fixture.namespace.address(LAST);
        fixture
            .objects
            .pod(name, json!({"app": name}), address, json!([]))
            .await?;
        let spec = json!({"selector": {"app": name}, "ports": [{"port": 80, "targetPort": port}]});
        fixture.objects.service(name, spec).await?;
        fixture
            .wait_until_known(&format!("services/{name}:80"))
            .await?;
        kubelet.set_address(SHOP, name, address)?;
    }
    let bastion = fixture.cluster.kubeconfig(
        "open",
        &format!("https://{}", fixture.bastion.secure),
        &fixture.cluster.ca.file,
        &KubeconfigUser::Token(&fixture.token),
    )?;
    visit(&bastion, "through the bastion").await?;
    let sessions = kubelet.count("dial");
    visit(
        &fixture.cluster.admin_kubeconfig(),
        "through port-forwarding",
    )
    .await?;
    eventually("a session", async || Ok(kubelet.count("dial") > sessions))
        .await
        .with_context(|| format!("{:?}", kubelet.output()))
}

async fn visit(kubeconfig: &Path, way: &str) -> Result<()> {
    let mut command = Command::new(env!("CARGO_BIN_EXE_kube-bastion"));
    command
        .args(["open", "--no-browser", "-n", SHOP])
        .args(NAMES.map(|name| format!("svc/{name}")))
        .arg("--kubeconfig")
        .arg(kubeconfig);
    let mut open = Program::start(&mut command)?;
    let mut bases = Vec::new();
    for name in NAMES {
        let line = open
            .wait_for_line(&format!("http://{name}--{SHOP}.localhost:"))
            .await?;
        ensure!(line.contains(way), "{line}");
        let (_, url) = line.split_once(": ").context("a URL")?;
        bases.push(url.trim_end_matches('/').to_owned());
    }
    let seen = async {
        drive("visit.mjs", json!({"base": bases[0], "token": null})).await?;
        drive("open.mjs", json!({"bases": bases})).await
    };
    seen.await
        .with_context(|| format!("{way}; the output of open:\n{}", open.output().join("\n")))
}
