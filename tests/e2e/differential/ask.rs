//! Asks one question of one side over HTTP/1.1, and keeps every byte that comes back.

mod h2;
mod parse;

use std::net::SocketAddr;
use std::path::PathBuf;

use anyhow::{Context, Result};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::sync::watch;
use tokio::time::timeout;

use super::callers::Credentials;
use super::table::{Act, Row};
use crate::support::client::tls_with_alpn;
use crate::support::raw::{Field, Head, MOMENT, PATIENCE, Stage, contains};

pub use h2::ask as ask_h2;

/// The name that clients give the server in `Host`.
pub const HOST: &str = "bastion.test";

/// Who is asked.
#[derive(Clone, Debug)]
pub struct Side {
    pub name: &'static str,
    pub address: SocketAddr,
    pub ca: PathBuf,
}

/// What came back.
#[derive(Clone, Debug, Default)]
pub struct Answer {
    pub interim: Vec<Head>,
    pub head: Option<Head>,
    pub body: Vec<u8>,
    pub trailers: Vec<Field>,
    /// What came behind a 101.
    pub tunnel: Vec<u8>,
    /// Whether the answer is whole.
    pub complete: bool,
    /// How it ended, in words.
    pub end: String,
    /// Whether the server ended the connection, where that was waited for.
    pub closed: Option<bool>,
}

/// What has been received, and whether that is all.
#[derive(Debug, Default)]
struct Received {
    bytes: Vec<u8>,
    ended: Option<String>,
}

/// # Errors
/// Where the connection cannot be made: no answer at all is an answer too.
pub async fn ask(side: &Side, row: &Row, by: &Credentials, stage: &Stage) -> Result<Answer> {
    let stream = tls_with_alpn(side.address, &side.ca, by.certificate.as_ref(), &[]).await?;
    let (reader, mut writer) = tokio::io::split(stream);
    let received = watch::Sender::new(Received::default());
    let reading = read(reader, &received, stage);
    let method = row.method().to_owned();
    let mut outcome = Ok(());
    let mut closed = None;
    let asking = async {
        // A server that answers early may close early: what it said is what counts.
        let _ = writer.write_all(&row.bytes(by)).await;
        let _ = writer.flush().await;
        for act in &row.then {
            match act {
                Act::Send(text) => {
                    let _ = writer.write_all(text.as_bytes()).await;
                    let _ = writer.flush().await;
                }
                Act::BackendHas(text) => outcome = stage.backend_has(text).await,
                Act::Has(text) => {
                    outcome = wait(&received, |received| contains(&received.bytes, text)).await;
                }
                Act::EndSending => drop(writer.shutdown().await),
                Act::ToEnd => closed = Some(is_closed(&received, &method).await),
                Act::Moment => tokio::time::sleep(MOMENT).await,
                Act::HangUp => return,
            }
            if outcome.is_err() {
                return;
            }
        }
        let done = |received: &Received| {
            received.ended.is_some() || parse::answer(&received.bytes, &method, false).complete
        };
        // Nothing in time is an answer too, told by `end`.
        let _ = wait(&received, done).await;
    };
    tokio::select! {
        () = reading => {}
        () = asking => {}
    }
    // Where reading ended first, what is left to do is to look at what was read.
    let received = received.borrow();
    let mut answer = parse::answer(&received.bytes, &method, received.ended.is_some());
    answer.closed = closed;
    answer.end = match (&outcome, answer.complete, &received.ended) {
        (Err(error), ..) => format!("{error:#}"),
        (Ok(()), true, _) => "whole".into(),
        (Ok(()), false, Some(how)) => how.clone(),
        (Ok(()), false, None) if hangs_up(row) => "the client hung up".into(),
        (Ok(()), false, None) => "nothing more came in time".into(),
    };
    Ok(answer)
}

fn hangs_up(row: &Row) -> bool {
    row.then.iter().any(|act| matches!(act, Act::HangUp))
}

/// Never returns: a connection that ended stays ended while the acts go on.
async fn read(
    mut reader: impl AsyncRead + Unpin,
    received: &watch::Sender<Received>,
    stage: &Stage,
) {
    let mut buffer = vec![0; 16 << 10];
    let how = loop {
        match reader.read(&mut buffer).await {
            Ok(0) => break "cut",
            Ok(count) => {
                stage.client_got(&buffer[..count]);
                received.send_modify(|received| received.bytes.extend_from_slice(&buffer[..count]));
            }
            // Without close_notify, which tells an HTTP client nothing that the lengths do not.
            Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => break "cut",
            Err(_) => break "reset",
        }
    };
    received.send_modify(|received| received.ended = Some(how.into()));
    std::future::pending::<()>().await;
}

/// Whether the connection ends; behind a whole answer that is waited for only a moment.
async fn is_closed(received: &watch::Sender<Received>, method: &str) -> bool {
    let over = |received: &Received| {
        received.ended.is_some() || parse::answer(&received.bytes, method, false).complete
    };
    let _ = wait(received, over).await;
    timeout(MOMENT, wait(received, |received| received.ended.is_some()))
        .await
        .is_ok_and(|ended| ended.is_ok())
}

async fn wait(received: &watch::Sender<Received>, is: impl FnMut(&Received) -> bool) -> Result<()> {
    let mut changes = received.subscribe();
    timeout(PATIENCE, changes.wait_for(is))
        .await
        .context("the client waited in vain")?
        .map(|_| ())?;
    Ok(())
}

impl Row {
    pub fn method(&self) -> &str {
        let line = self.raw.as_deref().unwrap_or(&self.ask);
        line.split(' ').next().unwrap_or_default()
    }

    /// The path with what it leaves out.
    pub fn path(&self) -> String {
        let path = self.ask.split_once(' ').map_or("", |(_, path)| path);
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
