//! Holds both observations against each other and against what the row declares.

mod standing;

use std::collections::BTreeSet;

use super::observe::Observation;
use super::table::{Aspects, Row};

use standing::OVERLOOK;

/// What became of a row.
#[derive(Clone, Debug)]
pub enum Verdict {
    Same,
    /// Different as declared.
    Better,
    /// Different, or not as declared: a line for each aspect.
    Wrong(Vec<String>),
}

pub fn compare(row: &Row, mut ours: Observation, mut theirs: Observation) -> Verdict {
    let mut faults = Vec::new();
    if !row.is_scenario() {
        for (name, overlook) in OVERLOOK
            .iter()
            .filter(|(name, _)| !row.exact.iter().any(|exact| exact == name))
        {
            if let Err(fault) = overlook(row, &mut ours, &mut theirs) {
                faults.push(format!("{name}: {fault}"));
            }
        }
    }
    for (side, found) in [("ours", &ours), ("theirs", &theirs)] {
        must_be(side, &row.both, found, &mut faults);
    }
    let none = Aspects::new();
    let (declared_ours, declared_theirs) = row
        .differs
        .as_ref()
        .map_or((&none, &none), |differs| (&differs.ours, &differs.theirs));
    must_be("ours", declared_ours, &ours, &mut faults);
    must_be("theirs", declared_theirs, &theirs, &mut faults);

    let declared: BTreeSet<_> = declared_ours.keys().chain(declared_theirs.keys()).collect();
    // Two answers of different kinds have nothing else in common that could be asked of them.
    let only = row.differs.as_ref().is_some_and(|differs| differs.only);
    let other_kind = only
        || (declared.contains(&"status".to_owned()) && ours.get("status") != theirs.get("status"));
    // The body of a Status follows from its message, which is compared by itself.
    let told = ours.contains_key("message") && theirs.contains_key("message");
    let words = told && (declared.contains(&"message".to_owned()) || is_overlooked(&ours));
    // Where one side refuses and the other does not, all else follows from that.
    let telling =
        |name: &str| ["version", "status", "message", "body", "end", "saw"].contains(&name);
    let all = ours.get("status") == theirs.get("status");
    if !other_kind {
        let names: BTreeSet<_> = ours.keys().chain(theirs.keys()).collect();
        for name in names {
            let same = ours.get(name) == theirs.get(name);
            let follows = words && ["body", "header content-length"].contains(&&**name);
            if !same && !follows && !declared.contains(name) && (all || telling(name)) {
                faults.push(format!(
                    "{name}: {}",
                    both_told(ours.get(name), theirs.get(name))
                ));
            }
        }
    }
    if row.differs.is_some()
        && declared
            .iter()
            .all(|name| ours.get(*name) == theirs.get(*name))
    {
        faults.push("the declared difference is gone: both sides answer alike".into());
    }
    match (faults.is_empty(), &row.differs) {
        (true, None) => Verdict::Same,
        (true, Some(_)) => Verdict::Better,
        (false, _) => Verdict::Wrong(faults),
    }
}

fn is_overlooked(found: &Observation) -> bool {
    found
        .get("message")
        .is_some_and(|message| message.ends_with('…'))
}

fn must_be(side: &str, declared: &Aspects, found: &Observation, faults: &mut Vec<String>) {
    for (name, expected) in declared {
        let fault = match (expected, found.get(name)) {
            (Some(expected), Some(found)) if expected.allows(found) => continue,
            (None, None) => continue,
            (Some(expected), Some(found)) => format!("should be {expected}, is {found:?}"),
            (Some(expected), None) => format!("should be {expected}, is absent"),
            (None, Some(found)) => format!("should be absent, is {found:?}"),
        };
        faults.push(format!("{side}: {name} {fault}"));
    }
}

fn both_told(ours: Option<&String>, theirs: Option<&String>) -> String {
    let told = |found: Option<&String>| {
        found.map_or_else(|| "absent".into(), |found| format!("{found:?}"))
    };
    format!(
        "theirs {}\n{:indent$}ours   {}",
        told(theirs),
        "",
        told(ours),
        indent = 12
    )
}
