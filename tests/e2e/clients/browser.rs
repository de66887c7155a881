//! Headless Chromium with a site that assumes to be at the root of its host.

use std::process::Command;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::kubectl::KubectlProxy;
use super::site::site;
use crate::fixture::{Fixture, path};
use crate::packages;
use crate::support::app::App;
use crate::support::program::{Program, find_program};

const LAST: u8 = 31;

/// The browser connects to the bastion over HTTP/2, with a token.
pub async fn browser_shows_a_site(fixture: &mut Fixture) -> Result<()> {
    let _app = serve(fixture, "site", 8081).await?;
    let base = format!(
        "https://{}{}",
        fixture.bastion.secure,
        path("services/site/proxy")
    );
    visit(&base, Some(&fixture.token)).await
}

/// `kubectl proxy` adds the token, and the browser has none.
pub async fn browser_shows_a_site_behind_kubectl_proxy(fixture: &mut Fixture) -> Result<()> {
    let _app = serve(fixture, "site-too", 8082).await?;
    // Without a proxy first, as the reference.
    visit(
        &format!("http://{}:8082", fixture.namespace.address(LAST)),
        None,
    )
    .await
    .context("without any proxy")?;
    let proxy =
        KubectlProxy::by_port(fixture, &format!("https://{}", fixture.bastion.secure)).await?;
    visit(
        &format!(
            "http://{}{}",
            proxy.address()?,
            path("services/site-too/proxy")
        ),
        None,
    )
    .await
}

/// Serves the site by a service.
pub async fn serve(fixture: &Fixture, name: &str, port: u16) -> Result<App> {
    let app = App::start(&fixture.namespace, LAST, port, None, site)?;
    fixture
        .objects
        .pod(
            name,
            json!({"app": name}),
            fixture.namespace.address(LAST),
            json!([]),
        )
        .await?;
    let spec = json!({"selector": {"app": name}, "ports": [{"port": 80, "targetPort": port}]});
    fixture.objects.service(name, spec).await?;
    fixture
        .wait_until_known(&format!("services/{name}:80"))
        .await?;
    Ok(app)
}

async fn visit(base: &str, token: Option<&str>) -> Result<()> {
    drive("visit.mjs", json!({"base": base, "token": token})).await
}

/// Runs a program of `tests/clients/browser`, which reads `setting` and the path of Chromium.
pub async fn drive(program: &str, mut setting: Value) -> Result<()> {
    let chromium = find_program(
        &["chromium", "chromium-browser", "google-chrome"],
        "on Debian, apt-get install chromium",
    )?;
    setting["chromium"] = json!(chromium);
    let folder = packages::npm("browser")?;
    let mut command = Command::new(packages::node()?);
    let mut browser = Program::start(command.arg(folder.join(program)))?;
    browser.write(setting.to_string().as_bytes())?;
    browser.finish().await
}
