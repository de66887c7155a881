//! Sends the request of a row to one side over HTTP/1.1, and records every byte of the response.

mod h2;
mod parse;

use std::net::SocketAddr;
use std::path::PathBuf;

use anyhow::{Context, Result};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::sync::watch;
use tokio::time::timeout;

use super::callers::Credentials;
use super::table::{Action, Row};
use crate::support::client::tls_with_alpn;
use crate::support::raw::{Field, Head, IMMEDIATE, STEP_TIMEOUT, ScriptedBackends, contains};

pub use h2::send as send_h2;
pub use parse::{response as parse_response, status as response_status};

/// `Host` of the requests.
pub const HOST: &str = "bastion.test";

/// Server under comparison: the apiserver or a bastion.
#[derive(Clone, Debug)]
pub struct Side {
    pub name: &'static str,
    pub address: SocketAddr,
    pub ca: PathBuf,
}

/// Recorded response.
#[derive(Clone, Debug, Default)]
pub struct RecordedResponse {
    pub interim: Vec<Head>,
    pub head: Option<Head>,
    pub body: Vec<u8>,
    pub trailers: Vec<Field>,
    /// Bytes after a 101.
    pub tunnel: Vec<u8>,
    /// True if the response is complete.
    pub complete: bool,
    /// Description of the end of the response.
    pub end: String,
    /// True if the server closed the connection; none if the row does not wait for that.
    pub closed: Option<bool>,
}

/// Received bytes, and the end of the connection, if any.
#[derive(Debug, Default)]
struct Received {
    bytes: Vec<u8>,
    ended: Option<String>,
}

/// Sends the request of a row. A missing response is recorded, too.
///
/// # Errors
/// Returns an error if the connection fails.
pub async fn send(
    side: &Side,
    row: &Row,
    by: &Credentials,
    backends: &ScriptedBackends,
) -> Result<RecordedResponse> {
    let stream = tls_with_alpn(side.address, &side.ca, by.certificate.as_ref(), &[]).await?;
    let (reader, mut writer) = tokio::io::split(stream);
    let received = watch::Sender::new(Received::default());
    let reading = read(reader, &received, backends);
    let method = row.method().to_owned();
    let mut outcome = Ok(());
    let mut closed = None;
    let sending = async {
        // A server that responds early may close early, so write errors are ignored.
        let _ = writer.write_all(&row.bytes(by)).await;
        let _ = writer.flush().await;
        for action in &row.actions {
            match action {
                Action::Send(text) => {
                    let _ = writer.write_all(text.as_bytes()).await;
                    let _ = writer.flush().await;
                }
                Action::BackendHas(text) => outcome = backends.backend_has(text).await,
                Action::Has(text) => {
                    outcome = wait(&received, |received| contains(&received.bytes, text)).await;
                }
                Action::EndSending => drop(writer.shutdown().await),
                Action::ToEnd => closed = Some(is_closed(&received, &method).await),
                Action::Moment => tokio::time::sleep(IMMEDIATE).await,
                Action::Disconnect => return,
            }
            if outcome.is_err() {
                return;
            }
        }
        let done = |received: &Received| {
            received.ended.is_some() || parse::response(&received.bytes, &method, false).complete
        };
        // A timeout is recorded in `end`.
        let _ = wait(&received, done).await;
    };
    tokio::select! {
        () = reading => {}
        () = sending => {}
    }
    // The response is parsed from the bytes that were received, complete or not.
    let received = received.borrow();
    let mut response = parse::response(&received.bytes, &method, received.ended.is_some());
    response.closed = closed;
    response.end = match (&outcome, response.complete, &received.ended) {
        (Err(error), ..) => format!("{error:#}"),
        (Ok(()), true, _) => "complete".into(),
        (Ok(()), false, Some(how)) => how.clone(),
        (Ok(()), false, None) if disconnects(row) => "the client disconnected".into(),
        (Ok(()), false, None) => "timed out".into(),
    };
    Ok(response)
}

fn disconnects(row: &Row) -> bool {
    row.actions
        .iter()
        .any(|action| matches!(action, Action::Disconnect))
}

/// Reads the response. Never returns, because the actions of the row continue after the end.
async fn read(
    mut reader: impl AsyncRead + Unpin,
    received: &watch::Sender<Received>,
    backends: &ScriptedBackends,
) {
    let mut buffer = vec![0; 16 << 10];
    let how = loop {
        match reader.read(&mut buffer).await {
            Ok(0) => break "closed early",
            Ok(count) => {
                backends.client_got(&buffer[..count]);
                received.send_modify(|received| received.bytes.extend_from_slice(&buffer[..count]));
            }
            // A missing close_notify is irrelevant for HTTP, which has lengths.
            Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => break "closed early",
            Err(_) => break "reset",
        }
    };
    received.send_modify(|received| received.ended = Some(how.into()));
    std::future::pending::<()>().await;
}

/// Returns true if the server closes the connection, at the latest shortly after a complete
/// response.
async fn is_closed(received: &watch::Sender<Received>, method: &str) -> bool {
    let over = |received: &Received| {
        received.ended.is_some() || parse::response(&received.bytes, method, false).complete
    };
    let _ = wait(received, over).await;
    timeout(
        IMMEDIATE,
        wait(received, |received| received.ended.is_some()),
    )
    .await
    .is_ok_and(|ended| ended.is_ok())
}

async fn wait(received: &watch::Sender<Received>, is: impl FnMut(&Received) -> bool) -> Result<()> {
    let mut changes = received.subscribe();
    timeout(STEP_TIMEOUT, changes.wait_for(is))
        .await
        .context("the client timed out")?
        .map(|_| ())?;
    Ok(())
}

impl Row {
    pub fn method(&self) -> &str {
        let line = self.raw.as_deref().unwrap_or(&self.request);
        line.split(' ').next().unwrap_or_default()
    }

    /// Returns the absolute path.
    pub fn path(&self) -> String {
        let path = self.request.split_once(' ').map_or("", |(_, path)| path);
        match path {
            _ if path.starts_with('/') => path.to_owned(),
            _ if path.starts_with("nodes/") => format!("/api/v1/{path}"),
            _ => format!("/api/v1/namespaces/table/{path}"),
        }
    }

    fn bytes(&self, by: &Credentials) -> Vec<u8> {
        let credentials = by
            .token
            .as_ref()
            .map(|token| format!("Authorization: Bearer {token}\r\n"));
        let credentials = credentials.unwrap_or_default();
        if let Some(raw) = &self.raw {
            return raw.replace("{credentials}", &credentials).into_bytes();
        }
        let host = self.host.as_deref().unwrap_or(HOST);
        let mut text = format!(
            "{} {} HTTP/1.1\r\nHost: {host}\r\n{credentials}",
            self.method(),
            self.path()
        );
        for line in &self.headers {
            text += &format!("{}\r\n", by.fill(line));
        }
        if !self.chunks.is_empty() {
            text += "Transfer-Encoding: chunked\r\n\r\n";
            self.chunks
                .iter()
                .for_each(|chunk| text += &format!("{:x}\r\n{chunk}\r\n", chunk.len()));
            text += "0\r\n";
            self.trailers
                .iter()
                .for_each(|line| text += &format!("{line}\r\n"));
            text += "\r\n";
        } else if let Some(body) = &self.body {
            text += &format!("Content-Length: {}\r\n\r\n{body}", body.len());
        } else {
            text += "\r\n";
        }
        text.into_bytes()
    }
}
