//! Interval of TCP keep-alive probes on connections to API servers.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;

use crate::apiservers::{Connect, Credential, ServerConfig};
use crate::http::Stream;

/// Connector whose connections have their own interval.
#[derive(Debug)]
struct KeepaliveConnector {
    connector: Arc<dyn Connect>,
    time: Duration,
}

/// Sets the interval of the connections to a server.
pub(super) fn with_keepalive(server: &mut ServerConfig, time: Duration) {
    server.connector = Arc::new(KeepaliveConnector {
        connector: Arc::clone(&server.connector),
        time,
    });
}

impl Connect for KeepaliveConnector {
    fn connect(&self, credential: Credential, http2: bool) -> BoxFuture<'_, io::Result<Stream>> {
        Box::pin(async move {
            let stream = self.connector.connect(credential, http2).await?;
            stream.set_keepalive(self.time)?;
            Ok(stream)
        })
    }
}
