//! Databases through `kube-bastion forward`, with their own clients.

use std::path::Path;
use std::process::{Command, Output};

use anyhow::{Context, Result, ensure};
use serde_json::json;
use tempfile::TempDir;

use super::forward::{account, forward};
use crate::fixture::{Fixture, SHOP};
use crate::support::program::{Program, command_in_namespace, find_program};
use crate::support::streaming_kubelet::StreamingKubelet;

/// Last byte of the address of the pod.
const LAST: u8 = 36;
/// `PostgreSQL` does not run as root.
const NOBODY: u32 = 65534;

/// Running server. Dropping it kills the process.
struct Postgres {
    _program: Program,
    _folder: TempDir,
}

/// Returns a command of `PostgreSQL` that runs without privileges. Debian has its servers outside
/// of the `PATH`.
fn unprivileged(fixture: &Fixture, name: &str) -> Result<Command> {
    let help = "on Debian, apt-get install postgresql";
    let program = find_program(&[name], help).or_else(|error| {
        let versions = std::fs::read_dir("/usr/lib/postgresql").map_err(|_| error)?;
        let programs =
            versions.filter_map(|version| Some(version.ok()?.path().join("bin").join(name)));
        let mut programs = programs.filter(|program| program.is_file());
        programs.next().context(help)
    })?;
    let setpriv = find_program(&["setpriv"], "on Debian, apt-get install util-linux")?;
    let mut command = command_in_namespace(&fixture.namespace, &setpriv);
    command
        .args([&*format!("--reuid={NOBODY}"), &format!("--regid={NOBODY}")])
        .arg("--clear-groups")
        .arg(program);
    Ok(command)
}

impl Postgres {
    async fn start(fixture: &Fixture) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let data = folder.path().join("data");
        std::fs::create_dir(&data)?;
        for path in [folder.path(), &data] {
            std::os::unix::fs::chown(path, Some(NOBODY), Some(NOBODY))?;
        }
        let output = unprivileged(fixture, "initdb")?
            .args(["--auth=trust", "--username=postgres", "--no-sync", "-D"])
            .arg(&data)
            .current_dir(folder.path())
            .output()?;
        ensure!(output.status.success(), "{output:?}");
        let address = fixture.namespace.address(LAST).to_string();
        std::fs::write(data.join("pg_hba.conf"), "host all all 0.0.0.0/0 trust\n")?;
        let mut command = unprivileged(fixture, "postgres")?;
        command
            .args(["-h", &address, "-c", "unix_socket_directories=", "-D"])
            .arg(&data)
            .current_dir(folder.path());
        let mut program = Program::start(&mut command)?;
        program.wait_for_line("ready to accept connections").await?;
        Ok(Self {
            _program: program,
            _folder: folder,
        })
    }
}

/// Runs a command of a shell with the local port of the database in `$FORWARD_PORT_1`.
fn run(kubeconfig: &Path, script: &str) -> Result<Output> {
    let arguments = ["svc/db", ":5432", "--", "sh", "-c", script];
    Ok(forward(kubeconfig, &arguments)
        .env("PGUSER", "postgres")
        .env("PGHOST", "127.0.0.1")
        .output()?)
}

/// `forward svc/db 5432 -- psql …` (kubernetes/kubernetes issue 97549), and a database that does not
/// exist, then another (issue 111825).
pub async fn psql_works_through_forward(fixture: &mut Fixture) -> Result<()> {
    let psql = find_program(&["psql"], "on Debian, apt-get install postgresql-client")?;
    let psql = format!("PGPORT=$FORWARD_PORT_1 {}", psql.display());
    let kubelet =
        StreamingKubelet::start(&fixture.cluster, &fixture.namespace, "node-1", 2).await?;
    let _postgres = Postgres::start(fixture).await?;
    let address = fixture.namespace.address(LAST);
    let ports = json!([{"name": "postgres", "containerPort": 5432}]);
    let labels = json!({"app": "db"});
    fixture.objects.pod("db-0", labels, address, ports).await?;
    let ports = json!([{"name": "postgres", "port": 5432, "targetPort": "postgres"}]);
    let spec = json!({"selector": {"app": "db"}, "ports": ports});
    fixture.objects.service("db", spec).await?;
    fixture.wait_until_known("services/db:5432").await?;
    kubelet.set_address(SHOP, "db-0", address)?;
    for kubeconfig in &account(fixture, "databases").await? {
        for (arguments, expected) in [
            ("-Atc 'select 42'", 0),
            ("-c 'select 1/0'", 1),
            ("nosuchdb -c 'select 1'", 2),
        ] {
            let output = run(kubeconfig, &format!("{psql} {arguments}"))?;
            ensure!(
                output.status.code() == Some(expected),
                "{arguments}: {output:?}"
            );
        }
        let script = format!(
            "{psql} nosuchdb -c 'select 1'; {psql} -Atc \"select repeat('x', 5000000)\" | wc -c; \
             {psql} -Atc 'select 42'"
        );
        let output = run(kubeconfig, &script)?;
        let (text, error) = (
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr),
        );
        ensure!(text == "5000001\n42\n", "{text}{error}");
        ensure!(
            error.contains("database \"nosuchdb\" does not exist"),
            "{error}"
        );
    }
    Ok(())
}
