//! Samples of a workload, their ratios to the reference, and the comparison with the goal.

use crate::statistics::{Sample, Spread};
use crate::workloads::{APISERVER, BASTION, Goal, Workload};

/// Samples of all peers in one workload.
#[derive(Debug)]
pub struct Outcome {
    pub workload: &'static Workload,
    pub peers: Vec<Samples>,
}

/// Samples of one peer, one for each round.
#[derive(Debug)]
pub struct Samples {
    pub name: &'static str,
    pub rounds: Vec<Sample>,
}

impl Outcome {
    pub fn new(workload: &'static Workload) -> Self {
        Self {
            workload,
            peers: Vec::new(),
        }
    }

    /// Adds the sample of a round.
    pub fn push(&mut self, name: &'static str, sample: Sample) {
        match self.peers.iter_mut().find(|peer| peer.name == name) {
            Some(peer) => peer.rounds.push(sample),
            None => self.peers.push(Samples {
                name,
                rounds: vec![sample],
            }),
        }
    }

    pub fn figure(&self, name: &str) -> Option<Spread> {
        Spread::new(self.peer(name)?.rounds.iter().map(|sample| sample.figure))
    }

    /// Returns the ratio of a peer to the reference.
    pub fn ratio(&self, name: &str) -> Option<Spread> {
        self.quotient(name, self.workload.measure.reference())
    }

    /// Returns the ratio of the CPU time of kube-apiserver to that of the bastion.
    pub fn apiserver_ratio(&self) -> Option<Spread> {
        self.quotient(APISERVER, BASTION)
    }

    /// Goal as a ratio to the reference.
    pub fn goal_ratio(&self) -> Option<f64> {
        match self.workload.goal {
            Goal::Ratio(limit) => Some(limit),
            Goal::Figure(limit) => {
                Some(limit / self.figure(self.workload.measure.reference())?.median)
            }
        }
    }

    /// Returns whether the median of a peer reaches the goal.
    pub fn is_met_by(&self, name: &str) -> Option<bool> {
        Some(match self.workload.goal {
            Goal::Ratio(limit) => self.ratio(name)?.median <= limit,
            Goal::Figure(limit) => self.figure(name)?.median <= limit,
        })
    }

    /// Returns quotients of each round, because the speed of the machine changes between rounds.
    fn quotient(&self, name: &str, reference: &str) -> Option<Spread> {
        let (own, other) = (self.peer(name)?, self.peer(reference)?);
        let rounds = own.rounds.iter().zip(&other.rounds);
        Spread::new(rounds.map(|(own, other)| own.figure / other.figure))
    }

    fn peer(&self, name: &str) -> Option<&Samples> {
        self.peers.iter().find(|peer| peer.name == name)
    }
}
