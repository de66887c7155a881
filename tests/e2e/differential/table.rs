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
    /// Method and path. A path without a slash in front is one of the table's namespace, or of a node.
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
    /// One side's answer depends on who comes first: nothing but what is declared can be relied on.
    #[serde(default)]
    pub races: bool,
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
    /// What users gain.
    pub gain: String,
}

/// A file of rows.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Chapter {
    pub chapter: String,
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

/// Every line of the contract that says **Ours**.
const DELIBERATE: [&str; 41] = [
    "C11", "C13", "C19", "C26", "C27", "C32", "C34", "C36", "C38", "C39", "C43", "C45", "C46", "C47", "C48", "C49",
    "C50", "C51", "C53", "C55", "C56", "C65", "C71", "C74", "C78", "C80", "C81", "C82", "C83", "C85", "C86", "C89",
    "C90", "C91", "C94", "C95", "C100", "C103", "C110", "C111", "C93",
];

impl Table {
    /// Reads `tests/e2e/differential/table/`.
    ///
    /// # Errors
    /// Where a file cannot be read.
    pub fn load() -> Result<Self> {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/e2e/differential/table");
        let mut paths: Vec<_> = std::fs::read_dir(&folder)?.map(|entry| Ok(entry?.path())).collect::<Result<_>>()?;
        paths.sort();
        paths.retain(|path| path.extension().is_some_and(|end| end == "yaml"));
        let (differences, chapters): (Vec<_>, Vec<_>) =
            paths.iter().partition(|path| path.ends_with("differences.yaml"));
        Ok(Self {
            chapters: chapters.into_iter().map(|path| read(path)).collect::<Result<_>>()?,
            differences: read(differences.first().context("there is no differences.yaml")?)?,
        })
    }

    pub fn rows(&self) -> impl Iterator<Item = &Row> {
        self.chapters.iter().flat_map(|chapter| &chapter.rows)
    }

    /// Where it is not whole: a name twice, a difference without a reason, a line of the contract without a row.
    pub fn faults(&self) -> Vec<String> {
        let mut faults = Vec::new();
        let mut names = BTreeSet::new();
        let known: BTreeSet<_> = self.differences.iter().map(|difference| &*difference.because).collect();
        let mut explained = BTreeSet::new();
        for row in self.rows() {
            if !names.insert(&row.name) {
                faults.push(format!("two rows are called {:?}", row.name));
            }
            if let Some(differs) = &row.differs {
                explained.insert(&*differs.because);
                if !known.contains(&*differs.because) {
                    faults.push(format!("{:?}: differences.yaml has no {}", row.name, differs.because));
                }
            } else if row.both.is_empty() {
                faults.push(format!("{:?}: says nothing of what both sides answer", row.name));
            }
        }
        faults.extend(known.difference(&explained).map(|because| format!("no row shows the difference {because}")));
        let untold = DELIBERATE.iter().filter(|because| !explained.contains(*because));
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
