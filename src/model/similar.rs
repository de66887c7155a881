//! Suggestions for misspelled names.

/// Returns the candidate that is closest to `name`, if it is close enough to be a misspelling of
/// it.
pub fn closest<'a>(name: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let limit = (name.chars().count() / 3).max(1);
    candidates
        .into_iter()
        .map(|candidate| (distance(name, candidate), candidate))
        .filter(|(distance, _)| *distance <= limit)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

/// Number of characters to insert, delete, replace, or swap with their neighbor.
fn distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    // Rows of the matrix of distances between prefixes: the one before the last, the last.
    let (mut before, mut last) = (Vec::new(), (0..=b.len()).collect::<Vec<_>>());
    for (i, from) in a.iter().enumerate() {
        let mut row = vec![i + 1];
        for (j, to) in b.iter().enumerate() {
            let replaced = last[j] + usize::from(from != to);
            let mut cost = replaced.min(last[j + 1] + 1).min(row[j] + 1);
            if i > 0 && j > 0 && *from == b[j - 1] && a[i - 1] == *to {
                cost = cost.min(before[j - 1] + 1);
            }
            row.push(cost);
        }
        before = std::mem::replace(&mut last, row);
    }
    last[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_misspelled_names_only() {
        let names = ["prod", "prod-eu", "staging", "kind-dev", "größe", "a-12"];
        for (name, expected) in [
            ("prd", Some("prod")),
            ("prod", Some("prod")),
            ("prod2", Some("prod")),
            ("prod-us", Some("prod-eu")),
            ("staging2", Some("staging")),
            ("kind-def", Some("kind-dev")),
            ("grösse", Some("größe")),
            // Neighbors that are swapped.
            ("a-21", Some("a-12")),
            ("test", None),
            ("x", None),
            ("", None),
        ] {
            assert_eq!(closest(name, names), expected, "{name}");
        }
        assert_eq!(closest("a", []), None);
    }
}
