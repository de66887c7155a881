//! Scripted backends: they record the bytes of requests, and send the bytes of a script.
//!
//! All listeners of a test share one [`ScriptedBackends`]. It holds the script for the next
//! requests, the recorded requests, and the bytes that the client has received so far. Thus either
//! side can wait for the other without sleeping.

mod h2;
mod script;
mod wire;

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use base64::Engine;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;

pub use script::{Script, Step};
pub use wire::{Field, Head, Wire};

/// Maximum time to wait for any step.
pub const STEP_TIMEOUT: Duration = Duration::from_secs(20);

/// Time in which bytes that are forwarded immediately must arrive.
pub const IMMEDIATE: Duration = Duration::from_millis(300);

/// One recorded request.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    /// Name of the listener that received it.
    pub at: String,
    /// TLS handshake, if any.
    pub tls: Option<Handshake>,
    pub line: String,
    pub fields: Vec<Field>,
    pub body: Vec<u8>,
    pub trailers: Vec<Field>,
    /// Bytes after the head of an upgrade.
    pub tunnel: Vec<u8>,
    /// Result of the last [`Step::Glance`]: true if the client had received the text.
    pub glance: Option<bool>,
    /// Unusual end of the script, if any.
    pub end: Option<String>,
}

/// Properties of a TLS handshake.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Handshake {
    /// Common name of the client certificate.
    pub client: Option<String>,
    pub server_name: Option<String>,
}

/// State of the current script.
#[derive(Debug, Default)]
struct State {
    script: Script,
    /// Number of the script. Requests of earlier scripts are not recorded.
    generation: u64,
    seen: Vec<Seen>,
    active: usize,
    /// Bytes that the client has received.
    client: Vec<u8>,
}

/// The current script and its results. Clones share them.
#[derive(Clone, Debug)]
pub struct ScriptedBackends(Arc<watch::Sender<State>>);

impl Default for ScriptedBackends {
    fn default() -> Self {
        Self(Arc::new(watch::Sender::new(State::default())))
    }
}

impl ScriptedBackends {
    /// Serves a listener until the runtime ends, with TLS if there is an acceptor.
    ///
    /// # Errors
    /// Returns an error if the listener is blocking.
    pub fn serve(
        &self,
        name: &str,
        listener: std::net::TcpListener,
        tls: Option<TlsAcceptor>,
    ) -> Result<()> {
        let listener = TcpListener::from_std(listener)?;
        let (backends, name) = (self.clone(), name.to_owned());
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (backends, name, tls) = (backends.clone(), name.clone(), tls.clone());
                tokio::spawn(async move { backends.accepted(name, stream, tls).await });
            }
        });
        Ok(())
    }

    /// Starts a script and discards the results of the previous one.
    pub fn begin(&self, script: Script) {
        self.0.send_modify(|state| {
            *state = State {
                script,
                generation: state.generation + 1,
                ..State::default()
            }
        });
    }

    /// Waits until the script has ended for all requests, and returns the requests since
    /// [`Self::begin`].
    pub async fn finish(&self) -> Vec<Seen> {
        let _ = self.wait_for(|state| state.active == 0).await;
        self.0.borrow().seen.clone()
    }

    /// Records bytes that the client has received.
    pub fn client_got(&self, bytes: &[u8]) {
        self.0
            .send_modify(|state| state.client.extend_from_slice(bytes));
    }

    /// Waits until a backend has received `text` in a request line, a body or a tunnel.
    ///
    /// # Errors
    /// Returns an error after [`STEP_TIMEOUT`].
    pub async fn backend_has(&self, text: &str) -> Result<()> {
        let has = |seen: &Seen| {
            seen.line.contains(text) || contains(&seen.body, text) || contains(&seen.tunnel, text)
        };
        self.wait_for(|state| state.seen.iter().any(has))
            .await
            .with_context(|| format!("no backend received {text:?}"))
    }

    async fn client_has(&self, text: &str) -> Result<()> {
        self.wait_for(|state| contains(&state.client, text))
            .await
            .with_context(|| format!("the client did not receive {text:?}"))
    }

    async fn wait_for(&self, is: impl FnMut(&State) -> bool) -> Result<()> {
        let mut changes = self.0.subscribe();
        timeout(STEP_TIMEOUT, changes.wait_for(is))
            .await
            .context("timed out")?
            .map(|_| ())?;
        Ok(())
    }

    async fn accepted(&self, at: String, stream: TcpStream, tls: Option<TlsAcceptor>) {
        let _ = stream.set_nodelay(true);
        let Some(tls) = tls else {
            let mut preface = [0; 4];
            // HTTP/2 without TLS is detected by its preface (RFC 9113 section 3.4).
            if matches!(stream.peek(&mut preface).await, Ok(4)) && &preface == b"PRI " {
                return h2::serve(self, at, stream, None).await;
            }
            return self.connection(at, stream, None).await;
        };
        // A failed handshake records no request.
        let Ok(stream) = tls.accept(stream).await else {
            return;
        };
        let (_, session) = stream.get_ref();
        let handshake = Some(Handshake {
            client: session
                .peer_certificates()
                .and_then(|chain| common_name(chain.first()?)),
            server_name: session.server_name().map(str::to_owned),
        });
        if session.alpn_protocol() == Some(b"h2") {
            return h2::serve(self, at, stream, handshake).await;
        }
        self.connection(at, stream, handshake).await;
    }

    /// Runs the script for one request after the other, until it closes the connection or the
    /// other side does.
    async fn connection<S>(&self, at: String, stream: S, tls: Option<Handshake>)
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let mut wire = Wire::new(stream);
        while let Ok(Some(head)) = wire.head().await {
            let exchange = Exchange::begin(
                self,
                Seen {
                    at: at.clone(),
                    tls: tls.clone(),
                    line: head.line.clone(),
                    fields: head.fields.clone(),
                    ..Seen::default()
                },
            );
            match exchange.run(&mut wire, &head).await {
                Ok(true) => {}
                Ok(false) => return,
                Err(error) => {
                    exchange.seen(|seen| seen.end = Some(format!("{error:#}")));
                    return;
                }
            }
        }
    }
}

/// Run of the script for one request.
struct Exchange {
    backends: ScriptedBackends,
    generation: u64,
    index: usize,
    script: Script,
}

impl Exchange {
    fn begin(backends: &ScriptedBackends, seen: Seen) -> Self {
        let mut exchange = Self {
            backends: backends.clone(),
            generation: 0,
            index: 0,
            script: Script::default(),
        };
        backends.0.send_modify(|state| {
            (exchange.generation, exchange.index, exchange.script) =
                (state.generation, state.seen.len(), state.script.clone());
            state.seen.push(seen);
            state.active += 1;
        });
        exchange
    }

    /// Updates the recorded request, unless another script has started.
    fn seen(&self, report: impl FnOnce(&mut Seen)) {
        self.backends.0.send_modify(|state| {
            if state.generation == self.generation {
                report(&mut state.seen[self.index]);
            }
        });
    }

    /// Runs the script. Returns true if the connection stays open.
    async fn run<S: AsyncRead + AsyncWrite + Unpin>(
        &self,
        wire: &mut Wire<S>,
        head: &Head,
    ) -> Result<bool> {
        if self.script.reads_body_first() {
            self.body(wire, head).await?;
        }
        for step in &self.script.steps {
            match step {
                Step::Body => self.body(wire, head).await?,
                Step::ClientHas(text) => self.backends.client_has(text).await?,
                Step::Glance(text) | Step::Blink(text) => {
                    let moment = if matches!(step, Step::Blink(_)) {
                        IMMEDIATE / 10
                    } else {
                        IMMEDIATE
                    };
                    let got = timeout(moment, self.backends.client_has(text))
                        .await
                        .is_ok_and(|has| has.is_ok());
                    self.seen(|seen| seen.glance = Some(got));
                }
                Step::WebSocket => {
                    let accept =
                        websocket_accept(head.value("sec-websocket-key").unwrap_or_default());
                    let head = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket";
                    wire.send(
                        format!("{head}\r\nSec-WebSocket-Accept: {accept}\r\n\r\n").as_bytes(),
                    )
                    .await?;
                }
                Step::Read(text) => {
                    while !self.tunnel_has(text) {
                        anyhow::ensure!(
                            self.tunnel(wire).await?,
                            "the tunnel ended before {text:?}"
                        );
                    }
                }
                Step::ReadToEnd => while self.tunnel(wire).await? {},
                Step::Echo => {
                    while let Some(bytes) = wire.some().await? {
                        self.seen(|seen| seen.tunnel.extend_from_slice(&bytes));
                        wire.send(&bytes).await?;
                    }
                }
                Step::Hold => {
                    // Reads further bytes, but waits only for the end.
                    while matches!(wire.some().await, Ok(Some(_))) {}
                    self.seen(|seen| seen.end = Some("the proxy disconnected".into()));
                    return Ok(false);
                }
                Step::HalfClose => wire.stream.shutdown().await?,
                Step::Close => {
                    let _ = wire.stream.shutdown().await;
                    return Ok(false);
                }
                other => {
                    for piece in other.pieces()? {
                        wire.send(&piece).await?;
                    }
                    if other.must_close() {
                        let _ = wire.stream.shutdown().await;
                        return Ok(false);
                    }
                }
            }
        }
        Ok(true)
    }

    async fn body<S: AsyncRead + AsyncWrite + Unpin>(
        &self,
        wire: &mut Wire<S>,
        head: &Head,
    ) -> Result<()> {
        let trailers = wire
            .body(head, |bytes| {
                self.seen(|seen| seen.body.extend_from_slice(bytes));
            })
            .await?;
        self.seen(|seen| seen.trailers = trailers);
        Ok(())
    }

    async fn tunnel<S: AsyncRead + AsyncWrite + Unpin>(&self, wire: &mut Wire<S>) -> Result<bool> {
        let Some(bytes) = wire.some().await? else {
            return Ok(false);
        };
        self.seen(|seen| seen.tunnel.extend_from_slice(&bytes));
        Ok(true)
    }

    fn tunnel_has(&self, text: &str) -> bool {
        let state = self.backends.0.borrow();
        state.generation == self.generation && contains(&state.seen[self.index].tunnel, text)
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        self.backends.0.send_modify(|state| {
            if state.generation == self.generation {
                state.active -= 1;
            }
        });
    }
}

pub fn contains(bytes: &[u8], text: &str) -> bool {
    text.is_empty()
        || bytes
            .windows(text.len())
            .any(|window| window == text.as_bytes())
}

/// Returns the `Sec-WebSocket-Accept` for a key (RFC 6455 section 4.2.2).
pub fn websocket_accept(key: &str) -> String {
    let text = [key, "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"].concat();
    let sum = aws_lc_rs::digest::digest(
        &aws_lc_rs::digest::SHA1_FOR_LEGACY_USE_ONLY,
        text.as_bytes(),
    );
    base64::engine::general_purpose::STANDARD.encode(sum.as_ref())
}

fn common_name(certificate: &[u8]) -> Option<String> {
    let (_, certificate) = x509_parser::parse_x509_certificate(certificate).ok()?;
    certificate
        .subject()
        .iter_common_name()
        .next()?
        .as_str()
        .ok()
        .map(str::to_owned)
}
