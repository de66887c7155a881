//! Callers of requests for API servers, which review tokens themselves.

use std::sync::Arc;

use http::{HeaderMap, header};

use super::{
    AuthenticationError, Authenticator, CredentialError, Impersonation, Peer, bearer, subprotocol,
};
use crate::model::Identity;

/// Caller of a request for an API server.
#[derive(Debug)]
pub enum DelegatedCaller {
    /// Authenticated here, by a client certificate or by a trusted front proxy. Other credentials
    /// were removed from the request, except for `Impersonate-*`.
    Identified(Arc<Identity>),
    /// The request has a bearer token, which the API server reviews.
    Token,
    /// The request has no credentials, or none that an API server knows.
    Anonymous,
}

impl Authenticator {
    /// Determines who authenticates the caller of a request for an API server, in kube-apiserver's
    /// order: headers of a front proxy, client certificate, token. Headers of front proxies are
    /// removed in any case, so that no caller can forge them.
    ///
    /// # Errors
    /// The certificate is invalid and the request has no token.
    pub fn delegate(
        &self,
        headers: &mut HeaderMap,
        peer: &Peer,
        websocket: bool,
    ) -> Result<DelegatedCaller, AuthenticationError> {
        let claim = self.front_proxy.take(headers);
        let certificate = peer.certificate.as_deref();
        let mut failure = None;
        if let Some(certificate) = certificate {
            let identified = match claim.map(|claim| self.front_proxy.accept(*claim, certificate)) {
                Some(Ok(identity)) => Ok(identity),
                Some(Err(error)) => {
                    failure = Some(CredentialError::from(error));
                    certificate.identity(&self.client_cas)
                }
                None => certificate.identity(&self.client_cas),
            };
            match identified {
                Ok(identity) => {
                    headers.remove(header::AUTHORIZATION);
                    // The token is removed; that it is malformed does not matter then.
                    let _ = subprotocol::take_token(headers);
                    return Ok(DelegatedCaller::Identified(identity));
                }
                Err(error) => failure = failure.or(Some(error.into())),
            }
        }
        let authorization = headers.get(header::AUTHORIZATION);
        let token = authorization.and_then(|value| bearer(value.to_str().ok()?));
        if token.is_some() || websocket && subprotocol::has_token(headers) {
            return Ok(DelegatedCaller::Token);
        }
        match failure {
            Some(error) => Err(error.into()),
            None => Ok(DelegatedCaller::Anonymous),
        }
    }

    /// Removes and returns the identity that a request wants to act as.
    ///
    /// # Errors
    /// The headers are invalid.
    pub fn take_impersonation(
        headers: &mut HeaderMap,
    ) -> Result<Option<Box<Impersonation>>, AuthenticationError> {
        let taken = Impersonation::take(headers);
        Ok(taken?.map(Box::new))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use http::HeaderValue;

    use super::super::{RequestHeaderAuthenticator, Tokens};
    use crate::trust::{DynamicClientCas, TokenFile};

    fn delegate(headers: &[(&'static str, &'static str)], websocket: bool) -> (String, HeaderMap) {
        let authenticator = Authenticator {
            tokens: Tokens::Static(Arc::new(TokenFile::parse("").unwrap())),
            client_cas: DynamicClientCas::default(),
            front_proxy: RequestHeaderAuthenticator::default(),
            anonymous: false,
        };
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(*name, HeaderValue::from_static(value));
        }
        let peer = Peer::new([192, 0, 2, 1].into(), true, None);
        let caller = authenticator.delegate(&mut map, &peer, websocket);
        (format!("{:?}", caller.unwrap()), map)
    }

    #[test]
    fn tokens_and_impersonation_pass_and_front_proxy_headers_do_not() {
        let (caller, headers) = delegate(
            &[
                ("authorization", "Bearer t"),
                ("impersonate-user", "jane"),
                ("x-remote-user", "admin"),
                ("x-remote-extra-scopes", "all"),
            ],
            false,
        );
        assert_eq!(caller, "Token");
        assert_eq!(headers["authorization"], "Bearer t");
        assert_eq!(headers["impersonate-user"], "jane");
        assert_eq!(headers.len(), 2);
    }

    #[test]
    fn only_bearer_tokens_are_tokens() {
        let subprotocol = (
            "sec-websocket-protocol",
            "base64url.bearer.authorization.k8s.io.dA, a",
        );
        for (headers, websocket, expected) in [
            (&[][..], false, "Anonymous"),
            (&[("authorization", "Basic dA==")], false, "Anonymous"),
            (&[("authorization", "Bearer ")], false, "Anonymous"),
            (&[("x-remote-user", "admin")], false, "Anonymous"),
            (&[subprotocol], false, "Anonymous"),
            (&[subprotocol], true, "Token"),
        ] {
            assert_eq!(delegate(headers, websocket).0, expected, "{headers:?}");
        }
    }
}
