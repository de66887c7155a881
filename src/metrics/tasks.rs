//! Background tasks and the access log.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::Registry;

use super::register_counters;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct TaskLabel {
    task: &'static str,
}

/// Restarts of background tasks, by task.
#[derive(Clone, Debug, Default)]
pub(super) struct TaskRestarts(Family<TaskLabel, Counter>);

impl TaskRestarts {
    pub fn register(registry: &mut Registry) -> Self {
        let restarts = Self::default();
        registry.register(
            "task_restarts",
            "Background tasks that ended unexpectedly and were restarted, by task",
            restarts.0.clone(),
        );
        restarts
    }

    /// Creates the counter of a task, so that it is exposed before its first restart.
    pub fn expose(&self, task: &'static str) {
        drop(self.0.get_or_create(&TaskLabel { task }));
    }

    pub fn count(&self, task: &'static str) {
        self.0.get_or_create(&TaskLabel { task }).inc();
    }
}

/// Dropped access-log lines.
#[derive(Clone, Debug)]
pub struct LostLines {
    /// Lines of authenticated callers.
    pub authenticated: Counter,
    /// Lines of anonymous callers, and of requests that were rejected before authentication
    /// completed.
    pub unauthenticated: Counter,
}

impl LostLines {
    pub(super) fn register(registry: &mut Registry) -> Self {
        let lost = register_counters(
            registry,
            "access_log_lines_lost",
            "Access-log lines dropped because standard output was too slow",
            "authenticated",
        );
        Self {
            authenticated: lost("true"),
            unauthenticated: lost("false"),
        }
    }
}
