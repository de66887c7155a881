//! Connections to API servers and pods.

use std::cell::Cell;
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use futures::future::LocalBoxFuture;

use http::header;

use super::api::ApiError;
use super::client::Dial;
use super::pods::NoPod;
use crate::apiservers::{Credential, ServerConfig};
use crate::desk::credentials::Credentials;
use crate::desk::portforward::OpenError;
use crate::desk::portforward::session::StreamError;
use crate::http::{RequestHead, RequestTarget, Stream};

/// Maximum time to connect to a server, proxies and TLS included.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(20);
/// Idle time of connections to API servers and bastions, which keep them for 90 s.
const SERVER_IDLE_TIMEOUT: Duration = Duration::from_mins(1);

/// Failure to open a connection.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    #[error("cannot connect to {server}: {source}")]
    Server { server: String, source: io::Error },
    #[error("cannot connect to {server}: no connection within {} s", CONNECT_TIMEOUT.as_secs())]
    Timeout { server: String },
    #[error(transparent)]
    NoPod(#[from] NoPod),
    #[error(transparent)]
    Api(Box<ApiError>),
    #[error(transparent)]
    Session(#[from] OpenError),
    #[error("cannot connect to the pod: {0}")]
    Pod(#[from] StreamError),
}

impl From<ApiError> for DialError {
    fn from(error: ApiError) -> Self {
        Self::Api(Box::new(error))
    }
}

/// Opens connections to the servers of a context: to the one used last, and to the next one if that
/// fails.
#[derive(Debug)]
pub struct ServerDial {
    servers: Vec<ServerConfig>,
    credentials: Arc<Credentials>,
    current: Cell<usize>,
}

impl ServerDial {
    pub fn new(servers: Vec<ServerConfig>, credentials: Arc<Credentials>) -> Self {
        Self {
            servers,
            credentials,
            current: Cell::new(0),
        }
    }

    /// Sets the target and the `Host` that the URL of the current server requires. `path` includes
    /// the query.
    pub fn address(&self, head: &mut RequestHead, path: &str) {
        let Some(server) = self.servers.get(self.current.get()) else {
            return;
        };
        let path = [&*server.path, path].concat();
        if let Ok(target) = RequestTarget::parse(&head.method, path.as_bytes()) {
            head.target = target;
        }
        if let Some(host) = &server.host {
            head.headers.insert(header::HOST, host.clone());
        }
    }

    pub fn servers(&self) -> &[ServerConfig] {
        &self.servers
    }

    /// Returns the name of the current server.
    pub fn name(&self) -> &str {
        let server = self.servers.get(self.current.get());
        server.map_or("", |server| &server.name)
    }

    /// Returns true if the URLs of the servers have no path, as that of a bastion.
    pub fn are_roots(&self) -> bool {
        self.servers.iter().all(|server| server.path.is_empty())
    }

    async fn connect(&self) -> Result<Stream, DialError> {
        let count = self.servers.len();
        let mut failure = None;
        for index in (self.current.get()..)
            .take(count)
            .map(|index| index % count)
        {
            let server = &self.servers[index];
            let generation = self.credentials.generation();
            // HTTP/1.1 only: an upgrade and a request in absolute form need it.
            let connecting = server
                .connector
                .connect(Credential::Own { generation }, false);
            match tokio::time::timeout(CONNECT_TIMEOUT, connecting).await {
                Ok(Ok(stream)) => {
                    self.current.set(index);
                    return Ok(stream);
                }
                Ok(Err(source)) => {
                    let server = server.name.clone();
                    failure.get_or_insert(DialError::Server { server, source });
                }
                Err(_) => {
                    let server = server.name.clone();
                    failure.get_or_insert(DialError::Timeout { server });
                }
            }
        }
        Err(failure.unwrap_or_else(|| DialError::Timeout {
            server: "the API server".to_owned(),
        }))
    }
}

impl Dial for Rc<ServerDial> {
    fn dial(&self) -> LocalBoxFuture<'_, Result<Stream, DialError>> {
        self.connect().boxed_local()
    }

    fn idle_timeout(&self) -> Duration {
        SERVER_IDLE_TIMEOUT
    }

    fn generation(&self) -> u32 {
        self.credentials.generation()
    }
}
