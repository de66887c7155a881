//! Tunnels behind an upgrade: each lives as long as its caller may open it, and no longer.

use std::cell::Cell;
use std::sync::Arc;
use std::time::Duration;

use http::HeaderMap;
use tokio::time::{Instant, MissedTickBehavior};

use super::Stages;
use crate::authorize::AuthorizeError;
use crate::connection::Held;
use crate::drain::Drain;
use crate::forward::Tunnel;
use crate::identify::{IdentifyError, Peer};
use crate::model::target::TargetError;
use crate::model::{ClientAddress, Resource, Target, Verb};
use crate::telemetry::Record;

/// How long tunnels live.
#[derive(Clone, Copy, Debug)]
pub struct TunnelPolicy {
    /// Time between two checks of a tunnel's grant: the shorter of the TTLs of the caches that the checks go through, so
    /// that they add no reviews to those of ordinary requests.
    pub check_interval: Duration,
    /// None where only the grant ends a tunnel.
    pub max_age: Option<Duration>,
}

/// What a tunnel was opened with: enough to ask again whether it may be open.
#[derive(Debug)]
pub(super) struct Grant {
    peer: Peer,
    /// The headers by which the caller was identified, and nothing else.
    credentials: HeaderMap,
    websocket: bool,
    verb: Verb,
}

/// Why a tunnel may be open no longer.
#[derive(Debug, thiserror::Error)]
enum GrantError {
    #[error(transparent)]
    Identify(#[from] IdentifyError),
    #[error(transparent)]
    Target(#[from] TargetError),
    #[error(transparent)]
    Authorize(#[from] AuthorizeError),
}

impl Grant {
    pub fn new(peer: &Peer, credentials: HeaderMap, websocket: bool, verb: Verb) -> Self {
        Self { peer: peer.clone(), credentials, websocket, verb }
    }

    /// Asks what was asked when the tunnel was opened, in the same order (see `Proxy::route`).
    async fn check(&self, stages: &Stages, path: &str) -> Result<(), GrantError> {
        let Stages { identify, authorize, .. } = stages;
        let caller = identify.identify(&mut self.credentials.clone(), &self.peer, self.websocket).await?;
        let client = ClientAddress::from(self.peer.address.ip());
        let identity = match caller.impersonates {
            None => caller.identity,
            Some(wanted) => authorize.impersonate(&caller.identity, wanted, client).await?,
        };
        let target = Target::parse(path)?;
        authorize.authorize(&identity, self.verb, &target, client).await?;
        if target.resource == Resource::Nodes {
            authorize.authorize(&identity, Verb::Create, &target, client).await?;
        }
        Ok(())
    }
}

impl GrantError {
    /// The bastion was too busy to ask: no reason to close a tunnel, else a flood of strangers could close all.
    fn is_overload(&self) -> bool {
        matches!(self, Self::Identify(IdentifyError::Rejected(_)) | Self::Authorize(AuthorizeError::Rejected(_)))
    }
}

/// Joins the connections behind a 101 until either side ends, the grant is gone, the tunnel is too old, or the bastion
/// ends; then ends the record of the request.
pub(super) async fn run(
    tunnel: Tunnel,
    grant: Box<Grant>,
    mut record: Box<Record>,
    _held: Held,
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
    let TunnelPolicy { check_interval, max_age } = stages.tunnels;
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
    let revoked = async {
        loop {
            checks.tick().await;
            match grant.check(stages, path).await {
                Ok(()) => {}
                Err(error) if error.is_overload() => {}
                Err(error) => return error,
            }
        }
    };
    tokio::select! {
        () = expiry => {
            stages.metrics.tunnels_closed.max_age.inc();
            "the tunnel was closed: it reached its maximum age".to_owned()
        }
        error = revoked => {
            stages.metrics.tunnels_closed.revoked.inc();
            format!("the tunnel was closed: its caller may open it no longer: {error}")
        }
    }
}
