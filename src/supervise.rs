//! Supervision of background tasks: restarts a task that ends, or ends the process.
//!
//! Every task outside the request path is registered in one [`Supervisor`] with a name and one of
//! two policies:
//!
//! - [`restart`](Supervisor::restart): a panic of the task cannot leave inconsistent state. The
//!   task is restarted with exponential backoff and jitter; the last known state is served
//!   meanwhile.
//! - [`fatal`](Supervisor::fatal): the process cannot work correctly without the task, or a panic
//!   may leave inconsistent state. The process ends, and the kubelet restarts it.
//!
//! Both log an error and add a degraded line to `/readyz`; restarts are counted in
//! `kube_bastion_task_restarts_total`.

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

/// Delay of the first restart, which doubles up to [`MAX_BACKOFF`].
const MIN_BACKOFF: Duration = Duration::from_secs(1);
/// Maximum delay of a restart. Short enough for a quick recovery from a temporary failure, long
/// enough that a permanent one does not flood the log.
const MAX_BACKOFF: Duration = Duration::from_mins(1);
/// Time after which a restarted task counts as recovered. Longer than the maximum delay, so that a
/// task that keeps failing is never reported as recovered.
const RECOVERY_TIME: Duration = Duration::from_secs(90);

/// Runs the background tasks of the process. Dropping it aborts them all.
#[derive(Debug)]
pub struct Supervisor {
    tasks: JoinSet<Result<(), TaskError>>,
    ready: Ready,
    metrics: Metrics,
    drain: Drain,
}

/// A fatal task ended.
#[derive(Debug, thiserror::Error)]
#[error("the background task {task} {end}; exiting for a restart")]
pub struct TaskError {
    task: &'static str,
    end: TaskEnd,
}

/// Unexpected end of a background task, as the predicate of a sentence about the task.
#[derive(Clone, Debug, thiserror::Error)]
pub enum TaskEnd {
    #[error("ended unexpectedly")]
    Returned,
    /// Text of the error.
    #[error("failed: {0}")]
    Failed(String),
    #[error("panicked: {0}")]
    Panicked(String),
}

/// Return value of a background task. No task returns while the process runs, unless it fails.
pub trait Outcome {
    fn into_end(self) -> TaskEnd;
}

impl Outcome for () {
    fn into_end(self) -> TaskEnd {
        TaskEnd::Returned
    }
}

impl<E: Display> Outcome for Result<(), E> {
    fn into_end(self) -> TaskEnd {
        match self {
            Ok(()) => TaskEnd::Returned,
            Err(error) => TaskEnd::Failed(error.to_string()),
        }
    }
}

impl Supervisor {
    /// Creates a supervisor without tasks. After the begin of `drain`, tasks may end without a
    /// report.
    pub fn new(ready: Ready, metrics: Metrics, drain: Drain) -> Self {
        Self {
            tasks: JoinSet::new(),
            ready,
            metrics,
            drain,
        }
    }

    /// Runs `task()` again whenever it returns or panics. `name` identifies it in `/readyz`, log
    /// and metrics.
    ///
    /// Must be called within the control runtime.
    pub fn restart<F, T>(&mut self, name: &'static str, task: F)
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
        // Creates the counter at 0, so that alerts on its increase see the first restart.
        metrics.supervised_task(name);
        self.tasks.spawn(async move {
            run_with_restarts(name, task, ready, metrics, drain).await;
            Ok(())
        });
    }

    /// Runs `task`. If it returns or panics before the drain begins, [`Self::failed`] returns, and
    /// the process must end.
    ///
    /// Must be called within the control runtime.
    pub fn fatal<T>(&mut self, name: &'static str, task: T)
    where
        T: Future<Output: Outcome> + Send + 'static,
    {
        let (ready, drain) = (self.ready.clone(), self.drain.clone());
        self.tasks.spawn(async move {
            let end = end_of(task).await;
            if drain.begun().now_or_never().is_some() {
                return Ok(());
            }
            tracing::error!(
                task = name,
                error = %end,
                "required background task ended; the process exits"
            );
            ready.set_degraded(
                name,
                format!("the background task {end}; the process exits"),
            );
            Err(TaskError { task: name, end })
        });
    }

    /// Waits for the end of a fatal task.
    pub async fn failed(&mut self) -> TaskError {
        while let Some(ended) = self.tasks.join_next().await {
            match ended {
                Ok(Ok(())) => {}
                Ok(Err(error)) => return error,
                // The supervision of a task panicked, so the end of that task would not be noticed.
                Err(error) => {
                    return TaskError {
                        task: "supervision",
                        end: TaskEnd::Failed(error.to_string()),
                    };
                }
            }
        }
        std::future::pending().await
    }
}

/// Runs `task()` until the drain begins, with backoff between the runs.
async fn run_with_restarts<F, T>(
    name: &'static str,
    mut task: F,
    ready: Ready,
    metrics: Metrics,
    drain: Drain,
) where
    F: FnMut() -> T,
    T: Future<Output: Outcome>,
{
    let mut backoff = MIN_BACKOFF;
    let mut degraded = false;
    loop {
        // Within the future, so that a panic of the factory counts as one of the task.
        let mut running = pin!(end_of(async { task().await }));
        let mut recovered = false;
        let end = tokio::select! {
            end = &mut running => end,
            () = tokio::time::sleep(RECOVERY_TIME) => {
                recovered = true;
                if std::mem::take(&mut degraded) {
                    tracing::info!(task = name, "restarted background task has recovered");
                    ready.clear_degraded(name);
                }
                running.await
            }
        };
        // Tasks end when the drain begins.
        if drain.begun().now_or_never().is_some() {
            return;
        }
        if recovered {
            backoff = MIN_BACKOFF;
        }
        // Jitter, because tasks and replicas that fail from one cause would otherwise
        // restart together.
        let delay = backoff.mul_f64(0.5 + fastrand::f64() / 2.0);
        tracing::error!(
            task = name,
            error = %end,
            restart_in_seconds = delay.as_secs_f64(),
            "background task ended; restarting it"
        );
        ready.set_degraded(name, format!("the background task {end}; restarting it"));
        degraded = true;
        metrics.task_restarted(name);
        tokio::select! {
            () = tokio::time::sleep(delay) => {}
            () = drain.begun() => return,
        }
        backoff = (backoff * 2).min(MAX_BACKOFF);
    }
}

/// Runs a task to its end and returns the kind of end.
async fn end_of<T: Outcome>(task: impl Future<Output = T>) -> TaskEnd {
    match AssertUnwindSafe(task).catch_unwind().await {
        Ok(outcome) => outcome.into_end(),
        Err(panic) => TaskEnd::Panicked(message(&*panic).to_owned()),
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
    use crate::testing::eventually;

    const WAIT_TIMEOUT: Duration = Duration::from_hours(1);

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

    #[tokio::test(start_paused = true)]
    async fn reports_restarted_task_as_degraded_until_it_recovers() {
        let (mut supervisor, ready, _drain, registry) = supervisor();
        let runs = Arc::<AtomicUsize>::default();
        let counted = Arc::clone(&runs);
        supervisor.restart("sweep", move || {
            let run = counted.fetch_add(1, Ordering::Relaxed);
            async move {
                assert!(run >= 3, "run {run} fails");
                std::future::pending::<()>().await;
            }
        });
        assert_eq!(
            restarts(&registry, "sweep"),
            Some(0),
            "the metric exists before a failure"
        );
        eventually(WAIT_TIMEOUT, || {
            ready.report().1.contains("[!]sweep degraded")
        })
        .await;
        let (is_ready, report) = ready.report();
        assert!(
            is_ready && report.contains("panicked: run 0 fails"),
            "{report}"
        );
        eventually(WAIT_TIMEOUT, || runs.load(Ordering::Relaxed) == 4).await;
        assert!(
            ready.report().1.contains("run 2 fails"),
            "it has not recovered yet"
        );
        eventually(WAIT_TIMEOUT, || !ready.report().1.contains("[!]")).await;
        assert_eq!(
            (runs.load(Ordering::Relaxed), restarts(&registry, "sweep")),
            (4, Some(3))
        );
    }

    #[tokio::test(start_paused = true)]
    async fn restarts_failed_task_and_reports_its_error() {
        let (mut supervisor, ready, _drain, registry) = supervisor();
        supervisor.restart("admin", || async {
            Err::<(), _>(std::io::Error::other("the socket broke"))
        });
        eventually(WAIT_TIMEOUT, || restarts(&registry, "admin") == Some(5)).await;
        assert!(
            ready.report().1.contains("failed: the socket broke"),
            "{}",
            ready.report().1
        );
    }

    #[tokio::test]
    async fn fails_when_fatal_task_panics() {
        let (mut supervisor, ready, _drain, _registry) = supervisor();
        supervisor.fatal("index", async {
            assert!(returns_false().await, "inconsistent state");
        });
        let error = supervisor.failed().await.to_string();
        assert!(
            error.contains("task index panicked: inconsistent state"),
            "{error}"
        );
        assert!(ready.report().1.contains("[!]index degraded"));
    }

    async fn returns_false() -> bool {
        tokio::task::yield_now().await;
        false
    }

    #[tokio::test(start_paused = true)]
    async fn ignores_ended_tasks_while_draining() {
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
