//! Resources of the kernel that must be there before anything is served: listening sockets with a
//! long queue, and enough descriptors.

use std::io;
use std::net::{SocketAddr, TcpListener};

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use socket2::{Domain, Protocol, Socket, Type};

/// Connections that the kernel completes before they are accepted. It caps the number at
/// `net.core.somaxconn` (4096 by default), which so is the one place to set it; the standard
/// library asks for 128, which a burst of reconnecting clients overflows, and each of them then
/// waits a second for its next SYN.
const BACKLOG: i32 = i32::MAX;

/// Listens on `address`, without blocking.
pub(super) fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(
        Domain::for_address(address),
        Type::STREAM,
        Some(Protocol::TCP),
    )?;
    // As the standard library does: a restart must not wait for the TIME_WAIT of old connections.
    socket.set_reuse_address(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    socket.set_nonblocking(true)?;
    Ok(socket.into())
}

/// Raises the soft limit of open files to the hard one. Shells and service managers start processes
/// with a soft limit of 1024 for the sake of select(2), which this program never calls; each client
/// takes a descriptor, and each of its requests one more towards the target.
pub(super) fn raise_open_files() {
    let raised = getrlimit(Resource::RLIMIT_NOFILE).and_then(|(soft, hard)| {
        if soft < hard {
            setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
        }
        Ok((soft, hard))
    });
    match raised {
        Ok((soft, hard)) => tracing::debug!(soft, hard, "the limit of open files is the hard one"),
        Err(error) => {
            tracing::warn!(%error, "cannot raise the limit of open files (RLIMIT_NOFILE) to the hard one");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpStream;
    use std::time::Duration;

    use super::*;

    #[test]
    fn queue_of_connections_is_as_long_as_the_kernel_allows() {
        let allowed = std::fs::read_to_string("/proc/sys/net/core/somaxconn").unwrap();
        let wanted = allowed.trim().parse::<usize>().unwrap().min(400);
        assert!(
            wanted > 128,
            "net.core.somaxconn is {wanted}: the test shows nothing"
        );
        let listener = listen("127.0.0.1:0".parse().unwrap()).unwrap();
        let address = listener.local_addr().unwrap();
        // Nobody accepts: those that the queue has no place for get no answer to their SYN.
        let connect = |_| TcpStream::connect_timeout(&address, Duration::from_secs(20));
        let waiting: Result<Vec<_>, _> = (0..wanted).map(connect).collect();
        assert_eq!(waiting.unwrap().len(), wanted);
    }

    #[test]
    fn port_in_use_is_an_error() {
        let listener = listen("127.0.0.1:0".parse().unwrap()).unwrap();
        let again = listen(listener.local_addr().unwrap()).unwrap_err();
        assert_eq!(again.kind(), io::ErrorKind::AddrInUse);
    }
}
