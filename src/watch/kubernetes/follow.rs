//! Lists and watches of one kind of objects, with backoff after failures. Malformed objects are
//! skipped.

use std::pin::pin;
use std::time::Duration;

use futures::future::BoxFuture;
use futures::{FutureExt, StreamExt};
use kube::api::Api;
use kube::runtime::WatchStreamExt;
use kube::runtime::utils::Backoff;
use kube::runtime::watcher::{self, Config, DefaultBackoff, Event};
use kube::{Client, Resource};

use super::APPLY_ROLE;
use super::client::Health;
use super::failures::Failure;
use crate::cluster::ObjectKey;
use crate::ready::Ready;
use crate::watch::objects::{Item, Watched, key, trigger_time};

/// Change of the objects of one kind.
pub(super) enum Update<T> {
    /// Replaces all objects.
    Reset(Vec<T>),
    /// Adds or replaces an object. The time is the trigger time of a slice, in Unix seconds.
    Apply(T, Option<f64>),
    Delete(ObjectKey),
}

/// Receiver of the objects of one kind.
pub(super) trait Sink<K: Watched>: Clone + Send + 'static {
    /// Remedy for missing permissions.
    const REMEDY: &str = APPLY_ROLE;

    fn update(&mut self, update: Update<K::Kept>) -> impl Future<Output = ()> + Send;

    /// Returns the effect that a failure of the list or watch has on requests.
    fn failed(&self, ready: &Ready) -> &'static str;
}

/// Event of the watch of one kind.
pub(super) enum WatchEvent<T> {
    /// A list begins. The previous objects stay until it is complete.
    ListStarted,
    Listed(T),
    ListCompleted,
    /// An object was added or changed, with the trigger time of a slice.
    Changed(T, Option<f64>),
    Deleted(ObjectKey),
    /// The object is not needed, or malformed and already logged. After a malformed change, the
    /// previous version of the object stays.
    Skipped,
    /// The watch or list failed.
    Failed(watcher::Error),
}

/// Backoff after failures of a watch: a quarter of kube's, from 0.2 s to 7.5 s, plus up to the same
/// as jitter. kube's own grows to 60 s, so that after an API server had been down for a minute,
/// changes of endpoints were not seen for another 82 s. A handful of watches per replica does not
/// need that protection.
#[derive(Default)]
pub(super) struct WatchBackoff(DefaultBackoff);

impl Iterator for WatchBackoff {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        self.0.next().map(|pause| pause / 4)
    }
}

impl Backoff for WatchBackoff {
    fn reset(&mut self) {
        self.0.reset();
    }
}

/// Returns the task that lists and watches all objects of one kind.
pub(super) fn follow_all<K: Watched, S: Sink<K>>(
    client: Client,
    sink: S,
    health: Health,
) -> impl FnMut() -> BoxFuture<'static, ()> + Send + 'static + use<K, S> {
    follow(Api::<Item<K>>::all(client), Config::default(), sink, health)
}

/// Returns the task that lists and watches the selected objects of one kind.
pub(super) fn follow<K: Watched, S: Sink<K>>(
    api: Api<Item<K>>,
    selector: Config,
    sink: S,
    health: Health,
) -> impl FnMut() -> BoxFuture<'static, ()> + Send + 'static + use<K, S> {
    move || run(api.clone(), selector.clone(), sink.clone(), health.clone()).boxed()
}

/// Lists and watches one kind until the process ends, with backoff after failures.
async fn run<K: Watched, S: Sink<K>>(
    api: Api<Item<K>>,
    selector: Config,
    mut sink: S,
    health: Health,
) {
    let mut events = pin!(watcher::watcher(api, selector).backoff(WatchBackoff::default()));
    let mut list = Vec::new();
    while let Some(event) = events.next().await {
        let event = translate::<K>(event, &health);
        // kube reports the start of a list before it sends the request, so that event does not
        // show that the API server responds.
        if !matches!(event, WatchEvent::ListStarted | WatchEvent::Failed(_)) {
            health.metrics.watch_event(health.watch);
        }
        match event {
            // The list is collected here rather than applied object by object: a list that fails
            // half-way must not delete the objects that it did not reach.
            WatchEvent::ListStarted => list.clear(),
            WatchEvent::Listed(object) => list.push(object),
            WatchEvent::ListCompleted => {
                tracing::info!(
                    resource = health.watch,
                    objects = list.len(),
                    "list complete"
                );
                sink.update(Update::Reset(std::mem::take(&mut list))).await;
            }
            WatchEvent::Changed(object, trigger) => {
                sink.update(Update::Apply(object, trigger)).await;
            }
            WatchEvent::Deleted(key) => sink.update(Update::Delete(key)).await,
            WatchEvent::Skipped => {}
            WatchEvent::Failed(error) => {
                let effect = sink.failed(&health.ready);
                health.set_failed(Failure::new(&error, S::REMEDY), effect);
            }
        }
    }
}

pub(super) fn translate<K: Watched>(
    event: watcher::Result<Event<Item<K>>>,
    health: &Health,
) -> WatchEvent<K::Kept> {
    match event {
        Ok(Event::Init) => WatchEvent::ListStarted,
        Ok(Event::InitApply(item)) => match read(item, health) {
            Ok(Some(object)) => WatchEvent::Listed(object),
            Ok(None) | Err(Malformed) => WatchEvent::Skipped,
        },
        Ok(Event::InitDone) => WatchEvent::ListCompleted,
        Ok(Event::Apply(item)) => {
            let meta = item.meta();
            let (key, trigger) = (key(meta), trigger_time(meta));
            match read(item, health) {
                Ok(Some(object)) => WatchEvent::Changed(object, trigger),
                // The previous version may have been kept: a slice can lose the label of its
                // service.
                Ok(None) => WatchEvent::Deleted(key),
                Err(Malformed) => WatchEvent::Skipped,
            }
        }
        Ok(Event::Delete(item)) => WatchEvent::Deleted(key(item.meta())),
        Err(error) => WatchEvent::Failed(error),
    }
}

/// A malformed object, already logged and counted.
struct Malformed;

/// Extracts the part of an object that is kept. `None` if nothing of it is needed.
fn read<K: Watched>(item: Item<K>, health: &Health) -> Result<Option<K::Kept>, Malformed> {
    let name = key(item.meta());
    item.kept().map_err(|error| {
        tracing::warn!(resource = health.watch, %name, %error, "skipping a malformed object");
        health.metrics.watch_malformed(health.watch);
        Malformed
    })
}
