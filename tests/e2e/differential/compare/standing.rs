//! General differences, which `table.rs` declares. Each is checked as far as the row allows before
//! it is ignored. Rows with its name under `exact` compare it.

#![expect(
    clippy::unnecessary_wraps,
    reason = "all checks have the same signature"
)]

use super::super::ask::HOST;
use super::super::observe::Observation;
use super::super::table::Row;

/// Checks a general difference and removes it from both observations.
pub type Overlook = fn(&Row, &mut Observation, &mut Observation) -> Result<(), String>;

/// Checks of [`STANDING`](super::super::table::STANDING), by name.
pub const OVERLOOK: [(&str, Overlook); 16] = [
    ("forwarded", forwarded),
    ("gzip", gzip),
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
fn saws(observation: &Observation) -> Vec<String> {
    let count = observation
        .get("saw")
        .and_then(|count| count.parse().ok())
        .unwrap_or(0);
    (1..=count)
        .map(|index: usize| {
            if index == 1 {
                "saw".into()
            } else {
                format!("saw {index}")
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

fn forwarded(row: &Row, ours: &mut Observation, theirs: &mut Observation) -> Result<(), String> {
    let host = row.host.as_deref().unwrap_or(HOST);
    for saw in saws(ours) {
        for (name, expected) in [("x-forwarded-host", host), ("x-forwarded-proto", "https")] {
            let found = ours.remove(&format!("{saw} header {name}"));
            if found.as_deref() != Some(expected) && row.raw.is_none() {
                return Err(format!(
                    "ours should send {name}: {expected}, and sends {found:?}"
                ));
            }
            if !client_sends(row, name) && theirs.contains_key(&format!("{saw} header {name}")) {
                return Err(format!("theirs adds {name}"));
            }
        }
    }
    Ok(())
}

fn gzip(row: &Row, ours: &mut Observation, theirs: &mut Observation) -> Result<(), String> {
    if client_sends(row, "accept-encoding") {
        return Ok(());
    }
    let bare = row.method() == "HEAD" || client_sends(row, "range") || is_upgrade(row);
    for saw in saws(theirs) {
        let name = format!("{saw} header accept-encoding");
        match theirs.remove(&name) {
            Some(value) if value == "gzip" && !bare => {}
            None if bare => {}
            found => {
                return Err(format!(
                    "theirs should request gzip, and requests {found:?}"
                ));
            }
        }
        if let Some(value) = ours.get(&name) {
            return Err(format!("ours requests {value}, which the client did not"));
        }
    }
    Ok(())
}

fn order(row: &Row, ours: &mut Observation, theirs: &mut Observation) -> Result<(), String> {
    let sent: Vec<_> = row
        .headers
        .iter()
        .filter_map(|line| Some(line.split_once(':')?.0.to_ascii_lowercase()))
        .collect();
    for saw in saws(ours) {
        let order = ours
            .get(&format!("{saw} order"))
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
            return Err(format!("ours sends {received:?} instead of {sent:?}"));
        }
    }
    for side in [ours, theirs] {
        side.retain(|name, _| {
            !(name.starts_with("saw") && (name.ends_with(" order") || name.ends_with(" case")))
        });
    }
    Ok(())
}

/// Returns true for headers that are forwarded rather than generated.
fn is_kept(name: &str) -> bool {
    !name.starts_with("x-forwarded-")
        && !["connection", "upgrade", "te", "cookie", "audit-id"].contains(&name)
}

fn flow(_: &Row, _: &mut Observation, theirs: &mut Observation) -> Result<(), String> {
    theirs.retain(|name, _| !name.starts_with("header x-kubernetes-pf-"));
    Ok(())
}

fn audit_forwarded(
    row: &Row,
    ours: &mut Observation,
    theirs: &mut Observation,
) -> Result<(), String> {
    if client_sends(row, "audit-id") {
        return Ok(());
    }
    for (index, saw) in saws(ours).into_iter().enumerate() {
        let name = format!("{saw} header audit-id");
        // The response belongs to the first request.
        let forwarded = ours.remove(&name);
        if index == 0
            && ours
                .get("header audit-id")
                .is_some_and(|id| forwarded.as_ref() != Some(id))
        {
            return Err("ours forwards another Audit-Id than it returns".into());
        }
        if theirs.contains_key(&name) {
            return Err("theirs forwards an Audit-Id, too".into());
        }
    }
    Ok(())
}

fn switched(row: &Row, ours: &mut Observation, theirs: &mut Observation) -> Result<(), String> {
    if !is_upgrade(row) {
        return Ok(());
    }
    if !client_sends(row, "user-agent") {
        for saw in saws(theirs) {
            if let Some(agent) = theirs
                .remove(&format!("{saw} header user-agent"))
                .filter(|agent| !agent.starts_with("Go-http-client/"))
            {
                return Err(format!("theirs sends the User-Agent {agent}"));
            }
        }
    }
    // Responses of the proxy itself have these headers on both sides.
    if theirs.contains_key("header audit-id") || ours.get("status") != theirs.get("status") {
        return Ok(());
    }
    for name in ["header audit-id", "header date"] {
        if !theirs.contains_key(name) && ours.remove(name).is_none() {
            return Err(format!("ours has no {name}"));
        }
    }
    if ours.get("status").map(String::as_str) != Some("101") {
        // A Cache-Control of the backend is compared as other headers are.
        if !theirs.contains_key("header cache-control") {
            match ours.remove("header cache-control").as_deref() {
                Some("no-cache, private") => {}
                found => {
                    return Err(format!("ours should send no-cache, and sends {found:?}"));
                }
            }
        }
        theirs.remove("header connection");
        match ours.remove("header connection").as_deref() {
            Some("close") => {}
            found => {
                return Err(format!(
                    "ours should send Connection: close, and sends {found:?}"
                ));
            }
        }
        if !theirs.contains_key("header content-length")
            && !theirs.contains_key("header transfer-encoding")
        {
            match ours.remove("header transfer-encoding").as_deref() {
                None | Some("chunked") => {}
                found => return Err(format!("ours has the transfer encoding {found:?}")),
            }
        }
    }
    Ok(())
}

fn audit_id(row: &Row, ours: &mut Observation, theirs: &mut Observation) -> Result<(), String> {
    if client_sends(row, "audit-id") {
        return Ok(());
    }
    for (side, found) in [("ours", ours), ("theirs", theirs)] {
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

fn date(_: &Row, ours: &mut Observation, theirs: &mut Observation) -> Result<(), String> {
    for found in [ours, theirs] {
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

fn sniffed(row: &Row, ours: &mut Observation, theirs: &mut Observation) -> Result<(), String> {
    const TYPE: &str = "header content-type";
    if !row
        .backend_text()
        .to_ascii_lowercase()
        .contains("content-type:")
        && !ours.contains_key(TYPE)
    {
        theirs.remove(TYPE);
    }
    Ok(())
}

fn unparsed(_: &Row, ours: &mut Observation, theirs: &mut Observation) -> Result<(), String> {
    let is = |found: &Observation| {
        found.get("status").is_some_and(|status| status == "400")
            && !found.contains_key("header audit-id")
    };
    if is(ours) && is(theirs) {
        for found in [ours, theirs] {
            found.retain(|name, _| !name.starts_with("header ") && name != "body");
        }
    }
    Ok(())
}

fn phrase(row: &Row, ours: &mut Observation, theirs: &mut Observation) -> Result<(), String> {
    if ours.get("status") == theirs.get("status") {
        if let (Some(status), Some(phrase)) = (ours.get("status"), ours.get("reason phrase")) {
            let backend = row.backend_text();
            // The proxy selects the phrase of a status that is not from the backend.
            if backend.contains(&format!(" {status} "))
                && !backend.contains(&format!(" {status} {phrase}"))
            {
                return Err(format!(
                    "ours sends the phrase {phrase:?}, which the backend did not"
                ));
            }
        }
        ours.remove("reason phrase");
        theirs.remove("reason phrase");
    }
    Ok(())
}

fn html_length(_: &Row, ours: &mut Observation, theirs: &mut Observation) -> Result<(), String> {
    let is = |found: &Observation, name: &str, value: &str| {
        found
            .get(name)
            .is_some_and(|found| found.starts_with(value))
    };
    let page = |found: &Observation| is(found, "header content-type", "text/html");
    if page(ours)
        && page(theirs)
        && is(ours, "header transfer-encoding", "chunked")
        && is(theirs, "header content-length", "")
    {
        ours.remove("header transfer-encoding");
        theirs.remove("header content-length");
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
    ours: &mut Observation,
    theirs: &mut Observation,
) -> Result<(), String> {
    for prefix in ERROR_PREFIXES {
        let begins = |found: &Observation| {
            found
                .get("message")
                .is_some_and(|message| message.starts_with(prefix))
        };
        if begins(ours) && begins(theirs) {
            for found in [&mut *ours, theirs] {
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
fn causes(_: &Row, ours: &mut Observation, theirs: &mut Observation) -> Result<(), String> {
    let refused = ours
        .get("status")
        .is_some_and(|status| ["403", "503"].contains(&&**status));
    if !refused || theirs.contains_key("causes") || ours.remove("causes").is_none() {
        return Ok(());
    }
    for found in [ours, theirs] {
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

fn challenge(_: &Row, ours: &mut Observation, theirs: &mut Observation) -> Result<(), String> {
    if ours.get("status").map(String::as_str) != Some("401") {
        return Ok(());
    }
    if theirs.contains_key("header www-authenticate") {
        return Err("theirs sends a challenge, too".into());
    }
    match ours.remove("header www-authenticate").as_deref() {
        Some("Bearer") => Ok(()),
        found => Err(format!("ours should send Bearer, and sends {found:?}")),
    }
}

/// Prefixes of a JSON Web Token, plain and in the base64 of a WebSocket subprotocol.
const TOKEN_PREFIXES: [&str; 2] = ["eyJ", "ZXlK"];

fn credentials(_: &Row, ours: &mut Observation, theirs: &mut Observation) -> Result<(), String> {
    if let Some(name) = ours.keys().find(|name| is_identity(name)) {
        return Err(format!("ours forwards the identity header {name}"));
    }
    for (side, found) in [("ours", ours), ("theirs", theirs)] {
        // Kubelets get the token of the server itself.
        let leaked = |name: &str, value: &str| {
            name.starts_with("saw")
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
        .strip_prefix("saw")
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
