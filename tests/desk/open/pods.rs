//! API server with a service and its pods, whose ports it forwards: `SPDY/3.1+portforward.k8s.io` in
//! a WebSocket, as a kubelet serves it. The application of a pod is scripted.

use std::collections::{BTreeMap, HashMap};
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use anyhow::{Context, Result, ensure};
use bytes::{Bytes, BytesMut};
use futures::{SinkExt, StreamExt};
use http::{HeaderMap, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use kube_bastion::desk::portforward::spdy::{Decoder, Encoder, Frame, Headers};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::{AbortHandle, JoinSet};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::Role;
use tokio_util::task::AbortOnDropHandle;

use crate::api::{Desk, Script, serve};
use crate::support::raw::{Head, websocket_accept};
use crate::support::tls_endpoint::TlsEndpoint;

const TUNNEL: &str = "SPDY/3.1+portforward.k8s.io";
/// Port of the containers.
const PORT: &str = "8080";
const PODS: &str = "/api/v1/namespaces/default/pods";

/// Application of a pod. Dropping it closes its port and its connections.
#[derive(Debug)]
pub struct App {
    pub address: SocketAddr,
    requests: Arc<Mutex<Vec<Head>>>,
    connections: Arc<AtomicUsize>,
    _task: AbortOnDropHandle<()>,
}

impl App {
    /// Starts an application. After a 101, it returns what it receives, and after a response with
    /// `Connection: close`, it closes the connection.
    pub async fn start<F>(script: F) -> Result<Self>
    where
        F: Fn(&Head, &[u8]) -> Vec<u8> + Send + Sync + 'static,
    {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let requests = Arc::<Mutex<Vec<Head>>>::default();
        let connections = Arc::<AtomicUsize>::default();
        let (seen, count) = (Arc::clone(&requests), Arc::clone(&connections));
        let script: Script = Arc::new(script);
        let task = tokio::spawn(async move {
            let mut open = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                count.fetch_add(1, Ordering::SeqCst);
                let (seen, script) = (Arc::clone(&seen), Arc::clone(&script));
                open.spawn(async move {
                    let _ = serve(stream, &seen, &script).await;
                });
            }
        });
        Ok(Self {
            address,
            requests,
            connections,
            _task: AbortOnDropHandle::new(task),
        })
    }

    pub fn requests(&self) -> Vec<Head> {
        let requests = self.requests.lock().expect("no thread panics with them");
        requests.clone()
    }

    /// Number of connections so far.
    pub fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }
}

/// Session of port-forward.
struct Session {
    pod: String,
    /// Headers of its handshake.
    headers: HeaderMap,
    task: AbortHandle,
}

#[derive(Default)]
struct State {
    /// Ready pods and the addresses of their applications.
    pods: Mutex<BTreeMap<String, SocketAddr>>,
    sessions: Mutex<Vec<Session>>,
}

/// API server of a test, with the service `web`.
pub struct PodServer {
    pub address: SocketAddr,
    state: Arc<State>,
    _task: AbortOnDropHandle<()>,
}

impl PodServer {
    pub async fn start(desk: &Desk) -> Result<Self> {
        let (ca, folder) = (&desk.ca, desk.folder.path());
        let endpoint = TlsEndpoint::start_http1(ca, folder, &["127.0.0.1"]).await?;
        let address = endpoint.address()?;
        let state = Arc::<State>::default();
        let shared = Arc::clone(&state);
        let task = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                // A failed handshake is that of a client which has gone.
                let Ok(stream) = endpoint.accept().await else {
                    continue;
                };
                let state = Arc::clone(&shared);
                let service = service_fn(move |request| {
                    let response = respond(request, &state);
                    async move { Ok::<_, Infallible>(response) }
                });
                let builder = hyper::server::conn::http1::Builder::new();
                let serving = builder.serve_connection(TokioIo::new(stream), service);
                connections.spawn(serving.with_upgrades());
            }
        });
        Ok(Self {
            address,
            state,
            _task: AbortOnDropHandle::new(task),
        })
    }

    /// Adds a ready pod, or replaces its application.
    pub fn add(&self, name: &str, app: SocketAddr) {
        let mut pods = self.state.pods.lock().expect("no thread panics with them");
        pods.insert(name.to_owned(), app);
    }

    /// Removes a pod and cuts its sessions.
    pub fn remove(&self, name: &str) {
        let mut pods = self.state.pods.lock().expect("no thread panics with them");
        pods.remove(name);
        drop(pods);
        self.cut();
    }

    /// Cuts all sessions, as an API server that is restarted.
    pub fn cut(&self) {
        let sessions = self.state.sessions.lock();
        for session in &*sessions.expect("no thread panics with them") {
            session.task.abort();
        }
    }

    /// Pods of the sessions so far, in order.
    pub fn sessions(&self) -> Vec<String> {
        let sessions = self.state.sessions.lock();
        let sessions = sessions.expect("no thread panics with them");
        sessions.iter().map(|session| session.pod.clone()).collect()
    }

    /// Headers of the last handshake.
    pub fn handshake(&self) -> Result<HeaderMap> {
        let sessions = self.state.sessions.lock();
        let sessions = sessions.expect("no thread panics with them");
        let last = sessions.last().context("no session was opened")?;
        Ok(last.headers.clone())
    }
}

fn respond(request: Request<Incoming>, state: &State) -> Response<Full<Bytes>> {
    let path = request.uri().path().to_owned();
    if let Some(pod) = path.strip_prefix(PODS)
        && let Some(pod) = pod.strip_suffix("/portforward")
    {
        return forward(request, pod.trim_start_matches('/'), state);
    }
    let pods = state.pods.lock().expect("no thread panics with them");
    match &*path {
        "/api/v1/namespaces/default/services/web" => {
            let ports = json!([{"port": 80, "targetPort": 8080}]);
            let spec = json!({"selector": {"app": "web"}, "ports": ports});
            object(StatusCode::OK, &json!({"spec": spec}))
        }
        PODS => {
            let pods: Vec<_> = pods.keys().map(|name| pod(name)).collect();
            object(StatusCode::OK, &json!({"items": pods}))
        }
        _ => not_found(),
    }
}

fn not_found() -> Response<Full<Bytes>> {
    let status = json!({"kind": "Status", "code": 404, "message": "not found"});
    object(StatusCode::NOT_FOUND, &status)
}

fn object(status: StatusCode, body: &Value) -> Response<Full<Bytes>> {
    Response::builder()
        .status(status)
        .header(header::CONTENT_TYPE, "application/json")
        .body(Full::new(body.to_string().into()))
        .expect("the header is valid")
}

fn pod(name: &str) -> Value {
    json!({
        "metadata": {"name": name},
        "spec": {"containers": [{"name": "c", "ports": [{"containerPort": 8080}]}]},
        "status": {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]},
    })
}

/// Starts a session, if the request is the handshake of one.
fn forward(request: Request<Incoming>, pod: &str, state: &State) -> Response<Full<Bytes>> {
    let text = |name| {
        let value = request.headers().get(name);
        value.and_then(|value| value.to_str().ok())
    };
    let pods = state.pods.lock().expect("no thread panics with them");
    let (Some(address), Some(key), Some(TUNNEL)) = (
        pods.get(pod).copied(),
        text(header::SEC_WEBSOCKET_KEY),
        text(header::SEC_WEBSOCKET_PROTOCOL),
    ) else {
        return not_found();
    };
    let response = Response::builder()
        .status(StatusCode::SWITCHING_PROTOCOLS)
        .header(header::CONNECTION, "Upgrade")
        .header(header::UPGRADE, "websocket")
        .header(header::SEC_WEBSOCKET_ACCEPT, websocket_accept(key))
        .header(header::SEC_WEBSOCKET_PROTOCOL, TUNNEL)
        .body(Full::default())
        .expect("the headers are valid");
    let headers = request.headers().clone();
    let task = tokio::spawn(async move {
        // Ends with the connection.
        let _ = run(request, address).await;
    });
    let mut sessions = state.sessions.lock().expect("no thread panics with them");
    sessions.push(Session {
        pod: pod.to_owned(),
        headers,
        task: task.abort_handle(),
    });
    response
}

/// Ids of the streams of a connection to a port.
#[derive(Clone, Copy)]
struct Pair {
    error: u32,
    data: u32,
}

/// Serves a session on an upgraded connection.
async fn run(request: Request<Incoming>, app: SocketAddr) -> Result<()> {
    let upgraded = TokioIo::new(hyper::upgrade::on(request).await?);
    let socket = WebSocketStream::from_raw_socket(upgraded, Role::Server, None).await;
    let (mut sink, mut source) = socket.split();
    let (output, mut outgoing) = mpsc::channel::<Vec<u8>>(16);
    let mut streams = Streams {
        app,
        encoder: Encoder::default(),
        error: None,
        uploads: HashMap::new(),
        output,
        tasks: JoinSet::new(),
    };
    let (mut decoder, mut input) = (Decoder::default(), BytesMut::new());
    loop {
        tokio::select! {
            message = source.next() => {
                let Message::Binary(bytes) = message.context("the end")?? else {
                    continue;
                };
                input.extend_from_slice(&bytes);
                let mut answers = Vec::new();
                while let Some(frame) = decoder.decode(&mut input)? {
                    streams.handle(frame, &mut answers)?;
                }
                if !answers.is_empty() {
                    sink.send(Message::binary(answers)).await?;
                }
            }
            Some(bytes) = outgoing.recv() => sink.send(Message::binary(bytes)).await?,
        }
    }
}

/// Streams of a session.
struct Streams {
    app: SocketAddr,
    encoder: Encoder,
    /// Error stream whose data stream is not open yet.
    error: Option<u32>,
    /// Bytes for the application, by the data stream.
    uploads: HashMap<u32, mpsc::UnboundedSender<Bytes>>,
    output: mpsc::Sender<Vec<u8>>,
    tasks: JoinSet<Result<()>>,
}

impl Streams {
    /// Handles a frame, and appends the answers.
    fn handle(&mut self, frame: Frame, answers: &mut Vec<u8>) -> Result<()> {
        match frame {
            Frame::SynStream { id, headers, .. } => {
                self.encoder.syn_reply(id, answers);
                self.open(id, &headers)?;
            }
            Frame::Data { id, fin, payload } => {
                if let Some(upload) = self.uploads.get(&id) {
                    // The application may have closed the connection.
                    let _ = upload.send(payload);
                }
                if fin {
                    self.uploads.remove(&id);
                }
            }
            Frame::RstStream { id, .. } => drop(self.uploads.remove(&id)),
            Frame::Ping { id } => Encoder::ping(id, answers),
            Frame::SynReply { .. } | Frame::GoAway | Frame::Headers { .. } => {}
        }
        Ok(())
    }

    fn open(&mut self, id: u32, headers: &Headers) -> Result<()> {
        ensure!(
            headers.get("port") == Some(PORT.as_bytes()),
            "another port: {headers:?}"
        );
        if headers.get("streamtype") == Some(b"error") {
            self.error = Some(id);
            return Ok(());
        }
        let error = self.error.take().context("the error stream is first")?;
        let (upload, uploaded) = mpsc::unbounded_channel();
        self.uploads.insert(id, upload);
        let pair = Pair { error, data: id };
        self.tasks
            .spawn(connect(self.app, pair, uploaded, self.output.clone()));
        Ok(())
    }
}

/// Joins a pair of streams with a connection to the application.
async fn connect(
    app: SocketAddr,
    Pair { error, data }: Pair,
    mut uploaded: mpsc::UnboundedReceiver<Bytes>,
    output: mpsc::Sender<Vec<u8>>,
) -> Result<()> {
    let mut sent = Vec::new();
    match TcpStream::connect(app).await {
        Ok(mut stream) => {
            let (mut reader, mut writer) = stream.split();
            let upload = async {
                while let Some(bytes) = uploaded.recv().await {
                    writer.write_all(&bytes).await?;
                }
                anyhow::Ok(writer.shutdown().await?)
            };
            let download = async {
                let mut buffer = vec![0; 8192];
                loop {
                    let length = reader.read(&mut buffer).await?;
                    if length == 0 {
                        return anyhow::Ok(());
                    }
                    let mut sent = Vec::new();
                    Encoder::data(data, &buffer[..length], false, &mut sent);
                    output.send(sent).await?;
                }
            };
            // The end of the application ends both, as at a kubelet.
            tokio::pin!(upload, download);
            tokio::select! {
                _ = &mut download => {}
                _ = &mut upload => drop(download.await),
            }
        }
        Err(refused) => Encoder::data(error, refused.to_string().as_bytes(), false, &mut sent),
    }
    Encoder::data(data, &[], true, &mut sent);
    Encoder::data(error, &[], true, &mut sent);
    Ok(output.send(sent).await?)
}
