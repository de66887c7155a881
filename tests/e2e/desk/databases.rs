//! Databases through `kube-bastion forward`, with their own clients.

use std::path::Path;
use std::process::Output;

use anyhow::{Result, ensure};
use serde_json::json;

use super::forward::{account, forward};
use crate::fixture::{Fixture, SHOP};
use crate::support::postgres::Postgres;
use crate::support::program::find_program;
use crate::support::streaming_kubelet::StreamingKubelet;

/// Last byte of the address of the pod.
const LAST: u8 = 36;

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
    let address = fixture.namespace.address(LAST);
    let postgres = Postgres::start(&fixture.namespace, address, &fixture.serving).await?;
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
    postgres.stop().await
}
