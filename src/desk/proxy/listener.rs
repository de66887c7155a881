//! Sockets of the proxy: TCP, or Unix sockets that only their user can open.

use std::fmt;
use std::io::{self, ErrorKind};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use nix::sys::stat::{Mode, umask};
use tokio::net::{TcpListener, UnixListener, lookup_host};

use crate::http::Stream;

/// Bound socket. A Unix socket is removed when it is dropped.
#[derive(Debug)]
pub enum Socket {
    Tcp(TcpListener),
    Unix { socket: UnixListener, path: PathBuf },
}

/// Reason why a socket cannot be bound.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    #[error(
        "port {} of {} is in use (--port); choose another one, or 0 for any free port",
        .0.port(),
        .0.ip()
    )]
    PortInUse(SocketAddr),
    #[error("{0} is not an address of this machine (--address); use 127.0.0.1 or ::1")]
    ForeignAddress(IpAddr),
    #[error("port {0} requires privileges (--port); choose one above 1023")]
    PrivilegedPort(u16),
    #[error("cannot resolve the address {address:?} (--address): {source}")]
    Unresolved { address: String, source: io::Error },
    #[error("cannot listen on {address}: {source}")]
    Tcp {
        address: SocketAddr,
        source: io::Error,
    },
    #[error("{0:?} exists and is not a socket (--unix-socket); choose another path or remove it")]
    NotASocket(PathBuf),
    #[error("cannot listen on the Unix socket {path:?} (--unix-socket): {source}")]
    Unix { path: PathBuf, source: io::Error },
}

impl Socket {
    /// Binds a TCP port. `address` is an IP address, an IPv6 address in brackets or a host name; an
    /// empty one stands for all addresses.
    ///
    /// # Errors
    /// [`BindError`] if the address or the port cannot be used.
    pub async fn tcp(address: &str, port: u16) -> Result<Self, BindError> {
        let address = resolve(address, port).await?;
        match TcpListener::bind(address).await {
            Ok(socket) => Ok(Self::Tcp(socket)),
            Err(source) => Err(match source.kind() {
                ErrorKind::AddrInUse => BindError::PortInUse(address),
                ErrorKind::AddrNotAvailable => BindError::ForeignAddress(address.ip()),
                ErrorKind::PermissionDenied => BindError::PrivilegedPort(port),
                _ => BindError::Tcp { address, source },
            }),
        }
    }

    /// Binds a Unix socket, to which only the user has access. A socket at its path is replaced,
    /// stale or not, as kubectl does.
    ///
    /// # Errors
    /// [`BindError`] if the path cannot be used.
    pub fn unix(path: &Path) -> Result<Self, BindError> {
        let path = path.to_owned();
        match std::fs::metadata(&path) {
            Ok(found) if found.file_type().is_socket() => {
                // A failure is reported by the bind.
                let _ = std::fs::remove_file(&path);
            }
            Ok(_) => return Err(BindError::NotASocket(path)),
            Err(_) => {}
        }
        // The mask is of the process, so a file that another thread creates now gets it too, which
        // only makes it more private.
        let before = umask(Mode::from_bits_truncate(0o077));
        let bound = UnixListener::bind(&path);
        umask(before);
        match bound {
            Ok(socket) => Ok(Self::Unix { socket, path }),
            Err(source) => Err(BindError::Unix { path, source }),
        }
    }

    /// Returns the port of a TCP socket with its address.
    pub fn tcp_address(&self) -> Option<SocketAddr> {
        match self {
            Self::Tcp(socket) => socket.local_addr().ok(),
            Self::Unix { .. } => None,
        }
    }

    /// Accepts a connection. The address is that of the client; a client of a Unix socket has none.
    ///
    /// # Errors
    /// An I/O error of the socket or the connection.
    pub async fn accept(&self) -> io::Result<(Stream, Option<IpAddr>)> {
        match self {
            Self::Tcp(socket) => {
                let (stream, address) = socket.accept().await?;
                // Fails if the peer has reset the connection, which the first read reports too.
                let _ = crate::client_connection::configure_socket(&stream);
                Ok((Stream::Plain(stream), Some(address.ip().to_canonical())))
            }
            Self::Unix { socket, .. } => {
                let (stream, _) = socket.accept().await?;
                Ok((Stream::Unix(stream), None))
            }
        }
    }
}

impl fmt::Display for Socket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(socket) => match socket.local_addr() {
                Ok(address) => write!(f, "{address}"),
                Err(error) => write!(f, "{error}"),
            },
            Self::Unix { path, .. } => write!(f, "{}", path.display()),
        }
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        if let Self::Unix { path, .. } = self {
            // Fails if the user has removed it already.
            let _ = std::fs::remove_file(path);
        }
    }
}

/// Resolves the address of `--address`.
async fn resolve(address: &str, port: u16) -> Result<SocketAddr, BindError> {
    if address.is_empty() {
        return Ok((Ipv6Addr::UNSPECIFIED, port).into());
    }
    let bare = address
        .strip_prefix('[')
        .and_then(|address| address.strip_suffix(']'))
        .unwrap_or(address);
    if let Ok(ip) = bare.parse::<IpAddr>() {
        return Ok((ip, port).into());
    }
    let unresolved = |source| BindError::Unresolved {
        address: address.to_owned(),
        source,
    };
    let found: Vec<SocketAddr> = lookup_host((bare, port))
        .await
        .map_err(unresolved)?
        .collect();
    // As in Go, one address of a name is used, IPv4 if it has one.
    found
        .iter()
        .find(|address| address.is_ipv4())
        .or(found.first())
        .copied()
        .ok_or_else(|| unresolved(ErrorKind::NotFound.into()))
}

/// Returns the address that a browser on this machine uses for a socket.
pub fn browser_address(address: SocketAddr) -> SocketAddr {
    if address.ip().is_unspecified() {
        return (Ipv4Addr::LOCALHOST, address.port()).into();
    }
    address
}

#[cfg(test)]
mod tests {
    use super::*;

    use std::os::unix::fs::PermissionsExt;
    use std::time::Duration;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::{TcpStream, UnixStream};

    use crate::testing::eventually;

    #[tokio::test]
    async fn binds_addresses_in_all_forms() {
        for (address, expected) in [
            ("127.0.0.1", "127.0.0.1"),
            ("::1", "::1"),
            ("[::1]", "::1"),
            ("localhost", "127.0.0.1"),
        ] {
            let socket = Socket::tcp(address, 0).await.unwrap();
            let bound = socket.tcp_address().unwrap();
            assert_eq!(bound.ip().to_string(), expected, "{address}");
            assert_eq!(socket.to_string(), bound.to_string());
            TcpStream::connect(bound).await.unwrap();
            let (_, client) = socket.accept().await.unwrap();
            assert_eq!(client, Some(bound.ip()), "{address}");
        }
    }

    #[tokio::test]
    async fn names_flag_and_remedy_if_port_cannot_be_bound() {
        let first = Socket::tcp("127.0.0.1", 0).await.unwrap();
        let port = first.tcp_address().unwrap().port();
        let taken = Socket::tcp("127.0.0.1", port).await.unwrap_err();
        let expected = format!(
            "port {port} of 127.0.0.1 is in use (--port); choose another one, or 0 for any free port"
        );
        assert_eq!(taken.to_string(), expected);
        let foreign = Socket::tcp("192.0.2.1", 0).await.unwrap_err().to_string();
        assert!(
            foreign.contains("192.0.2.1 is not an address of this machine"),
            "{foreign}"
        );
        let name = Socket::tcp("no such name", 0)
            .await
            .unwrap_err()
            .to_string();
        assert!(name.contains("\"no such name\" (--address)"), "{name}");
    }

    #[tokio::test]
    async fn unix_socket_is_private_replaces_another_and_is_removed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("proxy.sock");
        // A stale socket, whose listener is closed.
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        let socket = Socket::unix(&path).unwrap();
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o700);
        assert_eq!(socket.to_string(), path.display().to_string());
        let mut client = UnixStream::connect(&path).await.unwrap();
        let (mut stream, address) = socket.accept().await.unwrap();
        assert_eq!(address, None);
        client.write_all(b"a").await.unwrap();
        assert_eq!(stream.read_u8().await.unwrap(), b'a');
        assert!(!stream.is_read_closed());
        drop(client);
        assert_eq!(stream.read(&mut [0]).await.unwrap(), 0);
        eventually(Duration::from_secs(30), || stream.is_read_closed()).await;
        drop(socket);
        assert!(!path.exists());
    }

    #[tokio::test]
    async fn keeps_file_that_is_not_a_socket() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let error = Socket::unix(file.path()).unwrap_err();
        assert!(matches!(error, BindError::NotASocket(_)), "{error}");
        assert!(file.path().exists());
        let missing = Socket::unix(Path::new("/nonexistent/a.sock")).unwrap_err();
        assert!(missing.to_string().contains("--unix-socket"), "{missing}");
    }

    #[test]
    fn browser_uses_loopback_for_all_addresses() {
        let address = |text: &str| text.parse::<SocketAddr>().unwrap();
        for (bound, expected) in [
            ("0.0.0.0:1", "127.0.0.1:1"),
            ("[::]:1", "127.0.0.1:1"),
            ("[::1]:1", "[::1]:1"),
            ("192.0.2.1:1", "192.0.2.1:1"),
        ] {
            assert_eq!(browser_address(address(bound)), address(expected));
        }
    }
}
