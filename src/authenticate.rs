//! Authentication: resolves the credentials of a request to an [`Identity`] and strips them from
//! the request, so that no later stage can forward them.

mod certificate;
mod delegate;
mod front_proxy;
mod impersonate;
mod proxy_authorization;
mod subprotocol;
mod token;

use std::net::IpAddr;
use std::sync::Arc;

use http::{HeaderMap, HeaderName, HeaderValue, header};

pub use certificate::{CertificateError, ClientCertificate};
pub use delegate::DelegatedCaller;
pub use front_proxy::{FrontProxyError, RequestHeaderAuthenticator};
pub use impersonate::{Impersonation, ImpersonationError};
pub use subprotocol::SubprotocolError;
pub use token::{TokenError, TokenReviewAuthenticator, TokenReviewHandler};

use front_proxy::Claim;

use crate::http::Forwarded;
use crate::model::{ClientAddress, Identity, Networks};
use crate::review::{Rejection, ReviewError, ReviewFailure};
use crate::trust::{DynamicClientCas, TokenFile};

/// The client side of a connection, or of a request that trusted front proxies forwarded.
#[derive(Clone, Debug)]
pub struct Peer {
    /// Address of the client, by which it is logged and limited. Never IPv4-mapped.
    pub client: IpAddr,
    /// Address of the connection, or that in its header of the PROXY protocol; appended to
    /// `X-Forwarded-For`. Differs from `client` behind front proxies.
    pub address: IpAddr,
    /// True if the client uses TLS; sent as `X-Forwarded-Proto`.
    pub secure: bool,
    /// Host that the client requested, if a front proxy reports it.
    pub host: Option<HeaderValue>,
    /// Certificate from the handshake. The client has proven that it holds the key; the issuer is
    /// verified for each request.
    pub certificate: Option<Arc<ClientCertificate>>,
}

impl Peer {
    /// Returns the peer of a connection.
    pub fn new(address: IpAddr, secure: bool, certificate: Option<Arc<ClientCertificate>>) -> Self {
        let address = address.to_canonical();
        Self {
            client: address,
            address,
            secure,
            host: None,
            certificate,
        }
    }

    /// Returns the client that a trusted front proxy reports in the headers of a request. `None` if
    /// the connection is not that of a trusted proxy.
    pub fn forwarded(&self, headers: &HeaderMap, trusted: &Networks) -> Option<Box<Self>> {
        if !trusted.contains(self.address) {
            return None;
        }
        let Forwarded {
            client,
            secure,
            host,
        } = Forwarded::read(headers, self.address, trusted);
        Some(Box::new(Self {
            client,
            address: self.address,
            secure: secure.unwrap_or(self.secure),
            host,
            // It is that of the proxy. What it proves does not depend on the headers.
            certificate: self.certificate.clone(),
        }))
    }
}

/// Source that verifies bearer tokens.
#[derive(Debug)]
pub enum Tokens {
    /// TokenReviews of the Kubernetes API.
    Review(Arc<TokenReviewAuthenticator>),
    /// Static token file.
    Static(Arc<TokenFile>),
}

/// Authentication stage. One per process.
#[derive(Debug)]
pub struct Authenticator {
    pub tokens: Tokens,
    pub client_cas: DynamicClientCas,
    pub front_proxy: RequestHeaderAuthenticator,
    /// Accepts requests without credentials as `system:anonymous`.
    pub anonymous: bool,
}

/// Error of the authentication stage.
#[derive(Clone, Debug, thiserror::Error)]
pub enum AuthenticationError {
    /// Client error: missing or invalid credentials. The reason is for the log only, because it
    /// would help an attacker.
    #[error("unauthenticated: {0}")]
    Unauthenticated(#[from] CredentialError),
    /// Client error: invalid `Impersonate-*` headers. The request must not run as the caller
    /// instead.
    #[error(transparent)]
    Impersonation(#[from] ImpersonationError),
    /// Upstream error: no TokenReview result. A retry may succeed.
    #[error("the token could not be reviewed: {0}")]
    Unavailable(ReviewFailure),
    /// Overload: the TokenReview was not sent. A retry may succeed.
    #[error("the token could not be reviewed: {0}")]
    Rejected(Rejection),
}

/// Reason why the credentials of a request do not identify a caller. Never contains a token.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum CredentialError {
    #[error("no credentials")]
    Missing,
    #[error(transparent)]
    Certificate(#[from] CertificateError),
    #[error(transparent)]
    FrontProxy(#[from] FrontProxyError),
    #[error(transparent)]
    Subprotocol(#[from] SubprotocolError),
    #[error(transparent)]
    Token(#[from] TokenError),
}

impl From<ReviewError> for AuthenticationError {
    fn from(error: ReviewError) -> Self {
        match error {
            ReviewError::Rejected(rejection) => Self::Rejected(rejection),
            ReviewError::Failed(failure) => Self::Unavailable(failure),
        }
    }
}

/// An authenticated caller and the user that it wants to act as.
#[derive(Debug)]
pub struct Caller {
    pub identity: Arc<Identity>,
    pub impersonates: Option<Box<Impersonation>>,
}

impl Authenticator {
    /// Authenticates a request in kube-apiserver's order: headers of a front proxy, client
    /// certificate, bearer token, token in the subprotocols of a `websocket` request. The first
    /// valid credential wins. Removes all of them from `headers` (CONFORMANCE C60 to C62).
    ///
    /// # Errors
    /// [`AuthenticationError`]. A caller with invalid credentials is never accepted as anonymous.
    pub async fn authenticate(
        &self,
        headers: &mut HeaderMap,
        peer: &Peer,
        websocket: bool,
    ) -> Result<Caller, AuthenticationError> {
        // All credentials are removed before the first one is checked, so that an early return
        // cannot leave one of them on the request.
        let authorization = headers.remove(header::AUTHORIZATION);
        let claim = self.front_proxy.take(headers);
        let impersonates = Impersonation::take(headers).map(|taken| taken.map(Box::new));
        let subprotocol = subprotocol::take_token(headers);

        let identity = self
            .identify(authorization.as_ref(), claim, subprotocol, peer, websocket)
            .await?;
        // Reported after authentication, so that an unauthenticated caller gets 401, not 400.
        Ok(Caller {
            identity,
            impersonates: impersonates?,
        })
    }

    async fn identify(
        &self,
        authorization: Option<&HeaderValue>,
        claim: Option<Box<Claim>>,
        subprotocol: Result<Option<String>, SubprotocolError>,
        peer: &Peer,
        websocket: bool,
    ) -> Result<Arc<Identity>, AuthenticationError> {
        let certificate = peer.certificate.as_deref();
        // As in kube-apiserver's union authenticator, a failed credential does not end the search:
        // a later one may be valid. The last error is reported.
        let mut failure = None;

        if let (Some(claim), Some(certificate)) = (claim, certificate) {
            match self.front_proxy.accept(*claim, certificate) {
                Ok(identity) => return Ok(identity),
                Err(error) => failure = Some(CredentialError::from(error).into()),
            }
        }
        if let Some(certificate) = certificate {
            match certificate.identity(&self.client_cas) {
                Ok(identity) => return Ok(identity),
                Err(error) => failure = Some(CredentialError::from(error).into()),
            }
        }
        let client = peer.client.into();
        if let Some(token) = authorization.and_then(|value| bearer(value.to_str().ok()?)) {
            match self.verify_token(token, client).await {
                Ok(identity) => return Ok(identity),
                Err(error) => failure = Some(error),
            }
        }
        // kube-apiserver ignores the subprotocols of requests that are not WebSocket upgrades.
        if websocket {
            match subprotocol {
                Ok(Some(token)) => match self.verify_token(&token, client).await {
                    Ok(identity) => return Ok(identity),
                    Err(error) => failure = Some(error),
                },
                Ok(None) => {}
                Err(error) => failure = Some(CredentialError::from(error).into()),
            }
        }
        match failure {
            Some(error) => Err(error),
            None if self.anonymous => Ok(Arc::new(Identity::anonymous())),
            None => Err(CredentialError::Missing.into()),
        }
    }

    /// Returns the headers that [`Self::authenticate`] and [`Self::authenticate_proxy`] read, so that
    /// the caller of an open tunnel can be authenticated again.
    pub fn credentials(&self, headers: &HeaderMap) -> HeaderMap {
        let names = headers.iter().filter(|(name, _)| self.is_credential(name));
        names
            // Copies: the values share the memory of the whole head, which a tunnel would keep.
            .filter_map(|(name, value)| {
                let copy = HeaderValue::from_bytes(value.as_bytes()).ok()?;
                Some((name.clone(), copy))
            })
            .collect()
    }

    /// Returns true for headers that identify a caller.
    pub fn is_credential(&self, name: &HeaderName) -> bool {
        matches!(
            *name,
            header::AUTHORIZATION | header::PROXY_AUTHORIZATION | header::SEC_WEBSOCKET_PROTOCOL
        ) || self.front_proxy.identifies(name)
            || Impersonation::is_header(name)
    }

    async fn verify_token(
        &self,
        token: &str,
        client: ClientAddress,
    ) -> Result<Arc<Identity>, AuthenticationError> {
        match &self.tokens {
            Tokens::Review(reviews) => reviews.identity(token, client).await,
            Tokens::Static(tokens) => tokens
                .identity(token)
                .ok_or_else(|| CredentialError::from(TokenError::NotInFile).into()),
        }
    }
}

/// Returns the token of `Bearer <token>`, parsed as leniently as kube-apiserver parses it.
fn bearer(authorization: &str) -> Option<&str> {
    let mut parts = authorization.trim().split(' ');
    let scheme = parts.next()?;
    parts
        .next()
        .filter(|token| scheme.eq_ignore_ascii_case("bearer") && !token.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn authenticator(anonymous: bool) -> Authenticator {
        let tokens = Arc::new(TokenFile::parse("good,jane,1,\"devs,ops\"\n").unwrap());
        let (client_cas, front_proxy) = (
            DynamicClientCas::default(),
            RequestHeaderAuthenticator::default(),
        );
        Authenticator {
            tokens: Tokens::Static(tokens),
            client_cas,
            front_proxy,
            anonymous,
        }
    }

    fn peer() -> Peer {
        Peer::new([192, 0, 2, 1].into(), true, None)
    }

    async fn authenticate(
        anonymous: bool,
        authorization: Option<&'static str>,
    ) -> Result<String, AuthenticationError> {
        let mut headers = HeaderMap::new();
        if let Some(value) = authorization {
            headers.insert(header::AUTHORIZATION, HeaderValue::from_static(value));
        }
        headers.insert("x-remote-user", HeaderValue::from_static("admin"));
        headers.insert("x-remote-extra-scopes", HeaderValue::from_static("all"));
        let result = authenticator(anonymous)
            .authenticate(&mut headers, &peer(), false)
            .await;
        assert!(
            headers.is_empty(),
            "credentials left on the request: {headers:?}"
        );
        result.map(|caller| caller.identity.user.clone())
    }

    #[tokio::test]
    async fn parses_bearer_tokens_like_kube_apiserver() {
        for valid in [
            "Bearer good",
            "bearer good",
            "BEARER good trailing",
            "  Bearer good  ",
        ] {
            assert_eq!(
                authenticate(false, Some(valid)).await.unwrap(),
                "jane",
                "{valid}"
            );
        }
        for invalid in ["Bearer bad", "Bearer  good", "Bearer", "Basic good", "good"] {
            assert!(
                matches!(
                    authenticate(false, Some(invalid)).await,
                    Err(AuthenticationError::Unauthenticated(_))
                ),
                "{invalid}"
            );
        }
    }

    #[tokio::test]
    async fn accepts_anonymous_only_without_credentials() {
        assert!(authenticate(false, None).await.is_err());
        assert_eq!(authenticate(true, None).await.unwrap(), "system:anonymous");
        assert_eq!(
            authenticate(true, Some("Basic x")).await.unwrap(),
            "system:anonymous"
        );
        assert!(
            authenticate(true, Some("Bearer bad")).await.is_err(),
            "invalid credentials are not anonymous"
        );
    }

    #[tokio::test]
    async fn reads_token_from_subprotocol_of_websocket_only() {
        for (authorization, websocket, user) in [
            (None, true, Some("jane")),
            (Some("Bearer bad"), true, Some("jane")),
            (None, false, None),
        ] {
            let mut headers = HeaderMap::new();
            headers.extend(
                authorization.map(|value| (header::AUTHORIZATION, HeaderValue::from_static(value))),
            );
            let offered =
                HeaderValue::from_static("chat, base64url.bearer.authorization.k8s.io.Z29vZA");
            headers.insert(header::SEC_WEBSOCKET_PROTOCOL, offered);
            let result = authenticator(false)
                .authenticate(&mut headers, &peer(), websocket)
                .await;
            assert_eq!(
                result
                    .ok()
                    .map(|caller| caller.identity.user.clone())
                    .as_deref(),
                user
            );
            assert_eq!(
                headers[header::SEC_WEBSOCKET_PROTOCOL],
                "chat",
                "the token is not forwarded"
            );
        }
    }

    #[tokio::test]
    async fn reports_impersonation_errors_only_to_authenticated_callers() {
        for (authorization, header) in [
            ("Bearer good", "impersonate-user"),
            ("Bearer bad", "impersonate-group"),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(
                header::AUTHORIZATION,
                HeaderValue::from_static(authorization),
            );
            headers.insert(header, HeaderValue::from_static("jane"));
            let result = authenticator(true)
                .authenticate(&mut headers, &peer(), false)
                .await;
            match result {
                Ok(caller) => assert_eq!(caller.impersonates.unwrap().user, "jane"),
                Err(error) => assert!(
                    matches!(error, AuthenticationError::Unauthenticated(_)),
                    "{error}"
                ),
            }
            assert!(headers.is_empty());
        }
        let mut headers = HeaderMap::new();
        headers.insert(
            header::AUTHORIZATION,
            HeaderValue::from_static("Bearer good"),
        );
        headers.insert(
            "impersonate-group",
            HeaderValue::from_static("system:masters"),
        );
        let result = authenticator(false)
            .authenticate(&mut headers, &peer(), false)
            .await;
        assert!(matches!(
            result,
            Err(AuthenticationError::Impersonation(
                ImpersonationError::NoUser { .. }
            ))
        ));
    }
}
