//! Targets of tunnels: the authority of CONNECT (RFC 9110 section 9.3.6), and host and port of
//! CONNECT-UDP (RFC 9298).

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::dns::{is_label, is_subdomain};
use super::quote::GoQuoted;
use super::target::{host_name, zone};
use super::{Protocol, Resource};

/// Names of targets, part of errors.
pub const TUNNEL_FORMS: &str = "NAME.NAMESPACE.svc, NAME.NAMESPACE.pod, HOSTNAME.SERVICE.NAMESPACE.svc, or the \
     address of a service or pod";
/// Maximum length of the name of a port (RFC 6335 section 5.1).
const MAX_PORT_NAME: usize = 15;

/// Host and port that a client asks a tunnel for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TunnelAddress {
    pub protocol: Protocol,
    pub host: TunnelHost,
    pub port: PortRef,
}

/// Host of a tunnel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TunnelHost {
    /// An object by its name.
    Object(TunnelObject),
    /// A pod of the namespace, by its address: `10-0-0-7.NAMESPACE.pod`, as the DNS of the cluster
    /// names it. It may also be the name of a pod.
    PodAddress {
        object: TunnelObject,
        address: IpAddr,
    },
    /// A service or pod by its address.
    Address(IpAddr),
}

impl fmt::Display for TunnelHost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(address) => address.fmt(f),
            Self::Object(object) | Self::PodAddress { object, .. } => object.name.fmt(f),
        }
    }
}

/// Service or pod at the end of a tunnel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TunnelObject {
    /// Pods or services.
    pub resource: Resource,
    pub namespace: String,
    pub name: String,
    /// Host name of one endpoint of the service (`endpoints[].hostname`).
    pub hostname: Option<String>,
}

/// Port of a tunnel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PortRef {
    /// From 1 to 65535.
    Number(u16),
    /// Name of a port of the service or pod.
    Name(String),
}

impl fmt::Display for PortRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Number(number) => number.fmt(f),
            Self::Name(name) => f.write_str(name),
        }
    }
}

/// Reason why host and port are not those of a target.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TunnelAddressError {
    /// The client must change the request.
    #[error(
        "invalid port in {}; use a number from 1 to 65535 or the name of a port",
        GoQuoted(.0)
    )]
    Port(String),
    /// Names are never looked up in DNS.
    #[error("{} is not in the cluster; use {TUNNEL_FORMS}", GoQuoted(.0))]
    Outside(String),
}

impl TunnelAddress {
    /// Parses the authority of CONNECT, which has a port, and IPv6 addresses in brackets.
    ///
    /// # Errors
    /// [`TunnelAddressError`].
    pub fn from_authority(
        authority: &str,
        cluster_domain: &str,
    ) -> Result<Self, TunnelAddressError> {
        let invalid = || TunnelAddressError::Port(authority.to_owned());
        let (host, port) = authority.rsplit_once(':').ok_or_else(invalid)?;
        let host = host
            .strip_prefix('[')
            .and_then(|host| host.strip_suffix(']'))
            .unwrap_or(host);
        Self::parse(Protocol::Tcp, host, port, cluster_domain)
    }

    /// Parses host and port. IPv6 addresses have no brackets.
    ///
    /// # Errors
    /// [`TunnelAddressError`].
    pub fn parse(
        protocol: Protocol,
        host: &str,
        port: &str,
        cluster_domain: &str,
    ) -> Result<Self, TunnelAddressError> {
        let port = PortRef::parse(port)
            .ok_or_else(|| TunnelAddressError::Port(format!("{host}:{port}")))?;
        let outside = || TunnelAddressError::Outside(host.to_owned());
        let host = match host.parse::<IpAddr>() {
            Ok(address) => TunnelHost::Address(address.to_canonical()),
            Err(_) => TunnelHost::parse(host, cluster_domain).ok_or_else(outside)?,
        };
        Ok(Self {
            protocol,
            host,
            port,
        })
    }
}

impl TunnelHost {
    fn parse(host: &str, cluster_domain: &str) -> Option<Self> {
        let host = host_name(host);
        let (resource, name) = zone(&host, cluster_domain)?;
        let (name, namespace) = name.rsplit_once('.')?;
        let (hostname, name) = match (resource, name.split_once('.')) {
            (Resource::Services, Some((hostname, service))) => (Some(hostname), service),
            _ => (None, name),
        };
        let is_name = match resource {
            Resource::Pods => is_subdomain(name),
            Resource::Services | Resource::Nodes => is_label(name),
        };
        if !is_name || !is_label(namespace) || hostname.is_some_and(|name| !is_label(name)) {
            return None;
        }
        let object = TunnelObject {
            resource,
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            hostname: hostname.map(str::to_owned),
        };
        Some(match dashed_address(name) {
            Some(address) if resource == Resource::Pods => Self::PodAddress { object, address },
            _ => Self::Object(object),
        })
    }
}

impl PortRef {
    fn parse(text: &str) -> Option<Self> {
        let is_number = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        if is_number {
            let number = text.parse().ok().filter(|port| *port > 0)?;
            return Some(Self::Number(number));
        }
        let is_name = is_label(text)
            && text.len() <= MAX_PORT_NAME
            && text.bytes().any(|byte| byte.is_ascii_alphabetic());
        is_name.then(|| Self::Name(text.to_owned()))
    }
}

/// Parses an address whose dots or colons are dashes.
fn dashed_address(text: &str) -> Option<IpAddr> {
    let v4 = text.replace('-', ".").parse::<Ipv4Addr>();
    let v6 = || text.replace('-', ":").parse::<Ipv6Addr>().ok();
    v4.ok().map(IpAddr::V4).or_else(|| v6().map(IpAddr::V6))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(authority: &str) -> Result<String, TunnelAddressError> {
        let parsed = TunnelAddress::from_authority(authority, "cluster.local")?;
        let object = |object: TunnelObject| {
            let TunnelObject {
                resource,
                namespace,
                name,
                hostname,
            } = object;
            let hostname = hostname.map(|name| format!(" {name}")).unwrap_or_default();
            format!("{resource} {namespace}/{name}{hostname}")
        };
        let host = match parsed.host {
            TunnelHost::Object(named) => object(named),
            TunnelHost::PodAddress {
                object: named,
                address,
            } => format!("{} or {address}", object(named)),
            TunnelHost::Address(address) => address.to_string(),
        };
        Ok(format!("{host} {}", parsed.port))
    }

    #[test]
    fn names_services_pods_endpoints_and_addresses() {
        for (authority, expected) in [
            ("web.shop.svc:80", "services shop/web 80"),
            ("WEB.Shop.svc.:http", "services shop/web http"),
            ("web.shop.svc.cluster.local:080", "services shop/web 80"),
            ("db-1.db.shop.svc:27017", "services shop/db db-1 27017"),
            (
                "db-1.db.shop.svc.cluster.local:1",
                "services shop/db db-1 1",
            ),
            ("web-0.shop.pod:3000", "pods shop/web-0 3000"),
            ("a.b.shop.pod:1", "pods shop/a.b 1"),
            (
                "10-244-1-5.shop.pod:1",
                "pods shop/10-244-1-5 or 10.244.1.5 1",
            ),
            ("fd00--7.shop.pod:1", "pods shop/fd00--7 or fd00::7 1"),
            ("10.96.0.7:443", "10.96.0.7 443"),
            ("[fd00::7]:443", "fd00::7 443"),
            ("[::ffff:10.0.0.1]:443", "10.0.0.1 443"),
        ] {
            assert_eq!(parse(authority).as_deref(), Ok(expected), "{authority}");
        }
    }

    #[test]
    fn rejects_invalid_ports() {
        for authority in [
            "web.shop.svc",
            "web.shop.svc:",
            "web.shop.svc:0",
            "web.shop.svc:65536",
            "web.shop.svc:+1",
            "web.shop.svc:-",
            "web.shop.svc:a_b",
            "web.shop.svc:abcdefghijklmnop",
        ] {
            let error = parse(authority).unwrap_err();
            assert!(matches!(error, TunnelAddressError::Port(_)), "{authority}");
        }
    }

    #[test]
    fn other_hosts_are_outside_of_the_cluster() {
        for authority in [
            "example.com:443",
            "localhost:80",
            "kubernetes:443",
            "web.shop:80",
            "shop.svc:80",
            ".shop.svc:80",
            "a.b.web.shop.svc:80",
            "-a.web.shop.svc:80",
            "web.shop.svc.example.com:80",
            "web_1.shop.svc:80",
            "node-1.node:10250",
            "0x7f.1:80",
        ] {
            let error = parse(authority).unwrap_err();
            assert!(
                matches!(error, TunnelAddressError::Outside(_)),
                "{authority}"
            );
        }
    }
}
