//! Applications from `PyPI`.

use std::process::Command;

use anyhow::{Context, Result, ensure};

use super::site::{Caller, Opened, Paths, Site, file, kubelet};
use crate::fixture::Fixture;
use crate::packages;

/// `JupyterLab` needs its prefix in requests and in links (`base_url`), and compares `Origin` with
/// `Host`, which `kubectl proxy` changes (`allow_origin`).
pub async fn jupyterlab_runs_a_notebook(fixture: &mut Fixture) -> Result<()> {
    let site = Site::new(fixture, "jupyterlab", 8888, Paths::Kept, Caller::Token).await?;
    let settings = [
        format!("--ServerApp.base_url={}/", site.prefix),
        format!("--ServerApp.allow_origin={}", site.origin()?),
    ];
    run_jupyterlab(site, &settings).await
}

/// Behind `kube-bastion open`, neither is needed.
pub async fn jupyterlab_runs_a_notebook_opened(fixture: &mut Fixture) -> Result<()> {
    let site = Site::opened(fixture, "jupyterlab", 8889, Opened::Bastion).await?;
    run_jupyterlab(site, &[]).await?;
    let kubelet = kubelet(fixture, "jupyterlab-by-port-forward").await?;
    let site = Site::opened(fixture, "jupyterlab", 8890, Opened::ApiServer).await?;
    run_jupyterlab(site, &[]).await?;
    ensure!(kubelet.count("dial") > 0, "{:?}", kubelet.output());
    Ok(())
}

async fn run_jupyterlab(mut site: Site<'_>, settings: &[String]) -> Result<()> {
    let mut command = python(&site)?;
    command
        .args(["-m", "jupyterlab", "--no-browser", "--allow-root"])
        .arg("--IdentityProvider.token=")
        .arg(format!("--ip={}", site.address.ip()))
        .arg(format!("--port={}", site.address.port()))
        .arg(format!(
            "--ServerApp.root_dir={}",
            site.folder.path().display()
        ))
        .args(settings);
    site.start(&mut command, "is running at").await?;
    site.visit().await
}

/// `TensorBoard` needs no setting.
pub async fn tensorboard_shows_scalars(fixture: &mut Fixture) -> Result<()> {
    let mut site = Site::new(fixture, "tensorboard", 6006, Paths::Stripped, Caller::Token).await?;
    let written = python(&site)?
        .arg(file("write_events.py"))
        .arg("logs/first-run")
        .output()?;
    ensure!(
        written.status.success(),
        "write_events.py: {}",
        String::from_utf8_lossy(&written.stderr)
    );
    let mut command = python(&site)?;
    command
        .args(["-m", "tensorboard.main", "--logdir=logs"])
        // Without a second process that would read the events.
        .arg("--load_fast=false")
        .arg(format!("--host={}", site.address.ip()))
        .arg(format!("--port={}", site.address.port()));
    site.start(&mut command, "Press CTRL+C to quit").await?;
    site.visit().await
}

/// Streamlit needs no setting where the browser's host is a loopback address.
pub async fn streamlit_reruns_its_page(fixture: &mut Fixture) -> Result<()> {
    let site = Site::new(fixture, "streamlit", 8501, Paths::Stripped, Caller::Token).await?;
    run_streamlit(site).await
}

pub async fn streamlit_reruns_its_page_opened(fixture: &mut Fixture) -> Result<()> {
    let site = Site::opened(fixture, "streamlit", 8502, Opened::Bastion).await?;
    run_streamlit(site).await?;
    let _kubelet = kubelet(fixture, "streamlit-by-port-forward").await?;
    let site = Site::opened(fixture, "streamlit", 8503, Opened::ApiServer).await?;
    run_streamlit(site).await
}

async fn run_streamlit(mut site: Site<'_>) -> Result<()> {
    let mut command = python(&site)?;
    command
        .args(["-m", "streamlit", "run"])
        .arg(file("streamlit_page.py"))
        .args(["--server.headless=true", "--browser.gatherUsageStats=false"])
        .arg(format!("--server.address={}", site.address.ip()))
        .arg(format!("--server.port={}", site.address.port()));
    site.start(&mut command, "You can now view").await?;
    site.visit().await
}

/// Returns a command of Python with the installed packages.
fn python(site: &Site<'_>) -> Result<Command> {
    let packages = packages::pip("apps").context("the packages of Python applications")?;
    let mut command = site.command(&packages::python()?);
    command
        .env("PYTHONPATH", &packages)
        // Jupyter looks for these files beside the interpreter.
        .env("JUPYTERLAB_DIR", packages.join("share/jupyter/lab"))
        .env("JUPYTER_PATH", packages.join("share/jupyter"));
    Ok(command)
}
