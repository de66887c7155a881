//! General differences, which `table.rs` declares. Each is checked as far as the row allows before
//! it is ignored. Rows with its name under `exact` compare it.

#![expect(
    clippy::unnecessary_wraps,
    reason = "all checks have the same signature"
)]

use super::super::observe::Observation;
use super::super::send::HOST;
use super::super::table::Row;

/// Checks a general difference and removes it from both observations.
pub type Check = fn(&Row, &mut Observation, &mut Observation) -> Result<(), String>;

/// Checks of [`GENERAL_DIFFERENCES`](super::super::table::GENERAL_DIFFERENCES), by name.
pub const CHECKS: [(&str, Check); 17] = [
    ("forwarded", forwarded),
    ("gzip", gzip),
    ("server-name", server_name),
    ("order", order),
    ("audit-forwarded", audit_forwarded),
    ("switched", switched),
    ("audit-id", audit_id),
    ("flow", flow),
    ("date", date),
    ("sniffed", sniffed),
    ("unparsed", unparsed),
    ("phrase", phrase),
    ("html-length", html_length),
    ("transport-words", transport_words),
    ("causes", causes),
    ("challenge", challenge),
    ("credentials", credentials),
];

/// Returns the prefix of the aspects of each request that a backend received.
fn request_prefixes(observation: &Observation) -> Vec<String> {
    let count = observation
        .get("received")
        .and_then(|count| count.parse().ok())
        .unwrap_or(0);
    (1..=count)
        .map(|index: usize| {
            if index == 1 {
                "received".into()
            } else {
                format!("received {index}")
            }
        })
        .collect()
}

fn client_sends(row: &Row, name: &str) -> bool {
    let is = |line: &str| {
        line.split(':')
            .next()
            .is_some_and(|found| found.trim().eq_ignore_ascii_case(name))
    };
    lines(row).any(is)
}

/// Returns the header lines that the client sends.
fn lines(row: &Row) -> impl Iterator<Item = &str> {
    let raw = row.raw.as_deref().unwrap_or_default();
    row.headers.iter().map(String::as_str).chain(
        raw.lines()
            .map(|line| line.trim_start_matches("{credentials}")),
    )
}

fn is_upgrade(row: &Row) -> bool {
    lines(row).any(|line| {
        let line = line.to_ascii_lowercase();
        line.starts_with("connection:") && line.contains("upgrade")
    })
}

fn forwarded(
    row: &Row,
    bastion: &mut Observation,
    apiserver: &mut Observation,
) -> Result<(), String> {
    let host = row.host.as_deref().unwrap_or(HOST);
    for prefix in request_prefixes(bastion) {
        for (name, expected) in [("x-forwarded-host", host), ("x-forwarded-proto", "https")] {
            let found = bastion.remove(&format!("{prefix} header {name}"));
            if found.as_deref() != Some(expected) && row.raw.is_none() {
                return Err(format!(
                    "bastion should send {name}: {expected}, and sends {found:?}"
                ));
            }
            if !client_sends(row, name)
                && apiserver.contains_key(&format!("{prefix} header {name}"))
            {
                return Err(format!("apiserver adds {name}"));
            }
        }
        let name = "x-forwarded-prefix";
        let found = bastion.remove(&format!("{prefix} header {name}"));
        // An upgrade has no `X-Forwarded-Uri` to compare with.
        let uri = bastion.get(&format!("{prefix} header x-forwarded-uri"));
        let is_prefix = found.as_deref().is_some_and(|found| {
            found.ends_with("/proxy") && uri.is_none_or(|uri| uri.starts_with(found))
        });
        if !is_prefix && row.raw.is_none() {
            return Err(format!(
                "bastion should send the path up to /proxy as {name}, and sends {found:?}"
            ));
        }
        if apiserver.contains_key(&format!("{prefix} header {name}")) {
            return Err(format!("apiserver sends {name}"));
        }
    }
    Ok(())
}

fn gzip(row: &Row, bastion: &mut Observation, apiserver: &mut Observation) -> Result<(), String> {
    if client_sends(row, "accept-encoding") {
        return Ok(());
    }
    let bare = row.method() == "HEAD" || client_sends(row, "range") || is_upgrade(row);
    for prefix in request_prefixes(apiserver) {
        let name = format!("{prefix} header accept-encoding");
        match apiserver.remove(&name) {
            Some(value) if value == "gzip" && !bare => {}
            None if bare => {}
            found => {
                return Err(format!(
                    "apiserver should request gzip, and requests {found:?}"
                ));
            }
        }
        if let Some(value) = bastion.get(&name) {
            return Err(format!(
                "bastion requests {value}, which the client did not"
            ));
        }
    }
    Ok(())
}

/// Returns the server name that the bastion sends to the target of a row.
fn expected_server_name(row: &Row) -> String {
    let (_, path) = row.request.split_once(' ').unwrap_or_default();
    let mut segments = path
        .split('/')
        .skip_while(|segment| !["nodes", "pods", "services"].contains(segment));
    let kind = segments.next().unwrap_or_default();
    // `name`, `name:port` or `scheme:name:port`.
    let id: Vec<_> = segments.next().unwrap_or_default().split(':').collect();
    let name = if id.len() == 3 { id[1] } else { id[0] };
    match kind {
        "services" => format!("{name}.table.svc"),
        "nodes" => name.to_owned(),
        _ => "none".to_owned(),
    }
}

fn server_name(
    row: &Row,
    bastion: &mut Observation,
    apiserver: &mut Observation,
) -> Result<(), String> {
    for (side, observation, expected) in [
        ("bastion", bastion, expected_server_name(row)),
        ("apiserver", apiserver, "none".to_owned()),
    ] {
        for prefix in request_prefixes(observation) {
            let found = observation.remove(&format!("{prefix} server name"));
            if let Some(found) = found.filter(|found| *found != expected) {
                return Err(format!(
                    "{side} should send the server name {expected}, and sends {found}"
                ));
            }
        }
    }
    Ok(())
}

fn order(row: &Row, bastion: &mut Observation, apiserver: &mut Observation) -> Result<(), String> {
    let sent: Vec<_> = row
        .headers
        .iter()
        .filter_map(|line| Some(line.split_once(':')?.0.to_ascii_lowercase()))
        .collect();
    for prefix in request_prefixes(bastion) {
        let order = bastion
            .get(&format!("{prefix} order"))
            .cloned()
            .unwrap_or_default();
        let received: Vec<_> = order
            .split(' ')
            .filter(|name| is_kept(name) && sent.iter().any(|sent| sent == name))
            .collect();
        let sent: Vec<_> = sent
            .iter()
            .filter(|name| received.contains(&&***name))
            .collect();
        if received != sent {
            return Err(format!("bastion sends {received:?} instead of {sent:?}"));
        }
    }
    for side in [bastion, apiserver] {
        side.retain(|name, _| {
            !(name.starts_with("received") && (name.ends_with(" order") || name.ends_with(" case")))
        });
    }
    Ok(())
}

/// Returns true for headers that are forwarded rather than generated.
fn is_kept(name: &str) -> bool {
    !name.starts_with("x-forwarded-")
        && !["connection", "upgrade", "te", "cookie", "audit-id"].contains(&name)
}

fn flow(_: &Row, _: &mut Observation, apiserver: &mut Observation) -> Result<(), String> {
    apiserver.retain(|name, _| !name.starts_with("header x-kubernetes-pf-"));
    Ok(())
}

fn audit_forwarded(
    row: &Row,
    bastion: &mut Observation,
    apiserver: &mut Observation,
) -> Result<(), String> {
    if client_sends(row, "audit-id") {
        return Ok(());
    }
    for (index, prefix) in request_prefixes(bastion).into_iter().enumerate() {
        let name = format!("{prefix} header audit-id");
        // The response belongs to the first request.
        let forwarded = bastion.remove(&name);
        if index == 0
            && bastion
                .get("header audit-id")
                .is_some_and(|id| forwarded.as_ref() != Some(id))
        {
            return Err("bastion forwards another Audit-Id than it returns".into());
        }
        if apiserver.contains_key(&name) {
            return Err("apiserver forwards an Audit-Id, too".into());
        }
    }
    Ok(())
}

fn switched(
    row: &Row,
    bastion: &mut Observation,
    apiserver: &mut Observation,
) -> Result<(), String> {
    if !is_upgrade(row) {
        return Ok(());
    }
    if !client_sends(row, "user-agent") {
        for prefix in request_prefixes(apiserver) {
            if let Some(agent) = apiserver
                .remove(&format!("{prefix} header user-agent"))
                .filter(|agent| !agent.starts_with("Go-http-client/"))
            {
                return Err(format!("apiserver sends the User-Agent {agent}"));
            }
        }
    }
    // Responses of the proxy itself have these headers on both sides.
    if apiserver.contains_key("header audit-id") || bastion.get("status") != apiserver.get("status")
    {
        return Ok(());
    }
    for name in ["header audit-id", "header date"] {
        if !apiserver.contains_key(name) && bastion.remove(name).is_none() {
            return Err(format!("bastion has no {name}"));
        }
    }
    if bastion.get("status").map(String::as_str) != Some("101") {
        // A Cache-Control of the backend is compared as other headers are.
        if !apiserver.contains_key("header cache-control") {
            match bastion.remove("header cache-control").as_deref() {
                Some("no-cache, private") => {}
                found => {
                    return Err(format!("bastion should send no-cache, and sends {found:?}"));
                }
            }
        }
        apiserver.remove("header connection");
        match bastion.remove("header connection").as_deref() {
            Some("close") => {}
            found => {
                return Err(format!(
                    "bastion should send Connection: close, and sends {found:?}"
                ));
            }
        }
        if !apiserver.contains_key("header content-length")
            && !apiserver.contains_key("header transfer-encoding")
        {
            match bastion.remove("header transfer-encoding").as_deref() {
                None | Some("chunked") => {}
                found => return Err(format!("bastion has the transfer encoding {found:?}")),
            }
        }
    }
    Ok(())
}

fn audit_id(
    row: &Row,
    bastion: &mut Observation,
    apiserver: &mut Observation,
) -> Result<(), String> {
    if client_sends(row, "audit-id") {
        return Ok(());
    }
    for (side, found) in [("bastion", bastion), ("apiserver", apiserver)] {
        let is_uuid = |value: &str| value.len() == 36 && value.split('-').count() == 5;
        for (name, value) in found
            .iter_mut()
            .filter(|(name, _)| name.ends_with("header audit-id"))
        {
            if !is_uuid(value) {
                return Err(format!("{side} has {name}: {value}"));
            }
            *value = "a UUID".into();
        }
    }
    Ok(())
}

fn date(_: &Row, bastion: &mut Observation, apiserver: &mut Observation) -> Result<(), String> {
    for found in [bastion, apiserver] {
        for name in ["header date", "trailer date"] {
            if let Some(value) = found
                .get_mut(name)
                .filter(|value| value.ends_with(" GMT") && !value.contains("1999"))
            {
                *value = "now".into();
            }
        }
    }
    Ok(())
}

fn sniffed(
    row: &Row,
    bastion: &mut Observation,
    apiserver: &mut Observation,
) -> Result<(), String> {
    const TYPE: &str = "header content-type";
    if !row
        .backend_text()
        .to_ascii_lowercase()
        .contains("content-type:")
        && !bastion.contains_key(TYPE)
    {
        apiserver.remove(TYPE);
    }
    Ok(())
}

fn unparsed(_: &Row, bastion: &mut Observation, apiserver: &mut Observation) -> Result<(), String> {
    let is_400 = |found: &Observation| {
        let has = |name: &str, value: &str| found.get(name).is_some_and(|found| found == value);
        has("status", "400") && has("received", "0")
    };
    let is_plain = !apiserver.contains_key("header audit-id") && !apiserver.contains_key("message");
    if is_400(bastion) && is_400(apiserver) && is_plain {
        for required in ["header audit-id", "message", "reason"] {
            if !bastion.contains_key(required) {
                return Err(format!(
                    "bastion rejects a malformed request without a {required}"
                ));
            }
        }
        let unparsed = |name: &str| {
            name.starts_with("header ") || matches!(name, "body" | "message" | "reason")
        };
        for found in [bastion, apiserver] {
            found.retain(|name, _| !unparsed(name));
        }
    }
    Ok(())
}

fn phrase(row: &Row, bastion: &mut Observation, apiserver: &mut Observation) -> Result<(), String> {
    if bastion.get("status") == apiserver.get("status") {
        if let (Some(status), Some(phrase)) = (bastion.get("status"), bastion.get("reason phrase"))
        {
            let backend = row.backend_text();
            // The proxy selects the phrase of a status that is not from the backend.
            if backend.contains(&format!(" {status} "))
                && !backend.contains(&format!(" {status} {phrase}"))
            {
                return Err(format!(
                    "bastion sends the phrase {phrase:?}, which the backend did not"
                ));
            }
        }
        bastion.remove("reason phrase");
        apiserver.remove("reason phrase");
    }
    Ok(())
}

fn html_length(
    _: &Row,
    bastion: &mut Observation,
    apiserver: &mut Observation,
) -> Result<(), String> {
    let is = |found: &Observation, name: &str, value: &str| {
        found
            .get(name)
            .is_some_and(|found| found.starts_with(value))
    };
    let page = |found: &Observation| is(found, "header content-type", "text/html");
    if page(bastion)
        && page(apiserver)
        && is(bastion, "header transfer-encoding", "chunked")
        && is(apiserver, "header content-length", "")
    {
        bastion.remove("header transfer-encoding");
        apiserver.remove("header content-length");
    }
    Ok(())
}

/// Prefixes of errors that are followed by a text of Go or of Rust.
const ERROR_PREFIXES: [&str; 4] = [
    "error trying to reach service: ",
    "error dialing backend: ",
    "lookup no..such.host: ",
    "Internal error occurred: error trying to parse Location header: ",
];

/// Compares the prefix of an error exactly, and ignores the text of the library after it.
fn transport_words(
    _: &Row,
    bastion: &mut Observation,
    apiserver: &mut Observation,
) -> Result<(), String> {
    for prefix in ERROR_PREFIXES {
        let begins = |found: &Observation| {
            found
                .get("message")
                .is_some_and(|message| message.starts_with(prefix))
        };
        if begins(bastion) && begins(apiserver) {
            for found in [&mut *bastion, apiserver] {
                found.insert("message".into(), format!("{prefix}…"));
                // These repeat the text.
                found.remove("causes");
                found.remove("details");
            }
            return Ok(());
        }
    }
    Ok(())
}

/// Ignores the causes, the body and its length, and compares the rest of the Status.
fn causes(_: &Row, bastion: &mut Observation, apiserver: &mut Observation) -> Result<(), String> {
    let refused = bastion
        .get("status")
        .is_some_and(|status| ["401", "403", "503"].contains(&&**status));
    if !refused || apiserver.contains_key("causes") || bastion.remove("causes").is_none() {
        return Ok(());
    }
    for found in [bastion, apiserver] {
        found.remove("body");
        found.remove("header content-length");
        if let Some(details) = found.remove("details") {
            let mut details: serde_json::Value = serde_json::from_str(&details).unwrap_or_default();
            if let Some(details) = details.as_object_mut() {
                details.remove("causes");
                if !details.is_empty() {
                    found.insert(
                        "details".into(),
                        serde_json::to_string(details).unwrap_or_default(),
                    );
                }
            }
        }
    }
    Ok(())
}

fn challenge(
    _: &Row,
    bastion: &mut Observation,
    apiserver: &mut Observation,
) -> Result<(), String> {
    if bastion.get("status").map(String::as_str) != Some("401") {
        return Ok(());
    }
    if apiserver.contains_key("header www-authenticate") {
        return Err("apiserver sends a challenge, too".into());
    }
    match bastion.remove("header www-authenticate").as_deref() {
        Some("Bearer") => Ok(()),
        found => Err(format!("bastion should send Bearer, and sends {found:?}")),
    }
}

/// Prefixes of a JSON Web Token, plain and in the base64 of a WebSocket subprotocol.
const TOKEN_PREFIXES: [&str; 2] = ["eyJ", "ZXlK"];

fn credentials(
    _: &Row,
    bastion: &mut Observation,
    apiserver: &mut Observation,
) -> Result<(), String> {
    if let Some(name) = bastion.keys().find(|name| is_identity(name)) {
        return Err(format!("bastion forwards the identity header {name}"));
    }
    for (side, found) in [("bastion", bastion), ("apiserver", apiserver)] {
        // Kubelets get the token of the server itself.
        let leaked = |name: &str, value: &str| {
            name.starts_with("received")
                && TOKEN_PREFIXES.iter().any(|token| value.contains(token))
                && !is_own(value)
        };
        if let Some((name, _)) = found.iter().find(|(name, value)| leaked(name, value)) {
            return Err(format!("{side} forwards the token of the caller: {name}"));
        }
    }
    Ok(())
}

/// Returns true for aspects that are identity headers, which only front proxies may send.
fn is_identity(name: &str) -> bool {
    let Some(name) = name
        .strip_prefix("received")
        .and_then(|name| Some(name.split_once(" header ")?.1))
    else {
        return false;
    };
    ["x-remote-user", "x-remote-group", "x-remote-uid"].contains(&name)
        || name.starts_with("x-remote-extra-")
        || name.starts_with("impersonate-")
}

/// Returns true for the token of the bastion, which is replaced by a placeholder.
fn is_own(value: &str) -> bool {
    value == "Bearer {own token}"
}
