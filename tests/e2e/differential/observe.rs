//! Observation of a response and of the requests that the backends received, as named aspects that
//! are compared separately.

use std::collections::BTreeMap;
use std::io::Read;

use flate2::read::{DeflateDecoder, GzDecoder, ZlibDecoder};
use serde_json::Value;

use super::send::RecordedResponse;
use crate::support::raw::{Field, Head, Seen};

/// Aspects by name, as `status`, `header content-type`, `body`, `received line`,
/// `received header host`.
pub type Observation = BTreeMap<String, String>;

/// Length in bytes beyond which a body is represented by its length and a checksum.
const MAX_TEXT_BYTES: usize = 4096;

pub fn observe(response: &RecordedResponse, seen: &[Seen]) -> Observation {
    let mut aspects = Observation::new();
    let mut set = |name: String, value: String| drop(aspects.insert(name, value));
    if let Some(head) = &response.head {
        let mut parts = head.line.splitn(3, ' ');
        set("version".into(), parts.next().unwrap_or_default().into());
        set("status".into(), parts.next().unwrap_or_default().into());
        if let Some(phrase) = parts.next() {
            set("reason phrase".into(), phrase.into());
        }
        let is_yaml = head.value("content-type") == Some("application/yaml");
        let counts = |field: &&Field| !(is_yaml && field.is("content-length"));
        let compared: Vec<_> = head.fields.iter().filter(counts).cloned().collect();
        fields("header", &compared, &mut set);
    }
    for (index, interim) in response.interim.iter().enumerate() {
        set(format!("interim {}", index + 1), interim_text(interim));
    }
    if response
        .head
        .as_ref()
        .is_some_and(|head| head.line.starts_with("HTTP/1.1 101"))
    {
        set("tunnel".into(), text(&response.tunnel));
    } else if response.head.is_some() {
        body(response, &mut set);
    }
    fields("trailer", &response.trailers, &mut set);
    set("end".into(), response.end.clone());
    if let Some(closed) = response.closed {
        set(
            "connection".into(),
            if closed { "closed" } else { "open" }.into(),
        );
    }
    set("received".into(), seen.len().to_string());
    for (index, seen) in seen.iter().enumerate() {
        let prefix = if index == 0 {
            "received".into()
        } else {
            format!("received {}", index + 1)
        };
        request_aspects(&prefix, seen, &mut set);
    }
    aspects
}

fn body(response: &RecordedResponse, set: &mut impl FnMut(String, String)) {
    let status = status_of(response);
    let kind = response
        .head
        .as_ref()
        .and_then(|head| head.value("content-type"));
    if let Some(status) = &status {
        for name in ["message", "reason"] {
            if let Some(value) = status.get(name).and_then(Value::as_str) {
                set(name.into(), value.into());
            }
        }
        if let Some(details) = status.get("details") {
            set("details".into(), details.to_string());
        }
        if let Some(causes) = status
            .get("details")
            .and_then(|details| details.get("causes"))
        {
            set("causes".into(), causes.to_string());
        }
    }
    // YAML serializers fold and quote the same text differently.
    if let Some(status) = status.filter(|_| kind == Some("application/yaml")) {
        set("body".into(), status.to_string());
        return;
    }
    // Compressors produce different bytes for the same text.
    match decoded(response) {
        Some(decoded) => set("body decoded".into(), text(&decoded)),
        None => set("body".into(), text(&response.body)),
    }
}

fn decoded(response: &RecordedResponse) -> Option<Vec<u8>> {
    let body = &*response.body;
    let mut decoded = Vec::new();
    match response.head.as_ref()?.value("content-encoding")? {
        "gzip" => GzDecoder::new(body).read_to_end(&mut decoded).ok()?,
        "deflate" => {
            let zlib = ZlibDecoder::new(body).read_to_end(&mut decoded);
            zlib.or_else(|_| {
                decoded.clear();
                DeflateDecoder::new(body).read_to_end(&mut decoded)
            })
            .ok()?
        }
        _ => return None,
    };
    Some(decoded)
}

/// Parses the body as a `metav1.Status` in JSON or YAML.
fn status_of(response: &RecordedResponse) -> Option<Value> {
    let kind = response.head.as_ref()?.value("content-type")?;
    let text = std::str::from_utf8(&response.body).ok()?;
    let value: Value = match kind {
        "application/json" => serde_json::from_str(text).ok()?,
        "application/yaml" => serde_saphyr::from_str(text).ok()?,
        _ => return None,
    };
    (value["kind"] == "Status").then_some(value)
}

fn request_aspects(prefix: &str, seen: &Seen, set: &mut impl FnMut(String, String)) {
    set(format!("{prefix} line"), seen.line.clone());
    set(format!("{prefix} at"), seen.at.clone());
    fields(&format!("{prefix} header"), &seen.fields, set);
    let names: Vec<_> = seen
        .fields
        .iter()
        .map(|field| field.name.to_ascii_lowercase())
        .collect();
    set(format!("{prefix} order"), names.join(" "));
    let names: Vec<_> = seen.fields.iter().map(|field| &*field.name).collect();
    let mut sorted = names.clone();
    sorted.sort_unstable_by_key(|name| name.to_ascii_lowercase());
    set(format!("{prefix} case"), sorted.join(" "));
    fields(&format!("{prefix} trailer"), &seen.trailers, set);
    for (part, bytes) in [("body", &seen.body), ("tunnel", &seen.tunnel)] {
        if !bytes.is_empty() {
            set(format!("{prefix} {part}"), text(bytes));
        }
    }
    if let Some(got) = seen.glance {
        set(
            format!("{prefix} glance"),
            if got { "yes" } else { "no" }.into(),
        );
    }
    if let Some(end) = &seen.end {
        set(format!("{prefix} end"), end.clone());
    }
    if let Some(tls) = &seen.tls {
        set(
            format!("{prefix} certificate"),
            tls.client.clone().unwrap_or_else(|| "none".into()),
        );
        set(
            format!("{prefix} server name"),
            tls.server_name.clone().unwrap_or_else(|| "none".into()),
        );
    }
}

/// Adds header fields by name. The values of repeated fields are joined, in order.
fn fields(part: &str, fields: &[Field], set: &mut impl FnMut(String, String)) {
    let mut by_name: BTreeMap<String, Vec<&str>> = BTreeMap::new();
    for field in fields {
        by_name
            .entry(field.name.to_ascii_lowercase())
            .or_default()
            .push(&field.value);
    }
    for (name, values) in by_name {
        set(format!("{part} {name}"), values.join(" | "));
    }
}

fn interim_text(head: &Head) -> String {
    let mut lines: Vec<_> = head
        .fields
        .iter()
        .map(|field| format!("{}: {}", field.name.to_ascii_lowercase(), field.value))
        .collect();
    lines.sort_unstable();
    format!(
        "{} {}",
        head.line.split(' ').nth(1).unwrap_or_default(),
        lines.join(", ")
    )
    .trim()
    .to_owned()
}

fn text(bytes: &[u8]) -> String {
    if bytes.len() <= MAX_TEXT_BYTES {
        return Field::escaped(bytes);
    }
    // FNV-1a is sufficient to distinguish bodies.
    let sum = bytes.iter().fold(0xcbf2_9ce4_8422_2325_u64, |sum, byte| {
        (sum ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    });
    format!("{} bytes, {sum:016x}", bytes.len())
}
