//! DNS lookups for nodes that publish a host name: cached, one at a time per name, with a deadline,
//! on dedicated threads.
//!
//! The system's resolver blocks, with unreachable servers for half a minute. On the blocking pool
//! of a runtime it would delay file reads and the shutdown of the runtime, so it runs on at most
//! [`MAX_THREADS`] threads that exit when idle.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::net::{IpAddr, ToSocketAddrs};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, timeout};

/// TTL of addresses, from the start of the lookup. Longer than the system's resolver takes when
/// several servers do not respond, so that a slow result is still cached. Nodes change their
/// addresses rarely, and connections to a stale one fail.
const SUCCESS_TTL: Duration = Duration::from_secs(30);
/// TTL of a failure. Short, so that a user who repeats a request sees that DNS works again.
const FAILURE_TTL: Duration = Duration::from_secs(2);
/// Maximum number of names that are cached or being looked up. Names come only from Node objects,
/// of which large clusters have some thousand.
const MAX_NAMES: usize = 8192;
/// Maximum number of concurrent lookups in the process; further ones are queued.
const MAX_THREADS: usize = 16;

/// Reason why a host name has no addresses.
#[derive(Clone, Debug, thiserror::Error)]
pub enum LookupError {
    /// The error of the system's resolver.
    #[error(transparent)]
    Resolver(Arc<io::Error>),
    #[error("no response within {0:?} (targets.lookupTimeout)")]
    Timeout(Duration),
    #[error("too many names are being looked up; retry later")]
    TooManyNames,
    #[error("cannot start a lookup thread: {0}")]
    Thread(#[source] Arc<io::Error>),
    /// The lookup was dropped from the queue.
    #[error("the lookup was canceled; retry it")]
    Canceled,
    #[error("the system's resolver panicked")]
    Panicked,
}

type Addresses = Result<Arc<[IpAddr]>, LookupError>;
/// `None` while the lookup runs.
type Outcome = Option<Addresses>;
type Resolver = dyn Fn(&str) -> io::Result<Vec<IpAddr>> + Send + Sync;

/// Resolves host names. Clones share the cache and the threads.
#[derive(Clone)]
pub struct Lookups(Arc<Shared>);

struct Shared {
    deadline: Duration,
    resolver: Box<Resolver>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    names: HashMap<Arc<str>, Entry>,
    /// Lookups that wait for a thread.
    queue: VecDeque<(Arc<str>, watch::Sender<Outcome>)>,
    threads: usize,
}

/// A running lookup or its result. The age counts from the start of the lookup, when DNS had the
/// records at the latest, so that a slow response is not used for longer.
struct Entry {
    started: Instant,
    outcome: watch::Receiver<Outcome>,
}

impl Entry {
    fn is_usable(&self) -> bool {
        match &*self.outcome.borrow() {
            // Running, unless the sender was dropped: then no result can arrive any more.
            None => self.outcome.has_changed().is_ok(),
            Some(Ok(_)) => self.started.elapsed() < SUCCESS_TTL,
            Some(Err(_)) => self.started.elapsed() < FAILURE_TTL,
        }
    }
}

impl std::fmt::Debug for Lookups {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Lookups")
            .field("deadline", &self.0.deadline)
            .finish_non_exhaustive()
    }
}

impl Lookups {
    /// Creates a cache in front of the system's resolver. `deadline` bounds the wait of each
    /// caller. A lookup that takes longer continues, and later callers get its result.
    pub fn new(deadline: Duration) -> Self {
        Self::with_resolver(deadline, |host| {
            Ok((host, 0)
                .to_socket_addrs()?
                .map(|address| address.ip())
                .collect())
        })
    }

    pub(super) fn with_resolver(
        deadline: Duration,
        resolver: impl Fn(&str) -> io::Result<Vec<IpAddr>> + Send + Sync + 'static,
    ) -> Self {
        Self(Arc::new(Shared {
            deadline,
            resolver: Box::new(resolver),
            state: Mutex::default(),
        }))
    }

    /// Returns the addresses of a host name in the order of the resolver.
    ///
    /// # Errors
    /// The error of the resolver, or none of its results arrived in time.
    pub async fn addresses(&self, host: &str) -> Addresses {
        let mut outcome = self.join_or_start(host)?;
        let deadline = self.0.deadline;
        match timeout(deadline, outcome.wait_for(Option::is_some)).await {
            Ok(Ok(outcome)) => outcome.clone().unwrap_or(Err(LookupError::Canceled)),
            Ok(Err(_)) => Err(LookupError::Canceled),
            Err(_) => Err(LookupError::Timeout(deadline)),
        }
    }

    /// Returns the cached or running lookup of the name, or starts one.
    ///
    /// A lookup belongs to no caller: a client that disconnects or times out does not cancel it for
    /// the others, and a name whose lookup hangs occupies one thread, however many clients wait.
    fn join_or_start(&self, host: &str) -> Result<watch::Receiver<Outcome>, LookupError> {
        let mut state = self.0.state();
        if let Some(entry) = state.names.get(host).filter(|entry| entry.is_usable()) {
            return Ok(entry.outcome.clone());
        }
        // Expired entries stay until the map is full, so that a lookup usually does not scan it.
        if state.names.len() >= MAX_NAMES {
            state.names.retain(|_, entry| entry.is_usable());
            if state.names.len() >= MAX_NAMES {
                return Err(LookupError::TooManyNames);
            }
        }
        let (sender, outcome) = watch::channel(None);
        let host = Arc::<str>::from(host);
        state.names.insert(
            Arc::clone(&host),
            Entry {
                started: Instant::now(),
                outcome: outcome.clone(),
            },
        );
        state.queue.push_back((host, sender));
        if state.threads < MAX_THREADS {
            let shared = Arc::clone(&self.0);
            let thread = std::thread::Builder::new().name("lookup".into());
            match thread.spawn(move || shared.work()) {
                Ok(_) => state.threads += 1,
                // Running threads take the lookup from the queue later. Without any, it would wait
                // forever: dropping its sender makes the entry unusable, so the next caller
                // retries.
                Err(error) if state.threads == 0 => {
                    state.queue.clear();
                    return Err(LookupError::Thread(Arc::new(error)));
                }
                Err(_) => {}
            }
        }
        Ok(outcome)
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs queued lookups until the queue is empty. Body of each thread.
    fn work(&self) {
        loop {
            let (host, sender) = {
                let mut state = self.state();
                // The count is decremented under the lock that saw the empty queue. A caller that
                // queues a lookup after that sees the lower count and starts a thread.
                let Some(next) = state.queue.pop_front() else {
                    state.threads -= 1;
                    return;
                };
                next
            };
            // A panic must not end the thread without decrementing the count: after MAX_THREADS
            // panics no lookup would run any more.
            let outcome = match catch_unwind(AssertUnwindSafe(|| (self.resolver)(&host))) {
                Ok(Ok(addresses)) => Ok(Arc::from(addresses)),
                Ok(Err(error)) => Err(LookupError::Resolver(Arc::new(error))),
                Err(_) => Err(LookupError::Panicked),
            };
            // Fails without receivers, if the entry has been removed and no caller waits.
            let _ = sender.send(Some(outcome));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::mpsc;

    use super::*;

    const DEADLINE: Duration = Duration::from_secs(5);
    const ADDRESS: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 1));

    /// Returns lookups whose resolver counts its calls and blocks each until a message is sent.
    fn blocking() -> (Lookups, Arc<AtomicUsize>, mpsc::Sender<()>) {
        let (release, released) = mpsc::channel::<()>();
        let (calls, released) = (Arc::<AtomicUsize>::default(), Mutex::new(released));
        let count = Arc::clone(&calls);
        let resolver = move |_: &str| {
            count.fetch_add(1, Ordering::Relaxed);
            let _ = released.lock().unwrap().recv();
            Ok(vec![ADDRESS])
        };
        (Lookups::with_resolver(DEADLINE, resolver), calls, release)
    }

    #[tokio::test]
    async fn callers_of_one_name_share_one_lookup() {
        let (lookups, calls, release) = blocking();
        let (first, second) = (lookups.addresses("a"), lookups.addresses("a"));
        release.send(()).unwrap();
        let (first, second) = tokio::join!(first, second);
        assert_eq!(
            (&*first.unwrap(), &*second.unwrap()),
            (&[ADDRESS][..], &[ADDRESS][..])
        );
        assert_eq!(
            &*lookups.addresses("a").await.unwrap(),
            [ADDRESS],
            "cached: a second lookup would block"
        );
        assert_eq!(calls.load(Ordering::Relaxed), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn failures_expire_before_addresses() {
        let calls = Arc::<AtomicUsize>::default();
        let count = Arc::clone(&calls);
        let lookups = Lookups::with_resolver(DEADLINE, move |host| {
            count.fetch_add(1, Ordering::Relaxed);
            if host == "bad" {
                Err(io::Error::other("no such host"))
            } else {
                Ok(vec![ADDRESS])
            }
        });
        // TTLs of CONFORMANCE C35. Polls without a deadline: paused time would advance past it
        // while the thread works.
        let look_up = |host| {
            let outcome = lookups.join_or_start(host).unwrap();
            while outcome.borrow().is_none() {
                std::thread::yield_now();
            }
        };
        for (host, ttl) in [("good", SUCCESS_TTL), ("bad", FAILURE_TTL)] {
            let before = calls.load(Ordering::Relaxed);
            look_up(host);
            tokio::time::advance(ttl / 2).await;
            look_up(host);
            assert_eq!(calls.load(Ordering::Relaxed), before + 1, "{host}");
            tokio::time::advance(ttl / 2).await;
            look_up(host);
            assert_eq!(calls.load(Ordering::Relaxed), before + 2, "{host}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn hung_resolver_times_out_on_bounded_number_of_threads() {
        // A lookup without a result in time is an error (CONFORMANCE C35).
        let (lookups, _calls, _release) = blocking();
        let names: Vec<_> = (0..3 * MAX_THREADS).map(|name| name.to_string()).collect();
        let results =
            futures::future::join_all(names.iter().map(|name| lookups.addresses(name))).await;
        for result in results {
            let error = result.unwrap_err().to_string();
            assert!(error.contains("no response within 5s"), "{error}");
        }
        assert_eq!(lookups.0.state().threads, MAX_THREADS);
        // Later callers join the hung lookups.
        assert!(lookups.addresses("0").await.is_err());
        let state = lookups.0.state();
        assert_eq!(
            (state.threads, state.names.len()),
            (MAX_THREADS, names.len())
        );
    }

    #[tokio::test]
    async fn resolver_panic_releases_its_thread() {
        let lookups = Lookups::with_resolver(DEADLINE, |host| {
            assert_ne!(host, "bad", "the resolver panics");
            Ok(vec![ADDRESS])
        });
        for _ in 0..2 * MAX_THREADS {
            lookups.0.state().names.clear();
            let error = lookups.addresses("bad").await.unwrap_err();
            assert!(matches!(error, LookupError::Panicked), "{error}");
        }
        assert_eq!(&*lookups.addresses("good").await.unwrap(), [ADDRESS]);
    }

    #[tokio::test]
    async fn bounds_number_of_names() {
        let (lookups, _calls, _release) = blocking();
        for name in 0..MAX_NAMES {
            lookups.join_or_start(&name.to_string()).unwrap();
        }
        assert!(matches!(
            lookups.join_or_start("one more"),
            Err(LookupError::TooManyNames)
        ));
        assert!(
            lookups.join_or_start("0").is_ok(),
            "a running lookup is joined"
        );
    }

    #[tokio::test]
    async fn queries_system_resolver() {
        let addresses = Lookups::new(DEADLINE).addresses("localhost").await.unwrap();
        assert!(
            !addresses.is_empty() && addresses.iter().all(IpAddr::is_loopback),
            "{addresses:?}"
        );
    }
}
