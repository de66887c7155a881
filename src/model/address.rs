//! Types of node addresses, and the policy that limits dials to global unicast addresses
//! (CONFORMANCE C35, C40, C110).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use serde::{Deserialize, Serialize};

/// Type of a node address, spelled as in `status.addresses` of a Node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, schemars::JsonSchema)]
pub enum AddressType {
    Hostname,
    #[serde(rename = "InternalIP")]
    InternalIp,
    #[serde(rename = "InternalDNS")]
    InternalDns,
    #[serde(rename = "ExternalIP")]
    ExternalIp,
    #[serde(rename = "ExternalDNS")]
    ExternalDns,
}

impl AddressType {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Hostname => "Hostname",
            Self::InternalIp => "InternalIP",
            Self::InternalDns => "InternalDNS",
            Self::ExternalIp => "ExternalIP",
            Self::ExternalDns => "ExternalDNS",
        }
    }
}

/// Addresses that can be dialed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AddressPolicy {
    /// Allows loopback addresses. For the demo and for tests on one machine, never in a cluster.
    pub allow_loopback: bool,
}

/// IPv4 ranges that are never dialed.
const FORBIDDEN_V4: &[(Ipv4Addr, u32)] = &[
    // "This network" (RFC 791): Linux connects to the local machine for 0.0.0.0.
    (Ipv4Addr::UNSPECIFIED, 8),
    // Alibaba Cloud's metadata service. The rest of the shared range (RFC 6598) can belong to
    // pods.
    (Ipv4Addr::new(100, 100, 100, 200), 32),
    // Azure's platform service (wire server, DNS, health probes), a public address.
    (Ipv4Addr::new(168, 63, 129, 16), 32),
    // Link-local (RFC 3927), with the metadata service of most clouds, 169.254.169.254.
    (Ipv4Addr::new(169, 254, 0, 0), 16),
    // IETF protocol assignments (RFC 6890), with Oracle Cloud's metadata service 192.0.0.192 in it.
    (Ipv4Addr::new(192, 0, 0, 0), 24),
    // Multicast (RFC 5771).
    (Ipv4Addr::new(224, 0, 0, 0), 4),
    // Reserved (RFC 1112), and limited broadcast.
    (Ipv4Addr::new(240, 0, 0, 0), 4),
];

/// IPv6 ranges that are never dialed.
const FORBIDDEN_V6: &[(Ipv6Addr, u32)] = &[
    // Unspecified: Linux connects to the local machine.
    (Ipv6Addr::UNSPECIFIED, 128),
    // IPv4-compatible `::a.b.c.d` (RFC 4291, deprecated). `::1` is checked before.
    (Ipv6Addr::UNSPECIFIED, 96),
    // IPv4-mapped `::ffff:a.b.c.d` (RFC 4291). Clusters do not publish mapped addresses, so one is
    // an attempt to bypass the IPv4 table.
    (Ipv6Addr::new(0, 0, 0, 0, 0, 0xffff, 0, 0), 96),
    // IPv4-translated `::ffff:0:a.b.c.d` (RFC 2765, deprecated), for the same reason.
    (Ipv6Addr::new(0, 0, 0, 0, 0xffff, 0, 0, 0), 96),
    // Teredo (RFC 4380): an IPv4 address behind a tunnel, with inverted bits.
    (Ipv6Addr::new(0x2001, 0, 0, 0, 0, 0, 0, 0), 32),
    // Scaleway's metadata service.
    (Ipv6Addr::new(0xfd00, 0x42, 0, 0, 0, 0, 0, 0x42), 128),
    // Oracle Cloud's metadata service, fd00:c1::a9fe:a9fe.
    (Ipv6Addr::new(0xfd00, 0xc1, 0, 0, 0, 0, 0, 0), 64),
    // Amazon's instance services: metadata at fd00:ec2::254, pod identity at ::23, DNS at ::253.
    (Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0), 32),
    // Google Cloud's metadata service, fd20:ce::254.
    (Ipv6Addr::new(0xfd20, 0xce, 0, 0, 0, 0, 0, 0), 64),
    // Link-local (RFC 4291), with OpenStack's metadata service fe80::a9fe:a9fe in it.
    (Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0), 10),
    // Multicast (RFC 4291).
    (Ipv6Addr::new(0xff00, 0, 0, 0, 0, 0, 0, 0), 8),
];

impl AddressPolicy {
    /// Returns true if `address` can be dialed: it is global unicast in the sense of Go's
    /// `IsGlobalUnicast` (private ranges are), it is not a metadata or platform service of a cloud,
    /// and it does not embed an address that fails these checks.
    pub fn permits(self, address: IpAddr) -> bool {
        match address {
            IpAddr::V4(v4) => self.permits_v4(v4),
            IpAddr::V6(v6) if v6.is_loopback() => self.allow_loopback,
            IpAddr::V6(v6) => {
                let in_range = |(net, length): &(Ipv6Addr, u32)| {
                    (v6.to_bits() ^ net.to_bits()) >> (128 - length) == 0
                };
                !FORBIDDEN_V6.iter().any(in_range) && embedded_v4(v6).all(|v4| self.permits_v4(v4))
            }
        }
    }

    fn permits_v4(self, v4: Ipv4Addr) -> bool {
        if v4.is_loopback() {
            return self.allow_loopback;
        }
        let in_range =
            |(net, length): &(Ipv4Addr, u32)| (v4.to_bits() ^ net.to_bits()) >> (32 - length) == 0;
        !FORBIDDEN_V4.iter().any(in_range)
    }
}

/// Returns the IPv4 addresses that a gateway may translate `v6` to.
fn embedded_v4(v6: Ipv6Addr) -> impl Iterator<Item = Ipv4Addr> {
    let bytes = v6.octets();
    let at = |indices: [usize; 4]| Ipv4Addr::from(indices.map(|index| bytes[index]));
    let last = at([12, 13, 14, 15]);
    let mut found = Vec::new();
    match v6.segments() {
        // NAT64, well-known prefix (RFC 6052 section 2.1).
        [0x64, 0xff9b, 0, 0, 0, 0, ..] => found.push(last),
        // NAT64, local use (RFC 8215). The operator chooses the length of the prefix, and with it
        // one of the layouts of RFC 6052 section 2.2 (/48, /56, /64, /96; byte 8 is always zero),
        // so all of them are checked. With a wrong length, the zeros of a longer prefix decode to
        // an address in 0.0.0.0/8, which no gateway forwards: such results are ignored unless all
        // layouts have one.
        [0x64, 0xff9b, 1, ..] => {
            found = vec![
                at([6, 7, 9, 10]),
                at([7, 9, 10, 11]),
                at([9, 10, 11, 12]),
                last,
            ];
            if found.iter().any(|v4| v4.octets()[0] != 0) {
                found.retain(|v4| v4.octets()[0] != 0);
            }
        }
        // 6to4 (RFC 3056).
        [0x2002, ..] => found.push(at([2, 3, 4, 5])),
        // ISATAP (RFC 5214 section 6.1), under any prefix.
        [_, _, _, _, 0 | 0x200, 0x5efe, ..] => found.push(last),
        _ => {}
    }
    found.into_iter()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn permits_only_global_unicast_in_every_notation() {
        let cases = [
            ("10.244.0.7", true),
            ("192.168.1.1", true),
            ("100.64.0.1", true),
            ("8.8.8.8", true),
            ("fd00:10:244::7", true),
            ("2001:db8::1", true),
            ("64:ff9b::10.0.0.1", true),
            ("0.0.0.0", false),
            ("0.1.2.3", false),
            ("127.0.0.1", false),
            ("127.9.9.9", false),
            ("169.254.169.254", false),
            ("224.0.0.1", false),
            ("255.255.255.255", false),
            ("240.0.0.1", false),
            ("::", false),
            ("::1", false),
            ("fe80::1", false),
            ("ff02::1", false),
            ("fd00:ec2::254", false),
            ("::ffff:127.0.0.1", false),
            ("::ffff:10.0.0.1", false),
            ("::127.0.0.1", false),
            ("64:ff9b::127.0.0.1", false),
            ("64:ff9b:1::127.0.0.1", false),
            ("64:ff9b::169.254.169.254", false),
            ("2002:7f00:1::", false),
            ("2002:a9fe:a9fe::1", false),
            ("2002:a00:1::", true),
            // Metadata services of clouds, and their neighbors.
            ("100.100.100.200", false),
            ("100.100.100.201", true),
            ("168.63.129.16", false),
            ("168.63.129.17", true),
            ("192.0.0.192", false),
            ("192.0.0.1", false),
            ("192.0.1.1", true),
            ("169.253.255.255", true),
            ("fd20:ce::254", false),
            ("fd20:cf::254", true),
            ("fd00:c1::a9fe:a9fe", false),
            ("fd00:42::42", false),
            ("fd00:42::43", true),
            ("fe80::a9fe:a9fe", false),
            ("64:ff9b::100.100.100.200", false),
            // NAT64 for local use, with each length of the prefix: /48, /56, /64, /96.
            ("64:ff9b:1:a9fe:a9:fe00::", false),
            ("64:ff9b:1:5a9:fe:a9fe::", false),
            ("64:ff9b:1:506:a9:fea9:fe00:0", false),
            ("64:ff9b:1:506:0:7:169.254.169.254", false),
            ("64:ff9b:1:7f00:0:100::", false),
            ("64:ff9b:1:a00:0:100::", true),
            ("64:ff9b:1::10.0.0.1", true),
            ("64:ff9b:1::", false),
            // Other forms of IPv4 in IPv6: translated, compatible, Teredo, ISATAP.
            ("::ffff:0:10.0.0.1", false),
            ("::10.0.0.1", false),
            ("2001:0:4136:e378:8000:63bf:3fff:fdd2", false),
            ("2001:db8::5efe:169.254.169.254", false),
            ("2001:db8::200:5efe:127.0.0.1", false),
            ("2001:db8::5efe:10.0.0.1", true),
        ];
        for (address, permitted) in cases {
            assert_eq!(
                AddressPolicy::default().permits(address.parse().unwrap()),
                permitted,
                "{address}"
            );
        }
    }

    #[test]
    fn allow_loopback_permits_loopback_only() {
        let policy = AddressPolicy {
            allow_loopback: true,
        };
        for (address, permitted) in [
            ("127.0.0.1", true),
            ("::1", true),
            ("::ffff:127.0.0.1", false),
            ("::", false),
            ("169.254.169.254", false),
        ] {
            assert_eq!(
                policy.permits(address.parse().unwrap()),
                permitted,
                "{address}"
            );
        }
    }
}
