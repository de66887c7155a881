//! HTTP/1.1 client of one target or API server, which reuses connections.

use std::cell::RefCell;
use std::net::{Ipv4Addr, SocketAddr};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::future::LocalBoxFuture;
use http::{HeaderMap, Response, StatusCode, header};
use http_body::{Body, Frame, SizeHint};

use super::dial::DialError;
use crate::http::h1::{
    BodyError, BodyLength, ClientConnection, ExchangeError, ParsedResponse, Upload,
};
use crate::http::{
    Interim, ReceiveError, RequestBody, RequestHead, Stream, UpgradedConnection, remove_hop_by_hop,
};

/// Maximum number of idle connections, more than a browser opens to one host.
const MAX_IDLE: usize = 8;
/// Number of stale connections after which a new one is dialed.
const MAX_STALE: usize = 2;
/// `Host` of requests without one, which a request in absolute form does not need.
const DEFAULT_HOST: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 80);

/// Opens connections.
pub trait Dial {
    fn dial(&self) -> LocalBoxFuture<'_, Result<Stream, DialError>>;

    /// Returns the time for which a connection may be idle before its server closes it.
    fn idle_timeout(&self) -> Duration;

    /// Returns a number that changes with the client certificate. Connections of an older one are
    /// not used again.
    fn generation(&self) -> u32;
}

struct Idle {
    connection: ClientConnection,
    since: Instant,
    generation: u32,
}

/// Client of one server. Used on one thread.
pub struct Client {
    dial: Box<dyn Dial>,
    /// The one used last is taken first.
    idle: RefCell<Vec<Idle>>,
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Client").finish_non_exhaustive()
    }
}

/// Failure of a request before its response.
#[derive(Debug, thiserror::Error)]
pub enum SendError {
    #[error(transparent)]
    Dial(#[from] DialError),
    #[error("the connection failed before the response: {0}")]
    Exchange(#[from] ExchangeError<ReceiveError>),
}

/// Response to an upgrade.
#[derive(Debug)]
pub enum Upgraded {
    Switched(Response<()>, UpgradedConnection),
    /// The server responded to the request instead.
    Refused(Response<ResponseBody>),
}

impl Client {
    pub fn new(dial: impl Dial + 'static) -> Rc<Self> {
        Rc::new(Self {
            dial: Box::new(dial),
            idle: RefCell::default(),
        })
    }

    /// Sends a request. If a reused connection turns out to be stale, a request that may be repeated
    /// is sent again. The body is taken once it is sent.
    ///
    /// # Errors
    /// [`SendError`] without a response.
    pub async fn send(
        self: &Rc<Self>,
        head: &RequestHead,
        body: &mut RequestBody,
        interim: Option<&Interim>,
    ) -> Result<Response<ResponseBody>, SendError> {
        let mut stale = 0;
        loop {
            let pooled = (stale < MAX_STALE).then(|| self.take()).flatten();
            let reused = pooled.is_some();
            // Of the connection: an older one would not have been taken.
            let generation = self.dial.generation();
            let mut connection = match pooled {
                Some(connection) => connection,
                None => ClientConnection::new(self.dial.dial().await?),
            };
            let mut upload = upload(head, body);
            let can_repeat = upload.is_none() && head.method.is_idempotent();
            let exchange = connection.exchange(head, DEFAULT_HOST, &mut upload, |response| {
                forward_interim(interim, response);
            });
            match exchange.await {
                Ok(parsed) => {
                    let body = ResponseBody {
                        connection: Some(connection),
                        upload,
                        client: Some(Rc::clone(self)),
                        generation,
                    };
                    return Ok(response(parsed, body));
                }
                Err(error) if reused && (can_repeat || is_unsent(&error, upload.is_some())) => {
                    tracing::debug!(%error, "a reused connection is stale");
                    stale += 1;
                }
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Sends an upgrade on a connection of its own.
    ///
    /// # Errors
    /// As [`Self::send`].
    pub async fn upgrade(self: &Rc<Self>, head: &RequestHead) -> Result<Upgraded, SendError> {
        let mut connection = ClientConnection::new(self.dial.dial().await?);
        let mut upload = None;
        let parsed = connection
            .exchange(head, DEFAULT_HOST, &mut upload, |_| {})
            .await?;
        if parsed.status == StatusCode::SWITCHING_PROTOCOLS {
            let mut response = response(parsed, ());
            // A 101 has no content (RFC 9110 section 8.6).
            response.headers_mut().remove(header::CONTENT_LENGTH);
            return Ok(Upgraded::Switched(response, connection.into_upgraded()));
        }
        let body = ResponseBody {
            connection: Some(connection),
            upload,
            client: None,
            generation: 0,
        };
        Ok(Upgraded::Refused(response(parsed, body)))
    }

    fn take(&self) -> Option<ClientConnection> {
        let mut idle = self.idle.borrow_mut();
        while let Some(Idle {
            mut connection,
            since,
            generation,
        }) = idle.pop()
        {
            if generation == self.dial.generation()
                && since.elapsed() < self.dial.idle_timeout()
                && connection.is_open()
            {
                return Some(connection);
            }
        }
        None
    }

    fn keep(&self, mut connection: ClientConnection, generation: u32) {
        let mut idle = self.idle.borrow_mut();
        if connection.is_reusable() && idle.len() < MAX_IDLE {
            connection.release_buffers();
            idle.push(Idle {
                connection,
                since: Instant::now(),
                generation,
            });
        }
    }
}

/// Takes the body of a request for its upload.
fn upload(head: &RequestHead, body: &mut RequestBody) -> Option<Box<Upload<RequestBody>>> {
    if matches!(body, RequestBody::Empty) {
        return None;
    }
    let body = std::mem::replace(body, RequestBody::Empty);
    let length = match body.size_hint().exact() {
        Some(length) => BodyLength::Known(length),
        None => BodyLength::Chunked,
    };
    let expects_continue = head.headers.contains_key(header::EXPECT);
    Some(Box::new(Upload::new(body, length, expects_continue)))
}

/// Returns true if nothing of the request was sent. A body that was taken is lost with its upload.
fn is_unsent(error: &ExchangeError<ReceiveError>, had_body: bool) -> bool {
    let sent = match error {
        ExchangeError::Io { sent, .. } | ExchangeError::Closed { sent } => *sent,
        ExchangeError::Response(_) | ExchangeError::Body(_) => true,
    };
    !sent && !had_body
}

fn forward_interim(interim: Option<&Interim>, response: ParsedResponse) {
    let Some(interim) = interim else { return };
    let ParsedResponse {
        status,
        mut headers,
        names,
        ..
    } = response;
    without_connection_fields(&mut headers);
    headers.remove(header::CONTENT_LENGTH);
    interim.send(status, headers, names.as_ref());
}

fn response<B>(parsed: ParsedResponse, body: B) -> Response<B> {
    let ParsedResponse {
        status,
        reason,
        mut headers,
        names,
        ..
    } = parsed;
    if status != StatusCode::SWITCHING_PROTOCOLS {
        without_connection_fields(&mut headers);
    }
    let mut response = Response::new(body);
    *response.status_mut() = status;
    *response.headers_mut() = headers;
    if let Some(names) = names {
        response.extensions_mut().insert(names);
    }
    if let Some(reason) = reason {
        response.extensions_mut().insert(reason);
    }
    response
}

fn without_connection_fields(headers: &mut HeaderMap) {
    remove_hop_by_hop(headers, |_| false);
    // It describes requests only.
    headers.remove(header::TE);
}

/// Body of a response. At its end, the connection can serve the next request.
#[derive(Debug)]
pub struct ResponseBody {
    connection: Option<ClientConnection>,
    upload: Option<Box<Upload<RequestBody>>>,
    /// `None` if the connection must not be reused.
    client: Option<Rc<Client>>,
    /// Generation of the connection.
    generation: u32,
}

impl ResponseBody {
    /// The browser does not take the last part yet.
    pub fn poll_blocked(&mut self, context: &mut Context<'_>) {
        if let Some(connection) = &mut self.connection {
            connection.shrink_reads();
            connection.advance_upload(context, &mut self.upload);
        }
    }

    fn has_ended(&self) -> bool {
        let connection = self.connection.as_ref();
        connection.is_none_or(|connection| connection.decoder().is_done())
    }

    fn return_connection(&mut self) {
        if let Some(connection) = self.connection.take()
            && let Some(client) = &self.client
            && self.upload.is_none()
        {
            client.keep(connection, self.generation);
        }
    }
}

impl Body for ResponseBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = &mut *self;
        let Some(connection) = &mut this.connection else {
            return Poll::Ready(None);
        };
        let frame = ready!(connection.poll_body(context, &mut this.upload));
        if frame.is_none() {
            this.return_connection();
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.has_ended()
    }

    fn size_hint(&self) -> SizeHint {
        let remaining = self
            .connection
            .as_ref()
            .map_or(Some(0), |connection| connection.decoder().remaining());
        remaining.map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}

impl Drop for ResponseBody {
    fn drop(&mut self) {
        if self.has_ended() {
            self.return_connection();
        }
    }
}
