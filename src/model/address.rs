//! Kinds of node addresses, and which addresses may be dialled at all (CONFORMANCE C35, C40, C110).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use serde::{Deserialize, Serialize};

/// A kind of node address, spelled as in `status.addresses` of a Node.
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

/// What the operator lets through beside global unicast addresses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AddressPolicy {
    /// Loopback addresses may be dialled: for the demo and for tests on one machine, never in a cluster.
    pub allow_loopback: bool,
}

impl AddressPolicy {
    /// Whether `address` is global unicast in the sense of Go's `IsGlobalUnicast` (private ranges are), and none
    /// of the disguises of an address that is not: IPv4 mapped into IPv6, NAT64 (RFC 6052), 6to4 (RFC 3056).
    pub fn permits(self, address: IpAddr) -> bool {
        match address {
            IpAddr::V4(v4) => self.permits_v4(v4),
            IpAddr::V6(v6) => match embedded_v4(v6) {
                // A mapped address is never what a cluster publishes; whoever spells it so wants to get past a check.
                Some(Embedded::Mapped) => false,
                Some(Embedded::Translated(v4)) => self.permits_v4(v4),
                None => self.permits_v6(v6),
            },
        }
    }

    fn permits_v4(self, v4: Ipv4Addr) -> bool {
        let this_network = v4.octets()[0] == 0;
        let reserved = v4.octets()[0] >= 240;
        if v4.is_loopback() {
            return self.allow_loopback;
        }
        !(this_network || v4.is_link_local() || v4.is_multicast() || v4.is_broadcast() || reserved)
    }

    fn permits_v6(self, v6: Ipv6Addr) -> bool {
        if v6.is_loopback() {
            return self.allow_loopback;
        }
        // fd00:ec2::/32 is where a cloud keeps its IPv6 metadata service, inside the unique local range.
        let metadata = v6.segments()[..2] == [0xfd00, 0x0ec2];
        !(v6.is_unspecified() || v6.is_multicast() || v6.is_unicast_link_local() || metadata)
    }
}

enum Embedded {
    Mapped,
    Translated(Ipv4Addr),
}

fn embedded_v4(v6: Ipv6Addr) -> Option<Embedded> {
    let v4 = |high: u16, low: u16| Ipv4Addr::from((u32::from(high) << 16) | u32::from(low));
    match v6.segments() {
        [0, 0, 0, 0, 0, 0xffff, _, _] => Some(Embedded::Mapped),
        // `::a.b.c.d`, deprecated by RFC 4291; `::` and `::1` are judged as what they are.
        [0, 0, 0, 0, 0, 0, high, low] if (high, low) != (0, 0) && (high, low) != (0, 1) => Some(Embedded::Mapped),
        [0x0064, 0xff9b, 0, 0, 0, 0, high, low] | [0x0064, 0xff9b, 1, _, _, _, high, low] => {
            Some(Embedded::Translated(v4(high, low)))
        }
        [0x2002, high, low, ..] => Some(Embedded::Translated(v4(high, low))),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_global_unicast_is_permitted_however_it_is_spelled() {
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
        ];
        for (address, permitted) in cases {
            assert_eq!(AddressPolicy::default().permits(address.parse().unwrap()), permitted, "{address}");
        }
    }

    #[test]
    fn loopback_is_a_setting_and_opens_nothing_else() {
        let policy = AddressPolicy { allow_loopback: true };
        for (address, permitted) in
            [("127.0.0.1", true), ("::1", true), ("::ffff:127.0.0.1", false), ("169.254.169.254", false)]
        {
            assert_eq!(policy.permits(address.parse().unwrap()), permitted, "{address}");
        }
    }
}
