//! Decision on each listener that several Services may claim.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use super::{Facts, Settings, claims};
use crate::cluster::ObjectKey;
use crate::config::parse_published_address;
use crate::loadbalancer::request::{Request, binds_of};
use crate::loadbalancer::service::Service;
use crate::loadbalancer::{ListenerKey, Protocol};

/// Right of a Service to a listener, the strongest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Right {
    /// It holds the listener, and its status does not contradict.
    Holder,
    /// Its status has the listener.
    Status,
    /// It holds the listener, and its status lacks it. All replicas see the same status, while they
    /// may have seen Services in another order.
    Unconfirmed,
    None,
}

/// Decides on each listener: by the right to it, then for the oldest Service, then by name.
pub(super) fn winners<'a>(
    settings: &Settings,
    facts: &Facts<'_>,
    requests: &BTreeMap<&'a ObjectKey, (&Arc<Service>, Request)>,
) -> BTreeMap<ListenerKey, &'a ObjectKey> {
    let mut ranked = Vec::new();
    for (key, (service, request)) in requests {
        let uid = service.uid();
        let served = served(service, &settings.bind_addresses);
        let created = service.created();
        for listener in claims(settings, request) {
            let is_holder = facts.holders.get(&listener) == Some(&uid);
            let right = match (is_holder, served.contains(&listener)) {
                (true, true) => Right::Holder,
                (true, false) if !service.is_marked() => Right::Holder,
                (false, true) => Right::Status,
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
    let mut winners = BTreeMap::new();
    for (.., key, listener) in ranked {
        winners.entry(listener).or_insert(key);
    }
    winners
}

/// Returns the listeners that the Service has according to its status.
fn served(service: &Service, bind_addresses: &[IpAddr]) -> BTreeSet<ListenerKey> {
    let mut served = BTreeSet::new();
    // The status of another controller, from before the class changed, holds nothing.
    if !service.is_marked() {
        return served;
    }
    for ingress in &service.status.load_balancer.ingress {
        let text = ingress.ip.as_deref().or(ingress.hostname.as_deref());
        let address = text.and_then(|text| parse_published_address(text).ok());
        let Some(address) = address else { continue };
        let binds = binds_of(&address, bind_addresses);
        for port in ingress.ports.iter().filter(|port| port.error.is_none()) {
            let protocol = match &*port.protocol {
                "TCP" => Protocol::Tcp,
                "UDP" => Protocol::Udp,
                _ => continue,
            };
            served.extend(binds.iter().map(|address| ListenerKey {
                address: *address,
                port: port.port,
                protocol,
            }));
        }
    }
    served
}
