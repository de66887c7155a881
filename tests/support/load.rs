//! Load: requests that are sent while a test injects failures, and their results.

use std::collections::BTreeMap;
use std::fmt::{self, Display, Formatter};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use tokio::task::JoinSet;

use super::client::Client;
use super::pki::Pair;

/// Maximum number of requests of a load.
const MAX_REQUESTS: u64 = 500_000;

/// Duration beyond which a response counts as slow in the report.
const SLOW: Duration = Duration::from_secs(1);

/// Maximum number of distinct failures that are counted separately.
const MAX_KINDS: usize = 12;

/// Credentials and URL of a load.
#[derive(Clone, Debug)]
pub struct Target {
    pub address: SocketAddr,
    pub ca: PathBuf,
    pub token: Option<String>,
    pub certificate: Option<Pair>,
    pub path: String,
}

impl Target {
    async fn connect(&self, http2: bool, token: Option<&str>) -> Result<Client> {
        let certificate = self.certificate.as_ref();
        if http2 {
            Client::connect_http2(self.address, &self.ca, token, certificate).await
        } else {
            Client::connect(self.address, &self.ca, token, certificate).await
        }
    }
}

/// Connections of a load. Each sends its next request after the response to the previous one.
#[derive(Clone, Copy, Debug, Default)]
pub struct Shape {
    /// Number of HTTP/1.1 connections.
    pub http1: usize,
    /// Number of HTTP/2 connections.
    pub http2: usize,
    /// Pause between a response and the next request, so that a long outage does not use a whole
    /// CPU.
    pub pause: Duration,
    /// Number of requests after which a connection is replaced; 0 for never.
    pub per_connection: u64,
}

#[derive(Debug, Default)]
struct Counts {
    sent: AtomicU64,
    completed: AtomicU64,
    failed: AtomicU64,
    slow: AtomicU64,
    stop: AtomicBool,
    kinds: Mutex<BTreeMap<String, u64>>,
    token: Mutex<Option<String>>,
}

impl Counts {
    fn is_running(&self) -> bool {
        !self.stop.load(Ordering::Relaxed) && self.sent.load(Ordering::Relaxed) < MAX_REQUESTS
    }

    fn token(&self) -> Option<String> {
        self.token
            .lock()
            .expect("no test panics with the token")
            .clone()
    }

    async fn request(&self, client: &mut Client, path: &str) -> Result<()> {
        self.sent.fetch_add(1, Ordering::Relaxed);
        let began = Instant::now();
        let response = client.get(path).await;
        self.completed.fetch_add(1, Ordering::Relaxed);
        self.slow
            .fetch_add(u64::from(began.elapsed() > SLOW), Ordering::Relaxed);
        match response {
            Ok(response) if response.status == 200 => Ok(()),
            Ok(response) => {
                self.fail(format!(
                    "{} {:.160}",
                    response.status.as_u16(),
                    response.body.trim()
                ));
                Ok(())
            }
            Err(error) => {
                self.fail(format!("{error:#}"));
                Err(error)
            }
        }
    }

    fn fail(&self, kind: String) {
        self.failed.fetch_add(1, Ordering::Relaxed);
        let mut kinds = self.kinds.lock().expect("no test panics with the kinds");
        let kind = if kinds.len() < MAX_KINDS || kinds.contains_key(&kind) {
            kind
        } else {
            "others".into()
        };
        *kinds.entry(kind).or_default() += 1;
    }
}

/// Running load of GET requests. Dropping it stops the load.
#[derive(Debug)]
pub struct Load {
    counts: Arc<Counts>,
    tasks: JoinSet<()>,
}

impl Load {
    /// Starts a load on several connections.
    ///
    /// # Errors
    /// Returns an error if the first connections fail.
    pub async fn start(target: &Target, shape: Shape) -> Result<Self> {
        let mut load = Self::new(target);
        for http2 in [vec![false; shape.http1], vec![true; shape.http2]].concat() {
            let client = target.connect(http2, target.token.as_deref()).await?;
            load.tasks.spawn(closed_loop(
                target.clone(),
                shape,
                http2,
                client,
                Arc::clone(&load.counts),
            ));
        }
        Ok(load)
    }

    /// Starts a load of one HTTP/2 request per `interval`, independent of earlier responses, so
    /// that slow responses do not lower the rate.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub async fn start_at_rate(
        target: &Target,
        connections: usize,
        interval: Duration,
    ) -> Result<Self> {
        let mut load = Self::new(target);
        let mut clients = Vec::new();
        for _ in 0..connections {
            clients.push(target.connect(true, target.token.as_deref()).await?);
        }
        let (counts, path) = (Arc::clone(&load.counts), target.path.clone());
        load.tasks.spawn(async move {
            let mut requests = JoinSet::new();
            let mut ticks = tokio::time::interval(interval);
            for client in clients.iter().cycle() {
                if !counts.is_running() {
                    break;
                }
                ticks.tick().await;
                let mut client = client.another().expect("the connections are HTTP/2");
                let (counts, path) = (Arc::clone(&counts), path.clone());
                requests.spawn(async move { counts.request(&mut client, &path).await });
                while requests.try_join_next().is_some() {}
            }
            // Wait for requests in flight: one without a response is a failure, too.
            while requests.join_next().await.is_some() {}
        });
        Ok(load)
    }

    fn new(target: &Target) -> Self {
        let counts = Counts {
            token: Mutex::new(target.token.clone()),
            ..Counts::default()
        };
        Self {
            counts: Arc::new(counts),
            tasks: JoinSet::new(),
        }
    }

    /// Sets the token of later requests.
    pub fn set_token(&self, token: &str) {
        *self
            .counts
            .token
            .lock()
            .expect("no test panics with the token") = Some(token.into());
    }

    /// Number of requests completed so far, including failures.
    pub fn completed(&self) -> u64 {
        self.counts.completed.load(Ordering::Relaxed)
    }

    pub fn failed(&self) -> u64 {
        self.counts.failed.load(Ordering::Relaxed)
    }

    /// Waits for a number of further requests to complete.
    pub async fn wait_for_requests(&self, requests: u64) {
        let goal = self.completed() + requests;
        while self.completed() < goal && self.counts.is_running() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    /// Stops the load and returns its results. Requests without a response within a minute count as
    /// failed.
    pub async fn stop(mut self) -> LoadReport {
        const LAST_RESPONSE_TIMEOUT: Duration = Duration::from_mins(1);
        self.counts.stop.store(true, Ordering::Relaxed);
        let _ = tokio::time::timeout(LAST_RESPONSE_TIMEOUT, async {
            while self.tasks.join_next().await.is_some() {}
        })
        .await;
        let requests = self.counts.sent.load(Ordering::Relaxed);
        let incomplete = requests - self.completed();
        let mut kinds = self
            .counts
            .kinds
            .lock()
            .expect("no test panics with the kinds")
            .clone();
        if incomplete > 0 {
            kinds.insert("no response".into(), incomplete);
        }
        let slow = self.counts.slow.load(Ordering::Relaxed);
        LoadReport {
            requests,
            failed: self.failed() + incomplete,
            slow,
            kinds,
        }
    }
}

async fn closed_loop(
    target: Target,
    shape: Shape,
    http2: bool,
    first: Client,
    counts: Arc<Counts>,
) {
    /// Pause between attempts to connect.
    const RECONNECT_PAUSE: Duration = Duration::from_millis(20);
    let mut client = Some(first);
    let mut requests = 0;
    while counts.is_running() {
        let token = counts.token();
        let connected = match client.take() {
            Some(client) => Ok(client),
            None => target.connect(http2, token.as_deref()).await,
        };
        let mut connected = match connected {
            Ok(connected) => connected,
            Err(error) => {
                counts.sent.fetch_add(1, Ordering::Relaxed);
                counts.completed.fetch_add(1, Ordering::Relaxed);
                counts.fail(format!("no connection: {error:#}"));
                tokio::time::sleep(RECONNECT_PAUSE).await;
                continue;
            }
        };
        if let Some(token) = token {
            connected.set_token(&token);
        }
        let done = counts.request(&mut connected, &target.path).await;
        requests += 1;
        let is_due = shape.per_connection > 0 && requests % shape.per_connection == 0;
        if done.is_ok() && !is_due {
            client = Some(connected);
        }
        if !shape.pause.is_zero() {
            tokio::time::sleep(shape.pause).await;
        }
    }
}

/// Results of a load.
#[derive(Debug)]
pub struct LoadReport {
    pub requests: u64,
    pub failed: u64,
    slow: u64,
    kinds: BTreeMap<String, u64>,
}

impl LoadReport {
    /// Checks that requests were sent and none failed.
    ///
    /// # Errors
    /// Returns an error otherwise.
    pub fn ensure_none_failed(&self) -> Result<()> {
        ensure!(self.requests > 0, "no request was sent");
        ensure!(self.failed == 0, "requests failed: {self}");
        Ok(())
    }
}

impl Display for LoadReport {
    fn fmt(&self, formatter: &mut Formatter<'_>) -> fmt::Result {
        write!(
            formatter,
            "{} requests, {} failed",
            self.requests, self.failed
        )?;
        if self.slow > 0 {
            write!(formatter, ", {} slower than {SLOW:?}", self.slow)?;
        }
        self.kinds
            .iter()
            .try_for_each(|(kind, count)| write!(formatter, "\n       {count} × {kind}"))
    }
}
