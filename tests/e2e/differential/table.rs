//! The table: questions that are asked of both sides, and what they must answer.
//!
//! It knows nothing of running servers, so that the documentation can be made from it too.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use anyhow::{Context, Result, bail};
use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::raw::Script;

/// One question.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Row {
    /// Unique; reads as a sentence.
    pub name: String,
    /// The lines of the contract that it is about.
    pub c: Vec<String>,
    /// Who asks.
    #[serde(rename = "as", default = "operator")]
    pub caller: String,
    /// Which bastion is asked; the apiserver is always the same one.
    #[serde(default = "default")]
    pub setting: String,
    /// The name of a function that asks more than one question, instead of a request.
    pub scenario: Option<String>,
    /// Method and path. A path without a slash in front is one of the table's namespace, or of a
    /// node.
    #[serde(default)]
    pub ask: String,
    /// `1` or `2`.
    pub http: Option<u8>,
    #[serde(default)]
    pub host: Option<String>,
    /// Header lines, in order, behind `Host` and the caller's credentials.
    #[serde(default)]
    pub headers: Vec<String>,
    #[serde(default)]
    pub body: Option<String>,
    /// A chunked body instead.
    #[serde(default)]
    pub chunks: Vec<String>,
    #[serde(default)]
    pub trailers: Vec<String>,
    /// The whole request as bytes; `{credentials}` is the caller's header line.
    pub raw: Option<String>,
    /// What the client does after the request is sent.
    #[serde(default)]
    pub then: Vec<Act>,
    /// What the backend does.
    #[serde(default)]
    pub backend: Script,
    /// What holds on both sides, so that no row passes by failing alike.
    #[serde(default)]
    pub both: Aspects,
    pub differs: Option<Differs>,
    /// Standing differences that this row does not overlook.
    #[serde(default)]
    pub exact: Vec<String>,
}

/// What a client does.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Act {
    Send(String),
    /// Waits until a backend has got a text.
    BackendHas(String),
    /// Waits until the client has got a text.
    Has(String),
    /// Ends its sending.
    EndSending,
    /// Waits until the other side ends the connection.
    ToEnd,
    /// Lets a moment pass, for what should not happen.
    Moment,
    /// Hangs up.
    HangUp,
}

/// Parts of what was observed, by name. Nothing means that a part is absent.
pub type Aspects = BTreeMap<String, Option<Expected>>;

/// What an aspect must be.
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
    /// Only what is declared is compared: for answers of different kinds, or one that depends on
    /// who comes first.
    #[serde(default)]
    pub only: bool,
    pub ours: Aspects,
    pub theirs: Aspects,
}

/// Why something differs on purpose, told to users.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Difference {
    pub because: String,
    /// What it is about.
    pub about: String,
    pub theirs: String,
    pub ours: String,
    /// What users gain; nothing where it is a limit.
    pub gain: Option<String>,
}

/// A file of rows.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Chapter {
    #[serde(rename = "chapter")]
    pub title: String,
    /// What is the same, in a sentence for users.
    pub same: String,
    pub rows: Vec<Row>,
}

/// All of it, in the order of the files.
#[derive(Clone, Debug)]
pub struct Table {
    pub chapters: Vec<Chapter>,
    pub differences: Vec<Difference>,
}

/// A difference that stands on every row.
#[derive(Clone, Copy, Debug)]
pub struct Standing {
    /// What a row says under `exact` to see it.
    pub name: &'static str,
    /// The line of the contract.
    pub because: &'static str,
    /// In a sentence for users.
    pub told: &'static str,
}

/// All of them. How each is checked is in `compare/standing.rs`.
pub const STANDING: [Standing; 16] = [
    Standing {
        name: "forwarded",
        because: "C65",
        told: "X-Forwarded-Host and X-Forwarded-Proto reach the backend through the bastion only.",
    },
    Standing {
        name: "gzip",
        because: "C56",
        told: "The apiserver asks the backend for gzip where the client did not; the bastion asks for what the client asks for.",
    },
    Standing {
        name: "order",
        because: "C66",
        told: "Headers reach the backend in the client's order; the apiserver sorts them. Neither means anything to HTTP.",
    },
    Standing {
        name: "audit-forwarded",
        because: "C68",
        told: "The backend is told the Audit-Id of every request; the apiserver passes only one that the client brought.",
    },
    Standing {
        name: "switched",
        because: "C86",
        told: "An answer to an upgrade has an Audit-Id and a Date as every answer has, and a refused upgrade also `Connection: close` and, where the backend says nothing of caching, `Cache-Control: no-cache, private`; the apiserver passes the backend's head bare, and names Go's HTTP client where the client names none.",
    },
    Standing {
        name: "audit-id",
        because: "C71",
        told: "Each answer has an Audit-Id of its own, and so has each request.",
    },
    Standing {
        name: "flow",
        because: "C23",
        told: "The apiserver names its flow schema on what is not the proxy's; the bastion has none.",
    },
    Standing {
        name: "date",
        because: "C71",
        told: "Each answer has its own Date.",
    },
    Standing {
        name: "sniffed",
        because: "C71",
        told: "The apiserver guesses a Content-Type where the backend names none; the bastion guesses nothing.",
    },
    Standing {
        name: "unparsed",
        because: "C102",
        told: "What is no HTTP is refused with a 400 by the HTTP library, in its own words.",
    },
    Standing {
        name: "phrase",
        because: "C71",
        told: "The reason phrase is the backend's; the apiserver has its own.",
    },
    Standing {
        name: "html-length",
        because: "C81",
        told: "A rewritten page is streamed and so has no length; the apiserver counts short ones.",
    },
    Standing {
        name: "transport-words",
        because: "C98",
        told: "What an operating system or a TLS library says of a failure is told in other words.",
    },
    Standing {
        name: "causes",
        because: "C93",
        told: "A 403 or 503 of the bastion says under details.causes what would help, to callers who may see the target.",
    },
    Standing {
        name: "challenge",
        because: "C94",
        told: "A 401 of the bastion names the way to authenticate.",
    },
    Standing {
        name: "credentials",
        because: "C92",
        told: "No token of the caller's reaches a backend, on either side, and no `Impersonate-*` or `X-Remote-*` identity passes the bastion: looked for on every question of one request.",
    },
];

/// Standing differences of which there is nothing more to see than that every answer has its own
/// value, or none.
const OWN_VALUES: [&str; 3] = ["audit-id", "date", "credentials"];

/// Every line of the contract that says **Ours**, but for two: C48 differs from 1.37 only, and C51
/// from nothing yet.
const DELIBERATE: [&str; 38] = [
    "C11", "C13", "C19", "C26", "C27", "C32", "C34", "C36", "C38", "C39", "C43", "C45", "C46",
    "C47", "C49", "C50", "C53", "C55", "C56", "C65", "C71", "C74", "C78", "C80", "C81", "C82",
    "C83", "C85", "C86", "C89", "C90", "C91", "C94", "C95", "C100", "C103", "C110", "C111",
];

/// Lines of the contract, of which each is asked about by some row.
const LINES: std::ops::RangeInclusive<u8> = 1..=112;

/// Those that would take minutes to ask: timeouts, and a limit of throughput that is off.
const UNASKED: [&str; 2] = ["C54", "C58"];

impl Table {
    /// Reads `tests/e2e/differential/table/`.
    ///
    /// # Errors
    /// Where a file cannot be read.
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
            differences: read(
                differences
                    .first()
                    .context("there is no differences.yaml")?,
            )?,
        })
    }

    pub fn rows(&self) -> impl Iterator<Item = &Row> {
        self.chapters.iter().flat_map(|chapter| &chapter.rows)
    }

    /// Where it is not whole: a name twice, a difference without a reason, a line of the contract
    /// without a row.
    pub fn faults(&self) -> Vec<String> {
        let mut faults = Vec::new();
        let mut names = BTreeSet::new();
        let known: BTreeSet<_> = self
            .differences
            .iter()
            .map(|difference| &*difference.because)
            .collect();
        let mut explained = BTreeSet::new();
        for row in self.rows() {
            if !names.insert(&row.name) {
                faults.push(format!("two rows are called {:?}", row.name));
            }
            if let Some(differs) = &row.differs {
                explained.insert(&*differs.because);
                if !known.contains(&*differs.because) {
                    faults.push(format!(
                        "{:?}: differences.yaml has no {}",
                        row.name, differs.because
                    ));
                }
            } else if row.both.is_empty() {
                faults.push(format!(
                    "{:?}: says nothing of what both sides answer",
                    row.name
                ));
            }
        }
        faults.extend(
            known
                .difference(&explained)
                .map(|because| format!("no row shows the difference {because}")),
        );
        let asked: BTreeSet<_> = self
            .rows()
            .flat_map(|row| &row.c)
            .map(String::as_str)
            .collect();
        let lines = LINES
            .map(|line| format!("C{line}"))
            .filter(|line| !UNASKED.contains(&&**line));
        faults.extend(
            lines
                .filter(|line| !asked.contains(&**line))
                .map(|line| format!("no row asks about {line}")),
        );
        let seen: BTreeSet<_> = self
            .rows()
            .flat_map(|row| &row.exact)
            .map(String::as_str)
            .collect();
        let unseen = STANDING.iter().filter(|standing| {
            !seen.contains(standing.name) && !OWN_VALUES.contains(&standing.name)
        });
        faults.extend(unseen.map(|standing| format!("no row is exact about {:?}", standing.name)));
        let unknown = seen
            .iter()
            .filter(|name| STANDING.iter().all(|standing| standing.name != **name));
        faults.extend(
            unknown
                .map(|name| format!("there is no standing difference {name:?} to be exact about")),
        );
        let untold = DELIBERATE
            .iter()
            .filter(|because| !explained.contains(*because));
        faults.extend(untold.map(|because| format!("{because} says **Ours** and no row shows it")));
        faults
    }
}

impl Row {
    /// What the backend says, as text.
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
