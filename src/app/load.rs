//! Loads the files that a configuration names: certificates, CAs, kubeconfig, manifests.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, Error, Result};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use secrecy::ExposeSecret;

use crate::config::{Config, ManifestsSource, Serving, SourceKind};
use crate::tls::{ApiServerTls, ClientTls, Concern, Pair, ServerTls, TlsError};
use crate::trust::{DynamicClientCas, Trust};
use crate::watch::kubernetes::{self, Connections};
use crate::watch::manifests::{ManifestError, Manifests, ObjectCounts};

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
    /// Loads the files, and stores a self-signed certificate if a directory is configured. Logs
    /// properties of certificates for which peers may reject them.
    pub fn load(config: &Config) -> Result<Self> {
        let files = Self::load_with(config, ServerTls::new)?;
        warn(files.concerns());
        Ok(files)
    }

    /// Loads the files without writing one.
    ///
    /// # Errors
    /// Also a certificate that is expired or not yet valid.
    fn check(config: &Config) -> Result<Self> {
        let files = Self::load_with(config, ServerTls::check)?;
        require_validity(files.concerns())?;
        Ok(files)
    }

    fn concerns(&self) -> Vec<Concern> {
        [
            self.server_tls.concerns(),
            self.client_tls.kubelet.concerns(),
        ]
        .concat()
    }

    fn load_with(
        config: &Config,
        server_tls: impl FnOnce(&Serving, [DynamicClientCas; 2]) -> Result<ServerTls, TlsError>,
    ) -> Result<Self> {
        let trust = Trust::default();
        if let Some(path) = &config.serving.client_ca_file {
            let setting = "(serving.clientCAFile, --client-ca-file)";
            let pem = std::fs::read(path)
                .with_context(|| format!("cannot read the client CA file {path:?} {setting}"))?;
            trust
                .client_cas
                .replace(&pem)
                .with_context(|| format!("cannot use the client CA file {path:?} {setting}"))?;
        }
        let server_tls = Arc::new(server_tls(&config.serving, trust.handshake_cas()).context(
            "cannot set up TLS of the HTTPS port (serving.tlsCertFile, \
                     serving.tlsPrivateKeyFile)",
        )?);
        let client_tls = ClientTls::new(&config.targets, config.upstream.tls_min_version).context(
            "cannot set up TLS to kubelets (targets.kubeletCertificateAuthority, \
             targets.kubeletClientCertificate, targets.kubeletClientKey)",
        )?;
        Ok(Self {
            server_tls,
            client_tls,
            trust,
        })
    }
}

impl Source {
    /// Returns the configuration of the Kubernetes API, if it is the source.
    pub fn kubernetes(&self) -> Option<&kube::Config> {
        match self {
            Self::Kubernetes(api) => Some(api),
            Self::Manifests(_) => None,
        }
    }

    pub async fn load(config: &Config, trust: &Trust) -> Result<Self> {
        Ok(match config.source.kind {
            SourceKind::Kubernetes => {
                let api = kubernetes::connect(&config.source.kubernetes).await?;
                api_certificate(&api).context(
                    "cannot use the client certificate of the kubeconfig (client-certificate, \
                     client-key)",
                )?;
                Self::Kubernetes(Box::new(api))
            }
            SourceKind::Manifests => {
                let source = &config.source.manifests;
                let directory = source.directory.clone();
                let directory = directory.context("source.manifests.directory is not set")?;
                let token_file = source.token_auth_file.clone();
                let manifests = Manifests::load(directory, token_file, trust.clone());
                let manifests = manifests.map_err(|error| name_setting(error, source))?;
                if source.token_auth_file.is_none()
                    && config.serving.client_ca_file.is_none()
                    && !config.authentication.anonymous
                {
                    tracing::warn!(
                        "no caller can authenticate: set source.manifests.tokenAuthFile \
                         (--token-auth-file), serving.clientCAFile (--client-ca-file) or \
                         authentication.anonymous (--anonymous-auth)"
                    );
                }
                Self::Manifests(Box::new(manifests))
            }
        })
    }
}

/// Sets up TLS to the API servers. `None` if requests are not passed to them.
pub(super) fn api_server_tls(
    config: &Config,
    source: &Source,
) -> Result<Option<Arc<ApiServerTls>>> {
    if !config.api_servers.enabled {
        return Ok(None);
    }
    let (file, cas) = match source {
        Source::Kubernetes(api) => (api.root_cert_file.clone(), api.root_cert.clone()),
        Source::Manifests(_) => (None, None),
    };
    let cas = cas
        .unwrap_or_default()
        .into_iter()
        .map(Into::into)
        .collect();
    let tls = ApiServerTls::new(
        &config.api_servers,
        file,
        cas,
        config.upstream.tls_min_version,
    );
    let tls = tls.context(
        "cannot set up TLS to the API servers (apiServers.certificateAuthority, \
         apiServers.frontProxyClientCertificate, apiServers.frontProxyClientKey)",
    )?;
    Ok(Some(Arc::new(tls)))
}

/// Parses the client certificate for the API server, whose faults the API client does not name.
/// `None` if the kubeconfig has none, or it cannot be read, which the API client reports.
pub(super) fn api_certificate(api: &kube::Config) -> Result<Option<Pair>, TlsError> {
    // Data takes precedence over files, as in the API client.
    let load = |data: Option<&str>, data_name: &str, file: Option<&str>| match (data, file) {
        (Some(data), _) => Some((PathBuf::from(data_name), STANDARD.decode(data).ok()?)),
        (None, Some(file)) => Some((PathBuf::from(file), std::fs::read(file).ok()?)),
        (None, None) => None,
    };
    let user = &api.auth_info;
    let certificate = load(
        user.client_certificate_data.as_deref(),
        "client-certificate-data",
        user.client_certificate.as_deref(),
    );
    let key_data = user.client_key_data.as_ref();
    let key = load(
        key_data.map(ExposeSecret::expose_secret),
        "client-key-data",
        user.client_key.as_deref(),
    );
    match (certificate, key) {
        (Some((path, certificate)), Some((key_path, key))) => {
            Pair::parse_client(&path, &certificate, &key_path, &key).map(Some)
        }
        _ => Ok(None),
    }
}

/// Logs properties of certificates for which peers may reject them.
fn warn(concerns: Vec<Concern>) {
    for concern in concerns {
        tracing::warn!("{concern}");
    }
}

/// Logs as [`warn`] does.
///
/// # Errors
/// A certificate that is expired or not yet valid.
fn require_validity(concerns: Vec<Concern>) -> Result<(), Concern> {
    let (outside, others): (Vec<_>, _) =
        concerns.into_iter().partition(Concern::is_outside_validity);
    warn(others);
    outside.into_iter().next().map_or(Ok(()), Err)
}

/// Adds the setting that names the unusable file. Errors of files in the directory have none.
fn name_setting(error: ManifestError, source: &ManifestsSource) -> Error {
    let path = match &error {
        ManifestError::Read { path, .. } | ManifestError::Tokens { path, .. } => Some(path),
        ManifestError::Yaml { .. }
        | ManifestError::Malformed { .. }
        | ManifestError::Several(_) => None,
    };
    let setting = if path.is_some() && path == source.directory.as_ref() {
        "cannot use source.manifests.directory (--manifests-dir)"
    } else if path.is_some() && path == source.token_auth_file.as_ref() {
        "cannot use source.manifests.tokenAuthFile (--token-auth-file)"
    } else {
        return error.into();
    };
    Error::new(error).context(setting)
}

/// Loads the files that the configuration names as [`super::Bound::new`] does, without binding a
/// port, dialing or writing a file.
///
/// Returns the numbers of objects if the source is a directory of manifests.
///
/// # Errors
/// The first file that cannot be used, and how to correct it.
pub async fn load_all(config: &Config) -> Result<Option<ObjectCounts>> {
    let files = Files::check(config)?;
    let source = Source::load(config, &files.trust).await?;
    api_server_tls(config, &source)?;
    match source {
        Source::Kubernetes(api) => {
            // Credential plugins may prompt the user, so they only run at a real start.
            if api.auth_info.exec.is_none() && api.auth_info.auth_provider.is_none() {
                kubernetes::review_client(&api, Connections::Pooled)?;
            }
            if let Some(certificate) = api_certificate(&api)? {
                require_validity(certificate.concerns)?;
            }
            Ok(None)
        }
        Source::Manifests(manifests) => Ok(Some(manifests.counts())),
    }
}
