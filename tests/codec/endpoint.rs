//! A strict endpoint: records each request, and responds with a script or a default.

use std::collections::HashSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream};

use super::strict::{Content, Fault, Head, Kind, Reader};

/// Target of the request that ends each case.
pub const AFTER: &[u8] = b"/after";

/// Response to the requests of a case, except the one that ends it.
#[derive(Clone, Debug, Default)]
pub struct Script {
    pub bytes: Vec<u8>,
    /// Close the connection after the response.
    pub closes: bool,
}

/// Request as received.
#[derive(Clone, Debug)]
pub struct Seen {
    pub connection: u64,
    pub head: Head,
    pub content: Content,
    pub complete: bool,
}

#[derive(Debug, Default)]
struct State {
    /// Address of the client of the case.
    client: String,
    /// Addresses of clients whose requests were cut. The head of such a request may arrive after
    /// the end of its case.
    cut: HashSet<String>,
    script: Option<Script>,
    /// Number of requests after which a default response closes the connection.
    expected: usize,
    seen: Vec<Seen>,
    violations: Vec<String>,
}

/// Shared state of the endpoint. Requests are attributed to cases by the address of the client in
/// `X-Forwarded-For`.
#[derive(Clone, Debug, Default)]
pub struct Endpoint(Arc<Mutex<State>>);

impl Endpoint {
    /// Serves a listener until the runtime ends.
    pub fn serve(listener: TcpListener) -> Self {
        let endpoint = Self::default();
        let accepting = endpoint.clone();
        tokio::spawn(async move {
            let connections = AtomicU64::new(0);
            while let Ok((stream, _)) = listener.accept().await {
                let id = connections.fetch_add(1, Ordering::Relaxed);
                let endpoint = accepting.clone();
                tokio::spawn(async move { endpoint.connection(id, stream).await });
            }
        });
        endpoint
    }

    /// Begins a case with the address of its client, the response of the endpoint, if it is not
    /// the default, and the number of requests.
    pub fn begin(&self, client: String, script: Option<Script>, expected: usize) {
        let mut state = self.lock();
        *state = State {
            client,
            cut: std::mem::take(&mut state.cut),
            script,
            expected,
            ..State::default()
        };
    }

    /// Declares that the request of the case may arrive incomplete after the end of the case.
    pub fn expect_cut(&self) {
        let mut state = self.lock();
        let client = state.client.clone();
        state.cut.insert(client);
    }

    /// Requests and violations since [`Self::begin`].
    pub fn results(&self) -> (Vec<Seen>, Vec<String>) {
        let state = self.lock();
        (state.seen.clone(), state.violations.clone())
    }

    async fn connection(&self, id: u64, stream: TcpStream) {
        let _ = stream.set_nodelay(true);
        let mut reader = Reader::new(stream);
        loop {
            let head = match reader.head(Kind::Request).await {
                Ok(Some(head)) => head,
                Ok(None) | Err(Fault::Truncated) => return,
                Err(Fault::Malformed(what)) => return self.violation(what),
            };
            let framing = match head.request_framing() {
                Ok(framing) => framing,
                Err(what) => return self.violation(what),
            };
            let waits = head
                .values("expect")
                .any(|value| value.eq_ignore_ascii_case(b"100-continue"));
            let is_head = head.line.starts_with(b"HEAD ");
            let is_after = head.line.split(|byte| *byte == b' ').nth(1) == Some(AFTER);
            let client = client(&head);
            let line = head.line.clone();
            let (index, script, is_last) = {
                let mut state = self.lock();
                let is_current = client == state.client;
                if is_current {
                    state.seen.push(Seen {
                        connection: id,
                        head,
                        content: Content::default(),
                        complete: false,
                    });
                } else if !state.cut.contains(&client) {
                    let what = format!("{} of an earlier case", line.escape_ascii());
                    state.violations.push(what);
                }
                let is_last = is_after || state.seen.len() >= state.expected;
                let script = state.script.clone().filter(|_| is_current && !is_after);
                let index = is_current.then(|| state.seen.len() - 1);
                (index, script, is_last)
            };
            if waits && script.is_none() {
                let _ = reader
                    .stream
                    .write_all(b"HTTP/1.1 100 Continue\r\n\r\n")
                    .await;
            }
            let mut content = Content::default();
            let read = reader.body(framing, &mut content).await;
            let complete = read.is_ok();
            {
                let mut state = self.lock();
                if let Err(Fault::Malformed(what)) = read {
                    state.violations.push(what);
                }
                let is_current = client == state.client;
                match index.filter(|_| is_current) {
                    Some(index) => {
                        state.seen[index].content = content;
                        state.seen[index].complete = complete;
                    }
                    None if complete => {
                        let what = format!("all of {} of an earlier case", line.escape_ascii());
                        state.violations.push(what);
                    }
                    None => {}
                }
            }
            if !complete {
                return;
            }
            let script = script.unwrap_or_else(|| default_response(is_head, is_last));
            let _ = reader.stream.write_all(&script.bytes).await;
            if script.closes {
                let _ = reader.stream.shutdown().await;
            }
        }
    }

    fn violation(&self, what: String) {
        self.lock().violations.push(what);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Address of the client that sent a request.
fn client(head: &Head) -> String {
    let value = head.values("x-forwarded-for").next().unwrap_or_default();
    let last = value
        .rsplit(|byte| *byte == b' ')
        .next()
        .unwrap_or_default();
    String::from_utf8_lossy(last).into_owned()
}

fn default_response(is_head: bool, closes: bool) -> Script {
    let connection = if closes { "Connection: close\r\n" } else { "" };
    let body = if is_head { "" } else { "ok" };
    let text = format!("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n{connection}\r\n{body}");
    Script {
        bytes: text.into_bytes(),
        closes,
    }
}
