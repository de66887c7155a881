//! The auth-provider `oidc`: refreshes the id-token, and writes rotated tokens to the kubeconfig.

mod store;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use bytes::Bytes;
use http::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HOST};
use http::{HeaderValue, Request, StatusCode};
use http_body_util::Full;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde::Deserialize;

use super::renewal::Obtained;
use super::{CredentialsError, Login, bearer};
use crate::desk::connect::{
    CaBundle, Connector, Proxies, ProxyEnvironment, ServerTls, Verification,
};
use crate::desk::context::ServerUrl;
use crate::desk::request;
use crate::kubeconfig::{AuthProvider, Secret};
use crate::model::error_chain;

/// An id-token that is valid for less counts as expired, as in client-go.
const LEEWAY: Duration = Duration::from_secs(10);
/// Maximum length of the code of an OAuth error.
const MAX_CODE: usize = 80;

/// Login by an identity provider.
pub(super) struct Oidc {
    /// Name of the user.
    user: String,
    issuer: String,
    client_id: String,
    client_secret: Secret,
    /// CA of the issuer.
    verification: Verification,
    proxies: ProxyEnvironment,
    /// File with the tokens.
    file: Option<PathBuf>,
    tokens: Mutex<Tokens>,
}

/// Tokens of a user.
#[derive(Clone, Debug, Default)]
struct Tokens {
    id: Option<Secret>,
    refresh: Option<Secret>,
}

#[derive(Deserialize)]
struct Discovery {
    token_endpoint: Option<String>,
}

/// Response of a token endpoint.
#[derive(Default, Deserialize)]
#[serde(default)]
struct TokenResponse {
    id_token: Option<Secret>,
    refresh_token: Option<Secret>,
    /// Code of an error, such as `invalid_grant`.
    error: Option<String>,
}

#[derive(Deserialize)]
struct Claims {
    exp: f64,
}

impl Tokens {
    fn from_config(config: &BTreeMap<String, Secret>) -> Self {
        let field = |name: &str| {
            let value = config.get(name).cloned();
            value.filter(|value| !value.expose().is_empty())
        };
        Self {
            id: field("id-token"),
            refresh: field("refresh-token"),
        }
    }
}

impl Oidc {
    /// Checks the fields of `auth-provider`.
    pub fn new(login: &Login, provider: &AuthProvider) -> Result<Self, CredentialsError> {
        let user = || login.name.clone();
        let remedy = match &*provider.name {
            "oidc" => None,
            "gcp" => Some(
                "install gke-gcloud-auth-plugin and run gcloud container clusters get-credentials",
            ),
            "azure" => Some("install kubelogin and run kubelogin convert-kubeconfig"),
            _ => Some("use exec with a credential plugin"),
        };
        if let Some(remedy) = remedy {
            return Err(CredentialsError::AuthProvider {
                user: user(),
                name: provider.name.clone(),
                remedy,
            });
        }
        let field = |name: &'static str| {
            let value = provider.config.get(name).map_or("", Secret::expose);
            Some(value).filter(|value| !value.is_empty())
        };
        let required = |name| {
            field(name).ok_or_else(|| CredentialsError::OidcField {
                user: user(),
                field: name,
            })
        };
        let data = field("idp-certificate-authority-data");
        let path = field("idp-certificate-authority");
        let verification = match (data, path) {
            (Some(data), _) => {
                let malformed = |_| CredentialsError::OidcField {
                    user: user(),
                    field: "idp-certificate-authority-data",
                };
                Verification::Authority(CaBundle {
                    pem: STANDARD.decode(data.trim()).map_err(malformed)?,
                    origin: "idp-certificate-authority-data".into(),
                })
            }
            (None, Some(path)) => {
                let malformed = |_| CredentialsError::OidcField {
                    user: user(),
                    field: "idp-certificate-authority",
                };
                Verification::Authority(CaBundle {
                    pem: std::fs::read(path).map_err(malformed)?,
                    origin: format!("{path:?}"),
                })
            }
            (None, None) => Verification::System,
        };
        Ok(Self {
            user: user(),
            issuer: required("idp-issuer-url")?.to_owned(),
            client_id: required("client-id")?.to_owned(),
            client_secret: field("client-secret").unwrap_or_default().to_owned().into(),
            verification,
            proxies: login.proxies.clone(),
            file: login.file.clone(),
            tokens: Mutex::new(Tokens::from_config(&provider.config)),
        })
    }

    /// Returns an id-token that is valid and is not `replaced`.
    pub async fn token(
        &self,
        now: SystemTime,
        replaced: Option<&HeaderValue>,
    ) -> Result<Obtained, CredentialsError> {
        let mut tokens = self.tokens();
        if let Some(obtained) = self.usable(&tokens, now, replaced)? {
            return Ok(obtained);
        }
        // Another process may have refreshed the token, which ends the refresh token.
        if let Some(stored) = self.stored().await {
            if let Some(obtained) = self.usable(&stored, now, replaced)? {
                self.set_tokens(stored);
                return Ok(obtained);
            }
            if stored.refresh.is_some() {
                tokens = stored;
            }
        }
        let Some(refresh) = &tokens.refresh else {
            return Err(CredentialsError::OidcExpired {
                user: self.user.clone(),
            });
        };
        let response = self.refresh(refresh).await?;
        let id = response.id_token.ok_or_else(|| {
            self.error(
                "the response has no id_token; log in again with the scope openid, or use a \
                 provider that returns one"
                    .into(),
            )
        })?;
        let renewed = Tokens {
            id: Some(id),
            refresh: response.refresh_token.or_else(|| tokens.refresh.clone()),
        };
        self.set_tokens(renewed.clone());
        self.store(&tokens, &renewed).await;
        let obtained = self.usable(&renewed, now, None)?;
        obtained
            .ok_or_else(|| self.error("the provider returned an id-token that has expired".into()))
    }

    /// Returns the id-token if it is valid and not the one to replace.
    fn usable(
        &self,
        tokens: &Tokens,
        now: SystemTime,
        replaced: Option<&HeaderValue>,
    ) -> Result<Option<Obtained>, CredentialsError> {
        let Some(token) = &tokens.id else {
            return Ok(None);
        };
        let expires = expiry(token.expose()).ok_or_else(|| CredentialsError::OidcField {
            user: self.user.clone(),
            field: "id-token",
        })?;
        let authorization = bearer(token)?;
        if expires <= now + LEEWAY || replaced == Some(&authorization) {
            return Ok(None);
        }
        Ok(Some(Obtained {
            authorization: Some(authorization),
            certificate: None,
            expires: Some(expires),
        }))
    }

    /// Sends the refresh token to the token endpoint.
    async fn refresh(&self, refresh: &Secret) -> Result<TokenResponse, CredentialsError> {
        let endpoint = self.token_endpoint().await?;
        let form = [
            ("grant_type", "refresh_token"),
            ("refresh_token", refresh.expose()),
        ];
        // As client-go does: the header that RFC 6749 recommends first, then fields of the form.
        let credentials = format!(
            "{}:{}",
            encode(&self.client_id),
            encode(self.client_secret.expose())
        );
        let basic = format!("Basic {}", STANDARD.encode(credentials));
        let (status, body) = self.post(&endpoint, &form, Some(&basic)).await?;
        let (status, body) = if status == StatusCode::OK {
            (status, body)
        } else {
            let mut fields = form.to_vec();
            fields.push(("client_id", &self.client_id));
            if !self.client_secret.expose().is_empty() {
                fields.push(("client_secret", self.client_secret.expose()));
            }
            self.post(&endpoint, &fields, None).await?
        };
        let response: TokenResponse = serde_json::from_slice(&body).unwrap_or_default();
        if status == StatusCode::OK {
            return Ok(response);
        }
        let code = response.error.unwrap_or_default();
        let code: String = code
            .chars()
            .filter(char::is_ascii_graphic)
            .take(MAX_CODE)
            .collect();
        Err(self.error(format!(
            "the token endpoint returned {status} {code}; log in again"
        )))
    }

    /// Looks the token endpoint up (discovery of OIDC).
    async fn token_endpoint(&self) -> Result<String, CredentialsError> {
        let issuer = self.issuer.trim_end_matches('/');
        let url = format!("{issuer}/.well-known/openid-configuration");
        let request = Request::get(&url).header(ACCEPT, "application/json");
        let (status, body) = self.send(&url, request, String::new()).await?;
        if status != StatusCode::OK {
            return Err(self.error(format!("{url} returned {status}")));
        }
        let discovery: Result<Discovery, _> = serde_json::from_slice(&body);
        let endpoint = discovery
            .ok()
            .and_then(|discovery| discovery.token_endpoint);
        endpoint.ok_or_else(|| self.error(format!("{url} has no token_endpoint")))
    }

    async fn post(
        &self,
        url: &str,
        form: &[(&str, &str)],
        authorization: Option<&str>,
    ) -> Result<(StatusCode, Bytes), CredentialsError> {
        let fields = form
            .iter()
            .map(|(name, value)| format!("{name}={}", encode(value)));
        let body = fields.collect::<Vec<_>>().join("&");
        let mut request =
            Request::post(url).header(CONTENT_TYPE, "application/x-www-form-urlencoded");
        if let Some(authorization) = authorization {
            request = request.header(AUTHORIZATION, authorization);
        }
        self.send(url, request, body).await
    }

    async fn send(
        &self,
        url: &str,
        request: http::request::Builder,
        body: String,
    ) -> Result<(StatusCode, Bytes), CredentialsError> {
        let server = ServerUrl::parse(url).map_err(|error| self.error(error_chain(&error)))?;
        // Tokens and the client secret must not cross a network in clear text.
        let is_loopback = server.host == "localhost"
            || server
                .host
                .parse::<IpAddr>()
                .is_ok_and(|address| address.is_loopback());
        if !server.is_https && !is_loopback {
            return Err(self.error(format!("its URL {url:?} is not an https URL")));
        }
        let tls = if server.is_https {
            let tls = ServerTls::new(&self.verification, None, None);
            Some(Arc::new(
                tls.map_err(|error| self.error(error_chain(&error)))?,
            ))
        } else {
            None
        };
        let proxies = Proxies::from_environment(&self.proxies, Verification::System);
        let connector = Connector::new(&server.host, server.port, tls, Arc::new(proxies));
        let query = url
            .split_once('?')
            .map_or(String::new(), |(_, query)| format!("?{query}"));
        let path = if server.path.is_empty() {
            "/"
        } else {
            &server.path
        };
        let request = request
            .uri(format!("{path}{query}"))
            .header(HOST, &server.authority)
            .body(Full::from(body))
            .map_err(|_| self.error("its URL is malformed".into()))?;
        let sent = request::send(&connector, request).await;
        sent.map_err(|error| self.error(error_chain(&error)))
    }

    /// Reads the tokens of the kubeconfig again.
    async fn stored(&self) -> Option<Tokens> {
        let (file, user) = (self.file.clone()?, self.user.clone());
        let read = tokio::task::spawn_blocking(move || store::read(&file, &user));
        let config = read.await.ok()??;
        Some(Tokens::from_config(&config))
    }

    /// Writes renewed tokens to the kubeconfig. Without them in the file, a rotated refresh token
    /// would be lost with the process, but requests can go on.
    async fn store(&self, old: &Tokens, new: &Tokens) {
        let Some(file) = self.file.clone() else {
            return;
        };
        let (user, old, new) = (self.user.clone(), old.clone(), new.clone());
        let write = tokio::task::spawn_blocking(move || store::write(&file, &user, &old, &new));
        if let Ok(Err(error)) = write.await {
            crate::desk::warn(format_args!(
                "cannot store the renewed tokens of the user {:?}; the next login may fail: {}",
                self.user,
                error_chain(&error)
            ));
        }
    }

    fn tokens(&self) -> Tokens {
        self.tokens
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    fn set_tokens(&self, tokens: Tokens) {
        *self.tokens.lock().unwrap_or_else(PoisonError::into_inner) = tokens;
    }

    fn error(&self, reason: String) -> CredentialsError {
        CredentialsError::Oidc {
            issuer: self.issuer.clone(),
            reason,
        }
    }
}

fn encode(text: &str) -> String {
    utf8_percent_encode(text, NON_ALPHANUMERIC).to_string()
}

/// Returns the expiry of a JWT, whose signature is the API server's to verify.
fn expiry(token: &str) -> Option<SystemTime> {
    let mut parts = token.split('.');
    let (Some(_), Some(payload), Some(_), None) =
        (parts.next(), parts.next(), parts.next(), parts.next())
    else {
        return None;
    };
    let payload = URL_SAFE_NO_PAD.decode(payload.trim_end_matches('=')).ok()?;
    let claims: Claims = serde_json::from_slice(&payload).ok()?;
    let since_epoch = Duration::try_from_secs_f64(claims.exp.trunc()).ok()?;
    SystemTime::UNIX_EPOCH.checked_add(since_epoch)
}

#[cfg(test)]
mod tests;
