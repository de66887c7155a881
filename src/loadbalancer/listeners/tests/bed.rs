//! A data path with one worker, and endpoints on loopback.

use std::future::Future;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use prometheus_client::registry::Registry;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream, UdpSocket};
use tokio::runtime::{Builder, LocalOptions};
use tokio::task::AbortHandle;

use super::super::*;
use crate::balance::LoadBalancer;
use crate::cluster::fixtures::{endpoint, pod, slice};
use crate::cluster::resources::{PortSpec, ServiceSpec};
use crate::cluster::{AppProtocol, Node, Object, ObjectKey, Writer};
use crate::config;
use crate::forward::{Dialer, Http1Endpoints, OwnAddresses, Pool, RetryPolicy};
use crate::loadbalancer::{BindReport, Listeners};
use crate::metrics::{EjectionMetrics, Metrics};
use crate::model::address::AddressPolicy;
use crate::testing::eventually;
use crate::tls::ClientTls;

/// Maximum time of a step, on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// Runs a test on a runtime as that of a worker.
pub fn run(test: impl Future<Output = ()>) {
    let mut builder = Builder::new_current_thread();
    let runtime = builder.enable_all().build_local(LocalOptions::default());
    runtime.unwrap().block_on(test);
}

pub fn listener(port: u16, protocol: Protocol) -> ListenerKey {
    ListenerKey {
        address: Ipv4Addr::LOCALHOST.into(),
        port,
        protocol,
    }
}

/// Returns the specification of a listener for port 80 of a Service.
pub fn spec(service: &str) -> ListenerSpec {
    ListenerSpec {
        namespace: "ns".into(),
        service: service.into(),
        service_port: 80,
        source_ranges: None,
        addresses: None,
        local_only: false,
        client_affinity: None,
        proxy_protocol: false,
    }
}

/// Returns a port that is free for TCP and UDP.
pub fn free_port() -> u16 {
    loop {
        let tcp = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = tcp.local_addr().unwrap().port();
        if std::net::UdpSocket::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}

pub struct Bed {
    writer: Writer,
    wanted: watch::Sender<Arc<Listeners>>,
    pub report: watch::Receiver<Arc<BindReport>>,
    registry: Registry,
    /// Data path of a further worker, which does not run.
    pub idle: Rc<DataPath>,
    pub drain: Drain,
}

impl Bed {
    pub fn start() -> Self {
        Self::with_limits(&ListenerLimits::new(0, 0), (0, 1))
    }

    /// Starts a bed whose Service `web` has endpoints at these addresses.
    pub async fn web(addresses: &[&str]) -> (Self, Endpoints) {
        let mut bed = Self::start();
        let endpoints = Endpoints::start(addresses).await;
        bed.publish("web", &endpoints);
        (bed, endpoints)
    }

    /// `worker` is the number of the worker, and the number of workers.
    pub fn with_limits(limits: &ListenerLimits, worker: (usize, usize)) -> Self {
        let policy = AddressPolicy {
            allow_loopback: true,
        };
        let (cluster, writer) = Cluster::new(policy, false, None);
        let mut registry = Registry::default();
        let metrics = Metrics::new(&mut registry);
        let settings = config::Upstream::default();
        let balance = Arc::new(LoadBalancer::new(EjectionMetrics::default()));
        let tls = ClientTls::new(&config::Targets::default(), settings.tls_min_version).unwrap();
        let dialer = Arc::new(Dialer {
            settings: settings.clone(),
            tls,
            own_addresses: OwnAddresses::default(),
            own_udp: OwnAddresses::default(),
            failures: metrics.dial_failures.clone(),
            http1_endpoints: Http1Endpoints::default(),
        });
        let forwarder = || Forwarder {
            dialer: Arc::clone(&dialer),
            pool: Rc::new(Pool::new(settings.clone(), Arc::clone(&balance))),
            balance: Arc::clone(&balance),
            retry: RetryPolicy::new(&settings, metrics.retries.clone()),
            kubelet_token: Arc::default(),
            dropped_lines: metrics.dropped_lines.clone(),
        };
        let wanted = watch::Sender::<Arc<Listeners>>::default();
        let reported = watch::Sender::<Arc<BindReport>>::default();
        let report = reported.subscribe();
        let drain = Drain::default();
        let binder = Binder::new(wanted.subscribe(), reported, &dialer, drain.clone());
        let path = || DataPath {
            bound: binder.bound(),
            cluster: Arc::clone(&cluster),
            forwarder: forwarder(),
            affinity: Arc::default(),
            wanted: wanted.subscribe(),
            limits: limits.clone(),
            metrics: metrics.load_balancer.clone(),
            drain: drain.clone(),
            tasks: TaskTracker::new(),
            worker,
            is_on_host_network: OnceCell::new(),
        };
        let idle = Rc::new(path());
        tokio::task::spawn_local(path().run());
        tokio::task::spawn_local(binder.run());
        Self {
            writer,
            wanted,
            report,
            registry,
            idle,
            drain,
        }
    }

    /// Publishes a Service whose port 80 of TCP and UDP has the endpoints.
    pub fn publish(&mut self, service: &str, endpoints: &Endpoints) {
        let addresses = endpoints.addresses();
        let addresses: Vec<_> = addresses.iter().map(String::as_str).collect();
        self.publish_addresses(service, endpoints.port, &addresses);
    }

    pub fn publish_addresses(&mut self, service: &str, port: u16, addresses: &[&str]) {
        self.publish_ports(service, (port, port), addresses);
    }

    /// As [`Self::publish`], with a target port of TCP and one of UDP.
    pub fn publish_ports(&mut self, service: &str, (tcp, udp): (u16, u16), addresses: &[&str]) {
        let spec = PortSpec {
            name: "".into(),
            number: 80,
            app_protocol: AppProtocol::default(),
        };
        let service_spec = ServiceSpec {
            ports: vec![spec.clone()],
            udp_ports: vec![spec],
            ..ServiceSpec::default()
        };
        let key = ObjectKey::new("ns", service);
        self.writer.apply(Object::Service(key, service_spec));
        // A pod has its address as its name.
        for ip in addresses {
            self.writer.apply(pod(ip, &[ip]));
        }
        let endpoints = addresses.iter().map(|ip| endpoint(ip, ip)).collect();
        let mut object = slice(service, service, &[("", tcp)], endpoints);
        if let Object::EndpointSlice(_, slice) = &mut object {
            slice.udp_ports = vec![("".into(), udp)];
        }
        self.writer.apply(object);
    }

    /// Publishes a node with this address.
    pub fn publish_node(&mut self, address: &str) {
        self.writer.apply(Object::Node(Node {
            name: address.into(),
            addresses: [("InternalIP".into(), address.into())].into(),
            kubelet_port: 10250,
        }));
    }

    /// Adds or replaces a listener, or removes it.
    pub fn change(&self, key: ListenerKey, spec: Option<ListenerSpec>) {
        self.wanted.send_modify(|wanted| {
            let mut listeners = Listeners::clone(wanted);
            match spec {
                Some(spec) => listeners.insert(key, Arc::new(spec)),
                None => listeners.remove(&key),
            };
            *wanted = Arc::new(listeners);
        });
    }

    /// Adds a listener and waits until it is open.
    pub async fn serve(&self, protocol: Protocol, spec: ListenerSpec) -> ListenerKey {
        let key = listener(free_port(), protocol);
        self.change(key, Some(spec));
        self.wait_until_open(key).await;
        key
    }

    /// Waits until the data path has applied all earlier changes.
    pub async fn wait_until_applied(&self) {
        let foreign = ListenerSpec {
            source_ranges: Some(["4700::/32".parse().unwrap()].into_iter().collect()),
            ..spec("none")
        };
        // Rejected by the task of the listener, also while connections wait for the limit.
        let probe = self.serve(Protocol::Tcp, foreign).await;
        assert!(self.is_reset(probe).await);
    }

    pub async fn wait_until_open(&self, key: ListenerKey) {
        eventually(PATIENCE, || match key.protocol {
            Protocol::Tcp => std::net::TcpListener::bind((key.address, key.port)).is_err(),
            Protocol::Udp => std::net::UdpSocket::bind((key.address, key.port)).is_err(),
        })
        .await;
    }

    /// Waits until a TCP listener accepts no more connections.
    pub async fn wait_until_closed(&self, key: ListenerKey) {
        eventually(PATIENCE, || {
            let address = SocketAddr::new(key.address, key.port);
            std::net::TcpStream::connect_timeout(&address, PATIENCE).is_err()
        })
        .await;
    }

    pub async fn connect(&self, key: ListenerKey) -> TcpStream {
        TcpStream::connect((key.address, key.port)).await.unwrap()
    }

    /// Returns the name of the endpoint of a new connection.
    pub async fn name(&self, key: ListenerKey) -> String {
        read_name(&mut self.connect(key).await).await
    }

    /// As [`Self::name`], for a client with this address.
    pub async fn name_from(&self, client: IpAddr, key: ListenerKey) -> String {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind((client, 0).into()).unwrap();
        let connected = socket.connect((key.address, key.port).into());
        read_name(&mut connected.await.unwrap()).await
    }

    /// Waits until a new connection has an endpoint.
    pub async fn wait_for_name(&self, key: ListenerKey) {
        let waited = async {
            while self.is_reset(key).await {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(PATIENCE, waited).await.unwrap();
    }

    /// Waits until new connections are reset.
    pub async fn wait_for_reset(&self, key: ListenerKey) {
        let waited = async {
            while !self.is_reset(key).await {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(PATIENCE, waited).await.unwrap();
    }

    /// Returns true if a new connection is reset, or refused.
    pub async fn is_reset(&self, key: ListenerKey) -> bool {
        let Ok(mut client) = TcpStream::connect((key.address, key.port)).await else {
            return true;
        };
        match client.read_u8().await {
            Ok(_) => false,
            Err(error) => {
                assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
                true
            }
        }
    }

    /// Returns a client of a UDP listener.
    pub async fn datagrams(&self, key: ListenerKey) -> UdpSocket {
        let client = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        client.connect((key.address, key.port)).await.unwrap();
        client
    }

    /// Sends datagrams until one is answered, and returns the name of the endpoint.
    pub async fn ask_until_answered(&self, client: &UdpSocket) -> String {
        let asked = async {
            loop {
                let answer = tokio::time::timeout(Duration::from_millis(200), ask(client));
                if let Ok(name) = answer.await {
                    return name;
                }
            }
        };
        tokio::time::timeout(PATIENCE, asked).await.unwrap()
    }

    /// Waits until the metrics have a line with this end.
    pub async fn wait_for(&self, line: &str) {
        eventually(PATIENCE, || {
            let mut text = String::new();
            prometheus_client::encoding::text::encode(&mut text, &self.registry).unwrap();
            text.lines().any(|it| it.ends_with(line))
        })
        .await;
    }
}

/// Sends a datagram and returns the answer, the name of its endpoint.
pub async fn ask(client: &UdpSocket) -> String {
    let mut buffer = [0; 64];
    loop {
        // Fails after an ICMP message to an earlier datagram.
        let _ = client.send(b"name?").await;
        if let Ok(length) = client.recv(&mut buffer).await {
            return String::from_utf8_lossy(&buffer[..length]).into_owned();
        }
    }
}

pub async fn read_name(client: &mut TcpStream) -> String {
    let mut name = String::new();
    loop {
        match client.read_u8().await.unwrap() {
            b'\n' => return name,
            byte => name.push(byte.into()),
        }
    }
}

/// Endpoints that send their name on TCP and echo what they receive, and answer datagrams with
/// their name.
pub struct Endpoints {
    pub port: u16,
    names: Vec<String>,
    tasks: Vec<AbortHandle>,
}

impl Endpoints {
    pub async fn start(names: &[&str]) -> Self {
        Self::start_on(free_port(), names).await
    }

    pub async fn start_on(port: u16, names: &[&str]) -> Self {
        let mut tasks = Vec::new();
        for name in names {
            let tcp = TcpListener::bind((*name, port)).await.unwrap();
            let line = format!("{name}\n");
            let serve = async move {
                while let Ok((mut stream, _)) = tcp.accept().await {
                    let line = line.clone();
                    tokio::task::spawn_local(async move {
                        stream.write_all(line.as_bytes()).await.unwrap();
                        let (mut read, mut write) = stream.split();
                        let _ = tokio::io::copy(&mut read, &mut write).await;
                    });
                }
            };
            tasks.push(tokio::task::spawn_local(serve).abort_handle());
            let udp = UdpSocket::bind((*name, port)).await.unwrap();
            let name = (*name).to_owned();
            let answer = async move {
                let mut buffer = [0; 64];
                while let Ok((_, from)) = udp.recv_from(&mut buffer).await {
                    let _ = udp.send_to(name.as_bytes(), from).await;
                }
            };
            tasks.push(tokio::task::spawn_local(answer).abort_handle());
        }
        Self {
            port,
            names: names.iter().map(ToString::to_string).collect(),
            tasks,
        }
    }

    pub fn addresses(&self) -> Vec<String> {
        self.names.clone()
    }
}

impl Drop for Endpoints {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}
