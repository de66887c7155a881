//! Raw backends: each reports exactly what arrived and answers exactly the bytes that a script
//! says.
//!
//! All listeners of a test share one [`Stage`]. It holds the script that is played to the next
//! requests, what they brought, and what the client has got so far, so that either side can wait
//! for the other without sleeping.

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

/// How long anything may take: whoever waits longer waits in vain.
pub const PATIENCE: Duration = Duration::from_secs(5);

/// How long a script looks whether something has come through at once.
pub const MOMENT: Duration = Duration::from_millis(300);

/// One request as it arrived.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    /// The listener that got it.
    pub at: String,
    /// What was learned in the TLS handshake, where there was one.
    pub tls: Option<Handshake>,
    pub line: String,
    pub fields: Vec<Field>,
    pub body: Vec<u8>,
    pub trailers: Vec<Field>,
    /// What came behind an upgrade's head.
    pub tunnel: Vec<u8>,
    /// Whether the client had a text when the script looked.
    pub glance: Option<bool>,
    /// How the playing ended, where that tells anything.
    pub end: Option<String>,
}

/// What a client showed in its TLS handshake.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Handshake {
    /// The common name of the client's certificate.
    pub client: Option<String>,
    pub server_name: Option<String>,
}

#[derive(Debug, Default)]
struct Play {
    script: Script,
    /// Counts the scripts: what belongs to an earlier one is not reported.
    turn: u64,
    seen: Vec<Seen>,
    playing: usize,
    /// What the client has received.
    client: Vec<u8>,
}

/// The script in force and what came of it. Clones share it.
#[derive(Clone, Debug)]
pub struct Stage(Arc<watch::Sender<Play>>);

impl Default for Stage {
    fn default() -> Self {
        Self(Arc::new(watch::Sender::new(Play::default())))
    }
}

impl Stage {
    /// Serves what comes to a listener, over TLS where there is an acceptor, as long as the runtime
    /// runs.
    ///
    /// # Errors
    /// Where the listener is not one for asynchronous use.
    pub fn serve(
        &self,
        name: &str,
        listener: std::net::TcpListener,
        tls: Option<TlsAcceptor>,
    ) -> Result<()> {
        let listener = TcpListener::from_std(listener)?;
        let (stage, name) = (self.clone(), name.to_owned());
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (stage, name, tls) = (stage.clone(), name.clone(), tls.clone());
                tokio::spawn(async move { stage.accepted(name, stream, tls).await });
            }
        });
        Ok(())
    }

    /// Sets the script for what comes next, and forgets what came before.
    pub fn begin(&self, script: Script) {
        self.0.send_modify(|play| {
            *play = Play {
                script,
                turn: play.turn + 1,
                ..Play::default()
            }
        });
    }

    /// What arrived since [`Self::begin`], once all playing is over.
    pub async fn finish(&self) -> Vec<Seen> {
        let _ = self.wait_for(|play| play.playing == 0).await;
        self.0.borrow().seen.clone()
    }

    /// Tells that the client has received `bytes`.
    pub fn client_got(&self, bytes: &[u8]) {
        self.0
            .send_modify(|play| play.client.extend_from_slice(bytes));
    }

    /// Waits until a backend has received `text` in a line, a body or a tunnel.
    ///
    /// # Errors
    /// Where it does not come within [`PATIENCE`].
    pub async fn backend_has(&self, text: &str) -> Result<()> {
        let has = |seen: &Seen| {
            seen.line.contains(text) || contains(&seen.body, text) || contains(&seen.tunnel, text)
        };
        self.wait_for(|play| play.seen.iter().any(has))
            .await
            .with_context(|| format!("no backend got {text:?}"))
    }

    async fn client_has(&self, text: &str) -> Result<()> {
        self.wait_for(|play| contains(&play.client, text))
            .await
            .with_context(|| format!("the client got no {text:?}"))
    }

    async fn wait_for(&self, is: impl FnMut(&Play) -> bool) -> Result<()> {
        let mut changes = self.0.subscribe();
        timeout(PATIENCE, changes.wait_for(is))
            .await
            .context("waited in vain")?
            .map(|_| ())?;
        Ok(())
    }

    async fn accepted(&self, at: String, stream: TcpStream, tls: Option<TlsAcceptor>) {
        let _ = stream.set_nodelay(true);
        let Some(tls) = tls else {
            let mut preface = [0; 4];
            // HTTP/2 without TLS tells itself by its first bytes (RFC 9113 section 3.4).
            if matches!(stream.peek(&mut preface).await, Ok(4)) && &preface == b"PRI " {
                return h2::serve(self, at, stream, None).await;
            }
            return self.connection(at, stream, None).await;
        };
        // A handshake that fails brings no request, and that is what is reported.
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

    /// Plays the script to one request after the other, until it says to end or the other side
    /// ends.
    async fn connection<S>(&self, at: String, stream: S, tls: Option<Handshake>)
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let mut wire = Wire::new(stream);
        while let Ok(Some(head)) = wire.head().await {
            let part = Part::begin(
                self,
                Seen {
                    at: at.clone(),
                    tls: tls.clone(),
                    line: head.line.clone(),
                    fields: head.fields.clone(),
                    ..Seen::default()
                },
            );
            match part.play(&mut wire, &head).await {
                Ok(true) => {}
                Ok(false) => return,
                Err(error) => {
                    part.seen(|seen| seen.end = Some(format!("{error:#}")));
                    return;
                }
            }
        }
    }
}

/// One request while the script is played to it.
struct Part {
    stage: Stage,
    turn: u64,
    index: usize,
    script: Script,
}

impl Part {
    fn begin(stage: &Stage, seen: Seen) -> Self {
        let mut part = Self {
            stage: stage.clone(),
            turn: 0,
            index: 0,
            script: Script::default(),
        };
        stage.0.send_modify(|play| {
            (part.turn, part.index, part.script) =
                (play.turn, play.seen.len(), play.script.clone());
            play.seen.push(seen);
            play.playing += 1;
        });
        part
    }

    /// Reports, unless another script has begun meanwhile.
    fn seen(&self, report: impl FnOnce(&mut Seen)) {
        self.stage.0.send_modify(|play| {
            if play.turn == self.turn {
                report(&mut play.seen[self.index]);
            }
        });
    }

    /// Whether the connection goes on afterwards.
    async fn play<S: AsyncRead + AsyncWrite + Unpin>(
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
                Step::ClientHas(text) => self.stage.client_has(text).await?,
                Step::Glance(text) | Step::Blink(text) => {
                    let moment = if matches!(step, Step::Blink(_)) {
                        MOMENT / 10
                    } else {
                        MOMENT
                    };
                    let got = timeout(moment, self.stage.client_has(text))
                        .await
                        .is_ok_and(|has| has.is_ok());
                    self.seen(|seen| seen.glance = Some(got));
                }
                Step::WebSocket => {
                    let accept = accept(head.value("sec-websocket-key").unwrap_or_default());
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
                    // Whatever still comes is read: only the end is waited for.
                    while matches!(wire.some().await, Ok(Some(_))) {}
                    self.seen(|seen| seen.end = Some("the proxy hung up".into()));
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
        let play = self.stage.0.borrow();
        play.turn == self.turn && contains(&play.seen[self.index].tunnel, text)
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        self.stage.0.send_modify(|play| {
            if play.turn == self.turn {
                play.playing -= 1;
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

/// What answers a WebSocket's key.
fn accept(key: &str) -> String {
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
