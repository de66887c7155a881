//! Tunnels after an upgrade. A tunnel is closed once its caller may no longer open it, at its
//! maximum age, and at the end of a drain.

use std::cell::Cell;
use std::sync::Arc;
use std::time::Duration;

use http::HeaderMap;
use tokio::sync::oneshot;
use tokio::time::{Instant, MissedTickBehavior};

use super::{Stages, forward_proxy};
use crate::authenticate::{AuthenticationError, Peer};
use crate::authorize::AuthorizationError;
use crate::client_connection::{ConnectionGuard, Share};
use crate::drain::Drain;
use crate::forward::Tunnel;
use crate::http::{RequestTarget, Upgraded};
use crate::model::target::TargetError;
use crate::model::tunnel::TunnelObject;
use crate::model::{ClientAddress, Endpoint, Target, Verb};
use crate::telemetry::Record;
use crate::tunnel::{TunnelError, connect_udp};

/// Limits on the lifetime of tunnels.
#[derive(Clone, Copy, Debug)]
pub struct TunnelPolicy {
    /// Interval between two checks of a tunnel's grant. It is shorter than the TTL of the cached
    /// results, so that a check hits the cache, and longer than half of the TTL, so that the hit
    /// refreshes the result ahead of expiry. Such a refresh does not wait in the queue of reviews,
    /// which other clients may have filled.
    pub check_interval: Duration,
    /// Time for which a tunnel stays open while its grant cannot be checked:
    /// `reviews.staleOnError`.
    pub unverified_for: Duration,
    /// Maximum age of a tunnel, `serving.tunnelMaxAge`; none for no limit.
    pub max_age: Option<Duration>,
}

/// Credentials and verb with which a tunnel was opened, for authenticating and authorizing it
/// again. Not `Debug`: it holds credentials.
pub(super) struct Grant {
    pub peer: Peer,
    /// Only the headers that authentication reads, `Impersonate-*` included.
    pub credentials: HeaderMap,
    pub subject: Subject,
}

/// Content of a tunnel.
pub(super) enum Carrier {
    /// The bytes of two connections.
    Streams(Tunnel),
    /// Datagrams in the capsules of a client, for one endpoint (RFC 9298).
    Datagrams {
        /// Arrives after the response is sent.
        client: oneshot::Receiver<Upgraded>,
        socket: connect_udp::Connected,
    },
}

impl Carrier {
    async fn run(self, received: &Cell<u64>, sent: &Cell<u64>) -> Result<(), TunnelError> {
        match self {
            Self::Streams(tunnel) => tunnel.run(received, sent).await,
            Self::Datagrams { client, socket } => {
                connect_udp::run(client.await?, socket, received, sent).await
            }
        }
    }
}

/// Object of a grant.
pub(super) enum Subject {
    /// Target of an upgrade.
    Upgrade {
        websocket: bool,
        verb: Verb,
        /// Target without the path that the endpoint sees.
        target: RequestTarget,
    },
    /// Service or pod of a CONNECT or CONNECT-UDP.
    Tunnel {
        object: TunnelObject,
        /// Endpoint of the datagrams of a CONNECT-UDP. A connection of CONNECT ends by itself with
        /// its endpoint.
        datagrams: Option<Endpoint>,
        #[expect(dead_code, reason = "held until the tunnel ends")]
        share: Share<Arc<str>>,
    },
}

/// Result of a check that did not confirm the grant.
#[derive(Debug, thiserror::Error)]
enum GrantError {
    #[error(transparent)]
    Authenticate(#[from] AuthenticationError),
    #[error(transparent)]
    Target(#[from] TargetError),
    #[error(transparent)]
    Authorize(#[from] AuthorizationError),
}

/// Number of consecutive checks that may be rejected for overload before the tunnel is closed. A
/// flood of reviews must not close the tunnels of other clients immediately, nor keep a tunnel open
/// whose caller has lost access.
const MAX_REJECTED_CHECKS: u32 = 3;

/// Interval between two looks at the index for the endpoint of datagrams.
const ENDPOINT_INTERVAL: Duration = Duration::from_secs(2);

impl TunnelPolicy {
    /// Returns a policy for results that are cached for `ttl`, the shortest TTL that a check uses.
    pub fn new(ttl: Duration, unverified_for: Duration, max_age: Option<Duration>) -> Self {
        Self {
            check_interval: ttl * 3 / 4,
            unverified_for,
            max_age,
        }
    }
}

impl Subject {
    pub fn upgrade(
        websocket: bool,
        verb: Verb,
        target: &Target<'_>,
        request: &RequestTarget,
    ) -> Self {
        Self::Upgrade {
            websocket,
            verb,
            target: if target.is_host() {
                request.without_path()
            } else {
                RequestTarget::from_valid_path(target.prefix)
            },
        }
    }
}

impl Grant {
    /// Repeats the authentication and authorization of `Proxy::route`, in the same order.
    async fn check(&self, stages: &Stages) -> Result<(), GrantError> {
        let Stages {
            authenticator,
            authorizer,
            cluster_domain,
            ..
        } = stages;
        // A copy, because authentication strips the credentials from the headers.
        let mut credentials = self.credentials.clone();
        let (headers, peer) = (&mut credentials, &self.peer);
        let client = ClientAddress::from(peer.client);
        let (websocket, verb, request) = match &self.subject {
            Subject::Upgrade {
                websocket,
                verb,
                target,
            } => (*websocket, *verb, target),
            Subject::Tunnel { object, .. } => {
                let caller = authenticator.authenticate_tunnel(headers, peer).await?;
                let identity = authorizer.acting(caller, client).await?;
                authorizer
                    .authorize_tunnel(&identity, object, client)
                    .await?;
                return Ok(());
            }
        };
        let target = forward_proxy::parse_target(request, cluster_domain)?;
        let caller = if target.is_host() {
            authenticator.authenticate_proxy(headers, peer).await?
        } else {
            authenticator.authenticate(headers, peer, websocket).await?
        };
        let identity = authorizer.acting(caller, client).await?;
        authorizer
            .authorize(&identity, verb, &target, client)
            .await?;
        // A permission for the upgrade may be revoked separately (C111).
        Ok(authorizer
            .authorize_upgrade(&identity, &target, client)
            .await?)
    }
}

impl GrantError {
    /// Returns true if the check was rejected for overload.
    fn is_rejection(&self) -> bool {
        matches!(
            self,
            Self::Authenticate(AuthenticationError::Rejected(_))
                | Self::Authorize(AuthorizationError::Rejected(_))
        )
    }

    /// Returns true if the caller has lost access, false if that could not be checked.
    fn is_denial(&self) -> bool {
        match self {
            Self::Authenticate(
                AuthenticationError::Unauthenticated(_) | AuthenticationError::Impersonation(_),
            )
            | Self::Target(_)
            | Self::Authorize(AuthorizationError::Forbidden(_)) => true,
            Self::Authenticate(
                AuthenticationError::Rejected(_) | AuthenticationError::Unavailable(_),
            )
            | Self::Authorize(
                AuthorizationError::Rejected(_) | AuthorizationError::Unavailable(_),
            ) => false,
        }
    }

    /// Returns the time since the last successful check after which this error closes the tunnel:
    /// zero for a denial.
    fn tolerated_for(&self, policy: TunnelPolicy) -> Duration {
        match self {
            Self::Authenticate(
                AuthenticationError::Unauthenticated(_) | AuthenticationError::Impersonation(_),
            )
            | Self::Target(_)
            | Self::Authorize(AuthorizationError::Forbidden(_)) => Duration::ZERO,
            Self::Authenticate(AuthenticationError::Rejected(_))
            | Self::Authorize(AuthorizationError::Rejected(_)) => {
                policy.check_interval * MAX_REJECTED_CHECKS
            }
            Self::Authenticate(AuthenticationError::Unavailable(_))
            | Self::Authorize(AuthorizationError::Unavailable(_)) => policy.unverified_for,
        }
    }
}

/// Checks of the grant of an open tunnel.
#[derive(Debug)]
struct Checks {
    /// Time of the last check that confirmed it.
    confirmed: Instant,
    /// Time of the last check.
    last: Instant,
    /// Time of the check before the first one since `confirmed` that was rejected for overload.
    before_rejections: Option<Instant>,
}

impl Checks {
    fn new(opened: Instant) -> Self {
        Self {
            confirmed: opened,
            last: opened,
            before_rejections: None,
        }
    }

    /// Records a check. Returns its error if the tunnel must be closed.
    fn ended(
        &mut self,
        check: Result<(), GrantError>,
        policy: TunnelPolicy,
        now: Instant,
    ) -> Option<GrantError> {
        let before = std::mem::replace(&mut self.last, now);
        let Err(error) = check else {
            (self.confirmed, self.before_rejections) = (now, None);
            return None;
        };
        // Reset by a success only, so that alternating causes extend nothing. Rejections may follow
        // an outage, which is tolerated longer.
        let since = if error.is_rejection() {
            *self.before_rejections.get_or_insert(before)
        } else {
            self.confirmed
        };
        (now.duration_since(since) >= error.tolerated_for(policy)).then_some(error)
    }
}

/// Copies bytes between the two connections of a tunnel until either side closes, the grant ends, the
/// endpoint of datagrams is gone or the drain deadline passes. Then writes the access-log record.
pub(super) async fn run(
    carrier: Carrier,
    grant: Option<Box<Grant>>,
    mut record: Box<Record>,
    _connection: ConnectionGuard,
    drain: Drain,
    stages: Arc<Stages>,
) {
    // Counts the tunnel as open until this function returns.
    let _open = stages.metrics.upgrades.enter();
    let (received, sent) = (record.received.take().unwrap_or_default(), Cell::new(0));
    let ended = tokio::select! {
        ended = carrier.run(&received, &sent) => ended.map_err(|error| error.to_string()),
        // Dropping `carrier.run` closes both connections.
        reason = grant_ended(grant.as_deref(), &stages) => Err(reason),
        () = drain.forced() => Err("the bastion is shutting down".to_owned()),
    };
    record.error = ended.err();
    record.received = Some(received);
    record.sent = sent.get();
}

/// Returns the reason once the tunnel must be closed.
async fn grant_ended(grant: Option<&Grant>, stages: &Stages) -> String {
    let Some(grant) = grant else {
        return std::future::pending().await;
    };
    let TunnelPolicy {
        check_interval,
        max_age,
        ..
    } = stages.tunnel_policy;
    let opened = Instant::now();
    // Jitter: thousands of tunnels opened together, as after a reconnect, must not be checked
    // together.
    let first = check_interval.mul_f32(0.5 + fastrand::f32() / 2.0);
    let mut checks = tokio::time::interval_at(opened + first, check_interval);
    // A check that waited for a slow review is not followed by a burst of the missed ones.
    checks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let expiry = async {
        match max_age {
            Some(max_age) => tokio::time::sleep_until(opened + max_age).await,
            None => std::future::pending().await,
        }
    };
    let unconfirmed = async {
        let mut history = Checks::new(opened);
        loop {
            checks.tick().await;
            let check = grant.check(stages).await;
            if let Some(error) = history.ended(check, stages.tunnel_policy, Instant::now()) {
                return error;
            }
        }
    };
    let gone = async {
        if let Subject::Tunnel {
            object,
            datagrams: Some(endpoint),
            ..
        } = &grant.subject
        {
            while stages.resolver.has_udp_endpoint(object, endpoint) {
                tokio::time::sleep(ENDPOINT_INTERVAL).await;
            }
        } else {
            std::future::pending::<()>().await;
        }
    };
    tokio::select! {
        () = gone => {
            stages.metrics.tunnels_closed.endpoint_gone.inc();
            "the tunnel was closed: its endpoint is gone".to_owned()
        }
        () = expiry => {
            stages.metrics.tunnels_closed.max_age.inc();
            "the tunnel was closed: it reached its maximum age (serving.tunnelMaxAge)".to_owned()
        }
        error = unconfirmed => if error.is_denial() {
            stages.metrics.tunnels_closed.revoked.inc();
            format!("the tunnel was closed: its caller is no longer allowed to open it: {error}")
        } else {
            stages.metrics.tunnels_closed.unverified.inc();
            format!("the tunnel was closed: its permission could not be checked: {error}")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::authenticate::CredentialError;
    use crate::review::{Rejection, ReviewFailure};

    #[test]
    fn rejected_checks_after_an_outage_close_the_tunnel_after_their_own_tolerance() {
        let second = Duration::from_secs;
        let policy = TunnelPolicy::new(second(10), second(300), None);
        let down = || {
            let failure = ReviewFailure::Timeout;
            Err(AuthorizationError::Unavailable(failure).into())
        };
        let busy = || Err(AuthorizationError::Rejected(Rejection::Timeout).into());
        let start = Instant::now();
        let at = |tenths: u64| start + Duration::from_millis(tenths * 100);
        let mut checks = Checks::new(start);
        for tenths in [75, 150, 600] {
            assert!(checks.ended(down(), policy, at(tenths)).is_none());
        }
        assert!(checks.ended(busy(), policy, at(675)).is_none());
        // Neither is extended by the other.
        assert!(checks.ended(down(), policy, at(750)).is_none());
        assert!(checks.ended(busy(), policy, at(824)).is_none());
        assert!(checks.ended(busy(), policy, at(825)).is_some());
        assert!(checks.ended(down(), policy, at(3000)).is_some());
        assert!(checks.ended(Ok(()), policy, at(3001)).is_none());
        assert!(checks.ended(busy(), policy, at(3225)).is_none());
        assert!(checks.ended(busy(), policy, at(3226)).is_some());
    }

    #[test]
    fn denial_closes_tunnel_immediately_and_other_errors_after_their_tolerance() {
        let minutes = Duration::from_mins;
        let policy = TunnelPolicy::new(minutes(4), minutes(5), None);
        assert_eq!(policy.check_interval, minutes(3));
        let cases: [(GrantError, Duration); 5] = [
            (
                AuthenticationError::Unauthenticated(CredentialError::Missing).into(),
                Duration::ZERO,
            ),
            (TargetError::NoRoute.into(), Duration::ZERO),
            (
                AuthenticationError::Rejected(Rejection::ClientShare).into(),
                minutes(9),
            ),
            (
                AuthorizationError::Rejected(Rejection::Timeout).into(),
                minutes(9),
            ),
            (
                AuthorizationError::Unavailable(ReviewFailure::Timeout).into(),
                minutes(5),
            ),
        ];
        for (error, tolerated_for) in cases {
            assert_eq!(error.tolerated_for(policy), tolerated_for, "{error}");
        }
        // Without staleOnError an outage closes tunnels, as it denies requests.
        let strict = TunnelPolicy::new(minutes(4), Duration::ZERO, None);
        assert!(
            GrantError::from(AuthenticationError::Unavailable(ReviewFailure::Timeout))
                .tolerated_for(strict)
                .is_zero()
        );
    }
}
