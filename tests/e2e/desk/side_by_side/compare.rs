//! Comparison of two responses.

use anyhow::{Result, bail, ensure};

use super::echo;
use super::table::Row;
use crate::differential::{RecordedResponse, response_status};

/// Header fields of responses that are not compared: those that differ between two requests to one
/// server, and the framing, which may differ for equal bodies.
const IGNORED_FIELDS: [&str; 6] = [
    "audit-id",
    "connection",
    "content-length",
    "date",
    "keep-alive",
    "transfer-encoding",
];

/// Header fields of requests that only one of the proxies adds.
const ADDED_FIELDS: [&str; 4] = [
    "kubectl-command",
    "kubectl-session",
    // Each names itself if the client names no program.
    "user-agent",
    // kubectl decodes what the API server compresses for it.
    "accept-encoding",
];

/// Response, as far as it is compared.
#[derive(Clone, PartialEq, Eq)]
pub struct Observation {
    pub status: u16,
    interim: Vec<u16>,
    fields: Vec<String>,
    pub body: String,
    trailers: Vec<String>,
    tunnel: String,
}

impl std::fmt::Debug for Observation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let body: String = self.body.chars().take(600).collect();
        write!(
            f,
            "{:?} {} {:?} {body:?} {:?} {:?}",
            self.interim, self.status, self.fields, self.trailers, self.tunnel
        )
    }
}

impl Observation {
    pub fn new(response: &RecordedResponse, row: &Row) -> Self {
        let head = response.head.clone().unwrap_or_default();
        let mut fields: Vec<String> = head
            .fields
            .iter()
            .filter(|field| !IGNORED_FIELDS.iter().any(|ignored| field.is(ignored)))
            .map(|field| format!("{}: {}", field.name.to_lowercase(), field.value))
            .collect();
        fields.sort();
        let mut trailers: Vec<String> = response
            .trailers
            .iter()
            .map(|field| format!("{}: {}", field.name.to_lowercase(), field.value))
            .collect();
        trailers.sort();
        let text = |bytes: &[u8]| normalized(&String::from_utf8_lossy(bytes), row);
        Self {
            status: response_status(&head),
            interim: response.interim.iter().map(response_status).collect(),
            fields,
            body: text(&response.body),
            trailers,
            tunnel: text(&response.tunnel),
        }
    }
}

/// Removes the fields from an echoed request that only one proxy adds.
fn normalized(text: &str, row: &Row) -> String {
    let Some(echoed) = text.strip_prefix(echo::START) else {
        return without_times(text);
    };
    let is_added = |line: &str| {
        let name = line.split(':').next().unwrap_or_default();
        ADDED_FIELDS.contains(&name) && !row.sends(name)
    };
    let kept: Vec<&str> = echoed.lines().filter(|line| !is_added(line)).collect();
    kept.join("\n")
}

/// Removes the time at which an API server received an object.
fn without_times(text: &str) -> String {
    const TIME: &str = "\"time\":\"";
    let mut parts = text.split(TIME);
    let first = parts.next().unwrap_or_default().to_owned();
    parts.fold(first, |text, part| {
        text + TIME + part.split_once('"').map_or("", |(_, rest)| rest)
    })
}

/// Expected relation of the two responses.
#[derive(Clone, Copy, Debug)]
pub enum Expected {
    Same,
    /// The same, but Go's server guesses a `Content-Type` where the API server sends none.
    Guessed,
    /// Both reject the request; ours names the flag in its second line.
    Forbidden(&'static str),
    /// kubectl redirects to the cleaned path, also before its filter. Ours has this status.
    Cleaned(u16),
    /// A page of another site has caused the request, which kubectl does not check.
    CrossSite,
    /// Another difference, with the two statuses, a part of our response, and the reason.
    Differs(u16, u16, &'static str, &'static str),
}

impl Expected {
    pub fn check(self, kubectl: &Observation, ours: &Observation) -> Result<()> {
        let both = format!("  kubectl: {kubectl:?}\n  ours:    {ours:?}");
        let statuses = (kubectl.status, ours.status);
        match self {
            Self::Same => ensure!(kubectl == ours, "  expected: the same\n{both}"),
            Self::Guessed => {
                let is_type = |field: &String| field.starts_with("content-type: ");
                let mut without = kubectl.clone();
                without.fields.retain(|field| !is_type(field));
                ensure!(
                    kubectl != ours && without == *ours,
                    "  expected: the same but the type\n{both}"
                );
            }
            Self::Forbidden(flag) => {
                let reason = ours.body.strip_prefix("Forbidden\n");
                ensure!(
                    statuses == (403, 403)
                        && kubectl.body == "Forbidden\n"
                        && kubectl.fields == ours.fields
                        && reason.is_some_and(|reason| reason.contains(flag)),
                    "  expected: 403 by {flag}\n{both}"
                );
            }
            Self::Cleaned(status) => ensure!(
                statuses == (307, status),
                "  expected: a redirect of kubectl and {status}\n{both}"
            ),
            Self::CrossSite => ensure!(
                kubectl.status < 300
                    && ours.status == 403
                    && ours.body.contains("--disable-filter"),
                "  expected: rejected by ours only\n{both}"
            ),
            Self::Differs(theirs, own, part, reason) => {
                if kubectl == ours {
                    bail!("  the declared difference does not exist ({reason})\n{both}");
                }
                let shown = format!("{ours:?}");
                ensure!(
                    statuses == (theirs, own) && shown.contains(part),
                    "  expected: {theirs} and {own} with {part:?} ({reason})\n{both}"
                );
            }
        }
        Ok(())
    }
}
