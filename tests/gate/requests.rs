//! Scripted Kubernetes API, backends on loopback, and the client of the gate.

use std::net::SocketAddr;

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use http::request::Builder;
use http::{Request, header};
use http_body_util::{BodyExt, Empty};
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::support::bastion::Bastion;
use crate::support::client::tls_with_alpn;
use crate::support::pki::Ca;
use crate::support::scripted_api::{ALLOWED_TOKEN, ScriptedApi};

const PATH: &str = "/api/v1/namespaces/default/services/s/proxy/path?query=1";
const RESPONSE: &[u8] =
    b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 6\r\n\r\nhello\n";

#[derive(Clone, Copy, Debug)]
pub enum Version {
    Http1,
    Http2,
}

/// Everything around the bastion.
pub struct Fixture {
    folder: TempDir,
    ca: Ca,
    _api: ScriptedApi,
}

impl Fixture {
    /// Starts the API and two backends, and writes the configuration.
    ///
    /// # Errors
    /// Returns an error if no loopback port is free.
    pub async fn start() -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let mut objects = vec![
            json!({"kind": "Pod", "apiVersion": "v1", "metadata": {"name": "p", "namespace": "default"},
                   "status": {"podIPs": [{"ip": "127.0.0.1"}]}}),
            json!({"kind": "Service", "apiVersion": "v1", "metadata": {"name": "s", "namespace": "default"},
                   "spec": {"ports": [{"port": 80}]}}),
        ];
        for index in 0..2 {
            objects.push(slice(index, backend().await?.port()));
        }
        let api = ScriptedApi::serving(objects).await?;
        let ca = Ca::new(folder.path(), "ca")?;
        let serving = ca.server(folder.path(), "bastion", &["localhost"])?;
        let config = format!(
            "apiVersion: kube-bastion.dev/v1alpha1
kind: BastionConfiguration
serving: {{tlsCertFile: {}, tlsPrivateKeyFile: {}, insecureListenAddress: '127.0.0.1:0', workers: 1}}
source: {{type: kubernetes, kubernetes: {{kubeconfig: {}}}}}
targets: {{allowLoopback: true}}
# No refresh within a run.
authentication: {{tokenReview: {{cacheTTL: 1h}}}}
authorization: {{allowedCacheTTL: 1h}}
",
            serving.certificate.display(),
            serving.key.display(),
            api.kubeconfig(folder.path())?.display()
        );
        std::fs::write(folder.path().join("config.yaml"), config)?;
        Ok(Self {
            folder,
            ca,
            _api: api,
        })
    }

    /// Flags of the bastion.
    pub fn flags(&self) -> Vec<String> {
        let file = self.folder.path().join("config.yaml");
        vec![format!("--config={}", file.display())]
    }

    /// Sends requests on one connection, each after the response to the previous one.
    ///
    /// # Errors
    /// Returns an error if a response is not 200.
    pub async fn send(&self, bastion: &Bastion, version: Version, count: u32) -> Result<()> {
        match version {
            Version::Http1 => {
                let stream = TcpStream::connect(insecure_address(bastion)?).await?;
                stream.set_nodelay(true)?;
                let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
                tokio::spawn(connection);
                for _ in 0..count {
                    let request = Request::get(PATH).header(header::HOST, "bastion.test");
                    sender.ready().await?;
                    check(sender.send_request(complete(request)?).await?).await?;
                }
            }
            Version::Http2 => {
                let ca = &self.ca.file;
                let stream = tls_with_alpn(bastion.secure, ca, None, &[b"h2"]).await?;
                let io = TokioIo::new(stream);
                let (mut sender, connection) = http2::handshake(TokioExecutor::new(), io).await?;
                tokio::spawn(connection);
                for _ in 0..count {
                    let request = Request::get(format!("https://bastion.test{PATH}"));
                    sender.ready().await?;
                    check(sender.send_request(complete(request)?).await?).await?;
                }
            }
        }
        Ok(())
    }
}

/// Adds the headers of a usual client. The audit id is constant, so that no random text changes
/// the cost.
fn complete(request: Builder) -> Result<Request<Empty<Bytes>>> {
    Ok(request
        .header(header::AUTHORIZATION, format!("Bearer {ALLOWED_TOKEN}"))
        .header(header::USER_AGENT, "gate/1.0")
        .header(header::ACCEPT, "*/*")
        .header("audit-id", "00000000-0000-4000-8000-000000000000")
        .body(Empty::new())?)
}

async fn check(response: http::Response<hyper::body::Incoming>) -> Result<()> {
    let status = response.status();
    let body = response.into_body().collect().await?.to_bytes();
    ensure!(
        status == 200,
        "{status}: {}",
        String::from_utf8_lossy(&body)
    );
    ensure!(&*body == b"hello\n", "{body:?}");
    Ok(())
}

fn insecure_address(bastion: &Bastion) -> Result<SocketAddr> {
    let log = bastion.log();
    let address = log.lines().find_map(|line| {
        let event: Value = serde_json::from_str(line).ok()?;
        event["insecure"].as_str()?.parse().ok()
    });
    address.context("the log names the plain port")
}

/// Starts a server that answers each request with [`RESPONSE`].
async fn backend() -> Result<SocketAddr> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(answer(stream));
        }
    });
    Ok(address)
}

/// Serves a connection whose requests have no body and are not pipelined.
async fn answer(mut stream: TcpStream) -> Result<()> {
    stream.set_nodelay(true)?;
    let mut head = Vec::with_capacity(4096);
    while stream.read_buf(&mut head).await? > 0 {
        if head.ends_with(b"\r\n\r\n") {
            head.clear();
            stream.write_all(RESPONSE).await?;
        }
    }
    Ok(())
}

fn slice(index: u32, port: u16) -> Value {
    json!({
        "kind": "EndpointSlice",
        "apiVersion": "discovery.k8s.io/v1",
        "metadata": {
            "name": format!("s-{index}"),
            "namespace": "default",
            "labels": {"kubernetes.io/service-name": "s"},
        },
        "addressType": "IPv4",
        "ports": [{"name": "", "port": port}],
        "endpoints": [{
            "addresses": ["127.0.0.1"],
            "targetRef": {"kind": "Pod", "namespace": "default", "name": "p"},
        }],
    })
}
