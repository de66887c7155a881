//! Supervision of the background tasks of the process: the end of none goes unnoticed.
//!
//! Every task outside the request path is registered in one [`Supervisor`] under a name and one of
//! two policies:
//!
//! - [`restart`](Supervisor::restart): the task holds no state that a panic could leave
//!   half-changed. It is started again after a growing, jittered pause; meanwhile the last known
//!   state serves.
//! - [`fatal`](Supervisor::fatal): the process cannot go on correctly without the task, or the task
//!   may have left state half-changed. The process ends, and its supervisor (the kubelet) starts it
//!   anew.
//!
//! Either way the log has an error, `/readyz` an impaired line, and
//! `kube_bastion_task_restarts_total` a count.

use std::any::Any;
use std::fmt::Display;
use std::panic::AssertUnwindSafe;
use std::pin::pin;
use std::time::Duration;

use futures::FutureExt;
use tokio::task::JoinSet;

use crate::drain::Drain;
use crate::metrics::Metrics;
use crate::ready::Ready;

/// The pause before the first restart, which doubles up to [`MAX_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_secs(1);
/// The longest pause between restarts: short enough that a fault that passes costs little, long
/// enough that one that does not fills no log.
const MAX_PAUSE: Duration = Duration::from_mins(1);
/// Time that a restarted task must run before it counts as recovered: longer than the longest
/// pause, so that a task that keeps failing never shows as well.
const SETTLED: Duration = Duration::from_secs(90);

/// Runs the background tasks of the process. Dropping it aborts them all.
#[derive(Debug)]
pub struct Supervisor {
    tasks: JoinSet<Result<(), TaskError>>,
    ready: Ready,
    metrics: Metrics,
    drain: Drain,
}

/// A task ended without which the process cannot go on.
#[derive(Debug, thiserror::Error)]
#[error("the background task {task} {fault}; the process ends to be started again")]
pub struct TaskError {
    task: &'static str,
    fault: String,
}

/// The return value of a background task. None of them is meant to return while the process runs.
pub trait Outcome {
    /// The end of the task, as the rest of a sentence about it.
    fn fault(self) -> String;
}

impl Outcome for () {
    fn fault(self) -> String {
        "ended unexpectedly".into()
    }
}

impl<E: Display> Outcome for Result<(), E> {
    fn fault(self) -> String {
        match self {
            Ok(()) => ().fault(),
            Err(error) => format!("failed: {error}"),
        }
    }
}

impl Supervisor {
    /// After `drain` has begun, tasks may end without notice.
    pub fn new(ready: Ready, metrics: Metrics, drain: Drain) -> Self {
        Self {
            tasks: JoinSet::new(),
            ready,
            metrics,
            drain,
        }
    }

    /// Runs `task()`, and runs it again whenever it returns or panics. `name` is its name in
    /// `/readyz`, log and metric.
    ///
    /// Must be called within the control runtime.
    pub fn restart<F, T>(&mut self, name: &'static str, mut task: F)
    where
        F: FnMut() -> T + Send + 'static,
        T: Future<Output: Outcome> + Send + 'static,
    {
        let Self {
            ready,
            metrics,
            drain,
            ..
        } = self;
        let (ready, metrics, drain) = (ready.clone(), metrics.clone(), drain.clone());
        metrics.supervised_task(name);
        self.tasks.spawn(async move {
            let mut pause = FIRST_PAUSE;
            let mut impaired = false;
            loop {
                // A panic of the factory itself is one of the task.
                let mut running = pin!(fault_of(async { task().await }));
                let mut settled = false;
                let fault = tokio::select! {
                    fault = &mut running => fault,
                    () = tokio::time::sleep(SETTLED) => {
                        settled = true;
                        if std::mem::take(&mut impaired) {
                            tracing::info!(task = name, "the restarted background task has recovered");
                            ready.clear_degraded(name);
                        }
                        running.await
                    }
                };
                if drain.begun().now_or_never().is_some() {
                    return Ok(());
                }
                if settled {
                    pause = FIRST_PAUSE;
                }
                // Tasks that fail of one cause, as after an outage, must not come back in step.
                let jittered = pause.mul_f64(0.5 + fastrand::f64() / 2.0);
                tracing::error!(task = name, fault, pause = ?jittered, "a background task ended; restarting it");
                ready.set_degraded(name, format!("this background task {fault}; it is restarted"));
                impaired = true;
                metrics.task_restarted(name);
                tokio::select! {
                    () = tokio::time::sleep(jittered) => {}
                    () = drain.begun() => return Ok(()),
                }
                pause = (pause * 2).min(MAX_PAUSE);
            }
        });
    }

    /// Runs `task`; when it returns or panics before the drain begins, the process ends.
    ///
    /// Must be called within the control runtime.
    pub fn fatal<T>(&mut self, name: &'static str, task: T)
    where
        T: Future<Output: Outcome> + Send + 'static,
    {
        let (ready, drain) = (self.ready.clone(), self.drain.clone());
        self.tasks.spawn(async move {
            let fault = fault_of(task).await;
            if drain.begun().now_or_never().is_some() {
                return Ok(());
            }
            tracing::error!(
                task = name,
                fault,
                "a background task ended without which the process cannot go on"
            );
            ready.set_degraded(
                name,
                format!("this background task {fault}; the process ends"),
            );
            Err(TaskError { task: name, fault })
        });
    }

    /// Waits for the end of a task whose end is fatal. Never returns otherwise.
    pub async fn failed(&mut self) -> TaskError {
        while let Some(ended) = self.tasks.join_next().await {
            match ended {
                Ok(Ok(())) => {}
                Ok(Err(error)) => return error,
                // The supervision of a task panicked: nothing would notice the task's own end any
                // more.
                Err(error) => {
                    return TaskError {
                        task: "supervision",
                        fault: format!("failed: {error}"),
                    };
                }
            }
        }
        std::future::pending().await
    }
}

/// Runs a task to its end, and says how it ended.
async fn fault_of<T: Outcome>(task: impl Future<Output = T>) -> String {
    match AssertUnwindSafe(task).catch_unwind().await {
        Ok(outcome) => outcome.fault(),
        Err(panic) => format!("panicked: {}", message(&*panic)),
    }
}

fn message(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("without a message")
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use prometheus_client::registry::Registry;

    use super::*;

    fn supervisor() -> (Supervisor, Ready, Drain, Registry) {
        let (ready, drain, mut registry) =
            (Ready::default(), Drain::default(), Registry::default());
        let metrics = Metrics::new(&mut registry);
        (
            Supervisor::new(ready.clone(), metrics, drain.clone()),
            ready,
            drain,
            registry,
        )
    }

    fn restarts(registry: &Registry, task: &str) -> Option<u32> {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, registry).unwrap();
        let line = format!("kube_bastion_task_restarts_total{{task=\"{task}\"}} ");
        text.lines()
            .find_map(|found| found.strip_prefix(&line)?.parse().ok())
    }

    async fn eventually(mut is: impl FnMut() -> bool) {
        let waited = async {
            while !is() {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(Duration::from_hours(1), waited)
            .await
            .unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn restarts_panicked_task_and_readyz_says_so_until_it_holds() {
        let (mut supervisor, ready, _drain, registry) = supervisor();
        let runs = Arc::<AtomicUsize>::default();
        let counted = Arc::clone(&runs);
        supervisor.restart("sweep", move || {
            let run = counted.fetch_add(1, Ordering::Relaxed);
            async move {
                assert!(run >= 3, "run {run} breaks");
                std::future::pending::<()>().await;
            }
        });
        assert_eq!(
            restarts(&registry, "sweep"),
            Some(0),
            "a task shows before it fails"
        );
        eventually(|| ready.report().1.contains("[!]sweep impaired")).await;
        let (is, report) = ready.report();
        assert!(is && report.contains("panicked: run 0 breaks"), "{report}");
        eventually(|| runs.load(Ordering::Relaxed) == 4).await;
        assert!(
            ready.report().1.contains("run 2 breaks"),
            "it has not held yet"
        );
        eventually(|| !ready.report().1.contains("[!]")).await;
        assert_eq!(
            (runs.load(Ordering::Relaxed), restarts(&registry, "sweep")),
            (4, Some(3))
        );
    }

    #[tokio::test(start_paused = true)]
    async fn restarts_task_that_returns_with_its_error() {
        let (mut supervisor, ready, _drain, registry) = supervisor();
        supervisor.restart("admin", || async {
            Err::<(), _>(std::io::Error::other("the socket broke"))
        });
        eventually(|| restarts(&registry, "admin") == Some(5)).await;
        assert!(
            ready.report().1.contains("failed: the socket broke"),
            "{}",
            ready.report().1
        );
    }

    #[tokio::test]
    async fn ends_the_process_when_a_fatal_task_panics() {
        let (mut supervisor, ready, _drain, _registry) = supervisor();
        supervisor.fatal("index", async {
            assert!(ready_to_fail().await, "half a fact");
        });
        let error = supervisor.failed().await.to_string();
        assert!(
            error.contains("task index panicked: half a fact"),
            "{error}"
        );
        assert!(ready.report().1.contains("[!]index impaired"));
    }

    async fn ready_to_fail() -> bool {
        tokio::task::yield_now().await;
        false
    }

    #[tokio::test(start_paused = true)]
    async fn tasks_end_quietly_once_the_drain_began() {
        let (mut supervisor, ready, drain, registry) = supervisor();
        let (watching, ending) = (drain.clone(), drain.clone());
        supervisor.restart("watch", move || {
            let drain = watching.clone();
            async move { drain.begun().await }
        });
        supervisor.fatal("index", async move { ending.begun().await });
        drain.begin();
        let failed = tokio::time::timeout(Duration::from_hours(1), supervisor.failed()).await;
        assert!(failed.is_err() && !ready.report().1.contains("[!]"));
        assert_eq!(restarts(&registry, "watch"), Some(0));
    }
}
