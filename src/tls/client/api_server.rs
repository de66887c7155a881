//! TLS client configuration for API servers.

use std::path::PathBuf;
use std::sync::Arc;

use arc_swap::ArcSwap;
use rustls::pki_types::CertificateDer;
use rustls::{ClientConfig, RootCertStore};

use super::super::TlsError;
use super::super::pair::{Pair, Role};
use super::{builder, load_roots};
use crate::config;
use crate::file_watch::FileWatch;
use crate::model::error_chain;

/// Configurations with and without the client certificate of a front proxy, replaced when their
/// files change.
#[derive(Debug)]
pub struct ApiServerTls {
    files: ApiServerFiles,
    /// CAs of the cluster source.
    source_cas: Vec<CertificateDer<'static>>,
    current: ArcSwap<Setup>,
}

#[derive(Clone, Debug)]
struct ApiServerFiles {
    authority: Option<PathBuf>,
    pair: Option<(PathBuf, PathBuf)>,
    min_version: config::TlsVersion,
}

#[derive(Debug)]
struct Setup {
    plain: Alpn,
    front_proxy: Option<Alpn>,
}

/// One configuration per choice of ALPN.
#[derive(Debug)]
struct Alpn {
    any: Arc<ClientConfig>,
    http1: Arc<ClientConfig>,
}

impl Alpn {
    fn new(config: &ClientConfig) -> Self {
        let with = |protocols: &[&[u8]]| {
            let mut config = config.clone();
            config.alpn_protocols = protocols.iter().map(|name| name.to_vec()).collect();
            Arc::new(config)
        };
        Self {
            any: with(&[b"h2", b"http/1.1"]),
            http1: with(&[b"http/1.1"]),
        }
    }
}

impl ApiServerTls {
    /// `source_file` and `source_cas` are the CAs of the cluster source, for a configuration without
    /// a CA file.
    ///
    /// # Errors
    /// A file cannot be read or used, or there is no CA.
    pub fn new(
        settings: &config::ApiServers,
        source_file: Option<PathBuf>,
        source_cas: Vec<CertificateDer<'static>>,
        min_version: config::TlsVersion,
    ) -> Result<Self, TlsError> {
        let pair = settings
            .front_proxy_client_certificate
            .clone()
            .zip(settings.front_proxy_client_key.clone());
        let files = ApiServerFiles {
            authority: settings.certificate_authority.clone().or(source_file),
            pair,
            min_version,
        };
        Ok(Self {
            current: ArcSwap::from_pointee(files.load(&source_cas)?),
            files,
            source_cas,
        })
    }

    /// Returns the configuration of a connection. `None` if it needs the certificate of a front
    /// proxy and none is configured.
    pub fn config(&self, front_proxy: bool, http2: bool) -> Option<Arc<ClientConfig>> {
        let current = self.current.load();
        let alpn = if front_proxy {
            current.front_proxy.as_ref()?
        } else {
            &current.plain
        };
        Some(Arc::clone(if http2 { &alpn.any } else { &alpn.http1 }))
    }

    /// Reloads the files when they change. Never returns.
    pub async fn watch_files(self: Arc<Self>) {
        let ApiServerFiles {
            authority, pair, ..
        } = self.files.clone();
        let pair = pair.map(|(certificate, key)| [certificate, key]);
        let files: Vec<_> = authority
            .into_iter()
            .chain(pair.into_iter().flatten())
            .collect();
        if files.is_empty() {
            return std::future::pending().await;
        }
        let mut watch = FileWatch::new(files);
        loop {
            watch.changed().await;
            match self.files.load(&self.source_cas) {
                Ok(setup) => {
                    self.current.store(Arc::new(setup));
                    tracing::info!("reloaded the CA and the client certificate for API servers");
                }
                Err(error) => tracing::error!(
                    error = error_chain(&error),
                    "cannot use the changed CA or client certificate for API servers; keeping the \
                     old ones"
                ),
            }
        }
    }
}

impl ApiServerFiles {
    fn load(&self, source_cas: &[CertificateDer<'static>]) -> Result<Setup, TlsError> {
        let mut roots = RootCertStore::empty();
        match &self.authority {
            Some(path) => roots = load_roots(path)?,
            // Those that cannot be parsed verify nothing; the client of the API reports them.
            None => {
                roots.add_parsable_certificates(source_cas.iter().cloned());
            }
        }
        if roots.is_empty() {
            return Err(TlsError::NoApiServerCa);
        }
        let pair = self
            .pair
            .as_ref()
            .map(|(certificate, key)| Pair::load(certificate, key, Role::Client))
            .transpose()?;
        let front_proxy = match pair {
            Some(pair) => {
                let resolver = rustls::sign::SingleCertAndKey::from(Arc::clone(&pair.key));
                let config = builder(self.min_version)?
                    .with_root_certificates(roots.clone())
                    .with_client_cert_resolver(Arc::new(resolver));
                Some(Alpn::new(&config))
            }
            None => None,
        };
        let plain = builder(self.min_version)?
            .with_root_certificates(roots)
            .with_no_client_auth();
        Ok(Setup {
            plain: Alpn::new(&plain),
            front_proxy,
        })
    }
}
