//! Readiness: a latch that is released by dropping what holds it, and what to say of a source that
//! went away.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// Knows what is pending and what is impaired.
#[derive(Clone, Debug, Default)]
pub struct Ready(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    /// The number of holds, so that a request learns with one load whether any is left.
    blockers: AtomicUsize,
    conditions: Mutex<Conditions>,
}

#[derive(Debug, Default)]
struct Conditions {
    /// Name → whether it is still pending. Names stay once released, so that `/readyz` lists them
    /// as fine.
    pending: BTreeMap<&'static str, bool>,
    /// Name → what is wrong, for things that do not keep the bastion from serving.
    degraded: BTreeMap<&'static str, String>,
    draining: bool,
}

/// Keeps the bastion unready until it is dropped.
#[derive(Debug)]
pub struct BlockReady {
    ready: Ready,
    name: &'static str,
}

impl Ready {
    /// The bastion is not ready while the hold lives; `/readyz` names it.
    pub fn block(&self, name: &'static str) -> BlockReady {
        self.0.blockers.fetch_add(1, Ordering::AcqRel);
        self.conditions(|conditions| conditions.pending.insert(name, true));
        BlockReady {
            ready: self.clone(),
            name,
        }
    }

    /// Whether every hold has been released: the first full set of facts is in.
    pub fn is_synced(&self) -> bool {
        self.0.blockers.load(Ordering::Acquire) == 0
    }

    /// Whether the hold of that name has not been released yet.
    pub fn is_pending(&self, name: &str) -> bool {
        self.conditions(|conditions| conditions.pending.get(name) == Some(&true))
    }

    /// Something that the bastion can serve without is not well. Told by `/readyz`, which stays
    /// 200: if it did not, an outage of the API would take every replica out of its Service.
    pub fn set_degraded(&self, name: &'static str, fault: String) {
        self.conditions(|conditions| conditions.degraded.insert(name, fault));
    }

    /// It is well again.
    pub fn clear_degraded(&self, name: &'static str) {
        self.conditions(|conditions| conditions.degraded.remove(name));
    }

    /// The bastion drains: no new connections, please.
    pub fn set_draining(&self) {
        self.conditions(|conditions| conditions.draining = true);
    }

    /// Whether the bastion is ready, and the report of `/readyz`, a line per condition.
    pub fn report(&self) -> (bool, String) {
        self.conditions(|conditions| {
            let mut report = String::new();
            for (name, pending) in &conditions.pending {
                match (pending, conditions.degraded.get(name)) {
                    (true, None) => writeln!(report, "[-]{name} pending"),
                    (true, Some(fault)) => writeln!(report, "[-]{name} pending: {fault}"),
                    (false, _) => writeln!(report, "[+]{name} ok"),
                }
                .expect("a String takes whatever is written");
            }
            for (name, fault) in &conditions.degraded {
                if conditions.pending.get(name) != Some(&true) {
                    writeln!(
                        report,
                        "[!]{name} impaired, the last known state serves: {fault}"
                    )
                    .expect("a String takes whatever is written");
                }
            }
            if conditions.draining {
                report.push_str("[-]draining\n");
            }
            let ready = !conditions.draining && conditions.pending.values().all(|pending| !pending);
            report.push_str(if ready {
                "readyz check passed\n"
            } else {
                "readyz check failed\n"
            });
            (ready, report)
        })
    }

    fn conditions<T>(&self, look: impl FnOnce(&mut Conditions) -> T) -> T {
        look(
            &mut self
                .0
                .conditions
                .lock()
                .unwrap_or_else(PoisonError::into_inner),
        )
    }
}

impl Drop for BlockReady {
    fn drop(&mut self) {
        self.ready
            .conditions(|conditions| conditions.pending.insert(self.name, false));
        self.ready.0.blockers.fetch_sub(1, Ordering::AcqRel);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ready_once_every_hold_is_dropped() {
        let ready = Ready::default();
        let (nodes, pods) = (ready.block("nodes"), ready.block("pods"));
        drop(nodes);
        let (is, report) = ready.report();
        assert!(
            !is && report.contains("[+]nodes ok") && report.contains("[-]pods pending"),
            "{report}"
        );
        assert!(!ready.is_synced());
        drop(pods);
        assert!(ready.report().0 && ready.is_synced());
    }

    #[test]
    fn an_impaired_source_is_told_and_keeps_serving() {
        let ready = Ready::default();
        drop(ready.block("nodes"));
        ready.set_degraded("nodes", "connection refused".into());
        let (is, report) = ready.report();
        assert!(
            is && report.contains("[!]nodes impaired") && report.contains("connection refused"),
            "{report}"
        );
        ready.clear_degraded("nodes");
        assert!(!ready.report().1.contains("[!]"));
    }

    #[test]
    fn draining_is_not_ready() {
        let ready = Ready::default();
        ready.set_draining();
        assert!(!ready.report().0);
    }
}
