//! Election of the replica that writes to the API, by a Lease and the rules of client-go's leader
//! election.
//!
//! A Lease is valid for its duration since this replica saw it change, by the local clock: times in
//! the Lease are those of another machine, and are never compared. The leader stops writing before
//! others may take the Lease, because the renew deadline is shorter than the duration.

use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use kube::Client;
use kube::api::{Api, PostParams};
use tokio::sync::{Mutex, watch};
use tokio::time::{Instant, sleep, timeout};

use crate::drain::Drain;
use crate::model::error_chain;
use crate::telemetry::LogLimit;

/// Time for which a Lease is valid without a change. The defaults are client-go's.
const LEASE_DURATION: Duration = Duration::from_secs(15);
/// Time after its last renewal at which a leader gives up.
const RENEW_DEADLINE: Duration = Duration::from_secs(10);
/// Interval of attempts.
const RETRY_PERIOD: Duration = Duration::from_secs(2);
/// Maximum of the factor by which the interval of candidates is extended at random.
const JITTER: f64 = 1.2;
/// Maximum time to release the Lease at the end of the process.
const RELEASE_TIMEOUT: Duration = Duration::from_secs(2);
/// Annotation of the Lease with the class of the holder.
const CLASS: &str = "kube-bastion.dev/load-balancer-class";

/// Log lines about attempts that failed.
static FAILED: LogLimit = LogLimit::new(2);

/// Storage of the Lease.
pub trait Store: Send + Sync + 'static {
    /// Reads the Lease. `None` if it does not exist.
    fn get(&self) -> BoxFuture<'_, Result<Option<Lease>, kube::Error>>;
    /// Creates the Lease, or replaces the version that was read.
    fn put(&self, lease: Lease) -> BoxFuture<'_, Result<Lease, kube::Error>>;
}

/// Lease in the Kubernetes API.
#[expect(missing_debug_implementations, reason = "kube's client has no Debug")]
pub struct ApiStore {
    api: Api<Lease>,
    namespace: String,
    name: String,
}

impl ApiStore {
    pub fn new(client: Client, namespace: &str, name: &str) -> Self {
        Self {
            api: Api::namespaced(client, namespace),
            namespace: namespace.to_owned(),
            name: name.to_owned(),
        }
    }
}

impl Store for ApiStore {
    fn get(&self) -> BoxFuture<'_, Result<Option<Lease>, kube::Error>> {
        Box::pin(self.api.get_opt(&self.name))
    }

    fn put(&self, mut lease: Lease) -> BoxFuture<'_, Result<Lease, kube::Error>> {
        let exists = lease.metadata.resource_version.is_some();
        lease.metadata.name = Some(self.name.clone());
        lease.metadata.namespace = Some(self.namespace.clone());
        Box::pin(async move {
            let parameters = PostParams::default();
            if exists {
                self.api.replace(&self.name, &parameters, &lease).await
            } else {
                self.api.create(&parameters, &lease).await
            }
        })
    }
}

/// Takes part in the election.
#[expect(missing_debug_implementations, reason = "it has a trait object")]
pub struct Elector<S> {
    store: S,
    identity: String,
    class: String,
    seen: Mutex<Seen>,
    is_leader: watch::Sender<bool>,
}

/// The Lease as this replica saw it last.
#[derive(Clone, Debug)]
struct Seen {
    lease: Lease,
    /// Time at which it was seen to change.
    since: Instant,
}

impl Seen {
    fn spec(&self) -> LeaseSpec {
        self.lease.spec.clone().unwrap_or_default()
    }

    fn holder(&self) -> Option<&str> {
        let holder = self.lease.spec.as_ref()?.holder_identity.as_deref();
        holder.filter(|holder| !holder.is_empty())
    }

    /// Returns the class of the holder, if it is another one.
    fn other_class(&self, class: &str) -> Option<&str> {
        let annotations = self.lease.metadata.annotations.as_ref()?;
        let held = annotations.get(CLASS)?;
        (held != class).then_some(held)
    }

    fn is_valid(&self, now: Instant) -> bool {
        let seconds = self.spec().lease_duration_seconds.unwrap_or_default();
        let duration = Duration::from_secs(u64::try_from(seconds).unwrap_or_default());
        now < self.since + duration
    }
}

impl<S: Store> Elector<S> {
    /// `identity` is the name of this replica. `class` is that of its Services: the leader of another
    /// class writes nothing for them.
    pub fn new(store: S, identity: &str, class: &str) -> Arc<Self> {
        Arc::new(Self {
            store,
            identity: identity.to_owned(),
            class: class.to_owned(),
            seen: Mutex::new(Seen {
                lease: Lease::default(),
                since: Instant::now(),
            }),
            is_leader: watch::Sender::new(false),
        })
    }

    /// Follows whether this replica is the leader.
    pub fn is_leader(&self) -> watch::Receiver<bool> {
        self.is_leader.subscribe()
    }

    /// Takes and renews the Lease until the drain begins, and then releases it.
    pub async fn run(self: Arc<Self>, drain: Drain) {
        tokio::select! {
            () = self.elect() => {}
            () = drain.begun() => self.release().await,
        }
    }

    async fn elect(&self) {
        // A restart of the task begins as a candidate.
        self.lead(false);
        loop {
            let started = Instant::now();
            if self.try_lead().await {
                self.lead(true);
                self.renew(started).await;
                self.lead(false);
            }
            sleep(RETRY_PERIOD.mul_f64(1.0 + fastrand::f64() * JITTER)).await;
        }
    }

    /// Renews the Lease until the deadline passes without success. `renewed` is the time of the last
    /// renewal.
    async fn renew(&self, mut renewed: Instant) {
        while renewed.elapsed() < RENEW_DEADLINE {
            let remaining = RENEW_DEADLINE.saturating_sub(renewed.elapsed());
            sleep(RETRY_PERIOD.min(remaining)).await;
            // The Lease counts from before the request, which may have been stored immediately.
            let started = Instant::now();
            let remaining = RENEW_DEADLINE.saturating_sub(renewed.elapsed());
            if timeout(remaining, self.try_lead()).await == Ok(true) {
                renewed = started;
            } else if self.is_held_by_another().await {
                return;
            }
        }
    }

    async fn is_held_by_another(&self) -> bool {
        let seen = self.seen.lock().await;
        seen.holder().is_some_and(|holder| holder != self.identity)
    }

    fn lead(&self, leads: bool) {
        let changed = self.is_leader.send_replace(leads) != leads;
        if changed && leads {
            tracing::info!(
                identity = self.identity,
                "elected; writing the status of load balancers"
            );
        } else if changed {
            tracing::info!(
                identity = self.identity,
                "no longer the leader; stopped writing the status of load balancers"
            );
        }
    }

    /// Reads the Lease, and takes or renews it if it is free, expired or held by this replica.
    /// Returns true if this replica has it.
    async fn try_lead(&self) -> bool {
        let mut seen = self.seen.lock().await;
        match timeout(RENEW_DEADLINE, self.attempt(&mut seen)).await {
            Ok(Ok(leads)) => leads,
            // Another replica was faster, which the next attempt reads.
            Ok(Err(kube::Error::Api(status))) if status.code == 409 => false,
            Ok(Err(error)) => {
                if FAILED.permits() {
                    let error = error_chain(&error);
                    tracing::warn!(
                        error,
                        "cannot take part in the election (loadBalancer.lease)"
                    );
                }
                false
            }
            Err(_) => false,
        }
    }

    async fn attempt(&self, seen: &mut Seen) -> Result<bool, kube::Error> {
        let current = self.store.get().await?.unwrap_or_default();
        if current.spec != seen.lease.spec {
            seen.since = Instant::now();
        }
        seen.lease = current;
        let is_own = seen.holder() == Some(&*self.identity);
        if seen.holder().is_some() && !is_own && seen.is_valid(Instant::now()) {
            if let Some(class) = seen.other_class(&self.class)
                && FAILED.permits()
            {
                tracing::error!(
                    class,
                    "the Lease is that of another class, so no status is written: give each class a \
                     Lease of its own (loadBalancer.lease.name)"
                );
            }
            return Ok(false);
        }
        let previous = seen.spec();
        let now = Some(MicroTime(Timestamp::now()));
        let transitions = previous.lease_transitions.unwrap_or_default();
        let exists = seen.lease.metadata.resource_version.is_some();
        let spec = LeaseSpec {
            holder_identity: Some(self.identity.clone()),
            lease_duration_seconds: i32::try_from(LEASE_DURATION.as_secs()).ok(),
            renew_time: now.clone(),
            acquire_time: if is_own { previous.acquire_time } else { now },
            lease_transitions: Some(transitions.saturating_add(i32::from(exists && !is_own))),
            ..LeaseSpec::default()
        };
        self.write(seen, spec).await?;
        Ok(true)
    }

    /// Gives the Lease back, so that another replica can take it immediately.
    pub async fn release(&self) {
        self.lead(false);
        let released = timeout(RELEASE_TIMEOUT, async {
            let mut seen = self.seen.lock().await;
            if seen.holder() != Some(&*self.identity) {
                return Ok(());
            }
            let now = Some(MicroTime(Timestamp::now()));
            let spec = LeaseSpec {
                // The API server requires a duration of at least a second.
                lease_duration_seconds: Some(1),
                renew_time: now.clone(),
                acquire_time: now,
                lease_transitions: seen.spec().lease_transitions,
                holder_identity: Some(String::new()),
                ..LeaseSpec::default()
            };
            self.write(&mut seen, spec).await
        });
        match released.await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                let error = error_chain(&error);
                tracing::warn!(error, "cannot release the Lease; it expires on its own");
            }
            Err(_) => tracing::warn!("cannot release the Lease in time; it expires on its own"),
        }
    }

    async fn write(&self, seen: &mut Seen, spec: LeaseSpec) -> Result<(), kube::Error> {
        let mut metadata = seen.lease.metadata.clone();
        let annotations = metadata.annotations.get_or_insert_default();
        annotations.insert(CLASS.to_owned(), self.class.clone());
        let lease = Lease {
            metadata,
            spec: Some(spec),
        };
        seen.lease = self.store.put(lease).await?;
        seen.since = Instant::now();
        Ok(())
    }
}

/// Returns a name for this replica: the host name, which is that of the pod, and random digits.
pub fn default_identity() -> String {
    #[cfg(unix)]
    let host = nix::unistd::gethostname().ok();
    #[cfg(not(unix))]
    let host: Option<std::ffi::OsString> = None;
    let host = host.map(|host| host.to_string_lossy().into_owned());
    let host = host.unwrap_or_else(|| "kube-bastion".to_owned());
    format!("{host}_{:08x}", fastrand::u32(..))
}

#[cfg(test)]
mod tests;
