//! Transport streams of both sides: TCP, with or without TLS, Unix sockets, or another transport.

use std::cell::RefCell;
use std::fmt::Debug;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, Waker, ready};

use bytes::BytesMut;
use futures::FutureExt;
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncWrite, Interest, ReadBuf, Ready};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::{TlsStream, client};

/// Size in bytes of the read buffer that all connections of a worker share. A connection keeps only
/// the bytes that it received.
const SHARED_BUFFER: usize = 16 * 1024;
/// Maximum number of bytes of one read of a body whose two ends are fast. A transfer that stalls
/// keeps the last read, and up to 64 KiB of TLS records.
const MAX_READ: usize = 96 * 1024;

thread_local! {
    static BUFFER: RefCell<Vec<u8>> = RefCell::new(vec![0; SHARED_BUFFER]);
}

/// Transport stream of a client or an endpoint.
#[derive(Debug)]
pub enum Stream {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
    /// Client on the same machine.
    Unix(UnixStream),
    /// Anything else, such as TLS inside of the TLS of a proxy.
    Boxed(Box<dyn Transport>),
    /// The stream was closed, or taken for a tunnel.
    Closed,
    #[cfg(test)]
    Memory(tokio::io::DuplexStream),
}

/// Stream that is neither TCP nor TLS on TCP.
pub trait Transport: AsyncRead + AsyncWrite + Debug + Send + Unpin {
    /// Returns the protocol that ALPN selected. `None` without TLS or selection.
    fn alpn_protocol(&self) -> Option<&[u8]> {
        None
    }

    /// Returns the TCP connection below. `None` if there is none.
    fn tcp(&self) -> Option<&TcpStream> {
        None
    }
}

/// TLS through an HTTPS proxy.
impl Transport for client::TlsStream<client::TlsStream<TcpStream>> {
    fn alpn_protocol(&self) -> Option<&[u8]> {
        self.get_ref().1.alpn_protocol()
    }

    fn tcp(&self) -> Option<&TcpStream> {
        Some(self.get_ref().0.get_ref().0)
    }
}

/// Number of bytes to read at once. It grows while reads fill it, and shrinks when either end is
/// slow, so that a stalled transfer holds little memory.
#[derive(Clone, Copy, Debug)]
pub struct ReadSize(usize);

impl Default for ReadSize {
    fn default() -> Self {
        Self(SHARED_BUFFER)
    }
}

impl ReadSize {
    /// Adapts to a read of `length` bytes.
    fn adapt(&mut self, length: usize) {
        if length >= self.0 {
            self.0 = (self.0 * 2).min(MAX_READ);
        } else if length < self.0 / 4 {
            self.0 = (self.0 / 2).max(SHARED_BUFFER);
        }
    }

    /// The receiver of the bytes is slow.
    pub fn shrink(&mut self) {
        self.0 = SHARED_BUFFER;
    }
}

impl Stream {
    /// Waits for the first byte within TLS, which stays to be read. `None` at the end of the stream,
    /// and for other streams.
    ///
    /// # Errors
    /// An I/O error of the connection.
    pub async fn first_byte(&mut self) -> io::Result<Option<u8>> {
        match self {
            Self::Tls(stream) => Ok(stream.fill_buf().await?.first().copied()),
            _ => Ok(None),
        }
    }

    /// Reads up to `size` bytes and appends them to `input`. `Ok(0)` is the end of the stream.
    pub fn poll_fill(
        &mut self,
        context: &mut Context<'_>,
        input: &mut BytesMut,
        size: &mut ReadSize,
    ) -> Poll<io::Result<usize>> {
        let length = if size.0 > SHARED_BUFFER {
            input.reserve(size.0);
            let read = tokio_util::io::poll_read_buf(Pin::new(self), context, input);
            if read.is_pending() && input.is_empty() {
                // The sender may be silent for hours.
                *input = BytesMut::new();
            }
            ready!(read)?
        } else {
            ready!(self.poll_fill_shared(context, input))?
        };
        size.adapt(length);
        Poll::Ready(Ok(length))
    }

    fn poll_fill_shared(
        &mut self,
        context: &mut Context<'_>,
        input: &mut BytesMut,
    ) -> Poll<io::Result<usize>> {
        BUFFER.with_borrow_mut(|shared| {
            let mut buffer = ReadBuf::new(shared);
            ready!(Pin::new(self).poll_read(context, &mut buffer))?;
            let read = buffer.filled();
            if input.is_empty() {
                // Exactly as large as what arrived: most messages are small.
                *input = BytesMut::from(read);
            } else {
                input.extend_from_slice(read);
            }
            Poll::Ready(Ok(read.len()))
        })
    }

    /// Returns the protocol that ALPN selected (RFC 7301). `None` without TLS or selection.
    pub fn alpn_protocol(&self) -> Option<&[u8]> {
        match self {
            Self::Tls(stream) => stream.get_ref().1.alpn_protocol(),
            Self::Boxed(stream) => stream.alpn_protocol(),
            Self::Plain(_) | Self::Unix(_) | Self::Closed => None,
            #[cfg(test)]
            Self::Memory(_) => None,
        }
    }

    /// Returns true if nothing was received and the peer has not closed the connection. For idle
    /// connections.
    pub fn is_idle(&mut self) -> bool {
        let mut byte = [0; 1];
        let mut buffer = ReadBuf::new(&mut byte);
        // Without an event since the last read this makes no system call.
        let mut context = Context::from_waker(Waker::noop());
        Pin::new(self)
            .poll_read(&mut context, &mut buffer)
            .is_pending()
    }

    /// Returns true if the peer has closed the connection or its sending side, even if bytes that it
    /// sent before were not read.
    pub fn is_read_closed(&self) -> bool {
        self.readiness().is_some_and(Ready::is_read_closed)
    }

    /// Returns true if the peer has reset the connection.
    pub fn is_reset(&self) -> bool {
        self.readiness()
            .is_some_and(|ready| ready.is_write_closed() || ready.is_error())
    }

    /// Returns true if the peer has reset the connection or TCP has given it up. False if both sides
    /// have closed it in order, for which [`Self::is_reset`] is true.
    pub fn has_failed(&self) -> bool {
        self.readiness().is_some_and(Ready::is_error)
    }

    fn readiness(&self) -> Option<Ready> {
        let interest = Interest::READABLE | Interest::WRITABLE | Interest::ERROR;
        match self {
            Self::Unix(stream) => stream.ready(interest).now_or_never()?.ok(),
            _ => self.tcp()?.ready(interest).now_or_never()?.ok(),
        }
    }

    /// Makes the close of the stream a reset, so that the peer does not take it for the end of the
    /// message.
    pub fn reset_on_close(&self) {
        if let Some(stream) = self.tcp() {
            // Fails if the connection is already broken.
            let _ = socket2::SockRef::from(stream).set_linger(Some(std::time::Duration::ZERO));
        }
    }

    /// Sets the time after which the system sends keep-alive probes on a connection without
    /// traffic, and their interval.
    ///
    /// # Errors
    /// An I/O error if the system does not support it.
    pub fn set_keepalive(&self, time: std::time::Duration) -> io::Result<()> {
        let Some(stream) = self.tcp() else {
            return Ok(());
        };
        let keepalive = socket2::TcpKeepalive::new()
            .with_time(time)
            .with_interval(time);
        socket2::SockRef::from(stream).set_tcp_keepalive(&keepalive)
    }

    /// Lets the system send full segments only, until it is unset. Without effect beyond Linux.
    pub fn set_cork(&self, is_set: bool) {
        #[cfg(target_os = "linux")]
        if let Some(stream) = self.tcp() {
            // Fails if the connection is already broken.
            let _ = socket2::SockRef::from(stream).set_tcp_cork(is_set);
        }
        #[cfg(not(target_os = "linux"))]
        let _ = is_set;
    }

    fn tcp(&self) -> Option<&TcpStream> {
        match self {
            Self::Plain(stream) => Some(stream),
            Self::Tls(stream) => Some(stream.get_ref().0),
            Self::Boxed(stream) => stream.tcp(),
            Self::Unix(_) | Self::Closed => None,
            #[cfg(test)]
            Self::Memory(_) => None,
        }
    }
}

macro_rules! each {
    ($stream:expr, $inner:ident => $call:expr) => {
        match $stream.get_mut() {
            Stream::Plain($inner) => $call,
            Stream::Tls($inner) => $call,
            Stream::Unix($inner) => $call,
            Stream::Boxed($inner) => $call,
            Stream::Closed => Poll::Ready(Err(io::ErrorKind::NotConnected.into())),
            #[cfg(test)]
            Stream::Memory($inner) => $call,
        }
    };
}

impl AsyncRead for Stream {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        each!(self, inner => Pin::new(inner).poll_read(context, buffer))
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        each!(self, inner => Pin::new(inner).poll_write(context, bytes))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        each!(self, inner => Pin::new(inner).poll_write_vectored(context, slices))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        each!(self, inner => Pin::new(inner).poll_flush(context))
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        each!(self, inner => Pin::new(inner).poll_shutdown(context))
    }
}
