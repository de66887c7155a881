//! Scripted backends for HTTP/2: a page or an echo, and trailers.

use std::pin::Pin;

use anyhow::Result;
use bytes::Bytes;
use futures::StreamExt;
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncRead, AsyncWrite};

use super::wire::{Field, Head};
use super::{Exchange, Handshake, ScriptedBackends, Seen, Step};

type Frames = Pin<Box<dyn futures::Stream<Item = Result<Frame<Bytes>>> + Send>>;

pub(super) async fn serve<S>(
    backends: &ScriptedBackends,
    at: String,
    stream: S,
    tls: Option<Handshake>,
) where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let service = service_fn(|request: Request<Incoming>| {
        let (backends, at, tls) = (backends.clone(), at.clone(), tls.clone());
        async move { respond(&backends, at, tls, request).await }
    });
    // Errors close the connection, which the other side notices.
    let _ = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
        .serve_connection(TokioIo::new(stream), service)
        .await;
}

async fn respond(
    backends: &ScriptedBackends,
    at: String,
    tls: Option<Handshake>,
    request: Request<Incoming>,
) -> Result<Response<StreamBody<Frames>>, h2::Error> {
    let path = request
        .uri()
        .path_and_query()
        .map(ToString::to_string)
        .unwrap_or_default();
    let line = format!("{} {path} HTTP/2", request.method());
    let mut fields: Vec<_> = request.headers().iter().map(field).collect();
    if let Some(authority) = request.uri().authority() {
        fields.push(Field {
            name: "host".into(),
            value: authority.to_string(),
        });
    }
    let exchange = Exchange::begin(
        backends,
        Seen {
            at,
            tls,
            line,
            fields,
            ..Seen::default()
        },
    );
    let steps = exchange.script.steps.clone();
    if steps.contains(&Step::RequireHttp1) {
        // hyper resets the stream with the reason of the error.
        return Err(h2::Reason::HTTP_1_1_REQUIRED.into());
    }
    let (mut head, mut frames) = (Head::default(), Vec::new());
    for step in &steps {
        match step {
            Step::Page(text) => {
                let [first, body] = super::script::page(text, &|body| Ok(body.as_bytes().to_vec()))
                    .unwrap_or_default();
                head = Head::parse(&first);
                frames.push(Ok(Frame::data(Bytes::from(body))));
            }
            Step::Trailers(text) => {
                frames.push(Ok(Frame::trailers(map(&Field::parse(text.as_bytes())))));
            }
            // Resets the stream.
            Step::Close => frames.push(Err(anyhow::anyhow!("reset by the script"))),
            _ => {}
        }
    }
    let mut response = Response::builder()
        .status(status(&head))
        .body(())
        .unwrap_or_default();
    *response.headers_mut() = map(&head.fields);
    let echoes = steps.contains(&Step::Echo);
    let incoming = BodyStream {
        exchange,
        incoming: request.into_body(),
    };
    let sent: Frames = if echoes {
        let ending = futures::stream::iter(frames.into_iter().skip(1));
        Box::pin(incoming.frames().chain(ending))
    } else {
        let read: Vec<_> = incoming.frames().collect().await;
        drop(read);
        Box::pin(futures::stream::iter(frames))
    };
    Ok(response.map(|()| StreamBody::new(sent)))
}

/// Body of a request, recorded while it arrives.
struct BodyStream {
    exchange: Exchange,
    incoming: Incoming,
}

impl BodyStream {
    fn frames(self) -> impl futures::Stream<Item = Result<Frame<Bytes>>> {
        futures::stream::unfold(self, |mut body| async move {
            loop {
                let frame = match body.incoming.frame().await? {
                    Ok(frame) => frame,
                    Err(error) => {
                        body.exchange
                            .seen(|seen| seen.end = Some("the stream was reset".into()));
                        return Some((Err(error.into()), body));
                    }
                };
                match frame.into_data() {
                    Ok(data) => {
                        body.exchange
                            .seen(|seen| seen.body.extend_from_slice(&data));
                        return Some((Ok(Frame::data(data)), body));
                    }
                    Err(frame) => {
                        let trailers = frame.into_trailers().unwrap_or_default();
                        body.exchange
                            .seen(|seen| seen.trailers = trailers.iter().map(field).collect());
                    }
                }
            }
        })
    }
}

fn field((name, value): (&HeaderName, &HeaderValue)) -> Field {
    Field {
        name: name.as_str().into(),
        value: Field::escaped(value.as_bytes()),
    }
}

fn status(head: &Head) -> u16 {
    head.line
        .split(' ')
        .nth(1)
        .and_then(|code| code.parse().ok())
        .unwrap_or(200)
}

fn map(fields: &[Field]) -> HeaderMap {
    fields
        .iter()
        .filter_map(|field| {
            Some((
                field.name.parse::<HeaderName>().ok()?,
                field.value.parse::<HeaderValue>().ok()?,
            ))
        })
        .collect()
}
