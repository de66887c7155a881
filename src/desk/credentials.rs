//! The credentials of a user: tokens, client certificates, credential plugins and OIDC, renewed
//! before they expire.
//!
//! The precedence is that of client-go: a token file beats a token, a token or a password beats
//! `auth-provider`, and any of them or a client certificate beats a plugin.

mod certificate;
mod error;
mod exec;
mod impersonation;
mod oidc;
mod renewal;

use std::path::PathBuf;
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::{HeaderMap, HeaderValue};
use rustls::sign::CertifiedKey;
use serde_json::Value;

use super::connect::{CaBundle, ProxyEnvironment};
use crate::apiservers::Credential;
use crate::kubeconfig::{ClusterEntry, Secret, UserEntry};
use certificate::Certificate;
pub use error::CredentialsError;
use exec::Plugin;
use oidc::Oidc;
use renewal::{Obtained, Provider, Renewal, system_clock};

/// Fields of a kubeconfig that decide how a user logs in.
#[derive(Clone, Debug, Default)]
pub struct Login {
    pub user: UserEntry,
    /// Name of the user.
    pub name: String,
    /// File that defines the user, to which rotated tokens are written.
    pub file: Option<PathBuf>,
    pub cluster: ClusterInfo,
    /// Proxies for the identity provider.
    pub proxies: ProxyEnvironment,
}

/// Cluster for which credentials are used, as plugins get it.
#[derive(Clone, Debug, Default)]
pub struct ClusterInfo {
    /// URL of the server.
    pub server: String,
    pub authority: Option<CaBundle>,
    pub settings: ClusterEntry,
    /// Configuration for plugins, an extension of the cluster.
    pub config: Option<Value>,
}

/// Credentials of one request.
#[derive(Clone, Debug)]
pub struct Presented {
    obtained: Obtained,
    generation: u32,
}

impl Presented {
    /// Returns `Authorization`. `None` if the user has none, or only a certificate.
    pub fn authorization(&self) -> Option<&HeaderValue> {
        self.obtained.authorization.as_ref()
    }

    /// Returns the number of the client certificate.
    pub fn generation(&self) -> u32 {
        self.generation
    }

    /// Returns the credential of the connection.
    pub fn credential(&self) -> Credential {
        Credential::Own {
            generation: self.generation,
        }
    }
}

/// Login of the user of a context.
#[derive(Debug)]
pub struct Credentials {
    impersonation: HeaderMap,
    certificate: Certificate,
    renewal: Arc<Renewal>,
}

impl Login {
    /// Returns true if the user has any credentials.
    pub fn has_credentials(&self) -> bool {
        let user = &self.user;
        user.token.is_some()
            || user.token_file.is_some()
            || user.username.is_some()
            || user.client_certificate.is_some()
            || user.client_certificate_data.is_some()
            || user.exec.is_some()
            || user.auth_provider.is_some()
    }
}

impl Credentials {
    /// Loads the credentials. Plugins and identity providers are not run before the first request.
    ///
    /// # Errors
    /// A malformed field, a file that cannot be read, or fields that exclude each other.
    pub fn new(login: Login) -> Result<Self, CredentialsError> {
        Self::with_clock(login, system_clock())
    }

    fn with_clock(login: Login, clock: renewal::Clock) -> Result<Self, CredentialsError> {
        let impersonation = impersonation::headers(&login.user)?;
        let certificate = Certificate::load(&login, Arc::clone(&clock))?;
        let provider = provider(&login, certificate.is_some())?;
        Ok(Self {
            impersonation,
            certificate,
            renewal: Renewal::new(provider, login.name, clock),
        })
    }

    /// Returns no credentials, only the impersonation of the user, for servers without TLS.
    ///
    /// # Errors
    /// A name that a header cannot have.
    pub fn none(login: &Login) -> Result<Self, CredentialsError> {
        Ok(Self {
            impersonation: impersonation::headers(&login.user)?,
            certificate: Certificate::None,
            renewal: Renewal::new(Provider::Fixed(None), login.name.clone(), system_clock()),
        })
    }

    /// Returns the current `Authorization`. `None` if the user has none, or only a certificate.
    ///
    /// # Errors
    /// As [`Self::current`].
    pub async fn authorization(&self) -> Result<Option<HeaderValue>, CredentialsError> {
        Ok(self.current().await?.obtained.authorization)
    }

    /// Returns the current credentials.
    ///
    /// Credentials that are about to expire are renewed while the old ones are in use; concurrent
    /// requests share one renewal.
    ///
    /// # Errors
    /// There are no valid credentials, and the renewal failed.
    pub async fn current(&self) -> Result<Presented, CredentialsError> {
        self.certificate.reload().await;
        let obtained = self.renewal.current().await?;
        Ok(self.presented(obtained))
    }

    /// Sends a request with the current credentials. If they are rejected, renews them and sends it
    /// again once, unless nothing newer can be had.
    ///
    /// # Errors
    /// That of an attempt, or there were no credentials for the first one.
    pub async fn with_renewal<T, E: From<CredentialsError>>(
        &self,
        mut attempt: impl AsyncFnMut(&Presented) -> Result<T, E>,
        is_rejected: impl Fn(&T) -> bool,
    ) -> Result<T, E> {
        let presented = self.current().await?;
        let response = attempt(&presented).await?;
        if !is_rejected(&response) {
            return Ok(response);
        }
        match self.renew(&presented).await {
            // Before the next attempt, which may need the connection of this response.
            Ok(Some(newer)) => {
                drop(response);
                attempt(&newer).await
            }
            // A failed renewal prints a warning, at most one a minute.
            Ok(None) | Err(_) => Ok(response),
        }
    }

    /// Returns true if credentials that were rejected may have newer ones.
    pub fn is_renewable(&self) -> bool {
        self.renewal.is_renewable()
    }

    /// Renews the credentials after a 401. `None` if nothing newer than `rejected` can be had.
    /// Such renewals are at least ten seconds apart.
    ///
    /// # Errors
    /// The renewal failed.
    pub async fn renew(&self, rejected: &Presented) -> Result<Option<Presented>, CredentialsError> {
        let renewed = self.renewal.renew(&rejected.obtained).await?;
        Ok(renewed.map(|obtained| self.presented(obtained)))
    }

    fn presented(&self, obtained: Obtained) -> Presented {
        Presented {
            obtained,
            generation: self.generation(),
        }
    }

    /// Returns the number of the client certificate, which changes with it.
    pub fn generation(&self) -> u32 {
        self.certificate.generation() + self.renewal.generation()
    }

    /// Returns the headers `Impersonate-*` of flags and kubeconfig.
    pub fn impersonation(&self) -> &HeaderMap {
        &self.impersonation
    }

    /// Replaces the headers `Impersonate-*` of a request with those of flags and kubeconfig.
    pub fn impersonate(&self, headers: &mut HeaderMap) {
        let others: Vec<_> = headers
            .keys()
            .filter(|name| name.as_str().starts_with("impersonate-"))
            .cloned()
            .collect();
        for name in others {
            headers.remove(name);
        }
        let own = self.impersonation.iter();
        headers.extend(own.map(|(name, value)| (name.clone(), value.clone())));
    }

    /// Returns true if a plugin may return a client certificate, so that credentials have to be
    /// obtained before a connection.
    pub fn may_obtain_certificate(&self) -> bool {
        self.renewal.has_certificate()
    }

    /// Returns the client certificate with its number. Never runs a plugin, which may take longer
    /// than the timeout of a connection: [`Self::current`] does.
    pub(super) fn certificate(&self) -> (u32, Option<Arc<CertifiedKey>>) {
        if let Some(certificate) = self.certificate.current() {
            return (self.generation(), Some(certificate));
        }
        let (generation, certificate) = self.renewal.certificate();
        (self.certificate.generation() + generation, certificate)
    }
}

/// Selects how `Authorization` is obtained.
fn provider(login: &Login, has_certificate: bool) -> Result<Provider, CredentialsError> {
    let user = &login.user;
    let name = || login.name.clone();
    let has_password = user.username.is_some() || user.password.is_some();
    if user.token.is_some() && has_password {
        return Err(CredentialsError::TokenAndPassword { user: name() });
    }
    if user.exec.is_some() && user.auth_provider.is_some() {
        return Err(CredentialsError::ExecAndAuthProvider { user: name() });
    }
    let token = user.token.as_ref().map(bearer).transpose()?;
    if let Some(path) = &user.token_file {
        return Ok(Provider::TokenFile {
            path: path.clone(),
            fallback: token,
        });
    }
    if token.is_some() {
        return Ok(Provider::Fixed(token));
    }
    if has_password {
        let password = user.password.as_ref().map_or("", Secret::expose);
        let pair = format!(
            "{}:{password}",
            user.username.as_deref().unwrap_or_default()
        );
        let header = header(&format!("Basic {}", STANDARD.encode(pair)))?;
        return Ok(Provider::Fixed(Some(header)));
    }
    if let Some(auth_provider) = &user.auth_provider {
        return Ok(Provider::Oidc(Box::new(Oidc::new(login, auth_provider)?)));
    }
    match &user.exec {
        Some(exec) if !has_certificate => Ok(Provider::Exec(Box::new(Plugin::new(login, exec)?))),
        _ => Ok(Provider::Fixed(None)),
    }
}

/// Returns the `Authorization` of a token.
fn bearer(token: &Secret) -> Result<HeaderValue, CredentialsError> {
    header(&format!("Bearer {}", token.expose().trim()))
}

fn header(text: &str) -> Result<HeaderValue, CredentialsError> {
    let mut value = HeaderValue::from_str(text).map_err(|_| CredentialsError::NotAHeader)?;
    value.set_sensitive(true);
    Ok(value)
}

#[cfg(test)]
mod tests;
