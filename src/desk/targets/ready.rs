//! Selection among the ready pods of a target.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::Pod;

use super::lookup::Pods;
use super::pods;
use crate::desk::api::Api;
use crate::desk::targets::DialError;

/// Time for which a list of pods is used.
const PODS_TTL: Duration = Duration::from_secs(2);

/// The ready pods of a target, which are listed again when they may have changed.
#[derive(Debug)]
pub struct ReadyPods {
    api: Rc<Api>,
    namespace: String,
    pods: Pods,
    listed: RefCell<Option<(Vec<Pod>, Instant)>>,
    turn: Cell<usize>,
}

impl ReadyPods {
    pub fn new(api: Rc<Api>, namespace: &str, pods: Pods) -> Self {
        Self {
            api,
            namespace: namespace.to_owned(),
            pods,
            listed: RefCell::default(),
            turn: Cell::new(0),
        }
    }

    /// Returns the ready pods in turn.
    ///
    /// # Errors
    /// [`NoPod`](pods::NoPod) with the reason if none is ready, or a failed look-up.
    pub async fn next(&self) -> Result<Pod, DialError> {
        let turn = self.turn.get();
        self.turn.set(turn.wrapping_add(1));
        self.pick(turn).await
    }

    /// Returns the same pod as long as it is ready.
    ///
    /// # Errors
    /// As [`Self::next`].
    pub async fn current(&self) -> Result<Pod, DialError> {
        self.pick(self.turn.get()).await
    }

    /// Lists the pods again before the next use, and takes the next one.
    pub fn forget(&self) {
        self.turn.set(self.turn.get().wrapping_add(1));
        self.listed.borrow_mut().take();
    }

    async fn pick(&self, turn: usize) -> Result<Pod, DialError> {
        let fresh = match &*self.listed.borrow() {
            Some((ready, listed)) if listed.elapsed() < PODS_TTL && !ready.is_empty() => {
                Some(ready[turn % ready.len()].clone())
            }
            _ => None,
        };
        if let Some(pod) = fresh {
            return Ok(pod);
        }
        let all = pods::list(&self.api, &self.namespace, &self.pods).await?;
        let mut ready: Vec<_> = all
            .iter()
            .filter(|pod| pods::is_ready(pod))
            .cloned()
            .collect();
        ready.sort_by(|a, b| a.metadata.name.cmp(&b.metadata.name));
        if ready.is_empty() {
            let what = match &self.pods {
                Pods::Selected(selector) => selector,
                Pods::Named(name) => name,
                Pods::None => "",
            };
            return Err(pods::explain(&all, what).into());
        }
        let pod = ready[turn % ready.len()].clone();
        *self.listed.borrow_mut() = Some((ready, Instant::now()));
        Ok(pod)
    }
}
