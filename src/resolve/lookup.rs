//! Look-ups of the host names of nodes: cached for a moment, one at a time per name, with a
//! deadline and on threads of their own.
//!
//! The system's resolver blocks, and may do so for half a minute. On a runtime's blocking pool it
//! would hold up file reads of others and the end of the runtime, so it runs on at most
//! [`MAX_THREADS`] threads that end when idle.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::net::{IpAddr, ToSocketAddrs};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, timeout};

/// TTL of an answer, from the question: longer than the system's resolver takes with several
/// servers that do not answer. Nodes change their addresses rarely, and a changed one fails to
/// connect.
const TTL: Duration = Duration::from_secs(30);
/// TTL of a failure: short, so that a repaired DNS is noticed by the next request of a person.
const FAILURE_TTL: Duration = Duration::from_secs(2);
/// Names remembered or being looked up. They come from Node objects alone, of which large clusters
/// have some thousand.
const MAX_NAMES: usize = 8192;
/// Look-ups at once in the whole process; further ones wait.
const MAX_THREADS: usize = 16;

/// An answer of the resolver, or the text of its error.
type Answer = Result<Arc<[IpAddr]>, Arc<str>>;
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
    /// Look-ups that wait for a thread.
    queue: VecDeque<(Arc<str>, watch::Sender<Option<Answer>>)>,
    threads: usize,
}

/// A look-up that runs, or its answer. The age counts from the question, so that an answer that
/// came late is not used for longer.
struct Entry {
    asked: Instant,
    answer: watch::Receiver<Option<Answer>>,
}

impl Entry {
    fn is_usable(&self) -> bool {
        match &*self.answer.borrow() {
            // Still running, unless its thread broke.
            None => self.answer.has_changed().is_ok(),
            Some(Ok(_)) => self.asked.elapsed() < TTL,
            Some(Err(_)) => self.asked.elapsed() < FAILURE_TTL,
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
    /// Asks the system's resolver. `deadline` bounds the wait of each caller; a look-up that takes
    /// longer goes on and is found by later callers.
    pub fn new(deadline: Duration) -> Self {
        Self::with_resolver(deadline, |host| {
            Ok((host, 0)
                .to_socket_addrs()?
                .map(|address| address.ip())
                .collect())
        })
    }

    fn with_resolver(
        deadline: Duration,
        resolver: impl Fn(&str) -> io::Result<Vec<IpAddr>> + Send + Sync + 'static,
    ) -> Self {
        Self(Arc::new(Shared {
            deadline,
            resolver: Box::new(resolver),
            state: Mutex::default(),
        }))
    }

    /// The addresses of a host name, in the resolver's order.
    ///
    /// # Errors
    /// The text of the resolver's error, or that there was no answer in time.
    pub async fn addresses(&self, host: &str) -> Answer {
        let mut answer = self.ask(host)?;
        let deadline = self.0.deadline;
        match timeout(deadline, answer.wait_for(Option::is_some)).await {
            Ok(Ok(answer)) => answer.clone().unwrap_or_else(|| Err("no answer".into())),
            Ok(Err(_)) => Err("the look-up broke off".into()),
            Err(_) => Err(format!("no answer within {deadline:?} (targets.lookupTimeout)").into()),
        }
    }

    /// Joins the look-up of the name that runs or is still good, else starts one.
    fn ask(&self, host: &str) -> Result<watch::Receiver<Option<Answer>>, Arc<str>> {
        let mut state = self.0.state();
        if let Some(entry) = state.names.get(host).filter(|entry| entry.is_usable()) {
            return Ok(entry.answer.clone());
        }
        if state.names.len() >= MAX_NAMES {
            state.names.retain(|_, entry| entry.is_usable());
            if state.names.len() >= MAX_NAMES {
                return Err("too many names are being looked up".into());
            }
        }
        let (sender, answer) = watch::channel(None);
        let host = Arc::<str>::from(host);
        state.names.insert(
            Arc::clone(&host),
            Entry {
                asked: Instant::now(),
                answer: answer.clone(),
            },
        );
        state.queue.push_back((host, sender));
        if state.threads < MAX_THREADS {
            let shared = Arc::clone(&self.0);
            let thread = std::thread::Builder::new().name("lookup".into());
            match thread.spawn(move || shared.work()) {
                Ok(_) => state.threads += 1,
                // If other threads run, they take the look-up; without any it would wait forever.
                Err(error) if state.threads == 0 => {
                    state.queue.clear();
                    return Err(format!("no thread for it: {error}").into());
                }
                Err(_) => {}
            }
        }
        Ok(answer)
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Looks up what waits, until nothing does.
    fn work(&self) {
        loop {
            let (host, sender) = {
                let mut state = self.state();
                let Some(next) = state.queue.pop_front() else {
                    state.threads -= 1;
                    return;
                };
                next
            };
            // A panic must not cost the thread its place in the count: after some there would be
            // none left.
            let answer = match catch_unwind(AssertUnwindSafe(|| (self.resolver)(&host))) {
                Ok(found) => found
                    .map(Arc::from)
                    .map_err(|error| Arc::from(error.to_string())),
                Err(_) => Err("the resolver panicked".into()),
            };
            // The entry holds a receiver, unless it was taken out meanwhile.
            let _ = sender.send(Some(answer));
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

    /// A resolver that counts the questions, and answers once each was let go.
    fn held() -> (Lookups, Arc<AtomicUsize>, mpsc::Sender<()>) {
        let (go, wait) = mpsc::channel::<()>();
        let (asked, wait) = (Arc::<AtomicUsize>::default(), Mutex::new(wait));
        let count = Arc::clone(&asked);
        let resolver = move |_: &str| {
            count.fetch_add(1, Ordering::Relaxed);
            let _ = wait.lock().unwrap().recv();
            Ok(vec![ADDRESS])
        };
        (Lookups::with_resolver(DEADLINE, resolver), asked, go)
    }

    #[tokio::test]
    async fn callers_of_one_name_share_one_lookup_and_its_answer() {
        let (lookups, asked, go) = held();
        let (first, second) = (lookups.addresses("a"), lookups.addresses("a"));
        go.send(()).unwrap();
        let (first, second) = tokio::join!(first, second);
        assert_eq!(
            (&*first.unwrap(), &*second.unwrap()),
            (&[ADDRESS][..], &[ADDRESS][..])
        );
        assert_eq!(
            &*lookups.addresses("a").await.unwrap(),
            [ADDRESS],
            "cached: nothing lets another one go"
        );
        assert_eq!(asked.load(Ordering::Relaxed), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn answers_grow_old_and_failures_sooner() {
        let asked = Arc::<AtomicUsize>::default();
        let count = Arc::clone(&asked);
        let lookups = Lookups::with_resolver(DEADLINE, move |host| {
            count.fetch_add(1, Ordering::Relaxed);
            if host == "bad" {
                Err(io::Error::other("no such host"))
            } else {
                Ok(vec![ADDRESS])
            }
        });
        // Without a deadline, which paused time would run past while the thread works.
        let ask = |host| {
            let answer = lookups.ask(host).unwrap();
            while answer.borrow().is_none() {
                std::thread::yield_now();
            }
        };
        for (host, ttl) in [("good", TTL), ("bad", FAILURE_TTL)] {
            let before = asked.load(Ordering::Relaxed);
            ask(host);
            tokio::time::advance(ttl / 2).await;
            ask(host);
            assert_eq!(asked.load(Ordering::Relaxed), before + 1, "{host}");
            tokio::time::advance(ttl / 2).await;
            ask(host);
            assert_eq!(asked.load(Ordering::Relaxed), before + 2, "{host}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn hung_resolver_times_out_and_holds_a_bounded_number_of_threads() {
        let (lookups, _asked, _go) = held();
        let names: Vec<_> = (0..3 * MAX_THREADS).map(|name| name.to_string()).collect();
        let answers =
            futures::future::join_all(names.iter().map(|name| lookups.addresses(name))).await;
        for answer in answers {
            assert!(answer.unwrap_err().contains("no answer within 5s"));
        }
        assert_eq!(lookups.0.state().threads, MAX_THREADS);
        // Later callers join the look-ups that hang.
        assert!(lookups.addresses("0").await.is_err());
        let state = lookups.0.state();
        assert_eq!(
            (state.threads, state.names.len()),
            (MAX_THREADS, names.len())
        );
    }

    #[tokio::test]
    async fn names_in_flight_are_bounded() {
        let (lookups, _asked, _go) = held();
        for name in 0..MAX_NAMES {
            lookups.ask(&name.to_string()).unwrap();
        }
        assert!(lookups.ask("one more").unwrap_err().contains("too many"));
        assert!(lookups.ask("0").is_ok(), "one that runs is joined");
    }

    #[tokio::test]
    async fn system_resolver_is_asked() {
        let found = Lookups::new(DEADLINE).addresses("localhost").await.unwrap();
        assert!(
            !found.is_empty() && found.iter().all(IpAddr::is_loopback),
            "{found:?}"
        );
    }
}
