//! The table: requests that are sent to both sides, and the expected results.
//!
//! It does not depend on running servers, so that the documentation is generated from it, too.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use anyhow::{Context, Result, bail};
use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::raw::Script;

/// One request and its expected result.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Row {
    /// Unique name, a statement of behavior.
    pub name: String,
    /// Rules of the contract that it covers (docs/conformance.md).
    pub c: Vec<String>,
    /// Name of the caller.
    #[serde(rename = "as", default = "operator")]
    pub caller: String,
    /// Name of the bastion. The apiserver is always the same.
    #[serde(default = "default")]
    pub setting: String,
    /// Name of a function with several requests, instead of one request.
    pub scenario: Option<String>,
    /// Method and path. A path without a leading slash is relative to the namespace of the table,
    /// or to the nodes.
    #[serde(default)]
    pub request: String,
    /// Version of HTTP, `1` or `2`.
    pub http: Option<u8>,
    #[serde(default)]
    pub host: Option<String>,
    /// Header lines, in order, after `Host` and the credentials of the caller.
    #[serde(default)]
    pub headers: Vec<String>,
    #[serde(default)]
    pub body: Option<String>,
    /// Chunks of a body, instead of `body`.
    #[serde(default)]
    pub chunks: Vec<String>,
    #[serde(default)]
    pub trailers: Vec<String>,
    /// The complete request as bytes; `{credentials}` is the header line of the caller.
    pub raw: Option<String>,
    /// Actions of the client after the request.
    #[serde(default)]
    pub actions: Vec<Action>,
    /// Script of the backend.
    #[serde(default)]
    pub backend: Script,
    /// Expected results of both sides, so that no row passes because both fail alike.
    #[serde(default)]
    pub both: Aspects,
    pub differs: Option<Differs>,
    /// General differences that this row compares.
    #[serde(default)]
    pub exact: Vec<String>,
}

/// Action of a client.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Action {
    Send(String),
    /// Waits until a backend has received a text.
    BackendHas(String),
    /// Waits until the client has received a text.
    Has(String),
    /// Closes the sending side.
    EndSending,
    /// Waits until the other side closes the connection.
    ToEnd,
    /// Waits a moment, for events that should not happen.
    Moment,
    /// Closes the connection.
    Disconnect,
}

/// Expected aspects of an observation, by name. `None` means that the aspect is absent.
pub type Aspects = BTreeMap<String, Option<Expected>>;

/// Expected value of an aspect.
#[derive(Clone, Debug, Deserialize)]
#[serde(untagged)]
pub enum Expected {
    Number(u64),
    Text(String),
    Holding { holds: String },
    Not { lacks: String },
}

/// A deliberate difference.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Differs {
    /// The entry of `differences.yaml`.
    pub because: String,
    /// Compares only the declared aspects, for responses of different kinds or results that depend
    /// on timing.
    #[serde(default)]
    pub only: bool,
    pub bastion: Aspects,
    pub apiserver: Aspects,
}

/// Description of a deliberate difference, for users.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Difference {
    pub because: String,
    /// Subject of the difference.
    pub about: String,
    pub apiserver: String,
    pub bastion: String,
    /// Benefit for users; none for a limit.
    pub gain: Option<String>,
}

/// One file of rows.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Chapter {
    #[serde(rename = "chapter")]
    pub title: String,
    /// Common behavior, in a sentence for users.
    pub same: String,
    pub rows: Vec<Row>,
}

/// All chapters, in the order of the files.
#[derive(Clone, Debug)]
pub struct Table {
    pub chapters: Vec<Chapter>,
    pub differences: Vec<Difference>,
}

/// A general difference, which applies to all rows.
#[derive(Clone, Copy, Debug)]
pub struct GeneralDifference {
    /// Name under `exact` of a row that compares it.
    pub name: &'static str,
    /// Rule of the contract.
    pub because: &'static str,
    /// Description in a sentence, for users.
    pub text: &'static str,
}

/// General differences. `compare/general_differences.rs` has their checks.
pub const GENERAL_DIFFERENCES: [GeneralDifference; 17] = [
    GeneralDifference {
        name: "forwarded",
        because: "C65",
        text: "Only the bastion sends X-Forwarded-Host, X-Forwarded-Proto and X-Forwarded-Prefix to the backend.",
    },
    GeneralDifference {
        name: "gzip",
        because: "C56",
        text: "The apiserver requests gzip from the backend if the client did not; the bastion requests the codings of the client.",
    },
    GeneralDifference {
        name: "server-name",
        because: "C51",
        text: "The bastion sends the name of a service or node in TLS handshakes with the backend; the apiserver sends none, because it dials addresses.",
    },
    GeneralDifference {
        name: "order",
        because: "C66",
        text: "The bastion keeps the order of request headers; the apiserver sorts them. The order has no meaning in HTTP.",
    },
    GeneralDifference {
        name: "audit-forwarded",
        because: "C68",
        text: "The bastion forwards an Audit-Id with every request; the apiserver only one that the client sent.",
    },
    GeneralDifference {
        name: "switched",
        because: "C86",
        text: "A response to an upgrade has an Audit-Id and a Date as other responses do, and a rejected upgrade also `Connection: close` and, without a `Cache-Control` of the backend, `Cache-Control: no-cache, private`; the apiserver passes the head of the backend unmodified, and adds the User-Agent of its HTTP client if the client sends none.",
    },
    GeneralDifference {
        name: "audit-id",
        because: "C71",
        text: "Each request and its response have a unique Audit-Id.",
    },
    GeneralDifference {
        name: "flow",
        because: "C23",
        text: "The apiserver adds its flow schema to responses that are not from the proxy; the bastion has none.",
    },
    GeneralDifference {
        name: "date",
        because: "C71",
        text: "Each response has its own Date.",
    },
    GeneralDifference {
        name: "sniffed",
        because: "C71",
        text: "The apiserver guesses a missing Content-Type; the bastion does not.",
    },
    GeneralDifference {
        name: "unparsed",
        because: "C102",
        text: "The apiserver rejects malformed requests with a 400 in plain text, the bastion with a Status.",
    },
    GeneralDifference {
        name: "phrase",
        because: "C71",
        text: "The bastion passes the reason phrase of the backend; the apiserver replaces it.",
    },
    GeneralDifference {
        name: "html-length",
        because: "C81",
        text: "A rewritten page is streamed and has no length; the apiserver sends the length of short pages.",
    },
    GeneralDifference {
        name: "transport-words",
        because: "C98",
        text: "Errors of the operating system and of TLS libraries have different texts.",
    },
    GeneralDifference {
        name: "causes",
        because: "C93",
        text: "A 403 or 503 of the bastion lists remedies under details.causes, the former for callers that may read the target; a 401 has the fault of the client certificate there.",
    },
    GeneralDifference {
        name: "challenge",
        because: "C94",
        text: "A 401 of the bastion has a WWW-Authenticate header.",
    },
    GeneralDifference {
        name: "credentials",
        because: "C92",
        text: "No token of the caller reaches a backend on either side, and no `Impersonate-*` or `X-Remote-*` header passes the bastion. This is checked for every row with one request.",
    },
];

/// General differences without a row that compares them, because their values are unique or absent.
const OWN_VALUES: [&str; 3] = ["audit-id", "date", "credentials"];

/// Rules of the contract with a deliberate difference, except C48, which differs from 1.37 only.
const DELIBERATE: [&str; 44] = [
    "C11", "C13", "C19", "C26", "C27", "C32", "C34", "C36", "C38", "C39", "C43", "C45", "C46",
    "C47", "C49", "C50", "C51", "C53", "C55", "C56", "C65", "C70", "C71", "C73", "C74", "C75",
    "C76", "C77", "C78", "C80", "C81", "C82", "C83", "C85", "C86", "C89", "C90", "C91", "C94",
    "C95", "C100", "C103", "C110", "C111",
];

/// Rules of the contract. Each needs a row.
const RULES: std::ops::RangeInclusive<u8> = 1..=112;

/// Rules without a row, because it would take minutes: timeouts, and a disabled limit of
/// throughput.
const WITHOUT_ROW: [&str; 2] = ["C54", "C58"];

impl Table {
    /// Reads `tests/e2e/differential/table/`.
    ///
    /// # Errors
    /// Returns an error if a file cannot be read or parsed.
    pub fn load() -> Result<Self> {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/e2e/differential/table");
        let mut paths: Vec<_> = std::fs::read_dir(&folder)?
            .map(|entry| Ok(entry?.path()))
            .collect::<Result<_>>()?;
        paths.sort();
        paths.retain(|path| path.extension().is_some_and(|end| end == "yaml"));
        let (differences, chapters): (Vec<_>, Vec<_>) = paths
            .iter()
            .partition(|path| path.ends_with("differences.yaml"));
        Ok(Self {
            chapters: chapters
                .into_iter()
                .map(|path| read(path))
                .collect::<Result<_>>()?,
            differences: read(differences.first().context("differences.yaml is missing")?)?,
        })
    }

    pub fn rows(&self) -> impl Iterator<Item = &Row> {
        self.chapters.iter().flat_map(|chapter| &chapter.rows)
    }

    /// Returns the gaps of the table: duplicate names, differences without a reason, rules of the
    /// contract without a row.
    pub fn gaps(&self) -> Vec<String> {
        let mut gaps = Vec::new();
        let mut names = BTreeSet::new();
        let known: BTreeSet<_> = self
            .differences
            .iter()
            .map(|difference| &*difference.because)
            .collect();
        let mut explained = BTreeSet::new();
        for row in self.rows() {
            if !names.insert(&row.name) {
                gaps.push(format!("duplicate row name {:?}", row.name));
            }
            if let Some(differs) = &row.differs {
                explained.insert(&*differs.because);
                if !known.contains(&*differs.because) {
                    gaps.push(format!(
                        "{:?}: differences.yaml has no {}",
                        row.name, differs.because
                    ));
                }
            } else if row.both.is_empty() {
                gaps.push(format!("{:?}: no expected result of both sides", row.name));
            }
        }
        gaps.extend(
            known
                .difference(&explained)
                .map(|because| format!("no row for the difference {because}")),
        );
        let covered: BTreeSet<_> = self
            .rows()
            .flat_map(|row| &row.c)
            .map(String::as_str)
            .collect();
        let rules = RULES
            .map(|rule| format!("C{rule}"))
            .filter(|rule| !WITHOUT_ROW.contains(&&**rule));
        gaps.extend(
            rules
                .filter(|rule| !covered.contains(&**rule))
                .map(|rule| format!("no row for {rule}")),
        );
        let compared: BTreeSet<_> = self
            .rows()
            .flat_map(|row| &row.exact)
            .map(String::as_str)
            .collect();
        let missing = GENERAL_DIFFERENCES.iter().filter(|difference| {
            !compared.contains(difference.name) && !OWN_VALUES.contains(&difference.name)
        });
        gaps.extend(missing.map(|difference| format!("no row with exact {:?}", difference.name)));
        let unknown = compared.iter().filter(|name| {
            GENERAL_DIFFERENCES
                .iter()
                .all(|difference| difference.name != **name)
        });
        gaps.extend(unknown.map(|name| format!("unknown general difference {name:?} under exact")));
        let undocumented = DELIBERATE
            .iter()
            .filter(|because| !explained.contains(*because));
        gaps.extend(
            undocumented.map(|because| format!("no row for the deliberate difference {because}")),
        );
        gaps
    }
}

impl Row {
    /// Script of the backend as text, for searching.
    pub fn backend_text(&self) -> String {
        format!("{:?}", self.backend)
    }

    pub fn is_scenario(&self) -> bool {
        self.scenario.is_some()
    }
}

impl Expected {
    pub fn allows(&self, found: &str) -> bool {
        match self {
            Self::Number(number) => number.to_string() == found,
            Self::Text(text) => text == found,
            Self::Holding { holds } => found.contains(holds),
            Self::Not { lacks } => !found.contains(lacks),
        }
    }
}

impl std::fmt::Display for Expected {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Number(number) => write!(f, "{number}"),
            Self::Text(text) => f.write_str(text),
            Self::Holding { holds } if holds.is_empty() => f.write_str("(anything)"),
            Self::Holding { holds } => write!(f, "…{holds}…"),
            Self::Not { lacks } => write!(f, "without {lacks}"),
        }
    }
}

fn read<T: DeserializeOwned>(path: &Path) -> Result<T> {
    let text = std::fs::read_to_string(path)?;
    match serde_saphyr::from_str(&text) {
        Ok(read) => Ok(read),
        Err(error) => bail!("{}: {error}", path.display()),
    }
}

fn operator() -> String {
    "operator".into()
}

fn default() -> String {
    "default".into()
}
