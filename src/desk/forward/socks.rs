//! Messages of SOCKS version 5 (RFC 1928), as a server without authentication reads and writes them.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// First byte of the greeting and of each message.
pub const VERSION: u8 = 5;
/// Answer to a greeting: no authentication.
pub const NO_AUTHENTICATION: [u8; 2] = [VERSION, 0];
/// Answer to a greeting without an acceptable method.
pub const NO_METHOD: [u8; 2] = [VERSION, 0xff];

const IPV4: u8 = 1;
const NAME: u8 = 3;
const IPV6: u8 = 4;

/// Code of a reply (RFC 1928 section 6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Reply {
    Succeeded = 0,
    Failure = 1,
    NotAllowed = 2,
    HostUnreachable = 4,
    Refused = 5,
    CommandNotSupported = 7,
    AddressTypeNotSupported = 8,
}

/// Reason why a message is rejected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SocksError {
    #[error("version {0} instead of 5")]
    Version(u8),
    #[error("command {0}, which is neither CONNECT nor UDP ASSOCIATE")]
    Command(u8),
    #[error("unknown address type {0}")]
    AddressType(u8),
    #[error("a name with characters that host names do not have")]
    Name,
}

impl SocksError {
    /// Returns the code of the reply to a request.
    pub fn reply(self) -> Reply {
        match self {
            Self::Version(_) | Self::Name => Reply::Failure,
            Self::Command(_) => Reply::CommandNotSupported,
            Self::AddressType(_) => Reply::AddressTypeNotSupported,
        }
    }
}

/// Host of a target.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Host {
    /// 1 to 255 letters, digits, `-`, `.` and `_`.
    Name(String),
    Address(IpAddr),
}

/// Target of a connection or of datagrams. Its text is `HOST:PORT`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Target {
    pub host: Host,
    pub port: u16,
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.host {
            Host::Name(name) => write!(f, "{name}:{}", self.port),
            Host::Address(address) => SocketAddr::new(*address, self.port).fmt(f),
        }
    }
}

/// Command of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    Connect,
    UdpAssociate,
}

/// Request of a client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    pub command: Command,
    pub target: Target,
}

/// Parsed message with its length. `None` if more bytes are needed, of which a message has at most
/// 262.
pub type Parsed<T> = Result<Option<(T, usize)>, SocksError>;

/// Parses the greeting of a client. True if the client accepts to send no credentials.
///
/// # Errors
/// [`SocksError::Version`]
pub fn parse_greeting(bytes: &[u8]) -> Parsed<bool> {
    let [version, rest @ ..] = bytes else {
        return Ok(None);
    };
    if *version != VERSION {
        return Err(SocksError::Version(*version));
    }
    let Some((count, rest)) = rest.split_first() else {
        return Ok(None);
    };
    let methods = rest.get(..usize::from(*count));
    Ok(methods.map(|methods| (methods.contains(&0), 2 + methods.len())))
}

/// Parses a request.
///
/// # Errors
/// [`SocksError`]
pub fn parse_request(bytes: &[u8]) -> Parsed<Request> {
    let [version, command, _reserved, rest @ ..] = bytes else {
        return Ok(None);
    };
    if *version != VERSION {
        return Err(SocksError::Version(*version));
    }
    let command = match command {
        1 => Command::Connect,
        3 => Command::UdpAssociate,
        other => return Err(SocksError::Command(*other)),
    };
    let parsed = parse_target(rest)?;
    Ok(parsed.map(|(target, length)| (Request { command, target }, 3 + length)))
}

/// Parses a datagram of a client: its target and its payload. `None` if it is malformed, or a
/// fragment, which a server may drop (RFC 1928 section 7).
pub fn parse_datagram(bytes: &[u8]) -> Option<(Target, &[u8])> {
    let [_, _, 0, rest @ ..] = bytes else {
        return None;
    };
    let (target, length) = parse_target(rest).ok()??;
    Some((target, &rest[length..]))
}

/// Appends the header of a datagram for the client.
pub fn write_datagram_header(from: &Target, output: &mut Vec<u8>) {
    output.extend([0, 0, 0]);
    write_target(from, output);
}

/// Appends a reply with the address to which the server is bound.
pub fn write_reply(reply: Reply, bound: SocketAddr, output: &mut Vec<u8>) {
    output.extend([VERSION, reply as u8, 0]);
    let bound = Target {
        host: Host::Address(bound.ip()),
        port: bound.port(),
    };
    write_target(&bound, output);
}

fn parse_target(bytes: &[u8]) -> Parsed<Target> {
    let Some((kind, rest)) = bytes.split_first() else {
        return Ok(None);
    };
    let (host, rest) = match *kind {
        IPV4 => match rest.split_first_chunk::<4>() {
            Some((address, rest)) => (Host::Address(Ipv4Addr::from(*address).into()), rest),
            None => return Ok(None),
        },
        IPV6 => match rest.split_first_chunk::<16>() {
            Some((address, rest)) => (Host::Address(Ipv6Addr::from(*address).into()), rest),
            None => return Ok(None),
        },
        NAME => {
            let split = rest
                .split_first()
                .and_then(|(length, rest)| rest.split_at_checked(usize::from(*length)));
            match split {
                Some((name, rest)) => (parse_name(name)?, rest),
                None => return Ok(None),
            }
        }
        other => return Err(SocksError::AddressType(other)),
    };
    let Some((port, rest)) = rest.split_first_chunk::<2>() else {
        return Ok(None);
    };
    let port = u16::from_be_bytes(*port);
    Ok(Some((Target { host, port }, bytes.len() - rest.len())))
}

/// Parses a name, which may be the text of an address.
fn parse_name(name: &[u8]) -> Result<Host, SocksError> {
    let name = std::str::from_utf8(name).map_err(|_| SocksError::Name)?;
    if let Ok(address) = name.parse() {
        return Ok(Host::Address(address));
    }
    let is_valid = |byte: u8| byte.is_ascii_alphanumeric() || b"-._".contains(&byte);
    if name.is_empty() || !name.bytes().all(is_valid) {
        return Err(SocksError::Name);
    }
    Ok(Host::Name(name.to_owned()))
}

fn write_target(target: &Target, output: &mut Vec<u8>) {
    match &target.host {
        Host::Address(IpAddr::V4(address)) => {
            output.push(IPV4);
            output.extend(address.octets());
        }
        Host::Address(IpAddr::V6(address)) => {
            output.push(IPV6);
            output.extend(address.octets());
        }
        Host::Name(name) => {
            output.push(NAME);
            let length = u8::try_from(name.len()).unwrap_or(u8::MAX);
            output.push(length);
            output.extend(&name.as_bytes()[..usize::from(length)]);
        }
    }
    output.extend(target.port.to_be_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Parses messages of which the last byte is missing, and checks that more bytes are awaited.
    fn whole<T>(bytes: &[u8], parse: impl Fn(&[u8]) -> Parsed<T>) -> Result<T, SocksError> {
        for length in 0..bytes.len() {
            if let Ok(parsed) = parse(&bytes[..length]) {
                assert!(parsed.is_none(), "{:?}", &bytes[..length]);
            }
        }
        let more = [bytes, b"more"].concat();
        let (value, length) = parse(&more)?.unwrap();
        assert_eq!(length, bytes.len());
        Ok(value)
    }

    #[test]
    fn greeting_offers_methods() {
        for (bytes, accepts) in [
            (&[5, 1, 0][..], Ok(true)),
            (&[5, 2, 2, 0], Ok(true)),
            (&[5, 1, 2], Ok(false)),
            (&[5, 0], Ok(false)),
            (&[4, 1, 0], Err(SocksError::Version(4))),
        ] {
            assert_eq!(whole(bytes, parse_greeting), accepts, "{bytes:?}");
        }
    }

    #[test]
    fn requests_have_addresses_and_names() {
        let name = b"\x05\x01\x00\x03\x07web.svc\x00\x50";
        let (ipv4, ipv6) = (
            b"\x05\x03\x00\x01\x0a\x60\x00\x01\x01\xbb",
            [&[5, 1, 0, 4][..], &[0; 15], &[1, 0, 80]].concat(),
        );
        let text = b"\x05\x01\x00\x03\x03::1\x00\x50";
        for (bytes, command, target) in [
            (&name[..], Command::Connect, "web.svc:80"),
            (ipv4, Command::UdpAssociate, "10.96.0.1:443"),
            (&ipv6, Command::Connect, "[::1]:80"),
            (text, Command::Connect, "[::1]:80"),
        ] {
            let request = whole(bytes, parse_request).unwrap();
            assert_eq!(request.command, command);
            assert_eq!(request.target.to_string(), target);
        }
        for (bytes, error, code) in [
            (&b"\x05\x02\x00\x01"[..], SocksError::Command(2), 7),
            (b"\x05\x01\x00\x02", SocksError::AddressType(2), 8),
            (b"\x04\x01\x00\x01", SocksError::Version(4), 1),
            (b"\x05\x01\x00\x03\x03a/b\x00\x50", SocksError::Name, 1),
            (b"\x05\x01\x00\x03\x03a:1\x00\x50", SocksError::Name, 1),
            (b"\x05\x01\x00\x03\x00\x00\x50", SocksError::Name, 1),
            (b"\x05\x01\x00\x03\x01\xff\x00\x50", SocksError::Name, 1),
        ] {
            assert_eq!(parse_request(bytes), Err(error), "{bytes:?}");
            assert_eq!(error.reply() as u8, code);
        }
    }

    #[test]
    fn datagrams_have_their_target_in_front() {
        let target = Target {
            host: Host::Name("dns.shop.svc".into()),
            port: 53,
        };
        let mut datagram = Vec::new();
        write_datagram_header(&target, &mut datagram);
        for length in 0..datagram.len() {
            assert_eq!(parse_datagram(&datagram[..length]), None);
        }
        assert_eq!(parse_datagram(&datagram), Some((target.clone(), &b""[..])));
        datagram.extend(b"query");
        assert_eq!(parse_datagram(&datagram), Some((target, &b"query"[..])));
        // A fragment.
        datagram[2] = 1;
        assert_eq!(parse_datagram(&datagram), None);
    }
}
