//! Readiness: a latch that is released by dropping what holds it, and what to say of a source that went away.

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
    holds: AtomicUsize,
    conditions: Mutex<Conditions>,
}

#[derive(Debug, Default)]
struct Conditions {
    /// Name → whether it is still pending. Names stay once released, so that `/readyz` lists them as fine.
    pending: BTreeMap<&'static str, bool>,
    /// Name → what is wrong, for things that do not keep the bastion from serving.
    impaired: BTreeMap<&'static str, String>,
    ending: bool,
}

/// Keeps the bastion unready until it is dropped.
#[derive(Debug)]
pub struct Hold {
    ready: Ready,
    name: &'static str,
}

impl Ready {
    /// The bastion is not ready while the hold lives; `/readyz` names it.
    pub fn hold(&self, name: &'static str) -> Hold {
        self.0.holds.fetch_add(1, Ordering::AcqRel);
        self.conditions(|conditions| conditions.pending.insert(name, true));
        Hold { ready: self.clone(), name }
    }

    /// Whether every hold has been released: the first full set of facts is in.
    pub fn is_synced(&self) -> bool {
        self.0.holds.load(Ordering::Acquire) == 0
    }

    /// Whether the hold of that name has not been released yet.
    pub fn is_pending(&self, name: &str) -> bool {
        self.conditions(|conditions| conditions.pending.get(name) == Some(&true))
    }

    /// Something that the bastion can serve without is not well. Told by `/readyz`, which stays 200: if it did not,
    /// an outage of the API would take every replica out of its Service.
    pub fn impair(&self, name: &'static str, fault: String) {
        self.conditions(|conditions| conditions.impaired.insert(name, fault));
    }

    /// It is well again.
    pub fn mend(&self, name: &'static str) {
        self.conditions(|conditions| conditions.impaired.remove(name));
    }

    /// The bastion drains: no new connections, please.
    pub fn end(&self) {
        self.conditions(|conditions| conditions.ending = true);
    }

    /// Whether the bastion is ready, and the report of `/readyz`, a line per condition.
    pub fn report(&self) -> (bool, String) {
        self.conditions(|conditions| {
            let mut report = String::new();
            for (name, pending) in &conditions.pending {
                match (pending, conditions.impaired.get(name)) {
                    (true, None) => writeln!(report, "[-]{name} pending"),
                    (true, Some(fault)) => writeln!(report, "[-]{name} pending: {fault}"),
                    (false, _) => writeln!(report, "[+]{name} ok"),
                }
                .expect("a String takes whatever is written");
            }
            for (name, fault) in &conditions.impaired {
                if conditions.pending.get(name) != Some(&true) {
                    writeln!(report, "[!]{name} impaired, the last known state serves: {fault}")
                        .expect("a String takes whatever is written");
                }
            }
            if conditions.ending {
                report.push_str("[-]draining\n");
            }
            let ready = !conditions.ending && conditions.pending.values().all(|pending| !pending);
            report.push_str(if ready { "readyz check passed\n" } else { "readyz check failed\n" });
            (ready, report)
        })
    }

    fn conditions<T>(&self, look: impl FnOnce(&mut Conditions) -> T) -> T {
        look(&mut self.0.conditions.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.ready.conditions(|conditions| conditions.pending.insert(self.name, false));
        self.ready.0.holds.fetch_sub(1, Ordering::AcqRel);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ready_once_every_hold_is_dropped() {
        let ready = Ready::default();
        let (nodes, pods) = (ready.hold("nodes"), ready.hold("pods"));
        drop(nodes);
        let (is, report) = ready.report();
        assert!(!is && report.contains("[+]nodes ok") && report.contains("[-]pods pending"), "{report}");
        assert!(!ready.is_synced());
        drop(pods);
        assert!(ready.report().0 && ready.is_synced());
    }

    #[test]
    fn an_impaired_source_is_told_and_keeps_serving() {
        let ready = Ready::default();
        drop(ready.hold("nodes"));
        ready.impair("nodes", "connection refused".into());
        let (is, report) = ready.report();
        assert!(is && report.contains("[!]nodes impaired") && report.contains("connection refused"), "{report}");
        ready.mend("nodes");
        assert!(!ready.report().1.contains("[!]"));
    }

    #[test]
    fn draining_is_not_ready() {
        let ready = Ready::default();
        ready.end();
        assert!(!ready.report().0);
    }
}
