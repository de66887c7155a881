//! The bastion under test with its manifests, and the pods behind it.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex, OnceLock};

use kube_bastion::app::Bound;
use kube_bastion::config::{Config, SourceKind};
use kube_bastion::drain::Drain;
use rustls::pki_types::CertificateDer;
use rustls::{ClientConfig, RootCertStore};
use tokio::signal::unix::{SignalKind, signal};

use super::backend::Backend;
use super::http2::Connection;

/// Token that allows `get` on the pod `r` only.
pub const READER: &str = "fuzz-token-2d61c1-of-reader";
/// Token that allows all verbs on the pod and the service `w`.
pub const WRITER: &str = "fuzz-token-2d61c1-of-writer";
/// Text of both tokens that no backend may receive.
pub const TOKEN: &str = "fuzz-token-2d61c1";

pub struct World {
    pub insecure: SocketAddr,
    pub secure: SocketAddr,
    pub tls: Arc<ClientConfig>,
    pub backend: &'static Backend,
    /// An HTTP/2 connection serves many inputs, because a handshake costs more than a request.
    pub http2: Mutex<Option<Connection>>,
}

/// Starts the bastion and the pods at the first input, for the lifetime of the process.
pub fn world() -> &'static World {
    static WORLD: OnceLock<World> = OnceLock::new();
    WORLD.get_or_init(|| {
        kube_bastion::tls::install_provider();
        // Kept until the process ends, because the bastion watches its files.
        let folder = tempfile::tempdir().expect("a folder").keep();
        let made =
            rcgen::generate_simple_self_signed(["localhost".to_owned()]).expect("a certificate");
        let backend = Backend::start();
        write(&folder.join("tls.crt"), &made.cert.pem());
        write(&folder.join("tls.key"), &made.signing_key.serialize_pem());
        write(
            &folder.join("tokens"),
            &format!("{READER},reader,1\n{WRITER},writer,2\n"),
        );
        std::fs::create_dir(folder.join("manifests")).expect("a folder");
        write(&folder.join("manifests/all.yaml"), &manifests(backend));
        let (insecure, secure) = start(&folder);
        let world = World {
            insecure,
            secure,
            tls: tls(made.cert.der()),
            backend,
            http2: Mutex::new(None),
        };
        super::http1::wait_until_ready(&world);
        world
    })
}

fn write(path: &Path, text: &str) {
    std::fs::write(path, text).expect("the folder takes a file");
}

fn start(folder: &Path) -> (SocketAddr, SocketAddr) {
    let free = SocketAddr::from(([127, 0, 0, 1], 0));
    let mut config = Config::new();
    config.serving.secure_listen_address = free;
    config.serving.insecure_listen_address = Some(free);
    config.serving.tls_cert_file = Some(folder.join("tls.crt"));
    config.serving.tls_private_key_file = Some(folder.join("tls.key"));
    // One worker has one pool of upstream connections: requests of different inputs meet on them.
    config.serving.workers = 1;
    config.admin.listen_address = free;
    config.source.kind = SourceKind::Manifests;
    config.source.manifests.directory = Some(folder.join("manifests"));
    config.source.manifests.token_auth_file = Some(folder.join("tokens"));
    config.targets.allow_loopback = true;
    config.log.access = false;
    let (addresses, bound) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build();
        runtime.expect("a runtime").block_on(async {
            // The main function is not Rust's, which ignores the signal: a vectored write to a
            // closed connection would end the process.
            let _ignored = signal(SignalKind::pipe()).expect("a handler");
            let bastion = Bound::new(config).await.expect("the configuration is good");
            addresses.send(bastion.addresses).expect("the target waits");
            let ended = bastion.run(Drain::default()).await;
            panic!("the bastion ended: {ended:?}");
        });
    });
    let addresses = bound.recv().expect("the bastion starts");
    (
        addresses.insecure.expect("it is configured"),
        addresses.secure,
    )
}

fn tls(certificate: &CertificateDer<'static>) -> Arc<ClientConfig> {
    let mut roots = RootCertStore::empty();
    roots.add(certificate.clone()).expect("a certificate");
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder =
        ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let builder = builder.expect("the provider has the default versions");
    let mut config = builder.with_root_certificates(roots).with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec()];
    Arc::new(config)
}

fn manifests(backend: &Backend) -> String {
    let pod = |name: &str, port: u16| {
        format!(
            "kind: Pod
metadata: {{name: {name}}}
spec: {{containers: [{{ports: [{{containerPort: {port}}}]}}]}}
status: {{podIPs: [{{ip: 127.0.0.1}}]}}
---
"
        )
    };
    let rights = |user: &str, pod: &str, verbs: &str| {
        format!(
            "kind: ClusterRole
metadata: {{name: {user}}}
rules: [{{apiGroups: [''], resources: [pods/proxy, services/proxy], resourceNames: [{pod}], verbs: [{verbs}]}}]
---
kind: ClusterRoleBinding
metadata: {{name: {user}}}
roleRef: {{kind: ClusterRole, name: {user}}}
subjects: [{{kind: User, name: {user}}}]
---
"
        )
    };
    let service = format!(
        "kind: Service
metadata: {{name: w}}
spec: {{ports: [{{port: 80}}]}}
---
kind: EndpointSlice
metadata: {{name: w, labels: {{kubernetes.io/service-name: w}}}}
addressType: IPv4
ports: [{{name: '', port: {}}}]
endpoints: [{{addresses: [127.0.0.1], targetRef: {{kind: Pod, namespace: default, name: w}}}}]
---
",
        backend.writer_port
    );
    [
        pod("r", backend.reader_port),
        pod("w", backend.writer_port),
        service,
        rights("reader", "r", "get"),
        rights("writer", "w", "'*'"),
    ]
    .concat()
}
