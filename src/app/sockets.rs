//! Kernel resources of the process: listening sockets with a long queue, and the limit of open
//! files.

use std::io;
use std::net::{SocketAddr, TcpListener};

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use socket2::{Domain, Protocol, Socket, Type};

/// Maximum number of connections that the kernel completes before they are accepted. The kernel
/// caps it at `net.core.somaxconn` (4096 by default), so the sysctl alone controls it. The standard
/// library uses 128, which a burst of reconnecting clients overflows; each of them then waits a
/// second until it sends its next SYN.
const BACKLOG: i32 = i32::MAX;

/// Binds a non-blocking listening socket.
pub(super) fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(
        Domain::for_address(address),
        Type::STREAM,
        Some(Protocol::TCP),
    )?;
    // As in the standard library: a restart must not wait for the TIME_WAIT of old connections.
    socket.set_reuse_address(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    socket.set_nonblocking(true)?;
    Ok(socket.into())
}

/// Raises the soft limit of open files to the hard limit. Shells and service managers start
/// processes with a soft limit of 1024 for select(2), which this program does not use. Each client
/// needs a descriptor, and each of its requests another one for the target.
pub(super) fn raise_open_files() {
    let raised = getrlimit(Resource::RLIMIT_NOFILE).and_then(|(soft, hard)| {
        if soft < hard {
            setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
        }
        Ok((soft, hard))
    });
    match raised {
        Ok((soft, hard)) => tracing::debug!(
            soft,
            hard,
            "raised the limit of open files to the hard limit"
        ),
        Err(error) => {
            tracing::warn!(%error, "cannot raise the limit of open files (RLIMIT_NOFILE)");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpStream;
    use std::time::Duration;

    use super::*;

    #[test]
    fn listen_backlog_is_kernel_maximum() {
        let maximum = std::fs::read_to_string("/proc/sys/net/core/somaxconn").unwrap();
        let wanted = maximum.trim().parse::<usize>().unwrap().min(400);
        assert!(
            wanted > 128,
            "net.core.somaxconn is {wanted}, too low for this test"
        );
        let listener = listen("127.0.0.1:0".parse().unwrap()).unwrap();
        let address = listener.local_addr().unwrap();
        // Nothing is accepted, so connections beyond the queue get no reply to their SYN.
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
