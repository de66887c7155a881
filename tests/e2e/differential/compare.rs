//! Compares both observations with each other and with the declarations of the row.

mod general_differences;

use std::collections::BTreeSet;

use super::observe::Observation;
use super::table::{Aspects, Row};

use general_differences::CHECKS;

/// Result of a row.
#[derive(Clone, Debug)]
pub enum Verdict {
    Same,
    /// Different as declared.
    Better,
    /// Different in an undeclared way; a line per aspect.
    Wrong(Vec<String>),
}

pub fn compare(row: &Row, mut bastion: Observation, mut apiserver: Observation) -> Verdict {
    let mut mismatches = Vec::new();
    if !row.is_scenario() {
        for (name, check) in CHECKS
            .iter()
            .filter(|(name, _)| !row.exact.iter().any(|exact| exact == name))
        {
            if let Err(mismatch) = check(row, &mut bastion, &mut apiserver) {
                mismatches.push(format!("{name}: {mismatch}"));
            }
        }
    }
    for (side, found) in [("bastion", &bastion), ("apiserver", &apiserver)] {
        check_expected(side, &row.both, found, &mut mismatches);
    }
    let none = Aspects::new();
    let (declared_bastion, declared_apiserver) =
        row.differs.as_ref().map_or((&none, &none), |differs| {
            (&differs.bastion, &differs.apiserver)
        });
    check_expected("bastion", declared_bastion, &bastion, &mut mismatches);
    check_expected("apiserver", declared_apiserver, &apiserver, &mut mismatches);

    let declared: BTreeSet<_> = declared_bastion
        .keys()
        .chain(declared_apiserver.keys())
        .collect();
    // Responses of different kinds have no other aspects in common.
    let only = row.differs.as_ref().is_some_and(|differs| differs.only);
    let other_kind = only
        || (declared.contains(&"status".to_owned())
            && bastion.get("status") != apiserver.get("status"));
    // The body of a Status follows from its message, which is compared separately.
    let both_have_message = bastion.contains_key("message") && apiserver.contains_key("message");
    let message_differs = both_have_message
        && (declared.contains(&"message".to_owned()) || has_partial_message(&bastion));
    // If only one side returns an error, all other aspects follow from that.
    let is_decisive =
        |name: &str| ["version", "status", "message", "body", "end", "received"].contains(&name);
    let same_status = bastion.get("status") == apiserver.get("status");
    if !other_kind {
        let names: BTreeSet<_> = bastion.keys().chain(apiserver.keys()).collect();
        for name in names {
            let same = bastion.get(name) == apiserver.get(name);
            let follows = message_differs && ["body", "header content-length"].contains(&&**name);
            if !same && !follows && !declared.contains(name) && (same_status || is_decisive(name)) {
                mismatches.push(format!(
                    "{name}: {}",
                    both_values(bastion.get(name), apiserver.get(name))
                ));
            }
        }
    }
    if row.differs.is_some()
        && declared
            .iter()
            .all(|name| bastion.get(*name) == apiserver.get(*name))
    {
        mismatches.push(
            "the declared difference no longer exists: both sides have the same result".into(),
        );
    }
    match (mismatches.is_empty(), &row.differs) {
        (true, None) => Verdict::Same,
        (true, Some(_)) => Verdict::Better,
        (false, _) => Verdict::Wrong(mismatches),
    }
}

fn has_partial_message(found: &Observation) -> bool {
    found
        .get("message")
        .is_some_and(|message| message.ends_with('…'))
}

fn check_expected(
    side: &str,
    declared: &Aspects,
    found: &Observation,
    mismatches: &mut Vec<String>,
) {
    for (name, expected) in declared {
        let mismatch = match (expected, found.get(name)) {
            (Some(expected), Some(found)) if expected.allows(found) => continue,
            (None, None) => continue,
            (Some(expected), Some(found)) => format!("should be {expected}, is {found:?}"),
            (Some(expected), None) => format!("should be {expected}, is absent"),
            (None, Some(found)) => format!("should be absent, is {found:?}"),
        };
        mismatches.push(format!("{side}: {name} {mismatch}"));
    }
}

fn both_values(bastion: Option<&String>, apiserver: Option<&String>) -> String {
    let value = |found: Option<&String>| {
        found.map_or_else(|| "absent".into(), |found| format!("{found:?}"))
    };
    format!(
        "apiserver {}\n{:indent$}bastion   {}",
        value(apiserver),
        "",
        value(bastion),
        indent = 12
    )
}
