//! Connections over HTTP/2 that carry more than a request and its answer.

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

use super::super::ask::{HOST, Side};
use super::super::observe::{Observation, observe};
use super::super::setting::Setting;
use super::super::table::Row;
use crate::support::client::tls_with_alpn;
use crate::support::raw::PATIENCE;

type Sender = SendRequest<Empty<Bytes>>;

/// A connection over HTTP/2, served for as long as the handle is kept.
pub async fn connect(side: &Side) -> Result<(Sender, JoinHandle<hyper::Result<()>>)> {
    let stream = tls_with_alpn(side.address, &side.ca, None, &[b"h2"]).await?;
    ensure!(stream.get_ref().1.alpn_protocol() == Some(b"h2"), "{} speaks no HTTP/2", side.name);
    let (sender, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await?;
    Ok((sender, tokio::spawn(connection)))
}

/// The status of one GET, its answer read to the end.
pub async fn send(sender: &mut Sender, path: &str, token: &str) -> Result<StatusCode> {
    timeout(PATIENCE, sender.ready()).await.context("the connection takes no more")??;
    let request = Request::get(format!("https://{HOST}{path}")).version(Version::HTTP_2);
    let request = request.header("authorization", format!("Bearer {token}")).body(Empty::new())?;
    let response = timeout(PATIENCE, sender.send_request(request)).await.context("no answer came")??;
    let status = response.status();
    timeout(PATIENCE, response.into_body().collect()).await.context("the answer does not end")??;
    Ok(status)
}

/// RFC 8441: what a browser does on a connection that is HTTP/2 already.
pub async fn websocket_over_h2(setting: &Setting<'_>, side: &Side, row: &Row) -> Result<Observation> {
    let token = setting.callers.get(&row.caller)?.token.clone().unwrap_or_default();
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
    let answer = timeout(PATIENCE, sender.send_request(request)).await.context("no answer came")?;
    match answer {
        Err(error) => {
            let cause = std::error::Error::source(&error).map(ToString::to_string).unwrap_or_default();
            observation.insert("refused".into(), format!("{error} {cause}").trim().to_owned());
        }
        Ok(response) => {
            observation.insert("status".into(), response.status().as_u16().to_string());
            if response.status().is_success() {
                let mut tunnel = TokioIo::new(timeout(PATIENCE, hyper::upgrade::on(response)).await??);
                tunnel.write_all(b"ping").await?;
                tunnel.shutdown().await?;
                let mut back = String::new();
                timeout(PATIENCE, tunnel.read_to_string(&mut back)).await.context("the tunnel does not end")??;
                observation.insert("tunnel".into(), back);
            }
        }
    }
    connection.abort();
    let seen = setting.stage.finish().await;
    let saw = observe(&super::super::ask::Answer::default(), &seen);
    let told =
        ["saw", "saw line", "saw tunnel", "saw header connection", "saw header upgrade", "saw header authorization"];
    observation.extend(saw.into_iter().filter(|(name, _)| told.contains(&&**name)));
    Ok(observation)
}
