//! Tokens that an API server has accepted, and the limit on requests with other tokens or none.

use std::sync::Arc;
use std::time::{Duration, Instant};

use http::HeaderValue;
use quick_cache::sync::Cache;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::client_connection::{ClientShare, ClientShares};
use crate::model::ClientAddress;
use crate::review::{KeyHash, KeyHasher};

/// Maximum number of tokens that are remembered.
const MAX_TOKENS: usize = 16_384;
/// Time for which a token is remembered. One that expires meanwhile causes one response with 401 on
/// a shared connection, which then takes no further requests.
const LIFETIME: Duration = Duration::from_mins(10);
/// Maximum number of concurrent requests with other tokens or none, each of which has a connection of
/// its own, in all and per client address.
const MAX_UNPROVEN: usize = 512;
const MAX_UNPROVEN_PER_CLIENT: usize = 64;

pub(super) type TokenHash = KeyHash;

/// Tokens that an API server has accepted, by a keyed hash.
pub struct ProvenTokens {
    hasher: KeyHasher,
    tokens: Cache<TokenHash, Instant>,
}

impl std::fmt::Debug for ProvenTokens {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ProvenTokens")
            .field("len", &self.tokens.len())
            .finish_non_exhaustive()
    }
}

impl Default for ProvenTokens {
    fn default() -> Self {
        Self {
            hasher: KeyHasher::default(),
            tokens: Cache::new(MAX_TOKENS),
        }
    }
}

impl ProvenTokens {
    pub(super) fn hash(&self, authorization: &HeaderValue) -> TokenHash {
        self.hasher.hash(authorization.as_bytes())
    }

    pub(super) fn contains(&self, token: TokenHash) -> bool {
        self.tokens
            .get(&token)
            .is_some_and(|since| since.elapsed() < LIFETIME)
    }

    pub(super) fn insert(&self, token: TokenHash) {
        self.tokens.insert(token, Instant::now());
    }

    pub(super) fn remove(&self, token: TokenHash) {
        self.tokens.remove(&token);
    }
}

/// Limit on concurrent requests whose token is not proven.
#[derive(Debug)]
pub struct UnprovenRequests {
    all: Arc<Semaphore>,
    clients: Arc<ClientShares>,
}

/// One request under the limit.
#[derive(Debug)]
pub struct UnprovenPermit {
    _all: OwnedSemaphorePermit,
    _client: ClientShare,
}

/// A request exceeds the limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UnprovenLimit {
    #[error("too many requests of this client address without a token that is known to be valid")]
    Client,
    #[error("too many requests without a token that is known to be valid")]
    All,
}

impl Default for UnprovenRequests {
    fn default() -> Self {
        Self {
            all: Arc::new(Semaphore::new(MAX_UNPROVEN)),
            clients: ClientShares::new(MAX_UNPROVEN_PER_CLIENT),
        }
    }
}

impl UnprovenRequests {
    pub(super) fn enter(&self, client: ClientAddress) -> Result<UnprovenPermit, UnprovenLimit> {
        let client = self.clients.take(client).ok_or(UnprovenLimit::Client)?;
        let all = Arc::clone(&self.all).try_acquire_owned();
        Ok(UnprovenPermit {
            _all: all.map_err(|_| UnprovenLimit::All)?,
            _client: client,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use std::net::IpAddr;

    #[test]
    fn tokens_are_proven_until_they_are_removed() {
        let tokens = ProvenTokens::default();
        let (jane, joe) = (
            tokens.hash(&HeaderValue::from_static("Bearer jane")),
            tokens.hash(&HeaderValue::from_static("Bearer joe")),
        );
        tokens.insert(jane);
        assert!(tokens.contains(jane) && !tokens.contains(joe));
        tokens.remove(jane);
        assert!(!tokens.contains(jane));
    }

    #[test]
    fn requests_are_limited_per_client_and_in_all() {
        let limit = UnprovenRequests::default();
        let client = |last: u8| ClientAddress::from(IpAddr::from([192, 0, 2, last]));
        let mut permits: Vec<_> = (0..MAX_UNPROVEN_PER_CLIENT)
            .map(|_| limit.enter(client(1)).unwrap())
            .collect();
        assert_eq!(limit.enter(client(1)).unwrap_err(), UnprovenLimit::Client);
        for last in 2..=8 {
            let others = (0..MAX_UNPROVEN_PER_CLIENT).map(|_| limit.enter(client(last)).unwrap());
            permits.extend(others);
        }
        assert_eq!(permits.len(), MAX_UNPROVEN);
        assert_eq!(limit.enter(client(9)).unwrap_err(), UnprovenLimit::All);
        drop(permits);
        assert!(limit.enter(client(1)).is_ok());
    }
}
