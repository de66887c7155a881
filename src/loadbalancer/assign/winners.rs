//! Decision on each listener that several Services may claim.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use super::{Facts, Settings, claims};
use crate::cluster::ObjectKey;
use crate::config::parse_published_address;
use crate::loadbalancer::request::{
    MAX_OF_NAMESPACE, MAX_OF_PROCESS, PortLimit, Problem, Request, binds_of,
};
use crate::loadbalancer::service::{CONDITION, Service};
use crate::loadbalancer::{ListenerKey, Protocol};

/// Right of a Service to a listener, the strongest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Right {
    /// It holds the listener, and its status does not contradict.
    Holder,
    /// Its status has the listener.
    Status,
    /// Its status says that it lacks no listener, but does not list them, because it is not served.
    Unserved,
    /// It holds the listener, and its status lacks it. All replicas see the same status, while they
    /// may have seen Services in another order.
    Unconfirmed,
    None,
}

/// Decision on all listeners.
#[derive(Debug, Default)]
pub(super) struct Winners<'a> {
    services: BTreeMap<ListenerKey, &'a ObjectKey>,
    of_namespace: BTreeMap<&'a str, usize>,
    /// Listeners that Services do not get because of a limit.
    limited: BTreeMap<(ListenerKey, &'a ObjectKey), PortLimit>,
}

impl<'a> Winners<'a> {
    /// Returns the Service that has a listener.
    pub fn service(&self, listener: &ListenerKey) -> Option<&'a ObjectKey> {
        self.services.get(listener).copied()
    }

    /// Returns the limit because of which a Service does not get a listener.
    pub fn limit(&self, listener: ListenerKey, service: &'a ObjectKey) -> Option<PortLimit> {
        self.limited.get(&(listener, service)).copied()
    }

    /// Gives a listener to a Service, if it is free and within the limits.
    fn offer(&mut self, listener: ListenerKey, service: &'a ObjectKey) {
        if self.services.contains_key(&listener) {
            return;
        }
        let count = self.of_namespace.entry(&service.namespace).or_default();
        let limit = if *count >= MAX_OF_NAMESPACE {
            PortLimit::Namespace
        } else if self.services.len() >= MAX_OF_PROCESS {
            PortLimit::Process
        } else {
            *count += 1;
            self.services.insert(listener, service);
            return;
        };
        self.limited.insert((listener, service), limit);
    }
}

/// Decides on each listener: by the right to it, then for the oldest Service, then by name. Limits
/// apply in the same order.
pub(super) fn winners<'a>(
    settings: &Settings,
    facts: &Facts<'_>,
    requests: &BTreeMap<&'a ObjectKey, (&Arc<Service>, Request)>,
) -> Winners<'a> {
    let mut ranked = Vec::new();
    for (key, (service, request)) in requests {
        let uid = service.uid();
        let listed = listed(service, &settings.bind_addresses);
        let condition = service.condition(CONDITION);
        let lacks_none = condition.is_some_and(|it| Problem::is_holding(&it.reason));
        let created = service.created();
        for listener in claims(settings, request) {
            let is_holder = facts.holders.get(&listener) == Some(&uid);
            let right = match (is_holder, listed.contains(&listener)) {
                (true, true) => Right::Holder,
                (true, false) if condition.is_none() || lacks_none => Right::Holder,
                (false, true) => Right::Status,
                (false, false) if lacks_none => Right::Unserved,
                (true, false) => Right::Unconfirmed,
                (false, false) => Right::None,
            };
            // A Service without a time is as if it were the youngest.
            ranked.push((
                right,
                created.map_or((true, None), |at| (false, Some(at))),
                *key,
                listener,
            ));
        }
    }
    ranked.sort_unstable();
    let mut winners = Winners::default();
    for (.., key, listener) in ranked {
        winners.offer(listener, key);
    }
    winners
}

/// Returns the listeners that the status of the Service lists, also those that could not be bound.
fn listed(service: &Service, bind_addresses: &[IpAddr]) -> BTreeSet<ListenerKey> {
    let mut listed = BTreeSet::new();
    // The status of another controller, from before the class changed, holds nothing.
    if !service.is_marked() {
        return listed;
    }
    for ingress in &service.status.load_balancer.ingress {
        let text = ingress.ip.as_deref().or(ingress.hostname.as_deref());
        let address = text.and_then(|text| parse_published_address(text).ok());
        let Some(address) = address else { continue };
        let binds = binds_of(&address, bind_addresses);
        for port in &ingress.ports {
            if !port.error.as_deref().is_none_or(Problem::is_holding_error) {
                continue;
            }
            let Some(protocol) = Protocol::parse(&port.protocol) else {
                continue;
            };
            listed.extend(binds.iter().map(|address| ListenerKey {
                address: *address,
                port: port.port,
                protocol,
            }));
        }
    }
    listed
}
