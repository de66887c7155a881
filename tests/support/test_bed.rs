//! A bastion with the manifests source before a backend that a test plays byte by byte.

use anyhow::{Context, Result, ensure};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::client::TlsStream;

use super::bastion::Bastion;
use super::client::tls;
use super::pki::Ca;

/// A bastion with one pod, whose only port is a listener of the test.
pub struct TestBed {
    pub bastion: Bastion,
    pub backend: TcpListener,
    pub folder: tempfile::TempDir,
    pub ca: Ca,
}

/// The path of the pod.
pub const PREFIX: &str = "/api/v1/namespaces/default/pods/p/proxy";

impl TestBed {
    pub async fn new() -> Result<Self> {
        Self::with(&[]).await
    }

    pub async fn with(flags: &[&str]) -> Result<Self> {
        Self::serving("", flags).await
    }

    /// With more settings of `serving`.
    pub async fn serving(settings: &str, flags: &[&str]) -> Result<Self> {
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
            format!(
                "kind: Pod
metadata: {{name: p}}
spec: {{containers: [{{ports: [{{containerPort: {port}}}]}}]}}
status: {{podIPs: [{{ip: 127.0.0.1}}]}}
---
kind: Service
metadata: {{name: s}}
spec: {{ports: [{{port: 80}}]}}
---
kind: EndpointSlice
metadata: {{name: s, labels: {{kubernetes.io/service-name: s}}}}
addressType: IPv4
ports: [{{name: '', port: {port}}}]
endpoints: [{{addresses: [127.0.0.1], targetRef: {{kind: Pod, namespace: default, name: p}}}}]
---
kind: Service
metadata: {{name: h2c}}
spec: {{ports: [{{port: 80, appProtocol: kubernetes.io/h2c}}]}}
---
kind: EndpointSlice
metadata: {{name: h2c, labels: {{kubernetes.io/service-name: h2c}}}}
addressType: IPv4
ports: [{{name: '', port: {port}}}]
endpoints: [{{addresses: [127.0.0.1], targetRef: {{kind: Pod, namespace: default, name: p}}}}]
---
kind: Node
metadata: {{name: n}}
status: {{addresses: [{{type: InternalIP, address: 127.0.0.1}}]}}
---
kind: ClusterRole
metadata: {{name: reader}}
rules: [{{apiGroups: [''], resources: [nodes/proxy, pods/proxy], verbs: [get]}}]
---
kind: ClusterRoleBinding
metadata: {{name: readers}}
roleRef: {{kind: ClusterRole, name: reader}}
subjects: [{{kind: User, name: reader}}]
"
            ),
        )?;
        std::fs::write(at("tokens"), "t,jane,1,\"system:masters\"\nr,reader,2\n")?;
        let config = format!(
            "apiVersion: kube-bastion.dev/v1alpha1
kind: BastionConfiguration
serving: {{tlsCertFile: {}, tlsPrivateKeyFile: {}, {settings}}}
source: {{type: manifests, manifests: {{directory: {}, tokenAuthFile: {}}}}}
targets: {{allowLoopback: true}}
",
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

    pub async fn client(&self) -> Result<TlsStream<TcpStream>> {
        tls(
            self.bastion.secure,
            &self.folder.path().join("ca.crt"),
            None,
        )
        .await
    }

    /// Sends a request to the pod; `rest` is what follows the request line and the usual headers.
    pub async fn request(&self, line: &str, rest: &str) -> Result<TlsStream<TcpStream>> {
        let mut client = self.client().await?;
        let (method, path) = line.split_once(' ').context("METHOD /path")?;
        let head = format!(
            "{method} {PREFIX}{path} HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer t\r\n{rest}"
        );
        client.write_all(head.as_bytes()).await?;
        Ok(client)
    }

    /// The backend's side of the next connection, once the head of a request is in.
    pub async fn accept(&self) -> Result<(TcpStream, String)> {
        let (mut stream, _) = self.backend.accept().await?;
        let head = read_until(&mut stream, "\r\n\r\n").await?;
        Ok((stream, head))
    }
}

/// What comes up to and with `end`.
pub async fn read_until(stream: &mut (impl AsyncReadExt + Unpin), end: &str) -> Result<String> {
    let mut all = String::new();
    let mut byte = [0];
    while !all.ends_with(end) {
        ensure!(
            stream.read(&mut byte).await? == 1,
            "ended before {end:?}: {all:?}"
        );
        all.push(byte[0].into());
    }
    Ok(all)
}

/// All that comes until the other side closes, cleanly or not.
pub async fn read_all(stream: &mut (impl AsyncReadExt + Unpin)) -> String {
    let mut all = Vec::new();
    let _ = stream.read_to_end(&mut all).await;
    String::from_utf8_lossy(&all).into_owned()
}
