//! API servers as targets: their set, their health, and the selection of one per request by least
//! outstanding requests.

mod direct;
mod health;
mod lifetime;

use std::fmt;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use futures::future::BoxFuture;
use http::HeaderValue;
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::http::Stream;
pub use direct::{DirectConnector, InvalidServerName};
pub use health::{Probe, keep_probing};
pub use lifetime::{Lifetime, is_long, is_watch};

/// Opens connections to one API server: TCP and TLS to an address, or through the proxies of a
/// desk.
pub trait Connect: fmt::Debug + Send + Sync {
    /// Opens a connection for requests with the credential. HTTP/2 is offered by ALPN if `http2`,
    /// besides HTTP/1.1.
    fn connect(&self, credential: Credential, http2: bool) -> BoxFuture<'_, io::Result<Stream>>;
}

/// Kind of credential that the requests of a connection have. Connections never serve two kinds: an
/// API server closes an HTTP/2 connection after a response to an unauthenticated request, and trusts
/// the headers of all requests on one that presents the certificate of a front proxy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Credential {
    /// The connection presents the certificate of a front proxy; the bastion sets the headers that
    /// name the caller.
    FrontProxy,
    /// Token that has been accepted by an API server before, or the bastion's own.
    Proven,
    /// Token that may be invalid, or none. HTTP/1.1 only, on which such requests do not end the
    /// connection.
    Unproven,
    /// Watch, or followed log, with such a token. HTTP/2, whose keepalive detects a frozen server.
    UnprovenWatch,
    /// The credentials of the user on the desk. A new client certificate is a new generation.
    Own { generation: u32 },
}

impl Credential {
    /// Returns true if connections may use HTTP/2.
    pub fn may_use_http2(self) -> bool {
        self != Self::Unproven
    }
}

/// Settings of one API server.
#[derive(Clone, Debug)]
pub struct ServerConfig {
    /// `host:port`, for logs and errors. Servers of one set have different names.
    pub name: String,
    /// `Host` of requests. `None` keeps that of the client.
    pub host: Option<HeaderValue>,
    /// Path of the server's URL without its trailing slash, which precedes the paths of requests.
    /// Usually empty.
    pub path: String,
    pub connector: Arc<dyn Connect>,
}

/// Number of failures, without a response between them, after which a server is used only if no other
/// is ready, and for how long. The requests of one connection fail together, within the burst.
const MAX_BROKEN: u32 = 3;
const BURST: Duration = Duration::from_millis(100);
const EJECTION: Duration = Duration::from_secs(5);

/// Number of a server, unique in the process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ServerId(u32);

/// Health of a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Health {
    /// Ready, or not known yet.
    Ready = 0,
    /// Answers, and reports that it is not ready, as during its shutdown. Used if no other is.
    NotReady = 1,
    /// Cannot be reached or does not answer. Not used until a probe succeeds.
    Unreachable = 2,
}

/// One API server and its state, shared by all threads.
#[derive(Debug)]
pub struct ApiServer {
    pub id: ServerId,
    /// Name of the settings.
    pub name: Arc<str>,
    pub config: ServerConfig,
    /// Requests in progress, except for those of [`Lifetime::Long`].
    short: AtomicUsize,
    /// Watches and tunnels in progress.
    long: AtomicUsize,
    health: AtomicU8,
    /// Reason why the server is not ready, or of the last failure if it has no health checks.
    reason: Mutex<String>,
    /// Without health checks, the server stays ready.
    has_checks: bool,
    /// Wakes the health check.
    suspected: Notify,
    /// Number of failures since the last response.
    broken: AtomicU32,
    /// Times in milliseconds from `created`, and 0 for none: of the last failure, and of the end of the
    /// preference for other servers.
    broke_at: AtomicU64,
    ejected_until: AtomicU64,
    created: Instant,
}

impl ApiServer {
    fn new(id: ServerId, config: ServerConfig, has_checks: bool) -> Arc<Self> {
        Arc::new(Self {
            id,
            name: config.name.as_str().into(),
            config,
            short: AtomicUsize::new(0),
            long: AtomicUsize::new(0),
            health: AtomicU8::new(Health::Ready as u8),
            reason: Mutex::default(),
            has_checks,
            suspected: Notify::new(),
            broken: AtomicU32::new(0),
            broke_at: AtomicU64::new(0),
            ejected_until: AtomicU64::new(0),
            created: Instant::now(),
        })
    }

    /// Number of requests of a lifetime in progress.
    fn outstanding(&self, lifetime: Lifetime) -> &AtomicUsize {
        match lifetime {
            Lifetime::Short => &self.short,
            Lifetime::Long => &self.long,
        }
    }

    pub fn health(&self) -> Health {
        match self.health.load(Ordering::Relaxed) {
            0 => Health::Ready,
            1 => Health::NotReady,
            _ => Health::Unreachable,
        }
    }

    /// Sets the server aside after a failed request, until a health check succeeds. `NotReady` if it
    /// has announced its shutdown.
    pub fn set_aside(&self, health: Health, reason: &str) {
        if self.has_checks {
            self.set_health(health, reason);
            self.suspected.notify_one();
        } else {
            self.set_reason(reason);
        }
    }

    /// Requests a health check: the server may have been replaced.
    pub fn suspect(&self) {
        self.suspected.notify_one();
    }

    /// Notes that a connection or stream broke before the response. A server on which several did,
    /// without a response between them, is used only if no other is ready, for some seconds: it has
    /// the fewest outstanding requests, and its health checks may succeed.
    pub fn connection_broke(&self) {
        self.suspect();
        let now = self.created.elapsed();
        let before = self.broke_at.swap(millis(now).max(1), Ordering::Relaxed);
        if before != 0 && now < Duration::from_millis(before) + BURST {
            return;
        }
        if self.broken.fetch_add(1, Ordering::Relaxed) + 1 >= MAX_BROKEN {
            self.ejected_until
                .store(millis(now + EJECTION), Ordering::Relaxed);
        }
    }

    /// Notes that the server has responded to a request.
    pub fn responded(&self) {
        if self.broken.load(Ordering::Relaxed) != 0 {
            self.broken.store(0, Ordering::Relaxed);
            self.ejected_until.store(0, Ordering::Relaxed);
        }
    }

    fn is_ejected(&self) -> bool {
        let until = self.ejected_until.load(Ordering::Relaxed);
        until != 0 && self.created.elapsed() < Duration::from_millis(until)
    }

    /// Health by which the server is selected.
    fn rank(&self) -> Health {
        match self.health() {
            Health::Ready if self.is_ejected() => Health::NotReady,
            health => health,
        }
    }

    fn set_reason(&self, reason: &str) {
        reason.clone_into(&mut self.reason.lock().unwrap_or_else(PoisonError::into_inner));
    }

    fn set_health(&self, health: Health, reason: &str) {
        self.set_reason(reason);
        let before = self.health.swap(health as u8, Ordering::Relaxed);
        let server = &*self.name;
        if before == health as u8 {
            return;
        }
        match health {
            Health::Ready => tracing::info!(server, "API server is ready"),
            Health::NotReady => tracing::warn!(server, reason, "API server is not ready"),
            Health::Unreachable => tracing::warn!(server, reason, "API server is unreachable"),
        }
    }

    /// Returns the reason why the server is not ready. That of the last failed connection for a
    /// server without health checks.
    pub fn reason(&self) -> String {
        let reason = self.reason.lock();
        reason.unwrap_or_else(PoisonError::into_inner).clone()
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// Set of API servers that serve the same cluster. Clones share it.
#[derive(Clone, Debug)]
pub struct ApiServers(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    servers: ArcSwap<Vec<Arc<ApiServer>>>,
    /// Breaks ties in turn.
    turn: AtomicUsize,
    changed: Notify,
    /// A server has answered a health check with success, so that the checks have the permission.
    may_probe: AtomicBool,
    has_checks: bool,
}

/// One request on a server, counted as outstanding until it is dropped.
#[derive(Debug)]
pub struct RequestGuard {
    server: Arc<ApiServer>,
    lifetime: Lifetime,
}

impl RequestGuard {
    fn new(server: &Arc<ApiServer>, lifetime: Lifetime) -> Self {
        server.outstanding(lifetime).fetch_add(1, Ordering::Relaxed);
        Self {
            server: Arc::clone(server),
            lifetime,
        }
    }

    pub fn server(&self) -> &Arc<ApiServer> {
        &self.server
    }
}

impl Drop for RequestGuard {
    fn drop(&mut self) {
        let outstanding = self.server.outstanding(self.lifetime);
        outstanding.fetch_sub(1, Ordering::Relaxed);
    }
}

impl ApiServers {
    /// Creates the set of servers that [`keep_probing`] checks.
    pub fn new(servers: Vec<ServerConfig>) -> Self {
        Self::with_checks(servers, true)
    }

    /// Creates a set of servers that are not checked, so that every request may dial one that has
    /// failed.
    pub fn unchecked(servers: Vec<ServerConfig>) -> Self {
        Self::with_checks(servers, false)
    }

    fn with_checks(servers: Vec<ServerConfig>, has_checks: bool) -> Self {
        let set = Self(Arc::new(Shared {
            servers: ArcSwap::default(),
            turn: AtomicUsize::new(0),
            changed: Notify::new(),
            may_probe: AtomicBool::new(false),
            has_checks,
        }));
        set.replace(servers);
        set
    }

    /// Replaces the set. A server whose name remains keeps its state. Requests on a server that is
    /// removed go on.
    pub fn replace(&self, servers: Vec<ServerConfig>) {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let current = self.0.servers.load();
        let names = |server: &Arc<ApiServer>| server.config.name.clone();
        if servers
            .iter()
            .map(|config| config.name.clone())
            .eq(current.iter().map(names))
        {
            return;
        }
        let servers = servers.into_iter().map(|config| {
            let known = current
                .iter()
                .find(|server| server.config.name == config.name);
            known.cloned().unwrap_or_else(|| {
                let id = ServerId(NEXT.fetch_add(1, Ordering::Relaxed));
                ApiServer::new(id, config, self.0.has_checks)
            })
        });
        self.0.servers.store(Arc::new(servers.collect()));
        self.0.changed.notify_waiters();
    }

    /// Selects the server for the next attempt of a request: of the healthiest ones that were not
    /// tried yet, the one with the fewest outstanding requests of this lifetime, in turn between
    /// equals. `None` if none is left that can be reached.
    pub fn select(&self, tried: &[ServerId], lifetime: Lifetime) -> Option<RequestGuard> {
        let servers = self.0.servers.load();
        let turn = match servers.len() {
            0 => return None,
            1 => 0,
            count => self.0.turn.fetch_add(1, Ordering::Relaxed) % count,
        };
        let (behind, first) = servers.split_at(turn);
        let best = first
            .iter()
            .chain(behind)
            .filter(|server| !tried.contains(&server.id))
            .map(|server| {
                let outstanding = server.outstanding(lifetime).load(Ordering::Relaxed);
                ((server.rank(), outstanding), server)
            })
            .filter(|((rank, _), _)| *rank != Health::Unreachable)
            // The first of several minima.
            .min_by_key(|(load, _)| *load)?;
        Some(RequestGuard::new(best.1, lifetime))
    }

    /// Returns the health of the server that [`Self::select`] can return after this one was tried,
    /// too. `None` if there is none.
    pub fn next_health(&self, tried: &[ServerId], server: ServerId) -> Option<Health> {
        let servers = self.0.servers.load();
        let others = servers
            .iter()
            .filter(|it| it.id != server && !tried.contains(&it.id));
        let ranks = others.map(|it| it.rank());
        ranks.filter(|rank| *rank != Health::Unreachable).min()
    }

    /// Returns the servers with their state.
    pub fn snapshot(&self) -> Arc<Vec<Arc<ApiServer>>> {
        self.0.servers.load_full()
    }

    /// Describes the servers that cannot be used.
    pub fn failures(&self) -> String {
        let servers = self.snapshot();
        if servers.is_empty() {
            return "no API server is known".to_owned();
        }
        let failures: Vec<_> = servers
            .iter()
            .map(|server| {
                let reason = server.reason();
                let reason = match &*reason {
                    "" => "no answer",
                    reason => reason,
                };
                format!("{}: {reason}", server.config.name)
            })
            .collect();
        failures.join("; ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Connector of servers that are only selected.
    #[derive(Debug)]
    struct Never;

    impl Connect for Never {
        fn connect(&self, _: Credential, _: bool) -> BoxFuture<'_, io::Result<Stream>> {
            Box::pin(std::future::pending())
        }
    }

    fn config(name: &str) -> ServerConfig {
        ServerConfig {
            name: name.into(),
            host: None,
            path: String::new(),
            connector: Arc::new(Never),
        }
    }

    fn servers(names: &[&str]) -> ApiServers {
        ApiServers::new(names.iter().map(|name| config(name)).collect())
    }

    fn name(guard: &RequestGuard) -> &str {
        &guard.server().config.name
    }

    #[test]
    fn idle_servers_take_turns() {
        let servers = servers(&["a", "b", "c"]);
        let selected: Vec<_> = (0..6)
            .map(|_| name(&servers.select(&[], Lifetime::Short).unwrap()).to_owned())
            .collect();
        assert_eq!(selected, ["a", "b", "c", "a", "b", "c"]);
    }

    #[test]
    fn long_requests_do_not_count_against_short_ones() {
        let servers = servers(&["a", "b", "c"]);
        let long: Vec<_> = (0..4)
            .map(|_| servers.select(&[], Lifetime::Long))
            .collect();
        let mut counts = std::collections::BTreeMap::new();
        for _ in 0..9 {
            let guard = servers.select(&[], Lifetime::Short).unwrap();
            *counts.entry(name(&guard).to_owned()).or_insert(0) += 1;
        }
        assert!(counts.values().all(|count| *count == 3), "{counts:?}");
        drop(long);
    }

    #[test]
    fn server_with_fewest_outstanding_requests_is_selected() {
        let servers = servers(&["a", "b"]);
        let first = servers.select(&[], Lifetime::Short).unwrap();
        let second = servers.select(&[], Lifetime::Short).unwrap();
        assert_ne!(name(&first), name(&second));
        let idle = name(&first).to_owned();
        drop(first);
        for _ in 0..4 {
            assert_eq!(name(&servers.select(&[], Lifetime::Short).unwrap()), idle);
        }
    }

    #[test]
    fn unhealthy_servers_are_last_and_unreachable_ones_are_never_selected() {
        let servers = servers(&["a", "b", "c"]);
        let all = servers.snapshot();
        all[0].set_aside(Health::NotReady, "shutting down");
        all[1].set_aside(Health::Unreachable, "connection refused");
        for _ in 0..3 {
            assert_eq!(name(&servers.select(&[], Lifetime::Short).unwrap()), "c");
        }
        let last_resort = servers.select(&[all[2].id], Lifetime::Short).unwrap();
        assert_eq!(name(&last_resort), "a");
        assert!(
            servers
                .select(&[all[0].id, all[2].id], Lifetime::Short)
                .is_none()
        );
        assert_eq!(
            servers.failures(),
            "a: shutting down; b: connection refused; c: no answer"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn server_on_which_connections_break_is_last_for_some_seconds() {
        let servers = servers(&["a", "b"]);
        let all = servers.snapshot();
        let selected = || {
            let pair = [0; 2].map(|_| servers.select(&[], Lifetime::Short).unwrap());
            let mut names = pair.each_ref().map(|guard| name(guard).to_owned());
            names.sort();
            names
        };
        for _ in 1..MAX_BROKEN {
            // Requests of one connection.
            all[0].connection_broke();
            all[0].connection_broke();
            tokio::time::advance(2 * BURST).await;
        }
        assert_eq!(selected(), ["a", "b"]);
        all[0].connection_broke();
        assert_eq!(selected(), ["b", "b"]);
        assert_eq!(
            name(&servers.select(&[all[1].id], Lifetime::Short).unwrap()),
            "a"
        );
        tokio::time::advance(EJECTION).await;
        assert_eq!(selected(), ["a", "b"]);
        // One more is enough until a response.
        all[0].connection_broke();
        assert_eq!(selected(), ["b", "b"]);
        all[0].responded();
        tokio::time::advance(2 * BURST).await;
        all[0].connection_broke();
        assert_eq!(selected(), ["a", "b"]);
    }

    #[test]
    fn only_servers_that_can_be_selected_are_next() {
        let servers = servers(&["a", "b", "c"]);
        let all = servers.snapshot();
        let next = |tried: &[ServerId]| servers.next_health(tried, all[0].id);
        assert_eq!(next(&[]), Some(Health::Ready));
        all[1].set_aside(Health::Unreachable, "connection refused");
        assert_eq!(next(&[]), Some(Health::Ready));
        assert_eq!(next(&[all[2].id]), None);
        all[1].set_aside(Health::NotReady, "shutting down");
        assert_eq!(next(&[all[2].id]), Some(Health::NotReady));
    }

    #[test]
    fn server_without_health_checks_is_selected_after_a_failure() {
        let servers = ApiServers::unchecked(vec![config("a")]);
        let server = Arc::clone(&servers.snapshot()[0]);
        server.set_aside(Health::Unreachable, "no pod is ready");
        assert!(servers.select(&[], Lifetime::Short).is_some());
        assert_eq!(servers.failures(), "a: no pod is ready");
    }

    #[test]
    fn replaced_set_keeps_the_state_of_servers_that_remain() {
        let servers = servers(&["a", "b"]);
        let kept = Arc::clone(&servers.snapshot()[1]);
        let guard = servers
            .select(&[servers.snapshot()[0].id], Lifetime::Short)
            .unwrap();
        servers.replace(vec![config("b"), config("c")]);
        let now = servers.snapshot();
        assert!(Arc::ptr_eq(&now[0], &kept) && now[1].id != kept.id);
        assert_eq!(kept.short.load(Ordering::Relaxed), 1);
        drop(guard);
        assert_eq!(kept.short.load(Ordering::Relaxed), 0);
    }
}
