//! Worker threads. Each has its own single-threaded runtime, so that a request never wakes another
//! thread or waits for a lock of its scheduler.

use std::cell::OnceCell;
use std::net::TcpListener;
use std::rc::Rc;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use arc_swap::ArcSwapOption;
use http::HeaderValue;
use tokio::runtime::{Builder, LocalOptions};
use tokio::task::JoinSet;
use tokio_util::task::TaskTracker;
use tokio_util::task::task_tracker::TaskTrackerToken;

use super::load_balancer::Served;
use crate::balance::LoadBalancer;
use crate::drain::Drain;
use crate::forward::{Dialer, Forwarder, Pool, RetryPolicy, STALL_CHECK_INTERVAL};
use crate::listen::{Limits, Listener};
use crate::loadbalancer::listeners::DataPath;
use crate::model::Networks;
use crate::proxy::{Proxy, Stages};
use crate::telemetry::{AccessLog, LogLimit, Recorder};
use crate::tls::ServerTls;

/// Maximum time that an access-log line is buffered.
const FLUSH_INTERVAL: Duration = Duration::from_millis(100);
/// Interval at which idle connections are checked for expiry.
const POOL_SWEEP_INTERVAL: Duration = Duration::from_secs(5);

/// Bound port.
#[derive(Debug)]
pub(super) struct Port {
    pub socket: TcpListener,
    /// `None` for plain HTTP.
    pub tls: Option<Arc<ServerTls>>,
}

impl Port {
    fn try_clone(&self) -> std::io::Result<Self> {
        Ok(Self {
            socket: self.socket.try_clone()?,
            tls: self.tls.clone(),
        })
    }
}

/// State shared by all workers.
#[derive(Debug)]
pub(super) struct Shared {
    pub stages: Arc<Stages>,
    pub dialer: Arc<Dialer>,
    pub balance: Arc<LoadBalancer>,
    pub kubelet_token: Arc<ArcSwapOption<HeaderValue>>,
    pub limits: Limits,
    /// Load balancers whose connections begin with a header of the PROXY protocol.
    pub proxy_protocol: Networks,
    pub access: Option<Arc<AccessLog>>,
    /// Listeners for load balancers, if they are served.
    pub load_balancer: Option<Served>,
    pub drain: Drain,
}

/// Starts `count` workers on the ports. They end with the drain.
pub(super) fn start(
    count: usize,
    ports: &[Port],
    shared: Shared,
) -> Result<Vec<JoinHandle<Result<()>>>> {
    let shared = Arc::new(shared);
    let working = TaskTracker::new();
    let worker = |index| {
        // A port only closes with its last descriptor, so each worker has its own clones and closes
        // them when the drain begins.
        let ports = ports
            .iter()
            .map(Port::try_clone)
            .collect::<std::io::Result<_>>()?;
        let shared = Arc::clone(&shared);
        let work = Work::new(&working);
        let thread = std::thread::Builder::new().name(format!("worker-{index}"));
        thread
            .spawn(move || run(ports, &shared, work, (index, count)))
            .context("cannot start a worker thread")
    };
    let workers = (0..count).map(worker).collect();
    working.close();
    workers
}

/// Work of one worker. The others serve their UDP listeners until it is done: a port is bound until
/// the process ends, so its datagrams would be lost.
struct Work {
    /// Connections and tunnels of the worker.
    tasks: TaskTracker,
    /// Workers with open connections or tunnels.
    working: TaskTracker,
    token: TaskTrackerToken,
}

impl Work {
    fn new(working: &TaskTracker) -> Self {
        Self {
            tasks: TaskTracker::new(),
            working: working.clone(),
            token: working.token(),
        }
    }

    /// Waits until no worker has connections or tunnels.
    async fn done(self) {
        self.tasks.close();
        self.tasks.wait().await;
        drop(self.token);
        self.working.wait().await;
    }
}

/// `worker` is the number of the worker and the number of workers.
fn run(ports: Vec<Port>, shared: &Shared, work: Work, worker: (usize, usize)) -> Result<()> {
    let runtime = Builder::new_current_thread()
        .enable_all()
        .build_local(LocalOptions::default())
        .context("cannot start the runtime of a worker")?;
    let served = runtime.block_on(serve(ports, shared, work, worker));
    // Drops the aborted requests and with them their records, before the access log closes.
    drop(runtime);
    served
}

async fn serve(
    ports: Vec<Port>,
    shared: &Shared,
    work: Work,
    worker: (usize, usize),
) -> Result<()> {
    let Shared {
        stages,
        dialer,
        balance,
        kubelet_token,
        limits,
        proxy_protocol,
        access,
        load_balancer,
        drain,
    } = shared;
    let tasks = &work.tasks;
    let mut background = JoinSet::new();
    let recorder = Recorder::new(stages.metrics.clone(), access.as_deref());
    let pool = Rc::new(Pool::new(dialer.settings.clone(), Arc::clone(balance)));
    let forwarder = || Forwarder {
        dialer: Arc::clone(dialer),
        pool: Rc::clone(&pool),
        balance: Arc::clone(balance),
        retry: RetryPolicy::new(&dialer.settings, stages.metrics.retries.clone()),
        kubelet_token: Arc::clone(kubelet_token),
        dropped_lines: stages.metrics.dropped_lines.clone(),
    };
    let proxy = Rc::new(Proxy {
        stages: Arc::clone(stages),
        forwarder: forwarder(),
        recorder: Rc::clone(&recorder),
        drain: drain.clone(),
        tasks: tasks.clone(),
    });
    for Port { socket, tls } in ports {
        let socket = tokio::net::TcpListener::from_std(socket)?;
        let listener = Listener {
            tls,
            proxy_protocol: proxy_protocol.clone(),
            proxy: Rc::clone(&proxy),
            limits: limits.clone(),
            metrics: stages.metrics.clone(),
            drain: drain.clone(),
            tasks: tasks.clone(),
            warned: LogLimit::new(1),
        };
        background.spawn_local(tasks.track_future(listener.run(socket)));
    }
    if let Some(served) = load_balancer {
        let path = DataPath {
            bound: served.bound.clone(),
            cluster: Arc::clone(&stages.resolver.cluster),
            forwarder: forwarder(),
            affinity: Arc::clone(&served.affinity),
            wanted: served.wanted.clone(),
            limits: served.limits.clone(),
            metrics: stages.metrics.load_balancer.clone(),
            drain: drain.clone(),
            tasks: tasks.clone(),
            worker,
            is_on_host_network: OnceCell::new(),
        };
        background.spawn_local(path.run());
    }
    background.spawn_local(every(FLUSH_INTERVAL, move || recorder.flush()));
    let swept = Rc::clone(&pool);
    background.spawn_local(every(POOL_SWEEP_INTERVAL, move || swept.sweep()));
    background.spawn_local(every(STALL_CHECK_INTERVAL, move || pool.detect_stalls()));

    until_drained(&mut background, drain).await?;
    // Connections, tunnels and listeners of the bastion's own ports are tracked; other background
    // tasks are not, and are aborted with the set.
    tokio::select! {
        () = work.done() => {}
        () = drain.forced() => {}
    }
    Ok(())
}

/// Waits for the drain.
///
/// # Errors
/// The end of a background task before the drain. Without it the worker would lack its port, its
/// log or the detection of stalled endpoints, so the process must be restarted.
async fn until_drained(background: &mut JoinSet<()>, drain: &Drain) -> Result<()> {
    tokio::select! {
        // Listeners end when the drain begins, which is not an error.
        biased;
        () = drain.begun() => Ok(()),
        Some(ended) = background.join_next() => match ended {
            Ok(()) => bail!("background task of a worker ended"),
            Err(error) => Err(error).context("background task of a worker panicked"),
        },
    }
}

/// Runs `work` at an interval.
async fn every(interval: Duration, mut work: impl FnMut()) {
    loop {
        tokio::time::sleep(interval).await;
        work();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn panic_of_a_background_task_ends_its_worker() {
        let mut background = JoinSet::new();
        background.spawn(std::future::pending::<()>());
        background.spawn(async { panic!("test") });
        let ended = until_drained(&mut background, &Drain::default())
            .await
            .unwrap_err();
        assert!(format!("{ended:#}").contains("panicked"), "{ended:#}");
    }

    #[tokio::test(start_paused = true)]
    async fn worker_waits_for_the_connections_of_the_others() {
        let working = TaskTracker::new();
        let (idle, busy) = (Work::new(&working), Work::new(&working));
        working.close();
        let connection = busy.tasks.token();
        let mut idle = std::pin::pin!(idle.done());
        let mut busy = std::pin::pin!(busy.done());
        let both = async {
            tokio::join!(&mut idle, &mut busy);
        };
        let waited = tokio::time::timeout(Duration::from_hours(1), both).await;
        waited.expect_err("a connection is open");
        drop(connection);
        tokio::join!(idle, busy);
    }

    #[tokio::test]
    async fn tasks_can_end_with_the_drain() {
        let (mut background, drain) = (JoinSet::new(), Drain::default());
        background.spawn(async {});
        drain.begin();
        until_drained(&mut background, &drain).await.unwrap();
    }
}
