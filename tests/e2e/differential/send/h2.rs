//! Sends the request of a row over HTTP/2.

use anyhow::{Result, ensure};
use bytes::Bytes;
use futures::stream;
use http::{HeaderName, HeaderValue, Request, Version};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::time::timeout;

use super::{HOST, RecordedResponse, Side};
use crate::differential::callers::Credentials;
use crate::differential::table::Row;
use crate::support::client::tls_with_alpn;
use crate::support::raw::{Field, Head, STEP_TIMEOUT, ScriptedBackends};

/// Sends the request of a row.
///
/// # Errors
/// Returns an error if the server does not support HTTP/2 or the connection fails.
pub async fn send(
    side: &Side,
    row: &Row,
    by: &Credentials,
    backends: &ScriptedBackends,
) -> Result<RecordedResponse> {
    let stream = tls_with_alpn(side.address, &side.ca, by.certificate.as_ref(), &[b"h2"]).await?;
    ensure!(
        stream.get_ref().1.alpn_protocol() == Some(b"h2"),
        "{} does not support HTTP/2",
        side.name
    );
    let (mut sender, connection) =
        http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await?;
    let connection = tokio::spawn(connection);
    let host = row.host.as_deref().unwrap_or(HOST);
    let mut request = Request::builder()
        .method(row.method())
        .uri(format!("https://{host}{}", row.path()))
        .version(Version::HTTP_2);
    if let Some(token) = &by.token {
        request = request.header("authorization", format!("Bearer {token}"));
    }
    for line in &row.headers {
        let line = by.fill(line);
        let (name, value) = line.split_once(':').unwrap_or((&line, ""));
        request = request.header(name, value.trim());
    }
    let mut frames: Vec<Result<Frame<Bytes>, std::convert::Infallible>> = Vec::new();
    let pieces = row.chunks.iter().chain(&row.body);
    frames.extend(pieces.map(|piece| Ok(Frame::data(Bytes::from(piece.clone())))));
    if !row.trailers.is_empty() {
        let trailers = row.trailers.iter().filter_map(|line| {
            let (name, value) = line.split_once(':')?;
            Some((
                name.parse::<HeaderName>().ok()?,
                value.trim().parse::<HeaderValue>().ok()?,
            ))
        });
        frames.push(Ok(Frame::trailers(trailers.collect())));
    }
    let request = if frames.is_empty() {
        request.body(http_body_util::Either::Left(http_body_util::Empty::new()))?
    } else {
        request.body(http_body_util::Either::Right(StreamBody::new(
            stream::iter(frames),
        )))?
    };
    let mut recorded = RecordedResponse::default();
    recorded.end = match timeout(
        STEP_TIMEOUT,
        receive(&mut sender, request, &mut recorded, backends),
    )
    .await
    {
        Ok(Ok(())) => "complete".into(),
        Ok(Err(error)) => reset(&error),
        Err(_) => "timed out".into(),
    };
    recorded.complete = recorded.end == "complete";
    connection.abort();
    Ok(recorded)
}

async fn receive<B>(
    sender: &mut http2::SendRequest<B>,
    request: Request<B>,
    recorded: &mut RecordedResponse,
    backends: &ScriptedBackends,
) -> hyper::Result<()>
where
    B: hyper::body::Body + 'static,
{
    let response = sender.send_request(request).await?;
    let (parts, mut body) = response.into_parts();
    let fields = parts
        .headers
        .iter()
        .map(|(name, value)| field(name, value))
        .collect();
    recorded.head = Some(Head {
        line: format!("HTTP/2 {}", parts.status.as_u16()),
        fields,
    });
    while let Some(frame) = body.frame().await {
        match frame?.into_data() {
            Ok(data) => {
                backends.client_got(&data);
                recorded.body.extend_from_slice(&data);
            }
            Err(frame) => {
                let trailers = frame.into_trailers().unwrap_or_default();
                recorded.trailers = trailers
                    .iter()
                    .map(|(name, value)| field(name, value))
                    .collect();
            }
        }
    }
    Ok(())
}

fn field(name: &HeaderName, value: &HeaderValue) -> Field {
    Field {
        name: name.as_str().into(),
        value: Field::escaped(value.as_bytes()),
    }
}

/// Returns the reset code, which the error text of the HTTP/2 library contains.
fn reset(error: &hyper::Error) -> String {
    let cause = std::error::Error::source(error)
        .map(ToString::to_string)
        .unwrap_or_default();
    match cause.split_once("stream error received: ") {
        Some((_, code)) => format!("reset: {code}"),
        None => format!("closed early: {error} {cause}"),
    }
}
