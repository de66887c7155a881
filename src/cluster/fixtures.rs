//! Objects for the unit tests of the index and of the resolver, all in the namespace `ns`.

use super::resources::{PortSpec, ServiceSpec, Slice, SliceEndpoint};
use super::{AppProtocol, Family, Object, ObjectKey, Phase, Pod, PodPort};
use crate::model::Protocol;

/// An active pod with the ports 8080 and `web` (8081).
pub(crate) fn pod(name: &str, ips: &[&str]) -> Object {
    pod_in_phase(name, ips, Phase::Active)
}

pub(crate) fn pod_in_phase(name: &str, ips: &[&str], phase: Phase) -> Object {
    let pod = Pod {
        namespace: "ns".into(),
        name: name.into(),
        ips: ips.iter().map(|ip| ip.parse().unwrap()).collect(),
        ports: [("", 8080), ("web", 8081)]
            .map(|(name, number)| PodPort {
                name: name.into(),
                number,
                protocol: Protocol::Tcp,
            })
            .into(),
        host_network: false,
        phase,
    };
    Object::Pod(ObjectKey::new("ns", name), pod)
}

pub(crate) fn service(name: &str, ports: &[(&str, u16, AppProtocol)]) -> Object {
    let ports = ports.iter().map(|(name, number, app_protocol)| PortSpec {
        name: (*name).into(),
        number: *number,
        app_protocol: *app_protocol,
    });
    Object::Service(
        ObjectKey::new("ns", name),
        ServiceSpec {
            ports: ports.collect(),
            ..ServiceSpec::default()
        },
    )
}

/// A slice of the family of its endpoints.
pub(crate) fn slice(
    name: &str,
    service: &str,
    ports: &[(&str, u16)],
    endpoints: Vec<SliceEndpoint>,
) -> Object {
    let family = if endpoints.iter().all(|e| e.address.is_ipv4()) {
        Family::V4
    } else {
        Family::V6
    };
    let ports = ports
        .iter()
        .map(|(name, number)| ((*name).into(), *number))
        .collect();
    Object::EndpointSlice(
        ObjectKey::new("ns", name),
        Slice {
            service: service.into(),
            family,
            ports,
            udp_ports: Vec::new(),
            endpoints,
        },
    )
}

/// A ready endpoint. `pod` is `NAME`, `NAMESPACE/NAME`, or empty for an endpoint without a
/// `targetRef`.
pub(crate) fn endpoint(ip: &str, pod: &str) -> SliceEndpoint {
    let pod = (!pod.is_empty()).then(|| match pod.split_once('/') {
        Some((namespace, name)) => ObjectKey::new(namespace, name),
        None => ObjectKey::new("ns", pod),
    });
    SliceEndpoint {
        address: ip.parse().unwrap(),
        ready: true,
        serving: true,
        terminating: false,
        hostname: None,
        node: None,
        pod,
    }
}

/// An endpoint that still serves while it terminates.
pub(crate) fn draining(ip: &str, pod: &str) -> SliceEndpoint {
    SliceEndpoint {
        ready: false,
        terminating: true,
        ..endpoint(ip, pod)
    }
}
