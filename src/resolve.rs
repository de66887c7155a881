//! Which addresses? A [`Permit`] for a target in, a [`Route`] out (CONFORMANCE chapter 4).

mod lookup;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use crate::authorize::Permit;
use crate::cluster::{
    Affinity, AppProtocol, Cluster, ExcludedEndpoint, Node, Phase, RetryWindow, RoundRobinCounter,
    Service, ServicePort,
};
use crate::model::address::{AddressPolicy, AddressType};
use crate::model::quote::GoQuoted;
use crate::model::target::{Id, InvalidId};
use crate::model::{Endpoint, Resource, Scheme, Target};
pub use lookup::Lookups;

/// The stage. One per process.
#[derive(Debug)]
pub struct Resolver {
    pub cluster: Arc<Cluster>,
    pub addresses: AddressPolicy,
    /// Which of a node's addresses is taken: the first of these types that it has.
    pub preferred: Vec<AddressType>,
    /// Resolves nodes that publish a host name instead of an address.
    pub lookups: Lookups,
}

/// Where a request may go, and how to speak there.
#[derive(Clone, Debug)]
pub struct Route {
    pub candidates: Candidates,
    pub transport: Transport,
    /// The service port that was asked for, as DNS spells it. None for nodes and pods.
    pub service_port: Option<u16>,
}

/// Who can serve the request. Never empty.
#[derive(Clone, Debug)]
pub enum Candidates {
    /// A node or a pod.
    One(Endpoint),
    /// The endpoints of a service port, whose turns `rotation` counts.
    Port {
        endpoints: Arc<[Endpoint]>,
        rotation: Arc<RoundRobinCounter>,
        affinity: Affinity,
    },
}

impl Candidates {
    /// The retry budget of the service.
    pub fn retries(&self) -> Option<&RetryWindow> {
        match self {
            Self::One(_) => None,
            Self::Port { rotation, .. } => Some(&rotation.retries),
        }
    }

    pub fn endpoints(&self) -> &[Endpoint] {
        match self {
            Self::One(endpoint) => std::slice::from_ref(endpoint),
            Self::Port { endpoints, .. } => endpoints,
        }
    }
}

/// How the target is spoken to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Transport {
    Http,
    /// HTTP/2 in clear text, with prior knowledge (RFC 9113 section 3.3); upgrades go by HTTP/1.1.
    H2c,
    /// The certificate is not verified (C51).
    Https,
    /// A kubelet's own port: verified where a CA is configured, with the bastion's credentials for
    /// kubelets (C32, C52).
    Kubelet,
}

impl From<Scheme> for Transport {
    fn from(scheme: Scheme) -> Self {
        match scheme {
            Scheme::Http => Self::Http,
            Scheme::Https => Self::Https,
        }
    }
}

impl Transport {
    /// What a URL of the target begins with.
    pub fn scheme(self) -> Scheme {
        match self {
            Self::Http | Self::H2c => Scheme::Http,
            Self::Https | Self::Kubelet => Scheme::Https,
        }
    }

    /// Whether the target may turn out to speak HTTP/2.
    pub fn may_be_http2(self) -> bool {
        self != Self::Http
    }
}

/// The scheme of the id; else what the service port says of itself (C47, C53).
fn service_transport(id: Id<'_>, port: &ServicePort) -> Transport {
    match (
        id.scheme.unwrap_or(port.app_protocol.scheme()),
        port.app_protocol,
    ) {
        (Scheme::Http, AppProtocol::H2c) => Transport::H2c,
        (scheme, _) => scheme.into(),
    }
}

/// Why a target that the caller may reach cannot be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ResolveError {
    #[error("name must be provided")]
    NoName,
    #[error("Namespace parameter required.")]
    NoNamespace,
    /// The name is none that an object can have (C10).
    #[error("{0}")]
    BadName(String),
    #[error(transparent)]
    BadId(#[from] InvalidId),
    #[error("{resource} {} not found", GoQuoted(name))]
    NotFound { resource: Resource, name: String },
    /// Its address may belong to another pod by now (C40).
    #[error("pod {} has ended (phase {phase:?})", GoQuoted(name))]
    PodEnded { name: String, phase: Phase },
    #[error("address not allowed")]
    AddressNotAllowed,
    #[error("no addresses for hostname")]
    NoAddresses,
    #[error("{0}")]
    Lookup(String),
    #[error("no preferred addresses found; known addresses: [{0}]")]
    NoPreferredAddress(String),
    /// `offered` are the ports that could have been named.
    #[error("no service port {port} found for service {}", GoQuoted(service))]
    NoServicePort {
        port: i64,
        service: String,
        offered: Vec<String>,
    },
    /// No port has the name that the id gives, or gives none where there are several (C43). `which`
    /// is the id, or the bare name where the service has no endpoint at all (C48).
    #[error("no endpoints available for service {}", GoQuoted(which))]
    NoPort { which: String, offered: Vec<String> },
    /// Nobody serves the port. `refused` are endpoints that are there, and why they do not.
    #[error("no endpoints available for service {}", GoQuoted(which))]
    NoEndpoints {
        which: String,
        refused: Vec<ExcludedEndpoint>,
    },
}

impl Resolver {
    /// Looks the target up. What it finds is a snapshot: a request goes on with it whatever changes
    /// meanwhile.
    ///
    /// # Errors
    /// [`ResolveError`], in the order in which the apiserver checks.
    pub async fn resolve(&self, permit: &Permit<'_>) -> Result<Route, ResolveError> {
        let target = permit.target();
        if target.resource.is_namespaced() && target.namespace.is_empty() {
            return Err(ResolveError::NoNamespace);
        }
        if target.id.is_empty() {
            return Err(ResolveError::NoName);
        }
        let id = target.id()?;
        if let Some(fault) = id.name_fault() {
            return Err(ResolveError::BadName(fault));
        }
        match target.resource {
            Resource::Nodes => self.node(target, id).await,
            Resource::Pods => self.pod(target, id),
            Resource::Services => self.service(target, id),
        }
    }

    async fn node(&self, target: &Target<'_>, id: Id<'_>) -> Result<Route, ResolveError> {
        let node = self
            .cluster
            .node(id.name)
            .ok_or_else(|| not_found(target, id))?;
        let port = match id.port {
            "" => node.kubelet_port,
            text => port_number(text).ok_or_else(|| target.invalid_id())?,
        };
        let transport = if port == node.kubelet_port {
            Transport::Kubelet
        } else {
            id.scheme.unwrap_or(Scheme::Http).into()
        };
        let address = SocketAddr::new(self.node_address(&node).await?, port);
        let candidates = Candidates::One(Endpoint {
            address,
            name: Arc::clone(&node.name),
        });
        Ok(Route {
            candidates,
            transport,
            service_port: None,
        })
    }

    /// Every address that a host name resolves to must be one that may be dialled (C35), and the
    /// one that was checked is the one that is dialled (C36).
    async fn node_address(&self, node: &Node) -> Result<IpAddr, ResolveError> {
        let of_type = |wanted: &AddressType| {
            node.addresses
                .iter()
                .find(|(kind, _)| **kind == *wanted.as_str())
        };
        let preferred = self.preferred.iter().find_map(of_type);
        let Some((_, host)) = preferred else {
            let known: Vec<_> = node
                .addresses
                .iter()
                .map(|(kind, host)| format!("{{{kind} {host}}}"))
                .collect();
            return Err(ResolveError::NoPreferredAddress(known.join(" ")));
        };
        let addresses: Arc<[IpAddr]> = if let Ok(address) = host.parse::<IpAddr>() {
            [address].into()
        } else {
            let found = self.lookups.addresses(host).await;
            found.map_err(|error| ResolveError::Lookup(format!("lookup {host}: {error}")))?
        };
        if !addresses
            .iter()
            .all(|address| self.addresses.permits(*address))
        {
            return Err(ResolveError::AddressNotAllowed);
        }
        addresses.first().copied().ok_or(ResolveError::NoAddresses)
    }

    fn pod(&self, target: &Target<'_>, id: Id<'_>) -> Result<Route, ResolveError> {
        let pod = self
            .cluster
            .pod(&target.namespace, id.name)
            .ok_or_else(|| not_found(target, id))?;
        let scheme = id.scheme.unwrap_or(Scheme::Http);
        let port = match id.port {
            "" => pod.first_port.unwrap_or(scheme.default_port()),
            text => {
                let named = || {
                    pod.named_ports
                        .iter()
                        .find(|(name, _)| **name == *text)
                        .map(|(_, port)| *port)
                };
                port_number(text)
                    .or_else(named)
                    .ok_or_else(|| target.invalid_id())?
            }
        };
        if pod.phase.has_ended() {
            return Err(ResolveError::PodEnded {
                name: id.name.to_owned(),
                phase: pod.phase,
            });
        }
        let address = pod
            .ips
            .first()
            .copied()
            .filter(|address| self.addresses.permits(*address));
        let address = SocketAddr::new(address.ok_or(ResolveError::AddressNotAllowed)?, port);
        let endpoint = Endpoint {
            address,
            name: Arc::clone(&pod.name),
        };
        Ok(Route {
            candidates: Candidates::One(endpoint),
            transport: scheme.into(),
            service_port: None,
        })
    }

    fn service(&self, target: &Target<'_>, id: Id<'_>) -> Result<Route, ResolveError> {
        let service = self
            .cluster
            .service(&target.namespace, id.name)
            .ok_or_else(|| not_found(target, id))?;
        let port = service_port(&service, target, id)?;
        if port.endpoints.is_empty() {
            return Err(ResolveError::NoEndpoints {
                which: which(&service, target, id),
                refused: port.refused.to_vec(),
            });
        }
        let candidates = Candidates::Port {
            endpoints: Arc::clone(&port.endpoints),
            rotation: Arc::clone(&port.rotation),
            affinity: service.affinity,
        };
        Ok(Route {
            candidates,
            transport: service_transport(id, port),
            service_port: Some(port.number),
        })
    }
}

/// The service port that the id means: by number, by name, or the only one (C42, C43).
fn service_port<'s>(
    service: &'s Service,
    target: &Target<'_>,
    id: Id<'_>,
) -> Result<&'s ServicePort, ResolveError> {
    // An ExternalName service is there and leads nowhere, whatever port is asked for (C49).
    if service.ports.is_empty() {
        return Err(ResolveError::NoEndpoints {
            which: target.id.clone().into_owned(),
            refused: Vec::new(),
        });
    }
    let offered = || {
        service
            .ports
            .iter()
            .map(|port| format!("{:?} ({})", port.name, port.number))
            .collect()
    };
    if let Ok(number) = id.port.parse::<i64>() {
        let found = service
            .ports
            .iter()
            .find(|port| i64::from(port.number) == number);
        return found.ok_or_else(|| ResolveError::NoServicePort {
            port: number,
            service: id.name.to_owned(),
            offered: offered(),
        });
    }
    match (
        service.ports.iter().find(|port| *port.name == *id.port),
        &*service.ports,
    ) {
        (Some(port), _) => Ok(port),
        (None, [only]) if id.port.is_empty() => Ok(only),
        (None, _) => Err(ResolveError::NoPort {
            which: which(service, target, id),
            offered: offered(),
        }),
    }
}

/// What a service without an endpoint is called in the error: its id, or the bare name where it has
/// none at all (C48).
fn which(service: &Service, target: &Target<'_>, id: Id<'_>) -> String {
    if service.has_endpoints {
        target.id.clone().into_owned()
    } else {
        id.name.to_owned()
    }
}

fn not_found(target: &Target<'_>, id: Id<'_>) -> ResolveError {
    ResolveError::NotFound {
        resource: target.resource,
        name: id.name.to_owned(),
    }
}

/// 1 to 65535 in plain digits: no sign, which Rust's parser would take (C39).
fn port_number(text: &str) -> Option<u16> {
    text.parse()
        .ok()
        .filter(|port| *port > 0 && text.bytes().all(|byte| byte.is_ascii_digit()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::authorize::{Authorizer, PolicySource};
    use crate::cluster::resources::{Family, PortSpec, ServiceSpec, Slice, SliceEndpoint};
    use crate::cluster::{AppProtocol, Kind, Object, ObjectKey, Pod, Writer};
    use crate::model::{Identity, Verb};
    use crate::trust::RbacRules;

    fn pod(name: &str, ips: &[&str]) -> Object {
        let pod = Pod {
            name: name.into(),
            ips: ips.iter().map(|ip| ip.parse().unwrap()).collect(),
            first_port: Some(8080),
            named_ports: [("web".into(), 8081)].into(),
            phase: Phase::Active,
        };
        Object::Pod(ObjectKey::new("ns", name), pod)
    }

    fn service(name: &str, ports: &[(&str, u16, AppProtocol)]) -> Object {
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

    fn slice(
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
                endpoints,
            },
        )
    }

    fn at(ip: &str, pod: &str) -> SliceEndpoint {
        let pod = (!pod.is_empty()).then(|| match pod.split_once('/') {
            Some((namespace, name)) => ObjectKey::new(namespace, name),
            None => ObjectKey::new("ns", pod),
        });
        SliceEndpoint {
            address: ip.parse().unwrap(),
            ready: true,
            serving: true,
            terminating: false,
            pod,
        }
    }

    fn resolver(pod_less: bool, objects: Vec<Object>) -> (Resolver, Writer) {
        let (cluster, mut writer) = Cluster::new(AddressPolicy::default(), pod_less);
        objects.into_iter().for_each(|object| writer.apply(object));
        let preferred = vec![AddressType::InternalIp, AddressType::Hostname];
        let lookups = Lookups::new(std::time::Duration::from_secs(5));
        (
            Resolver {
                cluster,
                addresses: AddressPolicy::default(),
                preferred,
                lookups,
            },
            writer,
        )
    }

    /// What a path resolves to: scheme and addresses, or the error.
    async fn ask(resolve: &Resolver, path: &str) -> Result<String, String> {
        let path = format!("/api/v1/{path}/proxy/");
        let target = Target::parse(&path).unwrap();
        let master = Arc::new(Identity::new(
            "m",
            "",
            vec!["system:masters".into()],
            Default::default(),
        ));
        let authorizer = PolicySource::Rbac(Arc::new(arc_swap::ArcSwap::from_pointee(
            RbacRules::default(),
        )));
        let authorize = Authorizer {
            authorizer,
            accept_bare_names: false,
        };
        let client = IpAddr::from([192, 0, 2, 1]).into();
        let permit = authorize
            .authorize(&master, Verb::Get, &target, client)
            .await
            .unwrap();
        let route = resolve
            .resolve(&permit)
            .await
            .map_err(|error| error.to_string())?;
        let addresses: Vec<_> = route
            .candidates
            .endpoints()
            .iter()
            .map(|e| e.address.to_string())
            .collect();
        Ok(format!("{:?} {}", route.transport, addresses.join(",")))
    }

    async fn check(resolve: &Resolver, cases: &[(&str, Result<&str, &str>)]) {
        for (path, expected) in cases {
            let found = ask(resolve, path).await;
            assert_eq!(
                found.as_deref().map_err(|error| &**error),
                *expected,
                "{path}"
            );
        }
    }

    #[tokio::test]
    async fn services_are_found_by_number_name_or_the_only_port() {
        use AppProtocol::{Https, Unspecified};
        // The table of upstream's own test (CONFORMANCE C44), and ours behind it.
        let (resolve, _writer) = resolver(
            false,
            vec![
                pod("p", &["10.0.0.1"]),
                service("unnamed", &[("", 93, Unspecified)]),
                slice("unnamed", "unnamed", &[("", 80)], vec![at("10.0.0.1", "p")]),
                service("named", &[("p", 93, Unspecified), ("q", 76, Https)]),
                slice(
                    "named",
                    "named",
                    &[("p", 80), ("q", 81)],
                    vec![at("10.0.0.1", "p")],
                ),
                service("no-endpoints", &[("", 80, Unspecified)]),
                service("single", &[("web", 80, Https)]),
                slice(
                    "single",
                    "single",
                    &[("web", 8443)],
                    vec![at("10.0.0.1", "p")],
                ),
                service("bad", &[("", 80, Unspecified)]),
                slice(
                    "bad",
                    "bad",
                    &[("", 80)],
                    vec![at("10.0.0.9", "p"), at("10.0.0.1", "gone")],
                ),
                service("external", &[]),
            ],
        );
        let none = r#"no endpoints available for service "named:bad""#;
        check(
            &resolve,
            &[
                ("namespaces/ns/services/unnamed", Ok("Http 10.0.0.1:80")),
                ("namespaces/ns/services/unnamed:", Ok("Http 10.0.0.1:80")),
                ("namespaces/ns/services/unnamed:93", Ok("Http 10.0.0.1:80")),
                (
                    "namespaces/ns/services/http:unnamed:",
                    Ok("Http 10.0.0.1:80"),
                ),
                (
                    "namespaces/ns/services/https:unnamed:93",
                    Ok("Https 10.0.0.1:80"),
                ),
                (
                    "namespaces/ns/services/unnamed:80",
                    Err(r#"no service port 80 found for service "unnamed""#),
                ),
                (
                    "namespaces/ns/services/unnamed:70000",
                    Err(r#"no service port 70000 found for service "unnamed""#),
                ),
                ("namespaces/ns/services/named:p", Ok("Http 10.0.0.1:80")),
                ("namespaces/ns/services/named:93", Ok("Http 10.0.0.1:80")),
                ("namespaces/ns/services/named:q", Ok("Https 10.0.0.1:81")),
                (
                    "namespaces/ns/services/http:named:76",
                    Ok("Http 10.0.0.1:81"),
                ),
                ("namespaces/ns/services/named:bad", Err(none)),
                ("namespaces/ns/services/single", Ok("Https 10.0.0.1:8443")),
                (
                    "namespaces/ns/services/single:nope",
                    Err(r#"no endpoints available for service "single:nope""#),
                ),
                (
                    "namespaces/ns/services/no-endpoints:80",
                    Err(r#"no endpoints available for service "no-endpoints""#),
                ),
                (
                    "namespaces/ns/services/bad:80",
                    Err(r#"no endpoints available for service "bad:80""#),
                ),
                (
                    "namespaces/ns/services/external:",
                    Err(r#"no endpoints available for service "external:""#),
                ),
                (
                    "namespaces/ns/services/external:80",
                    Err(r#"no endpoints available for service "external:80""#),
                ),
                (
                    "namespaces/ns/services/non-existent:80",
                    Err(r#"services "non-existent" not found"#),
                ),
            ],
        )
        .await;
    }

    #[tokio::test]
    async fn endpoints_count_only_with_a_pod_of_the_namespace_behind_them() {
        let objects = || {
            vec![
                pod("p", &["10.0.0.1", "fd00::1"]),
                service("s", &[("", 80, AppProtocol::Unspecified)]),
                slice(
                    "s",
                    "s",
                    &[("", 80)],
                    vec![
                        at("10.0.0.1", "p"),
                        at("10.0.0.2", "p"),
                        at("10.0.0.3", ""),
                        at("10.0.0.4", "other/p"),
                        at("169.254.169.254", "p"),
                        at("127.0.0.1", ""),
                    ],
                ),
            ]
        };
        let (resolve, _writer) = resolver(false, objects());
        assert_eq!(
            ask(&resolve, "namespaces/ns/services/s").await.unwrap(),
            "Http 10.0.0.1:80"
        );
        // Opted in, addresses without a pod serve; those that must not be dialled do not, whatever
        // is opted in.
        let (resolve, _writer) = resolver(true, objects());
        assert_eq!(
            ask(&resolve, "namespaces/ns/services/s").await.unwrap(),
            "Http 10.0.0.1:80,10.0.0.3:80"
        );
    }

    #[tokio::test]
    async fn facts_join_in_whatever_order_they_come_and_the_turn_outlives_changes() {
        let (resolve, mut writer) = resolver(
            false,
            vec![
                slice(
                    "s",
                    "s",
                    &[("", 80)],
                    vec![at("10.0.0.1", "p"), at("10.0.0.2", "q")],
                ),
                service("s", &[("", 80, AppProtocol::Unspecified)]),
            ],
        );
        let path = "namespaces/ns/services/s";
        assert!(ask(&resolve, path).await.is_err(), "no pod is known yet");
        writer.apply(pod("p", &["10.0.0.1"]));
        assert_eq!(ask(&resolve, path).await.unwrap(), "Http 10.0.0.1:80");
        let rotation = Arc::clone(&resolve.cluster.service("ns", "s").unwrap().ports[0].rotation);
        rotation.advance();
        writer.reset(
            Kind::Pod,
            vec![pod("p", &["10.0.0.1"]), pod("q", &["10.0.0.2"])],
        );
        assert_eq!(
            ask(&resolve, path).await.unwrap(),
            "Http 10.0.0.1:80,10.0.0.2:80"
        );
        assert!(Arc::ptr_eq(
            &rotation,
            &resolve.cluster.service("ns", "s").unwrap().ports[0].rotation
        ));
        writer.delete(Kind::Pod, &ObjectKey::new("ns", "p"));
        assert_eq!(ask(&resolve, path).await.unwrap(), "Http 10.0.0.2:80");
        // A second slice of the same pod, while the controller moves it.
        writer.apply(slice("s-2", "s", &[("", 80)], vec![at("10.0.0.2", "q")]));
        writer.delete(Kind::EndpointSlice, &ObjectKey::new("ns", "s"));
        assert_eq!(ask(&resolve, path).await.unwrap(), "Http 10.0.0.2:80");
        writer.apply(pod("q", &["10.0.0.9"]));
        assert!(
            ask(&resolve, path).await.is_err(),
            "the pod no longer holds the address"
        );
        writer.reset(Kind::Service, vec![]);
        assert_eq!(
            ask(&resolve, path).await.unwrap_err(),
            r#"services "s" not found"#
        );
    }

    #[tokio::test]
    async fn pods_that_have_ended_are_not_dialed() {
        let ended = |phase| {
            let Object::Pod(key, pod) = pod("p", &["10.0.0.1"]) else {
                unreachable!("it is a pod")
            };
            Object::Pod(key, Pod { phase, ..pod })
        };
        let (resolve, mut writer) = resolver(
            false,
            vec![
                pod("p", &["10.0.0.1"]),
                service("s", &[("", 80, AppProtocol::Unspecified)]),
                slice("s", "s", &[("", 80)], vec![at("10.0.0.1", "p")]),
            ],
        );
        let (pod_path, service_path) = ("namespaces/ns/pods/p:80", "namespaces/ns/services/s");
        for phase in [Phase::Succeeded, Phase::Failed] {
            check(
                &resolve,
                &[
                    (pod_path, Ok("Http 10.0.0.1:80")),
                    (service_path, Ok("Http 10.0.0.1:80")),
                ],
            )
            .await;
            // Nothing but the phase changes.
            writer.apply(ended(phase));
            let told = format!(r#"pod "p" has ended (phase {phase:?})"#);
            check(
                &resolve,
                &[
                    (pod_path, Err(&told)),
                    (
                        service_path,
                        Err(r#"no endpoints available for service "s""#),
                    ),
                ],
            )
            .await;
            let service = resolve.cluster.service("ns", "s").unwrap();
            assert_eq!(
                service.ports[0].refused[0].why,
                crate::cluster::ExclusionReason::PodEnded
            );
            writer.apply(ended(Phase::Active));
        }
    }

    #[tokio::test]
    async fn ready_endpoints_go_before_draining_ones_and_the_primary_family_before_the_other() {
        let draining = |endpoint| SliceEndpoint {
            ready: false,
            terminating: true,
            ..endpoint
        };
        let (resolve, mut writer) = resolver(
            false,
            vec![
                pod("p", &["10.0.0.1", "fd00::1"]),
                pod("q", &["10.0.0.2"]),
                service("s", &[("", 80, AppProtocol::Unspecified)]),
                slice(
                    "v4",
                    "s",
                    &[("", 80)],
                    vec![draining(at("10.0.0.1", "p")), at("10.0.0.2", "q")],
                ),
                slice("v6", "s", &[("", 80)], vec![at("fd00::1", "p")]),
            ],
        );
        let path = "namespaces/ns/services/s";
        assert_eq!(ask(&resolve, path).await.unwrap(), "Http 10.0.0.2:80");
        writer.apply(slice(
            "v4",
            "s",
            &[("", 80)],
            vec![draining(at("10.0.0.1", "p"))],
        ));
        assert_eq!(ask(&resolve, path).await.unwrap(), "Http [fd00::1]:80");
        writer.delete(Kind::EndpointSlice, &ObjectKey::new("ns", "v6"));
        assert_eq!(ask(&resolve, path).await.unwrap(), "Http 10.0.0.1:80");
    }

    #[tokio::test]
    async fn pods_and_nodes_are_found_at_their_address_and_port() {
        let node = |name: &str, addresses: &[(&str, &str)]| {
            let addresses = addresses
                .iter()
                .map(|(kind, host)| ((*kind).into(), (*host).into()))
                .collect();
            Object::Node(Node {
                name: name.into(),
                addresses,
                kubelet_port: 10250,
            })
        };
        let (resolve, _writer) = resolver(
            false,
            vec![
                pod("p", &["10.0.0.1", "10.0.0.2"]),
                pod("six", &["fd00::1"]),
                pod("new", &[]),
                pod("loop", &["127.0.0.1"]),
                node("n", &[("Hostname", "n"), ("InternalIP", "10.1.0.1")]),
                node("far", &[("ExternalIP", "10.1.0.2")]),
                node("named", &[("Hostname", "localhost")]),
                node("meta", &[("InternalIP", "169.254.169.254")]),
            ],
        );
        check(
            &resolve,
            &[
                ("namespaces/ns/pods/p", Ok("Http 10.0.0.1:8080")),
                ("namespaces/ns/pods/https:p:", Ok("Https 10.0.0.1:8080")),
                ("namespaces/ns/pods/p:9", Ok("Http 10.0.0.1:9")),
                ("namespaces/ns/pods/p:web", Ok("Http 10.0.0.1:8081")),
                ("namespaces/ns/pods/six", Ok("Http [fd00::1]:8080")),
                (
                    "namespaces/ns/pods/p:+80",
                    Err(r#"invalid pod request "p:+80""#),
                ),
                (
                    "namespaces/ns/pods/p:-1",
                    Err(r#"invalid pod request "p:-1""#),
                ),
                ("namespaces/ns/pods/new", Err("address not allowed")),
                ("namespaces/ns/pods/loop", Err("address not allowed")),
                ("namespaces/ns/pods/gone", Err(r#"pods "gone" not found"#)),
                ("namespaces//pods/p", Err("Namespace parameter required.")),
                ("namespaces/ns/pods/", Err("name must be provided")),
                ("nodes/n", Ok("Kubelet 10.1.0.1:10250")),
                ("nodes/http:n:10250", Ok("Kubelet 10.1.0.1:10250")),
                ("nodes/n:9100", Ok("Http 10.1.0.1:9100")),
                ("nodes/https:n:9100", Ok("Https 10.1.0.1:9100")),
                ("nodes/n:web", Err(r#"invalid node request "n:web""#)),
                (
                    "nodes/far",
                    Err("no preferred addresses found; known addresses: [{ExternalIP 10.1.0.2}]"),
                ),
                ("nodes/named", Err("address not allowed")),
                ("nodes/meta:80", Err("address not allowed")),
                ("nodes/gone", Err(r#"nodes "gone" not found"#)),
            ],
        )
        .await;
    }
}
