//! Writes of the elected replica: status, finalizers and events.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use futures::future::BoxFuture;
use futures::stream;
use jiff::Timestamp;
use kube::Client;
use kube::api::{Api, Patch as ApiPatch, PatchParams};
use tokio::sync::{Mutex, watch};
use tokio::time::{Instant, sleep_until, timeout};

use super::assign::Outcome;
use super::controller::Results;
use super::events::{Events, Notice};
use super::service::Service;
use super::status::{self, Change, Patch, Settings};
use crate::cluster::ObjectKey;
use crate::model::error_chain;
use crate::ready::Ready;

/// Name of the bastion as an owner of fields (server-side apply).
const FIELD_MANAGER: &str = "kube-bastion-load-balancer";
/// Condition of `/readyz` while a write fails.
const CONDITION: &str = "load-balancer-status";
/// Maximum number of Services that are written at the same time.
const MAX_CONCURRENT: usize = 4;
/// Maximum time of a request.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Time after which a failed write is tried again, doubled up to [`MAX_BACKOFF`].
const MIN_BACKOFF: Duration = Duration::from_secs(1);
const MAX_BACKOFF: Duration = Duration::from_mins(2);

/// Requests of the writer.
pub trait Requests: Send + Sync + 'static {
    /// Sends a patch for the subresource `status`.
    fn patch<'a>(
        &'a self,
        key: &'a ObjectKey,
        patch: &'a Patch,
    ) -> BoxFuture<'a, Result<(), kube::Error>>;
    /// Sends an event, best effort.
    fn event<'a>(&'a self, service: &'a Service, notice: &'a Notice) -> BoxFuture<'a, ()>;
}

/// Requests to the Kubernetes API.
#[expect(missing_debug_implementations, reason = "kube's client has no Debug")]
pub struct ApiRequests {
    client: Client,
    events: Events,
}

impl ApiRequests {
    /// `instance` is the name of this replica in events.
    pub fn new(client: Client, instance: &str) -> Self {
        Self {
            events: Events::new(client.clone(), instance),
            client,
        }
    }
}

impl Requests for ApiRequests {
    fn patch<'a>(
        &'a self,
        key: &'a ObjectKey,
        patch: &'a Patch,
    ) -> BoxFuture<'a, Result<(), kube::Error>> {
        let api = Api::<Service>::namespaced(self.client.clone(), &key.namespace);
        Box::pin(async move {
            match patch {
                Patch::Status(status) => {
                    let parameters = PatchParams::apply(FIELD_MANAGER).force();
                    let status = ApiPatch::Apply(status);
                    api.patch_status(&key.name, &parameters, &status).await?;
                }
                Patch::Finalizers(finalizers) => {
                    let parameters = PatchParams::default();
                    let finalizers = ApiPatch::Merge(finalizers);
                    api.patch_status(&key.name, &parameters, &finalizers)
                        .await?;
                }
            }
            Ok(())
        })
    }

    fn event<'a>(&'a self, service: &'a Service, notice: &'a Notice) -> BoxFuture<'a, ()> {
        Box::pin(self.events.send(service, notice))
    }
}

/// Writes what differs from the API, while this replica is elected.
#[expect(missing_debug_implementations, reason = "its requests have no Debug")]
pub struct Writer<R> {
    settings: Settings,
    requests: R,
    results: watch::Receiver<Arc<Results>>,
    is_leader: watch::Receiver<bool>,
    ready: Ready,
}

/// Last write for a Service.
#[derive(Clone, Debug)]
struct Attempt {
    /// Version of the Service, and the outcome, for which it was written.
    version: Option<String>,
    outcome: Option<Outcome>,
    failed: Option<Failed>,
}

#[derive(Clone, Debug)]
struct Failed {
    backoff: Duration,
    retry: Instant,
    error: String,
}

/// A write that is due.
struct Write {
    key: ObjectKey,
    service: Arc<Service>,
    outcome: Option<Outcome>,
    change: Change,
}

impl<R: Requests> Writer<R> {
    pub fn new(
        settings: Settings,
        requests: R,
        results: watch::Receiver<Arc<Results>>,
        is_leader: watch::Receiver<bool>,
        ready: Ready,
    ) -> Arc<Self> {
        Arc::new(Self {
            settings,
            requests,
            results,
            is_leader,
            ready,
        })
    }

    /// Writes until the process ends.
    pub async fn run(self: Arc<Self>) {
        let (mut results, mut is_leader) = (self.results.clone(), self.is_leader.clone());
        loop {
            // Closed only with the process.
            if is_leader.wait_for(|leads| *leads).await.is_err() {
                return std::future::pending().await;
            }
            self.write_while_leading(&mut results, &mut is_leader).await;
            self.ready.clear_degraded(CONDITION);
        }
    }

    async fn write_while_leading(
        &self,
        results: &mut watch::Receiver<Arc<Results>>,
        is_leader: &mut watch::Receiver<bool>,
    ) {
        let attempts = Mutex::new(HashMap::new());
        while *is_leader.borrow_and_update() {
            let current = Arc::clone(&results.borrow_and_update());
            let retry = self.pass(&current, &attempts).await;
            let retry = async {
                match retry {
                    Some(retry) => sleep_until(retry).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                _ = results.changed() => {}
                _ = is_leader.changed() => {}
                () = retry => {}
            }
        }
    }

    /// Sends all writes that are due. Returns the time of the next retry.
    async fn pass(
        &self,
        results: &Results,
        attempts: &Mutex<HashMap<ObjectKey, Attempt>>,
    ) -> Option<Instant> {
        let due = {
            let mut attempts = attempts.lock().await;
            attempts.retain(|key, _| {
                results.services.contains_key(key) || results.opening.contains(key)
            });
            self.due(results, &mut attempts)
        };
        let writes = stream::iter(due);
        writes
            .for_each_concurrent(MAX_CONCURRENT, async |write| {
                let mut is_leader = self.is_leader.clone();
                let written = tokio::select! {
                    biased;
                    // Another replica may write as soon as this one is not elected any more.
                    _ = is_leader.wait_for(|leads| !leads) => None,
                    written = self.write(&write) => Some(written),
                };
                if let Some(written) = written {
                    let mut attempts = attempts.lock().await;
                    let previous = attempts.get(&write.key).cloned();
                    let attempt = attempt(&write, written, previous.as_ref());
                    attempts.insert(write.key, attempt);
                }
            })
            .await;
        self.report(&*attempts.lock().await)
    }

    /// Returns the writes that are due, and forgets failed ones that are not needed any more.
    fn due(&self, results: &Results, attempts: &mut HashMap<ObjectKey, Attempt>) -> Vec<Write> {
        let now = Instant::now();
        let mut due = Vec::new();
        for (key, (service, outcome)) in &results.services {
            let change =
                status::change(service, outcome.as_ref(), &self.settings, Timestamp::now());
            let Some(change) = change else {
                let failed = attempts.get(key).is_some_and(|it| it.failed.is_some());
                if failed {
                    attempts.remove(key);
                }
                continue;
            };
            let waits = attempts
                .get(key)
                .is_some_and(|attempt| match &attempt.failed {
                    Some(failed) => failed.retry > now,
                    // The watch has not delivered the result yet.
                    None => {
                        attempt.version == service.metadata.resource_version
                            && attempt.outcome == *outcome
                    }
                });
            if !waits {
                due.push(Write {
                    key: key.clone(),
                    service: Arc::clone(service),
                    outcome: outcome.clone(),
                    change,
                });
            }
        }
        due
    }

    async fn write(&self, write: &Write) -> Result<(), String> {
        let (service, change) = (&*write.service, &write.change);
        let sent = timeout(TIMEOUT, self.requests.patch(&write.key, &change.patch)).await;
        match sent {
            Ok(Ok(())) => {}
            // Deleted meanwhile, which the watch delivers as well.
            Ok(Err(kube::Error::Api(status))) if status.code == 404 => return Ok(()),
            Ok(Err(error)) => return Err(error_chain(&error)),
            Err(_) => return Err(format!("the API server did not respond within {TIMEOUT:?}")),
        }
        // After the write, so that a write that is repeated repeats no event.
        for notice in &change.notices {
            self.requests.event(service, notice).await;
        }
        Ok(())
    }

    /// Reports failures in `/readyz`. Returns the time of the next retry.
    fn report(&self, attempts: &HashMap<ObjectKey, Attempt>) -> Option<Instant> {
        let failed = attempts.iter();
        let failed = failed.filter_map(|(key, attempt)| Some((key, attempt.failed.as_ref()?)));
        let mut retry = None;
        let mut first = None;
        for (key, failed) in failed {
            retry = Some(retry.map_or(failed.retry, |retry: Instant| retry.min(failed.retry)));
            first = first.or(Some((key, failed)));
        }
        match first {
            Some((key, failed)) => self.ready.set_degraded(
                CONDITION,
                format!(
                    "cannot write the status of the Service {key}: {}",
                    failed.error
                ),
            ),
            None => self.ready.clear_degraded(CONDITION),
        }
        retry
    }
}

/// Records a write and, if it failed, the time of the next one.
fn attempt(write: &Write, written: Result<(), String>, previous: Option<&Attempt>) -> Attempt {
    let failed = written.err().map(|error| {
        let previous = previous.and_then(|previous| previous.failed.as_ref());
        let backoff = previous.map_or(MIN_BACKOFF, |failed| (failed.backoff * 2).min(MAX_BACKOFF));
        if previous.is_none_or(|failed| failed.error != error) {
            tracing::warn!(
                service = %write.key,
                error,
                "cannot write the status of a load balancer; retrying"
            );
        }
        // Jitter, because many Services fail by the same cause.
        let delay = backoff.mul_f64(0.5 + fastrand::f64() / 2.0);
        Failed {
            backoff,
            retry: Instant::now() + delay,
            error,
        }
    });
    Attempt {
        version: write.service.metadata.resource_version.clone(),
        outcome: write.outcome.clone(),
        failed,
    }
}

#[cfg(test)]
mod tests;
