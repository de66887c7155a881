//! Nulls of JSON and YAML, which are the same as absent for the API server.

use serde_json::Value;

/// Lists of strings of RBAC rules. An element less may grant more: without names, a rule is for all
/// objects.
pub const RULE_LISTS: [&str; 5] = [
    "apiGroups",
    "resources",
    "resourceNames",
    "verbs",
    "nonResourceURLs",
];

/// Removes members and elements that are null, at any depth. Those of lists in RBAC rules become
/// empty strings, as in Go, which match nothing.
pub fn remove_nulls(value: &mut Value) {
    match value {
        Value::Object(members) => {
            members.retain(|_, member| !member.is_null());
            for (name, member) in members {
                if RULE_LISTS.contains(&&**name)
                    && let Value::Array(elements) = member
                {
                    let nulls = elements.iter_mut().filter(|element| element.is_null());
                    nulls.for_each(|null| *null = Value::String(String::new()));
                }
                remove_nulls(member);
            }
        }
        Value::Array(elements) => {
            elements.retain(|element| !element.is_null());
            elements.iter_mut().for_each(remove_nulls);
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn keeps_elements_whose_absence_would_grant_more() {
        let mut role = json!({"rules": [null, {
            "apiGroups": [""], "resources": ["services/proxy", null], "resourceNames": [null],
            "verbs": null,
        }]});
        remove_nulls(&mut role);
        assert_eq!(
            role,
            json!({"rules": [{
                "apiGroups": [""], "resources": ["services/proxy", ""], "resourceNames": [""],
            }]})
        );
    }
}
