//! `--socks`: SOCKS5 and an HTTP proxy on one local port, for all names of a cluster.
//!
//! Each connection is a tunnel of its own, to whatever host the client names. Only the bastion
//! resolves the names of hosts; nothing is dialed from the local machine.

mod associate;
mod http;

use std::cell::Cell;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::rc::Rc;
use std::time::Duration;

use ::http::StatusCode;
use bytes::{Buf, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;

use super::bastion::{TunnelError, TunnelStream, Tunnels};
use super::relay::{Client, Traffic};
use super::report::Report;
use super::serve::Open;
use super::socks::{self, Command, Parsed, Reply, Target};
use crate::client_connection::configure_socket;
use crate::desk::targets::Protocol;

/// Time for the greeting and the request, or the head of an HTTP request.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(30);
/// Time for which the rest of a rejected request is read, so that the client gets the response.
const LINGER: Duration = Duration::from_secs(1);
const UNSPECIFIED: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0);

/// Local proxy.
#[derive(Debug)]
pub struct Gateway {
    pub listeners: Vec<TcpListener>,
    pub traffic: Rc<Traffic>,
    tunnels: Rc<Tunnels>,
    /// Number of UDP associations.
    associations: Cell<usize>,
}

impl Gateway {
    pub fn new(listeners: Vec<TcpListener>, tunnels: Rc<Tunnels>) -> Self {
        Self {
            listeners,
            traffic: Rc::default(),
            tunnels,
            associations: Cell::new(0),
        }
    }

    pub fn addresses(&self) -> Vec<SocketAddr> {
        let listeners = self.listeners.iter();
        listeners.flat_map(TcpListener::local_addr).collect()
    }

    /// Serves one connection.
    pub async fn handle(self: Rc<Self>, mut stream: TcpStream, report: Rc<Report>) {
        let port = stream.local_addr().map_or(0, |address| address.port());
        report.connection(port);
        // Fails if the client has left, which the first read reports, too.
        let _ = configure_socket(&stream);
        let mut input = BytesMut::new();
        let first = timeout(HANDSHAKE_TIMEOUT, stream.read_buf(&mut input)).await;
        if !matches!(first, Ok(Ok(1..))) {
            return;
        }
        let ended = if input.first() == Some(&socks::VERSION) {
            self.serve_socks(stream, input, &report).await
        } else {
            self.serve_http(stream, input, &report).await
        };
        if let Err(error) = ended {
            tracing::debug!(%error, "a connection to the local proxy ended");
        }
    }

    /// Serves a SOCKS client.
    async fn serve_socks(
        self: &Rc<Self>,
        mut stream: TcpStream,
        mut input: BytesMut,
        report: &Rc<Report>,
    ) -> io::Result<()> {
        let accepts = read_message(&mut stream, &mut input, socks::parse_greeting).await?;
        if accepts != Ok(true) {
            return reject(stream, &socks::NO_METHOD).await;
        }
        stream.write_all(&socks::NO_AUTHENTICATION).await?;
        let request = read_message(&mut stream, &mut input, socks::parse_request).await?;
        let request = match request {
            Ok(request) => request,
            Err(error) => {
                tracing::debug!(%error, "rejected a SOCKS request");
                return reject(stream, &reply(error.reply(), UNSPECIFIED)).await;
            }
        };
        if request.command == Command::UdpAssociate {
            return self.associate(stream, request.target.port, report).await;
        }
        match self.open(Protocol::Tcp, &request.target, report).await {
            Ok(tunnel) => {
                stream
                    .write_all(&reply(Reply::Succeeded, UNSPECIFIED))
                    .await?;
                self.relay(stream, input, tunnel).await
            }
            Err(error) => reject(stream, &reply(reply_to(&error), UNSPECIFIED)).await,
        }
    }

    /// Opens a tunnel. Failures are reported.
    async fn open(
        &self,
        protocol: Protocol,
        target: &Target,
        report: &Report,
    ) -> Result<TunnelStream, TunnelError> {
        let authority = target.to_string();
        let opened = self.tunnels.open(protocol, &authority).await;
        opened.inspect_err(|error| {
            let text = format!("{error}{}", error.remedy());
            report.failure(&authority, &error.kind(), &text);
        })
    }

    /// Relays a connection. `input` are bytes that the client has sent for the target.
    async fn relay(
        &self,
        stream: TcpStream,
        input: BytesMut,
        tunnel: TunnelStream,
    ) -> io::Result<()> {
        let _open = Open::new(&self.traffic);
        let client = Client::new(stream);
        let relayed = client.relay(input.freeze(), tunnel.into(), &self.traffic);
        relayed.await.map_err(io::Error::other)
    }
}

/// Reads one message. Bytes that follow it remain in `input`.
async fn read_message<T>(
    stream: &mut TcpStream,
    input: &mut BytesMut,
    parse: impl Fn(&[u8]) -> Parsed<T>,
) -> io::Result<Result<T, socks::SocksError>> {
    let reading = async {
        loop {
            match parse(input) {
                Ok(None) => {}
                Ok(Some((message, length))) => {
                    input.advance(length);
                    return Ok(Ok(message));
                }
                Err(error) => return Ok(Err(error)),
            }
            if stream.read_buf(input).await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
    };
    let read = timeout(HANDSHAKE_TIMEOUT, reading).await;
    read.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

fn reply(reply: Reply, bound: SocketAddr) -> Vec<u8> {
    let mut bytes = Vec::new();
    socks::write_reply(reply, bound, &mut bytes);
    bytes
}

/// Returns the code for a tunnel that was not opened.
fn reply_to(error: &TunnelError) -> Reply {
    let TunnelError::Refused(refusal) = error else {
        return Reply::Failure;
    };
    match refusal.status {
        StatusCode::UNAUTHORIZED
        | StatusCode::FORBIDDEN
        | StatusCode::PROXY_AUTHENTICATION_REQUIRED => Reply::NotAllowed,
        StatusCode::NOT_FOUND | StatusCode::SERVICE_UNAVAILABLE | StatusCode::GATEWAY_TIMEOUT => {
            Reply::HostUnreachable
        }
        StatusCode::BAD_GATEWAY => Reply::Refused,
        _ => Reply::Failure,
    }
}

/// Sends the last bytes of a connection. A close with unread input would reset it before the client
/// has read them.
async fn reject(mut stream: TcpStream, bytes: &[u8]) -> io::Result<()> {
    stream.write_all(bytes).await?;
    stream.shutdown().await?;
    let reading = async {
        let mut rest = [0; 4096];
        while stream.read(&mut rest).await? > 0 {}
        Ok(())
    };
    timeout(LINGER, reading).await.unwrap_or(Ok(()))
}
