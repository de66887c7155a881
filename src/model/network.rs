//! Networks of addresses in CIDR notation.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;
use std::sync::Arc;

/// Number of bits that an IPv4-mapped IPv6 address has in front of the IPv4 address.
const MAPPED_BITS: u8 = 96;

/// IPv4 or IPv6 network. An IPv4-mapped network is the IPv4 network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Network {
    address: IpAddr,
    /// Length of the prefix in bits.
    prefix: u8,
}

/// Text that is not a network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NetworkError {
    /// Neither `ADDRESS` nor `ADDRESS/PREFIX`.
    Syntax,
    /// Bits behind the prefix are set, so that either of them may be wrong. Has the network without
    /// these bits, and the network of the address alone.
    HostBits(Network, Network),
}

/// List of networks. Clones share it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Networks(Arc<[Network]>);

impl Network {
    /// Returns true if the address is in the network. An IPv4-mapped address is the IPv4 address.
    pub fn contains(self, address: IpAddr) -> bool {
        match (self.address, address.to_canonical()) {
            (IpAddr::V4(network), IpAddr::V4(address)) => {
                let differing = network.to_bits() ^ address.to_bits();
                differing & !host_mask_v4(self.prefix) == 0
            }
            (IpAddr::V6(network), IpAddr::V6(address)) => {
                let differing = network.to_bits() ^ address.to_bits();
                differing & !host_mask_v6(self.prefix) == 0
            }
            (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => false,
        }
    }

    /// Returns the network without the bits behind its prefix.
    fn truncated(self) -> Self {
        let address = match self.address {
            IpAddr::V4(v4) => IpAddr::V4((v4.to_bits() & !host_mask_v4(self.prefix)).into()),
            IpAddr::V6(v6) => IpAddr::V6((v6.to_bits() & !host_mask_v6(self.prefix)).into()),
        };
        Self { address, ..self }
    }
}

/// Returns the bits behind a prefix.
fn host_mask_v4(prefix: u8) -> u32 {
    u32::MAX.checked_shr(prefix.into()).unwrap_or(0)
}

fn host_mask_v6(prefix: u8) -> u128 {
    u128::MAX.checked_shr(prefix.into()).unwrap_or(0)
}

impl FromStr for Network {
    type Err = NetworkError;

    /// Parses `ADDRESS/PREFIX`, or an address alone.
    fn from_str(text: &str) -> Result<Self, NetworkError> {
        let (address, prefix) = match text.split_once('/') {
            Some((address, prefix)) => (address, Some(prefix)),
            None => (text, None),
        };
        let given: IpAddr = address.parse().map_err(|_| NetworkError::Syntax)?;
        let bits = if given.is_ipv4() { 32 } else { 128 };
        let prefix = match prefix {
            None => bits,
            // `parse` accepts a sign.
            Some(text) if text.bytes().all(|byte| byte.is_ascii_digit()) => {
                text.parse().map_err(|_| NetworkError::Syntax)?
            }
            Some(_) => return Err(NetworkError::Syntax),
        };
        if prefix > bits {
            return Err(NetworkError::Syntax);
        }
        let address = given.to_canonical();
        let network = match (given.is_ipv6() && address.is_ipv4(), prefix) {
            (false, _) => Self { address, prefix },
            (true, MAPPED_BITS..) => Self {
                address,
                prefix: prefix - MAPPED_BITS,
            },
            // It contains more than mapped addresses, and would contain no IPv4 address.
            (true, _) => return Err(NetworkError::Syntax),
        };
        if network.truncated() == network {
            Ok(network)
        } else {
            let host = Self {
                address,
                prefix: if address.is_ipv4() { 32 } else { 128 },
            };
            Err(NetworkError::HostBits(network.truncated(), host))
        }
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix)
    }
}

impl Networks {
    /// Returns true if one of the networks contains the address.
    pub fn contains(&self, address: IpAddr) -> bool {
        self.iter().any(|network| network.contains(address))
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn iter(&self) -> impl Iterator<Item = Network> {
        self.0.iter().copied()
    }
}

impl FromIterator<Network> for Networks {
    fn from_iter<I: IntoIterator<Item = Network>>(networks: I) -> Self {
        Self(networks.into_iter().collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn contains_addresses_with_its_prefix() {
        for (network, address, contained) in [
            ("10.0.0.0/8", "10.255.0.1", true),
            ("10.0.0.0/8", "11.0.0.0", false),
            ("10.0.0.0/8", "::ffff:10.1.2.3", true),
            ("192.0.2.7", "192.0.2.7", true),
            ("192.0.2.7", "192.0.2.6", false),
            ("192.0.2.6/31", "192.0.2.7", true),
            ("0.0.0.0/0", "255.255.255.255", true),
            ("0.0.0.0/0", "::1", false),
            ("::/0", "2001:db8::1", true),
            ("::/0", "192.0.2.1", false),
            ("2001:db8::/32", "2001:db8:ffff::1", true),
            ("2001:db8::/32", "2001:db9::1", false),
            ("fd00::/8", "fdff::1", true),
            ("::1", "::1", true),
            ("::1/128", "::2", false),
            ("::ffff:10.0.0.0/104", "10.9.9.9", true),
            ("::ffff:192.0.2.1", "192.0.2.1", true),
        ] {
            let parsed: Network = network.parse().unwrap();
            let address: IpAddr = address.parse().unwrap();
            assert_eq!(parsed.contains(address), contained, "{network} {address}");
        }
    }

    #[test]
    fn displays_networks_as_parsed() {
        for (text, displayed) in [
            ("10.0.0.0/8", "10.0.0.0/8"),
            ("192.0.2.7", "192.0.2.7/32"),
            ("2001:DB8:0::/32", "2001:db8::/32"),
            ("::ffff:192.0.2.0/120", "192.0.2.0/24"),
        ] {
            let network: Network = text.parse().unwrap();
            assert_eq!(network.to_string(), displayed);
            assert_eq!(displayed.parse(), Ok(network));
        }
    }

    #[test]
    fn rejects_other_text() {
        for text in [
            "",
            "/",
            "10.0.0.0/",
            "10.0.0.0/33",
            "10.0.0.0/+8",
            "10.0.0.0/-1",
            "10.0.0.0/8/8",
            "10.0.0.0/255.0.0.0",
            "10.0.0.0/256",
            "10.0.0/8",
            "010.0.0.0/8",
            "10.0.0.0 /8",
            "::/129",
            "[::1]",
            "fe80::1%eth0",
            "lb.example",
            "::ffff:0.0.0.0/95",
        ] {
            assert_eq!(
                text.parse::<Network>(),
                Err(NetworkError::Syntax),
                "{text:?}"
            );
        }
    }

    #[test]
    fn rejects_bits_behind_the_prefix() {
        for (text, network, host) in [
            ("10.0.0.5/8", "10.0.0.0/8", "10.0.0.5/32"),
            ("192.0.2.1/0", "0.0.0.0/0", "192.0.2.1/32"),
            ("2001:db8::1/64", "2001:db8::/64", "2001:db8::1/128"),
            ("::ffff:10.0.0.5/104", "10.0.0.0/8", "10.0.0.5/32"),
        ] {
            let Err(NetworkError::HostBits(network_found, host_found)) = text.parse::<Network>()
            else {
                panic!("{text} is accepted");
            };
            assert_eq!(
                (network_found.to_string(), host_found.to_string()),
                (network.to_owned(), host.to_owned())
            );
        }
    }
}
