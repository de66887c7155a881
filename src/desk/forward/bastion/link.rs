//! One HTTP/2 connection to a bastion.

use std::fmt;
use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use h2::client::SendRequest;
use h2::{Ping, PingPong, RecvStream};
use http::{HeaderMap, HeaderValue, Method, Request, StatusCode, Uri, header};
use tokio::sync::watch;
use tokio::time::{sleep, timeout};

use crate::apiservers::{Credential, ServerConfig};
use crate::desk::api::{StatusMessage, escape};
use crate::desk::client::USER_AGENT;
use crate::desk::printable;
use crate::desk::targets::Protocol;
use crate::http::h2::ByteStream;
use crate::http::{ObservedStream, ReadObserver};

/// Maximum time of a connection with TLS and proxies, and of the handshake of HTTP/2.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(20);
/// Interval of the PINGs, and time after which a bastion that sends nothing does not answer.
const PING_INTERVAL: Duration = Duration::from_secs(10);
const PING_TIMEOUT: Duration = Duration::from_secs(10);
/// Maximum number of streams of a connection, as kube-apiserver and bastions accept.
const MAX_STREAMS: usize = 100;
/// Flow-control windows in bytes: that of a stream is enough for 200 Mbit/s at 20 ms, and that of
/// the connection has room for all streams, so that local clients that do not read hold up no other.
const STREAM_WINDOW: u32 = 512 * 1024;
const CONNECTION_WINDOW: u32 = STREAM_WINDOW * 100;
/// Maximum size of a head in bytes.
const MAX_HEAD: u32 = 64 * 1024;
/// Maximum size in bytes of the body of a response that refuses a tunnel.
const MAX_REFUSAL: usize = 64 * 1024;
/// Maximum number of characters of a message that is not a `Status`.
const MAX_MESSAGE: usize = 1000;

/// Tunnel to a target.
pub type TunnelStream = ByteStream<Slot>;

/// Failure of a connection to a bastion.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    #[error("{0}")]
    Connect(#[from] io::Error),
    #[error("no connection within {} s", CONNECT_TIMEOUT.as_secs())]
    Timeout,
    #[error("it does not offer HTTP/2, which tunnels need; use --via=api-server")]
    NotHttp2,
    #[error("the connection failed: {0}")]
    Http2(#[from] h2::Error),
    #[error("the name of the target is not valid in a request: {0}")]
    Authority(#[from] http::Error),
    #[error("the connection was closed")]
    Closed,
    /// Nothing was sent. The streams that are open may go on, as after GOAWAY.
    #[error("the connection accepts no more streams: {0}")]
    Draining(#[source] h2::Error),
}

/// Response of a bastion that opens no tunnel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    pub status: StatusCode,
    pub message: String,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (status {})", self.message, self.status.as_u16())
    }
}

/// Response to a CONNECT.
#[derive(Debug)]
pub enum Answer {
    Open(TunnelStream),
    Refused(Refusal),
    /// The server accepts no extended CONNECT (RFC 8441), which tunnels of UDP need.
    NoUdp,
}

/// Target of a tunnel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Destination<'a> {
    pub protocol: Protocol,
    /// `HOST:PORT`, with brackets around an IPv6 address.
    pub authority: &'a str,
}

/// HTTP/2 connection. It ends after its last stream once it is dropped.
#[derive(Debug)]
pub struct Link {
    sender: SendRequest<Bytes>,
    is_closed: Arc<AtomicBool>,
    streams: Arc<AtomicUsize>,
    /// True once the settings of the server are known.
    settings: watch::Receiver<bool>,
    /// `host:port` of the server.
    server: String,
    /// Generation of the client certificate.
    pub generation: u32,
}

impl Link {
    /// Connects to a bastion. The task of the connection runs in the current tokio runtime.
    ///
    /// # Errors
    /// [`LinkError`]
    pub async fn connect(server: &ServerConfig, generation: u32) -> Result<Self, LinkError> {
        let credential = Credential::Own { generation };
        let received = Received::default();
        let observer = received.clone();
        let connecting = async {
            let stream = server.connector.connect(credential, true).await?;
            if stream.alpn_protocol() != Some(b"h2") {
                return Err(LinkError::NotHttp2);
            }
            let handshake = h2::client::Builder::new()
                .enable_push(false)
                .initial_window_size(STREAM_WINDOW)
                .initial_connection_window_size(CONNECTION_WINDOW)
                .initial_max_send_streams(MAX_STREAMS)
                .max_header_list_size(MAX_HEAD)
                // Each frame that is in flight when a client leaves may count as an error, and the
                // count is never reset.
                .max_local_error_reset_streams(None)
                .handshake::<_, Bytes>(ObservedStream::new(stream, observer));
            Ok(handshake.await?)
        };
        let connected = timeout(CONNECT_TIMEOUT, connecting).await;
        let (sender, mut connection) = connected.map_err(|_| LinkError::Timeout)??;
        let is_closed = Arc::<AtomicBool>::default();
        let closed = Arc::clone(&is_closed);
        let pings = connection.ping_pong();
        let (known, settings) = watch::channel(false);
        tokio::spawn(async move {
            tokio::select! {
                ended = connection => if let Err(error) = ended {
                    tracing::debug!(%error, "the connection to the bastion ended");
                },
                // Dropping the connection resets its streams.
                () = until_dead(pings, &received, &known) => {
                    tracing::debug!("the bastion answers no PING");
                }
            }
            closed.store(true, Ordering::Relaxed);
        });
        Ok(Self {
            sender,
            is_closed,
            streams: Arc::default(),
            settings,
            server: server.name.clone(),
            generation,
        })
    }

    pub fn is_open(&self) -> bool {
        !self.is_closed.load(Ordering::Relaxed)
    }

    /// Number of streams, including those that are being opened.
    pub fn streams(&self) -> usize {
        self.streams.load(Ordering::Relaxed)
    }

    /// Returns true if the bastion accepts another stream.
    pub fn has_room(&self) -> bool {
        self.streams() < self.sender.current_max_send_streams().min(MAX_STREAMS)
    }

    /// Sends a CONNECT.
    ///
    /// # Errors
    /// [`LinkError`] without a response.
    pub async fn open(
        &self,
        destination: Destination<'_>,
        authorization: Option<&HeaderValue>,
        impersonation: &HeaderMap,
    ) -> Result<Answer, LinkError> {
        let slot = Slot::new(&self.streams);
        let mut request = match destination.protocol {
            Protocol::Tcp => {
                let uri = Uri::builder().authority(destination.authority).build()?;
                Request::builder().method(Method::CONNECT).uri(uri)
            }
            Protocol::Udp if !self.offers_extended_connect().await? => return Ok(Answer::NoUdp),
            Protocol::Udp => self.connect_udp(destination.authority)?,
        };
        if let Some(authorization) = authorization {
            request = request.header(header::PROXY_AUTHORIZATION, authorization);
        }
        let mut request = request.header(header::USER_AGENT, USER_AGENT).body(())?;
        request.headers_mut().extend(impersonation.clone());
        let ready = self.sender.clone().ready().await;
        let mut sender = ready.map_err(LinkError::Draining)?;
        let (response, sending) = sender.send_request(request, false)?;
        let response = response.await?;
        let status = response.status();
        let receiving = response.into_body();
        // Responses of these kinds carry no capsules (RFC 9297 section 3.2).
        let carries_none = destination.protocol == Protocol::Udp
            && matches!(
                status,
                StatusCode::NO_CONTENT | StatusCode::RESET_CONTENT | StatusCode::PARTIAL_CONTENT
            );
        if status.is_success() && !carries_none {
            return Ok(Answer::Open(TunnelStream::new(sending, receiving, slot)));
        }
        let message = read_message(receiving).await;
        Ok(Answer::Refused(Refusal { status, message }))
    }

    /// Waits for the settings of the server.
    async fn offers_extended_connect(&self) -> Result<bool, LinkError> {
        let mut settings = self.settings.clone();
        let known = settings.wait_for(|is_known| *is_known).await;
        known.map_err(|_| LinkError::Closed)?;
        Ok(self.sender.is_extended_connect_protocol_enabled())
    }

    /// Returns the extended CONNECT of a UDP tunnel (RFC 9298 section 3.4).
    fn connect_udp(&self, authority: &str) -> Result<http::request::Builder, http::Error> {
        let (host, port) = authority.rsplit_once(':').unwrap_or((authority, ""));
        let bare = host.strip_prefix('[').and_then(|it| it.strip_suffix(']'));
        let host = escape(bare.unwrap_or(host));
        let uri = Uri::builder()
            .scheme("https")
            .authority(&*self.server)
            .path_and_query(format!("/.well-known/masque/udp/{host}/{port}/"))
            .build()?;
        Ok(Request::builder()
            .method(Method::CONNECT)
            .uri(uri)
            .extension(h2::ext::Protocol::from_static("connect-udp"))
            .header("capsule-protocol", "?1"))
    }
}

/// Place of a stream in the count of its connection.
#[derive(Debug)]
pub struct Slot(Arc<AtomicUsize>);

impl Slot {
    fn new(streams: &Arc<AtomicUsize>) -> Self {
        streams.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(streams))
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// True if bytes have arrived since it was read last.
#[derive(Clone, Debug, Default)]
struct Received(Arc<AtomicBool>);

impl Received {
    fn take(&self) -> bool {
        self.0.swap(false, Ordering::Relaxed)
    }
}

impl ReadObserver for Received {
    fn observe(&mut self, bytes: &[u8]) {
        if !bytes.is_empty() {
            self.0.store(true, Ordering::Relaxed);
        }
    }
}

/// Sends PINGs until one is not acknowledged while nothing else arrives, as after the machine has
/// slept. `known` is set by the first acknowledgement: the settings of the server precede it (RFC 9113
/// section 3.4).
async fn until_dead(pings: Option<PingPong>, received: &Received, known: &watch::Sender<bool>) {
    if let Some(mut pings) = pings {
        loop {
            received.take();
            let mut pong = pin!(pings.ping(Ping::opaque()));
            let answered = loop {
                match timeout(PING_TIMEOUT, &mut pong).await {
                    Ok(answered) => break answered,
                    // Behind a slow network, the acknowledgement follows what was sent before.
                    Err(_) if received.take() => {}
                    Err(_) => return,
                }
            };
            if answered.is_err() {
                // The connection has ended, which its own future reports.
                break;
            }
            known.send_replace(true);
            sleep(PING_INTERVAL).await;
        }
    }
    std::future::pending::<()>().await;
}

/// Reads the reason of a refusal: the message of a `Status`, else the beginning of the text.
async fn read_message(mut body: RecvStream) -> String {
    let mut bytes = Vec::new();
    while let Some(Ok(chunk)) = body.data().await {
        // Fails if the stream has ended.
        let _ = body.flow_control().release_capacity(chunk.len());
        bytes.extend_from_slice(&chunk);
        if bytes.len() > MAX_REFUSAL {
            break;
        }
    }
    StatusMessage::parse(&bytes).unwrap_or_else(|| {
        let text: String = String::from_utf8_lossy(&bytes)
            .chars()
            .take(MAX_MESSAGE)
            .collect();
        match printable(text.trim()) {
            text if text.is_empty() => "no reason given".to_owned(),
            text => text,
        }
    })
}
