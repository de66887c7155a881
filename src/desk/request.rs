//! Single requests of the desk itself: to identity providers, and to discover API servers.

use std::time::Duration;

use bytes::Bytes;
use http::{Request, StatusCode};
use http_body_util::{BodyExt, Full, Limited};
use hyper_util::rt::TokioIo;
use tokio::time::timeout;
use tokio_util::task::AbortOnDropHandle;

use super::connect::{ConnectError, Connector};

/// Maximum time of a request, with its connection.
const TIMEOUT: Duration = Duration::from_secs(30);
/// Maximum size of a response.
const MAX_BODY: usize = 1024 * 1024;

/// Failure of a request.
#[derive(Debug, thiserror::Error)]
pub(super) enum RequestError {
    #[error(transparent)]
    Connect(#[from] ConnectError),
    #[error("the connection failed: {0}")]
    Http(#[from] hyper::Error),
    #[error("the response is too large or incomplete")]
    Body,
    #[error("no response within {TIMEOUT:?}")]
    Timeout,
}

/// Sends a request on a connection of its own, and reads the response as a whole.
pub(super) async fn send(
    connector: &Connector,
    request: Request<Full<Bytes>>,
) -> Result<(StatusCode, Bytes), RequestError> {
    let exchange = async {
        let stream = connector.open(false).await?;
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        let _connection = AbortOnDropHandle::new(tokio::spawn(connection));
        let (head, body) = sender.send_request(request).await?.into_parts();
        let body = Limited::new(body, MAX_BODY).collect().await;
        let body = body.map_err(|_| RequestError::Body)?;
        Ok((head.status, body.to_bytes()))
    };
    timeout(TIMEOUT, exchange)
        .await
        .unwrap_or(Err(RequestError::Timeout))
}
