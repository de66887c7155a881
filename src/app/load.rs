//! Loads what a configuration names: certificates, CAs, kubeconfig, manifests.

use std::sync::Arc;

use anyhow::{Context, Result};

use crate::config::{Config, SourceKind};
use crate::tls::{ClientTls, ServerTls};
use crate::trust::Trust;
use crate::watch::kubernetes::{self, Connections};
use crate::watch::manifests::Manifests;

/// The contents of the files that a configuration names, without those of the source.
pub(super) struct Files {
    pub server_tls: Arc<ServerTls>,
    pub client_tls: ClientTls,
    pub trust: Trust,
}

/// A source that has been found usable.
pub(super) enum Source {
    Kubernetes(Box<kube::Config>),
    Manifests(Box<Manifests>),
}

impl Files {
    pub fn load(config: &Config) -> Result<Self> {
        let trust = Trust::default();
        if let Some(path) = &config.serving.client_ca_file {
            let pem = std::fs::read(path)
                .with_context(|| format!("cannot read the client CA file {path:?}"))?;
            trust
                .client_cas
                .replace(&pem)
                .with_context(|| format!("the client CA file {path:?} cannot be used"))?;
        }
        let server_tls = Arc::new(ServerTls::new(&config.serving, trust.handshake_cas())?);
        let client_tls = ClientTls::new(&config.targets)?;
        Ok(Self {
            server_tls,
            client_tls,
            trust,
        })
    }
}

impl Source {
    pub async fn load(config: &Config, trust: &Trust) -> Result<Self> {
        Ok(match config.source.kind {
            SourceKind::Kubernetes => Self::Kubernetes(Box::new(
                kubernetes::connect(&config.source.kubernetes).await?,
            )),
            SourceKind::Manifests => {
                let manifests = config.source.manifests.clone();
                let directory = manifests
                    .directory
                    .context("source.manifests.directory is not set")?;
                Self::Manifests(Box::new(Manifests::load(
                    directory,
                    manifests.token_auth_file,
                    trust.clone(),
                )?))
            }
        })
    }
}

/// Loads everything that the configuration names as a start would: certificates, kubeconfig,
/// manifests. Binds no port and dials nothing.
///
/// # Errors
/// The first file that is no good, with what would be right.
pub async fn load_all(config: &Config) -> Result<()> {
    let files = Files::load(config)?;
    if let Source::Kubernetes(api) = Source::load(config, &files.trust).await? {
        // Plugins may ask somebody: theirs are left for the start.
        if api.auth_info.exec.is_none() && api.auth_info.auth_provider.is_none() {
            kubernetes::review_client(&api, Connections::Pooled)?;
        }
    }
    Ok(())
}
