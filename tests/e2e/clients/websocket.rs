//! WebSocket clients: RFC 6455 over HTTP/1.1, and RFC 8441 over HTTP/2.

use std::net::SocketAddr;

use anyhow::{Context, Result, ensure};
use base64::prelude::{BASE64_URL_SAFE_NO_PAD, Engine as _};
use bytes::Bytes;
use futures::{SinkExt, StreamExt};
use http::{HeaderMap, Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::http2;
use hyper::ext::Protocol;
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::client::ClientRequestBuilder;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Role};
use tokio_tungstenite::tungstenite::{Error, Message};

use crate::fixture::{Fixture, path};
use crate::support::app::{App, Body, response, status};
use crate::support::client::tls_with_alpn;
use crate::support::eventually;

const LAST: u8 = 37;
const BEARER: &str = "base64url.bearer.authorization.k8s.io.";

pub async fn websockets_open_over_http1(fixture: &mut Fixture) -> Result<()> {
    let _app = app(fixture, "sockets", 8081).await?;
    let apiserver = fixture
        .cluster
        .server
        .trim_start_matches("https://")
        .parse()?;
    // The apiserver drops the query of an upgrade (C85), and otherwise is the reference.
    for (who, address, query) in [
        ("the apiserver", apiserver, false),
        ("the bastion", fixture.bastion.secure, true),
    ] {
        let url = path("pods/sockets:8081/proxy/socket?room=1");
        let seen = if query { "/socket?room=1" } else { "/socket" };
        let (mut socket, _) = over_http1(fixture, address, &url, By::Header(&fixture.token), &[])
            .await
            .context(who)?;
        converse(
            &mut socket,
            &json!({"url": seen, "authorization": null, "protocols": null}),
        )
        .await?;
        let opened = over_http1(
            fixture,
            address,
            &url,
            By::Subprotocol(&fixture.token),
            &["chat"],
        )
        .await;
        let (mut socket, chosen) =
            opened.with_context(|| format!("{who}, by a token that is a subprotocol"))?;
        ensure!(chosen.as_deref() == Some("chat"), "{who} chose {chosen:?}");
        converse(
            &mut socket,
            &json!({"url": seen, "authorization": null, "protocols": "chat"}),
        )
        .await?;

        let refused = over_http1(fixture, address, &url, By::Subprotocol("wrong"), &["chat"]).await;
        ensure!(
            refused_with(&refused, 401),
            "{who}, a wrong token: {:?}",
            refused.map(|_| ())
        );
        let url = "/api/v1/namespaces/default/pods/sockets/proxy/socket";
        let refused = over_http1(fixture, address, url, By::Header(&fixture.token), &[]).await;
        ensure!(
            refused_with(&refused, 403),
            "{who}, another namespace: {:?}",
            refused.map(|_| ())
        );
        let url = path("pods/sockets:8081/proxy/refused");
        let refused = over_http1(fixture, address, &url, By::Header(&fixture.token), &[]).await;
        ensure!(
            refused_with(&refused, 418),
            "{who}, an app that will not: {:?}",
            refused.map(|_| ())
        );
    }
    Ok(())
}

pub async fn websockets_open_over_http2(fixture: &mut Fixture) -> Result<()> {
    let _app = app(fixture, "sockets-too", 8082).await?;
    let url = path("pods/sockets-too:8082/proxy/socket?room=1");
    let stream = tls_with_alpn(
        fixture.bastion.secure,
        &fixture.cluster.ca.file,
        None,
        &[b"h2"],
    )
    .await?;
    let (sender, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await?;
    tokio::spawn(connection);

    // A plain request first: with its response, the settings that offer the extension have arrived.
    let name = path("services/web/proxy/name");
    let plain = async || -> Result<()> {
        let request = Request::get(format!("https://localhost{name}"));
        let request = request
            .header(header::AUTHORIZATION, format!("Bearer {}", fixture.token))
            .body(Full::default())?;
        let response = sender.clone().send_request(request).await?;
        let code = response.status();
        let body = response.into_body().collect().await?.to_bytes();
        ensure!(code == 200 && body.starts_with(b"web-"), "{code} {body:?}");
        Ok(())
    };
    plain().await?;
    let open = |by, protocols| over_http2(sender.clone(), &url, by, protocols);
    let (mut first, _) = opened(open(By::Header(&fixture.token), &[]).await?).await?;
    let (mut second, chosen) =
        opened(open(By::Subprotocol(&fixture.token), &["chat"]).await?).await?;
    ensure!(chosen.as_deref() == Some("chat"), "chose {chosen:?}");
    // Two sockets and a request on one connection.
    plain().await?;
    converse(
        &mut first,
        &json!({"url": "/socket?room=1", "authorization": null, "protocols": null}),
    )
    .await?;
    plain().await?;
    converse(
        &mut second,
        &json!({"url": "/socket?room=1", "authorization": null, "protocols": "chat"}),
    )
    .await?;

    for (what, url, by, code) in [
        ("a wrong token", url.clone(), By::Header("wrong"), 401),
        (
            "another namespace",
            url.replace("shop", "default"),
            By::Header(&fixture.token),
            403,
        ),
        (
            "an app that will not",
            path("pods/sockets-too:8082/proxy/refused"),
            By::Header(&fixture.token),
            418,
        ),
        (
            "a pod that is not there",
            path("pods/nobody/proxy/socket"),
            By::Header(&fixture.token),
            404,
        ),
    ] {
        let response = over_http2(sender.clone(), &url, by, &[]).await?;
        ensure!(response.status() == code, "{what}: {response:?}");
        response.into_body().collect().await.context(what)?;
    }
    // The connection has survived these errors.
    plain().await
}

/// Place of the token. Pages in a browser can only use the subprotocol.
#[derive(Clone, Copy)]
enum By<'a> {
    Header(&'a str),
    Subprotocol(&'a str),
}

impl By<'_> {
    /// Returns the headers of a handshake that offers some protocols.
    fn headers(self, protocols: &[&str]) -> Vec<(header::HeaderName, String)> {
        let mut offered: Vec<String> = protocols.iter().map(ToString::to_string).collect();
        let mut headers = Vec::new();
        match self {
            By::Header(token) => headers.push((header::AUTHORIZATION, format!("Bearer {token}"))),
            By::Subprotocol(token) => {
                offered.push(format!("{BEARER}{}", BASE64_URL_SAFE_NO_PAD.encode(token)));
            }
        }
        if !offered.is_empty() {
            headers.push((header::SEC_WEBSOCKET_PROTOCOL, offered.join(", ")));
        }
        headers
    }
}

/// A socket, and the protocol that the server selected.
type Opened<S> = (WebSocketStream<S>, Option<String>);

async fn over_http1(
    fixture: &Fixture,
    address: SocketAddr,
    url: &str,
    by: By<'_>,
    protocols: &[&str],
) -> Result<Opened<impl AsyncRead + AsyncWrite + Unpin + use<>>, Error> {
    let stream = tls_with_alpn(address, &fixture.cluster.ca.file, None, &[b"http/1.1"]).await;
    let stream = stream.map_err(|error| Error::Io(std::io::Error::other(format!("{error:#}"))))?;
    let uri = format!("wss://localhost{url}")
        .parse()
        .expect("a test's URL is one");
    let request = by
        .headers(protocols)
        .into_iter()
        .fold(ClientRequestBuilder::new(uri), |request, (name, value)| {
            request.with_header(name.as_str(), value)
        });
    let (socket, response) = tokio_tungstenite::client_async(request, stream).await?;
    Ok((socket, chosen(response.headers())))
}

async fn over_http2(
    mut sender: http2::SendRequest<Full<Bytes>>,
    url: &str,
    by: By<'_>,
    protocols: &[&str],
) -> Result<Response<Incoming>> {
    let request = Request::builder()
        .method(Method::CONNECT)
        .uri(format!("https://localhost{url}"))
        .extension(Protocol::from_static("websocket"))
        .header(header::SEC_WEBSOCKET_VERSION, "13");
    let request = by
        .headers(protocols)
        .into_iter()
        .fold(request, |request, (name, value)| {
            request.header(name, value)
        });
    sender
        .send_request(request.body(Full::default())?)
        .await
        .context("the extended CONNECT got no response")
}

async fn opened(
    mut response: Response<Incoming>,
) -> Result<Opened<impl AsyncRead + AsyncWrite + Unpin>> {
    ensure!(response.status() == 200, "{response:?}");
    for name in [
        header::CONNECTION,
        header::UPGRADE,
        header::SEC_WEBSOCKET_ACCEPT,
    ] {
        ensure!(
            !response.headers().contains_key(&name),
            "{name} has no place in HTTP/2: {response:?}"
        );
    }
    let upgraded = TokioIo::new(hyper::upgrade::on(&mut response).await?);
    let socket = WebSocketStream::from_raw_socket(upgraded, Role::Client, None).await;
    Ok((socket, chosen(response.headers())))
}

fn chosen(headers: &HeaderMap) -> Option<String> {
    Some(
        headers
            .get(header::SEC_WEBSOCKET_PROTOCOL)?
            .to_str()
            .ok()?
            .to_owned(),
    )
}

fn refused_with<T>(outcome: &Result<T, Error>, code: u16) -> bool {
    matches!(outcome, Err(Error::Http(response)) if response.status() == code)
}

/// Sends all kinds of frames in both directions, and closes according to RFC 6455.
async fn converse<S: AsyncRead + AsyncWrite + Unpin>(
    socket: &mut WebSocketStream<S>,
    seen: &Value,
) -> Result<()> {
    let hello = socket.next().await.context("the socket ended")??;
    let received: Value = serde_json::from_str(hello.to_text()?)?;
    ensure!(
        received == *seen,
        "the application received {received}, not {seen}"
    );
    let large = Bytes::from(vec![7; 1 << 20]);
    for message in [
        Message::text("good day"),
        Message::text(""),
        Message::text("ö".repeat(40_000)),
        Message::binary(large),
        Message::Ping("are you there".into()),
    ] {
        socket.send(message.clone()).await?;
        let expected = if let Message::Ping(payload) = message {
            Message::Pong(payload)
        } else {
            message
        };
        let got = socket.next().await.context("the socket ended")??;
        ensure!(
            got == expected,
            "{} bytes came back for {}",
            got.len(),
            expected.len()
        );
    }
    let why = CloseFrame {
        code: CloseCode::Library(4001),
        reason: "done".into(),
    };
    socket.close(Some(why.clone())).await?;
    let end = socket
        .next()
        .await
        .context("the socket ended without a close")??;
    ensure!(end == Message::Close(Some(why)), "{end}");
    // The connection or stream ends, too.
    let rest = tokio::time::timeout(std::time::Duration::from_secs(10), socket.next()).await?;
    ensure!(rest.is_none(), "{rest:?}");
    Ok(())
}

/// Starts a pod with an application that echoes on a WebSocket.
async fn app(fixture: &Fixture, name: &str, port: u16) -> Result<App> {
    let app = App::start(&fixture.namespace, LAST, port, None, |request| async move {
        match request.uri().path() {
            "/refused" => status(
                StatusCode::IM_A_TEAPOT,
                header::CONTENT_TYPE,
                "text/plain",
                "no sockets here",
            ),
            _ => echo(request),
        }
    })?;
    fixture
        .objects
        .pod(name, json!({}), fixture.namespace.address(LAST), json!([]))
        .await?;
    let mut client = fixture.client().await?;
    let url = path(&format!("pods/{name}:{port}/proxy/"));
    eventually("the pod with the sockets", async || {
        Ok(client.get(&url).await?.status == 200)
    })
    .await?;
    Ok(app)
}

/// Accepts a WebSocket, sends the request that the application received, and echoes.
pub fn echo(mut request: Request<Incoming>) -> Response<Body> {
    let headers = request.headers();
    let text = |name| {
        headers
            .get(name)
            .map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned())
    };
    let protocols = text(header::SEC_WEBSOCKET_PROTOCOL);
    let Some(key) = headers.get(header::SEC_WEBSOCKET_KEY) else {
        return response("text/plain", "a WebSocket is served here");
    };
    let hello = json!({
        "url": request.uri().to_string(),
        "authorization": text(header::AUTHORIZATION),
        "protocols": protocols,
    });
    let mut response = status(
        StatusCode::SWITCHING_PROTOCOLS,
        header::SEC_WEBSOCKET_ACCEPT,
        &derive_accept_key(key.as_bytes()),
        Bytes::new(),
    );
    let headers = response.headers_mut();
    headers.insert(
        header::CONNECTION,
        http::HeaderValue::from_static("Upgrade"),
    );
    headers.insert(header::UPGRADE, http::HeaderValue::from_static("websocket"));
    // Selects the first offered protocol, as applications with one protocol do.
    let first = protocols
        .as_deref()
        .and_then(|offered| offered.split(',').next())
        .map(str::trim);
    if let Some(Ok(first)) = first.map(str::parse) {
        headers.insert(header::SEC_WEBSOCKET_PROTOCOL, first);
    }
    let upgraded = hyper::upgrade::on(&mut request);
    tokio::spawn(async move {
        let Ok(upgraded) = upgraded.await else { return };
        let mut socket =
            WebSocketStream::from_raw_socket(TokioIo::new(upgraded), Role::Server, None).await;
        let _ = socket.send(Message::text(hello.to_string())).await;
        while let Some(Ok(message)) = socket.next().await {
            if message.is_text() || message.is_binary() {
                let _ = socket.send(message).await;
            }
        }
    });
    response
}
