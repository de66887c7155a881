//! HTTP proxy: CONNECT, and requests in absolute form, one for each connection: the next one of a
//! client may be for another target.

use std::cell::RefCell;
use std::convert::Infallible;
use std::io;
use std::rc::Rc;

use bytes::{Bytes, BytesMut};
use http::uri::Authority;
use http::{HeaderValue, Request, Response, StatusCode, Uri, header};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::{client, server};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_util::io::{InspectReader, InspectWriter};
use tokio_util::task::AbortOnDropHandle;

use super::super::bastion::{TunnelError, TunnelStream};
use super::super::report::Report;
use super::super::serve::Open;
use super::super::socks::{Host, Target};
use super::{Gateway, HANDSHAKE_TIMEOUT, LINGER, reject};
use crate::desk::targets::Protocol;
use crate::http::h1::{find_head_end, parse_request};
use crate::http::{MAX_HEADERS, Upgraded, remove_hop_by_hop};
use crate::model::Scheme;

/// Maximum size of the head of a request in bytes.
const MAX_HEAD: usize = 64 * 1024;
const ACCEPTED: &[u8] = b"HTTP/1.1 200 OK\r\n\r\n";

/// Response instead of a tunnel.
#[derive(Debug)]
struct Rejection(StatusCode, String);

impl From<TunnelError> for Rejection {
    fn from(error: TunnelError) -> Self {
        let status = match &error {
            TunnelError::Refused(refusal)
                // 401 and 407 would have the client ask for a password.
                if refusal.status == StatusCode::FORBIDDEN
                    || refusal.status == StatusCode::NOT_FOUND
                    || refusal.status.is_server_error() =>
            {
                refusal.status
            }
            TunnelError::Timeout { .. } => StatusCode::GATEWAY_TIMEOUT,
            _ => StatusCode::BAD_GATEWAY,
        };
        Self(status, error.to_string())
    }
}

impl Gateway {
    /// Serves a client of the HTTP proxy.
    pub(super) async fn serve_http(
        &self,
        mut stream: TcpStream,
        mut input: BytesMut,
        report: &Rc<Report>,
    ) -> io::Result<()> {
        let head = timeout(HANDSHAKE_TIMEOUT, read_head(&mut stream, &mut input)).await;
        let opened = async {
            let head = head.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
            let head =
                head.map_err(|error| Rejection(StatusCode::BAD_REQUEST, error.to_string()))?;
            let (target, form) = destination(&head)?;
            let tunnel = self.open(Protocol::Tcp, &target, report).await?;
            Ok::<_, Rejection>((tunnel, form, head))
        };
        match opened.await {
            Ok((tunnel, Form::Connect, _)) => {
                stream.write_all(ACCEPTED).await?;
                self.relay(stream, input, tunnel).await
            }
            Ok((tunnel, Form::Absolute, head)) => {
                let input = Bytes::from([&head[..], &input].concat());
                self.forward(Upgraded::from_tcp(stream, input), tunnel)
                    .await
            }
            Err(Rejection(status, message)) => {
                let response = format!(
                    "HTTP/1.1 {} {}\r\nContent-Type: text/plain; charset=utf-8\r\n\
                     Content-Length: {}\r\nConnection: close\r\n\r\n{message}\n",
                    status.as_u16(),
                    status.canonical_reason().unwrap_or_default(),
                    message.len() + 1
                );
                reject(stream, response.as_bytes()).await
            }
        }
    }

    /// Serves one request through a tunnel, and closes the connection of the client.
    async fn forward(&self, client: Upgraded, tunnel: TunnelStream) -> io::Result<()> {
        let _open = Open::new(&self.traffic);
        let (sent, received) = (Rc::clone(&self.traffic), Rc::clone(&self.traffic));
        let tunnel = InspectWriter::new(tunnel, move |bytes: &[u8]| {
            sent.sent.set(sent.sent.get() + bytes.len() as u64);
        });
        let tunnel = InspectReader::new(tunnel, move |bytes: &[u8]| {
            let before = received.received.get();
            received.received.set(before + bytes.len() as u64);
        });
        let stream = TokioIo::new(tunnel);
        let target = client::conn::http1::Builder::new()
            .preserve_header_case(true)
            .max_headers(MAX_HEADERS)
            .allow_spaces_after_header_name_in_responses(true)
            .allow_obsolete_multiline_headers_in_responses(true)
            .ignore_invalid_headers_in_responses(true)
            .handshake(stream);
        let (sender, target) = target.await.map_err(io::Error::other)?;
        let target = AbortOnDropHandle::new(tokio::task::spawn_local(target));
        // Taken by the first request, which is the only one.
        let sender = RefCell::new(Some(sender));
        let service = hyper::service::service_fn(|request| {
            let sender = sender.take();
            async move {
                let sent = match sender {
                    Some(mut sender) => sender.send_request(for_target(request)).await,
                    None => return Ok::<_, Infallible>(failed("another request")),
                };
                Ok(match sent {
                    Ok(response) => for_client(response),
                    Err(error) => failed(&error.to_string()),
                })
            }
        });
        let mut serving = server::conn::http1::Builder::new()
            .keep_alive(false)
            .preserve_header_case(true)
            .max_headers(MAX_HEADERS)
            .timer(TokioTimer::new())
            .header_read_timeout(HANDSHAKE_TIMEOUT)
            .serve_connection(TokioIo::new(client), service);
        let served = (&mut serving).await;
        let mut client = serving.into_parts().io.into_inner();
        if let Err(error) = served {
            // So that the client does not take a part of a response for all of it.
            client.abort();
            return Err(io::Error::other(error));
        }
        drop(sender);
        // Time for closing the tunnel in order.
        let _ = timeout(LINGER, target).await;
        Ok(())
    }
}

/// Form of the target of a request.
#[derive(Clone, Copy, Debug)]
enum Form {
    Connect,
    Absolute,
}

/// Returns the request in origin form, without the fields for this proxy.
fn for_target(mut request: Request<Incoming>) -> Request<Incoming> {
    let uri = request.uri();
    let host = uri.authority().map(Authority::as_str).unwrap_or_default();
    // An authority is a valid value of a field.
    let host = HeaderValue::from_str(host).unwrap_or(HeaderValue::from_static(""));
    let path = uri.path_and_query().cloned();
    *request.uri_mut() = path.map_or_else(|| Uri::from_static("/"), Uri::from);
    *request.version_mut() = http::Version::HTTP_11;
    let headers = request.headers_mut();
    remove_hop_by_hop(headers, |_| false);
    headers.insert(header::HOST, host);
    headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
    request
}

type ResponseBody = BoxBody<Bytes, hyper::Error>;

fn for_client(mut response: Response<Incoming>) -> Response<ResponseBody> {
    if response.status() == StatusCode::SWITCHING_PROTOCOLS {
        return failed("an upgrade that was not asked for");
    }
    remove_hop_by_hop(response.headers_mut(), |_| false);
    response.map(BodyExt::boxed)
}

fn failed(reason: &str) -> Response<ResponseBody> {
    let message = format!("the request to the target failed: {reason}\n");
    let body = Full::from(message).map_err(|never| match never {});
    let mut response = Response::new(body.boxed());
    *response.status_mut() = StatusCode::BAD_GATEWAY;
    let text = HeaderValue::from_static("text/plain; charset=utf-8");
    response.headers_mut().insert(header::CONTENT_TYPE, text);
    response
}

/// Reads the head of a request. Bytes that follow it remain in `input`.
async fn read_head(stream: &mut TcpStream, input: &mut BytesMut) -> io::Result<Bytes> {
    let mut scanned = 0;
    loop {
        if let Some(end) = find_head_end(input, scanned) {
            return Ok(input.split_to(end).freeze());
        }
        scanned = input.len();
        if scanned > MAX_HEAD {
            return Err(io::Error::other("the head of the request is too long"));
        }
        if stream.read_buf(input).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
}

/// Returns the target of a request.
fn destination(head: &Bytes) -> Result<(Target, Form), Rejection> {
    let bad = |message: String| Rejection(StatusCode::BAD_REQUEST, message);
    let request = parse_request(head).map_err(|(error, _)| bad(error.to_string()))?;
    let target = &request.head.target;
    if let Some(authority) = target.tunnel() {
        return Ok((parse_authority(authority, None)?, Form::Connect));
    }
    match target.absolute() {
        Some((Scheme::Http, authority)) => {
            Ok((parse_authority(authority, Some(80))?, Form::Absolute))
        }
        _ => Err(bad(
            "this port is a proxy: it serves CONNECT and requests for http:// URLs".to_owned(),
        )),
    }
}

fn parse_authority(text: &str, default_port: Option<u16>) -> Result<Target, Rejection> {
    let invalid = || {
        Rejection(
            StatusCode::BAD_REQUEST,
            "the host or port is invalid".into(),
        )
    };
    if text.contains('@') {
        return Err(invalid());
    }
    let authority: Authority = text.parse().map_err(|_| invalid())?;
    let port = authority.port_u16().or(default_port).ok_or_else(invalid)?;
    let host = authority.host();
    let bare = host
        .strip_prefix('[')
        .and_then(|host| host.strip_suffix(']'));
    let host = match bare.unwrap_or(host).parse() {
        Ok(address) => Host::Address(address),
        Err(_) if bare.is_some() || host.is_empty() => return Err(invalid()),
        Err(_) => Host::Name(host.to_owned()),
    };
    Ok(Target { host, port })
}
