//! Hosts of services and pods in URLs that clients send to a proxy.

use std::borrow::Cow;

use super::{Target, TargetError};
use crate::model::Resource;
use crate::model::dns::{is_label, is_subdomain};

impl<'a> Target<'a> {
    /// Parses the authority of an `http://` URL: `NAME.NAMESPACE.svc`, also below the domain of the
    /// cluster, or `NAME.NAMESPACE.pod`, each with an optional port. The id of the target has the
    /// port only if the URL has. Returns `None` for other hosts.
    ///
    /// # Errors
    /// [`TargetError::Host`] if the host is below `svc` or `pod` and names neither.
    pub fn from_authority(
        authority: &str,
        path: &'a str,
        cluster_domain: &str,
    ) -> Option<Result<Self, TargetError>> {
        let (host, port) = authority.split_once(':').unwrap_or((authority, ""));
        let host = host_name(host);
        let (resource, name) = zone(&host, cluster_domain)?;
        let parsed = parse_name(resource, name).and_then(|(name, namespace)| {
            let id = match port {
                "" => name.to_owned(),
                port => format!("{name}:{}", parse_port(port)?),
            };
            Some(Self {
                resource,
                namespace: Cow::Owned(namespace.to_owned()),
                id: Cow::Owned(id),
                prefix: "",
                rest: path,
            })
        });
        Some(parsed.ok_or_else(|| TargetError::Host(authority.to_owned())))
    }
}

/// Returns a host in lower case and without its final dot: names of DNS may be absolute, and are not
/// case-sensitive.
pub(in crate::model) fn host_name(host: &str) -> String {
    host.strip_suffix('.').unwrap_or(host).to_ascii_lowercase()
}

/// Returns the resource whose names are in the zone of a host, and the host without the zone. `None`
/// for hosts in neither `svc` nor `pod`.
pub(in crate::model) fn zone<'h>(
    host: &'h str,
    cluster_domain: &str,
) -> Option<(Resource, &'h str)> {
    if let Some(name) = host.strip_suffix(".pod") {
        return Some((Resource::Pods, name));
    }
    let in_cluster = || host.strip_suffix(cluster_domain)?.strip_suffix(".svc.");
    let name = host.strip_suffix(".svc").or_else(in_cluster)?;
    Some((Resource::Services, name))
}

/// Splits `NAME.NAMESPACE`. The names of pods may contain dots, those of services may not.
fn parse_name(resource: Resource, text: &str) -> Option<(&str, &str)> {
    let (name, namespace) = text.rsplit_once('.')?;
    let is_name = match resource {
        Resource::Pods => is_subdomain(name),
        Resource::Services | Resource::Nodes => is_label(name),
    };
    (is_name && is_label(namespace)).then_some((name, namespace))
}

fn parse_port(text: &str) -> Option<u16> {
    text.parse().ok().filter(|port| *port > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(authority: &str) -> Option<Result<String, TargetError>> {
        let parsed = Target::from_authority(authority, "/a%2Fb/../c", "cluster.local")?;
        Some(parsed.map(|target| {
            assert_eq!((target.prefix, target.rest), ("", "/a%2Fb/../c"));
            format!("{} {}/{}", target.resource, target.namespace, target.id)
        }))
    }

    #[test]
    fn names_services_and_pods() {
        for (authority, expected) in [
            ("web.shop.svc", "services shop/web"),
            ("web.shop.svc:", "services shop/web"),
            ("web.shop.svc:80", "services shop/web:80"),
            ("web.shop.svc:08080", "services shop/web:8080"),
            ("WEB.Shop.SVC", "services shop/web"),
            ("web.shop.svc.", "services shop/web"),
            ("web.shop.svc.cluster.local", "services shop/web"),
            ("web.shop.svc.Cluster.Local.:8443", "services shop/web:8443"),
            ("svc.svc.svc", "services svc/svc"),
            ("web-0.shop.pod", "pods shop/web-0"),
            ("web-0.shop.pod:3000", "pods shop/web-0:3000"),
            (
                "kube-proxy-n1.example.com.kube-system.pod",
                "pods kube-system/kube-proxy-n1.example.com",
            ),
        ] {
            assert_eq!(
                parse(authority),
                Some(Ok(expected.to_owned())),
                "{authority}"
            );
        }
    }

    #[test]
    fn rejects_other_hosts_below_svc_and_pod() {
        for authority in [
            "shop.svc",
            ".svc",
            "..svc",
            "a.web.shop.svc",
            "web.shop.svc:0",
            "-web.shop.svc",
            "web_1.shop.svc",
            "web%41.shop.svc",
            "web..svc",
            ".shop.svc",
            "web.shop.svc.svc.cluster.local",
            "shop.pod",
            ".shop.pod",
            "a..shop.pod",
        ] {
            let expected = TargetError::Host(authority.to_owned());
            assert_eq!(parse(authority), Some(Err(expected)), "{authority}");
        }
    }

    #[test]
    fn other_hosts_are_not_targets() {
        for authority in [
            "",
            "bastion.example",
            "localhost:8443",
            "192.0.2.1:80",
            "[2001:db8::1]:80",
            "svc",
            "pod",
            "web.shop.svc.example",
            "web.shop.svc.cluster.locals",
            "web.shopsvc",
            "web-0.shop.pod.cluster.local",
        ] {
            assert_eq!(parse(authority), None, "{authority}");
        }
    }
}
