//! Backends of the demo's pods and nodes.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use axum::Router;
use axum::extract::Request;
use axum::routing::get;
use axum::serve::Listener;
use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use super::dashboard::{Dashboard, Switch, routes};
use super::{server, websocket};
use crate::drain::Drain;

/// Names of the endpoints of the service `web`.
pub(super) const WEB: [&str; 3] = ["web-1", "web-2", "web-3"];

/// Loopback ports of the backends.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ports {
    pub web: [u16; 3],
    pub secure: u16,
    pub whoami: u16,
    pub dashboard: u16,
    pub kubelets: [u16; 2],
}

/// Starts all backends. They run until the process ends, but a WebSocket ends with the drain. The
/// page names the file with its permissions.
pub(super) async fn start(
    certificate: &Path,
    key: &Path,
    permissions_file: &Path,
    drain: &Drain,
) -> Result<Ports> {
    let config = tls_config(certificate, key)?;
    let hello =
        |name: &'static str| Router::new().fallback(async move || format!("hello from {name}\n"));
    let kubelet = |name: &'static str| {
        hello(name).route(
            "/healthz",
            get(async move || format!("ok from the kubelet of {name}\n")),
        )
    };
    let mut web = [0; 3];
    let mut switches = Vec::new();
    for (port, endpoint) in web.iter_mut().zip(WEB) {
        let (on, state) = watch::channel(true);
        switches.push(Switch { endpoint, on });
        let drain = drain.clone();
        let websocket = {
            let state = state.clone();
            move |request| async move { websocket::open(endpoint, state, drain, request) }
        };
        let routes = hello(endpoint)
            .route("/name", get(async move || endpoint))
            .route("/socket", get(websocket));
        *port = server::start(routes, state).await?;
    }
    let dashboard = Dashboard {
        switches: switches.into(),
        permissions_file: permissions_file.to_string_lossy().into(),
    };
    Ok(Ports {
        web,
        secure: tls(hello("secure-1 over TLS"), &config).await?,
        whoami: plain(Router::new().fallback(whoami)).await?,
        dashboard: plain(routes(dashboard)).await?,
        kubelets: [
            tls(kubelet("node-a"), &config).await?,
            tls(kubelet("node-b"), &config).await?,
        ],
    })
}

fn tls_config(certificate: &Path, key: &Path) -> Result<Arc<ServerConfig>> {
    let chain = CertificateDer::pem_file_iter(certificate)?.collect::<Result<Vec<_>, _>>()?;
    let key = PrivateKeyDer::from_pem_file(key)?;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder =
        ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
    Ok(Arc::new(
        builder.with_no_client_auth().with_single_cert(chain, key)?,
    ))
}

/// Responds with the request line and the headers of the request.
async fn whoami(request: Request) -> String {
    let mut text = format!("{} {}\n", request.method(), request.uri());
    for (name, value) in request.headers() {
        text += &format!("{name}: {}\n", String::from_utf8_lossy(value.as_bytes()));
    }
    text
}

async fn bind() -> std::io::Result<(TcpListener, u16)> {
    let listener = TcpListener::bind((std::net::Ipv4Addr::LOCALHOST, 0)).await?;
    let port = listener.local_addr()?.port();
    Ok((listener, port))
}

async fn plain(routes: Router) -> std::io::Result<u16> {
    let (listener, port) = bind().await?;
    tokio::spawn(axum::serve(listener, routes).into_future());
    Ok(port)
}

async fn tls(routes: Router, config: &Arc<ServerConfig>) -> std::io::Result<u16> {
    let (listener, port) = bind().await?;
    let listener = TlsListener {
        listener,
        acceptor: TlsAcceptor::from(Arc::clone(config)),
    };
    tokio::spawn(axum::serve(listener, routes).into_future());
    Ok(port)
}

struct TlsListener {
    listener: TcpListener,
    acceptor: TlsAcceptor,
}

impl Listener for TlsListener {
    type Io = TlsStream<TcpStream>;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Self::Io, SocketAddr) {
        loop {
            if let Ok((stream, address)) = self.listener.accept().await
                && let Ok(stream) = self.acceptor.accept(stream).await
            {
                return (stream, address);
            }
            // A failed handshake or accept must not busy-loop.
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    fn local_addr(&self) -> std::io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}
