//! Sources of the cluster state: each sends the full set of objects, then changes.
//!
//! Each source runs in its own task and sends through one bounded channel ([`Feed`]) to the task
//! that owns the [`Writer`] ([`Index`]). A source that hangs or fails does not delay the others.
//! Changes of one kind keep their order, because one task sends them.

pub mod kubernetes;
pub mod manifests;
mod objects;

use std::time::{SystemTime, UNIX_EPOCH};

use tokio::sync::mpsc;

use crate::cluster::{Kind, Object, ObjectKey, Writer};
use crate::metrics::Metrics;
use crate::ready::BlockReady;

/// Capacity of the channel to the index, in changes. A source waits while the channel is full.
const MAX_QUEUED_CHANGES: usize = 1024;

/// A change of the index.
#[derive(Debug)]
enum Change {
    /// Replaces all objects of a kind.
    Reset(Kind, Vec<Object>),
    /// Adds or replaces an object. The time, in Unix seconds, is that of the pod change that caused
    /// the update, if the object has it.
    Apply(Object, Option<f64>),
    Delete(Kind, ObjectKey),
}

/// Sends changes to the index. Clones send to the same index.
#[derive(Clone, Debug)]
pub struct Feed(mpsc::Sender<Change>);

/// Receives changes and applies them in order.
#[derive(Debug)]
pub struct Index {
    changes: mpsc::Receiver<Change>,
    writer: Writer,
    blockers: Vec<(Kind, BlockReady)>,
    metrics: Metrics,
}

/// Creates a feed and its index. Each of `blockers` is dropped when the first full set of its kind
/// has been applied.
pub fn feed(writer: Writer, blockers: Vec<(Kind, BlockReady)>, metrics: &Metrics) -> (Feed, Index) {
    let (sender, changes) = mpsc::channel(MAX_QUEUED_CHANGES);
    (
        Feed(sender),
        Index {
            changes,
            writer,
            blockers,
            metrics: metrics.clone(),
        },
    )
}

impl Feed {
    /// Sends a change, and waits while the channel is full. Never returns after the index has
    /// ended, because the process ends then, too.
    async fn send(&self, change: Change) {
        if self.0.send(change).await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

impl Index {
    /// Applies changes until all feeds are dropped. A panic may leave a service joined in part, so
    /// the process must end after it.
    pub async fn run(mut self) {
        while let Some(change) = self.changes.recv().await {
            match change {
                Change::Reset(kind, objects) => {
                    // Before the blocker is dropped: a ready bastion has the full set.
                    self.writer.reset(kind, objects);
                    self.blockers.retain(|(blocked, _)| *blocked != kind);
                }
                Change::Apply(object, trigger) => {
                    self.writer.apply(object);
                    if let Some(trigger) = trigger {
                        let now = SystemTime::now()
                            .duration_since(UNIX_EPOCH)
                            .unwrap_or_default()
                            .as_secs_f64();
                        // The clock of the machine that wrote the time may be ahead.
                        self.metrics.endpoint_lag((now - trigger).max(0.0));
                    }
                }
                Change::Delete(kind, key) => self.writer.delete(kind, &key),
            }
        }
    }
}
