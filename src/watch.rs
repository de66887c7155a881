//! Sources of facts: each tells the index what there is, and goes on telling what changes.
//!
//! Sources run in tasks of their own and send changes through one bounded channel ([`Feed`]) to the
//! one task that owns the [`Writer`] ([`Index`]). A source that hangs or breaks holds up no other;
//! changes of one kind keep their order, because one task sends them.

pub mod kubernetes;
pub mod manifests;
mod objects;

use std::time::{SystemTime, UNIX_EPOCH};

use tokio::sync::mpsc;

use crate::cluster::{Kind, Object, ObjectKey, Writer};
use crate::metrics::Metrics;
use crate::ready::BlockReady;

/// Changes on their way to the index. A source waits while there are more: what it has read is in
/// memory already, so a longer queue would only hold it twice.
const QUEUE: usize = 1024;

/// A change of the index.
#[derive(Debug)]
enum Change {
    /// The whole set of a kind.
    Reset(Kind, Vec<Object>),
    /// One object, and when the change happened that it tells of (Unix time), where it says.
    Apply(Object, Option<f64>),
    Delete(Kind, ObjectKey),
}

/// Takes changes to the index. Clones send to the same one.
#[derive(Clone, Debug)]
pub struct Feed(mpsc::Sender<Change>);

/// The writing end: applies changes in the order in which they come.
#[derive(Debug)]
pub struct Index {
    changes: mpsc::Receiver<Change>,
    writer: Writer,
    holds: Vec<(Kind, BlockReady)>,
    metrics: Metrics,
}

/// A feed and the index that it leads to. Each of `holds` is released when the first whole set of
/// its kind is in.
pub fn feed(writer: Writer, holds: Vec<(Kind, BlockReady)>, metrics: &Metrics) -> (Feed, Index) {
    let (sender, changes) = mpsc::channel(QUEUE);
    (
        Feed(sender),
        Index {
            changes,
            writer,
            holds,
            metrics: metrics.clone(),
        },
    )
}

impl Feed {
    /// Waits for a place in the queue. Where the index has ended, so has the process.
    async fn send(&self, change: Change) {
        if self.0.send(change).await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

impl Index {
    /// Applies changes until every [`Feed`] is gone. A panic on the way may leave a fact
    /// half-joined: the process must not go on after it.
    pub async fn run(mut self) {
        while let Some(change) = self.changes.recv().await {
            match change {
                Change::Reset(kind, objects) => {
                    self.writer.reset(kind, objects);
                    self.holds.retain(|(held, _)| *held != kind);
                }
                Change::Apply(object, trigger) => {
                    self.writer.apply(object);
                    if let Some(trigger) = trigger {
                        let now = SystemTime::now()
                            .duration_since(UNIX_EPOCH)
                            .unwrap_or_default()
                            .as_secs_f64();
                        self.metrics.endpoint_lag((now - trigger).max(0.0));
                    }
                }
                Change::Delete(kind, key) => self.writer.delete(kind, &key),
            }
        }
    }
}
