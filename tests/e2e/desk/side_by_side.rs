//! Sends every request of the table to `kubectl proxy` and to `kube-bastion proxy` with the same
//! flags, in front of the same API server, and compares the responses.
//!
//! `SIDE_BY_SIDE=TEXT` in the environment sends only the rows that contain `TEXT`, and
//! `SIDE_BY_SIDE_SHOW` prints all responses.

mod compare;
mod echo;
mod table;

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::differential::parse_response;
use crate::fixture::Fixture;
use crate::support::cluster::KubeconfigUser;
use crate::support::program::Program;
use compare::Observation;
use echo::EchoServer;
use table::{Flags, Row, Server};

/// Start of the line that both programs print.
const STARTED: &str = "Starting to serve on ";
/// Maximum time of a response, on a busy machine.
const TIMEOUT: Duration = Duration::from_secs(30);
/// Minimum number of rows, so that an empty table does not pass.
const MIN_ROWS: usize = 100;

/// Both proxies with one set of flags.
struct Pair {
    kubectl: (Program, SocketAddr),
    ours: (Program, SocketAddr),
}

pub async fn proxy_behaves_as_kubectl_proxy(fixture: &mut Fixture) -> Result<()> {
    let wanted = std::env::var("SIDE_BY_SIDE").unwrap_or_default();
    let shows = std::env::var_os("SIDE_BY_SIDE_SHOW").is_some();
    let echo = EchoServer::start().await?;
    let folder = site()?;
    let mut pairs = BTreeMap::new();
    let (mut sent, mut failures) = (0, Vec::new());
    for row in table::rows() {
        if !row.to_string().contains(&wanted) {
            continue;
        }
        let pair = match pairs.entry(row.flags) {
            Entry::Occupied(pair) => pair.into_mut(),
            Entry::Vacant(vacant) => {
                let pair = Pair::start(fixture, &echo, folder.path(), row.flags).await?;
                vacant.insert(pair)
            }
        };
        let kubectl = observe(pair.kubectl.1, &row).await?;
        let ours = observe(pair.ours.1, &row).await?;
        sent += 1;
        if shows {
            println!("{row}\n  kubectl: {kubectl:?}\n  ours:    {ours:?}");
        }
        if let Err(error) = row.expected.check(&kubectl, &ours) {
            failures.push(format!("{row}\n{error:#}"));
        }
    }
    ensure!(
        failures.is_empty(),
        "{} of {sent} rows:\n{}",
        failures.len(),
        failures.join("\n\n")
    );
    ensure!(sent >= MIN_ROWS || !wanted.is_empty(), "only {sent} rows");
    println!("{sent} rows");
    Ok(())
}

impl Pair {
    async fn start(
        fixture: &Fixture,
        echo: &EchoServer,
        site: &Path,
        flags: Flags,
    ) -> Result<Self> {
        let mut common = match flags.server {
            Server::Echo(path) => vec![
                "--kubeconfig=/dev/null".to_owned(),
                format!("--server=http://{}{path}", echo.address),
            ],
            Server::Admin => {
                let kubeconfig = fixture.cluster.admin_kubeconfig();
                vec![format!("--kubeconfig={}", kubeconfig.display())]
            }
            Server::Token => {
                let (cluster, token) = (&fixture.cluster, &fixture.token);
                let user = KubeconfigUser::Token(token);
                let kubeconfig =
                    cluster.kubeconfig("side-by-side", &cluster.server, &cluster.ca.file, &user)?;
                vec![format!("--kubeconfig={}", kubeconfig.display())]
            }
        };
        common.push("--port=0".into());
        let site = site.display().to_string();
        common.extend(
            flags
                .arguments
                .iter()
                .map(|flag| flag.replace("SITE", &site)),
        );
        let kubectl = Command::new(&fixture.cluster.kubectl);
        let ours = Command::new(env!("CARGO_BIN_EXE_kube-bastion"));
        Ok(Self {
            kubectl: start(kubectl, &common).await?,
            ours: start(ours, &common).await?,
        })
    }
}

/// Starts `proxy` and waits until it listens.
pub async fn start(mut command: Command, arguments: &[String]) -> Result<(Program, SocketAddr)> {
    command.arg("proxy").args(arguments);
    let mut program = Program::start(&mut command)?;
    let line = program.wait_for_line(STARTED).await?;
    let address = line.split_once(STARTED).context("the line has it")?.1;
    let address = address.trim().parse()?;
    Ok((program, address))
}

/// Sends the request of a row and records the response.
async fn observe(address: SocketAddr, row: &Row) -> Result<Observation> {
    let mut stream = TcpStream::connect(address).await?;
    // A server that responds early may close early, so write errors are ignored.
    let _ = stream.write_all(&row.bytes()).await;
    let mut bytes = Vec::new();
    let read = async {
        let mut buffer = vec![0; 64 << 10];
        loop {
            match stream.read(&mut buffer).await {
                Ok(0) | Err(_) => return true,
                Ok(count) => bytes.extend_from_slice(&buffer[..count]),
            }
            let response = parse_response(&bytes, row.method(), false);
            if response.complete || contains_end(&response.tunnel) {
                return false;
            }
        }
    };
    let ended = timeout(TIMEOUT, read)
        .await
        .with_context(|| format!("{row}: no complete response"))?;
    Ok(Observation::new(
        &parse_response(&bytes, row.method(), ended),
        row,
    ))
}

/// Returns true if a tunnel has the last line that the echo server sends.
fn contains_end(tunnel: &[u8]) -> bool {
    tunnel.ends_with(echo::TUNNEL_END)
}

/// Creates a directory with files of several types.
fn site() -> Result<TempDir> {
    let folder = tempfile::tempdir()?;
    let at = |name: &str| folder.path().join(name);
    std::fs::create_dir(at("sub"))?;
    std::fs::create_dir(at("list"))?;
    for (name, content) in [
        ("a.txt", "0123456789"),
        ("a.html", "<p>page</p>"),
        ("a.css", "p {}"),
        ("a.js", "let a;"),
        ("a.json", "{}"),
        ("a.svg", "<svg/>"),
        ("page", "<html><p>x</p></html>"),
        ("binary", "\u{0}\u{1}\u{2}"),
        ("text", "text"),
        ("empty.txt", ""),
        ("with space.txt", "space"),
        ("sub/index.html", "<p>index</p>"),
        ("list/b.txt", "b"),
        ("list/a?b#c%.txt", "a"),
        ("list/<i>'\"&(!)*[].txt", "i"),
        ("list/c:d", "c"),
    ] {
        std::fs::write(at(name), content)?;
    }
    std::fs::create_dir(at("list/dir"))?;
    std::os::unix::fs::symlink("a.txt", at("link"))?;
    Ok(folder)
}
