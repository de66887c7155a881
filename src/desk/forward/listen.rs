//! Local listeners, with the addresses of kubectl port-forward.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::rc::Rc;

use socket2::{Domain, Socket, Type};
use tokio::net::TcpListener;

use crate::desk::targets::Protocol;
use crate::desk::warn;
use crate::model::quote::GoQuoted;
use crate::tunnel::udp::{Fragmentation, UdpSocket};

/// Number of connections that wait to be accepted.
const BACKLOG: i32 = 1024;
/// Number of free ports that are tried until one is free on all addresses.
const MAX_PORTS: usize = 16;

/// First port that every user may listen on.
pub const FIRST_UNPRIVILEGED: u16 = 1024;

/// Reason why a port is not listened on.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    #[error(
        "{} is not an address to listen on; use localhost or IP addresses",
        GoQuoted(.0)
    )]
    Address(String),
    #[error(
        "port {} is in use on {}; choose another, as in LOCAL:{remote}, or :{remote} for a free one",
        .address.port(),
        .address.ip()
    )]
    InUse { address: SocketAddr, remote: u16 },
    #[error(
        "ports below {FIRST_UNPRIVILEGED} need privileges: {}; choose another, as in LOCAL:{remote}",
        .address.port()
    )]
    Privileged { address: SocketAddr, remote: u16 },
    #[error("cannot listen on {address}: {source}")]
    Bind {
        address: SocketAddr,
        source: io::Error,
    },
}

/// Sockets of a local port, one per address.
#[derive(Debug)]
pub enum Sockets {
    Tcp(Vec<TcpListener>),
    Udp(Vec<Rc<UdpListener>>),
}

impl Sockets {
    pub fn addresses(&self) -> Vec<SocketAddr> {
        match self {
            // Fails for no open socket.
            Self::Tcp(sockets) => sockets.iter().flat_map(TcpListener::local_addr).collect(),
            Self::Udp(sockets) => sockets.iter().map(|socket| socket.address).collect(),
        }
    }

    pub fn protocol(&self) -> Protocol {
        match self {
            Self::Tcp(_) => Protocol::Tcp,
            Self::Udp(_) => Protocol::Udp,
        }
    }
}

/// Bound UDP socket.
#[derive(Debug)]
pub struct UdpListener {
    pub socket: UdpSocket,
    pub address: SocketAddr,
}

/// Socket that is bound to a local address.
pub trait Listener: Sized {
    /// Binds an address, with a free port if that is 0.
    ///
    /// # Errors
    /// An I/O error of the system.
    fn bind(address: SocketAddr) -> io::Result<Self>;

    /// Returns the address with its port.
    ///
    /// # Errors
    /// An I/O error of the system.
    fn address(&self) -> io::Result<SocketAddr>;
}

impl Listener for TcpListener {
    fn bind(address: SocketAddr) -> io::Result<Self> {
        let socket = new_socket(address, Type::STREAM, socket2::Protocol::TCP)?;
        socket.set_reuse_address(true)?;
        socket.bind(&address.into())?;
        socket.listen(BACKLOG)?;
        Self::from_std(socket.into())
    }

    fn address(&self) -> io::Result<SocketAddr> {
        self.local_addr()
    }
}

impl Listener for Rc<UdpListener> {
    fn bind(address: SocketAddr) -> io::Result<Self> {
        let socket = new_socket(address, Type::DGRAM, socket2::Protocol::UDP)?;
        socket.bind(&address.into())?;
        let socket = std::net::UdpSocket::from(socket);
        let address = socket.local_addr()?;
        let socket = UdpSocket::from_std(socket, Fragmentation::Allowed)?;
        Ok(Self::new(UdpListener { socket, address }))
    }

    fn address(&self) -> io::Result<SocketAddr> {
        Ok(self.address)
    }
}

fn new_socket(address: SocketAddr, kind: Type, protocol: socket2::Protocol) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), kind, Some(protocol))?;
    if address.is_ipv6() {
        // As with kubectl, `::` does not include IPv4.
        socket.set_only_v6(true)?;
    }
    socket.set_nonblocking(true)?;
    Ok(socket)
}

/// Addresses to listen on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Addresses {
    /// Both loopback addresses, of which one is enough.
    has_localhost: bool,
    others: Vec<IpAddr>,
}

impl Addresses {
    /// Parses the values of `--address`.
    ///
    /// # Errors
    /// [`ListenError::Address`]
    pub fn parse(texts: &[String]) -> Result<Self, ListenError> {
        let mut addresses = Self {
            has_localhost: false,
            others: Vec::new(),
        };
        for text in texts {
            if text == "localhost" {
                addresses.has_localhost = true;
                continue;
            }
            let invalid = || ListenError::Address(text.clone());
            let bare = text.trim_start_matches('[').trim_end_matches(']');
            let address = bare.parse().map_err(|_| invalid())?;
            if !addresses.others.contains(&address) {
                addresses.others.push(address);
            }
        }
        if !addresses.has_localhost && addresses.others.is_empty() {
            return Err(ListenError::Address(String::new()));
        }
        Ok(addresses)
    }

    /// Listens on a port of all addresses, on the same free one if it is 0. `remote` is the port
    /// that errors name.
    ///
    /// # Errors
    /// [`ListenError`]
    pub fn listen<L: Listener>(&self, port: u16, remote: u16) -> Result<Vec<L>, ListenError> {
        let mut tries = 0;
        loop {
            tries += 1;
            match self.bind(port, remote) {
                Err(ListenError::InUse { .. }) if port == 0 && tries < MAX_PORTS => {}
                result => return result,
            }
        }
    }

    fn bind<L: Listener>(&self, mut port: u16, remote: u16) -> Result<Vec<L>, ListenError> {
        let is_free = port == 0;
        let mut listeners = Vec::new();
        let mut failures = Vec::new();
        let loopback = [
            IpAddr::from(Ipv4Addr::LOCALHOST),
            IpAddr::from(Ipv6Addr::LOCALHOST),
        ];
        let localhost = loopback.into_iter().filter(|_| self.has_localhost);
        // An address that is listed itself must work.
        for address in localhost.filter(|address| !self.others.contains(address)) {
            match bind(&mut port, address, remote) {
                Ok(listener) => listeners.push(listener),
                Err(error @ ListenError::InUse { .. }) if is_free && port != 0 => {
                    return Err(error);
                }
                Err(error) => failures.push(error),
            }
        }
        let is_failure = listeners.is_empty() && !failures.is_empty();
        for failure in failures {
            if is_failure {
                return Err(failure);
            }
            // A host without IPv6 is not worth a warning.
            if let ListenError::InUse { address, .. } = failure {
                warn(format_args!(
                    "port {} is in use on {}, which localhost may stand for",
                    address.port(),
                    address.ip()
                ));
            }
        }
        for address in &self.others {
            listeners.push(bind(&mut port, *address, remote)?);
        }
        Ok(listeners)
    }
}

/// Listens on a port; sets it if it is 0.
fn bind<L: Listener>(port: &mut u16, address: IpAddr, remote: u16) -> Result<L, ListenError> {
    let address = SocketAddr::new(address, *port);
    let bound = L::bind(address).and_then(|listener| Ok((listener.address()?.port(), listener)));
    let (bound, listener) = bound.map_err(|source| match source.kind() {
        io::ErrorKind::AddrInUse => ListenError::InUse { address, remote },
        io::ErrorKind::PermissionDenied if *port < FIRST_UNPRIVILEGED => {
            ListenError::Privileged { address, remote }
        }
        _ => ListenError::Bind { address, source },
    })?;
    *port = bound;
    Ok(listener)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addresses(texts: &[&str]) -> Addresses {
        let texts: Vec<_> = texts.iter().map(ToString::to_string).collect();
        Addresses::parse(&texts).unwrap()
    }

    fn listen(texts: &[&str], port: u16) -> Result<Sockets, ListenError> {
        addresses(texts).listen(port, 80).map(Sockets::Tcp)
    }

    fn has_ipv6() -> bool {
        <TcpListener as Listener>::bind((Ipv6Addr::LOCALHOST, 0).into()).is_ok()
    }

    #[tokio::test]
    async fn localhost_is_both_loopback_addresses_with_one_port() {
        let localhost = addresses(&["localhost"]);
        for sockets in [
            localhost.listen(0, 80).map(Sockets::Tcp),
            localhost.listen(0, 80).map(Sockets::Udp),
        ] {
            let bound = sockets.unwrap().addresses();
            assert_eq!(bound.len(), 1 + usize::from(has_ipv6()));
            for address in &bound {
                assert!(
                    address.ip().is_loopback() && address.port() == bound[0].port(),
                    "{address}"
                );
            }
        }
    }

    #[tokio::test]
    async fn port_in_use_is_an_error_on_all_addresses_of_localhost_or_on_a_listed_one() {
        let taken = listen(&["localhost"], 0).unwrap();
        let port = taken.addresses()[0].port();
        for texts in [
            &["localhost"][..],
            &["127.0.0.1"],
            &["127.0.0.2", "127.0.0.1"],
        ] {
            let error = listen(texts, port).unwrap_err().to_string();
            let expected = format!(
                "port {port} is in use on 127.0.0.1; choose another, as in LOCAL:80, or :80 for a \
                 free one"
            );
            assert_eq!(error, expected);
        }
        drop(taken);
        let _other = listen(&["127.0.0.1"], port).unwrap();
        if has_ipv6() {
            let sockets = listen(&["localhost"], port).unwrap();
            assert_eq!(sockets.addresses().len(), 1);
        }
    }

    #[tokio::test]
    async fn several_addresses_get_the_same_free_port() {
        let sockets = listen(&["127.0.0.1", "127.0.0.2", "127.0.0.1"], 0).unwrap();
        let ports: Vec<_> = sockets.addresses().iter().map(SocketAddr::port).collect();
        assert!(ports.len() == 2 && ports[0] == ports[1], "{ports:?}");
    }

    #[test]
    fn rejects_names_other_than_localhost() {
        for text in ["example.com", "", "127.0.0.1:80"] {
            let error = Addresses::parse(&[text.to_owned()])
                .unwrap_err()
                .to_string();
            assert!(error.contains("use localhost or IP addresses"), "{error}");
        }
        assert!(Addresses::parse(&["[::1]".to_owned()]).is_ok());
    }
}
