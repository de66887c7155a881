//! Who calls? Credentials in, [`Identity`] out; what identified the caller is taken off the request here, so that no
//! later stage can pass it on.

mod certificate;
mod token;

use std::net::SocketAddr;
use std::sync::Arc;

use http::{HeaderMap, header};

pub use certificate::ClientCertificate;
pub use token::{StaticTokens, TokenReviews};

use crate::model::Identity;
use crate::tls::ClientCas;

/// The other side of a connection.
#[derive(Debug)]
pub struct Peer {
    pub address: SocketAddr,
    /// Whether the connection is TLS: what `X-Forwarded-Proto` tells.
    pub secure: bool,
    /// What the client showed in the handshake, its key proven, its CA not yet judged.
    pub certificate: Option<ClientCertificate>,
}

/// Where bearer tokens are judged.
#[derive(Debug)]
pub enum Tokens {
    /// The API, by TokenReview.
    Review(Box<TokenReviews>),
    /// A file.
    Static(Arc<StaticTokens>),
}

/// The stage. One per process.
#[derive(Debug)]
pub struct Identify {
    pub tokens: Tokens,
    pub client_cas: ClientCas,
    /// Lets callers without credentials through as `system:anonymous`.
    pub anonymous: bool,
}

/// Why it is not known who calls.
#[derive(Clone, Debug, thiserror::Error)]
pub enum IdentifyError {
    /// The caller's fault: no credentials, or none that are good. The text is for the log, never for the caller.
    #[error("unauthenticated: {0}")]
    Unauthenticated(String),
    /// `Impersonate-*` headers: whoever sends them wants to be somebody else, and must not be taken for themselves.
    #[error("impersonation is not supported here: send the request without Impersonate-* headers")]
    Impersonation,
    /// Not the caller's fault; asking again may help.
    #[error("the token could not be reviewed: {0}")]
    Unavailable(Arc<str>),
}

impl Identify {
    /// Finds out who calls, by client certificate, else by bearer token, as kube-apiserver orders them. Takes
    /// `Authorization` and the identity headers of a front proxy off `headers` (CONFORMANCE C60).
    ///
    /// # Errors
    /// [`IdentifyError`]; the caller is then nobody, not even anonymous, unless they showed nothing at all.
    pub async fn identify(&self, headers: &mut HeaderMap, peer: &Peer) -> Result<Arc<Identity>, IdentifyError> {
        let authorization = headers.remove(header::AUTHORIZATION);
        strip_identity_headers(headers)?;
        let by_certificate = peer.certificate.as_ref().map(|certificate| certificate.identity(&self.client_cas));
        let token = authorization.as_ref().and_then(|value| bearer(value.to_str().ok()?));
        match (by_certificate, token) {
            (Some(Ok(identity)), _) => Ok(identity),
            (_, Some(token)) => self.by_token(token).await,
            (Some(Err(fault)), None) => Err(IdentifyError::Unauthenticated(fault)),
            (None, None) if self.anonymous => Ok(Arc::new(Identity::anonymous())),
            (None, None) => Err(IdentifyError::Unauthenticated("no credentials".into())),
        }
    }

    async fn by_token(&self, token: &str) -> Result<Arc<Identity>, IdentifyError> {
        match &self.tokens {
            Tokens::Review(reviews) => reviews.identity(token).await,
            Tokens::Static(tokens) => tokens.identity(token),
        }
    }
}

/// The token of `Bearer <token>`, read as kube-apiserver reads it.
fn bearer(authorization: &str) -> Option<&str> {
    let mut parts = authorization.trim().split(' ');
    let scheme = parts.next()?;
    parts.next().filter(|token| scheme.eq_ignore_ascii_case("bearer") && !token.is_empty())
}

/// Headers by which a front proxy would tell who calls: from anybody else they are a lie.
fn strip_identity_headers(headers: &mut HeaderMap) -> Result<(), IdentifyError> {
    let is = |name: &header::HeaderName, prefix: &str| name.as_str().starts_with(prefix);
    if headers.keys().any(|name| is(name, "impersonate-")) {
        return Err(IdentifyError::Impersonation);
    }
    let lies: Vec<_> = headers.keys().filter(|name| is(name, "x-remote-")).cloned().collect();
    for name in lies {
        headers.remove(name);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;

    fn identify(anonymous: bool) -> Identify {
        let tokens = Arc::new(StaticTokens::parse("good,jane,1,\"devs,ops\"\n").unwrap());
        Identify { tokens: Tokens::Static(tokens), client_cas: ClientCas::default(), anonymous }
    }

    fn peer() -> Peer {
        Peer { address: ([192, 0, 2, 1], 1).into(), secure: true, certificate: None }
    }

    async fn ask(anonymous: bool, authorization: Option<&'static str>) -> Result<String, IdentifyError> {
        let mut headers = HeaderMap::new();
        if let Some(value) = authorization {
            headers.insert(header::AUTHORIZATION, HeaderValue::from_static(value));
        }
        headers.insert("x-remote-user", HeaderValue::from_static("admin"));
        headers.insert("x-remote-extra-scopes", HeaderValue::from_static("all"));
        let answer = identify(anonymous).identify(&mut headers, &peer()).await;
        assert!(headers.is_empty(), "no credential stays on the request: {headers:?}");
        answer.map(|identity| identity.user.clone())
    }

    #[tokio::test]
    async fn tokens_are_read_as_the_apiserver_reads_them() {
        for good in ["Bearer good", "bearer good", "BEARER good trailing", "  Bearer good  "] {
            assert_eq!(ask(false, Some(good)).await.unwrap(), "jane", "{good}");
        }
        for bad in ["Bearer bad", "Bearer  good", "Bearer", "Basic good", "good"] {
            assert!(matches!(ask(false, Some(bad)).await, Err(IdentifyError::Unauthenticated(_))), "{bad}");
        }
    }

    #[tokio::test]
    async fn anonymous_is_for_those_who_show_nothing() {
        assert!(ask(false, None).await.is_err());
        assert_eq!(ask(true, None).await.unwrap(), "system:anonymous");
        assert_eq!(ask(true, Some("Basic x")).await.unwrap(), "system:anonymous");
        assert!(ask(true, Some("Bearer bad")).await.is_err(), "bad credentials are worse than none");
    }

    #[tokio::test]
    async fn who_asks_to_be_somebody_else_is_refused() {
        let mut headers = HeaderMap::new();
        headers.insert(header::AUTHORIZATION, HeaderValue::from_static("Bearer good"));
        headers.insert("impersonate-user", HeaderValue::from_static("jane"));
        let answer = identify(false).identify(&mut headers, &peer()).await;
        assert!(matches!(answer, Err(IdentifyError::Impersonation)));
    }
}
