//! Requests that keep flowing while a test does harm, and what became of them.

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

/// Bounds every load, whatever its test waits for.
const MAX_REQUESTS: u64 = 500_000;

/// An answer that takes longer is counted, for the reader of the test's report.
const SLOW: Duration = Duration::from_secs(1);

/// How many kinds of failure are remembered.
const MAX_KINDS: usize = 12;

/// The caller and the URL of a load.
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

/// The connections of a load. Each sends its next request when the one before is answered.
#[derive(Clone, Copy, Debug, Default)]
pub struct Shape {
    /// Connections of HTTP/1.1.
    pub http1: usize,
    /// Connections of HTTP/2.
    pub http2: usize,
    /// Pause between an answer and the next request, so that a long fault does not cost a whole
    /// processor.
    pub pause: Duration,
    /// Requests after which a connection is replaced; 0 keeps it.
    pub per_connection: u64,
}

#[derive(Debug, Default)]
struct Counts {
    sent: AtomicU64,
    answered: AtomicU64,
    failed: AtomicU64,
    slow: AtomicU64,
    stop: AtomicBool,
    kinds: Mutex<BTreeMap<String, u64>>,
    token: Mutex<Option<String>>,
}

impl Counts {
    fn goes_on(&self) -> bool {
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
        let answer = client.get(path).await;
        self.answered.fetch_add(1, Ordering::Relaxed);
        self.slow
            .fetch_add(u64::from(began.elapsed() > SLOW), Ordering::Relaxed);
        match answer {
            Ok(answer) if answer.status == 200 => Ok(()),
            Ok(answer) => {
                self.fail(format!(
                    "{} {:.160}",
                    answer.status.as_u16(),
                    answer.body.trim()
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

/// GET requests, until they are stopped. Dropping it stops them.
#[derive(Debug)]
pub struct Load {
    counts: Arc<Counts>,
    tasks: JoinSet<()>,
}

impl Load {
    /// Requests on some connections at once.
    ///
    /// # Errors
    /// Where the first connections cannot be made.
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

    /// A request every `interval` by HTTP/2, whether or not those before are answered: what is slow
    /// does not slow down the rest.
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
                if !counts.goes_on() {
                    break;
                }
                ticks.tick().await;
                let mut client = client.another().expect("they are of HTTP/2");
                let (counts, path) = (Arc::clone(&counts), path.clone());
                requests.spawn(async move { counts.request(&mut client, &path).await });
                while requests.try_join_next().is_some() {}
            }
            // Those that are on their way are waited for: a request that is never answered has
            // failed too.
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

    /// Sends another token from now on.
    pub fn set_token(&self, token: &str) {
        *self
            .counts
            .token
            .lock()
            .expect("no test panics with the token") = Some(token.into());
    }

    /// Requests answered so far, well or not.
    pub fn answered(&self) -> u64 {
        self.counts.answered.load(Ordering::Relaxed)
    }

    pub fn failed(&self) -> u64 {
        self.counts.failed.load(Ordering::Relaxed)
    }

    /// Waits for so many more answers.
    pub async fn more(&self, requests: u64) {
        let goal = self.answered() + requests;
        while self.answered() < goal && self.counts.goes_on() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    /// Ends it, and tells what became of the requests. One that is not answered within a minute has
    /// failed.
    pub async fn stop(mut self) -> Outcome {
        const LAST: Duration = Duration::from_mins(1);
        self.counts.stop.store(true, Ordering::Relaxed);
        let _ = tokio::time::timeout(LAST, async {
            while self.tasks.join_next().await.is_some() {}
        })
        .await;
        let requests = self.counts.sent.load(Ordering::Relaxed);
        let unanswered = requests - self.answered();
        let mut kinds = self
            .counts
            .kinds
            .lock()
            .expect("no test panics with the kinds")
            .clone();
        if unanswered > 0 {
            kinds.insert("not answered".into(), unanswered);
        }
        let slow = self.counts.slow.load(Ordering::Relaxed);
        Outcome {
            requests,
            failed: self.failed() + unanswered,
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
    /// Between attempts to connect.
    const PAUSE: Duration = Duration::from_millis(20);
    let mut client = Some(first);
    let mut requests = 0;
    while counts.goes_on() {
        let token = counts.token();
        let connected = match client.take() {
            Some(client) => Ok(client),
            None => target.connect(http2, token.as_deref()).await,
        };
        let mut connected = match connected {
            Ok(connected) => connected,
            Err(error) => {
                counts.sent.fetch_add(1, Ordering::Relaxed);
                counts.answered.fetch_add(1, Ordering::Relaxed);
                counts.fail(format!("no connection: {error:#}"));
                tokio::time::sleep(PAUSE).await;
                continue;
            }
        };
        if let Some(token) = token {
            connected.set_token(&token);
        }
        let done = counts.request(&mut connected, &target.path).await;
        requests += 1;
        let worn = shape.per_connection > 0 && requests % shape.per_connection == 0;
        if done.is_ok() && !worn {
            client = Some(connected);
        }
        if !shape.pause.is_zero() {
            tokio::time::sleep(shape.pause).await;
        }
    }
}

/// What became of a load.
#[derive(Debug)]
pub struct Outcome {
    pub requests: u64,
    pub failed: u64,
    slow: u64,
    kinds: BTreeMap<String, u64>,
}

impl Outcome {
    /// # Errors
    /// Where a request failed, or there was none.
    pub fn none_failed(&self) -> Result<()> {
        ensure!(self.requests > 0, "no request was sent");
        ensure!(
            self.failed == 0,
            "{} of {} requests failed",
            self.failed,
            self.requests
        );
        Ok(())
    }
}

impl Display for Outcome {
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
