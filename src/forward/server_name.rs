//! Server names of TLS connections to endpoints (CONFORMANCE C51).

use rustls::pki_types::{DnsName, ServerName as Name};

use crate::model::{Resource, Target};
use crate::resolve::{Route, Transport};

/// Server name (SNI) of the connections for a target. An endpoint may present another certificate
/// or application for another name, so a connection serves only targets with its name.
#[derive(Clone, Copy, Debug)]
pub(super) enum ServerName<'a> {
    /// `name.namespace.svc`.
    Service { name: &'a str, namespace: &'a str },
    /// Host name of a node.
    Node(&'a str),
    /// A pod, or a connection without TLS.
    None,
}

impl<'a> ServerName<'a> {
    pub fn new(target: &'a Target<'_>, route: &'a Route) -> Self {
        match (route.transport, target.resource) {
            (Transport::Http | Transport::H2c, _) | (_, Resource::Pods) => Self::None,
            (_, Resource::Services) => match target.id() {
                Ok(id) => Self::Service {
                    name: id.name,
                    namespace: &target.namespace,
                },
                Err(_) => Self::None,
            },
            (_, Resource::Nodes) => route.node_host.as_deref().map_or(Self::None, Self::Node),
        }
    }

    /// Returns the name as text.
    pub fn to_text(self) -> Option<Box<str>> {
        match self {
            Self::Service { name, namespace } => Some(format!("{name}.{namespace}.svc").into()),
            Self::Node(host) => Some(host.into()),
            Self::None => None,
        }
    }

    /// Compares with the text of another name, without an allocation.
    pub fn is(self, text: Option<&str>) -> bool {
        match (self, text) {
            (Self::Service { name, namespace }, Some(text)) => text
                .strip_prefix(name)
                .and_then(|rest| rest.strip_prefix('.')?.strip_prefix(namespace))
                .is_some_and(|rest| rest == ".svc"),
            (Self::Node(host), Some(text)) => text == host,
            (Self::None, None) => true,
            (Self::Service { .. } | Self::Node(_), None) | (Self::None, Some(_)) => false,
        }
    }
}

/// Returns the name that a handshake can send. `None` for an address and for an invalid name.
pub(super) fn to_dns_name(text: &str) -> Option<DnsName<'static>> {
    match Name::try_from(text.to_owned()) {
        Ok(Name::DnsName(name)) => Some(name),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use std::sync::Arc;

    use crate::model::Endpoint;
    use crate::resolve::Candidates;

    fn route(transport: Transport, node_host: Option<&str>) -> Route {
        Route {
            candidates: Candidates::One(Endpoint {
                address: "10.0.0.1:443".parse().unwrap(),
                name: Arc::from("e"),
            }),
            transport,
            service_port: None,
            keeps_path: false,
            node_host: node_host.map(Box::from),
        }
    }

    #[test]
    fn names_services_and_nodes_with_tls() {
        let (https, kubelet) = (Transport::Https, Transport::Kubelet);
        let service = "/api/v1/namespaces/shop/services/https:web:443/proxy/";
        let pod = "/api/v1/namespaces/shop/pods/https:web-1:443/proxy/";
        let node = "/api/v1/nodes/n/proxy/";
        for (path, transport, node_host, expected) in [
            (service, https, None, Some("web.shop.svc")),
            (service, Transport::Http, None, None),
            (service, Transport::H2c, None, None),
            (pod, https, None, None),
            (node, https, Some("n.internal"), Some("n.internal")),
            (node, kubelet, Some("n.internal"), Some("n.internal")),
            (node, Transport::Http, Some("n.internal"), None),
        ] {
            let (target, route) = (Target::parse(path).unwrap(), route(transport, node_host));
            let name = ServerName::new(&target, &route);
            let text = name.to_text();
            assert_eq!(text.as_deref(), expected, "{path} {transport:?}");
            assert!(name.is(text.as_deref()));
            for other in [Some("web.shop.svcs"), Some("web.shop"), Some("other"), None] {
                assert_eq!(name.is(other), other == expected, "{path} {other:?}");
            }
        }
    }

    #[test]
    fn separates_name_and_namespace() {
        let name = |name, namespace| ServerName::Service { name, namespace };
        assert!(name("a", "b").is(Some("a.b.svc")));
        assert!(!name("a", "bc").is(Some("a.b.svc")));
        assert!(!name("ab", "c").is(Some("a.b.svc")));
    }

    #[test]
    fn addresses_and_invalid_names_are_not_sent() {
        let long = "n".repeat(64);
        for (text, sent) in [
            ("web.shop.svc", true),
            ("10.0.0.1", false),
            ("fd00::1", false),
            ("a..b", false),
            (&*long, false),
            ("", false),
        ] {
            assert_eq!(to_dns_name(text).is_some(), sent, "{text:?}");
        }
    }
}
