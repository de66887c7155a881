//! Assignment of listeners to Services: a pure function of the objects of the cluster, so that all
//! replicas arrive at the same result.

mod winners;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use super::listener::{BindFailures, ListenerKey, ListenerSpec, Listeners, Protocol};
use super::nodes::{NodeFacts, SliceNodes};
use super::request::{MAX_PORTS, PortLimit, Problem, Request, RequestedPort};
use super::service::{Ingress, PortStatus, Service};
use crate::cluster::ObjectKey;
use crate::config::{LabelSelector, PortRange, PublishedAddress};
use winners::{Winners, winners};

/// `ipMode` of a proxy (KEP-1860): kube-proxy does not short-cut connections to the address.
const IP_MODE: &str = "Proxy";

/// Maximum number of ports in a status, for each address, so that the API accepts it.
const MAX_STATUS_PORTS: usize = 2 * MAX_PORTS;

/// Settings of the assignment.
#[derive(Clone, Debug)]
pub struct Settings {
    pub class: String,
    pub bind_addresses: Vec<IpAddr>,
    /// `None`: all namespaces.
    pub namespace_selector: Option<LabelSelector>,
    pub allowed_ports: Vec<PortRange>,
    /// TCP ports of the bastion itself.
    pub own_ports: BTreeSet<u16>,
    /// Node of this replica.
    pub node_name: Option<Box<str>>,
}

/// Labels of a namespace.
pub type Labels = BTreeMap<String, String>;
/// UIDs of the Services that hold listeners.
pub type Holders = BTreeMap<ListenerKey, Arc<str>>;

/// Facts that the assignment depends on.
#[derive(Clone, Copy, Debug)]
pub struct Facts<'a> {
    pub services: &'a BTreeMap<ObjectKey, Arc<Service>>,
    /// Addresses of the bastion.
    pub published: &'a [PublishedAddress],
    /// Namespaces, if they are selected by labels.
    pub namespaces: &'a BTreeMap<Box<str>, Labels>,
    pub nodes: &'a BTreeMap<Box<str>, NodeFacts>,
    /// Slices, by which Services with the policy `Local` are published.
    pub slices: &'a BTreeMap<ObjectKey, SliceNodes>,
    /// Holders of the previous assignment.
    pub holders: &'a Holders,
    /// Listeners that this replica could not bind.
    pub failures: &'a BindFailures,
}

/// Result of the assignment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Assignment {
    /// Listeners of this replica.
    pub listeners: Listeners,
    pub holders: Holders,
    /// Services of the class that are not being deleted.
    pub services: BTreeMap<ObjectKey, Outcome>,
}

/// Result for one Service.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// Addresses at which at least one port is served.
    pub ingress: Vec<Ingress>,
    /// Everything that is not served, ordered.
    pub problems: Vec<Problem>,
    /// No source ranges limit the clients.
    pub is_public: bool,
}

/// Assigns listeners to the Services of the class.
pub fn assign(settings: &Settings, facts: &Facts<'_>) -> Assignment {
    let mut requests = BTreeMap::new();
    let mut services = BTreeMap::new();
    let mut without_address = BTreeMap::new();
    for (key, service) in facts.services {
        if !service.is_of_class(&settings.class) || service.is_deleting() {
            continue;
        }
        match request(settings, facts, key, service) {
            Ok(request) => drop(requests.insert(key, (service, request))),
            Err(problem) => {
                if problem == Problem::NoAddress {
                    without_address.insert(service.uid(), service);
                }
                let outcome = Outcome {
                    problems: vec![problem],
                    ..Outcome::default()
                };
                services.insert(key.clone(), outcome);
            }
        }
    }
    let winners = winners(settings, facts, &requests);
    let own_node = settings.node_name.as_ref();
    let own_node = own_node.and_then(|name| facts.nodes.get(name));
    let is_excluded = own_node.is_some_and(|node| node.is_excluded);
    let mut assignment = Assignment::default();
    for (key, (service, request)) in &requests {
        let outcome = outcome(settings, facts, &winners, key, request);
        services.insert((*key).clone(), outcome);
        for listener in claims(settings, request) {
            if winners.service(&listener) != Some(*key) {
                continue;
            }
            assignment.holders.insert(listener, service.uid());
            if !is_excluded {
                let spec = Arc::new(spec(key, request, listener.port));
                assignment.listeners.insert(listener, spec);
            }
        }
    }
    assignment.services = services;
    // The addresses may come back, as those of a Service that is created again.
    for (listener, uid) in facts.holders {
        let service = without_address.get(uid);
        if service.is_some_and(|it| it.has_port(listener.port, listener.protocol)) {
            let holder = assignment.holders.entry(*listener);
            holder.or_insert_with(|| Arc::clone(uid));
        }
    }
    assignment
}

/// Reads the request of a Service that may have listeners.
fn request(
    settings: &Settings,
    facts: &Facts<'_>,
    key: &ObjectKey,
    service: &Service,
) -> Result<Request, Problem> {
    if let Some(selector) = &settings.namespace_selector {
        let labels = facts.namespaces.get(&key.namespace);
        if !labels.is_some_and(|labels| selector.matches(labels)) {
            return Err(Problem::NamespaceNotAllowed(key.namespace.clone()));
        }
    }
    if service.is_local_only() && settings.node_name.is_none() {
        return Err(Problem::NoNodeName);
    }
    Request::read(service, facts.published, &settings.bind_addresses)
}

/// Returns the listeners that a request claims.
fn claims(settings: &Settings, request: &Request) -> Vec<ListenerKey> {
    let bind = request.bind_addresses();
    let ports = request.ports.iter().take(MAX_PORTS);
    let ports = ports.filter_map(|port| permitted(settings, port).ok());
    ports
        .flat_map(|(port, protocol)| {
            bind.iter().map(move |address| ListenerKey {
                address: *address,
                port,
                protocol,
            })
        })
        .collect()
}

/// Returns the port if Services may have it.
fn permitted(settings: &Settings, port: &RequestedPort) -> Result<(u16, Protocol), Problem> {
    let number = port.port;
    let Some(protocol) = port.protocol else {
        return Err(Problem::UnsupportedProtocol {
            port: number,
            protocol: port.name_of_protocol.clone(),
        });
    };
    let mut ranges = settings.allowed_ports.iter();
    let is_own = protocol == Protocol::Tcp && settings.own_ports.contains(&number);
    if is_own || !ranges.any(|range| range.0.contains(&number)) {
        return Err(Problem::PortNotAllowed(number, protocol));
    }
    Ok((number, protocol))
}

fn spec(key: &ObjectKey, request: &Request, service_port: u16) -> ListenerSpec {
    ListenerSpec {
        namespace: (&*key.namespace).into(),
        service: (&*key.name).into(),
        service_port,
        source_ranges: request.source_ranges.clone(),
        addresses: request.requested.clone(),
        local_only: request.local_only,
        client_affinity: request.client_affinity,
        proxy_protocol: request.proxy_protocol,
    }
}

/// Returns the status and the problems of a Service with a valid request.
fn outcome<'a>(
    settings: &Settings,
    facts: &Facts<'_>,
    winners: &Winners<'a>,
    key: &'a ObjectKey,
    request: &Request,
) -> Outcome {
    let mut problems = BTreeSet::new();
    let nodes = request.local_only.then(|| endpoint_nodes(facts, key));
    let mut unavailable = None;
    let mut ingress = Vec::new();
    if request.ports.len() > MAX_PORTS {
        problems.insert(Problem::TooManyPorts(PortLimit::Service));
    }
    for (address, bind) in &request.addresses {
        let ports: Vec<PortStatus> = request
            .ports
            .iter()
            .take(MAX_STATUS_PORTS)
            .enumerate()
            .map(|(index, port)| {
                let found = if index < MAX_PORTS {
                    port_problems(settings, facts, winners, key, port, bind)
                } else {
                    PortProblems::of(Problem::TooManyPorts(PortLimit::Service))
                };
                let error = found.error().map(Problem::port_error);
                problems.extend(found.problems);
                PortStatus {
                    port: port.port,
                    protocol: port.name_of_protocol.clone(),
                    error,
                }
            })
            .collect();
        if let Some(problem) = unavailability(settings, facts, address, nodes.as_ref()) {
            unavailable = Some(problem);
        } else if ports.iter().any(|port| port.error.is_none()) {
            ingress.push(ingress_of(address, ports));
        }
    }
    if ingress.is_empty() {
        problems.extend(unavailable);
    }
    Outcome {
        ingress,
        problems: problems.into_iter().collect(),
        is_public: request.source_ranges.is_none(),
    }
}

/// Returns the nodes with ready endpoints of a Service, whose replicas have listeners.
fn endpoint_nodes(facts: &Facts<'_>, service: &ObjectKey) -> BTreeSet<Arc<str>> {
    let first = ObjectKey::new(&service.namespace, "");
    let of_namespace = facts
        .slices
        .range(first..)
        .take_while(|(key, _)| key.namespace == service.namespace);
    of_namespace
        .filter(|(_, slice)| slice.service == service.name)
        .flat_map(|(_, slice)| slice.nodes.iter().cloned())
        .filter(|name| {
            let node = facts.nodes.get(&**name);
            !node.is_some_and(|node| node.is_excluded)
        })
        .collect()
}

/// Problems of a port at an address.
struct PortProblems {
    /// A bind address serves the port.
    is_served: bool,
    problems: Vec<Problem>,
}

impl PortProblems {
    /// Returns the only problem of a port that is not served.
    fn of(problem: Problem) -> Self {
        Self {
            is_served: false,
            problems: vec![problem],
        }
    }

    /// Returns the error of the port in the status: that it lacks a listener, before that none is
    /// served. An address that leads to the listener of another Service as well, or to none, does not
    /// serve the port.
    fn error(&self) -> Option<&Problem> {
        let lack = self.problems.iter().find(|problem| {
            matches!(
                problem,
                Problem::PortConflict { .. } | Problem::TooManyPorts(_)
            )
        });
        lack.or_else(|| self.problems.first().filter(|_| !self.is_served))
    }
}

fn port_problems<'a>(
    settings: &Settings,
    facts: &Facts<'_>,
    winners: &Winners<'a>,
    key: &'a ObjectKey,
    port: &RequestedPort,
    bind: &[IpAddr],
) -> PortProblems {
    let (port, protocol) = match permitted(settings, port) {
        Ok(permitted) => permitted,
        Err(problem) => return PortProblems::of(problem),
    };
    let mut found = PortProblems {
        is_served: false,
        problems: Vec::new(),
    };
    for address in bind {
        let listener = ListenerKey {
            address: *address,
            port,
            protocol,
        };
        if let Some(limit) = winners.limit(listener, key) {
            found.problems.push(Problem::TooManyPorts(limit));
            continue;
        }
        match (winners.service(&listener), facts.failures.get(&listener)) {
            (Some(winner), _) if winner != key => found.problems.push(Problem::PortConflict {
                key: listener,
                holder: winner.clone(),
            }),
            (_, Some(reason)) => found.problems.push(Problem::BindFailed {
                key: listener,
                reason: reason.clone(),
            }),
            (_, None) => found.is_served = true,
        }
    }
    found
}

/// Returns the reason why an address is not published. Addresses that are not those of nodes lead
/// to any replica.
fn unavailability(
    settings: &Settings,
    facts: &Facts<'_>,
    address: &PublishedAddress,
    endpoint_nodes: Option<&BTreeSet<Arc<str>>>,
) -> Option<Problem> {
    let node = match address {
        PublishedAddress::Ip(ip) => {
            let mut nodes = facts.nodes.iter();
            nodes.find(|(_, node)| node.addresses.contains(ip))
        }
        PublishedAddress::Hostname(_) => None,
    };
    match (node, endpoint_nodes) {
        (Some((_, node)), _) if node.is_excluded => Some(Problem::NodesExcluded),
        (Some((name, _)), Some(with)) if !with.contains(&**name) => Some(Problem::NoLocalEndpoint),
        (None, Some(with)) if with.is_empty() => Some(Problem::NoLocalEndpoint),
        (None, None) if no_replica_listens(settings, facts) => Some(Problem::NodesExcluded),
        _ => None,
    }
}

/// Returns true if all replicas are on nodes that are excluded.
fn no_replica_listens(settings: &Settings, facts: &Facts<'_>) -> bool {
    // A replica that does not know its node has listeners.
    settings.node_name.is_some()
        && !facts.nodes.is_empty()
        && facts.nodes.values().all(|node| node.is_excluded)
}

fn ingress_of(address: &PublishedAddress, ports: Vec<PortStatus>) -> Ingress {
    let text = Some(address.to_string());
    match address {
        PublishedAddress::Ip(_) => Ingress {
            ip: text,
            ip_mode: Some(IP_MODE.into()),
            ports,
            ..Ingress::default()
        },
        PublishedAddress::Hostname(_) => Ingress {
            hostname: text,
            ports,
            ..Ingress::default()
        },
    }
}

#[cfg(test)]
mod tests;
