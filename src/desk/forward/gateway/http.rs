//! HTTP proxy: CONNECT, and requests in absolute form, one for each connection.

use std::io;
use std::rc::Rc;

use bytes::{Bytes, BytesMut};
use http::uri::Authority;
use http::{HeaderName, StatusCode, header};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::super::bastion::TunnelError;
use super::super::report::Report;
use super::super::socks::{Host, Target};
use super::{Gateway, HANDSHAKE_TIMEOUT, reject};
use crate::desk::targets::Protocol;
use crate::http::h1::{ParsedRequest, find_head_end, parse_request};
use crate::http::{is_hop_by_hop, tokens};
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
            let (target, head) = destination(&head)?;
            let tunnel = self.open(Protocol::Tcp, &target, report).await?;
            Ok::<_, Rejection>((tunnel, head))
        };
        match opened.await {
            Ok((tunnel, None)) => {
                stream.write_all(ACCEPTED).await?;
                self.relay(stream, input, tunnel).await
            }
            Ok((tunnel, Some(mut head))) => {
                head.extend_from_slice(&input);
                self.relay(stream, head, tunnel).await
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

/// Returns the target of a request, and its head for the target. `None` for CONNECT.
fn destination(head: &Bytes) -> Result<(Target, Option<BytesMut>), Rejection> {
    let bad = |message: String| Rejection(StatusCode::BAD_REQUEST, message);
    let request = parse_request(head).map_err(|(error, _)| bad(error.to_string()))?;
    let target = &request.head.target;
    if let Some(authority) = target.tunnel() {
        return Ok((parse_authority(authority, None)?, None));
    }
    match target.absolute() {
        Some((Scheme::Http, authority)) => {
            let to = parse_authority(authority, Some(80))?;
            Ok((to, Some(rewrite(&request, authority))))
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
    let authority: Authority = text.parse().map_err(|_| invalid())?;
    let port = authority.port_u16().or(default_port).ok_or_else(invalid)?;
    let host = authority.host();
    let bare = host
        .strip_prefix('[')
        .and_then(|host| host.strip_suffix(']'));
    let host = match bare.unwrap_or(host).parse() {
        Ok(address) => Host::Address(address),
        Err(_) if bare.is_some() || host.is_empty() || text.contains('@') => {
            return Err(invalid());
        }
        Err(_) => Host::Name(host.to_owned()),
    };
    Ok(Target { host, port })
}

/// Returns the head in origin form, without the fields for this proxy. The target closes the
/// connection after its response, since the next request may be for another one.
fn rewrite(request: &ParsedRequest, authority: &str) -> BytesMut {
    let head = &request.head;
    let named = |name: &HeaderName| {
        let values = head.headers.get_all(header::CONNECTION).into_iter();
        let mut tokens = values.flat_map(tokens);
        tokens.any(|token| token.eq_ignore_ascii_case(name.as_str().as_bytes()))
    };
    let mut output = BytesMut::new();
    let mut push = |parts: &[&[u8]]| parts.iter().for_each(|part| output.extend_from_slice(part));
    let method = head.method.as_str().as_bytes();
    let path = head.target.path_and_query().as_bytes();
    push(&[method, b" ", path, b" HTTP/1.1\r\n"]);
    push(&[b"Host: ", authority.as_bytes(), b"\r\n"]);
    for (name, value) in &head.headers {
        // The body passes as it is.
        let is_framing = [
            header::CONTENT_LENGTH,
            header::TRANSFER_ENCODING,
            header::TRAILER,
        ]
        .contains(name);
        let is_dropped =
            name == header::HOST || !is_framing && (is_hop_by_hop(name.as_str()) || named(name));
        if !is_dropped {
            push(&[name.as_str().as_bytes(), b": ", value.as_bytes(), b"\r\n"]);
        }
    }
    push(&[b"Connection: close\r\n\r\n"]);
    output
}
