//! The threads that serve: each has a runtime of its own, so that no request wakes another thread
//! or waits for its lock.

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

use crate::balance::LoadBalancer;
use crate::drain::Drain;
use crate::forward::{Dialer, Forwarder, Pool, RetryPolicy, STALL_CHECK};
use crate::listen::{Limits, Listener};
use crate::proxy::{Proxy, Stages};
use crate::telemetry::{AccessLog, Recorder};
use crate::tls::ServerTls;

/// How long a line of the access log may wait for company.
const FLUSH: Duration = Duration::from_millis(100);
/// How often idle connections are looked through.
const SWEEP: Duration = Duration::from_secs(5);

/// A bound port.
#[derive(Debug)]
pub(super) struct Port {
    pub socket: TcpListener,
    /// None for plain HTTP.
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

/// Builds what the workers share.
#[derive(Debug)]
pub(super) struct Shared {
    pub stages: Arc<Stages>,
    pub dialer: Arc<Dialer>,
    pub balance: Arc<LoadBalancer>,
    pub kubelet_token: Arc<ArcSwapOption<HeaderValue>>,
    pub limits: Limits,
    pub access: Option<Arc<AccessLog>>,
    pub drain: Drain,
}

/// Starts `count` workers on the ports. They end when the drain is over.
pub(super) fn start(
    count: usize,
    ports: &[Port],
    shared: Shared,
) -> Result<Vec<JoinHandle<Result<()>>>> {
    let shared = Arc::new(shared);
    let worker = |index| {
        // Clones of its own, which it closes when the drain begins: nobody else may hold a port
        // open.
        let ports = ports
            .iter()
            .map(Port::try_clone)
            .collect::<std::io::Result<_>>()?;
        let shared = Arc::clone(&shared);
        let thread = std::thread::Builder::new().name(format!("worker-{index}"));
        thread
            .spawn(move || run(ports, &shared))
            .context("cannot start a worker thread")
    };
    (0..count).map(worker).collect()
}

fn run(ports: Vec<Port>, shared: &Shared) -> Result<()> {
    let runtime = Builder::new_current_thread()
        .enable_all()
        .build_local(LocalOptions::default())
        .context("cannot start a worker's runtime")?;
    let served = runtime.block_on(serve(ports, shared));
    // What was cut is dropped here, and its records with it, before the access log closes.
    drop(runtime);
    served
}

async fn serve(ports: Vec<Port>, shared: &Shared) -> Result<()> {
    let Shared {
        stages,
        dialer,
        balance,
        kubelet_token,
        limits,
        access,
        drain,
    } = shared;
    let tasks = TaskTracker::new();
    let mut background = JoinSet::new();
    let recorder = Recorder::new(stages.metrics.clone(), access.as_deref());
    let pool = Rc::new(Pool::new(Arc::clone(dialer), Arc::clone(balance)));
    let proxy = Rc::new(Proxy {
        stages: Arc::clone(stages),
        forwarder: Forwarder {
            pool: Rc::clone(&pool),
            balance: Arc::clone(balance),
            retry: RetryPolicy::new(&dialer.settings, stages.metrics.retries.clone()),
            kubelet_token: Arc::clone(kubelet_token),
        },
        recorder: Rc::clone(&recorder),
        drain: drain.clone(),
        tasks: tasks.clone(),
    });
    for Port { socket, tls } in ports {
        let socket = tokio::net::TcpListener::from_std(socket)?;
        let listener = Listener {
            tls,
            proxy: Rc::clone(&proxy),
            limits: limits.clone(),
            metrics: stages.metrics.clone(),
            drain: drain.clone(),
            tasks: tasks.clone(),
        };
        background.spawn_local(tasks.track_future(listener.run(socket)));
    }
    background.spawn_local(every(FLUSH, move || recorder.flush()));
    let swept = Rc::clone(&pool);
    background.spawn_local(every(SWEEP, move || swept.sweep()));
    background.spawn_local(every(STALL_CHECK, move || pool.detect_stalls()));

    until_drained(&mut background, drain).await?;
    tasks.close();
    tokio::select! {
        () = tasks.wait() => {}
        () = drain.forced() => {}
    }
    Ok(())
}

/// Waits for the drain. No background task of a worker ends before it: one that panicked would
/// leave the worker without its port, its log or its watch over stalled endpoints, so the process
/// ends, to be started again.
async fn until_drained(background: &mut JoinSet<()>, drain: &Drain) -> Result<()> {
    tokio::select! {
        // Listeners end with the drain, which is no fault of theirs.
        biased;
        () = drain.begun() => Ok(()),
        Some(ended) = background.join_next() => match ended {
            Ok(()) => bail!("a background task of a worker ended"),
            Err(error) => Err(error).context("a background task of a worker panicked"),
        },
    }
}

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
    async fn a_background_task_that_panics_ends_its_worker() {
        let mut background = JoinSet::new();
        background.spawn(std::future::pending::<()>());
        background.spawn(async { panic!("a fault") });
        let ended = until_drained(&mut background, &Drain::default())
            .await
            .unwrap_err();
        assert!(format!("{ended:#}").contains("panicked"), "{ended:#}");
    }

    #[tokio::test]
    async fn tasks_may_end_with_the_drain() {
        let (mut background, drain) = (JoinSet::new(), Drain::default());
        background.spawn(async {});
        drain.begin();
        until_drained(&mut background, &drain).await.unwrap();
    }
}
