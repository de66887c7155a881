//! Bastion that a test plays: it is recognized as one, and answers CONNECT and CONNECT-UDP over
//! HTTP/2.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use anyhow::{Context, Result};
use bytes::Bytes;
use h2::ext::Protocol;
use h2::server::SendResponse;
use h2::{Reason, RecvStream, SendStream};
use http::{Method, Request, Response, StatusCode, header};
use kube_bastion::model::Status;
use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::AbortHandle;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use crate::forward_api_server::respond;
use crate::forward_program::kubeconfig;
use crate::support::pki::Ca;
use crate::support::test_bed::read_until;

/// Running bastion with a kubeconfig for it.
pub struct Bastion {
    pub kubeconfig: PathBuf,
    state: Arc<State>,
    _folder: tempfile::TempDir,
}

#[derive(Default)]
struct State {
    objects: HashMap<String, Value>,
    /// New connections are closed.
    is_down: AtomicBool,
    /// Look-ups fail.
    is_api_down: AtomicBool,
    /// Open HTTP/2 connections.
    connections: Mutex<Vec<AbortHandle>>,
    accepted: AtomicUsize,
    /// Authority and credentials of each CONNECT, with the user to impersonate.
    requests: Mutex<Vec<(String, String)>>,
    /// Streams that the client has reset.
    resets: AtomicUsize,
    /// Signals the connections to accept no more streams.
    drains: tokio::sync::watch::Sender<()>,
    /// Bytes that the targets `kept` and `cut` have received.
    received: Mutex<Vec<u8>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().expect("no thread panics with the lock")
}

impl Bastion {
    /// Starts a bastion that passes look-ups of `objects` to an API server; without any, none.
    pub async fn start(objects: impl IntoIterator<Item = (String, Value)>) -> Result<Self> {
        kube_bastion::tls::install_provider();
        let folder = tempfile::tempdir()?;
        let ca = Ca::new(folder.path(), "ca")?;
        let acceptor = acceptor(&ca, folder.path())?;
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let state = Arc::new(State {
            objects: objects.into_iter().collect(),
            ..State::default()
        });
        let shared = Arc::clone(&state);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                if !shared.is_down.load(Ordering::SeqCst) {
                    // Ends with its client.
                    tokio::spawn(serve(stream, acceptor.clone(), Arc::clone(&shared)));
                }
            }
        });
        let rest = format!(", certificate-authority: '{}'", ca.file.display());
        let server = format!("https://127.0.0.1:{}", address.port());
        Ok(Self {
            kubeconfig: kubeconfig(folder.path(), &server, &rest)?,
            state,
            _folder: folder,
        })
    }

    /// Number of HTTP/2 connections with a CONNECT so far.
    pub fn connections(&self) -> usize {
        self.state.accepted.load(Ordering::SeqCst)
    }

    pub fn requests(&self) -> Vec<(String, String)> {
        lock(&self.state.requests).clone()
    }

    /// Returns what the targets `kept` and `cut` have received since the last call.
    pub fn take_received(&self) -> String {
        let received = std::mem::take(&mut *lock(&self.state.received));
        String::from_utf8_lossy(&received).into_owned()
    }

    pub fn resets(&self) -> usize {
        self.state.resets.load(Ordering::SeqCst)
    }

    /// Cuts all HTTP/2 connections.
    pub fn cut(&self) {
        lock(&self.state.connections)
            .drain(..)
            .for_each(|connection| connection.abort());
    }

    /// Sends GOAWAY on all HTTP/2 connections. Their streams go on.
    pub fn drain(&self) {
        self.state.drains.send_replace(());
    }

    /// Answers look-ups as while no API server can be reached.
    pub fn set_api_down(&self, is_down: bool) {
        self.state.is_api_down.store(is_down, Ordering::SeqCst);
    }

    /// Closes new connections, or accepts them again.
    pub fn set_down(&self, is_down: bool) {
        self.state.is_down.store(is_down, Ordering::SeqCst);
    }
}

fn acceptor(ca: &Ca, folder: &Path) -> Result<TlsAcceptor> {
    let pair = ca.server(folder, "bastion", &["127.0.0.1"])?;
    let chain = CertificateDer::pem_file_iter(&pair.certificate)?.collect::<Result<Vec<_>, _>>()?;
    let key = PrivateKeyDer::from_pem_file(&pair.key)?;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(chain, key)?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(TlsAcceptor::from(Arc::new(config)))
}

async fn serve(stream: TcpStream, acceptor: TlsAcceptor, state: Arc<State>) -> Result<()> {
    let stream = acceptor.accept(stream).await?;
    if stream.get_ref().1.alpn_protocol() != Some(b"h2") {
        return serve_http1(stream, &state).await;
    }
    let shared = Arc::clone(&state);
    let has_tunnels = Arc::<AtomicBool>::default();
    let serving = tokio::spawn(async move {
        let mut builder = h2::server::Builder::new();
        builder
            .enable_connect_protocol()
            .max_concurrent_streams(200)
            .initial_window_size(1024 * 1024);
        builder.initial_connection_window_size(64 * 1024 * 1024);
        // Ends with its client.
        let Ok(mut connection) = builder.handshake::<_, Bytes>(stream).await else {
            return;
        };
        let mut streams = tokio::task::JoinSet::new();
        let mut drained = shared.drains.subscribe();
        loop {
            let accepted = tokio::select! {
                accepted = connection.accept() => accepted,
                _ = drained.changed() => {
                    connection.graceful_shutdown();
                    continue;
                }
            };
            let Some(Ok((request, respond))) = accepted else {
                break;
            };
            let is_connect_udp = request.extensions().get::<Protocol>();
            let is_connect_udp = is_connect_udp.is_some_and(|it| it.as_str() == "connect-udp");
            let is_connect = request.method() == Method::CONNECT
                && request.uri().scheme().is_none()
                && request.uri().path_and_query().is_none();
            if !is_connect && !is_connect_udp {
                look_up(&request, respond, &shared);
                continue;
            }
            if !has_tunnels.swap(true, Ordering::SeqCst) {
                shared.accepted.fetch_add(1, Ordering::SeqCst);
            }
            streams.spawn(answer(request, respond, Arc::clone(&shared)));
        }
    });
    lock(&state.connections).push(serving.abort_handle());
    Ok(())
}

/// Answers look-ups, and the request by which a bastion is recognized, over HTTP/1.1.
async fn serve_http1(mut stream: TlsStream<TcpStream>, state: &State) -> Result<()> {
    loop {
        let head = read_until(&mut stream, "\r\n\r\n").await?;
        let target = head.split(' ').nth(1).context("a target")?;
        let path = target.split('?').next().unwrap_or_default();
        let (code, body) = state.object(target.starts_with("http://"), path);
        respond(&mut stream, code, &body).await?;
    }
}

/// As [`serve_http1`], over HTTP/2.
fn look_up(request: &Request<RecvStream>, mut respond: SendResponse<Bytes>, state: &State) {
    let is_probe = request.uri().scheme_str() == Some("http");
    let (code, body) = state.object(is_probe, request.uri().path());
    let response = Response::builder()
        .status(code)
        .header(header::CONTENT_TYPE, "application/json")
        .body(())
        .expect("valid parts");
    if let Ok(mut sending) = respond.send_response(response, false) {
        // Fails if the client has left.
        let _ = sending.send_data(body.to_string().into(), true);
    }
}

impl State {
    /// Returns the response to a look-up, or to the request by which a bastion is recognized.
    fn object(&self, is_probe: bool, path: &str) -> (u16, Value) {
        if is_probe {
            return (407, json!({}));
        }
        if self.is_api_down.load(Ordering::SeqCst) {
            return (
                503,
                json!({"kind": "Status", "code": 503, "message": "no API server"}),
            );
        }
        if let Some(object) = self.objects.get(path) {
            return (200, object.clone());
        }
        let message = if self.objects.is_empty() {
            Status::route_not_found().message
        } else {
            "not found".into()
        };
        let status = json!({"kind": "Status", "code": 404, "message": message});
        (404, status)
    }
}

/// Answers a CONNECT as the name of its target says.
async fn answer(request: Request<RecvStream>, mut respond: SendResponse<Bytes>, state: Arc<State>) {
    let authority = request.uri().authority().map(ToString::to_string);
    let path = request.uri().path();
    let target = match path.strip_prefix("/.well-known/masque/udp/") {
        Some(target) if request.headers().contains_key("capsule-protocol") => {
            format!("udp {target}")
        }
        _ => authority.unwrap_or_default(),
    };
    let authority = target.trim_start_matches("udp ");
    let credentials = request.headers().get(header::PROXY_AUTHORIZATION);
    let impersonated = request.headers().get("impersonate-user");
    let values = credentials.into_iter().chain(impersonated);
    let values = values.map(|value| String::from_utf8_lossy(value.as_bytes()));
    let credentials = values.collect::<Vec<_>>().join(" as ");
    let name = authority.split('.').next().unwrap_or_default().to_owned();
    lock(&state.requests).push((target, credentials));
    let refusal = match &*name {
        "forbidden" => Some((
            StatusCode::FORBIDDEN,
            "jane may not create services/portforward",
        )),
        "closed" => Some((StatusCode::BAD_GATEWAY, "connection refused")),
        "starting" if lock(&state.requests).len() < 3 => Some((
            StatusCode::SERVICE_UNAVAILABLE,
            "no endpoints available for service \"starting\"",
        )),
        // Replaced between the first connection and the fourth.
        "replaced" if matches!(lock(&state.requests).len(), 2 | 3) => {
            Some((StatusCode::NOT_FOUND, "pods \"replaced\" not found"))
        }
        "missing" => Some((
            StatusCode::NOT_FOUND,
            "no service missing; did you mean web?",
        )),
        _ => None,
    };
    if let Some((status, message)) = refusal {
        let mut response = Response::new(());
        *response.status_mut() = status;
        let body = json!({"kind": "Status", "message": message}).to_string();
        if let Ok(mut sending) = respond.send_response(response, false) {
            // Fails if the client has left.
            let _ = sending.send_data(body.into(), true);
        }
        return;
    }
    let Ok(mut sending) = respond.send_response(Response::new(()), false) else {
        return;
    };
    let mut receiving = request.into_body();
    if name == "reset" {
        // Once the client has sent something.
        let _ = receiving.data().await;
        sending.send_reset(Reason::CONNECT_ERROR);
        return;
    }
    if name == "http" {
        // The content is the head of the request.
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let Some(Ok(data)) = receiving.data().await else {
                return;
            };
            head.extend_from_slice(&data);
        }
        let response = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", head.len());
        let response = [response.into_bytes(), head].concat();
        let _ = sending.send_data(response.into(), true);
        return;
    }
    if name == "kept" || name == "cut" {
        // Whatever the request says, the connection stays open. `cut` ends within its content.
        let head = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nKeep-Alive: timeout=9\r\n\r\n";
        let body = "5\r\nhello\r\n";
        let end = if name == "kept" { "0\r\n\r\n" } else { "" };
        let mut is_answered = false;
        while let Some(Ok(data)) = receiving.data().await {
            lock(&state.received).extend_from_slice(&data);
            if !std::mem::replace(&mut is_answered, true) {
                let _ = sending.send_data([head, body, end].concat().into(), name == "cut");
            }
        }
        return;
    }
    if name == "once" {
        // One answer, and the end of the flow.
        let data = receiving.data().await;
        let _ = sending.send_data(data.and_then(Result::ok).unwrap_or_default(), true);
        return;
    }
    if name == "bye" {
        let _ = sending.send_data("bye".into(), true);
        return;
    }
    loop {
        match receiving.data().await {
            Some(Ok(data)) => {
                let _ = receiving.flow_control().release_capacity(data.len());
                if !send(&mut sending, data).await {
                    return;
                }
            }
            Some(Err(error)) => {
                if error.is_reset() {
                    state.resets.fetch_add(1, Ordering::SeqCst);
                }
                return;
            }
            None => break,
        }
    }
    let _ = sending.send_data(Bytes::new(), true);
}

/// Sends data as the window allows. Returns false once the stream has ended.
async fn send(sending: &mut SendStream<Bytes>, mut data: Bytes) -> bool {
    while !data.is_empty() {
        sending.reserve_capacity(data.len());
        if sending.capacity() == 0 {
            let capacity = std::future::poll_fn(|context| sending.poll_capacity(context)).await;
            if !matches!(capacity, Some(Ok(_))) {
                return false;
            }
        }
        let part = data.split_to(sending.capacity().min(data.len()));
        if sending.send_data(part, false).is_err() {
            return false;
        }
    }
    true
}
