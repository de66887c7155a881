//! Log of failed watches: one line per cause for all watches together, repeated at growing
//! intervals while it lasts.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use kube::runtime::watcher;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep, timeout_at};

use super::authentication_config::AUTHENTICATION;
use super::client::ConnectionError;
use crate::ready::Obstacle;

/// Time in which failures of several watches are collected into one line. An API server that
/// denies or is down fails all watches within some milliseconds.
const COLLECT_TIME: Duration = Duration::from_millis(500);
/// Time until a cause that lasts is logged again; doubled each time up to [`MAX_INTERVAL`].
const MIN_INTERVAL: Duration = Duration::from_mins(1);
const MAX_INTERVAL: Duration = Duration::from_mins(16);

/// Failure of a watch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Failure {
    cause: Cause,
    /// Message of the API server, or the innermost cause.
    error: String,
}

/// Cause of a failure. Watches that fail by the same cause share a line of the log.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Cause {
    /// 403: the permission is missing, which `remedy` grants.
    Denied {
        verb: &'static str,
        remedy: &'static str,
    },
    /// 401: the credentials of the bastion are not valid.
    Unauthenticated,
    /// No connection, or no response.
    Unreachable { server: String },
    /// Any other response.
    Other { error: String },
}

impl Failure {
    /// Classifies an error. `remedy` grants the permissions of the watch.
    pub fn new(error: &watcher::Error, remedy: &'static str) -> Self {
        use watcher::Error::{InitialListFailed, WatchError, WatchFailed, WatchStartFailed};
        let (WatchError(status)
        | InitialListFailed(kube::Error::Api(status))
        | WatchStartFailed(kube::Error::Api(status))
        | WatchFailed(kube::Error::Api(status))) = error
        else {
            let text = super::innermost_causes(error);
            let cause = match connection_error(error) {
                Some(connection) => Cause::Unreachable {
                    server: connection.server.clone(),
                },
                None => Cause::Other {
                    error: text.clone(),
                },
            };
            return Self { cause, error: text };
        };
        let text = if status.message.is_empty() {
            format!("the API server responded with status {}", status.code)
        } else {
            status.message.clone()
        };
        let cause = match status.code {
            401 => Cause::Unauthenticated,
            403 => Cause::Denied {
                verb: match error {
                    InitialListFailed(_) => "list",
                    _ => "watch",
                },
                remedy,
            },
            _ => Cause::Other {
                error: text.clone(),
            },
        };
        Self { cause, error: text }
    }

    /// Returns the reason that callers get while the initial state is not loaded.
    pub fn obstacle(&self) -> Option<Obstacle> {
        match self.cause {
            Cause::Denied { .. } | Cause::Unauthenticated => Some(Obstacle::Denied),
            Cause::Unreachable { .. } => Some(Obstacle::Unreachable),
            Cause::Other { .. } => None,
        }
    }
}

/// Formats the failure for `/readyz`: the error and, if the API rejected the request, the remedy.
impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.error)?;
        match &self.cause {
            Cause::Denied { remedy, .. } => write!(f, "; {remedy}"),
            Cause::Unauthenticated => write!(f, "; {CHECK_CREDENTIALS}"),
            Cause::Unreachable { .. } | Cause::Other { .. } => Ok(()),
        }
    }
}

const CHECK_CREDENTIALS: &str =
    "the API server rejects the bastion's credentials: check its service account or kubeconfig";

/// Finds the failed connection among the causes of an error.
fn connection_error(error: &watcher::Error) -> Option<&ConnectionError> {
    let mut next: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(error) = next {
        if let Some(connection) = error.downcast_ref() {
            return Some(connection);
        }
        next = error.source();
    }
    None
}

/// Failures of all watches of an API server. Clones share them.
#[derive(Clone, Debug, Default)]
pub struct FailureLog(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    /// Watch → its failure, and the effect of that on requests.
    failing: Mutex<BTreeMap<&'static str, (Failure, &'static str)>>,
    changed: Notify,
}

impl FailureLog {
    /// Records that a watch has failed.
    pub(super) fn failed(&self, watch: &'static str, failure: Failure, effect: &'static str) {
        self.failing(|failing| failing.insert(watch, (failure, effect)));
        self.0.changed.notify_one();
    }

    /// Records that a watch has received a response.
    pub(super) fn recovered(&self, watch: &'static str) {
        if self.failing(|failing| failing.remove(watch)).is_some() {
            self.0.changed.notify_one();
        }
    }

    fn failing<T>(
        &self,
        access: impl FnOnce(&mut BTreeMap<&'static str, (Failure, &'static str)>) -> T,
    ) -> T {
        let mut failing = self
            .0
            .failing
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        access(&mut failing)
    }

    /// Logs failures and recoveries.
    pub(super) async fn run(self) {
        let mut reports = Reports::default();
        loop {
            match reports.next_repeat() {
                // Either ends the wait.
                Some(repeat) => drop(timeout_at(repeat, self.0.changed.notified()).await),
                None => self.0.changed.notified().await,
            }
            sleep(COLLECT_TIME).await;
            let failing = self.failing(|failing| failing.clone());
            for line in reports.update(&failing, Instant::now()) {
                line.log();
            }
        }
    }
}

/// A line of the log.
#[derive(Debug, PartialEq, Eq)]
enum Line {
    Failed { message: String, error: String },
    Recovered,
}

impl Line {
    fn log(&self) {
        match self {
            Self::Failed { message, error } => tracing::warn!(error, "{message}"),
            Self::Recovered => tracing::info!("all watches of the API server work again"),
        }
    }
}

/// Causes that were logged, and the time of their next line.
#[derive(Debug, Default)]
struct Reports {
    causes: BTreeMap<Cause, Report>,
    /// A failure was logged, and no recovery since.
    failure_logged: bool,
}

#[derive(Debug)]
struct Report {
    watches: Vec<&'static str>,
    interval: Duration,
    repeat_at: Instant,
}

impl Reports {
    fn next_repeat(&self) -> Option<Instant> {
        self.causes.values().map(|report| report.repeat_at).min()
    }

    /// Returns the lines to log now.
    fn update(
        &mut self,
        failing: &BTreeMap<&'static str, (Failure, &'static str)>,
        now: Instant,
    ) -> Vec<Line> {
        let mut lines = Vec::new();
        let mut causes: BTreeMap<&Cause, Vec<&'static str>> = BTreeMap::new();
        for (watch, (failure, _)) in failing {
            causes.entry(&failure.cause).or_default().push(*watch);
        }
        for (cause, watches) in &causes {
            let first = &failing[watches[0]];
            let line = || Line::Failed {
                message: message(cause, watches, first.1),
                error: first.0.error.clone(),
            };
            match self.causes.get_mut(*cause) {
                None => {
                    lines.push(line());
                    let report = Report {
                        watches: watches.clone(),
                        interval: MIN_INTERVAL,
                        repeat_at: now + MIN_INTERVAL,
                    };
                    self.causes.insert((*cause).clone(), report);
                }
                Some(report) => {
                    // The line of a missing permission names the resources, so that a further one
                    // is news. For other causes it is not.
                    let is_news = matches!(cause, Cause::Denied { .. })
                        && watches.iter().any(|watch| !report.watches.contains(watch));
                    if is_news || report.repeat_at <= now {
                        lines.push(line());
                        report.watches.clone_from(watches);
                        report.interval = (report.interval * 2).min(MAX_INTERVAL);
                        report.repeat_at = now + report.interval;
                    }
                }
            }
        }
        // A cause that comes and goes is not new until its interval has passed.
        let lasts =
            |cause: &Cause, report: &Report| causes.contains_key(cause) || report.repeat_at > now;
        self.causes.retain(|cause, report| lasts(cause, report));
        if !lines.is_empty() {
            self.failure_logged = true;
        } else if failing.is_empty() && std::mem::take(&mut self.failure_logged) {
            lines.push(Line::Recovered);
        }
        lines
    }
}

/// Message of a line: what fails, the remedy, and the effect on requests.
fn message(cause: &Cause, watches: &[&'static str], effect: &str) -> String {
    match cause {
        Cause::Denied { verb, remedy } => {
            let resource = |watch: &&'static str| match *watch {
                AUTHENTICATION => "configmaps",
                watch => watch,
            };
            let resources: Vec<_> = watches.iter().map(resource).collect();
            let resources = join(&resources);
            format!("the API server denies the bastion {verb} on {resources}; {remedy}; {effect}")
        }
        Cause::Unauthenticated => format!("{CHECK_CREDENTIALS}; {effect}"),
        Cause::Unreachable { server } => {
            format!("cannot reach the API server {server}; {effect}; retrying")
        }
        Cause::Other { .. } => {
            format!("watch of {} failed; {effect}; retrying", join(watches))
        }
    }
}

/// Joins names as `a, b and c`.
fn join(names: &[&str]) -> String {
    match names {
        [] => String::new(),
        [name] => (*name).to_owned(),
        [first @ .., last] => format!("{} and {last}", first.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EFFECT: &str = "not ready";

    fn failing(
        watches: &[&'static str],
        cause: &Cause,
    ) -> BTreeMap<&'static str, (Failure, &'static str)> {
        let failure = |watch: &str| Failure {
            cause: cause.clone(),
            error: format!("{watch} failed"),
        };
        watches
            .iter()
            .map(|watch| (*watch, (failure(watch), EFFECT)))
            .collect()
    }

    fn denied() -> Cause {
        Cause::Denied {
            verb: "list",
            remedy: "apply it",
        }
    }

    fn failed(message: &str, error: &str) -> Vec<Line> {
        vec![Line::Failed {
            message: message.into(),
            error: error.into(),
        }]
    }

    #[test]
    fn watches_with_the_same_cause_share_a_line() {
        let now = Instant::now();
        let watches = ["nodes", "pods", "services"];
        assert_eq!(
            Reports::default().update(&failing(&watches, &denied()), now),
            failed(
                "the API server denies the bastion list on nodes, pods and services; apply it; \
                 not ready",
                "nodes failed"
            )
        );
        let server = "https://192.0.2.1:6443".to_owned();
        assert_eq!(
            Reports::default().update(&failing(&watches, &Cause::Unreachable { server }), now),
            failed(
                "cannot reach the API server https://192.0.2.1:6443; not ready; retrying",
                "nodes failed"
            )
        );
    }

    #[test]
    fn repeats_a_lasting_cause_at_growing_intervals() {
        let start = Instant::now();
        let mut reports = Reports::default();
        let failing = failing(&["pods"], &denied());
        let logged: Vec<u64> = (0..=120 * 60)
            .filter(|second| {
                let now = start + Duration::from_secs(*second);
                !reports.update(&failing, now).is_empty()
            })
            .collect();
        let minutes: Vec<_> = logged.iter().map(|second| second / 60).collect();
        assert_eq!(minutes, [0, 1, 3, 7, 15, 31, 47, 63, 79, 95, 111]);
    }

    #[test]
    fn names_resources_that_are_denied_later() {
        let now = Instant::now();
        let mut reports = Reports::default();
        assert_eq!(
            reports.update(&failing(&["nodes"], &denied()), now).len(),
            1
        );
        let both = failing(&["nodes", "pods"], &denied());
        assert_eq!(reports.update(&both, now).len(), 1);
        assert_eq!(reports.update(&both, now), []);
        // An outage has no further news.
        let server = String::new();
        let outage = Cause::Unreachable { server };
        let mut reports = Reports::default();
        assert_eq!(reports.update(&failing(&["nodes"], &outage), now).len(), 1);
        assert_eq!(
            reports.update(&failing(&["nodes", "pods"], &outage), now),
            []
        );
    }

    #[test]
    fn logs_recovery_once_and_a_flapping_cause_once_per_interval() {
        let start = Instant::now();
        let mut reports = Reports::default();
        let (failing, none) = (failing(&["pods"], &denied()), BTreeMap::new());
        let mut lines = 0;
        for second in 0..30 {
            let now = start + Duration::from_secs(second);
            lines += reports.update(&failing, now).len();
            let recovered = reports.update(&none, now);
            assert!(recovered.is_empty() || recovered == [Line::Recovered]);
            lines += recovered.len();
        }
        assert_eq!(lines, 2);
        let later = start + Duration::from_mins(2);
        reports.update(&none, later);
        assert_eq!(
            reports.next_repeat(),
            None,
            "nothing wakes the task for a past cause"
        );
        assert_eq!(reports.update(&failing, later).len(), 1);
    }
}
