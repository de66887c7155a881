//! Who calls? Credentials in, [`Identity`] out; what identified the caller is taken off the request
//! here, so that no later stage can pass it on.

mod certificate;
mod front_proxy;
mod impersonate;
mod subprotocol;
mod token;

use std::net::SocketAddr;
use std::sync::Arc;

use http::{HeaderMap, header};

pub use certificate::ClientCertificate;
pub use front_proxy::RequestHeaderAuthenticator;
pub use impersonate::Impersonation;
pub use token::{TokenJudge, TokenReviewAuthenticator};

use crate::model::{ClientAddress, Identity};
use crate::review::{Rejection, ReviewError};
use crate::trust::{DynamicClientCas, TokenFile};

/// The other side of a connection.
#[derive(Clone, Debug)]
pub struct Peer {
    pub address: SocketAddr,
    /// Whether the connection is TLS: what `X-Forwarded-Proto` tells.
    pub secure: bool,
    /// What the client showed in the handshake, its key proven, its CA not yet judged.
    pub certificate: Option<Arc<ClientCertificate>>,
}

/// Where bearer tokens are judged.
#[derive(Debug)]
pub enum Tokens {
    /// The API, by TokenReview.
    Review(Arc<TokenReviewAuthenticator>),
    /// A file.
    Static(Arc<TokenFile>),
}

/// The stage. One per process.
#[derive(Debug)]
pub struct Authenticator {
    pub tokens: Tokens,
    pub client_cas: DynamicClientCas,
    pub front_proxy: RequestHeaderAuthenticator,
    /// Lets callers without credentials through as `system:anonymous`.
    pub anonymous: bool,
}

/// Why it is not known who calls.
#[derive(Clone, Debug, thiserror::Error)]
pub enum AuthenticationError {
    /// The caller's fault: no credentials, or none that are good. The text is for the log, never
    /// for the caller.
    #[error("unauthenticated: {0}")]
    Unauthenticated(String),
    /// `Impersonate-*` headers that mean nobody: whoever sends them must not be taken for
    /// themselves.
    #[error("{0}")]
    Impersonation(String),
    /// Not the caller's fault; asking again may help.
    #[error("the token could not be reviewed: {0}")]
    Unavailable(Arc<str>),
    /// The bastion has too many reviews to send; asking again later may help.
    #[error("the token could not be reviewed: {0}")]
    Rejected(Rejection),
}

impl From<ReviewError> for AuthenticationError {
    fn from(error: ReviewError) -> Self {
        match error {
            ReviewError::Rejected(rejection) => Self::Rejected(rejection),
            ReviewError::Unreachable(fault) | ReviewError::Refused(fault) => {
                Self::Unavailable(fault)
            }
        }
    }
}

/// Who calls, and whom they want to act as.
#[derive(Debug)]
pub struct Caller {
    pub identity: Arc<Identity>,
    pub impersonates: Option<Impersonation>,
}

impl Authenticator {
    /// Finds out who calls, in kube-apiserver's order: by what a front proxy says, by client
    /// certificate, by bearer token, by the token in the subprotocols of a `websocket`. The first
    /// that is good counts. Takes all of them off `headers` (CONFORMANCE C60 to C62).
    ///
    /// # Errors
    /// [`AuthenticationError`]; the caller is then nobody, not even anonymous, unless they showed
    /// nothing at all.
    pub async fn authenticate(
        &self,
        headers: &mut HeaderMap,
        peer: &Peer,
        websocket: bool,
    ) -> Result<Caller, AuthenticationError> {
        let authorization = headers.remove(header::AUTHORIZATION);
        let claim = self.front_proxy.take(headers);
        let impersonates = Impersonation::take(headers);
        let subprotocol = match subprotocol::take_token(headers) {
            Ok(token) if websocket => token.map(Ok),
            Err(fault) if websocket => Some(Err(fault)),
            _ => None,
        };
        let bearer = authorization
            .as_ref()
            .and_then(|value| bearer(value.to_str().ok()?));
        let certificate = peer.certificate.as_deref();

        let mut fault = None;
        if let (Some(claim), Some(certificate)) = (claim, certificate) {
            match self.front_proxy.accept(claim, certificate) {
                Ok(identity) => {
                    return Ok(Caller {
                        identity,
                        impersonates: impersonates?,
                    });
                }
                Err(why) => fault = Some(AuthenticationError::Unauthenticated(why)),
            }
        }
        if let Some(certificate) = certificate {
            match certificate.identity(&self.client_cas) {
                Ok(identity) => {
                    return Ok(Caller {
                        identity,
                        impersonates: impersonates?,
                    });
                }
                Err(why) => fault = Some(AuthenticationError::Unauthenticated(why)),
            }
        }
        for token in [
            bearer.map(Ok),
            subprotocol.as_ref().map(|token| token.as_deref()),
        ]
        .into_iter()
        .flatten()
        {
            let identity = match token {
                Ok(token) => self.by_token(token, peer.address.ip().into()).await,
                Err(why) => Err(AuthenticationError::Unauthenticated((*why).to_owned())),
            };
            match identity {
                Ok(identity) => {
                    return Ok(Caller {
                        identity,
                        impersonates: impersonates?,
                    });
                }
                Err(why) => fault = Some(why),
            }
        }
        match fault {
            Some(fault) => Err(fault),
            None if self.anonymous => Ok(Caller {
                identity: Arc::new(Identity::anonymous()),
                impersonates: impersonates?,
            }),
            None => Err(AuthenticationError::Unauthenticated(
                "no credentials".into(),
            )),
        }
    }

    /// The headers that [`Self::identify`] looks at: enough to identify the caller again.
    pub fn credentials(&self, headers: &HeaderMap) -> HeaderMap {
        let names = headers.iter().filter(|(name, _)| {
            matches!(
                **name,
                header::AUTHORIZATION | header::SEC_WEBSOCKET_PROTOCOL
            ) || self.front_proxy.identifies(name)
                || Impersonation::is_header(name)
        });
        names
            .map(|(name, value)| (name.clone(), value.clone()))
            .collect()
    }

    async fn by_token(
        &self,
        token: &str,
        client: ClientAddress,
    ) -> Result<Arc<Identity>, AuthenticationError> {
        match &self.tokens {
            Tokens::Review(reviews) => reviews.identity(token, client).await,
            Tokens::Static(tokens) => tokens.identity(token).ok_or_else(|| {
                AuthenticationError::Unauthenticated("the token is not in the token file".into())
            }),
        }
    }
}

/// The token of `Bearer <token>`, read as kube-apiserver reads it.
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
    use http::HeaderValue;

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
        Peer {
            address: ([192, 0, 2, 1], 1).into(),
            secure: true,
            certificate: None,
        }
    }

    async fn ask(
        anonymous: bool,
        authorization: Option<&'static str>,
    ) -> Result<String, AuthenticationError> {
        let mut headers = HeaderMap::new();
        if let Some(value) = authorization {
            headers.insert(header::AUTHORIZATION, HeaderValue::from_static(value));
        }
        headers.insert("x-remote-user", HeaderValue::from_static("admin"));
        headers.insert("x-remote-extra-scopes", HeaderValue::from_static("all"));
        let answer = authenticator(anonymous)
            .authenticate(&mut headers, &peer(), false)
            .await;
        assert!(
            headers.is_empty(),
            "no credential stays on the request: {headers:?}"
        );
        answer.map(|caller| caller.identity.user.clone())
    }

    #[tokio::test]
    async fn tokens_are_read_as_the_apiserver_reads_them() {
        for good in [
            "Bearer good",
            "bearer good",
            "BEARER good trailing",
            "  Bearer good  ",
        ] {
            assert_eq!(ask(false, Some(good)).await.unwrap(), "jane", "{good}");
        }
        for bad in ["Bearer bad", "Bearer  good", "Bearer", "Basic good", "good"] {
            assert!(
                matches!(
                    ask(false, Some(bad)).await,
                    Err(AuthenticationError::Unauthenticated(_))
                ),
                "{bad}"
            );
        }
    }

    #[tokio::test]
    async fn anonymous_is_for_those_who_show_nothing() {
        assert!(ask(false, None).await.is_err());
        assert_eq!(ask(true, None).await.unwrap(), "system:anonymous");
        assert_eq!(
            ask(true, Some("Basic x")).await.unwrap(),
            "system:anonymous"
        );
        assert!(
            ask(true, Some("Bearer bad")).await.is_err(),
            "bad credentials are worse than none"
        );
    }

    #[tokio::test]
    async fn a_websocket_may_bring_its_token_in_a_subprotocol() {
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
            let answer = authenticator(false)
                .authenticate(&mut headers, &peer(), websocket)
                .await;
            assert_eq!(
                answer
                    .ok()
                    .map(|caller| caller.identity.user.clone())
                    .as_deref(),
                user
            );
            assert_eq!(
                headers[header::SEC_WEBSOCKET_PROTOCOL],
                "chat",
                "the token goes no further"
            );
        }
    }

    #[tokio::test]
    async fn whom_a_caller_wants_to_be_is_told_only_of_callers_who_are_known() {
        for (authorization, wanted) in [
            ("Bearer good", "impersonate-user"),
            ("Bearer bad", "impersonate-user"),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(
                header::AUTHORIZATION,
                HeaderValue::from_static(authorization),
            );
            headers.insert(wanted, HeaderValue::from_static("jane"));
            let answer = authenticator(true)
                .authenticate(&mut headers, &peer(), false)
                .await;
            match answer {
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
        let answer = authenticator(false)
            .authenticate(&mut headers, &peer(), false)
            .await;
        assert!(matches!(answer, Err(AuthenticationError::Impersonation(_))));
    }
}
