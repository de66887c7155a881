use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex as StdMutex};

use futures::FutureExt;
use kube::core::Status;

use super::*;
use crate::testing::eventually;

const WAIT: Duration = Duration::from_hours(1);

/// API server with one Lease, which checks versions.
#[derive(Clone, Default)]
struct Server(Arc<Shared>);

#[derive(Default)]
struct Shared {
    lease: StdMutex<Option<Lease>>,
    writes: AtomicUsize,
    is_down: AtomicBool,
}

fn error(code: u16) -> kube::Error {
    let status = Status::failure("refused", "Refused").with_code(code);
    kube::Error::Api(Box::new(status))
}

impl Server {
    fn is_up(&self) -> Result<(), kube::Error> {
        if self.0.is_down.load(Ordering::Relaxed) {
            Err(error(503))
        } else {
            Ok(())
        }
    }

    fn set_down(&self, is_down: bool) {
        self.0.is_down.store(is_down, Ordering::Relaxed);
    }

    fn holder(&self) -> String {
        let lease = self.0.lease.lock().unwrap();
        let spec = lease.as_ref().and_then(|lease| lease.spec.clone());
        spec.unwrap_or_default().holder_identity.unwrap_or_default()
    }

    fn transitions(&self) -> i32 {
        let lease = self.0.lease.lock().unwrap();
        lease
            .as_ref()
            .unwrap()
            .spec
            .as_ref()
            .unwrap()
            .lease_transitions
            .unwrap()
    }
}

impl Store for Server {
    fn get(&self) -> BoxFuture<'_, Result<Option<Lease>, kube::Error>> {
        let read = self.is_up().map(|()| self.0.lease.lock().unwrap().clone());
        async { read }.boxed()
    }

    fn put(&self, mut new: Lease) -> BoxFuture<'_, Result<Lease, kube::Error>> {
        let written = self.is_up().and_then(|()| {
            let mut lease = self.0.lease.lock().unwrap();
            let version = lease
                .as_ref()
                .and_then(|lease| lease.metadata.resource_version.clone());
            if version != new.metadata.resource_version {
                return Err(error(409));
            }
            let writes = self.0.writes.fetch_add(1, Ordering::Relaxed) + 1;
            new.metadata.resource_version = Some(writes.to_string());
            *lease = Some(new.clone());
            Ok(new)
        });
        async { written }.boxed()
    }
}

struct Replica {
    elector: Arc<Elector<Server>>,
    drain: Drain,
    task: tokio::task::JoinHandle<()>,
}

fn start(server: &Server, identity: &str) -> Replica {
    let elector = Elector::new(server.clone(), identity, "a/b");
    let drain = Drain::default();
    let task = tokio::spawn(Arc::clone(&elector).run(drain.clone()));
    Replica {
        elector,
        drain,
        task,
    }
}

impl Replica {
    fn leads(&self) -> bool {
        *self.elector.is_leader.borrow()
    }
}

#[tokio::test(start_paused = true)]
async fn elects_one_replica_which_renews() {
    let server = Server::default();
    let first = start(&server, "first");
    eventually(WAIT, || first.leads()).await;
    let second = start(&server, "second");
    let writes = || server.0.writes.load(Ordering::Relaxed);
    for round in 0..100 {
        let before = writes();
        eventually(WAIT, || writes() > before).await;
        assert!(first.leads() && !second.leads(), "round {round}");
    }
    assert_eq!((server.holder(), server.transitions()), ("first".into(), 0));
}

#[tokio::test(start_paused = true)]
async fn takes_over_from_a_killed_replica_when_its_lease_expires() {
    let server = Server::default();
    let first = start(&server, "first");
    eventually(WAIT, || first.leads()).await;
    let second = start(&server, "second");
    sleep(LEASE_DURATION * 2).await;
    first.task.abort();
    let killed = Instant::now();
    eventually(WAIT, || second.leads()).await;
    // The renewals of the killed replica are at most a retry period old.
    assert!(killed.elapsed() + RETRY_PERIOD * 2 > LEASE_DURATION);
    // The other one looks at it at most an interval after it was renewed, and after it has expired.
    let interval = RETRY_PERIOD.mul_f64(1.0 + JITTER);
    assert!(killed.elapsed() <= LEASE_DURATION + interval * 2);
    assert_eq!(
        (server.holder(), server.transitions()),
        ("second".into(), 1)
    );
}

#[tokio::test(start_paused = true)]
async fn lease_has_the_class_of_its_holder() {
    let server = Server::default();
    let first = start(&server, "first");
    eventually(WAIT, || first.leads()).await;
    let seen = Seen {
        lease: server.0.lease.lock().unwrap().clone().unwrap(),
        since: Instant::now(),
    };
    assert_eq!(seen.other_class("a/b"), None);
    assert_eq!(seen.other_class("a/c"), Some("a/b"));
}

#[tokio::test(start_paused = true)]
async fn never_takes_a_lease_that_changes_whatever_its_times_are() {
    let server = Server::default();
    let long_ago = Some(MicroTime(Timestamp::UNIX_EPOCH));
    // Started beside a holder whose clock is decades behind.
    let mut second = None;
    for transitions in 0..20 {
        let version = server.0.lease.lock().unwrap().clone().unwrap_or_default();
        let spec = LeaseSpec {
            holder_identity: Some("skewed".into()),
            lease_duration_seconds: Some(15),
            renew_time: long_ago.clone(),
            lease_transitions: Some(transitions),
            ..LeaseSpec::default()
        };
        let lease = Lease {
            metadata: version.metadata,
            spec: Some(spec),
        };
        server.put(lease).await.unwrap();
        let second = second.get_or_insert_with(|| start(&server, "second"));
        sleep(LEASE_DURATION.saturating_sub(RETRY_PERIOD * 4)).await;
        assert!(!second.leads(), "after {transitions} changes");
    }
    let second = second.unwrap();
    eventually(WAIT, || second.leads()).await;
}

#[tokio::test(start_paused = true)]
async fn takes_a_lease_with_the_maximum_of_transitions() {
    let server = Server::default();
    let lease = Lease {
        spec: Some(LeaseSpec {
            holder_identity: Some("gone".into()),
            lease_transitions: Some(i32::MAX),
            ..LeaseSpec::default()
        }),
        ..Lease::default()
    };
    server.put(lease).await.unwrap();
    let first = start(&server, "first");
    eventually(WAIT, || first.leads()).await;
    assert_eq!(server.transitions(), i32::MAX);
}

#[tokio::test(start_paused = true)]
async fn leader_gives_up_before_its_lease_expires() {
    let server = Server::default();
    let first = start(&server, "first");
    eventually(WAIT, || first.leads()).await;
    server.set_down(true);
    let started = Instant::now();
    eventually(WAIT, || !first.leads()).await;
    assert!(started.elapsed() < LEASE_DURATION);
    server.set_down(false);
    eventually(WAIT, || first.leads()).await;
}

#[tokio::test(start_paused = true)]
async fn leader_gives_up_when_another_replica_has_the_lease() {
    let server = Server::default();
    let first = start(&server, "first");
    eventually(WAIT, || first.leads()).await;
    let mut stolen = server.0.lease.lock().unwrap().clone().unwrap();
    stolen.spec.as_mut().unwrap().holder_identity = Some("thief".into());
    server.put(stolen).await.unwrap();
    let started = Instant::now();
    eventually(WAIT, || !first.leads()).await;
    assert!(started.elapsed() < RENEW_DEADLINE);
}

#[tokio::test(start_paused = true)]
async fn releases_the_lease_when_the_drain_begins() {
    let server = Server::default();
    let first = start(&server, "first");
    eventually(WAIT, || first.leads()).await;
    let second = start(&server, "second");
    sleep(RETRY_PERIOD).await;
    first.drain.begin();
    let started = Instant::now();
    eventually(WAIT, || second.leads()).await;
    assert!(started.elapsed() + RETRY_PERIOD * 2 < LEASE_DURATION);
    assert!(!first.leads());
    // A release of what another replica holds has no effect.
    first.elector.release().await;
    assert_eq!(server.holder(), "second");
}

#[test]
fn identities_of_replicas_on_one_host_differ() {
    assert_ne!(default_identity(), default_identity());
}
