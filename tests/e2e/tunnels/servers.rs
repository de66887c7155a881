//! Servers from Debian's packages in pods.

use std::net::Ipv4Addr;

use anyhow::Result;
use serde_json::json;

use crate::fixture::Fixture;
use crate::support::net::Namespace;
use crate::support::program::{Program, command_in_namespace, find_program};

pub const REDIS_PORT: u16 = 6379;

/// Creates a service and one pod at each of `addresses`, with the names `SERVICE-0`, `SERVICE-1`…
pub async fn publish(
    fixture: &Fixture,
    service: &str,
    (port, protocol): (u16, &str),
    addresses: &[Ipv4Addr],
) -> Result<()> {
    for (number, address) in addresses.iter().enumerate() {
        let (name, labels) = (format!("{service}-{number}"), json!({"app": service}));
        let ports = json!([{"containerPort": port, "protocol": protocol}]);
        fixture.objects.pod(&name, labels, *address, ports).await?;
    }
    let ports = json!([{"port": port, "protocol": protocol}]);
    let spec = json!({"selector": {"app": service}, "ports": ports});
    fixture.objects.service(service, spec).await
}

/// Starts Redis in a pod.
pub async fn redis(namespace: &Namespace, address: Ipv4Addr) -> Result<Program> {
    let redis = find_program(
        &["redis-server"],
        "on Debian, apt-get install redis-server redis-tools",
    )?;
    let mut command = command_in_namespace(namespace, &redis);
    command
        .args(["--bind", &address.to_string(), "--protected-mode", "no"])
        .args(["--port", &REDIS_PORT.to_string(), "--save", ""])
        .current_dir(std::env::temp_dir());
    let mut program = Program::start(&mut command)?;
    program.wait_for_line("Ready to accept connections").await?;
    Ok(program)
}
