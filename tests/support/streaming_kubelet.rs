//! Kubelet of a node on the streaming server of Kubernetes, for `pods/exec`, `attach`,
//! `portforward` and `log`.

use std::fs::File;
use std::io::Write;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Result, ensure};
use k8s_openapi::api::core::v1::Node;
use kube::api::{Api, Patch, PatchParams, PostParams};
use serde_json::json;
use tempfile::TempDir;

use super::cluster::Cluster;
use super::net::Namespace;
use super::program::{Program, command_in_namespace, find_program};

const PORT: u16 = 10250;

/// Running kubelet. Its pods are commands and files of this machine: exec runs a command of the
/// machine, and port-forward connects from the namespace. Dropping it kills the process.
#[derive(Debug)]
pub struct StreamingKubelet {
    program: Program,
    folder: TempDir,
}

impl StreamingKubelet {
    /// Starts the kubelet of `node` at an address of the namespace, and registers it in the status
    /// of the node, which is created if it is missing.
    ///
    /// # Errors
    /// Returns an error if the program cannot be built or does not start.
    pub async fn start(
        cluster: &Cluster,
        namespace: &Namespace,
        node: &str,
        last: u8,
    ) -> Result<Self> {
        let binary = build()?;
        let folder = tempfile::tempdir()?;
        let address = namespace.address(last);
        let name = format!("kubelet-of-{node}");
        let serving = cluster
            .ca
            .server(cluster.folder.path(), &name, &[&address.to_string()])?;
        let mut command = command_in_namespace(namespace, &binary);
        command
            .arg(format!("--listen={address}:{PORT}"))
            .arg(format!("--cert={}", serving.certificate.display()))
            .arg(format!("--key={}", serving.key.display()))
            .arg(format!("--client-ca={}", cluster.ca.file.display()))
            .arg(format!("--dir={}", folder.path().display()));
        let mut program = Program::start(&mut command)?;
        program.wait_for_line("listening on").await?;
        register(cluster, node, address).await?;
        Ok(Self { program, folder })
    }

    /// Sets the address that port-forward to a pod connects to, instead of 127.0.0.1.
    ///
    /// # Errors
    /// Returns an error if the file cannot be written.
    pub fn set_address(&self, namespace: &str, pod: &str, address: Ipv4Addr) -> Result<()> {
        let file = self.pod(namespace, pod)?.join("address");
        Ok(std::fs::write(file, address.to_string())?)
    }

    /// Appends to the log of a container.
    ///
    /// # Errors
    /// Returns an error if the file cannot be written.
    pub fn append_log(
        &self,
        namespace: &str,
        pod: &str,
        container: &str,
        text: &str,
    ) -> Result<()> {
        let file = self.pod(namespace, pod)?.join(format!("{container}.log"));
        let mut file = File::options().create(true).append(true).open(file)?;
        Ok(file.write_all(text.as_bytes())?)
    }

    /// Returns the working directory of exec in a pod.
    ///
    /// # Errors
    /// Returns an error if it cannot be created.
    pub fn files(&self, namespace: &str, pod: &str) -> Result<PathBuf> {
        let folder = self.pod(namespace, pod)?.join("files");
        std::fs::create_dir_all(&folder)?;
        Ok(folder)
    }

    /// Requests, commands and connections so far, one per line.
    pub fn output(&self) -> Vec<String> {
        self.program.output()
    }

    /// Number of lines of the output that start with `prefix`.
    pub fn count(&self, prefix: &str) -> usize {
        let output = self.output();
        output
            .iter()
            .filter(|line| line.starts_with(prefix))
            .count()
    }

    fn pod(&self, namespace: &str, pod: &str) -> Result<PathBuf> {
        let folder = self.folder.path().join(format!("{namespace}_{pod}"));
        std::fs::create_dir_all(&folder)?;
        Ok(folder)
    }
}

async fn register(cluster: &Cluster, node: &str, address: Ipv4Addr) -> Result<()> {
    let nodes = Api::<Node>::all(cluster.client.clone());
    if nodes.get_opt(node).await?.is_none() {
        let object = serde_json::from_value(json!({"metadata": {"name": node}}))?;
        nodes.create(&PostParams::default(), &object).await?;
    }
    let status = json!({"status": {
        "addresses": [{"type": "InternalIP", "address": address}],
        "daemonEndpoints": {"kubeletEndpoint": {"Port": PORT}},
    }});
    nodes
        .patch_status(node, &PatchParams::default(), &Patch::Merge(status))
        .await?;
    Ok(())
}

/// Builds the program of tests/clients/kubelet from the modules in its go.sum.
fn build() -> Result<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let (source, programs) = (
        root.join("tests/clients/kubelet"),
        root.join("target/clients"),
    );
    let go = find_program(&["go"], "install Go 1.26 or later")?;
    std::fs::create_dir_all(&programs)?;
    let built = Command::new(go)
        .args([
            "build",
            "-mod=readonly",
            "-trimpath",
            "-buildvcs=false",
            "-o",
        ])
        .arg(&programs)
        .arg(".")
        .env("CGO_ENABLED", "0")
        .current_dir(&source)
        .output()?;
    ensure!(
        built.status.success(),
        "`go build` failed in {}:\n{}",
        source.display(),
        String::from_utf8_lossy(&built.stderr)
    );
    Ok(programs.join("kubelet"))
}
