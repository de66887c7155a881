//! Parsers of the section `loadBalancer`.

use std::net::IpAddr;

use super::{Expected, ValueError};
use crate::config::{PortRange, PublishedAddress};
use crate::model::dns;

/// Parses a class of load balancers: a qualified name of the Kubernetes API, with or without a domain.
/// An empty one stands for none.
///
/// # Errors
/// [`ValueError::Invalid`] for anything else.
pub fn parse_class(text: &str) -> Result<String, ValueError> {
    let (domain, name) = match text.split_once('/') {
        Some((domain, name)) => (Some(domain), name),
        None => (None, text),
    };
    let is_inner = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    let has_alphanumeric_ends = [name.bytes().next(), name.bytes().last()]
        .iter()
        .all(|byte| byte.is_some_and(|byte| byte.is_ascii_alphanumeric()));
    let is_name = domain.is_none_or(dns::is_subdomain)
        && name.len() <= dns::MAX_LABEL_BYTES
        && name.bytes().all(is_inner)
        && has_alphanumeric_ends;
    if is_name || text.is_empty() {
        Ok(text.to_owned())
    } else {
        Err(Expected::LoadBalancerClass.error(text))
    }
}

/// Parses an IP address without a port. An IPv4-mapped address is the IPv4 address.
///
/// # Errors
/// [`ValueError::Invalid`] for anything else.
pub fn parse_ip(text: &str) -> Result<IpAddr, ValueError> {
    let address: IpAddr = text.parse().map_err(|_| Expected::Ip.error(text))?;
    Ok(address.to_canonical())
}

/// Parses an IP address or a DNS name.
///
/// # Errors
/// [`ValueError::Invalid`] for anything else, the unspecified address included, because clients
/// cannot use it.
pub fn parse_published_address(text: &str) -> Result<PublishedAddress, ValueError> {
    let invalid = || Expected::PublishedAddress.error(text);
    if let Ok(address) = parse_ip(text) {
        return if address.is_unspecified() {
            Err(invalid())
        } else {
            Ok(PublishedAddress::Ip(address))
        };
    }
    let name = text.to_ascii_lowercase();
    // A name of digits only is a malformed address.
    let is_name =
        dns::is_subdomain(&name) && !name.bytes().all(|b| b.is_ascii_digit() || b == b'.');
    if is_name {
        Ok(PublishedAddress::Hostname(name))
    } else {
        Err(invalid())
    }
}

/// Parses `80` or `8000-8999`.
pub fn parse_port_range(text: &str) -> Result<PortRange, ValueError> {
    let port = |text: &str| {
        let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        let port: Option<u16> = digits.then(|| text.parse().ok()).flatten();
        port.filter(|port| *port > 0)
    };
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    match (port(first), port(last)) {
        (Some(first), Some(last)) if first <= last => Ok(PortRange(first..=last)),
        _ => Err(Expected::PortRange.error(text)),
    }
}

/// Parses `NAMESPACE/NAME`.
pub fn parse_object_name(text: &str) -> Result<String, ValueError> {
    let parts = text.split_once('/');
    match parts {
        Some((namespace, name)) if dns::is_label(namespace) && dns::is_subdomain(name) => {
            Ok(text.to_owned())
        }
        _ => Err(Expected::ObjectName.error(text)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parses_classes_as_qualified_names() {
        for (text, is_valid) in [
            ("kube-bastion.dev/bastion", true),
            ("Internal_1.x", true),
            ("", true),
            ("a/b/c", false),
            ("Kube.dev/x", false),
            ("a/", false),
            ("/a", false),
            ("-a", false),
            ("a b", false),
            (&"x".repeat(64), false),
        ] {
            assert_eq!(parse_class(text).is_ok(), is_valid, "{text:?}");
        }
    }

    #[test]
    fn parses_ranges_of_ports() {
        for (text, range) in [
            ("80", Some(80..=80)),
            ("8000-8999", Some(8000..=8999)),
            ("1-65535", Some(1..=65535)),
            ("80-80", Some(80..=80)),
            ("", None),
            ("0", None),
            ("0-80", None),
            ("90-80", None),
            ("80-", None),
            ("-80", None),
            ("+80", None),
            ("65536", None),
            ("1-2-3", None),
        ] {
            assert_eq!(parse_port_range(text).ok(), range.map(PortRange), "{text}");
        }
    }

    #[test]
    fn parses_published_addresses() {
        let hostname = |name: &str| Some(PublishedAddress::Hostname(name.into()));
        let ip = |text: &str| Some(PublishedAddress::Ip(text.parse().unwrap()));
        for (text, address) in [
            ("192.0.2.1", ip("192.0.2.1")),
            ("2001:DB8:0::1", ip("2001:db8::1")),
            ("::ffff:192.0.2.1", ip("192.0.2.1")),
            ("LB.example.com", hostname("lb.example.com")),
            ("0.0.0.0", None),
            ("::", None),
            ("192.0.2.1:80", None),
            ("192.0.2.256", None),
            ("lb_1.example.com", None),
            ("", None),
        ] {
            assert_eq!(parse_published_address(text).ok(), address, "{text}");
        }
    }
}
