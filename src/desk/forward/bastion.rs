//! Tunnels through a bastion: CONNECT of HTTP/2 (RFC 9113 section 8.5), and CONNECT-UDP (RFC 9298).
//!
//! One connection carries the tunnels. A further one is opened only when it has as many streams as
//! the bastion accepts. A connection that ends is replaced when the next tunnel is opened, which
//! waits for it; tunnels of other connections are not affected.

mod link;

use std::cell::{Cell, RefCell};
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderValue, StatusCode};
use tokio::sync::Mutex;
use tokio::time::{Instant, sleep_until, timeout};

use crate::apiservers::ServerConfig;
use crate::desk::credentials::{Credentials, CredentialsError, Presented};
use crate::desk::targets::Protocol;
use link::{Answer, Link};
pub use link::{Destination, LinkError, Refusal, TunnelStream};

/// Time to open a tunnel, with a new connection to the bastion if the old one is lost. After a 401 or
/// 407, there is a second time. Longer than the bastion's own timeout for endpoints
/// (`upstream.dialTimeout`, 30 s by default), so that its answer arrives.
const OPEN_TIMEOUT: Duration = Duration::from_secs(40);
/// Pause after a failed connection to the bastion, which doubles up to the maximum.
const MIN_PAUSE: Duration = Duration::from_millis(100);
const MAX_PAUSE: Duration = Duration::from_secs(5);
/// Maximum number of connections to the bastion, each with up to 100 tunnels.
const MAX_LINKS: usize = 8;
/// Maximum number of connections on which one tunnel is tried.
const MAX_TRIES: usize = 3;

/// Failure to open a tunnel.
#[derive(Debug, thiserror::Error)]
pub enum TunnelError {
    #[error(transparent)]
    Login(#[from] CredentialsError),
    #[error("{server} cannot be reached: {source}")]
    Unreachable { server: String, source: LinkError },
    #[error("{server} has not answered within {} s", OPEN_TIMEOUT.as_secs())]
    Timeout { server: String },
    #[error("{0}")]
    Refused(Refusal),
    #[error("{server} offers no UDP tunnels over HTTP/2 (RFC 8441, RFC 9298)")]
    NoUdp { server: String },
}

/// Connections to a bastion.
#[derive(Debug)]
pub struct Tunnels {
    servers: Vec<ServerConfig>,
    credentials: Arc<Credentials>,
    links: RefCell<Vec<Arc<Link>>>,
    /// Locked while a connection is opened.
    dialing: Mutex<()>,
    /// Server that was reached last.
    current: Cell<usize>,
    /// Server to connect to.
    next: Cell<usize>,
    pause: Cell<Duration>,
    /// Time before which no connection is tried.
    not_before: Cell<Option<Instant>>,
    /// Reason of the last failed connection.
    failure: RefCell<Option<LinkError>>,
}

impl Tunnels {
    pub fn new(servers: Vec<ServerConfig>, credentials: Arc<Credentials>) -> Self {
        Self {
            servers,
            credentials,
            links: RefCell::default(),
            dialing: Mutex::default(),
            current: Cell::new(0),
            next: Cell::new(0),
            pause: Cell::new(MIN_PAUSE),
            not_before: Cell::default(),
            failure: RefCell::default(),
        }
    }

    /// Returns the name of the bastion.
    pub fn server(&self) -> &str {
        let server = self.servers.get(self.current.get());
        server.map_or("", |server| &server.name)
    }

    /// Connects to the bastion, without a second try.
    ///
    /// # Errors
    /// [`TunnelError`]
    pub async fn check(&self) -> Result<(), TunnelError> {
        if self.credentials.may_obtain_certificate() {
            self.credentials.current().await?;
        }
        let connected = timeout(OPEN_TIMEOUT, self.dial()).await;
        let link = connected.map_err(|_| self.timed_out())?;
        let link = link.map_err(|source| self.unreachable(source))?;
        self.links.borrow_mut().push(link);
        Ok(())
    }

    /// Opens a tunnel, and waits for a connection to the bastion if there is none.
    /// After a 401 or 407 the credentials are renewed once.
    ///
    /// # Errors
    /// [`TunnelError`]
    pub async fn open(
        &self,
        protocol: Protocol,
        authority: &str,
    ) -> Result<TunnelStream, TunnelError> {
        let destination = Destination {
            protocol,
            authority,
        };
        // Without the time of a credential plugin: the user may be logging in.
        let ask = async |presented: &Presented| {
            let asked = timeout(
                OPEN_TIMEOUT,
                self.ask(destination, presented.authorization()),
            );
            asked.await.unwrap_or_else(|_| {
                let failure = self.failure.borrow_mut().take();
                Err(match failure {
                    Some(source) => self.unreachable(source),
                    None => self.timed_out(),
                })
            })
        };
        let answer = self.credentials.with_renewal(
            ask,
            |answer| matches!(answer, Answer::Refused(refusal) if refusal.is_login()),
        );
        match answer.await? {
            Answer::Open(stream) => Ok(stream),
            Answer::Refused(refusal) => Err(TunnelError::Refused(refusal)),
            Answer::NoUdp => {
                let server = self.server().to_owned();
                Err(TunnelError::NoUdp { server })
            }
        }
    }

    /// Asks for a tunnel, on another connection if one fails.
    async fn ask(
        &self,
        destination: Destination<'_>,
        authorization: Option<&HeaderValue>,
    ) -> Result<Answer, TunnelError> {
        let (mut tries, mut drained) = (0, 0);
        loop {
            let link = self.link().await;
            let impersonation = self.credentials.impersonation();
            let opened = link.open(destination, authorization, impersonation);
            match opened.await {
                Ok(answer) => return Ok(answer),
                // Not a failure of the connection.
                Err(error @ LinkError::Authority(_)) => return Err(self.unreachable(error)),
                // All of the connections to a replica end at once.
                Err(LinkError::Draining(_)) if drained < MAX_LINKS => {
                    drained += 1;
                    self.discard(&link);
                }
                // Nothing was sent through the tunnel yet.
                Err(error) => {
                    tracing::debug!(%error, "a connection to the bastion failed");
                    tries += 1;
                    self.discard(&link);
                    if tries >= MAX_TRIES {
                        return Err(self.unreachable(error));
                    }
                }
            }
        }
    }

    /// Returns a connection with room for a stream. Opens one if there is none, however long it
    /// takes. Concurrent calls share a new connection.
    async fn link(&self) -> Arc<Link> {
        loop {
            if let Some(link) = self.pick() {
                return link;
            }
            let _dialing = self.dialing.lock().await;
            if let Some(link) = self.pick() {
                return link;
            }
            if let Some(time) = self.not_before.get() {
                sleep_until(time).await;
            }
            match self.dial().await {
                Ok(link) => {
                    self.pause.set(MIN_PAUSE);
                    self.not_before.set(None);
                    self.failure.borrow_mut().take();
                    self.links.borrow_mut().push(link);
                }
                Err(error) => {
                    tracing::debug!(%error, "cannot connect to the bastion");
                    self.failure.replace(Some(error));
                    // Clients of a bastion that restarts do not return at the same time.
                    let pause = self.pause.get().mul_f64(0.75 + fastrand::f64() / 2.0);
                    self.not_before.set(Some(Instant::now() + pause));
                    self.pause.set((self.pause.get() * 2).min(MAX_PAUSE));
                }
            }
        }
    }

    /// Returns the connection with the most streams that has room for another. With the maximum
    /// number of connections, any of them: its streams wait.
    fn pick(&self) -> Option<Arc<Link>> {
        let generation = self.credentials.generation();
        let mut links = self.links.borrow_mut();
        // Tunnels keep their own connection, also after a change of the client certificate.
        links.retain(|link| link.is_open() && link.generation == generation);
        let free = links.iter().filter(|link| link.has_room());
        let found = free.max_by_key(|link| link.streams());
        let is_full = links.len() >= MAX_LINKS;
        let shortest = || links.iter().min_by_key(|link| link.streams());
        found.or_else(|| shortest().filter(|_| is_full)).cloned()
    }

    fn discard(&self, discarded: &Arc<Link>) {
        let mut links = self.links.borrow_mut();
        links.retain(|link| !Arc::ptr_eq(link, discarded));
    }

    /// Connects to the server used last, and to the next one if that fails.
    async fn dial(&self) -> Result<Arc<Link>, LinkError> {
        let mut failure = LinkError::Closed;
        for _ in 0..self.servers.len() {
            let index = self.next.get();
            match Link::connect(&self.servers[index], self.credentials.generation()).await {
                Ok(link) => {
                    self.current.set(index);
                    return Ok(Arc::new(link));
                }
                Err(error) => failure = error,
            }
            // Also for the next call, if the time of this one ends before all have been tried.
            self.next.set((index + 1) % self.servers.len());
        }
        Err(failure)
    }

    fn unreachable(&self, source: LinkError) -> TunnelError {
        let server = self.server().to_owned();
        TunnelError::Unreachable { server, source }
    }

    fn timed_out(&self) -> TunnelError {
        let server = self.server().to_owned();
        TunnelError::Timeout { server }
    }
}

impl TunnelError {
    /// Returns the kind of the failure, of which one message is enough.
    pub fn kind(&self) -> String {
        match self {
            Self::Refused(refusal) => refusal.status.to_string(),
            Self::Login(_) => "login".to_owned(),
            Self::NoUdp { .. } => "udp".to_owned(),
            Self::Unreachable { .. } | Self::Timeout { .. } => "unreachable".to_owned(),
        }
    }

    /// Returns what helps against a refusal of a bastion.
    pub fn remedy(&self) -> &'static str {
        let Self::Refused(refusal) = self else {
            return "";
        };
        match refusal.status {
            StatusCode::UNAUTHORIZED | StatusCode::PROXY_AUTHENTICATION_REQUIRED => {
                "; log in again"
            }
            StatusCode::FORBIDDEN if refusal.message.contains("services/portforward") => {
                "; permission to create pods/portforward in the namespace is also sufficient"
            }
            StatusCode::METHOD_NOT_ALLOWED | StatusCode::NOT_IMPLEMENTED => {
                "; the server offers no tunnels; use --via=api-server"
            }
            StatusCode::BAD_GATEWAY => {
                "; what a pod binds to its own loopback address cannot be reached through a \
                 bastion: use --via=api-server for it"
            }
            _ => "",
        }
    }
}

impl Refusal {
    /// Returns true if other credentials may be accepted.
    fn is_login(&self) -> bool {
        matches!(
            self.status,
            StatusCode::UNAUTHORIZED | StatusCode::PROXY_AUTHENTICATION_REQUIRED
        )
    }
}

#[cfg(test)]
mod tests;
