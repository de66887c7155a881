//! kubectl, and `kubectl proxy`, which adds the token of the caller for clients without one.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::fixture::{Fixture, path};
use crate::support::cluster::KubeconfigUser;
use crate::support::program::Program;

/// All methods of `--raw`, with a kubeconfig for the bastion. The output, including errors, equals
/// that through the apiserver.
pub async fn kubectl_works_with_a_kubeconfig_for_the_bastion(fixture: &mut Fixture) -> Result<()> {
    fixture.wait_until_known("services/web:80").await?;
    let folder = fixture.cluster.folder.path();
    let body = folder.join("order.json");
    std::fs::write(&body, r#"{"order": "tea"}"#)?;
    let by = KubeconfigUser::Token(&fixture.token);
    let kubeconfig = |name: &str, server: &str| {
        fixture
            .cluster
            .kubeconfig(name, server, &fixture.cluster.ca.file, &by)
    };
    let by_apiserver = kubeconfig("by-the-apiserver", &fixture.cluster.server)?;
    let by_bastion = kubeconfig(
        "by-the-bastion",
        &format!("https://{}", fixture.bastion.secure),
    )?;
    let file = format!("--filename={}", body.display());
    for (arguments, succeeds, says) in [
        (
            &["get", "--raw", &path("pods/web-1/proxy/name")][..],
            true,
            "web-1",
        ),
        (
            &["get", "--raw", &path("services/https:safe:443/proxy/name")],
            true,
            "safe-1",
        ),
        (
            &["create", "--raw", &path("pods/web-1/proxy/echo"), &file],
            true,
            r#"{"order": "tea"}"#,
        ),
        (
            &["replace", "--raw", &path("pods/web-1/proxy/echo"), &file],
            false,
            "(Forbidden)",
        ),
        (
            &["delete", "--raw", &path("pods/web-1/proxy/echo")],
            false,
            "(Forbidden)",
        ),
        (
            &["get", "--raw", &path("pods/nobody/proxy/")],
            false,
            r#"(NotFound): pods "nobody" not found"#,
        ),
        (
            &["get", "--raw", &path("services/a:b:c/proxy/")],
            false,
            r#"invalid service request "a:b:c""#,
        ),
        (
            &["get", "--raw", &path("services/web:81/proxy/")],
            false,
            "no service port 81 found",
        ),
        (
            &[
                "get",
                "--raw",
                "/api/v1/namespaces/default/pods/web-1/proxy/",
            ],
            false,
            "(Forbidden)",
        ),
    ] {
        let run = |kubeconfig: &Path| -> Result<(bool, String)> {
            let mut command = Command::new(&fixture.cluster.kubectl);
            let output = command
                .arg("--kubeconfig")
                .arg(kubeconfig)
                .args(arguments)
                .output()?;
            let text = [output.stdout, output.stderr].concat();
            Ok((
                output.status.success(),
                String::from_utf8_lossy(&text).into_owned(),
            ))
        };
        let (by_apiserver, by_bastion) = (run(&by_apiserver)?, run(&by_bastion)?);
        ensure!(
            by_bastion == by_apiserver,
            "{arguments:?}: bastion {by_bastion:?}, apiserver {by_apiserver:?}"
        );
        ensure!(
            by_bastion.0 == succeeds && by_bastion.1.contains(says),
            "{arguments:?}: {by_bastion:?}"
        );
    }
    Ok(())
}

/// Output before the address.
const ADDRESS_PREFIX: &str = "Starting to serve on ";

/// Running `kubectl proxy`. Dropping it kills the process.
pub struct KubectlProxy {
    /// Address that it prints, or the path of its socket.
    place: String,
    folder: tempfile::TempDir,
    _program: Program,
}

impl KubectlProxy {
    /// Starts it for `server` on a free loopback port, with the token of the caller.
    pub async fn by_port(fixture: &Fixture, server: &str) -> Result<Self> {
        Self::by_port_as(fixture, server, &KubeconfigUser::Token(&fixture.token)).await
    }

    /// Starts it for `server` on a free loopback port, with the credentials of `user`.
    pub async fn by_port_as(
        fixture: &Fixture,
        server: &str,
        user: &KubeconfigUser<'_>,
    ) -> Result<Self> {
        Self::start(fixture, server, user, |_| "--port=0".into()).await
    }

    /// Starts it for `server` on a Unix socket in a temporary folder.
    pub async fn by_socket(fixture: &Fixture, server: &str) -> Result<Self> {
        let user = KubeconfigUser::Token(&fixture.token);
        Self::start(fixture, server, &user, |folder| {
            format!("--unix-socket={}", folder.join("socket").display())
        })
        .await
    }

    async fn start(
        fixture: &Fixture,
        server: &str,
        user: &KubeconfigUser<'_>,
        how: impl FnOnce(PathBuf) -> String,
    ) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let kubeconfig =
            fixture
                .cluster
                .kubeconfig("kubectl-proxy", server, &fixture.cluster.ca.file, user)?;
        let mut command = Command::new(&fixture.cluster.kubectl);
        command
            .arg("proxy")
            .arg(how(folder.path().into()))
            .arg(format!("--kubeconfig={}", kubeconfig.display()));
        let mut program = Program::start(&mut command)?;
        let line = program.wait_for_line(ADDRESS_PREFIX).await?;
        let place = line
            .split_once(ADDRESS_PREFIX)
            .context("the line contains the prefix")?
            .1
            .trim()
            .to_owned();
        Ok(Self {
            place,
            folder,
            _program: program,
        })
    }

    pub fn address(&self) -> Result<SocketAddr> {
        self.place
            .parse()
            .with_context(|| format!("kubectl proxy serves on {:?}", self.place))
    }

    pub fn socket(&self) -> PathBuf {
        self.folder.path().join("socket")
    }
}
