//! Bearer tokens, authenticated by TokenReview.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use k8s_openapi::api::authentication::v1::{
    TokenReview, TokenReviewSpec, TokenReviewStatus, UserInfo,
};
use serde::Deserialize;

use super::AuthenticationError;
use crate::config;
use crate::model::{ClientAddress, Identity};
use crate::review::{CachedReviews, Judge, cut_text};
use crate::ttl_cache::Fetched;

/// The longest token that is reviewed. Tokens of service accounts take 1 KiB, those of OIDC with
/// many groups some KiB.
const MAX_TOKEN_BYTES: usize = 16 * 1024;
/// The difference that kube-apiserver tolerates between the clock of the issuer and its own.
const MAX_CLOCK_SKEW: Duration = Duration::from_mins(1);

type TokenVerdict = Result<Arc<Identity>, AuthenticationError>;

/// Identifies callers by TokenReview.
pub type TokenReviewAuthenticator = CachedReviews<TokenJudge>;

impl TokenReviewAuthenticator {
    pub(super) async fn identity(
        self: &Arc<Self>,
        token: &str,
        client: ClientAddress,
    ) -> TokenVerdict {
        if token.len() > MAX_TOKEN_BYTES {
            return Err(AuthenticationError::Unauthenticated(format!(
                "the token is longer than {MAX_TOKEN_BYTES} bytes"
            )));
        }
        self.verdict(token, || self.judge.review(token), client)
            .await
    }
}

/// Judges TokenReviews.
#[derive(Debug)]
pub struct TokenJudge(pub config::TokenReview);

impl Judge for TokenJudge {
    type Review = TokenReview;
    type Outcome = Arc<Identity>;
    type Error = AuthenticationError;

    fn judge(&self, review: &TokenReview, answer: TokenReview) -> Option<Fetched<TokenVerdict>> {
        Some(match self.authenticate(answer.status?) {
            Ok(identity) => Fetched::Answer {
                value: Ok(Arc::new(identity)),
                ttl: self.0.cache_ttl,
                // What the token says of itself wins over every cache (RFC 7519 section 4.1.4).
                usable_for: until_expiry(&review.spec.token, SystemTime::now())
                    .unwrap_or(Duration::MAX),
            },
            Err(fault) => Fetched::Denial {
                value: Err(AuthenticationError::Unauthenticated(cut_text(fault))),
                ttl: self.0.failure_cache_ttl,
            },
        })
    }
}

impl TokenJudge {
    /// The review of `token`, which an expired one does not get.
    fn review(&self, token: &str) -> Result<TokenReview, AuthenticationError> {
        if has_expired(token, SystemTime::now()) {
            return Err(AuthenticationError::Unauthenticated(
                "the token has expired".into(),
            ));
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

    /// Where audiences are configured the API must say that it checked one of them: an
    /// authenticator that does not know of audiences would let tokens for others through
    /// (KEP-1205).
    fn authenticate(&self, status: TokenReviewStatus) -> Result<Identity, String> {
        if status.authenticated != Some(true) {
            return Err(status
                .error
                .unwrap_or_else(|| "the API does not know the token".into()));
        }
        let wanted = &self.0.audiences;
        let checked = status.audiences.unwrap_or_default();
        if !wanted.is_empty() && !wanted.iter().any(|audience| checked.contains(audience)) {
            return Err(format!(
                "the token is for the audiences {checked:?}, not for {wanted:?}"
            ));
        }
        let user = status.user.unwrap_or_default();
        let UserInfo {
            username,
            uid,
            groups,
            extra,
        } = user;
        Ok(Identity::new(
            username.unwrap_or_default(),
            uid.unwrap_or_default(),
            groups.unwrap_or_default(),
            extra.unwrap_or_default(),
        ))
    }
}

/// Whether a JWT's `exp` has passed, with tolerance for clock skew.
fn has_expired(token: &str, now: SystemTime) -> bool {
    until_expiry(token, now - MAX_CLOCK_SKEW).is_some_and(|left| left.is_zero())
}

/// How long a JWT (RFC 7519) is good for by its own word, which the API has verified. None for
/// other tokens.
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

    #[test]
    fn a_jwt_says_itself_when_it_expires() {
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
