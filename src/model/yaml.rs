//! YAML and JSON documents of files, as kubectl reads them.

use serde_json::Value;
use serde_json::value::RawValue;
use serde_saphyr::{Budget, DuplicateKeyPolicy, Options, Spanned};

use super::nulls::remove_nulls;
use super::redact::YamlError;

/// Maximum number of events and of nodes of a file: those of some ten thousand pods, which is more
/// than the default of the parser. The limits on aliases are its own.
const MAX_NODES: usize = 50_000_000;

/// A document that is not null.
#[derive(Clone, Debug, PartialEq)]
pub struct Document {
    /// First line, from 1.
    pub line: u64,
    /// Contains no nulls, which Helm often renders for keys without a value: they are the same as
    /// absent.
    pub value: Value,
}

/// Reason why a text is not YAML, and the line. Contains no values of the text.
#[derive(Debug)]
pub struct InvalidYaml {
    /// From 1; 0 if it is not known.
    pub line: u64,
    pub source: YamlError,
}

/// Parses all documents of a text. With duplicate keys that are not an error, the last one counts.
///
/// # Errors
/// The text is neither YAML nor JSON.
pub fn parse(text: &str, duplicate_keys: DuplicateKeyPolicy) -> Result<Vec<Document>, InvalidYaml> {
    let mut documents = match parse_yaml(text, duplicate_keys) {
        Ok(documents) => documents,
        // Documents without separators are valid in JSON only.
        Err(error) => match split_json(text) {
            Some(parts) => parse_parts(&parts, duplicate_keys)?,
            None => return Err(error),
        },
    };
    for document in &mut documents {
        remove_nulls(&mut document.value);
    }
    Ok(documents)
}

fn parse_yaml(
    text: &str,
    duplicate_keys: DuplicateKeyPolicy,
) -> Result<Vec<Document>, InvalidYaml> {
    let documents = serde_saphyr::from_multiple_with_options(text, options(duplicate_keys));
    let documents: Vec<Spanned<Value>> = documents.map_err(|error| InvalidYaml {
        line: error.location().map_or(0, |location| location.line()),
        source: YamlError::new(&error),
    })?;
    let documents = documents.into_iter().map(|document| Document {
        line: document.referenced.line(),
        value: document.value,
    });
    Ok(documents.collect())
}

fn options(duplicate_keys: DuplicateKeyPolicy) -> Options {
    let budget: Option<Budget> = serde_saphyr::budget! {
        max_nodes: MAX_NODES,
        max_events: MAX_NODES,
        max_documents: MAX_NODES,
        max_total_scalar_bytes: usize::MAX,
    };
    serde_saphyr::options! {
        budget: budget,
        duplicate_keys: duplicate_keys,
        // Reads `y`, `n` and `on` as strings (YAML 1.2).
        strict_booleans: true,
        with_snippet: false,
    }
}

/// Splits JSON objects that follow each other, with the number of lines before each. `None` if the
/// text is anything else.
fn split_json(text: &str) -> Option<Vec<(u64, Box<RawValue>)>> {
    let text = text.trim_start_matches('\u{feff}');
    let mut parts = Vec::new();
    let mut values = serde_json::Deserializer::from_str(text).into_iter::<Box<RawValue>>();
    loop {
        let rest = &text[values.byte_offset()..];
        let start = text.len() - rest.trim_start().len();
        let lines = memchr::memchr_iter(b'\n', &text.as_bytes()[..start]).count();
        match values.next() {
            None => return Some(parts),
            Some(value) => {
                let value = value.ok().filter(|value| value.get().starts_with('{'))?;
                parts.push((lines as u64, value));
            }
        }
    }
}

/// Parses JSON objects as YAML, which detects duplicate keys.
fn parse_parts(
    parts: &[(u64, Box<RawValue>)],
    duplicate_keys: DuplicateKeyPolicy,
) -> Result<Vec<Document>, InvalidYaml> {
    let mut documents = Vec::new();
    for (lines, part) in parts {
        let parsed = parse_yaml(part.get(), duplicate_keys);
        let parsed = parsed.map_err(|error| InvalidYaml {
            line: error.line + lines,
            ..error
        })?;
        documents.extend(parsed.into_iter().map(|document| Document {
            line: document.line + lines,
            ..document
        }));
    }
    Ok(documents)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn documents(text: &str) -> Vec<(u64, Value)> {
        let documents = parse(text, DuplicateKeyPolicy::Error)
            .unwrap_or_else(|error| panic!("{text:?}: {error:?}"));
        documents
            .into_iter()
            .map(|Document { line, value }| (line, value))
            .collect()
    }

    #[test]
    fn reads_documents_in_the_forms_that_kubectl_reads() {
        let one = || vec![(1, json!({"a": 1}))];
        let two = |line| vec![(1, json!({"a": 1})), (line, json!({"b": 2}))];
        let cases = [
            ("", vec![]),
            ("\n\n", vec![]),
            ("# only a comment\n", vec![]),
            ("---\n", vec![]),
            ("---\n---\n# comment\n---\nnull\n---\n~\n...\n", vec![]),
            ("\u{feff}", vec![]),
            ("\u{feff}a: 1\n", one()),
            ("\u{feff}{\"a\": 1}", one()),
            ("a: 1", one()),
            ("a: 1\r\n", one()),
            ("a: 1\r\n---\r\nb: 2\r\n", two(3)),
            ("a: 1\n...\n---\nb: 2\n...\n", two(4)),
            ("a: 1\n--- # comment\nb: 2\n", two(3)),
            (
                "a: 1\n---\n\n# Source: chart/templates/b.yaml\n---\nb: 2\n",
                two(6),
            ),
            ("%YAML 1.1\n---\na: 1\n", vec![(3, json!({"a": 1}))]),
            (
                "---\n# Source: chart/templates/a.yaml\na: 1\n",
                vec![(3, json!({"a": 1}))],
            ),
            ("{\"a\": 1}\n", one()),
            ("{\n\t\"a\": 1\n}\n", one()),
            ("{\"a\": 1}\n{\"b\": 2}\n", two(2)),
            ("{\"a\": 1}{\"b\": 2}", two(1)),
            (
                " {\n\t\"a\":\t1\n}\n\n\t{\"b\": 2}\n",
                vec![(1, json!({"a": 1})), (5, json!({"b": 2}))],
            ),
            ("{\"a\": 1}\r\n---\r\n{\"b\": 2}\r\n", two(3)),
            (
                "x: &x {y: 1}\nz: *x\n",
                vec![(1, json!({"x": {"y": 1}, "z": {"y": 1}}))],
            ),
            (
                "x: &x {y: 1}\nz: {<<: *x, w: 2}\n",
                vec![(1, json!({"x": {"y": 1}, "z": {"y": 1, "w": 2}}))],
            ),
            (
                "a: on\nb: y\nc: 'no'\n",
                vec![(1, json!({"a": "on", "b": "y", "c": "no"}))],
            ),
            ("a: |\n  x\r\n  y\n", vec![(1, json!({"a": "x\ny\n"}))]),
        ];
        for (text, expected) in cases {
            assert_eq!(documents(text), expected, "{text:?}");
        }
    }

    #[test]
    fn removes_nulls_at_any_depth() {
        let text = "a:\nb: ~\nc: [null, {d: , e: 1}, []]\nf: {g: null}\nh: ''\n";
        let expected = json!({"c": [{"e": 1}, []], "f": {}, "h": ""});
        assert_eq!(documents(text), [(1, expected)]);
    }

    #[test]
    fn names_line_of_syntax_errors_and_duplicate_keys() {
        let cases = [
            ("a: 1\nb: [\n", 2..=3),
            ("a: 1\nb: 2\na: 3\n", 3..=3),
            ("a: 1\n---\nb: {c: 1,\n c: 2}\n", 4..=4),
            ("{\"a\": 1,\n\"a\": 2}", 2..=2),
            ("a: 1\n\tb: 2\n", 1..=2),
            ("{\"a\": 1} x", 1..=1),
            ("{\"a\": 1}\n{\"b\": 2,\n\t\"b\": 3}", 3..=3),
        ];
        for (text, lines) in cases {
            let error = parse(text, DuplicateKeyPolicy::Error).unwrap_err();
            assert!(lines.contains(&error.line), "{text:?}: {error:?}");
        }
        let last = parse("a: 1\na: 2\n", DuplicateKeyPolicy::LastWins).unwrap();
        assert_eq!(last[0].value, json!({"a": 2}));
    }

    #[test]
    fn reads_large_files() {
        let text = format!("kind: List\nitems:\n{}", "- x\n".repeat(260_000));
        let documents = documents(&text);
        let items = documents[0].1["items"].as_array();
        assert_eq!(items.unwrap().len(), 260_000);
        let text = "a: 1\n---\n".repeat(2_000);
        assert_eq!(
            parse(&text, DuplicateKeyPolicy::Error).unwrap().len(),
            2_000
        );
        let deep = format!("{}x", "{a: ".repeat(60)) + &"}".repeat(60);
        assert!(parse(&deep, DuplicateKeyPolicy::Error).is_ok());
    }

    #[test]
    fn rejects_alias_bombs() {
        let mut text = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
        for level in 1..12 {
            let alias = format!("*a{}, ", level - 1).repeat(10);
            text += &format!("a{level}: &a{level} [{}]\n", alias.trim_end_matches(", "));
        }
        assert!(parse(&text, DuplicateKeyPolicy::Error).is_err());
    }
}
