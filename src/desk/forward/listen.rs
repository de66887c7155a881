//! Local listeners, with the addresses of kubectl port-forward.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::TcpListener;

use crate::desk::warn;
use crate::model::quote::GoQuoted;

/// Number of connections that wait to be accepted.
const BACKLOG: i32 = 1024;
/// Number of free ports that are tried until one is free on all addresses.
const MAX_PORTS: usize = 16;

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
        "ports below {limit} need privileges: {}; choose another, as in LOCAL:{remote}",
        .address.port()
    )]
    Privileged {
        address: SocketAddr,
        remote: u16,
        limit: u16,
    },
    #[error("cannot listen on {address}: {source}")]
    Bind {
        address: SocketAddr,
        source: io::Error,
    },
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
    pub fn listen(&self, port: u16, remote: u16) -> Result<Vec<TcpListener>, ListenError> {
        let mut tries = 0;
        loop {
            tries += 1;
            match self.try_listen(port, remote) {
                Err(ListenError::InUse { .. }) if port == 0 && tries < MAX_PORTS => {}
                result => return result,
            }
        }
    }

    fn try_listen(&self, mut port: u16, remote: u16) -> Result<Vec<TcpListener>, ListenError> {
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
fn bind(port: &mut u16, address: IpAddr, remote: u16) -> Result<TcpListener, ListenError> {
    let address = SocketAddr::new(address, *port);
    let listener = open(address).map_err(|source| match source.kind() {
        io::ErrorKind::AddrInUse => ListenError::InUse { address, remote },
        io::ErrorKind::PermissionDenied if *port < 1024 => ListenError::Privileged {
            address,
            remote,
            limit: 1024,
        },
        _ => ListenError::Bind { address, source },
    })?;
    *port = listener
        .local_addr()
        .map_or(*port, |address| address.port());
    Ok(listener)
}

fn open(address: SocketAddr) -> io::Result<TcpListener> {
    let domain = Domain::for_address(address);
    let socket = Socket::new(domain, Type::STREAM, Some(Protocol::TCP))?;
    if address.is_ipv6() {
        // As with kubectl, `::` does not include IPv4.
        socket.set_only_v6(true)?;
    }
    socket.set_reuse_address(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    socket.set_nonblocking(true)?;
    TcpListener::from_std(socket.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addresses(texts: &[&str]) -> Addresses {
        let texts: Vec<_> = texts.iter().map(ToString::to_string).collect();
        Addresses::parse(&texts).unwrap()
    }

    #[tokio::test]
    async fn localhost_is_both_loopback_addresses_with_one_port() {
        let listeners = addresses(&["localhost"]).listen(0, 80).unwrap();
        let port = listeners[0].local_addr().unwrap().port();
        let has_ipv6 = open(SocketAddr::from((Ipv6Addr::LOCALHOST, 0))).is_ok();
        assert_eq!(listeners.len(), 1 + usize::from(has_ipv6));
        for listener in &listeners {
            let address = listener.local_addr().unwrap();
            assert!(
                address.ip().is_loopback() && address.port() == port,
                "{address}"
            );
        }
    }

    #[tokio::test]
    async fn port_in_use_is_an_error_on_all_addresses_of_localhost_or_on_a_listed_one() {
        let taken = addresses(&["localhost"]).listen(0, 80).unwrap();
        let port = taken[0].local_addr().unwrap().port();
        for texts in [
            &["localhost"][..],
            &["127.0.0.1"],
            &["127.0.0.2", "127.0.0.1"],
        ] {
            let error = addresses(texts).listen(port, 80).unwrap_err().to_string();
            let expected = format!(
                "port {port} is in use on 127.0.0.1; choose another, as in LOCAL:80, or :80 for a \
                 free one"
            );
            assert_eq!(error, expected);
        }
        drop(taken);
        let _other = addresses(&["127.0.0.1"]).listen(port, 80).unwrap();
        if open(SocketAddr::from((Ipv6Addr::LOCALHOST, 0))).is_ok() {
            assert_eq!(addresses(&["localhost"]).listen(port, 80).unwrap().len(), 1);
        }
    }

    #[tokio::test]
    async fn several_addresses_get_the_same_free_port() {
        let listeners = addresses(&["127.0.0.1", "127.0.0.2", "127.0.0.1"]);
        let listeners = listeners.listen(0, 80).unwrap();
        let ports: Vec<_> = listeners
            .iter()
            .map(|listener| listener.local_addr().unwrap().port())
            .collect();
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
