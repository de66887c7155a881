//! Executor of hyper's HTTP/2 tasks.

/// Runs the tasks of an HTTP/2 connection on the worker that serves it. They need not be `Send`.
#[derive(Clone, Copy, Debug)]
pub struct LocalExecutor;

impl<F: Future + 'static> hyper::rt::Executor<F> for LocalExecutor {
    fn execute(&self, task: F) {
        tokio::task::spawn_local(async move {
            task.await;
        });
    }
}
