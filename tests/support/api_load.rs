//! Mixed load on the API: reads, watches, server-side applies, evictions that a
//! `PodDisruptionBudget` refuses, and upgrades, with the results of each kind.

mod upgrade;
mod watch;

use std::collections::BTreeMap;
use std::fmt::{self, Display, Formatter};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use http::{Method, Request, header};
use serde_json::json;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::client::{Client, Cut, Response};

/// Pause between a response and the next request of a task.
const PAUSE: Duration = Duration::from_millis(25);
/// Pause between attempts to connect.
const RECONNECT_PAUSE: Duration = Duration::from_millis(50);
/// Maximum time of a request, after which it has failed. Longer than the bastion takes to find out
/// that a server is frozen.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(45);
/// Tasks that send repeatable requests, one after the other, with each version of HTTP.
const SENDERS: [(Kind, usize); 3] = [(Kind::Get, 3), (Kind::List, 1), (Kind::Apply, 2)];
/// Maximum number of distinct failures that are counted separately.
const MAX_FAILURES: usize = 20;

/// Kind of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    Get,
    List,
    /// The start of a watch. A watch that ends or is cut after its start is resumed.
    Watch,
    /// Server-side apply.
    Apply,
    /// Eviction, which is expected to get a 429.
    Evict,
    /// Upgrade of `pods/exec` with the output of the command.
    Exec,
}

impl Kind {
    pub const ALL: [Self; 6] = [
        Self::Get,
        Self::List,
        Self::Watch,
        Self::Apply,
        Self::Evict,
        Self::Exec,
    ];
    /// Kinds that are sent all the time.
    pub const REQUESTS: [Self; 5] = [Self::Get, Self::List, Self::Apply, Self::Evict, Self::Exec];
    /// Kinds that never fail, whatever happens to an apiserver.
    pub const REPEATABLE: [Self; 4] = [Self::Get, Self::List, Self::Watch, Self::Apply];
}

/// Destination of the load, and its objects.
#[derive(Clone, Debug)]
pub struct ApiTarget {
    pub address: SocketAddr,
    pub ca: PathBuf,
    pub token: String,
    /// Namespace of the objects.
    pub namespace: String,
    /// Pod that is evicted. `None` for no evictions.
    pub evicted: Option<String>,
    /// Pod whose kubelet runs `echo upgraded`. `None` for no upgrades.
    pub executed: Option<String>,
}

impl ApiTarget {
    async fn connect(&self, http2: bool) -> Result<Client> {
        let token = Some(&*self.token);
        if http2 {
            Client::connect_http2(self.address, &self.ca, token, None).await
        } else {
            Client::connect(self.address, &self.ca, token, None).await
        }
    }

    fn path(&self, rest: &str) -> String {
        format!("/api/v1/namespaces/{}/{rest}", self.namespace)
    }
}

#[derive(Debug, Default)]
struct Counts {
    stop: CancellationToken,
    results: Mutex<BTreeMap<Kind, Results>>,
}

#[derive(Clone, Debug, Default)]
struct Results {
    sent: u64,
    succeeded: u64,
    /// Number of requests whose responses were cut, without watches.
    cut_responses: u64,
    /// Number of watches that were cut.
    cut: u64,
    /// Number of watches that ended completely.
    ended: u64,
    failures: BTreeMap<String, u64>,
}

impl Counts {
    fn is_running(&self) -> bool {
        !self.stop.is_cancelled()
    }

    fn with(&self, kind: Kind, change: impl FnOnce(&mut Results)) {
        let mut results = self.results.lock().expect("no test panics with them");
        change(results.entry(kind).or_default());
    }

    fn fail(&self, kind: Kind, failure: &str) {
        let failure: String = failure.trim().chars().take(300).collect();
        self.with(kind, |results| {
            let failures = &mut results.failures;
            let is_known = failures.len() < MAX_FAILURES || failures.contains_key(&failure);
            let failure = if is_known { failure } else { "others".into() };
            *failures.entry(failure).or_default() += 1;
        });
    }

    /// Counts a request and its result.
    async fn count<T>(&self, kind: Kind, request: impl Future<Output = Result<T>>) -> Option<T> {
        self.with(kind, |results| results.sent += 1);
        let result = tokio::time::timeout(REQUEST_TIMEOUT, request).await;
        match result {
            Ok(Ok(value)) => {
                self.with(kind, |results| results.succeeded += 1);
                Some(value)
            }
            Ok(Err(error)) if error.is::<Cut>() => {
                self.with(kind, |results| results.cut_responses += 1);
                None
            }
            Ok(Err(error)) => {
                self.fail(kind, &format!("{error:#}"));
                None
            }
            Err(_) => {
                self.fail(kind, &format!("no response within {REQUEST_TIMEOUT:?}"));
                None
            }
        }
    }
}

/// Running load. Dropping it stops the load.
#[derive(Debug)]
pub struct ApiLoad {
    counts: Arc<Counts>,
    tasks: JoinSet<()>,
}

impl ApiLoad {
    /// Starts the load, on HTTP/1.1 and HTTP/2 connections.
    pub fn start(target: &ApiTarget) -> Self {
        let mut load = Self {
            counts: Arc::default(),
            tasks: JoinSet::new(),
        };
        for http2 in [false, true] {
            for (kind, tasks) in SENDERS {
                for number in 0..tasks {
                    load.spawn(target, kind, http2, number);
                }
            }
            // At least one on each of three servers.
            for _ in 0..3 {
                let (target, counts) = (target.clone(), Arc::clone(&load.counts));
                load.tasks
                    .spawn(watch::keep_watching(target, http2, counts));
            }
        }
        if target.evicted.is_some() {
            load.spawn(target, Kind::Evict, true, 0);
        }
        if let Some(pod) = target.executed.clone() {
            let (target, counts) = (target.clone(), Arc::clone(&load.counts));
            load.tasks
                .spawn(upgrade::keep_executing(target, pod, counts));
        }
        load
    }

    fn spawn(&mut self, target: &ApiTarget, kind: Kind, http2: bool, number: usize) {
        let (target, counts) = (target.clone(), Arc::clone(&self.counts));
        self.tasks
            .spawn(keep_sending(target, kind, http2, number, counts));
    }

    /// Maximum number of repeatable requests in flight, without watches.
    pub fn max_in_flight() -> u64 {
        let tasks: usize = SENDERS.iter().map(|(_, tasks)| tasks).sum();
        2 * tasks as u64
    }

    /// Number of successful requests of a kind so far.
    pub fn succeeded(&self, kind: Kind) -> u64 {
        let results = self.counts.results.lock();
        let results = results.expect("no test panics with them");
        results.get(&kind).map_or(0, |results| results.succeeded)
    }

    /// Number of watches that were cut so far.
    pub fn cut_watches(&self) -> u64 {
        let results = self.counts.results.lock();
        let results = results.expect("no test panics with them");
        results.get(&Kind::Watch).map_or(0, |results| results.cut)
    }

    /// Waits until a number of further requests of each of the kinds have succeeded.
    ///
    /// # Errors
    /// Returns an error if they do not in time.
    pub async fn progress(&self, kinds: &[Kind], requests: u64) -> Result<()> {
        const TIMEOUT: Duration = Duration::from_mins(2);
        let goals = kinds
            .iter()
            .map(|kind| (*kind, self.succeeded(*kind) + requests));
        let goals: Vec<_> = goals.collect();
        super::within(TIMEOUT, "requests to succeed", async || {
            Ok(goals
                .iter()
                .all(|(kind, goal)| self.succeeded(*kind) >= *goal))
        })
        .await
        .with_context(|| self.report().to_string())
    }

    /// Waits until more watches have been cut than `cut`.
    ///
    /// # Errors
    /// Returns an error if none is in time.
    pub async fn cut_beyond(&self, cut: u64) -> Result<()> {
        const TIMEOUT: Duration = Duration::from_mins(1);
        let waited = super::within(TIMEOUT, "watches to be cut", async || {
            Ok(self.cut_watches() > cut)
        });
        waited.await.with_context(|| self.report().to_string())
    }

    fn report(&self) -> ApiReport {
        let results = self.counts.results.lock();
        ApiReport(results.expect("no test panics with them").clone())
    }

    /// Stops the load after the requests in progress, and returns its results.
    pub async fn stop(mut self) -> ApiReport {
        self.counts.stop.cancel();
        while self.tasks.join_next().await.is_some() {}
        self.report()
    }
}

/// Sends requests of one kind, one after the other, each over a new connection after a failure.
async fn keep_sending(
    target: ApiTarget,
    kind: Kind,
    http2: bool,
    number: usize,
    counts: Arc<Counts>,
) {
    let mut client = None;
    let mut round = 0;
    while counts.is_running() {
        let connected = match client.take() {
            Some(client) => Ok(client),
            None => target.connect(http2).await,
        };
        let mut connected = match connected {
            Ok(connected) => connected,
            Err(error) => {
                counts.fail(kind, &format!("no connection: {error:#}"));
                tokio::time::sleep(RECONNECT_PAUSE).await;
                continue;
            }
        };
        round += 1;
        let request = request(&mut connected, &target, kind, number, http2, round);
        if counts.count(kind, request).await.is_some() {
            client = Some(connected);
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// Sends a request, and checks its response.
async fn request(
    client: &mut Client,
    target: &ApiTarget,
    kind: Kind,
    number: usize,
    http2: bool,
    round: u64,
) -> Result<()> {
    let name = format!("load-{number}-{}", if http2 { "h2" } else { "h1" });
    match kind {
        Kind::Get => {
            let response = client.get(&target.path("configmaps/read")).await?;
            expect(&response, &[200], r#""name":"read""#)
        }
        Kind::List => {
            let response = client.get(&target.path("configmaps?limit=100")).await?;
            expect(&response, &[200], r#""kind":"ConfigMapList""#)
        }
        Kind::Apply => {
            let object = json!({
                "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name},
                "data": {"round": round.to_string()},
            });
            let request = Request::patch("/")
                .header(header::CONTENT_TYPE, "application/apply-patch+yaml")
                .body(Bytes::from(object.to_string()))?;
            let path = target.path(&format!("configmaps/{name}?fieldManager=load&force=true"));
            let response = client.complete(&path, request).await?;
            expect(&response, &[200, 201], &format!(r#""round":"{round}""#))
        }
        Kind::Evict => {
            let pod = target.evicted.as_deref().unwrap_or_default();
            let object = json!({
                "apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": pod},
            });
            let request = Request::builder()
                .method(Method::POST)
                .header(header::CONTENT_TYPE, "application/json")
                .body(Bytes::from(object.to_string()))?;
            let path = target.path(&format!("pods/{pod}/eviction"));
            let response = client.complete(&path, request).await?;
            expect(&response, &[429], "disruption budget")
        }
        Kind::Watch | Kind::Exec => unreachable!("they have tasks of their own"),
    }
}

fn expect(response: &Response, statuses: &[u16], part: &str) -> Result<()> {
    let status = response.status.as_u16();
    ensure!(
        statuses.contains(&status) && response.body.contains(part),
        "{status} {}",
        response.body
    );
    Ok(())
}

/// Results of a load.
#[derive(Debug)]
pub struct ApiReport(BTreeMap<Kind, Results>);

impl ApiReport {
    /// Checks that requests of these kinds were sent and none failed or was cut.
    ///
    /// # Errors
    /// Returns an error with all results otherwise.
    pub fn ensure_none_failed(&self, kinds: &[Kind]) -> Result<()> {
        self.ensure_at_most_cut(kinds, 0)
    }

    /// Checks that requests of these kinds were sent, none failed, and the responses of at most
    /// `limit` were cut.
    ///
    /// # Errors
    /// Returns an error with all results otherwise.
    pub fn ensure_at_most_cut(&self, kinds: &[Kind], limit: u64) -> Result<()> {
        let mut cut = 0;
        for kind in kinds {
            let results = self.0.get(kind).cloned().unwrap_or_default();
            ensure!(results.sent > 0, "no request of kind {kind:?}:\n{self}");
            let completed = results.succeeded + results.cut_responses;
            ensure!(
                results.failures.is_empty() && completed == results.sent,
                "{kind:?} failed:\n{self}"
            );
            cut += results.cut_responses;
        }
        ensure!(cut <= limit, "{cut} responses were cut:\n{self}");
        Ok(())
    }

    /// Number of watches that were cut, and of those that ended completely. All were resumed.
    pub fn resumed_watches(&self) -> (u64, u64) {
        let results = self.0.get(&Kind::Watch);
        results.map_or((0, 0), |results| (results.cut, results.ended))
    }
}

impl Display for ApiReport {
    fn fmt(&self, formatter: &mut Formatter<'_>) -> fmt::Result {
        for (kind, results) in &self.0 {
            let failed: u64 = results.failures.values().sum();
            writeln!(
                formatter,
                "       {kind:?}: {} requests, {} succeeded, {failed} failed, {} cut, {} ended",
                results.sent,
                results.succeeded,
                results.cut + results.cut_responses,
                results.ended
            )?;
            for (failure, count) in &results.failures {
                writeln!(formatter, "         {count} × {failure}")?;
            }
        }
        Ok(())
    }
}
