//! Bearer tokens, authenticated by TokenReview.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use k8s_openapi::api::authentication::v1::{
    TokenReview, TokenReviewSpec, TokenReviewStatus, UserInfo,
};
use serde::Deserialize;

use super::{AuthenticationError, CredentialError};
use crate::config;
use crate::model::{ClientAddress, Identity};
use crate::review::{CachedReviews, ReviewHandler, cut_text};
use crate::ttl_cache::Fetched;

/// Maximum length of a token that is reviewed. Tokens of service accounts have about 1 KiB, OIDC
/// tokens with many groups some KiB.
const MAX_TOKEN_BYTES: usize = 16 * 1024;
/// Clock skew between issuer and verifier that kube-apiserver tolerates.
const MAX_CLOCK_SKEW: Duration = Duration::from_mins(1);

/// Reason why a bearer token does not identify a caller. Never contains the token.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    #[error("the token is longer than {MAX_TOKEN_BYTES} bytes")]
    TooLong,
    #[error("the token has expired")]
    Expired,
    #[error("the API server does not accept the token")]
    NotAuthenticated,
    /// Message of the API server, redacted and truncated.
    #[error("{0}")]
    RejectedByApi(String),
    /// Comma-separated lists of audiences.
    #[error("the token is for the audiences [{token}], not for [{required}]")]
    WrongAudience { token: String, required: String },
    #[error("the token is not in the token file")]
    NotInFile,
}

type TokenVerdict = Result<Arc<Identity>, AuthenticationError>;

/// Authenticates callers by TokenReview.
pub type TokenReviewAuthenticator = CachedReviews<TokenReviewHandler>;

impl TokenReviewAuthenticator {
    pub(super) async fn identity(
        self: &Arc<Self>,
        token: &str,
        client: ClientAddress,
    ) -> TokenVerdict {
        if token.len() > MAX_TOKEN_BYTES {
            return Err(CredentialError::from(TokenError::TooLong).into());
        }
        self.verdict(token, || self.handler.review(token), client)
            .await
    }
}

/// Evaluates TokenReviews.
#[derive(Debug)]
pub struct TokenReviewHandler(pub config::TokenReview);

impl ReviewHandler for TokenReviewHandler {
    type Review = TokenReview;
    type Outcome = Arc<Identity>;
    type Error = AuthenticationError;

    fn interpret(
        &self,
        review: &TokenReview,
        response: TokenReview,
    ) -> Option<Fetched<TokenVerdict>> {
        Some(
            match self.authenticate(response.status?, &review.spec.token) {
                Ok(identity) => Fetched::Value {
                    value: Ok(Arc::new(identity)),
                    ttl: self.0.cache_ttl,
                    // Neither a cache nor an outage extends a token past its expiry (RFC 7519 section
                    // 4.1.4).
                    usable_for: until_expiry(&review.spec.token, SystemTime::now())
                        .unwrap_or(Duration::MAX),
                },
                Err(error) => Fetched::Denial {
                    value: Err(CredentialError::from(error).into()),
                    ttl: self.0.failure_cache_ttl,
                },
            },
        )
    }
}

impl TokenReviewHandler {
    /// Creates the review of `token`. Expired tokens are rejected without a review.
    fn review(&self, token: &str) -> Result<TokenReview, AuthenticationError> {
        if has_expired(token, SystemTime::now()) {
            return Err(CredentialError::from(TokenError::Expired).into());
        }
        let audiences = (!self.0.audiences.is_empty()).then(|| self.0.audiences.clone());
        let spec = TokenReviewSpec {
            audiences,
            token: token.to_owned(),
        };
        Ok(TokenReview {
            spec,
            ..TokenReview::default()
        })
    }

    /// Returns the identity of an authenticated token. If audiences are configured, the status must
    /// list one of them: an authenticator that does not support audiences ignores them and would
    /// accept tokens for other services (KEP-1205).
    fn authenticate(&self, status: TokenReviewStatus, token: &str) -> Result<Identity, TokenError> {
        if status.authenticated != Some(true) {
            return Err(match status.error {
                // An authentication webhook may quote the token. Redacted before the text is cut, so
                // that no part of it is left.
                Some(error) => TokenError::RejectedByApi(cut_text(error.replace(token, "[token]"))),
                None => TokenError::NotAuthenticated,
            });
        }
        let required = &self.0.audiences;
        let checked = status.audiences.unwrap_or_default();
        if !required.is_empty() && !required.iter().any(|audience| checked.contains(audience)) {
            return Err(TokenError::WrongAudience {
                token: cut_text(checked.join(", ")),
                required: required.join(", "),
            });
        }
        let UserInfo {
            username,
            uid,
            groups,
            extra,
        } = status.user.unwrap_or_default();
        Ok(Identity::new(
            username.unwrap_or_default(),
            uid.unwrap_or_default(),
            groups.unwrap_or_default(),
            extra.unwrap_or_default(),
        ))
    }
}

/// Returns true if a JWT's `exp` has passed, with tolerance for clock skew.
fn has_expired(token: &str, now: SystemTime) -> bool {
    until_expiry(token, now - MAX_CLOCK_SKEW).is_some_and(|remaining| remaining.is_zero())
}

/// Returns the time until a JWT expires (RFC 7519), zero after that; `None` for other tokens. The
/// signature is not checked: callers reject on this value or shorten a verified result by it.
fn until_expiry(token: &str, now: SystemTime) -> Option<Duration> {
    #[derive(Deserialize)]
    struct Claims {
        exp: f64,
    }
    let payload = URL_SAFE_NO_PAD.decode(token.split('.').nth(1)?).ok()?;
    let Claims { exp } = serde_json::from_slice(&payload).ok()?;
    let expires = UNIX_EPOCH.checked_add(Duration::try_from_secs_f64(exp).ok()?)?;
    Some(expires.duration_since(now).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn handler(audiences: &[&str]) -> TokenReviewHandler {
        TokenReviewHandler(config::TokenReview {
            audiences: audiences.iter().map(ToString::to_string).collect(),
            ..config::TokenReview::default()
        })
    }

    #[test]
    fn requires_a_configured_audience_in_the_status() {
        let status = |audiences: Option<&[&str]>| TokenReviewStatus {
            authenticated: Some(true),
            audiences: audiences.map(|list| list.iter().map(ToString::to_string).collect()),
            ..TokenReviewStatus::default()
        };
        assert!(handler(&[]).authenticate(status(None), "t").is_ok());
        assert!(
            handler(&["a", "b"])
                .authenticate(status(Some(&["b"])), "t")
                .is_ok()
        );
        assert_eq!(
            handler(&["a", "b"]).authenticate(status(Some(&["c"])), "t"),
            Err(TokenError::WrongAudience {
                token: "c".into(),
                required: "a, b".into()
            })
        );
        assert!(handler(&["a"]).authenticate(status(None), "t").is_err());
    }

    #[test]
    fn reports_message_of_api_server_without_token() {
        let rejected = |error: Option<&str>| {
            let status = TokenReviewStatus {
                error: error.map(str::to_owned),
                ..TokenReviewStatus::default()
            };
            handler(&[])
                .authenticate(status, "secret")
                .unwrap_err()
                .to_string()
        };
        assert_eq!(rejected(Some("revoked")), "revoked");
        assert_eq!(rejected(Some("bad secret!")), "bad [token]!");
        assert_eq!(rejected(None), "the API server does not accept the token");
    }

    #[test]
    fn reads_expiry_of_jwt() {
        let jwt = |payload: &str| format!("e30.{}.sig", URL_SAFE_NO_PAD.encode(payload));
        let now = UNIX_EPOCH + Duration::from_secs(1000);
        let cases = [
            (jwt(r#"{"exp":1060}"#), Some(60)),
            (jwt(r#"{"exp":900}"#), Some(0)),
            (jwt(r#"{"sub":"x"}"#), None),
            (jwt(r#"{"exp":-1}"#), None),
            (jwt(r#"{"exp":1e300}"#), None),
            ("opaque".into(), None),
            ("a.b.c".into(), None),
        ];
        for (token, seconds) in cases {
            assert_eq!(
                until_expiry(&token, now),
                seconds.map(Duration::from_secs),
                "{token}"
            );
        }
    }

    #[test]
    fn rejects_expired_jwt_without_review() {
        let jwt = |exp: u64| {
            format!(
                "e30.{}.sig",
                URL_SAFE_NO_PAD.encode(format!(r#"{{"exp":{exp}}}"#))
            )
        };
        let now = UNIX_EPOCH + Duration::from_secs(1000);
        let cases = [
            (jwt(900), true),
            (jwt(939), true),
            (jwt(941), false),
            (jwt(2000), false),
            ("opaque".into(), false),
        ];
        for (token, expired) in cases {
            assert_eq!(has_expired(&token, now), expired, "{token}");
        }
    }
}
