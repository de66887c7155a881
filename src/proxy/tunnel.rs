//! Tunnels behind an upgrade: each lives as long as its caller may open it, and no longer.

use std::cell::Cell;
use std::sync::Arc;
use std::time::Duration;

use http::HeaderMap;
use tokio::time::{Instant, MissedTickBehavior};

use super::Stages;
use crate::authenticate::{AuthenticationError, Peer};
use crate::authorize::AuthorizeError;
use crate::connection::ConnectionGuard;
use crate::drain::Drain;
use crate::forward::Tunnel;
use crate::model::target::TargetError;
use crate::model::{ClientAddress, Target, Verb};
use crate::telemetry::Record;

/// Limits on the life of tunnels.
#[derive(Clone, Copy, Debug)]
pub struct TunnelPolicy {
    /// Time between two checks of a tunnel's grant. Shorter than the TTL of the results that a
    /// check looks up, and longer than the half of it after which a look-up refreshes them: so a
    /// check is answered by the cache, and its refresh needs no place in the queue of reviews,
    /// which strangers may have filled.
    pub check_interval: Duration,
    /// Time for which a tunnel stays open while it cannot be found out whether its caller may have
    /// it: `reviews.staleOnError`.
    pub unverified_for: Duration,
    /// None where only the grant ends a tunnel.
    pub max_age: Option<Duration>,
}

/// The credentials and the verb that a tunnel was opened with: enough to ask again whether it may
/// be open.
#[derive(Debug)]
pub(super) struct Grant {
    peer: Peer,
    /// The headers by which the caller was identified, and nothing else.
    credentials: HeaderMap,
    websocket: bool,
    verb: Verb,
}

/// The reason why a tunnel must be closed.
#[derive(Debug, thiserror::Error)]
enum GrantError {
    #[error(transparent)]
    Authenticate(#[from] AuthenticationError),
    #[error(transparent)]
    Target(#[from] TargetError),
    #[error(transparent)]
    Authorize(#[from] AuthorizeError),
}

/// Checks that may fail for want of a place before the tunnel is closed: a flood must not close the
/// tunnels of others immediately, nor keep one open whose caller has lost the right to it.
const MAX_REJECTED_CHECKS: u32 = 3;

impl TunnelPolicy {
    /// `ttl` is the shortest TTL of the results that a check looks up.
    pub fn new(ttl: Duration, unverified_for: Duration, max_age: Option<Duration>) -> Self {
        Self {
            check_interval: ttl * 3 / 4,
            unverified_for,
            max_age,
        }
    }
}

impl Grant {
    pub fn new(peer: &Peer, credentials: HeaderMap, websocket: bool, verb: Verb) -> Self {
        Self {
            peer: peer.clone(),
            credentials,
            websocket,
            verb,
        }
    }

    /// Asks what was asked when the tunnel was opened, in the same order (see `Proxy::route`).
    async fn check(&self, stages: &Stages, path: &str) -> Result<(), GrantError> {
        let Stages {
            authenticator,
            authorizer,
            ..
        } = stages;
        let caller = authenticator
            .authenticate(&mut self.credentials.clone(), &self.peer, self.websocket)
            .await?;
        let client = ClientAddress::from(self.peer.address.ip());
        let identity = match caller.impersonates {
            None => caller.identity,
            Some(wanted) => {
                authorizer
                    .impersonate(&caller.identity, wanted, client)
                    .await?
            }
        };
        let target = Target::parse(path)?;
        authorizer
            .authorize(&identity, self.verb, &target, client)
            .await?;
        Ok(authorizer
            .authorize_upgrade(&identity, &target, client)
            .await?)
    }
}

impl GrantError {
    /// The time since the last good check after which this error closes the tunnel. Zero for a
    /// definite denial.
    fn tolerated_for(&self, policy: TunnelPolicy) -> Duration {
        match self {
            Self::Authenticate(
                AuthenticationError::Unauthenticated(_) | AuthenticationError::Impersonation(_),
            )
            | Self::Target(_)
            | Self::Authorize(AuthorizeError::Forbidden(_)) => Duration::ZERO,
            Self::Authenticate(AuthenticationError::Rejected(_))
            | Self::Authorize(AuthorizeError::Rejected(_)) => {
                policy.check_interval * MAX_REJECTED_CHECKS
            }
            Self::Authenticate(AuthenticationError::Unavailable(_))
            | Self::Authorize(AuthorizeError::Unavailable(_)) => policy.unverified_for,
        }
    }
}

/// Joins the connections behind a 101 until either side ends, the grant is gone, the tunnel is too
/// old, or the bastion ends; then ends the record of the request.
pub(super) async fn run(
    tunnel: Tunnel,
    grant: Box<Grant>,
    mut record: Box<Record>,
    _held: ConnectionGuard,
    drain: Drain,
    stages: Arc<Stages>,
) {
    let _open = stages.metrics.upgrades.enter();
    let (received, sent) = (record.received.take().unwrap_or_default(), Cell::new(0));
    let ended = tokio::select! {
        ended = tunnel.run(&received, &sent) => ended.map_err(|error| error.to_string()),
        reason = grant_ends(&grant, &stages, record.uri.path()) => Err(reason),
        () = drain.forced() => Err("the bastion is shutting down".to_owned()),
    };
    record.error = ended.err();
    record.received = Some(received);
    record.sent = sent.get();
}

/// Returns the reason once the tunnel may be open no longer.
async fn grant_ends(grant: &Grant, stages: &Stages, path: &str) -> String {
    let TunnelPolicy {
        check_interval,
        max_age,
        ..
    } = stages.tunnels;
    let opened = Instant::now();
    // Spread out, because thousands of tunnels may have been opened in one moment.
    let first = check_interval.mul_f32(0.5 + fastrand::f32() / 2.0);
    let mut checks = tokio::time::interval_at(opened + first, check_interval);
    checks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let expiry = async {
        match max_age {
            Some(max_age) => tokio::time::sleep_until(opened + max_age).await,
            None => std::future::pending().await,
        }
    };
    let refused = async {
        let mut confirmed = opened;
        loop {
            checks.tick().await;
            match grant.check(stages, path).await {
                Ok(()) => confirmed = Instant::now(),
                Err(error) if confirmed.elapsed() < error.tolerated_for(stages.tunnels) => {}
                Err(error) => return error,
            }
        }
    };
    tokio::select! {
        () = expiry => {
            stages.metrics.tunnels_closed.max_age.inc();
            "the tunnel was closed: it reached its maximum age".to_owned()
        }
        error = refused => if error.tolerated_for(stages.tunnels).is_zero() {
            stages.metrics.tunnels_closed.revoked.inc();
            format!("the tunnel was closed: its caller may open it no longer: {error}")
        } else {
            stages.metrics.tunnels_closed.unverified.inc();
            format!("the tunnel was closed: it cannot be verified that its caller may open it: {error}")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::review::Rejection;

    #[test]
    fn a_denial_closes_immediately_an_overload_soon_and_an_outage_when_stale_results_end() {
        let minutes = Duration::from_mins;
        let policy = TunnelPolicy::new(minutes(4), minutes(5), None);
        assert_eq!(policy.check_interval, minutes(3));
        let cases: [(GrantError, Duration); 5] = [
            (
                AuthenticationError::Unauthenticated("revoked".into()).into(),
                Duration::ZERO,
            ),
            (TargetError::NoRoute.into(), Duration::ZERO),
            (
                AuthenticationError::Rejected(Rejection::ClientShare).into(),
                minutes(9),
            ),
            (
                AuthorizeError::Rejected(Rejection::Timeout).into(),
                minutes(9),
            ),
            (
                AuthorizeError::Unavailable("down".into()).into(),
                minutes(5),
            ),
        ];
        for (error, tolerated_for) in cases {
            assert_eq!(error.tolerated_for(policy), tolerated_for, "{error}");
        }
        // With staleOnError off an outage closes tunnels, as it denies requests.
        let strict = TunnelPolicy::new(minutes(4), Duration::ZERO, None);
        assert!(
            GrantError::from(AuthenticationError::Unavailable("down".into()))
                .tolerated_for(strict)
                .is_zero()
        );
    }
}
