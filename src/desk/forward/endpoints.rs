//! Selection among the pods of a target, one per connection in turn.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use http::StatusCode;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use tokio::sync::Mutex;
use tokio::time::{Instant, sleep};

use crate::desk::api::{Api, ApiError, escape};
use crate::desk::targets::pods::{self, NoPod};
use crate::desk::targets::{DialError, Pods, Protocol};

/// Time for which a list of pods is used, with pods or without.
const TTL: Duration = Duration::from_secs(2);
/// Pause between two look-ups of a target without a pod.
const RETRY_PAUSE: Duration = Duration::from_secs(1);

/// Objects that lead to the pods of a target.
#[derive(Clone, Debug)]
pub enum Source {
    /// A pod or a workload, by its selector.
    Pods(Pods),
    /// A service: the ready endpoints of its slices. Those selected by its labels are used if the
    /// user may not read the slices, or none of them is ready.
    Service { name: String, labels: Pods },
}

/// Port of the pods.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TargetPort {
    /// Name of the service's port in its slices. `None` for the pods of other targets, and for
    /// services without a cluster IP, whose ports are those of the pods.
    pub slice_port: Option<String>,
    /// Number, or name of a port of a container.
    pub port: IntOrString,
}

/// Pod that may be connected to.
#[derive(Clone, Debug)]
struct Candidate {
    name: String,
    origin: Origin,
}

#[derive(Clone, Debug)]
enum Origin {
    Pod(Box<Pod>),
    /// TCP ports of the slice by their names.
    Slice(Rc<BTreeMap<String, u16>>),
}

impl Candidate {
    /// Returns the number of a port.
    fn number(&self, port: &TargetPort) -> Result<u16, NoPod> {
        let ports = match &self.origin {
            Origin::Pod(pod) => return pods::container_port(pod, &port.port),
            Origin::Slice(ports) => ports,
        };
        let named = port.slice_port.as_ref();
        let number = match (named.map(|name| ports.get(name).copied()), &port.port) {
            (Some(number), _) => number,
            (None, IntOrString::Int(number)) => u16::try_from(*number).ok(),
            (None, IntOrString::String(_)) => None,
        };
        number.ok_or_else(|| NoPod::no_port(&self.name, &port.port))
    }
}

/// Result of a look-up and its time.
type Listed = (Result<Rc<Vec<Candidate>>, NoPod>, Instant);

/// The pods of a target, which are listed again when they may have changed.
#[derive(Debug)]
pub struct Endpoints {
    api: Rc<Api>,
    namespace: String,
    source: Source,
    listed: Mutex<Option<Listed>>,
    /// The list must not be used again.
    is_stale: Cell<bool>,
    turn: Cell<usize>,
    /// Kind of pods of the last list.
    are_ready: Cell<bool>,
    /// The user may not read the slices.
    without_slices: Cell<bool>,
}

impl Endpoints {
    pub fn new(api: Rc<Api>, namespace: &str, source: Source) -> Rc<Self> {
        Rc::new(Self {
            api,
            namespace: namespace.to_owned(),
            source,
            listed: Mutex::default(),
            is_stale: Cell::new(false),
            turn: Cell::new(0),
            are_ready: Cell::new(true),
            without_slices: Cell::new(false),
        })
    }

    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// Returns false if no pod of the last list was ready: running ones are used then.
    pub fn are_ready(&self) -> bool {
        self.are_ready.get()
    }

    /// Returns the pod of the next connection and the number of its port. Pods on which the
    /// connection has failed come last.
    ///
    /// # Errors
    /// [`NoPod`] with the reason if no pod runs, or a failed look-up.
    async fn next(&self, port: &TargetPort, failed: &[String]) -> Result<(String, u16), DialError> {
        let candidates = self.candidates().await?;
        let turn = self.turn.get();
        self.turn.set(turn.wrapping_add(1));
        let count = candidates.len();
        let in_turn = |offset: usize| &candidates[turn.wrapping_add(offset) % count];
        let mut order: Vec<_> = (0..count).map(in_turn).collect();
        order.sort_by_key(|candidate| failed.contains(&candidate.name));
        let mut missing = None;
        for candidate in order {
            match candidate.number(port) {
                Ok(number) => return Ok((candidate.name.clone(), number)),
                // Pods of another version may have the port.
                Err(error) => missing = missing.or(Some(error)),
            }
        }
        Err(missing.expect("there is a candidate").into())
    }

    /// Returns the pod of the next connection as [`Self::next`]. Waits while none runs, for at most
    /// `limit`, but not for a port that all of them lack.
    ///
    /// # Errors
    /// As [`Self::next`].
    pub async fn wait(
        &self,
        port: &TargetPort,
        failed: &[String],
        limit: Duration,
    ) -> Result<(String, u16), DialError> {
        let begin = Instant::now();
        loop {
            match self.next(port, failed).await {
                Err(DialError::NoPod(NoPod::None { .. } | NoPod::NotReady(_)))
                    if begin.elapsed() < limit =>
                {
                    sleep(RETRY_PAUSE).await;
                }
                result => return result,
            }
        }
    }

    /// Lists the pods again before the next use.
    pub fn forget(&self) {
        self.is_stale.set(true);
    }

    /// Returns at least one candidate. Concurrent calls share a look-up.
    async fn candidates(&self) -> Result<Rc<Vec<Candidate>>, DialError> {
        let mut listed = self.listed.lock().await;
        if let Some((candidates, time)) = &*listed
            && time.elapsed() < TTL
            && !self.is_stale.get()
        {
            return Ok(candidates.clone()?);
        }
        self.is_stale.set(false);
        let candidates = match (self.list().await, &*listed) {
            (Ok(candidates), _) => Ok(Rc::new(candidates)),
            (Err(DialError::NoPod(error)), _) => Err(error),
            // The pods are probably those of the last list.
            (Err(DialError::Api(error)), Some((Ok(last), _))) if error.is_outage() => {
                tracing::debug!(%error, "cannot list the pods");
                Ok(Rc::clone(last))
            }
            (Err(error), _) => return Err(error),
        };
        *listed = Some((candidates.clone(), Instant::now()));
        Ok(candidates?)
    }

    async fn list(&self) -> Result<Vec<Candidate>, DialError> {
        let labels = match &self.source {
            Source::Pods(pods) => pods,
            Source::Service { name, labels } => {
                let ready = self.slices(name).await?;
                if !ready.is_empty() {
                    self.are_ready.set(true);
                    return Ok(ready);
                }
                labels
            }
        };
        let pods = pods::list(&self.api, &self.namespace, labels).await?;
        let mut usable = running(&pods);
        if usable.is_empty() {
            let selector = match labels {
                Pods::Named(name) | Pods::Selected(name) => name.clone(),
                Pods::None => "the endpoints of the service".to_owned(),
            };
            return Err(pods::explain(&pods, &selector).into());
        }
        self.are_ready.set(pods::is_ready(usable[0]));
        usable.sort_by(|a, b| a.metadata.name.cmp(&b.metadata.name));
        let candidate = |pod: &&Pod| Candidate {
            name: pod.metadata.name.clone().unwrap_or_default(),
            origin: Origin::Pod(Box::new((*pod).clone())),
        };
        Ok(usable.iter().map(candidate).collect())
    }

    /// Returns the ready endpoints of a service; none if the user may not read its slices.
    async fn slices(&self, service: &str) -> Result<Vec<Candidate>, ApiError> {
        if self.without_slices.get() {
            return Ok(Vec::new());
        }
        let namespace = escape(&self.namespace);
        let path = format!("/apis/discovery.k8s.io/v1/namespaces/{namespace}/endpointslices");
        let selector = format!("kubernetes.io/service-name={service}");
        match self.api.select(&path, &selector).await {
            Ok(slices) => Ok(ready_endpoints(&slices)),
            Err(ApiError::Status {
                code: StatusCode::FORBIDDEN | StatusCode::NOT_FOUND,
                ..
            }) => {
                self.without_slices.set(true);
                Ok(Vec::new())
            }
            Err(error) => Err(error),
        }
    }
}

/// Returns the ready pods; if there is none, those that run, as kubectl does.
fn running(pods: &[Pod]) -> Vec<&Pod> {
    let ready: Vec<_> = pods.iter().filter(|pod| pods::is_ready(pod)).collect();
    if !ready.is_empty() {
        return ready;
    }
    let is_running = |pod: &&Pod| {
        let phase = pod.status.as_ref().and_then(|it| it.phase.as_deref());
        phase == Some("Running") && pod.metadata.deletion_timestamp.is_none()
    };
    pods.iter().filter(is_running).collect()
}

/// Returns the pods of the ready endpoints, each once.
fn ready_endpoints(slices: &[EndpointSlice]) -> Vec<Candidate> {
    let mut found = BTreeMap::new();
    for slice in slices {
        let ports = slice.ports.iter().flatten();
        let ports = ports.filter(|port| Protocol::Tcp.is_of(port.protocol.as_deref()));
        let ports = ports.filter_map(|port| {
            let number = u16::try_from(port.port?).ok()?;
            Some((port.name.clone().unwrap_or_default(), number))
        });
        let ports = Rc::new(ports.collect::<BTreeMap<_, _>>());
        for endpoint in slice.endpoints.iter().flatten() {
            let conditions = endpoint.conditions.as_ref();
            // Unknown is ready.
            let is_ready = conditions.and_then(|it| it.ready).unwrap_or(true);
            let target = endpoint.target_ref.as_ref();
            let pod = target.filter(|target| target.kind.as_deref() == Some("Pod"));
            if let Some(name) = pod.and_then(|pod| pod.name.clone())
                && is_ready
            {
                // A pod of both address families is in two slices with the same ports.
                let ports = Rc::clone(&ports);
                found.entry(name).or_insert(ports);
            }
        }
    }
    let candidates = found.into_iter().map(|(name, ports)| Candidate {
        name,
        origin: Origin::Slice(ports),
    });
    candidates.collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod(name: &str, phase: &str, ready: &str) -> Pod {
        let pod = json!({"metadata": {"name": name}, "status": {
            "phase": phase, "conditions": [{"type": "Ready", "status": ready}],
        }});
        serde_json::from_value(pod).unwrap()
    }

    #[test]
    fn ready_pods_precede_running_ones() {
        let mut pods = vec![
            pod("a", "Pending", "False"),
            pod("b", "Running", "False"),
            pod("c", "Running", "True"),
        ];
        let names = |pods: &[Pod]| -> Vec<String> {
            let names = running(pods).into_iter().map(|pod| &pod.metadata.name);
            names.flatten().cloned().collect()
        };
        assert_eq!(names(&pods), ["c"]);
        pods.pop();
        assert_eq!(names(&pods), ["b"]);
        pods.pop();
        assert!(names(&pods).is_empty());
    }

    #[test]
    fn endpoints_are_the_ready_pods_of_all_slices() {
        let slices = json!([
            {"metadata": {}, "addressType": "IPv4",
             "ports": [{"name": "web", "port": 8080}, {"name": "dns", "port": 53, "protocol": "UDP"}],
             "endpoints": [
                {"addresses": ["10.0.0.1"], "targetRef": {"kind": "Pod", "name": "b"}},
                {"addresses": ["10.0.0.2"], "targetRef": {"kind": "Pod", "name": "a"},
                 "conditions": {"ready": true}},
                {"addresses": ["10.0.0.3"], "targetRef": {"kind": "Pod", "name": "c"},
                 "conditions": {"ready": false}},
                {"addresses": ["10.0.0.4"]},
                {"addresses": ["10.0.0.5"], "targetRef": {"kind": "Node", "name": "d"}},
             ]},
            {"metadata": {}, "addressType": "IPv6", "ports": [{"name": "web", "port": 8080}],
             "endpoints": [{"addresses": ["fd00::1"], "targetRef": {"kind": "Pod", "name": "b"}}]},
        ]);
        let slices: Vec<EndpointSlice> = serde_json::from_value(slices).unwrap();
        let found = ready_endpoints(&slices);
        let names: Vec<_> = found.iter().map(|it| it.name.as_str()).collect();
        assert_eq!(names, ["a", "b"]);
        let Origin::Slice(ports) = &found[0].origin else {
            panic!("an endpoint of a slice");
        };
        assert_eq!(**ports, BTreeMap::from([("web".to_owned(), 8080)]));
    }
}
