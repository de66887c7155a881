//! Background tasks of the process, and the wait for its workers.

use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::Result;
use arc_swap::ArcSwapOption;
use futures::FutureExt;
use http::HeaderValue;
use tokio::task::JoinSet;

use crate::authenticate::TokenReviewAuthenticator;
use crate::authorize::Reviews;
use crate::balance::LoadBalancer;
use crate::drain::Drain;
use crate::file_watch::FileWatch;
use crate::metrics::Metrics;
use crate::model::error_chain;
use crate::ready::Ready;
use crate::supervise::Supervisor;
use crate::tls::ServerTls;
use crate::trust::DynamicClientCas;

/// Interval at which the bastion's own token is read again. The kubelet rotates it before an hour
/// is over.
const TOKEN_RELOAD_INTERVAL: Duration = Duration::from_mins(1);
/// Interval at which ejections of removed endpoints are deleted. While a service has any, each of
/// its requests checks all endpoints; an ejection is kept for a minute at most, to which this adds
/// little.
const EJECTION_SWEEP_INTERVAL: Duration = Duration::from_secs(5);
/// Interval at which expired results are removed from the caches. The scan of all entries holds the
/// lock of one shard at a time, for less than a millisecond.
const PURGE_INTERVAL: Duration = Duration::from_secs(30);

/// Waits until all workers have ended. If one of them panics, or a fatal background task ends, the
/// others are stopped as well.
///
/// # Errors
/// The first failure, upon which the process must be restarted.
pub(super) async fn supervise(
    workers: Vec<JoinHandle<Result<()>>>,
    mut supervisor: Supervisor,
    drain: &Drain,
) -> Result<()> {
    let mut joins = JoinSet::new();
    for worker in workers {
        // Joining a thread blocks, so each join takes a thread of the blocking pool.
        joins.spawn_blocking(move || worker.join());
    }
    let mut outcome = Ok(());
    loop {
        let ended = tokio::select! {
            joined = joins.join_next() => match joined {
                Some(joined) => joined?.map_err(|_| anyhow::anyhow!("worker panicked")).flatten(),
                None => return outcome,
            },
            // After the first failure only the workers are awaited: the drain is forced, and tasks
            // that end because of it are not failures.
            error = supervisor.failed(), if outcome.is_ok() => Err(error.into()),
        };
        if ended.is_err() {
            drain.force();
            // Keeps the first failure, which is the cause of the others.
            outcome = outcome.and(ended);
        }
    }
}

/// Forces the end of the drain at its deadline.
pub(super) async fn enforce_drain_deadline(drain: Drain, ready: Ready, timeout: Duration) {
    drain.begun().await;
    ready.set_draining();
    tracing::info!(
        timeout_seconds = timeout.as_secs_f64(),
        "draining: not accepting connections, waiting for open requests"
    );
    tokio::time::sleep(timeout).await;
    tracing::warn!("drain timeout reached; closing the remaining requests and tunnels");
    drain.force();
}

/// Reloads changed certificates and client CAs. Invalid ones are logged, and the old ones are kept.
///
/// `again` reloads them immediately, because the previous run of the task may have ended between a
/// change and its reload.
pub(super) async fn reload_server_tls(
    tls: Arc<ServerTls>,
    cas: [DynamicClientCas; 2],
    client_ca_file: Option<std::path::PathBuf>,
    metrics: Metrics,
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
            // The reload below uses the new CAs, so their own notification is consumed.
            let replaced = read.and_then(|pem| Ok(cas[0].replace(&pem)?));
            let _ = cas[0].changed().now_or_never();
            if let Err(error) = replaced {
                tracing::error!(
                    error = error_chain(error.as_ref()),
                    path = %path.display(),
                    "cannot use the changed client CA file; keeping the old CAs"
                );
            }
        }
        match tls.reload() {
            Ok(()) => {
                tracing::info!("reloaded certificates and client CAs");
                for concern in tls.concerns() {
                    tracing::warn!("{concern}");
                }
                metrics.certificates.serving(tls.expires());
            }
            Err(error) => {
                let error = error_chain(&error);
                tracing::error!(
                    error,
                    "cannot use the changed certificate; keeping the old one"
                );
            }
        }
    }
}

/// Removes expired results from the caches at an interval.
pub(super) async fn purge_caches((tokens, reviews): (Arc<TokenReviewAuthenticator>, Arc<Reviews>)) {
    loop {
        tokio::time::sleep(PURGE_INTERVAL).await;
        tokens.purge();
        reviews.purge();
    }
}

/// Deletes the ejections of removed endpoints at an interval.
pub(super) async fn sweep_balance(balance: Arc<LoadBalancer>) {
    loop {
        tokio::time::sleep(EJECTION_SWEEP_INTERVAL).await;
        balance.sweep();
    }
}

/// Builds the `Authorization` header of a token; `None` if the token has invalid characters.
pub(super) fn bearer(token: &str) -> Option<HeaderValue> {
    let mut bearer = HeaderValue::try_from(format!("Bearer {}", token.trim())).ok()?;
    bearer.set_sensitive(true);
    Some(bearer)
}

/// Reads the bastion's own token at an interval. The old token is kept while the file cannot be
/// read.
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
                file = %file.display(),
                "cannot read the bastion's own token; keeping the old one"
            );
        }
        tokio::time::sleep(TOKEN_RELOAD_INTERVAL).await;
    }
}
