//! A bastion with the manifests source, and an endpoint that a test plays byte by byte.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;
use tokio_rustls::client::TlsStream;

use super::bastion::Bastion;
use super::client::{Client, Response, tls, tls_with_alpn};
use super::pki::Ca;

/// Bastion with one pod, whose port is a listener of the test.
pub struct TestBed {
    pub bastion: Bastion,
    pub backend: TcpListener,
    pub folder: tempfile::TempDir,
    pub ca: Ca,
}

/// Objects of the test bed. `PORT` is the port of the listener.
const MANIFESTS: &str = include_str!("../fixtures/test_bed.yaml");

/// Path of the pod.
pub const PREFIX: &str = "/api/v1/namespaces/default/pods/p/proxy";

impl TestBed {
    pub async fn new() -> Result<Self> {
        Self::with(&[]).await
    }

    pub async fn with(flags: &[&str]) -> Result<Self> {
        Self::serving("", flags).await
    }

    /// Starts a test bed with further settings of `serving`.
    pub async fn serving(settings: &str, flags: &[&str]) -> Result<Self> {
        Self::configured(settings, "", flags).await
    }

    /// Starts a test bed with settings of `upstream`.
    pub async fn upstream(settings: &str) -> Result<Self> {
        Self::configured("", settings, &[]).await
    }

    /// Starts a test bed with further sections of the configuration.
    pub async fn with_sections(sections: &str) -> Result<Self> {
        Self::start("", "", sections, &[]).await
    }

    /// Starts a test bed with further settings of `serving` and `upstream`.
    pub async fn configured(settings: &str, upstream: &str, flags: &[&str]) -> Result<Self> {
        Self::start(settings, upstream, "", flags).await
    }

    async fn start(settings: &str, upstream: &str, sections: &str, flags: &[&str]) -> Result<Self> {
        kube_bastion::tls::install_provider();
        let folder = tempfile::tempdir()?;
        let at = |name: &str| folder.path().join(name);
        let backend = TcpListener::bind("127.0.0.1:0").await?;
        let port = backend.local_addr()?.port();
        let ca = Ca::new(folder.path(), "ca")?;
        let serving = ca.server(folder.path(), "bastion", &["localhost"])?;
        std::fs::create_dir(at("manifests"))?;
        std::fs::write(
            at("manifests/all.yaml"),
            MANIFESTS.replace("PORT", &port.to_string()),
        )?;
        std::fs::write(
            at("tokens"),
            "t,jane,1,\"system:masters\"\nr,reader,2\nf,forwarder,3\n",
        )?;
        let config = format!(
            "apiVersion: kube-bastion.dev/v1alpha1
kind: BastionConfiguration
serving: {{tlsCertFile: {}, tlsPrivateKeyFile: {}, {settings}}}
source: {{type: manifests, manifests: {{directory: {}, tokenAuthFile: {}}}}}
targets: {{allowLoopback: true}}
upstream: {{{upstream}}}
{sections}",
            serving.certificate.display(),
            serving.key.display(),
            at("manifests").display(),
            at("tokens").display()
        );
        std::fs::write(at("config.yaml"), config)?;
        let file = at("config.yaml").display().to_string();
        let bastion = Bastion::start(&[&["--config", &*file], flags].concat())?;
        bastion.ready().await?;
        Ok(Self {
            bastion,
            backend,
            folder,
            ca,
        })
    }

    /// Returns the number of descriptors of an idle bastion with one worker. A worker may start, and
    /// open its own descriptors, after the bastion is ready: it serves a request first.
    pub async fn idle_descriptors(&self) -> Result<usize> {
        self.get("/").await?;
        self.bastion.descriptors()
    }

    pub async fn client(&self) -> Result<TlsStream<TcpStream>> {
        tls(self.bastion.secure, &self.ca.file, None).await
    }

    /// Address of the plain HTTP port, if it is enabled.
    pub fn insecure(&self) -> Result<SocketAddr> {
        let log = self.bastion.log();
        let (_, rest) = log
            .split_once(r#""insecure":""#)
            .context("the port is logged")?;
        let (address, _) = rest.split_once('"').context("a JSON string")?;
        Ok(address.parse()?)
    }

    /// Sends a GET on a connection of its own, and reads the complete response.
    pub async fn get(&self, path: &str) -> Result<Response> {
        Client::connect(self.bastion.secure, &self.ca.file, Some("t"), None)
            .await?
            .get(path)
            .await
    }

    /// Opens a connection with HTTP/2.
    pub async fn http2_client(&self) -> Result<TlsStream<TcpStream>> {
        tls_with_alpn(self.bastion.secure, &self.ca.file, None, &[b"h2"]).await
    }

    /// Sends a request to the pod. `line` is the method and the path below the pod; `rest` follows
    /// the `Host` and `Authorization` headers.
    pub async fn request(&self, line: &str, rest: &str) -> Result<TlsStream<TcpStream>> {
        let mut client = self.client().await?;
        let (method, path) = line.split_once(' ').context("METHOD /path")?;
        let head = format!(
            "{method} {PREFIX}{path} HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer t\r\n{rest}"
        );
        client.write_all(head.as_bytes()).await?;
        // The TLS session may have buffered the end of a large head.
        client.flush().await?;
        Ok(client)
    }

    /// Accepts the next connection to the endpoint. Returns it with the head of its first request.
    ///
    /// # Errors
    /// Returns an error if they do not arrive within 30 seconds.
    pub async fn accept(&self) -> Result<(TcpStream, String)> {
        let accepting = async {
            let (mut stream, _) = self.backend.accept().await?;
            let head = read_until(&mut stream, "\r\n\r\n").await?;
            Ok((stream, head))
        };
        let accepted = timeout(Duration::from_secs(30), accepting).await;
        accepted.context("no request reaches the endpoint")?
    }
}

/// Reads up to and including `end`.
pub async fn read_until(stream: &mut (impl AsyncReadExt + Unpin), end: &str) -> Result<String> {
    let reading = async {
        let mut all = String::new();
        let mut byte = [0];
        while !all.ends_with(end) {
            ensure!(
                stream.read(&mut byte).await? == 1,
                "the stream ended before {end:?}: {all:?}"
            );
            all.push(byte[0].into());
        }
        Ok(all)
    };
    // With its many reads, it would use up the budget of the task in tokio. The next write to a TLS
    // stream would then stay in the session until a flush.
    tokio::task::unconstrained(reading).await
}

/// Reads until the other side closes, cleanly or not.
pub async fn read_all(stream: &mut (impl AsyncReadExt + Unpin)) -> String {
    let mut all = Vec::new();
    let _ = stream.read_to_end(&mut all).await;
    String::from_utf8_lossy(&all).into_owned()
}
