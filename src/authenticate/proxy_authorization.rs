//! Credentials of requests that clients send to the bastion as their proxy (RFC 9110 section 11.7).

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::{HeaderMap, HeaderValue, header};

use super::{AuthenticationError, Authenticator, Caller, Impersonation, Peer, bearer};

impl Authenticator {
    /// Authenticates a request by `Proxy-Authorization`: a bearer token, or the token as the
    /// password of Basic. Headers of a front proxy and client certificates count as for other
    /// requests. `Authorization` and `Impersonate-*` are for the application, and stay.
    ///
    /// # Errors
    /// As [`Self::authenticate`].
    pub async fn authenticate_proxy(
        &self,
        headers: &mut HeaderMap,
        peer: &Peer,
    ) -> Result<Caller, AuthenticationError> {
        let authorization = headers.remove(header::PROXY_AUTHORIZATION);
        let claim = self.front_proxy.take(headers);
        let authorization = authorization.as_ref().and_then(to_bearer);
        let identity = self
            .identify(authorization.as_ref(), claim, Ok(None), peer, false)
            .await?;
        Ok(Caller {
            identity,
            impersonates: None,
        })
    }

    /// Authenticates a CONNECT, of which all headers are for the bastion, as
    /// [`Self::authenticate_proxy`]. The caller may impersonate a user.
    ///
    /// # Errors
    /// [`AuthenticationError`].
    pub async fn authenticate_tunnel(
        &self,
        headers: &mut HeaderMap,
        peer: &Peer,
    ) -> Result<Caller, AuthenticationError> {
        let impersonates = Impersonation::take(headers).map(|taken| taken.map(Box::new));
        let caller = self.authenticate_proxy(headers, peer).await?;
        Ok(Caller {
            impersonates: impersonates?,
            ..caller
        })
    }
}

/// Converts the credentials to those of `Bearer`. `None` for other schemes.
fn to_bearer(authorization: &HeaderValue) -> Option<HeaderValue> {
    let text = authorization.to_str().ok()?.trim();
    if bearer(text).is_some() {
        return Some(authorization.clone());
    }
    let (scheme, credentials) = text.split_once(' ')?;
    if !scheme.eq_ignore_ascii_case("basic") {
        return None;
    }
    let decoded = String::from_utf8(STANDARD.decode(credentials.trim()).ok()?).ok()?;
    // The user may be anything: the token identifies the caller.
    let (_, password) = decoded.split_once(':')?;
    HeaderValue::try_from(format!("Bearer {password}")).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_tokens_of_bearer_and_basic() {
        for (authorization, expected) in [
            ("Bearer t", Some("Bearer t")),
            ("bearer t", Some("bearer t")),
            // `:t`, `user:t`, and `user:a:b`.
            ("Basic OnQ=", Some("Bearer t")),
            ("BASIC dXNlcjp0", Some("Bearer t")),
            ("Basic dXNlcjphOmI=", Some("Bearer a:b")),
            // Without a colon, and not base64.
            ("Basic dA==", None),
            ("Basic ???", None),
            ("Basic", None),
            ("Negotiate dXNlcjp0", None),
            ("", None),
        ] {
            let bearer = to_bearer(&HeaderValue::from_static(authorization));
            assert_eq!(
                bearer.as_ref().map(HeaderValue::as_bytes),
                expected.map(str::as_bytes)
            );
        }
    }
}
