//! HTTP/2 connections with several requests or a tunnel.

use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::task::Poll;

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use http::{Method, Request, StatusCode, Version};
use http_body_util::{BodyExt, Empty};
use hyper::client::conn::http2::{self, SendRequest};
use hyper::ext::Protocol;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::super::observe::{Observation, observe};
use super::super::send::{HOST, RecordedResponse, Side};
use super::super::setting::Setting;
use super::super::table::Row;
use crate::support::client::tls_with_alpn;
use crate::support::raw::{Field, Head, STEP_TIMEOUT, Script, Step};

type Sender = SendRequest<Empty<Bytes>>;

/// Opens an HTTP/2 connection, which is driven until the handle is aborted.
pub async fn connect(side: &Side) -> Result<(Sender, JoinHandle<hyper::Result<()>>)> {
    let stream = tls_with_alpn(side.address, &side.ca, None, &[b"h2"]).await?;
    ensure!(
        stream.get_ref().1.alpn_protocol() == Some(b"h2"),
        "{} speaks no HTTP/2",
        side.name
    );
    let (sender, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await?;
    Ok((sender, tokio::spawn(connection)))
}

/// Sends a GET and reads its response to the end. Returns the status.
pub async fn send(sender: &mut Sender, path: &str, token: &str) -> Result<StatusCode> {
    timeout(STEP_TIMEOUT, sender.ready())
        .await
        .context("the connection takes no more")??;
    let request = Request::get(format!("https://{HOST}{path}")).version(Version::HTTP_2);
    let request = request
        .header("authorization", format!("Bearer {token}"))
        .body(Empty::new())?;
    let response = timeout(STEP_TIMEOUT, sender.send_request(request))
        .await
        .context("no response")??;
    let status = response.status();
    timeout(STEP_TIMEOUT, response.into_body().collect())
        .await
        .context("the response does not end")??;
    Ok(status)
}

/// Opens a WebSocket on an HTTP/2 connection (RFC 8441), as browsers do.
pub async fn websocket_over_h2(
    setting: &Setting<'_>,
    side: &Side,
    row: &Row,
) -> Result<Observation> {
    let token = setting
        .callers
        .get(&row.caller)?
        .token
        .clone()
        .unwrap_or_default();
    let (mut sender, connection) = connect(side).await?;
    sender.ready().await?;
    let request = Request::builder()
        .method(Method::CONNECT)
        .uri(format!("https://{HOST}{}", row.path()))
        .version(Version::HTTP_2)
        .extension(Protocol::from_static("websocket"))
        .header("authorization", format!("Bearer {token}"))
        .header("sec-websocket-version", "13")
        .body(Empty::new())?;
    let mut observation = Observation::new();
    let result = timeout(STEP_TIMEOUT, sender.send_request(request))
        .await
        .context("no response")?;
    match result {
        Err(error) => {
            let cause = std::error::Error::source(&error)
                .map(ToString::to_string)
                .unwrap_or_default();
            observation.insert(
                "refused".into(),
                format!("{error} {cause}").trim().to_owned(),
            );
        }
        Ok(response) => {
            observation.insert("status".into(), response.status().as_u16().to_string());
            if response.status().is_success() {
                let mut tunnel =
                    TokioIo::new(timeout(STEP_TIMEOUT, hyper::upgrade::on(response)).await??);
                tunnel.write_all(b"ping").await?;
                tunnel.shutdown().await?;
                let mut back = String::new();
                timeout(STEP_TIMEOUT, tunnel.read_to_string(&mut back))
                    .await
                    .context("the tunnel does not end")??;
                observation.insert("tunnel".into(), back);
            }
        }
    }
    connection.abort();
    let seen = setting.backends.finish().await;
    let received = observe(&RecordedResponse::default(), &seen);
    let compared = [
        "received",
        "received line",
        "received tunnel",
        "received header connection",
        "received header upgrade",
        "received header authorization",
    ];
    observation.extend(
        received
            .into_iter()
            .filter(|(name, _)| compared.contains(&&**name)),
    );
    Ok(observation)
}

/// Observes the interim responses over HTTP/2. It uses h2, because hyper hides them.
pub async fn hints_over_h2(setting: &Setting<'_>, side: &Side) -> Result<Observation> {
    let hints = Step::Page("HTTP/1.1 103 Early Hints\nLink: </a.css>; rel=preload".into());
    let page = Step::Page("HTTP/1.1 200 OK\nContent-Length: auto\n\nok".into());
    setting.backends.begin(Script {
        steps: vec![hints, page],
    });
    let token = setting
        .callers
        .get("operator")?
        .token
        .clone()
        .unwrap_or_default();
    let stream = tls_with_alpn(side.address, &side.ca, None, &[b"h2"]).await?;
    let (sender, connection) = h2::client::handshake(stream).await?;
    let connection = tokio::spawn(connection);
    let request = Request::get(format!(
        "https://{HOST}/api/v1/namespaces/table/pods/p/proxy/x"
    ));
    let request = request
        .version(Version::HTTP_2)
        .header("authorization", format!("Bearer {token}"))
        .body(())?;
    let (mut pending, _) = sender.ready().await?.send_request(request, true)?;
    let mut recorded = RecordedResponse::default();
    // An interim response that is not consumed first makes h2 fail the final one.
    let receiving = poll_fn(|context| {
        while let Poll::Ready(Some(interim)) = pending.poll_informational(context) {
            let interim = interim?;
            recorded
                .interim
                .push(head(interim.status(), interim.headers()));
        }
        Pin::new(&mut pending).poll(context)
    });
    let response = timeout(STEP_TIMEOUT, receiving)
        .await
        .context("no response")??;
    recorded.head = Some(head(response.status(), response.headers()));
    connection.abort();
    let mut observation = observe(&recorded, &setting.backends.finish().await);
    observation.retain(|name, _| name == "status" || name.starts_with("interim"));
    Ok(observation)
}

fn head(status: StatusCode, headers: &http::HeaderMap) -> Head {
    let field = |(name, value): (&http::HeaderName, &http::HeaderValue)| Field {
        name: name.as_str().into(),
        value: Field::escaped(value.as_bytes()),
    };
    Head {
        line: format!("HTTP/2 {}", status.as_u16()),
        fields: headers.iter().map(field).collect(),
    }
}
