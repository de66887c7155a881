//! `kubeconfig` against a bastion with a certificate of a CA, and with a self-signed one.

use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use anyhow::{Context, Result, ensure};
use kube::config::{KubeConfigOptions, Kubeconfig};

use crate::support::bastion::Bastion;
use crate::support::net::PROXY_ENVIRONMENT;
use crate::support::pki::Ca;
use crate::support::test_bed::TestBed;

/// Kubeconfig of the user, for another cluster. `t` is a token of the test bed.
const LOGIN: &str = "\
apiVersion: v1
kind: Config
# The clusters
clusters: [{name: old, cluster: {server: 'https://old.example'}}]
contexts:
- {name: old, context: {cluster: old, user: jane, namespace: shop}}
- {name: bare, context: {cluster: old}}
current-context: old
users:
- {name: jane, user: {token: t}}
";

/// A kubeconfig of the user, and further files.
struct Desk {
    folder: tempfile::TempDir,
    kubeconfig: PathBuf,
}

impl Desk {
    fn new() -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let kubeconfig = folder.path().join("config");
        std::fs::write(&kubeconfig, LOGIN)?;
        Ok(Self { folder, kubeconfig })
    }

    fn command(&self, server: &str, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_kube-bastion"));
        command
            .args(["kubeconfig", "--server", server])
            .args(arguments)
            .env("KUBECONFIG", &self.kubeconfig)
            .env("HOME", self.folder.path())
            .env_remove("SSL_CERT_FILE")
            .env_remove("SSL_CERT_DIR")
            .envs(PROXY_ENVIRONMENT);
        command
    }

    /// Runs the command, which must succeed. Returns its standard output.
    fn run(&self, server: &str, arguments: &[&str]) -> Result<String> {
        success(&self.command(server, arguments).output()?)
    }

    /// Runs the command, which must fail with one line. Returns that line.
    fn failure(&self, server: &str, arguments: &[&str]) -> Result<String> {
        failure(&self.command(server, arguments).output()?)
    }
}

fn success(output: &Output) -> Result<String> {
    let error = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{error}");
    Ok(String::from_utf8(output.stdout.clone())?)
}

fn failure(output: &Output) -> Result<String> {
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(output.status.code() == Some(1), "{output:?}");
    ensure!(output.stdout.is_empty(), "{output:?}");
    ensure!(error.trim_end().lines().count() == 1, "{error}");
    Ok(error)
}

fn path(path: &Path) -> Result<&str> {
    path.to_str().context("the path is UTF-8")
}

/// Sends a request as the context of a kubeconfig, and checks that the bastion accepts its user.
async fn ensure_works(text: &str, context: Option<&str>) -> Result<()> {
    let options = KubeConfigOptions {
        context: context.map(str::to_owned),
        ..KubeConfigOptions::default()
    };
    let kubeconfig = Kubeconfig::from_yaml(text)?;
    let config = kube::Config::from_custom_kubeconfig(kubeconfig, &options).await?;
    let client = kube::Client::try_from(config)?;
    let request = http::Request::get("/api/v1/namespaces/default/services/unknown/proxy/");
    let error = client.request_text(request.body(Vec::new())?).await;
    let error = error.err().context("the service does not exist")?;
    // An unknown caller would get a 401.
    ensure!(error.to_string().contains("unknown"), "{error}");
    ensure!(
        matches!(&error, kube::Error::Api(status) if status.code == 404),
        "{error}"
    );
    Ok(())
}

/// A bastion with a self-signed certificate, and the folder with its CA.
async fn self_signed() -> Result<(Bastion, tempfile::TempDir)> {
    kube_bastion::tls::install_provider();
    let folder = tempfile::tempdir()?;
    let manifests = folder.path().join("manifests");
    std::fs::create_dir(&manifests)?;
    let tokens = folder.path().join("tokens");
    std::fs::write(&tokens, "t,jane,1,\"system:masters\"\n")?;
    let bastion = Bastion::start(&[
        &format!("--manifests-dir={}", manifests.display()),
        &format!("--token-auth-file={}", tokens.display()),
        &format!("--self-signed-dir={}", folder.path().join("tls").display()),
    ])?;
    bastion.ready().await?;
    Ok((bastion, folder))
}

#[tokio::test]
async fn prints_a_kubeconfig_with_the_ca_of_a_file() -> Result<()> {
    let bed = TestBed::new().await?;
    let desk = Desk::new()?;
    let server = format!("https://localhost:{}", bed.bastion.secure.port());
    let text = desk.run(&server, &["--certificate-authority", path(&bed.ca.file)?])?;
    for part in [
        "namespace: shop",
        "current-context: localhost",
        "token: t",
        &server,
    ] {
        ensure!(text.contains(part), "{part:?} is missing in:\n{text}");
    }
    ensure!(
        !text.contains("old") && !text.contains("insecure"),
        "{text}"
    );
    ensure_works(&text, None).await
}

#[tokio::test]
async fn pins_the_ca_with_the_fingerprint() -> Result<()> {
    let (bastion, folder) = self_signed().await?;
    let desk = Desk::new()?;
    let server = format!("https://127.0.0.1:{}", bastion.secure.port());

    let error = desk.failure(&server, &[])?;
    let seen = error.split_once("--fingerprint ").context("a remedy")?.1;
    let seen = seen.split([',', ' ', '\n']).next().unwrap_or_default();
    ensure!(seen.starts_with("sha256:"), "{error}");
    // The operator reads it in the log of the bastion.
    ensure!(
        bastion.log().contains(&format!("\"ca_key\":\"{seen}\"")),
        "{}",
        bastion.log()
    );

    let text = desk.run(&server, &["--fingerprint", seen])?;
    ensure_works(&text, None).await?;

    let other = format!("sha256:{}", "0".repeat(64));
    let error = desk.failure(&server, &["--fingerprint", &other])?;
    ensure!(error.contains(&other) && error.contains(seen), "{error}");

    // The certificate of the server itself is not a CA, and the fingerprint of the whole
    // certificate is another one.
    let ca = std::fs::read(folder.path().join("tls/ca.crt"))?;
    let leaf = std::fs::read(folder.path().join("tls/tls.crt"))?;
    let leaf = kube_bastion::model::pem::certificates(&leaf)?;
    ensure!(kube_bastion::model::pem::certificates(&ca)?[0] == leaf[1]);
    let key = kube_bastion::tls::Fingerprint::new(&leaf[0]).context("a key")?;
    desk.failure(&server, &["--fingerprint", &key.to_string()])?;
    Ok(())
}

#[tokio::test]
async fn cas_of_the_system_are_not_copied() -> Result<()> {
    let bed = TestBed::new().await?;
    let desk = Desk::new()?;
    let server = format!("https://localhost:{}", bed.bastion.secure.port());
    let mut command = desk.command(&server, &["--name", "bastion"]);
    let text = success(&command.env("SSL_CERT_FILE", &bed.ca.file).output()?)?;
    ensure!(!text.contains("certificate-authority"), "{text}");
    ensure!(text.contains("current-context: bastion"), "{text}");

    let error = desk.failure(&server, &[])?;
    ensure!(error.contains("it sends no CA"), "{error}");
    ensure!(error.contains("--certificate-authority"), "{error}");
    Ok(())
}

#[tokio::test]
async fn merges_a_context_into_the_file_of_the_user() -> Result<()> {
    let (bastion, folder) = self_signed().await?;
    let desk = Desk::new()?;
    let server = format!("https://127.0.0.1:{}", bastion.secure.port());
    let ca = folder.path().join("tls/ca.crt");
    let arguments = [
        "--certificate-authority",
        path(&ca)?,
        "--name=bastion",
        "--merge",
    ];
    ensure!(desk.run(&server, &arguments)?.is_empty());
    let text = std::fs::read_to_string(&desk.kubeconfig)?;
    ensure!(text.contains("current-context: old"), "{text}");
    ensure_works(&text, Some("bastion")).await?;
    // The context uses the user that is there.
    ensure!(text.matches("token:").count() == 1, "{text}");
    let mode = std::fs::metadata(&desk.kubeconfig)?.permissions().mode();
    ensure!(mode & 0o777 == 0o600, "{mode:o}");

    let new = desk.folder.path().join("new/config");
    let arguments = [
        &arguments[..],
        &[path(&new)?, "--user-name=me", "--set-current"],
    ]
    .concat();
    desk.run(&server, &arguments)?;
    let text = std::fs::read_to_string(&new)?;
    ensure!(
        text.contains("name: me") && !text.contains("jane"),
        "{text}"
    );
    ensure_works(&text, None).await
}

#[tokio::test]
async fn errors_are_one_line_with_the_remedy() -> Result<()> {
    let bed = TestBed::new().await?;
    let desk = Desk::new()?;
    let port = bed.bastion.secure.port();
    let (localhost, by_address) = (
        format!("https://localhost:{port}"),
        format!("https://127.0.0.1:{port}"),
    );
    let other = Ca::new(desk.folder.path(), "other")?;
    let ca = ["--certificate-authority", path(&bed.ca.file)?];
    let unused = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
    let plain = format!("https://{}", bed.bastion.admin);
    let with_ca = |more: &[&'static str]| [&ca[..], more].concat();
    for (server, arguments, parts) in [
        (
            &*localhost,
            vec!["--certificate-authority", path(&other.file)?],
            &["--certificate-authority"][..],
        ),
        (
            &*by_address,
            with_ca(&[]),
            &["127.0.0.1", "localhost", "--tls-server-name"],
        ),
        (
            &*format!("https://{unused}"),
            with_ca(&[]),
            &["refused the connection", "--server"],
        ),
        (&*plain, with_ca(&[]), &["does not speak TLS", "--server"]),
        ("http://localhost:1", with_ca(&[]), &["https://HOST:PORT"]),
        ("https://", with_ca(&[]), &["https://HOST:PORT"]),
        (
            &*localhost,
            with_ca(&["--context=oldd"]),
            &["\"oldd\"", "old, bare", "did you mean"],
        ),
        (
            &*localhost,
            with_ca(&["--kubeconfig=/nonexistent"]),
            &["/nonexistent", "--kubeconfig"],
        ),
        (
            &*localhost,
            vec!["--certificate-authority=/nonexistent"],
            &["/nonexistent", "--certificate-authority"],
        ),
        (
            &*localhost,
            with_ca(&["--merge=/proc/config"]),
            &["/proc/config"],
        ),
    ] {
        let error = desk.failure(server, &arguments)?;
        for part in parts {
            ensure!(error.contains(part), "{server} {arguments:?}: {error}");
        }
        ensure!(!error.contains("DnsName("), "{error}");
    }
    let arguments = with_ca(&["--tls-server-name=localhost"]);
    let text = desk.run(&by_address, &arguments)?;
    ensure!(text.contains("tls-server-name: localhost"), "{text}");
    Ok(())
}

#[tokio::test]
async fn warns_of_a_context_without_a_user() -> Result<()> {
    let bed = TestBed::new().await?;
    let desk = Desk::new()?;
    let server = format!("https://localhost:{}", bed.bastion.secure.port());
    let ca = ["--certificate-authority", path(&bed.ca.file)?];
    let bare = [&ca[..], &["--context=bare"]].concat();
    let mut without_files = desk.command(&server, &ca);
    without_files
        .env_remove("KUBECONFIG")
        .env("HOME", "/nonexistent");
    for mut command in [desk.command(&server, &bare), without_files] {
        let output = command.output()?;
        let text = success(&output)?;
        ensure!(!text.contains("user"), "{text}");
        let warning = String::from_utf8_lossy(&output.stderr);
        ensure!(warning.contains("set-credentials"), "{warning}");
    }
    Ok(())
}
