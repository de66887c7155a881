//! Sections `authentication`, `authorization` and `reviews`.

use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::values::{MAX_CACHE_ENTRIES, MAX_REVIEWS, fields};

/// Authentication of callers.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct Authentication {
    /// Accepts requests without credentials as the user `system:anonymous`, which then needs
    /// permissions like any other user.
    #[serde(deserialize_with = "fields::flag")]
    pub anonymous: bool,
    #[serde(deserialize_with = "fields::or_default")]
    pub token_review: TokenReview,
}

/// Authentication of bearer tokens by TokenReview.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct TokenReview {
    /// Time for which a valid token is cached, never past its own expiry. A revoked token is
    /// accepted for at most this long.
    #[serde(rename = "cacheTTL", with = "fields::duration")]
    #[schemars(with = "String", extend("x-type" = "duration"))]
    pub cache_ttl: Duration,
    /// Time for which an invalid token is cached.
    #[serde(rename = "failureCacheTTL", with = "fields::duration")]
    #[schemars(with = "String", extend("x-type" = "duration"))]
    pub failure_cache_ttl: Duration,
    /// Maximum number of cached tokens, from 1 to 1000000.
    #[serde(deserialize_with = "fields::count::<_, 1, MAX_CACHE_ENTRIES>")]
    #[schemars(range(min = 1, max = MAX_CACHE_ENTRIES))]
    pub cache_size: usize,
    /// Timeout of a TokenReview.
    #[serde(with = "fields::duration")]
    #[schemars(with = "String", extend("x-type" = "duration"))]
    pub timeout: Duration,
    /// Audiences of which a token must have at least one. If empty, the API server's own audiences
    /// apply.
    #[serde(deserialize_with = "fields::or_default")]
    pub audiences: Vec<String>,
}

impl Default for TokenReview {
    fn default() -> Self {
        Self {
            cache_ttl: Duration::from_secs(10),
            failure_cache_ttl: Duration::from_secs(2),
            cache_size: 16_384,
            timeout: Duration::from_secs(10),
            audiences: Vec::new(),
        }
    }
}

/// Authorization of requests by SubjectAccessReview.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct Authorization {
    /// Time for which an "allowed" result is cached. A revoked permission works for at most this
    /// long.
    #[serde(rename = "allowedCacheTTL", with = "fields::duration")]
    #[schemars(with = "String", extend("x-type" = "duration"))]
    pub allowed_cache_ttl: Duration,
    /// Time for which a "denied" result is cached. A new permission works after at most this long.
    #[serde(rename = "deniedCacheTTL", with = "fields::duration")]
    #[schemars(with = "String", extend("x-type" = "duration"))]
    pub denied_cache_ttl: Duration,
    /// Maximum number of cached results, from 1 to 1000000.
    #[serde(deserialize_with = "fields::count::<_, 1, MAX_CACHE_ENTRIES>")]
    #[schemars(range(min = 1, max = MAX_CACHE_ENTRIES))]
    pub cache_size: usize,
    /// Timeout of a SubjectAccessReview.
    #[serde(with = "fields::duration")]
    #[schemars(with = "String", extend("x-type" = "duration"))]
    pub timeout: Duration,
    /// Reviews a denied request again with the bare name instead of the id with scheme and port, so
    /// that a rule with `resourceNames: [web]` also covers `http:web:80`. kube-apiserver does not
    /// do this.
    #[serde(deserialize_with = "fields::flag")]
    pub accept_bare_names: bool,
}

impl Default for Authorization {
    fn default() -> Self {
        Self {
            allowed_cache_ttl: Duration::from_secs(10),
            denied_cache_ttl: Duration::from_secs(10),
            cache_size: 65_536,
            timeout: Duration::from_secs(10),
            accept_bare_names: false,
        }
    }
}

/// Limits of TokenReviews and SubjectAccessReviews. Each limit applies to both kinds separately.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct Reviews {
    /// Maximum number of reviews in flight, from 2 to 10000. A quarter is for refreshes of cached
    /// results; a client address gets at most half of the rest. The default is far below the API
    /// server's own limit of 200 mutating requests, which it needs for other clients as well.
    #[serde(deserialize_with = "fields::count::<_, 2, MAX_REVIEWS>")]
    #[schemars(range(min = 2, max = MAX_REVIEWS))]
    pub max_in_flight: usize,
    /// Maximum number of queued reviews, from 8 to 10000, of which a client address gets at most an
    /// eighth. Requests beyond the share of their client address get 429, requests beyond the whole
    /// queue 503. The default is the number that an API server completes in a few seconds.
    #[serde(deserialize_with = "fields::count::<_, 8, MAX_REVIEWS>")]
    #[schemars(range(min = 8, max = MAX_REVIEWS))]
    pub max_queued: usize,
    /// Maximum time that a review is queued; the request then gets 503. The default is shorter than
    /// the usual timeouts of clients, so that they receive the reason.
    #[serde(with = "fields::duration")]
    #[schemars(with = "String", extend("x-type" = "duration"))]
    pub queue_timeout: Duration,
    /// Time for which an expired result stays valid while the API server cannot be reached (no
    /// connection, timeout, 429 or 5xx); `0s` turns this off. Denials are never overruled, and a
    /// token is never accepted past its own expiry. The default outlasts the restart of a control
    /// plane.
    #[serde(with = "fields::duration_or_zero")]
    #[schemars(with = "String", extend("x-type" = "duration"))]
    pub stale_on_error: Duration,
}

impl Default for Reviews {
    fn default() -> Self {
        Self {
            max_in_flight: 64,
            max_queued: 1024,
            queue_timeout: Duration::from_secs(5),
            stale_on_error: Duration::from_mins(5),
        }
    }
}
