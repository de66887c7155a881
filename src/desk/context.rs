//! The cluster and the user that flags and kubeconfig select, by the precedence of kubectl.

mod discover;
mod error;
mod select;
mod server;

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::HeaderValue;

use super::ConnectionFlags;
use super::connect::{CaBundle, Connector, Proxies, ProxyEnvironment, ServerTls, Verification};
use super::credentials::{ClusterInfo, Credentials, Login};
use crate::apiservers::ServerConfig;
use crate::kubeconfig::ClusterEntry;
pub use error::ContextError;
use select::{Environment, Selected};
pub use server::ServerUrl;

/// Everything that a command needs to send requests to a cluster as its user.
#[derive(Clone, Debug)]
pub struct Context {
    /// Name in the kubeconfig. Empty without a context.
    pub name: String,
    pub namespace: String,
    /// At least one.
    pub servers: Vec<ServerConfig>,
    pub credentials: Arc<Credentials>,
    /// Timeout of a request. `None` is none.
    pub request_timeout: Option<Duration>,
    /// Requests do not ask for compressed responses.
    pub disable_compression: bool,
}

impl Context {
    /// Loads the context of the flags. With `--discover`, it asks the cluster for its API servers,
    /// which blocks the thread for as long as the request takes.
    ///
    /// # Errors
    /// A file that is missing or malformed, a name that does not exist, or flags that exclude each
    /// other; with `--discover`, a failure of the request.
    pub fn load(flags: &ConnectionFlags) -> Result<Self, ContextError> {
        let loaded = Loaded::new(flags, &Environment::of_process())?;
        if !flags.discover {
            return Ok(loaded.context);
        }
        discover::discover(loaded)
    }
}

/// A context, with what connections to further servers of its cluster need.
#[derive(Debug)]
struct Loaded {
    context: Context,
    /// Those of the servers.
    connectors: Vec<Arc<Connector>>,
    tls: Option<Arc<ServerTls>>,
    proxies: Arc<Proxies>,
}

impl Loaded {
    fn new(flags: &ConnectionFlags, environment: &Environment) -> Result<Self, ContextError> {
        let selected = select::select(flags, environment)?;
        let urls = server_urls(flags, &selected)?;
        let is_secure = urls[0].is_https;
        let authority = selected.authority()?;
        let proxy = selected.cluster.proxy_url.as_deref();
        let verification = verification(authority.as_ref(), &selected.cluster)?;
        let proxies = Arc::new(proxies(proxy, &verification, &environment.proxies)?);
        if selected.cluster.insecure_skip_tls_verify && is_secure {
            super::warn(format_args!(
                "the certificate of {} is not verified; credentials may reach an impostor",
                selected.server()
            ));
        }
        let login = Login {
            user: selected.user.clone(),
            name: selected.user_name.clone(),
            file: selected.user_file.clone(),
            cluster: ClusterInfo {
                server: selected.server().to_owned(),
                authority: authority.clone(),
                settings: selected.cluster.clone(),
                config: selected.exec_config.clone(),
            },
            proxies: environment.proxies.clone(),
        };
        let credentials = Arc::new(if is_secure {
            Credentials::new(login)?
        } else {
            if login.has_credentials() {
                super::warn(format_args!(
                    "{} is not an https:// URL; no credentials are sent to it",
                    selected.server()
                ));
            }
            Credentials::none(&login)?
        });
        let tls = if is_secure {
            Some(Arc::new(ServerTls::new(
                &verification,
                selected.cluster.tls_server_name.as_deref(),
                Some(Arc::clone(&credentials)),
            )?))
        } else {
            None
        };
        let connectors: Vec<_> = urls
            .iter()
            .map(|url| Connector::new(&url.host, url.port, tls.clone(), Arc::clone(&proxies)))
            .map(Arc::new)
            .collect();
        let servers = urls.iter().zip(&connectors);
        let servers = servers.map(|(url, connector)| server_config(url, connector));
        Ok(Self {
            context: Context {
                servers: servers.collect::<Result<_, _>>()?,
                name: selected.name,
                namespace: selected.namespace,
                credentials,
                request_timeout: flags.request_timeout.0,
                disable_compression: selected.cluster.disable_compression,
            },
            connectors,
            tls,
            proxies,
        })
    }
}

/// Returns the URLs of the flags, else that of the cluster, each server once. All of them use TLS,
/// or none does.
fn server_urls(
    flags: &ConnectionFlags,
    selected: &Selected,
) -> Result<Vec<ServerUrl>, ContextError> {
    let flagged: Vec<_> = flags.servers.iter().filter(|url| !url.is_empty()).collect();
    let urls: Result<Vec<_>, _> = if flagged.is_empty() {
        vec![ServerUrl::parse(selected.server())]
            .into_iter()
            .collect()
    } else {
        flagged
            .into_iter()
            .map(|url| ServerUrl::parse(url))
            .collect()
    };
    let mut urls = urls?;
    let mut seen = HashSet::new();
    urls.retain(|url| seen.insert((url.host.clone(), url.port)));
    if urls.iter().any(|url| url.is_https != urls[0].is_https) {
        return Err(ContextError::MixedSchemes);
    }
    Ok(urls)
}

fn server_config(
    url: &ServerUrl,
    connector: &Arc<Connector>,
) -> Result<ServerConfig, ContextError> {
    let host = HeaderValue::from_str(&url.authority);
    Ok(ServerConfig {
        name: connector.name().to_owned(),
        host: Some(host.map_err(|_| ContextError::Server {
            url: url.authority.clone(),
            reason: "its host is not valid in a header",
        })?),
        path: url.path.clone(),
        connector: Arc::clone(connector) as _,
    })
}

/// Returns how the certificate of the API server is verified.
fn verification(
    authority: Option<&CaBundle>,
    cluster: &ClusterEntry,
) -> Result<Verification, ContextError> {
    match (authority, cluster.insecure_skip_tls_verify) {
        (Some(_), true) => Err(ContextError::InsecureWithAuthority),
        (Some(bundle), false) => Ok(Verification::Authority(bundle.clone())),
        (None, true) => Ok(Verification::None),
        (None, false) => Ok(Verification::System),
    }
}

/// Returns the proxies of the cluster. As with kubectl, an HTTPS proxy is verified with the CA of
/// the cluster; unlike there, its certificate may also be one that the system trusts.
fn proxies(
    url: Option<&str>,
    server: &Verification,
    environment: &ProxyEnvironment,
) -> Result<Proxies, ContextError> {
    let verification = match server {
        Verification::Authority(bundle) => Verification::AuthorityOrSystem(bundle.clone()),
        other => other.clone(),
    };
    Ok(match url {
        Some(url) => Proxies::always(url, verification)?,
        None => Proxies::from_environment(environment, verification),
    })
}

impl Selected {
    /// Returns the CA of the cluster. `None` means that of the system.
    fn authority(&self) -> Result<Option<CaBundle>, ContextError> {
        if let Some(data) = &self.cluster.certificate_authority_data {
            let pem = STANDARD.decode(data.trim());
            let pem = pem.map_err(|_| ContextError::AuthorityData {
                cluster: self.cluster_name.clone(),
            })?;
            return Ok(Some(CaBundle {
                pem,
                origin: "certificate-authority-data".into(),
            }));
        }
        let Some(path) = &self.cluster.certificate_authority else {
            return Ok(None);
        };
        match std::fs::read(path) {
            Ok(pem) => Ok(Some(CaBundle {
                pem,
                origin: format!("{path:?}"),
            })),
            Err(source) => Err(ContextError::Authority {
                path: path.clone(),
                source,
            }),
        }
    }
}

#[cfg(test)]
mod tests;
