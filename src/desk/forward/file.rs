//! Files with targets (`-f`): a YAML list of targets with their ports.

use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::Value;
use serde_saphyr::DuplicateKeyPolicy;

use super::spec::{SpecError, TargetSpec, parse_port};
use crate::model::similar::similar;
use crate::model::yaml::{self, InvalidYaml};

/// Maximum size of a file in bytes.
const MAX_SIZE: u64 = 1024 * 1024;

/// Fields of an entry.
const FIELDS: [&str; 4] = ["target", "namespace", "ports", "addresses"];

/// Reason why a file is not accepted.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    #[error("cannot read {path:?}: {source}")]
    Read {
        path: PathBuf,
        source: std::io::Error,
    },
    #[error("{path:?} is larger than {} KiB", MAX_SIZE / 1024)]
    Size { path: PathBuf },
    #[error("{path:?}, line {}: not YAML: {}", .error.line, .error.source)]
    Yaml { path: PathBuf, error: InvalidYaml },
    #[error("{path:?} is not a list of targets; write \"- target: svc/web\" and \"  ports: [80]\"")]
    NotAList { path: PathBuf },
    #[error("{path:?}, entry {entry}: {source}")]
    Entry {
        path: PathBuf,
        /// From 1.
        entry: usize,
        source: EntryError,
    },
}

/// Reason why an entry is invalid.
#[derive(Debug, thiserror::Error)]
pub enum EntryError {
    #[error("unknown field {name:?}; {}", remedy(name))]
    UnknownField { name: String },
    #[error("{0}")]
    Value(#[from] serde_json::Error),
    #[error("no ports; write ports: [8080:80]")]
    NoPorts,
    #[error(transparent)]
    Spec(#[from] SpecError),
}

fn remedy(name: &str) -> String {
    match similar(name, &FIELDS) {
        Some(field) => format!("did you mean {field}?"),
        None => format!("use {}", FIELDS.join(", ")),
    }
}

#[derive(Debug, Deserialize)]
struct Entry {
    target: String,
    namespace: Option<String>,
    #[serde(default)]
    ports: Vec<Port>,
    addresses: Option<Vec<String>>,
}

#[derive(Debug, Deserialize)]
#[serde(
    untagged,
    expecting = "a port is [LOCAL:]REMOTE, as a number or a text"
)]
enum Port {
    Number(u64),
    Text(String),
}

/// Reads the targets of a file.
///
/// # Errors
/// [`FileError`]
pub fn read(path: &Path) -> Result<Vec<TargetSpec>, FileError> {
    let failed = |source| FileError::Read {
        path: path.to_owned(),
        source,
    };
    let size = std::fs::metadata(path).map_err(failed)?.len();
    if size > MAX_SIZE {
        let path = path.to_owned();
        return Err(FileError::Size { path });
    }
    let text = std::fs::read_to_string(path).map_err(failed)?;
    parse(path, &text)
}

fn parse(path: &Path, text: &str) -> Result<Vec<TargetSpec>, FileError> {
    let path = || path.to_owned();
    let documents =
        yaml::parse(text, DuplicateKeyPolicy::Error).map_err(|error| FileError::Yaml {
            path: path(),
            error,
        })?;
    let mut targets = Vec::new();
    for document in documents {
        let Value::Array(entries) = document.value else {
            return Err(FileError::NotAList { path: path() });
        };
        for entry in entries {
            let number = targets.len() + 1;
            targets.push(target(entry).map_err(|source| FileError::Entry {
                path: path(),
                entry: number,
                source,
            })?);
        }
    }
    if targets.is_empty() {
        return Err(FileError::NotAList { path: path() });
    }
    Ok(targets)
}

fn target(entry: Value) -> Result<TargetSpec, EntryError> {
    if let Value::Object(fields) = &entry
        && let Some(name) = fields.keys().find(|name| !FIELDS.contains(&&***name))
    {
        return Err(EntryError::UnknownField { name: name.clone() });
    }
    let entry: Entry = serde_json::from_value(entry)?;
    let mut target = TargetSpec::parse(&entry.target)?;
    target.namespace = entry.namespace.or(target.namespace);
    target.addresses = entry.addresses;
    for port in entry.ports {
        target.ports.push(match port {
            Port::Number(number) => parse_port(&number.to_string())?,
            Port::Text(text) => parse_port(&text)?,
        });
    }
    if target.ports.is_empty() {
        return Err(EntryError::NoPorts);
    }
    Ok(target)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> Result<Vec<TargetSpec>, String> {
        parse(Path::new("f"), text).map_err(|error| error.to_string())
    }

    #[test]
    fn entries_are_targets_with_ports() {
        let text = "
- target: svc/db.shop
  ports: [5432, ':http', 15432:5432]
- {target: web-0, namespace: stage, ports: [80/tcp], addresses: [127.0.0.2]}
";
        let targets = parsed(text).unwrap();
        assert_eq!(targets[0].to_string(), "service/db.shop");
        let ports = ["5432", ":http", "15432:5432"].map(|port| parse_port(port).unwrap());
        assert_eq!(targets[0].ports, ports);
        assert_eq!(targets[1].to_string(), "pod/web-0.stage");
        assert_eq!(targets[1].addresses, Some(vec!["127.0.0.2".to_owned()]));
    }

    #[test]
    fn errors_have_the_entry_and_the_remedy() {
        for (text, message) in [
            (
                "- {target: a, ports: [1]}\n- {target: a, prots: [1]}",
                r#""f", entry 2: unknown field "prots"; did you mean ports?"#,
            ),
            (
                "- {target: a, x: 1}",
                r#"unknown field "x"; use target, namespace, ports, addresses"#,
            ),
            ("- {target: a}", "entry 1: no ports; write ports: [8080:80]"),
            ("- {ports: [1]}", "missing field `target`"),
            (
                "- {target: a, ports: [x:y]}",
                r#"port "x:y" has a local port"#,
            ),
            ("- {target: a, ports: [[1]]}", "a port is [LOCAL:]REMOTE"),
            ("- {target: foo/a, ports: [1]}", r#"unknown type "foo""#),
            ("target: a", "is not a list of targets"),
            ("", "is not a list of targets"),
            ("- [", "line 1: not YAML"),
        ] {
            let error = parsed(text).unwrap_err();
            assert!(error.contains(message), "{text}: {error}");
        }
        let error = read(Path::new("/nonexistent")).unwrap_err().to_string();
        assert!(
            error.starts_with("cannot read \"/nonexistent\": "),
            "{error}"
        );
    }
}
