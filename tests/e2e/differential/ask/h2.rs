//! The same over HTTP/2.

use anyhow::{Result, ensure};
use bytes::Bytes;
use futures::stream;
use http::{HeaderName, HeaderValue, Request, Version};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::time::timeout;

use super::{Answer, HOST, Side};
use crate::differential::callers::Credentials;
use crate::differential::table::Row;
use crate::support::client::tls_with_alpn;
use crate::support::raw::{Field, Head, PATIENCE, Stage};

/// # Errors
/// Where no HTTP/2 connection can be made.
pub async fn ask(side: &Side, row: &Row, by: &Credentials, stage: &Stage) -> Result<Answer> {
    let stream = tls_with_alpn(side.address, &side.ca, by.certificate.as_ref(), &[b"h2"]).await?;
    ensure!(
        stream.get_ref().1.alpn_protocol() == Some(b"h2"),
        "{} speaks no HTTP/2",
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
    let mut answer = Answer::default();
    answer.end = match timeout(PATIENCE, receive(&mut sender, request, &mut answer, stage)).await {
        Ok(Ok(())) => "whole".into(),
        Ok(Err(error)) => reset(&error),
        Err(_) => "nothing more came in time".into(),
    };
    answer.complete = answer.end == "whole";
    connection.abort();
    Ok(answer)
}

async fn receive<B>(
    sender: &mut http2::SendRequest<B>,
    request: Request<B>,
    answer: &mut Answer,
    stage: &Stage,
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
    answer.head = Some(Head {
        line: format!("HTTP/2 {}", parts.status.as_u16()),
        fields,
    });
    while let Some(frame) = body.frame().await {
        match frame?.into_data() {
            Ok(data) => {
                stage.client_got(&data);
                answer.body.extend_from_slice(&data);
            }
            Err(frame) => {
                let trailers = frame.into_trailers().unwrap_or_default();
                answer.trailers = trailers
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

/// The words of the HTTP/2 library below name the reset's code.
fn reset(error: &hyper::Error) -> String {
    let cause = std::error::Error::source(error)
        .map(ToString::to_string)
        .unwrap_or_default();
    match cause.split_once("stream error received: ") {
        Some((_, code)) => format!("reset: {code}"),
        None => format!("cut: {error} {cause}"),
    }
}
