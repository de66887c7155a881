//! Loads the files that a configuration names: certificates, CAs, kubeconfig, manifests.

use std::sync::Arc;

use anyhow::{Context, Result};

use crate::config::{Config, SourceKind};
use crate::tls::{ClientTls, ServerTls};
use crate::trust::Trust;
use crate::watch::kubernetes::{self, Connections};
use crate::watch::manifests::Manifests;

/// Contents of the files that a configuration names, except those of the cluster source.
pub(super) struct Files {
    pub server_tls: Arc<ServerTls>,
    pub client_tls: ClientTls,
    pub trust: Trust,
}

/// Cluster source that has been loaded.
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
                .with_context(|| format!("cannot use the client CA file {path:?}"))?;
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

/// Loads the files that the configuration names as [`super::Bound::new`] does, without binding a
/// port or dialing.
///
/// # Errors
/// The first file that cannot be used, and how to correct it.
pub async fn load_all(config: &Config) -> Result<()> {
    let files = Files::load(config)?;
    if let Source::Kubernetes(api) = Source::load(config, &files.trust).await? {
        // Credential plugins may prompt the user, so they only run at a real start.
        if api.auth_info.exec.is_none() && api.auth_info.auth_provider.is_none() {
            kubernetes::review_client(&api, Connections::Pooled)?;
        }
    }
    Ok(())
}
