//! UDP sockets that receive and send in batches.
//!
//! A train of datagrams of one size from one sender is received and sent as one piece where the
//! system supports it (GRO and GSO of Linux).

use std::cell::{Cell, RefCell};
use std::io::{self, IoSliceMut};
use std::net::{IpAddr, SocketAddr};

use quinn_udp::{BATCH_SIZE, RecvMeta, Transmit, UdpSocketState};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::io::Interest;

/// Size in bytes of a receive buffer. GRO fills it with at most one maximum-size IP packet.
const BUFFER_SIZE: usize = 64 * 1024;
/// Number of buffers of one receive call.
const BUFFERS: usize = if BATCH_SIZE < 16 { BATCH_SIZE } else { 16 };

/// Maximum number of bytes of datagrams that are sent as one piece.
const MAX_TRAIN: usize = 65_000;

thread_local! {
    /// Receive buffers of all sockets of a thread. The system maps them as they are filled.
    static RECEIVED: RefCell<Vec<u8>> = RefCell::new(vec![0; BUFFERS * BUFFER_SIZE]);
}

/// Rule for datagrams that are longer than the MTU of their path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fragmentation {
    /// Sent in fragments, as those of a service in the cluster.
    Allowed,
    /// Sent with the DF bit, or dropped (RFC 9298 section 6).
    Forbidden,
}

/// Datagrams of one sender, each of `size` bytes. The last may be shorter.
#[derive(Clone, Copy, Debug)]
pub struct Datagrams<'a> {
    pub from: SocketAddr,
    /// Local address that the sender used. `None` if the system does not report it.
    pub to: Option<IpAddr>,
    pub bytes: &'a [u8],
    pub size: usize,
}

impl<'a> Datagrams<'a> {
    /// Returns the datagrams. Never empty: without bytes, there is one empty datagram.
    pub fn iter(&self) -> impl Iterator<Item = &'a [u8]> + use<'a> {
        let empty = self.bytes.is_empty().then_some(&[][..]);
        let size = self.size.max(1);
        empty.into_iter().chain(self.bytes.chunks(size))
    }

    /// Number of datagrams.
    pub fn count(&self) -> usize {
        self.bytes.len().div_ceil(self.size.max(1)).max(1)
    }
}

/// UDP socket, bound to a listener's address or connected to an endpoint.
#[derive(Debug)]
pub struct UdpSocket {
    io: tokio::net::UdpSocket,
    state: UdpSocketState,
}

impl UdpSocket {
    /// Takes over a bound socket. Must be called on the runtime that uses it.
    ///
    /// # Errors
    /// An I/O error of the system.
    pub fn from_std(socket: std::net::UdpSocket, fragmentation: Fragmentation) -> io::Result<Self> {
        // Makes the socket non-blocking, and sets DF.
        let state = UdpSocketState::new((&socket).into())?;
        if fragmentation == Fragmentation::Allowed {
            allow_fragments(&socket)?;
        }
        let io = tokio::net::UdpSocket::from_std(socket)?;
        Ok(Self { io, state })
    }

    /// Opens a socket of its own that exchanges datagrams with `endpoint` only.
    ///
    /// # Errors
    /// An I/O error of the system, such as no free file descriptor.
    pub fn connect(endpoint: SocketAddr, fragmentation: Fragmentation) -> io::Result<Self> {
        let domain = Domain::for_address(endpoint);
        let socket = Socket::new(domain, Type::DGRAM, Some(Protocol::UDP))?;
        // Selects the source address and a free port, too.
        socket.connect(&endpoint.into())?;
        Self::from_std(socket.into(), fragmentation)
    }

    /// Receives at least one datagram and passes all that have arrived on.
    ///
    /// # Errors
    /// An I/O error: on a connected socket, also one that an ICMP message reported.
    pub async fn receive(&self, mut receive: impl FnMut(Datagrams<'_>)) -> io::Result<()> {
        loop {
            match self.try_receive(&mut receive) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.readable().await?,
                received => return received,
            }
        }
    }

    /// Waits until datagrams or an error have arrived.
    ///
    /// # Errors
    /// The runtime is shutting down.
    pub async fn readable(&self) -> io::Result<()> {
        let interest = Interest::READABLE | Interest::ERROR;
        self.io.ready(interest).await.map(|_| ())
    }

    /// As [`Self::receive`], without waiting.
    ///
    /// # Errors
    /// `WouldBlock` if nothing has arrived; then [`Self::readable`] waits.
    pub fn try_receive(&self, receive: impl FnMut(Datagrams<'_>)) -> io::Result<()> {
        self.try_receive_buffers(BUFFERS, receive)
    }

    /// As [`Self::try_receive`], for one buffer: one datagram or train, of at most 64 KiB.
    ///
    /// # Errors
    /// As [`Self::try_receive`].
    pub fn try_receive_one(&self, receive: impl FnMut(Datagrams<'_>)) -> io::Result<()> {
        self.try_receive_buffers(1, receive)
    }

    fn try_receive_buffers(
        &self,
        limit: usize,
        mut receive: impl FnMut(Datagrams<'_>),
    ) -> io::Result<()> {
        RECEIVED.with_borrow_mut(|buffer| {
            let mut meta = [RecvMeta::default(); BUFFERS];
            let mut chunks = buffer.chunks_exact_mut(BUFFER_SIZE).map(IoSliceMut::new);
            let mut slices: [_; BUFFERS] =
                std::array::from_fn(|_| chunks.next().unwrap_or(IoSliceMut::new(&mut [])));
            let count = Cell::new(0);
            let mut receive_batch = || {
                let (slices, meta) = (&mut slices[..limit], &mut meta[..limit]);
                let received = self.state.recv((&self.io).into(), slices, meta)?;
                count.set(received);
                if received < limit {
                    // Nothing is left, which the next call would only find out.
                    return Err(io::ErrorKind::WouldBlock.into());
                }
                Ok(())
            };
            let mut received = self.io.try_io(Interest::READABLE, &mut receive_batch);
            if count.get() == 0 && is_would_block(&received) {
                // An ICMP error does not make a socket readable.
                received = self.io.try_io(Interest::ERROR, receive_batch);
            }
            let count = count.get();
            if count == 0 {
                received.map_err(|error| {
                    if quinn_udp::is_msg_size_err(&error) {
                        // A router cannot forward one of the datagrams that were sent. It is lost,
                        // and the report is consumed (RFC 9298 section 5).
                        io::ErrorKind::WouldBlock.into()
                    } else {
                        error
                    }
                })?;
            }
            for (meta, bytes) in meta[..count].iter().zip(buffer.chunks_exact(BUFFER_SIZE)) {
                receive(Datagrams {
                    from: meta.addr,
                    to: meta.dst_ip,
                    bytes: &bytes[..meta.len],
                    size: meta.stride,
                });
            }
            Ok(())
        })
    }

    /// Sends datagrams of `size` bytes, the last of which may be shorter, to an address, from the
    /// local address `source` if it is given. Does not wait: a datagram for which the system has no
    /// room is dropped, as any router would.
    ///
    /// # Errors
    /// The first I/O error. The datagrams behind it are sent nevertheless.
    pub fn send(
        &self,
        to: SocketAddr,
        source: Option<IpAddr>,
        bytes: &[u8],
        size: usize,
    ) -> io::Result<()> {
        let transmit = |bytes: &[u8], segment_size: Option<usize>| {
            let datagrams = Transmit {
                destination: to,
                ecn: None,
                contents: bytes,
                segment_size,
                src_ip: source,
            };
            // Not by `try_io`: nothing waits for the socket to become writable.
            let send = || self.state.try_send((&self.io).into(), &datagrams);
            // The error may be that which an ICMP message reported for an earlier datagram. It was
            // consumed, and nothing was sent.
            send().or_else(|error| {
                if quinn_udp::is_msg_size_err(&error) {
                    send()
                } else {
                    Err(error)
                }
            })
        };
        if bytes.len() <= size {
            return transmit(bytes, None);
        }
        let at_once = self
            .state
            .max_gso_segments()
            .min(MAX_TRAIN / size.max(1))
            .max(1);
        let mut sent = Ok(());
        for part in bytes.chunks(size * at_once) {
            match transmit(part, Some(size)) {
                // Nothing of the part was sent. The device cannot divide it, or the system only
                // divides into datagrams of the MTU.
                Err(error) if part.len() > size && error.kind() != io::ErrorKind::WouldBlock => {
                    for datagram in part.chunks(size) {
                        sent = sent.and(transmit(datagram, None));
                    }
                }
                result => sent = sent.and(result),
            }
        }
        sent
    }
}

fn is_would_block(result: &io::Result<()>) -> bool {
    matches!(result, Err(error) if error.kind() == io::ErrorKind::WouldBlock)
}

/// Returns true for errors of sending that concern the datagram and not the socket: it is longer
/// than the MTU, the system has no memory, or a firewall drops it.
pub fn is_transient(error: &io::Error) -> bool {
    quinn_udp::is_msg_size_err(error)
        || matches!(
            error.kind(),
            io::ErrorKind::WouldBlock
                | io::ErrorKind::OutOfMemory
                | io::ErrorKind::PermissionDenied
        )
        || error.raw_os_error() == Some(nix::libc::ENOBUFS)
}

/// Undoes the DF bit that quinn-udp sets.
#[cfg(target_os = "linux")]
fn allow_fragments(socket: &std::net::UdpSocket) -> io::Result<()> {
    use nix::sys::socket::{setsockopt, sockopt};
    if socket.local_addr()?.is_ipv6() {
        setsockopt(socket, sockopt::Ipv6DontFrag, &false)?;
        setsockopt(
            socket,
            options::Ipv6MtuDiscover,
            &nix::libc::IPV6_PMTUDISC_WANT,
        )?;
    }
    // Of sockets for both families, too.
    setsockopt(socket, options::IpMtuDiscover, &nix::libc::IP_PMTUDISC_WANT)?;
    Ok(())
}

/// Sockets of the desk's systems, where the default is kept.
#[cfg(not(target_os = "linux"))]
fn allow_fragments(_: &std::net::UdpSocket) -> io::Result<()> {
    Ok(())
}

/// Socket options that nix does not have.
#[cfg(target_os = "linux")]
mod options {
    use nix::libc;
    use nix::sys::socket::sockopt::SetStruct;

    #[derive(Clone, Copy, Debug)]
    pub struct IpMtuDiscover;

    #[derive(Clone, Copy, Debug)]
    pub struct Ipv6MtuDiscover;

    nix::setsockopt_impl!(
        IpMtuDiscover,
        libc::IPPROTO_IP,
        libc::IP_MTU_DISCOVER,
        libc::c_int,
        SetStruct<'_, libc::c_int>
    );
    nix::setsockopt_impl!(
        Ipv6MtuDiscover,
        libc::IPPROTO_IPV6,
        libc::IPV6_MTU_DISCOVER,
        libc::c_int,
        SetStruct<'_, libc::c_int>
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bound() -> UdpSocket {
        let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        UdpSocket::from_std(socket, Fragmentation::Allowed).unwrap()
    }

    /// Receives until `count` datagrams have arrived.
    async fn receive(socket: &UdpSocket, count: usize) -> Vec<Vec<u8>> {
        let mut received = Vec::new();
        while received.len() < count {
            let receiving = socket.receive(|datagrams| {
                assert_eq!(datagrams.count(), datagrams.iter().count());
                received.extend(datagrams.iter().map(<[u8]>::to_vec));
            });
            receiving.await.unwrap();
        }
        received
    }

    #[tokio::test]
    async fn train_of_datagrams_arrives_in_order() {
        let listener = bound();
        let address = listener.io.local_addr().unwrap();
        let sender = UdpSocket::connect(address, Fragmentation::Allowed).unwrap();
        let train: Vec<u8> = (0..71).flat_map(|i| [i; 1000]).take(70_010).collect();
        // More than one train, and a shorter datagram at its end.
        sender.send(address, None, &train, 1000).unwrap();
        let received = receive(&listener, 71).await;
        assert_eq!(received.concat(), train);
        assert_eq!(received.last().unwrap().len(), 10);
    }

    #[tokio::test]
    async fn empty_datagram_arrives() {
        let receiver = bound();
        let address = receiver.io.local_addr().unwrap();
        let sender = UdpSocket::connect(address, Fragmentation::Forbidden).unwrap();
        sender.send(address, None, &[], 0).unwrap();
        assert_eq!(receive(&receiver, 1).await, [b""]);
    }

    #[tokio::test]
    async fn datagram_longer_than_a_packet_is_a_transient_error() {
        let receiver = bound();
        let address = receiver.io.local_addr().unwrap();
        let sender = UdpSocket::connect(address, Fragmentation::Allowed).unwrap();
        let error = sender
            .send(address, None, &vec![0; 65_508], 65_527)
            .unwrap_err();
        assert!(is_transient(&error), "{error}");
    }

    #[tokio::test]
    async fn closed_port_is_an_error_of_the_socket() {
        let closed = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let address = closed.local_addr().unwrap();
        drop(closed);
        let sender = UdpSocket::connect(address, Fragmentation::Allowed).unwrap();
        sender.send(address, None, b"x", 1).unwrap();
        let error = sender.receive(|_| {}).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
        assert!(!is_transient(&error));
    }
}
