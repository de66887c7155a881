//! An application as a service with one pod, and the address that a browser has for it.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::Result;
use k8s_openapi::api::core::v1::{Service, ServiceAccount};
use serde_json::json;
use tempfile::TempDir;

use crate::clients::{KubectlProxy, drive};
use crate::fixture::{Fixture, SHOP, path};
use crate::support::cluster::KubeconfigUser;
use crate::support::net::Namespace;
use crate::support::program::{Program, command_in_namespace};

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

/// Service, pod and `kubectl proxy` of one application. Dropping it kills its programs.
pub struct Site<'a> {
    name: &'static str,
    /// Address of the pod.
    pub address: SocketAddr,
    /// Path of the proxy subresource, without a slash at its end.
    pub prefix: String,
    /// Empty folder for the files of the application, and its home.
    pub folder: TempDir,
    namespace: &'a Namespace,
    proxy: KubectlProxy,
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
        let address = SocketAddr::from((fixture.namespace.address(LAST), port));
        let annotations = match paths {
            Paths::Stripped => json!({}),
            Paths::Kept => json!({"kube-bastion.dev/path": "keep"}),
        };
        let objects = &fixture.objects;
        objects
            .pod(
                name,
                json!({"app": name}),
                fixture.namespace.address(LAST),
                json!([]),
            )
            .await?;
        objects
            .create::<Service>(json!({
                "metadata": {"name": name, "annotations": annotations},
                "spec": {"selector": {"app": name}, "ports": [{"port": 80, "targetPort": port}]},
            }))
            .await?;
        let proxy = kubectl_proxy(fixture, name, caller).await?;
        fixture
            .wait_until_known(&format!("services/{name}:80"))
            .await?;
        Ok(Self {
            name,
            address,
            prefix: path(&format!("services/{name}/proxy")),
            folder: tempfile::tempdir()?,
            namespace: &fixture.namespace,
            proxy,
            programs: Vec::new(),
        })
    }

    /// Origin of the browser's requests.
    pub fn origin(&self) -> Result<String> {
        Ok(format!("http://{}", self.proxy.address()?))
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
        let setting = json!({"base": self.base()?, "app": self.name, "screenshot": screenshot});
        drive("apps.mjs", setting).await
    }
}

/// Returns a file of `tests/clients/apps`.
pub fn file(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/clients/apps")
        .join(name)
}

async fn kubectl_proxy(fixture: &Fixture, name: &str, caller: Caller) -> Result<KubectlProxy> {
    let server = format!("https://{}", fixture.bastion.secure);
    let objects = &fixture.objects;
    let user = format!("{name}-user");
    match caller {
        Caller::Token => {
            objects
                .create::<ServiceAccount>(json!({"metadata": {"name": user}}))
                .await?;
            let subject = json!({"kind": "ServiceAccount", "name": user, "namespace": SHOP});
            objects
                .allow(&user, subject, &["services/proxy"], &VERBS)
                .await?;
            let token = fixture.cluster.token(SHOP, &user, None).await?;
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
