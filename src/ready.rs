//! Readiness of the process: conditions that block it until their blocker is dropped, and degraded
//! conditions that are reported only.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// Pending and degraded conditions. Clones share the state.
#[derive(Clone, Debug, Default)]
pub struct Ready(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    /// Number of blockers. An atomic, because each request reads it.
    blockers: AtomicUsize,
    conditions: Mutex<Conditions>,
}

#[derive(Debug, Default)]
struct Conditions {
    /// Name → true while pending. Names stay afterwards, so that `/readyz` lists them as ok.
    pending: BTreeMap<&'static str, bool>,
    /// Conditions that do not make the bastion unready, by name.
    degraded: BTreeMap<&'static str, Degraded>,
    draining: bool,
}

#[derive(Debug)]
struct Degraded {
    reason: String,
    obstacle: Option<Obstacle>,
}

/// Reason why the initial state is not loaded, without details of the cluster, for callers that are
/// not authenticated yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Obstacle {
    /// The API server cannot be reached.
    Unreachable,
    /// The API server denies access, which an operator must grant.
    Denied,
}

/// Makes the bastion unready until it is dropped.
#[derive(Debug)]
pub struct BlockReady {
    ready: Ready,
    name: &'static str,
}

impl Ready {
    /// Blocks readiness while the returned value lives. `/readyz` lists `name` as pending.
    pub fn block(&self, name: &'static str) -> BlockReady {
        self.0.blockers.fetch_add(1, Ordering::AcqRel);
        self.conditions(|conditions| conditions.pending.insert(name, true));
        BlockReady {
            ready: self.clone(),
            name,
        }
    }

    /// Returns true if nothing blocks readiness: the initial cluster state has been loaded.
    pub fn is_synced(&self) -> bool {
        self.0.blockers.load(Ordering::Acquire) == 0
    }

    /// Returns true if the condition of this name is pending.
    pub fn is_pending(&self, name: &str) -> bool {
        self.conditions(|conditions| conditions.pending.get(name) == Some(&true))
    }

    /// Reports a condition that the bastion can serve without. `/readyz` stays 200: otherwise an
    /// outage of the API server would remove all replicas from their Service.
    pub fn set_degraded(&self, name: &'static str, reason: String) {
        self.set_degraded_by(name, reason, None);
    }

    /// Reports a condition as [`Self::set_degraded`] does, with its reason for callers.
    pub fn set_degraded_by(&self, name: &'static str, reason: String, obstacle: Option<Obstacle>) {
        let degraded = Degraded { reason, obstacle };
        self.conditions(|conditions| conditions.degraded.insert(name, degraded));
    }

    /// Returns the reason why a pending condition is not met. A denial precedes, because waiting
    /// does not help.
    pub fn obstacle(&self) -> Option<Obstacle> {
        self.conditions(|conditions| {
            let pending = conditions
                .degraded
                .iter()
                .filter(|(name, _)| conditions.pending.get(*name) == Some(&true));
            pending.filter_map(|(_, degraded)| degraded.obstacle).max()
        })
    }

    /// Removes a degraded condition.
    pub fn clear_degraded(&self, name: &'static str) {
        self.conditions(|conditions| conditions.degraded.remove(name));
    }

    /// Makes the bastion unready for the rest of its life, so that no new connections arrive.
    pub fn set_draining(&self) {
        self.conditions(|conditions| conditions.draining = true);
    }

    /// Returns true if the bastion is ready, and the report of `/readyz` with a line per condition.
    pub fn report(&self) -> (bool, String) {
        self.conditions(|conditions| {
            let mut report = String::new();
            for (name, pending) in &conditions.pending {
                match (pending, conditions.degraded.get(name)) {
                    (true, None) => writeln!(report, "[-]{name} pending"),
                    (true, Some(Degraded { reason, .. })) => {
                        writeln!(report, "[-]{name} pending: {reason}")
                    }
                    (false, None) => writeln!(report, "[+]{name} ok"),
                    // Listed below, once.
                    (false, Some(_)) => Ok(()),
                }
                .expect("writing to a String cannot fail");
            }
            for (name, Degraded { reason, .. }) in &conditions.degraded {
                if conditions.pending.get(name) != Some(&true) {
                    writeln!(report, "[!]{name} degraded: {reason}")
                        .expect("writing to a String cannot fail");
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

    fn conditions<T>(&self, access: impl FnOnce(&mut Conditions) -> T) -> T {
        // A panic of another thread cannot leave the maps inconsistent, so a poisoned lock is
        // usable.
        access(
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
    fn becomes_ready_when_all_blockers_are_dropped() {
        let ready = Ready::default();
        let (nodes, pods) = (ready.block("nodes"), ready.block("pods"));
        drop(nodes);
        let (is_ready, report) = ready.report();
        assert!(
            !is_ready && report.contains("[+]nodes ok") && report.contains("[-]pods pending"),
            "{report}"
        );
        assert!(!ready.is_synced());
        drop(pods);
        assert!(ready.report().0 && ready.is_synced());
    }

    #[test]
    fn reports_degraded_condition_and_stays_ready() {
        let ready = Ready::default();
        drop(ready.block("nodes"));
        ready.set_degraded("nodes", "connection refused".into());
        let (is_ready, report) = ready.report();
        assert!(
            is_ready
                && report.contains("[!]nodes degraded")
                && report.contains("connection refused")
                && !report.contains("[+]nodes"),
            "{report}"
        );
        ready.clear_degraded("nodes");
        assert_eq!(ready.report().1, "[+]nodes ok\nreadyz check passed\n");
    }

    #[test]
    fn reports_the_obstacle_of_pending_conditions_only() {
        let ready = Ready::default();
        let (nodes, pods) = (ready.block("nodes"), ready.block("pods"));
        assert_eq!(ready.obstacle(), None);
        ready.set_degraded_by("nodes", "403".into(), Some(Obstacle::Denied));
        ready.set_degraded_by("pods", "refused".into(), Some(Obstacle::Unreachable));
        assert_eq!(ready.obstacle(), Some(Obstacle::Denied));
        drop(nodes);
        assert_eq!(ready.obstacle(), Some(Obstacle::Unreachable));
        ready.set_degraded("pods", "500".into());
        assert_eq!(ready.obstacle(), None);
        drop(pods);
    }

    #[test]
    fn is_not_ready_while_draining() {
        let ready = Ready::default();
        ready.set_draining();
        assert!(!ready.report().0);
    }
}
