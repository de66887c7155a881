//! Headers of the PROXY protocol, versions 1 and 2, with which load balancers name the client of a
//! connection (<https://www.haproxy.org/download/3.0/doc/proxy-protocol.txt>).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use memchr::memchr;

/// Maximum length of a header in bytes. Addresses take 52 bytes; the rest is for type-length-value
/// fields, of which the longest in use are host names and identifiers. As nginx.
pub const MAX_HEADER_BYTES: usize = 4096;

/// Start of a header of version 1.
pub const PREFIX_V1: &[u8] = b"PROXY ";
/// Start of a header of version 2.
pub const SIGNATURE_V2: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";

/// Maximum length of a header of version 1, line end included.
const MAX_LINE_BYTES: usize = 107;
/// Length of the fixed part of a header of version 2: signature, version and command, family and
/// transport, length of the rest.
const FIXED_BYTES: usize = 16;
/// Length of two IPv4 addresses and two ports.
const IPV4_BYTES: usize = 12;
/// Length of two IPv6 addresses and two ports.
const IPV6_BYTES: usize = 36;

/// Header of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProxyHeader {
    /// Length of the header in bytes.
    pub length: usize,
    /// Address of the client. `None` if the connection is the load balancer's own, or the client
    /// has no address: the address of the connection applies.
    pub source: Option<IpAddr>,
}

/// Reason why the start of a connection is not a valid header.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProxyHeaderError {
    #[error("the connection does not begin with a header of the PROXY protocol")]
    Missing,
    #[error("malformed line of the PROXY protocol, version 1")]
    Line,
    #[error("unsupported version of the PROXY protocol")]
    Version,
    #[error("unknown command of the PROXY protocol")]
    Command,
    #[error("unknown address family or transport in the header of the PROXY protocol")]
    Family,
    #[error("the header of the PROXY protocol is longer than {MAX_HEADER_BYTES} bytes")]
    TooLong,
    #[error("the header of the PROXY protocol is shorter than its addresses")]
    Addresses,
    #[error("malformed additional field in the header of the PROXY protocol")]
    Field,
}

/// Parses the header at the start of `bytes`. `None` if all of them belong to the header and it is
/// incomplete.
///
/// # Errors
/// [`ProxyHeaderError`] as soon as the bytes cannot become a valid header.
pub fn parse(bytes: &[u8]) -> Result<Option<ProxyHeader>, ProxyHeaderError> {
    let begins_with = |start: &[u8]| {
        let common = bytes.len().min(start.len());
        bytes[..common] == start[..common]
    };
    if begins_with(SIGNATURE_V2) {
        parse_v2(bytes)
    } else if begins_with(PREFIX_V1) {
        parse_v1(bytes)
    } else {
        Err(ProxyHeaderError::Missing)
    }
}

fn parse_v1(bytes: &[u8]) -> Result<Option<ProxyHeader>, ProxyHeaderError> {
    let window = &bytes[..bytes.len().min(MAX_LINE_BYTES)];
    let Some(end) = memchr(b'\n', window) else {
        return if window.len() < MAX_LINE_BYTES {
            Ok(None)
        } else {
            Err(ProxyHeaderError::Line)
        };
    };
    let line = window[..end].strip_suffix(b"\r");
    let text = line.and_then(|line| line.strip_prefix(PREFIX_V1));
    let source = source_v1(text.ok_or(ProxyHeaderError::Line)?)?;
    Ok(Some(ProxyHeader {
        length: end + 1,
        source,
    }))
}

/// Returns the source of `FAMILY SOURCE DESTINATION SOURCE-PORT DESTINATION-PORT`, of which all
/// must be valid.
fn source_v1(text: &[u8]) -> Result<Option<IpAddr>, ProxyHeaderError> {
    // What follows is to be ignored.
    if text == b"UNKNOWN" || text.starts_with(b"UNKNOWN ") {
        return Ok(None);
    }
    let text = str::from_utf8(text).map_err(|_| ProxyHeaderError::Line)?;
    let parts: Vec<&str> = text.split(' ').collect();
    let &[family, source, destination, source_port, destination_port] = &parts[..] else {
        return Err(ProxyHeaderError::Line);
    };
    let is_v4 = |text: &str| text.parse::<Ipv4Addr>().is_ok();
    let is_v6 = |text: &str| text.parse::<Ipv6Addr>().is_ok();
    let are_addresses = match family {
        "TCP4" => is_v4(source) && is_v4(destination),
        "TCP6" => is_v6(source) && is_v6(destination),
        _ => false,
    };
    if !are_addresses || !is_port(source_port) || !is_port(destination_port) {
        return Err(ProxyHeaderError::Line);
    }
    let source: IpAddr = source.parse().map_err(|_| ProxyHeaderError::Line)?;
    Ok(Some(source.to_canonical()))
}

/// Returns true for a decimal number from 0 to 65535 without leading zeros.
fn is_port(text: &str) -> bool {
    text.bytes().all(|byte| byte.is_ascii_digit())
        && (text == "0" || !text.starts_with('0'))
        && text.parse::<u16>().is_ok()
}

fn parse_v2(bytes: &[u8]) -> Result<Option<ProxyHeader>, ProxyHeaderError> {
    let Some(&version_and_command) = bytes.get(SIGNATURE_V2.len()) else {
        return Ok(None);
    };
    if version_and_command >> 4 != 2 {
        return Err(ProxyHeaderError::Version);
    }
    let is_proxied = match version_and_command & 0xf {
        0 => false,
        1 => true,
        _ => return Err(ProxyHeaderError::Command),
    };
    let Some(fixed) = bytes.first_chunk::<FIXED_BYTES>() else {
        return Ok(None);
    };
    let length = FIXED_BYTES + usize::from(u16::from_be_bytes([fixed[14], fixed[15]]));
    if length > MAX_HEADER_BYTES {
        return Err(ProxyHeaderError::TooLong);
    }
    // The family of a connection of the load balancer's own is to be ignored.
    let family = if is_proxied {
        Family::from_byte(fixed[13])?
    } else {
        Family::Unspecified
    };
    let Some(block) = bytes.get(FIXED_BYTES..length) else {
        return Ok(None);
    };
    let source = family.source(block)?;
    Ok(Some(ProxyHeader { length, source }))
}

/// Address family and transport of a header of version 2.
#[derive(Clone, Copy, Debug)]
enum Family {
    Tcp4,
    Tcp6,
    /// No addresses, or those of datagrams or Unix sockets, which are valid and not supported. The
    /// specification asks to ignore the block.
    Unspecified,
}

impl Family {
    fn from_byte(byte: u8) -> Result<Self, ProxyHeaderError> {
        match (byte >> 4, byte & 0xf) {
            (1, 1) => Ok(Self::Tcp4),
            (2, 1) => Ok(Self::Tcp6),
            (0..=3, 0..=2) => Ok(Self::Unspecified),
            _ => Err(ProxyHeaderError::Family),
        }
    }

    /// Returns the source address of the block behind the fixed part.
    fn source(self, block: &[u8]) -> Result<Option<IpAddr>, ProxyHeaderError> {
        let (address, fields) = match self {
            Self::Unspecified => return Ok(None),
            Self::Tcp4 => {
                let (addresses, fields) = block
                    .split_first_chunk::<IPV4_BYTES>()
                    .ok_or(ProxyHeaderError::Addresses)?;
                let [a, b, c, d, ..] = *addresses;
                (IpAddr::V4(Ipv4Addr::new(a, b, c, d)), fields)
            }
            Self::Tcp6 => {
                let (addresses, fields) = block
                    .split_first_chunk::<IPV6_BYTES>()
                    .ok_or(ProxyHeaderError::Addresses)?;
                let source: [u8; 16] = std::array::from_fn(|index| addresses[index]);
                (IpAddr::V6(Ipv6Addr::from(source)), fields)
            }
        };
        check_fields(fields)?;
        Ok(Some(address.to_canonical()))
    }
}

/// Checks the lengths of the type-length-value fields, which are not used.
fn check_fields(mut fields: &[u8]) -> Result<(), ProxyHeaderError> {
    while !fields.is_empty() {
        let Some(([_, high, low], rest)) = fields.split_first_chunk::<3>() else {
            return Err(ProxyHeaderError::Field);
        };
        let length = usize::from(u16::from_be_bytes([*high, *low]));
        fields = rest.get(length..).ok_or(ProxyHeaderError::Field)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests;
