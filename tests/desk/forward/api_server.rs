//! API server with scripted objects, whose kubelets speak the port-forward protocol in SPDY. It
//! refuses `WebSocket`s, as for a user with the verb `create` alone.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use anyhow::{Context, Result};
use bytes::BytesMut;
use kube_bastion::desk::portforward::spdy::{Decoder, Encoder, Frame, Headers};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::AbortHandle;

use crate::support::test_bed::read_until;

/// Port of a pod that returns what it receives.
pub const ECHO: u16 = 7;
/// Port of a pod that answers `bye` and closes.
pub const BYE: u16 = 8;
/// Port that no container listens on.
pub const CLOSED: u16 = 9;
/// Port of a pod that answers with its name and closes.
pub const NAME: u16 = 10;

/// Running API server.
pub struct ApiServer {
    pub address: SocketAddr,
    state: Arc<State>,
}

#[derive(Default)]
struct State {
    objects: Mutex<HashMap<String, Value>>,
    /// Sessions by their pod.
    sessions: Mutex<Vec<(String, AbortHandle)>>,
    /// Upgrades that were not answered, by their pod.
    unanswered: Mutex<HashMap<String, usize>>,
    /// Streams of connections to ports that are open.
    streams: Mutex<HashMap<String, usize>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().expect("no thread panics with the lock")
}

impl ApiServer {
    /// Starts the server with objects by their paths.
    pub async fn start(objects: impl IntoIterator<Item = (String, Value)>) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let state = Arc::new(State {
            objects: Mutex::new(objects.into_iter().collect()),
            ..State::default()
        });
        let shared = Arc::clone(&state);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                // Ends with its client.
                tokio::spawn(serve(stream, Arc::clone(&shared)));
            }
        });
        Ok(Self { address, state })
    }

    pub fn set(&self, path: &str, object: Value) {
        lock(&self.state.objects).insert(path.to_owned(), object);
    }

    /// Number of sessions that were opened to a pod.
    pub fn sessions(&self, pod: &str) -> usize {
        let sessions = lock(&self.state.sessions);
        sessions.iter().filter(|(name, _)| name == pod).count()
    }

    /// Number of upgrades to a pod whose node does not answer.
    pub fn attempts(&self, pod: &str) -> usize {
        let unanswered = lock(&self.state.unanswered);
        unanswered.get(pod).copied().unwrap_or_default()
    }

    /// Number of connections to ports that are open.
    pub fn connections(&self) -> usize {
        lock(&self.state.streams).values().sum()
    }

    /// Ends the sessions of a pod, as when it is deleted.
    pub fn end_sessions(&self, pod: &str) {
        for (name, session) in lock(&self.state.sessions).iter() {
            if name == pod {
                session.abort();
            }
        }
    }
}

/// Objects of a service `web` with the pods `web-0` and `web-1`, and of other targets.
pub fn objects() -> Vec<(String, Value)> {
    let core = "/api/v1/namespaces/default";
    let apps = "/apis/apps/v1/namespaces/default";
    let selector = json!({"app": "web"});
    let ports = json!([
        {"name": "echo", "port": 80, "targetPort": ECHO},
        {"name": "bye", "port": 81, "targetPort": BYE},
        {"name": "closed", "port": 82, "targetPort": CLOSED},
        {"name": "name", "port": 83, "targetPort": "name"},
        {"name": "unnamed", "port": 84, "targetPort": "nosuch"},
        {"name": "dns", "port": 53, "protocol": "UDP"},
    ]);
    let template = json!({"spec": pod("web")["spec"]});
    let workload = json!({"spec": {"selector": {"matchLabels": selector}, "template": template}});
    let controller = json!({"spec": {"selector": selector, "template": template}});
    vec![
        (
            format!("{core}/services/web"),
            json!({"spec": {"selector": selector, "ports": ports}}),
        ),
        (
            format!("{core}/services"),
            json!({"items": [{"metadata": {"name": "web"}}]}),
        ),
        (
            "/api/v1/namespaces/stage/services/web".to_owned(),
            json!({"spec": {"selector": selector, "ports": ports}}),
        ),
        (
            "/api/v1/namespaces/stage/pods".to_owned(),
            json!({"items": [pod("stage-0")]}),
        ),
        (
            format!("{core}/pods"),
            json!({"items": [pod("web-0"), pod("web-1")]}),
        ),
        (format!("{core}/pods/web-0"), pod("web-0")),
        (format!("{core}/replicationcontrollers/old"), controller),
        (format!("{apps}/deployments/web"), workload.clone()),
        (format!("{apps}/statefulsets/web"), workload.clone()),
        (format!("{apps}/replicasets/web"), workload.clone()),
        (format!("{apps}/daemonsets/web"), workload.clone()),
        (
            "/apis/batch/v1/namespaces/default/jobs/web".to_owned(),
            workload,
        ),
        (
            "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices".to_owned(),
            slices(&["web-0", "web-1"]),
        ),
    ]
}

/// Returns a ready pod.
pub fn pod(name: &str) -> Value {
    json!({
        "metadata": {"name": name},
        "spec": {"containers": [{"name": "c", "ports": [
            {"name": "name", "containerPort": NAME}, {"name": "echo", "containerPort": ECHO},
        ]}]},
        "status": {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]},
    })
}

/// Returns the slices of the service with ready pods.
pub fn slices(pods: &[&str]) -> Value {
    let endpoint = |name: &&str| {
        json!({"addresses": ["10.0.0.1"], "targetRef": {"kind": "Pod", "name": name},
               "conditions": {"ready": true}})
    };
    let endpoints: Vec<_> = pods.iter().map(endpoint).collect();
    json!({"items": [{
        "metadata": {}, "addressType": "IPv4", "endpoints": endpoints,
        "ports": [
            {"name": "echo", "port": ECHO}, {"name": "bye", "port": BYE},
            {"name": "closed", "port": CLOSED}, {"name": "name", "port": NAME},
        ],
    }]})
}

async fn serve(mut stream: TcpStream, state: Arc<State>) -> Result<()> {
    loop {
        let head = read_until(&mut stream, "\r\n\r\n").await?;
        let mut words = head.split(' ');
        let (method, target) = (words.next(), words.next().context("a target")?);
        let path = target.split('?').next().unwrap_or_default();
        if let Some(pod) = path.strip_suffix("/portforward") {
            let pod = pod.rsplit('/').next().unwrap_or_default().to_owned();
            if pod.starts_with("unreachable") {
                *lock(&state.unanswered).entry(pod).or_default() += 1;
                // kube-apiserver waits for the kubelet for 30 s.
                tokio::time::sleep(Duration::from_secs(1)).await;
                let message = "error dialing backend: i/o timeout";
                let status = json!({"kind": "Status", "code": 500, "message": message});
                respond(&mut stream, 500, &status).await?;
                continue;
            }
            let is_allowed = !pod.starts_with("forbidden");
            if method == Some("POST") && is_allowed {
                let switching = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\n\
                                 Upgrade: SPDY/3.1\r\n\
                                 X-Stream-Protocol-Version: portforward.k8s.io\r\n\r\n";
                stream.write_all(switching.as_bytes()).await?;
                let shared = Arc::clone(&state);
                let name = pod.clone();
                let session = tokio::spawn(async move {
                    // Ends with its client.
                    let _ = Kubelet::new(stream, name, shared).run().await;
                });
                lock(&state.sessions).push((pod, session.abort_handle()));
                return Ok(());
            }
            let verb = if method == Some("POST") {
                "create"
            } else {
                "get"
            };
            let message = format!(
                "pods \"{pod}\" is forbidden: User \"jane\" cannot {verb} resource \
                 \"pods/portforward\" in API group \"\" in the namespace \"default\""
            );
            let status = json!({"kind": "Status", "code": 403, "message": message});
            respond(&mut stream, 403, &status).await?;
            continue;
        }
        let object = lock(&state.objects).get(path).cloned();
        let not_found = || json!({"kind": "Status", "code": 404, "message": "not found"});
        let code = if object.is_some() { 200 } else { 404 };
        respond(&mut stream, code, &object.unwrap_or_else(not_found)).await?;
    }
}

pub async fn respond(
    stream: &mut (impl AsyncWriteExt + Unpin),
    code: u16,
    body: &Value,
) -> Result<()> {
    let body = body.to_string();
    let length = body.len();
    let head = format!(
        "HTTP/1.1 {code} X\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n"
    );
    stream.write_all((head + &body).as_bytes()).await?;
    Ok(stream.flush().await?)
}

/// Kubelet of one session.
struct Kubelet {
    stream: TcpStream,
    pod: String,
    state: Arc<State>,
    encoder: Encoder,
    output: Vec<u8>,
    /// Ports by the ids of their data streams.
    ports: HashMap<u32, u16>,
}

impl Drop for Kubelet {
    fn drop(&mut self) {
        lock(&self.state.streams).remove(&self.pod);
    }
}

impl Kubelet {
    fn new(stream: TcpStream, pod: String, state: Arc<State>) -> Self {
        Self {
            stream,
            pod,
            state,
            encoder: Encoder::default(),
            output: Vec::new(),
            ports: HashMap::new(),
        }
    }

    async fn run(mut self) -> Result<()> {
        let (mut decoder, mut input) = (Decoder::default(), BytesMut::new());
        while self.stream.read_buf(&mut input).await? > 0 {
            while let Some(frame) = decoder.decode(&mut input)? {
                self.receive(frame);
            }
            let open = self.ports.len();
            lock(&self.state.streams).insert(self.pod.clone(), open);
            self.stream
                .write_all(&std::mem::take(&mut self.output))
                .await?;
        }
        Ok(())
    }

    fn receive(&mut self, frame: Frame) {
        match frame {
            Frame::SynStream { id, headers, .. } => self.open(id, &headers),
            Frame::Data { id, fin, payload } if self.ports.get(&id) == Some(&ECHO) => {
                Encoder::data(id, &payload, fin, &mut self.output);
                if fin {
                    self.close(id, "");
                }
            }
            Frame::RstStream { id, .. } => {
                self.ports.remove(&id);
            }
            Frame::Ping { id } => Encoder::ping(id, &mut self.output),
            _ => {}
        }
    }

    fn open(&mut self, id: u32, headers: &Headers) {
        self.encoder.syn_reply(id, &mut self.output);
        if headers.get("streamtype") != Some(b"data") {
            return;
        }
        let port = headers.get("port").unwrap_or_default();
        let port = String::from_utf8_lossy(port).parse().unwrap_or_default();
        self.ports.insert(id, port);
        let answer = match port {
            BYE => "bye",
            NAME => &self.pod,
            CLOSED => {
                let text = format!(
                    "error forwarding port {port} to pod {}: failed to connect to \
                     localhost:{port} inside namespace: connection refused",
                    self.pod
                );
                Encoder::data(id, b"", true, &mut self.output);
                self.close(id, &text);
                return;
            }
            _ => return,
        };
        Encoder::data(id, answer.as_bytes(), true, &mut self.output);
        self.close(id, "");
    }

    /// Ends the error stream of a connection, which was opened before its data stream.
    fn close(&mut self, id: u32, error: &str) {
        Encoder::data(id - 2, error.as_bytes(), true, &mut self.output);
        self.ports.remove(&id);
    }
}
