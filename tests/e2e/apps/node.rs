//! Applications from npm.

use anyhow::Result;

use super::site::{Caller, Paths, Site, file};
use crate::fixture::Fixture;
use crate::packages;

/// Node-RED needs no setting.
pub async fn node_red_deploys_a_flow(fixture: &mut Fixture) -> Result<()> {
    let mut site = Site::new(fixture, "node-red", 1880, Paths::Stripped, Caller::Token).await?;
    let modules = packages::npm("apps")?.join("node_modules");
    let mut command = site.command(&packages::node()?);
    command
        .arg(modules.join("node-red/red.js"))
        .arg("--settings")
        .arg(file("node-red.js"))
        .arg("--userDir")
        .arg(site.folder.path())
        .env("ADDRESS", site.address.ip().to_string())
        .env("PORT", site.address.port().to_string());
    site.start(&mut command, "Started flows").await?;
    site.visit().await
}

/// Verdaccio takes requests without the prefix, and needs it for links (`url_prefix`). Clients get
/// the address of a tarball from it, so it needs that of `kubectl proxy`, too.
pub async fn verdaccio_publishes_and_shows_packages(fixture: &mut Fixture) -> Result<()> {
    let mut site = Site::new(fixture, "verdaccio", 4873, Paths::Stripped, Caller::Token).await?;
    let modules = packages::npm("apps")?.join("node_modules");
    let settings = std::fs::read_to_string(file("verdaccio.yaml"))?;
    let file = site.folder.path().join("config.yaml");
    std::fs::write(&file, format!("{settings}url_prefix: {}/\n", site.prefix))?;
    let mut command = site.command(&packages::node()?);
    command
        .arg(modules.join("verdaccio/bin/verdaccio"))
        .arg("--config")
        .arg(&file)
        .arg("--listen")
        .arg(site.address.to_string())
        .env("VERDACCIO_PUBLIC_URL", site.origin()?);
    site.start(&mut command, "http address").await?;
    site.visit().await
}
