//! The background tasks of the process, and the wait for its end.

use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::Result;
use arc_swap::ArcSwapOption;
use http::HeaderValue;
use tokio::task::JoinSet;

use crate::authenticate::TokenReviewAuthenticator;
use crate::authorize::Reviews;
use crate::balance::LoadBalancer;
use crate::drain::Drain;
use crate::file_watch::FileWatch;
use crate::model::error_chain;
use crate::ready::Ready;
use crate::supervise::Supervisor;
use crate::tls::ServerTls;
use crate::trust::DynamicClientCas;

/// How often the bastion's own token is read again: it rotates within the hour.
const TOKEN_INTERVAL: Duration = Duration::from_mins(1);
/// Interval between removals of ejected endpoints that are gone. A request pays for each endpoint
/// of its service while any is remembered, so this adds little to the minute that they are
/// remembered at most.
const BALANCE_SWEEP: Duration = Duration::from_secs(5);

/// Interval between removals of expired reviews from the caches: a scan of all entries, which holds
/// one shard's lock at a time for less than a millisecond.
const PURGE_INTERVAL: Duration = Duration::from_secs(30);

/// Waits until all workers have ended. Where one panicked, or a background task ended that is
/// fatal, the others end too, and the process is started anew.
pub(super) async fn supervise(
    workers: Vec<JoinHandle<Result<()>>>,
    mut supervisor: Supervisor,
    drain: &Drain,
) -> Result<()> {
    let mut joins = JoinSet::new();
    for worker in workers {
        joins.spawn_blocking(move || worker.join());
    }
    let mut outcome = Ok(());
    loop {
        let ended = tokio::select! {
            joined = joins.join_next() => match joined {
                Some(joined) => joined?.map_err(|_| anyhow::anyhow!("a worker panicked")).flatten(),
                None => return outcome,
            },
            error = supervisor.failed(), if outcome.is_ok() => Err(error.into()),
        };
        if ended.is_err() {
            drain.force();
            outcome = outcome.and(ended);
        }
    }
}

/// Counts down from the beginning of the drain to its deadline.
pub(super) async fn enforce_drain_deadline(drain: Drain, ready: Ready, timeout: Duration) {
    drain.begun().await;
    ready.set_draining();
    tracing::info!(
        ?timeout,
        "draining: no new connections, running requests go on"
    );
    tokio::time::sleep(timeout).await;
    tracing::warn!("the drain's deadline is over: what still runs is cut");
    drain.force();
}

/// Takes changed certificates and client CAs into use. What is no good changes nothing and is
/// logged.
///
/// `again` loads them first: the run before ended somewhere between a change and its use.
pub(super) async fn reload_server_tls(
    tls: Arc<ServerTls>,
    cas: [DynamicClientCas; 2],
    client_ca_file: Option<std::path::PathBuf>,
    mut again: bool,
) {
    let mut files = FileWatch::new(
        tls.files()
            .into_iter()
            .chain(client_ca_file.clone())
            .collect(),
    );
    loop {
        if !std::mem::take(&mut again) {
            tokio::select! {
                () = files.changed() => {}
                () = cas[0].changed() => {}
                () = cas[1].changed() => {}
            }
        }
        if let Some(path) = &client_ca_file {
            let read = std::fs::read(path).map_err(anyhow::Error::from);
            if let Err(error) = read.and_then(|pem| Ok(cas[0].replace(&pem)?)) {
                tracing::error!(%error, ?path, "the client CA file changed and cannot be used; the old CAs stay");
            }
        }
        match tls.reload() {
            Ok(()) => tracing::info!("certificates or client CAs changed and are in use"),
            Err(error) => {
                let error = error_chain(&error);
                tracing::error!(
                    error,
                    "the certificate changed and cannot be used; the old one stays"
                );
            }
        }
    }
}

/// Frees the memory of cached reviews that can serve no more.
pub(super) async fn purge_caches((tokens, reviews): (Arc<TokenReviewAuthenticator>, Arc<Reviews>)) {
    loop {
        tokio::time::sleep(PURGE_INTERVAL).await;
        tokens.purge();
        reviews.purge();
    }
}

pub(super) async fn sweep_balance(balance: Arc<LoadBalancer>) {
    loop {
        tokio::time::sleep(BALANCE_SWEEP).await;
        balance.sweep();
    }
}

pub(super) fn bearer(token: &str) -> Option<HeaderValue> {
    let mut bearer = HeaderValue::try_from(format!("Bearer {}", token.trim())).ok()?;
    bearer.set_sensitive(true);
    Some(bearer)
}

pub(super) async fn reload_own_token(
    file: std::path::PathBuf,
    token: Arc<ArcSwapOption<HeaderValue>>,
) {
    loop {
        let read = tokio::fs::read_to_string(&file).await;
        if let Some(bearer) = read.ok().and_then(|token| bearer(&token)) {
            token.store(Some(Arc::new(bearer)));
        } else {
            tracing::warn!(
                ?file,
                "the bastion's own token cannot be read; the old one stays"
            );
        }
        tokio::time::sleep(TOKEN_INTERVAL).await;
    }
}
