//! Headless Chromium with a site that assumes to be at the root of its host.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::kubectl::KubectlProxy;
use super::site::site;
use crate::fixture::{Fixture, path};
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

async fn serve(fixture: &Fixture, name: &str, port: u16) -> Result<App> {
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
    run_in_browser("visit.mjs", json!({"base": base, "token": token})).await
}

/// Runs a script of `tests/clients/browser` with settings, and the path of Chromium, on its
/// standard input.
pub async fn run_in_browser(script: &str, mut settings: Value) -> Result<()> {
    let chromium = find_program(
        &["chromium", "chromium-browser", "google-chrome"],
        "on Debian, apt-get install chromium",
    )?;
    settings["chromium"] = json!(chromium);
    let folder = installation(script)?;
    let node = find_program(
        &["node"],
        "install Node 18 or later; on Debian, apt-get install nodejs",
    )?;
    let mut command = Command::new(node);
    let mut browser = Program::start(command.arg(folder.join(script)))?;
    browser.write(settings.to_string().as_bytes())?;
    browser.finish().await
}

/// Installs the packages of package-lock.json in a folder of target/, unless the lock file is
/// unchanged. Returns the folder, with the script.
fn installation(script: &str) -> Result<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let (source, folder) = (
        root.join("tests/clients/browser"),
        root.join("target/clients/browser"),
    );
    std::fs::create_dir_all(&folder)?;
    std::fs::copy(source.join(script), folder.join(script))?;
    let lock = std::fs::read(source.join("package-lock.json"))?;
    let installed_lock = folder.join("installed-lock.json");
    if std::fs::read(&installed_lock).is_ok_and(|installed| installed == lock) {
        return Ok(folder);
    }
    for name in ["package.json", "package-lock.json"] {
        std::fs::copy(source.join(name), folder.join(name))?;
    }
    let npm = find_program(&["npm"], "on Debian, apt-get install npm")?;
    let mut command = Command::new(npm);
    command
        .args(["ci", "--ignore-scripts", "--no-audit", "--no-fund"])
        .current_dir(&folder);
    let output = command.output().context("npm did not start")?;
    let printed = [output.stdout, output.stderr].concat();
    ensure!(
        output.status.success(),
        "`npm ci` failed in {}:\n{}",
        folder.display(),
        String::from_utf8_lossy(&printed)
    );
    std::fs::write(installed_lock, lock)?;
    Ok(folder)
}
