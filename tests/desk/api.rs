//! A server in place of an API server, over TLS and HTTP/1.1, whose responses a test scripts.

use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use anyhow::Result;
use tempfile::TempDir;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::task::{AbortHandle, JoinSet};

use crate::support::pki::Ca;
use crate::support::raw::{Head, Wire};
use crate::support::tls_endpoint::TlsEndpoint;

/// Complete response with this body.
pub fn ok(body: &str) -> Vec<u8> {
    response("200 OK", body)
}

/// Complete response.
pub fn response(status: &str, body: &str) -> Vec<u8> {
    format!(
        "HTTP/1.1 {status}\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )
    .into_bytes()
}

/// Response of the script to a request and its body.
pub type Script = Arc<dyn Fn(&Head, &[u8]) -> Vec<u8> + Send + Sync>;

/// Running server. Dropping it closes its port and its connections.
pub struct Api {
    pub address: SocketAddr,
    requests: Arc<Mutex<Vec<Head>>>,
    task: AbortHandle,
}

impl Drop for Api {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Api {
    /// Starts a server with a certificate for `127.0.0.1`. After a 101, it returns what it receives.
    pub async fn start<F>(ca: &Ca, folder: &Path, script: F) -> Result<Self>
    where
        F: Fn(&Head, &[u8]) -> Vec<u8> + Send + Sync + 'static,
    {
        let endpoint = TlsEndpoint::start_http1(ca, folder, &["127.0.0.1"]).await?;
        let address = endpoint.address()?;
        let requests = Arc::<Mutex<Vec<Head>>>::default();
        let (seen, script): (_, Script) = (Arc::clone(&requests), Arc::new(script));
        let task = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                // A failed handshake is that of a client which has gone.
                if let Ok(stream) = endpoint.accept().await {
                    let (seen, script) = (Arc::clone(&seen), Arc::clone(&script));
                    connections.spawn(async move {
                        let _ = serve(stream, &seen, &script).await;
                    });
                }
            }
        });
        Ok(Self {
            address,
            requests,
            task: task.abort_handle(),
        })
    }

    /// Requests so far, without health checks.
    pub fn requests(&self) -> Vec<Head> {
        let requests = self.requests.lock().expect("no thread panics with them");
        let is_check = |head: &&Head| !head.line.starts_with("GET /readyz ");
        requests.iter().filter(is_check).cloned().collect()
    }
}

/// Serves the requests of a connection, one after the other.
pub async fn serve<S: AsyncRead + AsyncWrite + Unpin>(
    stream: S,
    seen: &Mutex<Vec<Head>>,
    script: &Script,
) -> Result<()> {
    let mut wire = Wire::new(stream);
    while let Some(head) = wire.head().await? {
        let mut body = Vec::new();
        wire.body(&head, |bytes| body.extend_from_slice(bytes))
            .await?;
        seen.lock()
            .expect("no thread panics with them")
            .push(head.clone());
        let response = if head.line.starts_with("GET /readyz ") {
            ok("ok")
        } else {
            script(&head, &body)
        };
        wire.send(&response).await?;
        if response.starts_with(b"HTTP/1.1 101") {
            while let Some(bytes) = wire.some().await? {
                wire.send(&bytes).await?;
            }
            return Ok(());
        }
    }
    Ok(())
}

/// Directory of a test, with a CA and a kubeconfig.
pub struct Desk {
    pub folder: TempDir,
    pub ca: Ca,
}

impl Desk {
    pub fn new() -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let ca = Ca::new(folder.path(), "ca")?;
        Ok(Self { folder, ca })
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Starts a server with a certificate of the CA.
    pub async fn api<F>(&self, script: F) -> Result<Api>
    where
        F: Fn(&Head, &[u8]) -> Vec<u8> + Send + Sync + 'static,
    {
        Api::start(&self.ca, self.folder.path(), script).await
    }

    /// Writes a kubeconfig for a server with a user in YAML. Returns its flag.
    pub fn kubeconfig(&self, server: &str, user: &str) -> Result<String> {
        let path = self.path("kubeconfig");
        let ca = self.ca.file.display();
        let text = format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: c\n\
             clusters: [{{name: c, cluster: {{server: '{server}', certificate-authority: {ca}}}}}]\n\
             contexts: [{{name: c, context: {{cluster: c, user: u}}}}]\n\
             users: [{{name: u, user: {user}}}]\n"
        );
        std::fs::write(&path, text)?;
        Ok(format!("--kubeconfig={}", path.display()))
    }

    /// Writes a credential plugin, whose tokens `token-1`, `token-2`, … have no expiry. Returns the
    /// user in YAML.
    pub fn plugin(&self) -> Result<String> {
        let plugin = self.path("plugin");
        let script = "#!/bin/sh\necho run >> \"$0.runs\"\n\
             n=$(wc -l < \"$0.runs\" | tr -d ' ')\n\
             echo '{\"apiVersion\":\"client.authentication.k8s.io/v1\",\"kind\":\"ExecCredential\",\
             \"status\":{\"token\":\"token-'$n'\"}}'\n";
        std::fs::write(&plugin, script)?;
        std::fs::set_permissions(&plugin, std::fs::Permissions::from_mode(0o755))?;
        Ok(format!(
            "{{exec: {{apiVersion: client.authentication.k8s.io/v1, command: {}, \
             interactiveMode: Never}}}}",
            plugin.display()
        ))
    }

    /// Number of runs of the plugin.
    pub fn plugin_runs(&self) -> Result<usize> {
        let runs = std::fs::read_to_string(self.path("plugin.runs"))?;
        Ok(runs.lines().count())
    }
}
