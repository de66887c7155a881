//! A real etcd, kube-apiserver and kube-controller-manager on loopback.

use std::fs::File;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use k8s_openapi::api::authentication::v1::{BoundObjectReference, TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::ServiceAccount;
use kube::Client;
use kube::api::{Api, PostParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rcgen::{KeyPair, PKCS_RSA_SHA256};
use tempfile::TempDir;

use super::net::PROXY_ENVIRONMENT;
use super::pki::{Ca, Pair};
use super::within;

/// Namespace and service account of the bastion in `deploy/`.
pub const HOME: &str = "kube-bastion";

/// Maximum time until an apiserver is ready, on a busy machine.
pub const START_TIMEOUT: Duration = Duration::from_mins(3);

/// Maximum number of starts of a server whose port may be taken.
const MAX_STARTS: usize = 3;

/// Control plane in a temporary folder. Dropping it kills its processes.
pub struct Cluster {
    pub folder: TempDir,
    pub ca: Ca,
    /// CA of front proxy certificates (`--requestheader-client-ca-file`).
    pub front_proxy: Ca,
    /// Client certificate that the apiserver presents to kubelets.
    pub kubelet_client: Pair,
    pub client: Client,
    pub server: String,
    pub kubectl: PathBuf,
    binaries: PathBuf,
    apiserver_arguments: Vec<String>,
    etcd_arguments: Vec<String>,
    apiserver: Process,
    _manager: Process,
    etcd: Process,
}

/// Child process. Dropping it kills the process.
#[derive(Debug)]
pub struct Process(Child);

impl Process {
    /// Sends a signal.
    ///
    /// # Errors
    /// Returns an error if the process has exited.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        Ok(kill(Pid::from_raw(self.0.id().try_into()?), signal)?)
    }

    /// Returns true if the process has exited.
    ///
    /// # Errors
    /// Returns the error of the system.
    pub fn has_exited(&mut self) -> Result<bool> {
        Ok(self.0.try_wait()?.is_some())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Cluster {
    /// Starts the control plane.
    ///
    /// # Errors
    /// Returns an error if the binaries cannot be built (the message names what to install) or do
    /// not start.
    pub async fn start() -> Result<Self> {
        let binaries = binaries()?;
        for _ in 1..MAX_STARTS {
            match Self::start_once(&binaries).await {
                // A connection of another process may take a free port before a server does.
                Err(error) => eprintln!("starting the control plane again: {error:#}"),
                started => return started,
            }
        }
        Self::start_once(&binaries).await
    }

    async fn start_once(binaries: &Path) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let at = |name: &str| folder.path().join(name).display().to_string();
        let ca = Ca::new(folder.path(), "ca")?;
        let front_proxy = Ca::new(folder.path(), "front-proxy-ca")?;
        let serving = ca.server(
            folder.path(),
            "apiserver",
            &["127.0.0.1", "localhost", "kubernetes.default.svc"],
        )?;
        let admin = ca.client(folder.path(), "admin", "system:masters")?;
        let kubelet_client = ca.client(folder.path(), "kubelet-client", "kubelet-clients")?;
        // Scenarios issue others of the same name.
        let aggregator = folder.path().join("aggregator");
        std::fs::create_dir(&aggregator)?;
        let aggregator = front_proxy.client(&aggregator, "front-proxy", "none")?;
        // RSA, because the apiserver does not parse elliptic curve keys in PKCS#8 here.
        std::fs::write(
            at("sa.key"),
            KeyPair::generate_for(&PKCS_RSA_SHA256)?.serialize_pem(),
        )?;
        let [etcd_port, peer_port, api_port] = free_ports()?;

        let etcd_url = format!("http://127.0.0.1:{etcd_port}");
        let peer_url = format!("http://127.0.0.1:{peer_port}");
        let etcd_arguments = vec![
            format!("--data-dir={}", at("etcd")),
            format!("--listen-client-urls={etcd_url}"),
            format!("--advertise-client-urls={etcd_url}"),
            format!("--listen-peer-urls={peer_url}"),
            format!("--initial-advertise-peer-urls={peer_url}"),
            format!("--initial-cluster=default={peer_url}"),
            "--unsafe-no-fsync".into(),
        ];
        let etcd = spawn(folder.path(), &binaries.join("etcd"), &etcd_arguments)?;
        let apiserver_arguments = vec![
            format!("--etcd-servers={etcd_url}"),
            "--bind-address=127.0.0.1".into(),
            // Without it the apiserver looks for a default route, which an isolated machine lacks.
            // The address is not used.
            "--advertise-address=192.0.2.1".into(),
            format!("--secure-port={api_port}"),
            format!("--tls-cert-file={}", serving.certificate.display()),
            format!("--tls-private-key-file={}", serving.key.display()),
            format!("--client-ca-file={}", ca.file.display()),
            format!(
                "--requestheader-client-ca-file={}",
                front_proxy.file.display()
            ),
            "--requestheader-allowed-names=front-proxy".into(),
            "--requestheader-username-headers=X-Remote-User".into(),
            "--requestheader-group-headers=X-Remote-Group".into(),
            "--requestheader-extra-headers-prefix=X-Remote-Extra-".into(),
            format!(
                "--proxy-client-cert-file={}",
                aggregator.certificate.display()
            ),
            format!("--proxy-client-key-file={}", aggregator.key.display()),
            // Aggregated APIs are reached at their endpoints: cluster IPs have no route.
            "--enable-aggregator-routing=true".into(),
            format!("--service-account-key-file={}", at("sa.key")),
            format!("--service-account-signing-key-file={}", at("sa.key")),
            "--service-account-issuer=https://kubernetes.default.svc".into(),
            "--service-cluster-ip-range=10.96.0.0/16".into(),
            "--authorization-mode=RBAC".into(),
            "--endpoint-reconciler-type=none".into(),
            format!(
                "--kubelet-client-certificate={}",
                kubelet_client.certificate.display()
            ),
            format!("--kubelet-client-key={}", kubelet_client.key.display()),
            format!("--kubelet-certificate-authority={}", ca.file.display()),
        ];
        let mut apiserver = spawn(
            folder.path(),
            &binaries.join("kube-apiserver"),
            &apiserver_arguments,
        )?;
        let server = format!("https://127.0.0.1:{api_port}");
        let kubeconfig = kubeconfig(
            folder.path(),
            "admin",
            &server,
            &ca.file,
            &KubeconfigUser::Certificate(&admin),
        )?;
        let client = client(&kubeconfig).await?;
        wait_until_ready(&client, folder.path(), &mut apiserver).await?;
        let manager = spawn(
            folder.path(),
            &binaries.join("kube-controller-manager"),
            &[
                format!("--kubeconfig={}", kubeconfig.display()),
                format!("--controllers={}", CONTROLLERS.join(",")),
                format!("--root-ca-file={}", ca.file.display()),
                "--leader-elect=false".into(),
                "--secure-port=0".into(),
                "--endpointslice-updates-batch-period=0s".into(),
            ],
        )?;
        Ok(Self {
            kubectl: binaries.join("kubectl"),
            folder,
            ca,
            front_proxy,
            kubelet_client,
            client,
            server,
            binaries: binaries.to_path_buf(),
            apiserver_arguments,
            etcd_arguments,
            apiserver,
            _manager: manager,
            etcd,
        })
    }

    /// Writes a kubeconfig for `server`.
    ///
    /// # Errors
    /// Returns an error if the file cannot be written.
    pub fn kubeconfig(
        &self,
        name: &str,
        server: &str,
        ca: &Path,
        user: &KubeconfigUser<'_>,
    ) -> Result<PathBuf> {
        kubeconfig(self.folder.path(), name, server, ca, user)
    }

    pub fn admin_kubeconfig(&self) -> PathBuf {
        self.folder.path().join("admin.kubeconfig")
    }

    pub fn apiserver_pid(&self) -> u32 {
        self.apiserver.0.id()
    }

    /// Requests a token of a service account with the TokenRequest API, as kubelets do for pods.
    ///
    /// # Errors
    /// Returns an error if the API server rejects the request.
    pub async fn token(
        &self,
        namespace: &str,
        account: &str,
        bound_to: Option<BoundObjectReference>,
    ) -> Result<String> {
        let accounts = Api::<ServiceAccount>::namespaced(self.client.clone(), namespace);
        let spec = TokenRequestSpec {
            bound_object_ref: bound_to,
            expiration_seconds: Some(3600),
            ..Default::default()
        };
        let request = TokenRequest {
            spec: Some(spec),
            ..TokenRequest::default()
        };
        let response = accounts
            .create_token_request(account, &PostParams::default(), &request)
            .await?;
        response
            .status
            .and_then(|status| status.token)
            .context("a TokenRequest returns a token")
    }

    /// Writes a kubeconfig with a token of the bastion's service account in `deploy/`.
    ///
    /// # Errors
    /// Returns an error if the API server rejects the token request.
    pub async fn bastion_kubeconfig(&self, name: &str, server: &str) -> Result<PathBuf> {
        let token = self.token(HOME, HOME, None).await?;
        self.kubeconfig(name, server, &self.ca.file, &KubeconfigUser::Token(&token))
    }

    /// Runs `kubectl` as the administrator of the cluster. Returns its standard output.
    ///
    /// # Errors
    /// Returns its standard error if it fails.
    pub fn kubectl(&self, arguments: &[&str]) -> Result<String> {
        let output = Command::new(&self.kubectl)
            .arg(format!(
                "--kubeconfig={}",
                self.admin_kubeconfig().display()
            ))
            .args(arguments)
            .current_dir(env!("CARGO_MANIFEST_DIR"))
            .output()?;
        ensure!(
            output.status.success(),
            "kubectl {}: {}",
            arguments.join(" "),
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Starts a second apiserver on the same data, with the command that `wrap` returns for its
    /// binary, and waits until it is ready.
    ///
    /// # Errors
    /// Returns an error if it cannot be started or does not become ready.
    pub async fn another_apiserver(
        &self,
        wrap: impl Fn(&Path) -> Command,
    ) -> Result<(SocketAddr, Process)> {
        let name = "another-apiserver";
        for _ in 0..MAX_STARTS {
            let [port] = free_ports()?;
            let address = SocketAddr::from(([127, 0, 0, 1], port));
            let mut arguments = self.apiserver_arguments.clone();
            arguments.push(format!("--secure-port={port}"));
            let command = wrap(&self.binaries.join("kube-apiserver"));
            let mut process = start(self.folder.path(), name, command, &arguments)?;
            let mut has_exited = false;
            within(START_TIMEOUT, "another apiserver to be ready", async || {
                has_exited = process.has_exited()?;
                Ok(has_exited || is_ready(address, &self.ca.file).await)
            })
            .await?;
            if !has_exited {
                return Ok((address, process));
            }
            // A connection of another process may take a free port before the server does.
        }
        bail!("{name} exited {MAX_STARTS} times: see its log");
    }

    /// Starts an apiserver of several on the same data, which publishes its address in the service
    /// `kubernetes` and shuts down gracefully. Does not wait until it is ready.
    ///
    /// # Errors
    /// Returns an error if it cannot be started.
    pub fn replica(&self, name: &str, address: SocketAddr) -> Result<Process> {
        let mut arguments = self.apiserver_arguments.clone();
        // The last value of a flag counts.
        arguments.extend([
            format!("--bind-address={}", address.ip()),
            format!("--advertise-address={}", address.ip()),
            format!("--secure-port={}", address.port()),
            "--endpoint-reconciler-type=lease".into(),
            "--shutdown-delay-duration=5s".into(),
            "--shutdown-send-retry-after=true".into(),
        ]);
        let command = Command::new(self.binaries.join("kube-apiserver"));
        start(self.folder.path(), name, command, &arguments)
    }

    /// Kills the apiserver.
    pub fn stop_apiserver(&mut self) {
        let _ = self.apiserver.0.kill();
        let _ = self.apiserver.0.wait();
    }

    /// Starts the apiserver again on the same port.
    ///
    /// # Errors
    /// Returns an error if it does not become ready.
    pub async fn start_apiserver(&mut self) -> Result<()> {
        let binary = self.binaries.join("kube-apiserver");
        self.apiserver = spawn(self.folder.path(), &binary, &self.apiserver_arguments)?;
        wait_until_ready(&self.client, self.folder.path(), &mut self.apiserver).await
    }
}

impl Cluster {
    /// Kills etcd. The apiserver continues without its store.
    pub fn stop_etcd(&mut self) {
        let _ = self.etcd.0.kill();
        let _ = self.etcd.0.wait();
    }

    /// Starts etcd again on the same data, and waits until the apiserver is ready.
    ///
    /// # Errors
    /// Returns an error if one of them does not become ready.
    pub async fn start_etcd(&mut self) -> Result<()> {
        self.etcd = spawn(
            self.folder.path(),
            &self.binaries.join("etcd"),
            &self.etcd_arguments,
        )?;
        wait_until_ready(&self.client, self.folder.path(), &mut self.apiserver).await
    }
}

/// Controllers of the cluster. The last one fills the built-in roles.
const CONTROLLERS: [&str; 5] = [
    "endpointslice-controller",
    "endpoints-controller",
    "serviceaccount-controller",
    "root-ca-certificate-publisher-controller",
    "clusterrole-aggregation-controller",
];

/// Credentials in a kubeconfig.
pub enum KubeconfigUser<'a> {
    Certificate(&'a Pair),
    Token(&'a str),
    TokenFile(&'a Path),
}

pub fn kubeconfig(
    folder: &Path,
    name: &str,
    server: &str,
    ca: &Path,
    user: &KubeconfigUser<'_>,
) -> Result<PathBuf> {
    let user = match user {
        KubeconfigUser::Certificate(Pair { certificate, key }) => {
            format!(
                "{{client-certificate: {}, client-key: {}}}",
                certificate.display(),
                key.display()
            )
        }
        KubeconfigUser::Token(token) => format!("{{token: {token}}}"),
        KubeconfigUser::TokenFile(file) => format!("{{tokenFile: {}}}", file.display()),
    };
    let path = folder.join(format!("{name}.kubeconfig"));
    let ca = ca.display();
    let text = format!(
        "apiVersion: v1
kind: Config
clusters: [{{name: c, cluster: {{server: \"{server}\", certificate-authority: {ca}}}}}]
users: [{{name: u, user: {user}}}]
contexts: [{{name: c, context: {{cluster: c, user: u}}}}]
current-context: c
"
    );
    std::fs::write(&path, text)?;
    Ok(path)
}

async fn client(kubeconfig: &Path) -> Result<Client> {
    let kubeconfig = Kubeconfig::read_from(kubeconfig)?;
    let config =
        kube::Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await?;
    Ok(Client::try_from(config)?)
}

/// Returns true if the apiserver at an address is ready.
pub async fn is_ready(address: SocketAddr, ca: &Path) -> bool {
    let client = super::client::Client::connect(address, ca, None, None).await;
    let Ok(mut client) = client else {
        return false;
    };
    let response = client.get("/readyz").await;
    response.is_ok_and(|response| response.status == 200)
}

async fn wait_until_ready(client: &Client, folder: &Path, apiserver: &mut Process) -> Result<()> {
    let ready = within(START_TIMEOUT, "the apiserver to be ready", async || {
        ensure!(!apiserver.has_exited()?, "the apiserver exited");
        let request = http::Request::get("/readyz").body(Vec::new())?;
        Ok(client.request_text(request).await.is_ok())
    });
    ready.await.with_context(|| {
        let log = std::fs::read_to_string(folder.join("kube-apiserver.log")).unwrap_or_default();
        let last: Vec<_> = log.lines().rev().take(20).collect();
        format!(
            "the end of the apiserver's log:\n{}",
            last.into_iter().rev().collect::<Vec<_>>().join("\n")
        )
    })
}

/// Returns the folder of the control plane binaries, copied from `KUBEBUILDER_ASSETS` or built.
fn binaries() -> Result<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/cluster");
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cluster/build.sh");
    let status = Command::new("bash")
        .arg(&script)
        .arg(&folder)
        .status()
        .context("cannot run bash: install it")?;
    ensure!(
        status.success(),
        "{} could not provide the control plane: see above",
        script.display()
    );
    Ok(folder)
}

fn spawn(folder: &Path, binary: &Path, arguments: &[String]) -> Result<Process> {
    let name = binary
        .file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned();
    start(folder, &name, Command::new(binary), arguments)
}

fn start(folder: &Path, name: &str, mut command: Command, arguments: &[String]) -> Result<Process> {
    let log = File::options()
        .create(true)
        .append(true)
        .open(folder.join(format!("{name}.log")))?;
    let child = command
        .args(arguments)
        .envs(PROXY_ENVIRONMENT)
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .spawn()
        .with_context(|| format!("cannot start {name}"))?;
    Ok(Process(child))
}

/// Returns different ports that no process uses.
fn free_ports<const N: usize>() -> Result<[u16; N]> {
    let mut held = Vec::new();
    let mut ports = [0; N];
    for port in &mut ports {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        *port = listener.local_addr()?.port();
        held.push(listener);
    }
    Ok(ports)
}
