//! Rows with several requests, or with another kind of client.

pub mod rebinding;
mod sockets;

use std::collections::BTreeMap;

use anyhow::{Context, Result, bail};

use super::observe::{Observation, observe};
use super::send::{Side, send, send_h2};
use super::setting::Setting;
use super::table::Row;
use crate::support::raw::{Script, Step};

/// Runs the scenario of a row.
///
/// # Errors
/// Returns an error if the name is unknown or the scenario cannot be run.
pub async fn run(name: &str, setting: &Setting<'_>, side: &Side, row: &Row) -> Result<Observation> {
    match name {
        "round_robin" => round_robin(setting, side).await,
        "failover" => failover(setting, side).await,
        "upgrade_failover" => upgrade_failover(setting, side).await,
        "affinity" => affinity(setting, side).await,
        "long_query" => long_query(setting, side).await,
        "long_header" => long_header(setting, side).await,
        "many_headers" => many_headers(setting, side).await,
        "many_response_headers" => many_response_headers(setting, side).await,
        "hints_over_h2" => sockets::hints_over_h2(setting, side).await,
        "unauthenticated_over_h2" => unauthenticated_over_h2(setting, side).await,
        "websocket_over_h2" => sockets::websocket_over_h2(setting, side, row).await,
        "rebinding" => rebinding::rebinding(setting, side).await,
        _ => bail!("unknown scenario {name:?}"),
    }
}

/// Sends one request as the caller of the row.
pub async fn send_row(setting: &Setting<'_>, side: &Side, row: &Row) -> Result<Observation> {
    setting.backends.begin(row.backend.clone());
    let by = setting.callers.get(&row.caller)?;
    let response = match row.http {
        Some(2) => send_h2(side, row, by, &setting.backends).await?,
        _ => send(side, row, by, &setting.backends).await?,
    };
    Ok(observe(&response, &setting.backends.finish().await))
}

fn get(path: &str) -> Row {
    Row {
        caller: "operator".into(),
        request: format!("GET {path}"),
        ..Row::default()
    }
}

async fn endpoints(
    setting: &Setting<'_>,
    side: &Side,
    service: &str,
    count: usize,
) -> Result<Vec<String>> {
    let mut endpoints = Vec::new();
    for _ in 0..count {
        let mut found =
            send_row(setting, side, &get(&format!("services/{service}/proxy/x"))).await?;
        endpoints.push(
            found
                .remove("received at")
                .with_context(|| format!("the result of {service} is {found:?}"))?,
        );
    }
    Ok(endpoints)
}

async fn round_robin(setting: &Setting<'_>, side: &Side) -> Result<Observation> {
    let endpoints = endpoints(setting, side, "trio", 30).await?;
    let mut shares = BTreeMap::<_, usize>::new();
    endpoints
        .iter()
        .for_each(|endpoint| *shares.entry(endpoint).or_default() += 1);
    let shares: Vec<_> = shares.values().map(ToString::to_string).collect();
    let in_turn = endpoints
        .windows(4)
        .all(|four| four[0] == four[3] && four[0] != four[1]);
    Ok([("shares", shares.join(" ")), ("in turn", yes(in_turn))]
        .map(owned)
        .into())
}

/// One of two endpoints is dead.
async fn failover(setting: &Setting<'_>, side: &Side) -> Result<Observation> {
    let mut succeeded = 0;
    for _ in 0..24 {
        let found = send_row(setting, side, &get("services/half-dead/proxy/x")).await?;
        succeeded += usize::from(found.get("status").is_some_and(|status| status == "200"));
    }
    Ok([("all succeeded", yes(succeeded == 24))].map(owned).into())
}

async fn upgrade_failover(setting: &Setting<'_>, side: &Side) -> Result<Observation> {
    let page = "HTTP/1.1 101 Switching Protocols\nConnection: Upgrade\nUpgrade: websocket";
    let backend = Script {
        steps: vec![Step::Page(page.into()), Step::Close],
    };
    let headers = vec!["Connection: Upgrade".into(), "Upgrade: websocket".into()];
    let row = Row {
        headers,
        backend,
        ..get("services/half-dead/proxy/x")
    };
    let mut succeeded = 0;
    for _ in 0..24 {
        let found = send_row(setting, side, &row).await?;
        succeeded += usize::from(found.get("status").is_some_and(|status| status == "101"));
    }
    Ok([("all succeeded", yes(succeeded == 24))].map(owned).into())
}

async fn affinity(setting: &Setting<'_>, side: &Side) -> Result<Observation> {
    let mut endpoints = endpoints(setting, side, "sticky", 24).await?;
    endpoints.sort_unstable();
    endpoints.dedup();
    Ok([("endpoints", endpoints.len().to_string())]
        .map(owned)
        .into())
}

async fn long_query(setting: &Setting<'_>, side: &Side) -> Result<Observation> {
    let rest = format!("{}?q={}", "segment/".repeat(256), "0123456789".repeat(400));
    let found = send_row(setting, side, &get(&format!("pods/p/proxy/{rest}"))).await?;
    let line = found.get("received line").cloned().unwrap_or_default();
    let status = found.get("status").cloned().unwrap_or_default();
    Ok([
        ("status", status),
        ("passed", yes(line == format!("GET /{rest} HTTP/1.1"))),
    ]
    .map(owned)
    .into())
}

async fn long_header(setting: &Setting<'_>, side: &Side) -> Result<Observation> {
    let value = "0123456789abcdef".repeat(1024);
    let row = Row {
        headers: vec![format!("X-Long: {value}")],
        ..get("pods/p/proxy/x")
    };
    let mut found = send_row(setting, side, &row).await?;
    let passed = found
        .get("received header x-long")
        .is_some_and(|found| *found == value);
    Ok([
        ("status", found.remove("status").unwrap_or_default()),
        ("passed", yes(passed)),
    ]
    .map(owned)
    .into())
}

/// Number of header fields, above the limit of the HTTP/1.1 library.
const HEADER_COUNT: usize = 120;

async fn many_headers(setting: &Setting<'_>, side: &Side) -> Result<Observation> {
    let row = Row {
        headers: (1..=HEADER_COUNT)
            .map(|index| format!("X-Many-{index}: 1"))
            .collect(),
        ..get("pods/p/proxy/x")
    };
    counted(
        &send_row(setting, side, &row).await?,
        "received header x-many-",
    )
}

async fn many_response_headers(setting: &Setting<'_>, side: &Side) -> Result<Observation> {
    let lines: String = (1..=HEADER_COUNT)
        .map(|index| format!("X-Many-{index}: 1\n"))
        .collect();
    let page = format!("HTTP/1.1 200 OK\n{lines}Content-Length: auto\n\nok");
    let row = Row {
        backend: Script {
            steps: vec![Step::Page(page)],
        },
        ..get("pods/p/proxy/x")
    };
    counted(&send_row(setting, side, &row).await?, "header x-many-")
}

/// Checks whether all of the [`HEADER_COUNT`] headers have passed.
fn counted(found: &Observation, prefix: &str) -> Result<Observation> {
    let passed = found.keys().filter(|name| name.starts_with(prefix)).count() == HEADER_COUNT;
    let value = |name: &str| {
        found
            .get(name)
            .cloned()
            .with_context(|| format!("{name} is missing: {found:?}"))
    };
    Ok([
        ("status", value("status")?),
        ("received", value("received")?),
        ("passed", yes(passed)),
    ]
    .map(owned)
    .into())
}

/// Checks whether an HTTP/2 connection still serves after a 401.
async fn unauthenticated_over_h2(setting: &Setting<'_>, side: &Side) -> Result<Observation> {
    let wrong = setting
        .callers
        .get("wrong")?
        .token
        .clone()
        .context("the caller has a token")?;
    let good = setting
        .callers
        .get("operator")?
        .token
        .clone()
        .context("the caller has a token")?;
    let (mut sender, _connection) = sockets::connect(side).await?;
    let first = sockets::send(
        &mut sender,
        "/api/v1/namespaces/table/pods/p/proxy/x",
        &wrong,
    )
    .await?;
    let second = sockets::send(
        &mut sender,
        "/api/v1/namespaces/table/pods/p/proxy/x",
        &good,
    )
    .await;
    let second = second.map_or_else(|_| "refused".into(), |status| status.to_string());
    Ok([
        ("first", first.to_string()),
        ("second on the same connection", second),
    ]
    .map(owned)
    .into())
}

fn owned((name, value): (&str, String)) -> (String, String) {
    (name.to_owned(), value)
}

fn yes(is: bool) -> String {
    if is { "yes" } else { "no" }.into()
}
