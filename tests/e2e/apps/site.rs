//! An application as a service with one pod, and the address that a browser has for it.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use k8s_openapi::api::core::v1::{Service, ServiceAccount};
use serde_json::json;
use tempfile::TempDir;

use crate::clients::{KubectlProxy, drive};
use crate::fixture::{Fixture, SHOP, path};
use crate::support::cluster::KubeconfigUser;
use crate::support::net::Namespace;
use crate::support::program::{Program, command_in_namespace};
use crate::support::streaming_kubelet::StreamingKubelet;

/// Last byte of the address of all applications. Each has a port of its own.
const LAST: u8 = 55;
/// Maximum time for an application to start, on a busy machine.
const START_TIMEOUT: Duration = Duration::from_mins(2);
const VERBS: [&str; 5] = ["get", "create", "update", "patch", "delete"];

/// Paths that the endpoint is asked for.
#[derive(Clone, Copy, PartialEq)]
pub enum Paths {
    /// Without the prefix, which is the default.
    Stripped,
    /// With the prefix, by the annotation `kube-bastion.dev/path: keep`.
    Kept,
}

/// Credentials that `kubectl proxy` adds for the browser.
#[derive(Clone, Copy)]
pub enum Caller {
    Token,
    Certificate,
}

/// Server of `kube-bastion open`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Opened {
    Bastion,
    /// The plain API server, by port-forward.
    ApiServer,
}

/// Way of the browser to the application.
enum Way {
    KubectlProxy(KubectlProxy),
    /// `kube-bastion open`, and the URL that it prints.
    Open(
        #[expect(dead_code, reason = "kills the process when it is dropped")] Program,
        String,
    ),
}

/// Service, pod and local proxy of one application. Dropping it kills its programs.
pub struct Site<'a> {
    /// Name of the application in `apps.mjs`.
    app: &'static str,
    name: String,
    /// Address of the pod.
    pub address: SocketAddr,
    /// Path of the proxy subresource, without a slash at its end.
    pub prefix: String,
    /// Empty folder for the files of the application, and its home.
    pub folder: TempDir,
    namespace: &'a Namespace,
    way: Way,
    programs: Vec<Program>,
}

impl<'a> Site<'a> {
    pub async fn new(
        fixture: &'a Fixture,
        name: &'static str,
        port: u16,
        paths: Paths,
        caller: Caller,
    ) -> Result<Self> {
        let annotations = match paths {
            Paths::Stripped => json!({}),
            Paths::Kept => json!({"kube-bastion.dev/path": "keep"}),
        };
        create(fixture, name, port, annotations).await?;
        let proxy = kubectl_proxy(fixture, name, caller).await?;
        Self::with(fixture, name, name.into(), port, Way::KubectlProxy(proxy))
    }

    /// An application that needs no setting, because `kube-bastion open` shows it at the root of a
    /// host of its own.
    pub async fn opened(
        fixture: &'a Fixture,
        app: &'static str,
        port: u16,
        server: Opened,
    ) -> Result<Self> {
        let way = match server {
            Opened::Bastion => "bastion",
            Opened::ApiServer => "port-forward",
        };
        let name = format!("{app}-by-{way}");
        let kubeconfig = match server {
            Opened::Bastion => {
                let server = format!("https://{}", fixture.bastion.secure);
                let token = account(fixture, &format!("{name}-user")).await?;
                let (cluster, user) = (&fixture.cluster, KubeconfigUser::Token(&token));
                cluster.kubeconfig(&name, &server, &cluster.ca.file, &user)?
            }
            Opened::ApiServer => fixture.cluster.admin_kubeconfig(),
        };
        create(fixture, &name, port, json!({})).await?;
        let mut command = Command::new(env!("CARGO_BIN_EXE_kube-bastion"));
        command
            .args(["open", "--no-browser", "-n", SHOP, "--via", way])
            .arg(format!("svc/{name}"))
            .arg("--kubeconfig")
            .arg(kubeconfig);
        let mut open = Program::start(&mut command)?;
        let host = format!("http://{name}--{SHOP}.localhost:");
        let line = open.wait_for_line(&host).await?;
        let url = line.split_once(": ").context("a URL")?.1;
        let url = url.trim_end_matches('/').to_owned();
        Self::with(fixture, app, name, port, Way::Open(open, url))
    }

    fn with(
        fixture: &'a Fixture,
        app: &'static str,
        name: String,
        port: u16,
        way: Way,
    ) -> Result<Self> {
        Ok(Self {
            app,
            address: SocketAddr::from((fixture.namespace.address(LAST), port)),
            prefix: match way {
                Way::KubectlProxy(_) => path(&format!("services/{name}/proxy")),
                Way::Open(..) => String::new(),
            },
            name,
            folder: tempfile::tempdir()?,
            namespace: &fixture.namespace,
            way,
            programs: Vec::new(),
        })
    }

    /// Origin of the browser's requests.
    pub fn origin(&self) -> Result<String> {
        match &self.way {
            Way::KubectlProxy(proxy) => Ok(format!("http://{}", proxy.address()?)),
            Way::Open(_, url) => Ok(url.clone()),
        }
    }

    /// URL in the browser, without a slash at its end.
    pub fn base(&self) -> Result<String> {
        Ok(self.origin()? + &self.prefix)
    }

    /// Returns a command that runs in the network namespace of the pod, with the folder as its home
    /// and working directory.
    pub fn command(&self, program: &Path) -> Command {
        let mut command = command_in_namespace(self.namespace, program);
        command
            .current_dir(self.folder.path())
            .env("HOME", self.folder.path());
        command
    }

    /// Starts a program and waits until it prints `line`.
    pub async fn start(&mut self, command: &mut Command, line: &str) -> Result<()> {
        let mut program = Program::start(command)?;
        program.wait_for_line_within(START_TIMEOUT, line).await?;
        self.programs.push(program);
        Ok(())
    }

    /// Starts a program that prints nothing.
    pub fn start_silent(&mut self, command: &mut Command) -> Result<()> {
        self.programs.push(Program::start(command)?);
        Ok(())
    }

    /// Uses the application in a browser, by the steps in `tests/clients/browser/apps.mjs`.
    pub async fn visit(&self) -> Result<()> {
        let screenshots = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/screenshots");
        std::fs::create_dir_all(&screenshots)?;
        let screenshot = screenshots.join(format!("{}.png", self.name));
        let setting = json!({"base": self.base()?, "app": self.app, "screenshot": screenshot});
        drive("apps.mjs", setting).await
    }
}

/// Creates the pod and the service of an application.
async fn create(
    fixture: &Fixture,
    name: &str,
    port: u16,
    annotations: serde_json::Value,
) -> Result<()> {
    let (objects, address) = (&fixture.objects, fixture.namespace.address(LAST));
    objects
        .pod(name, json!({"app": name}), address, json!([]))
        .await?;
    objects
        .create::<Service>(json!({
            "metadata": {"name": name, "annotations": annotations},
            "spec": {"selector": {"app": name}, "ports": [{"port": 80, "targetPort": port}]},
        }))
        .await?;
    fixture
        .wait_until_known(&format!("services/{name}:80"))
        .await
}

/// Starts the kubelet of the applications' node for port-forward to a pod.
pub async fn kubelet(fixture: &Fixture, pod: &str) -> Result<StreamingKubelet> {
    let kubelet =
        StreamingKubelet::start(&fixture.cluster, &fixture.namespace, "node-1", 2).await?;
    kubelet.set_address(SHOP, pod, fixture.namespace.address(LAST))?;
    Ok(kubelet)
}

/// Returns a file of `tests/clients/apps`.
pub fn file(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/clients/apps")
        .join(name)
}

/// Creates a service account that may send all methods to services. Returns its token.
async fn account(fixture: &Fixture, user: &str) -> Result<String> {
    let objects = &fixture.objects;
    objects
        .create::<ServiceAccount>(json!({"metadata": {"name": user}}))
        .await?;
    let subject = json!({"kind": "ServiceAccount", "name": user, "namespace": SHOP});
    objects
        .allow(user, subject, &["services/proxy"], &VERBS)
        .await?;
    fixture.cluster.token(SHOP, user, None).await
}

async fn kubectl_proxy(fixture: &Fixture, name: &str, caller: Caller) -> Result<KubectlProxy> {
    let server = format!("https://{}", fixture.bastion.secure);
    let objects = &fixture.objects;
    let user = format!("{name}-user");
    match caller {
        Caller::Token => {
            let token = account(fixture, &user).await?;
            KubectlProxy::by_port_as(fixture, &server, &KubeconfigUser::Token(&token)).await
        }
        Caller::Certificate => {
            let subject = json!({"kind": "User", "name": user});
            objects
                .allow(&user, subject, &["services/proxy"], &VERBS)
                .await?;
            let folder = fixture.cluster.folder.path();
            let pair = fixture.cluster.ca.client(folder, &user, "users")?;
            KubectlProxy::by_port_as(fixture, &server, &KubeconfigUser::Certificate(&pair)).await
        }
    }
}
