//! The contract in `docs/conformance.md`: each number that code, tests and documents cite is defined there, and each
//! difference from kube-apiserver has a test.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

const CONTRACT: &str = "docs/conformance.md";

/// Files and folders whose citations must be defined.
const CITING: [&str; 12] = [
    "src",
    "tests",
    "benches",
    "fuzz/fuzz_targets",
    "docs",
    "deploy",
    "config",
    "README.md",
    "ARCHITECTURE.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "SECURITY.md",
];

/// Extensions of the files that people write. Others, such as lock files, hold checksums that look like citations.
const WRITTEN: [&str; 10] = [
    "rs", "md", "yaml", "yml", "toml", "go", "mjs", "js", "html", "sh",
];

/// Extensions of the files that hold tests.
const CODE: [&str; 3] = ["rs", "go", "mjs"];

/// Rows of the differential tests. A row that only cites a number may expect the same of both sides, so that the row
/// counts as a test of a difference only where it declares one.
const TABLE: &str = "tests/e2e/differential/table";

/// Differences of all rows. The rest of the file lists numbers for other purposes.
const GENERAL_DIFFERENCES: &str = "tests/e2e/differential/table.rs";

/// This file cites numbers that do not exist.
const ITSELF: &str = "tests/contract.rs";

/// A paragraph of the contract.
struct Entry {
    number: u16,
    differs: bool,
}

#[test]
fn numbers_are_defined_once_and_in_order() {
    let text = read(Path::new(CONTRACT));
    let numbers: Vec<_> = entries(&text).iter().map(|entry| entry.number).collect();
    let expected: Vec<_> = (1..).take(numbers.len()).collect();
    assert_eq!(numbers, expected, "the anchors of {CONTRACT}, from c1 on");
    assert_eq!(
        text.matches("id=\"c").count(),
        numbers.len(),
        "an anchor of {CONTRACT} does not begin an entry"
    );
}

#[test]
fn cited_numbers_are_defined() {
    let defined: BTreeSet<_> = entries(&read(Path::new(CONTRACT)))
        .iter()
        .map(|entry| entry.number)
        .collect();
    let mut undefined = Vec::new();
    let absent: Vec<_> = CITING
        .iter()
        .filter(|path| !root().join(path).exists())
        .collect();
    assert!(absent.is_empty(), "moved or removed: {absent:?}");
    for file in CITING
        .iter()
        .flat_map(|path| files(Path::new(path), &WRITTEN))
    {
        for (index, line) in read(&file).lines().enumerate() {
            let missing = citations(line)
                .into_iter()
                .filter(|number| !defined.contains(number));
            undefined.extend(
                missing.map(|number| format!("{}:{}: C{number}", file.display(), index + 1)),
            );
        }
    }
    assert!(
        undefined.is_empty(),
        "not defined in {CONTRACT}:\n  {}",
        undefined.join("\n  ")
    );
}

#[test]
fn differences_have_tests() {
    let entries = entries(&read(Path::new(CONTRACT)));
    let differing: Vec<_> = entries
        .iter()
        .filter(|entry| entry.differs)
        .map(|entry| entry.number)
        .collect();
    assert!(
        !differing.is_empty(),
        "no entry of {CONTRACT} has a line **Differs:**"
    );
    let tested = tested();
    let untested: Vec<_> = differing
        .iter()
        .filter(|number| !tested.contains(number))
        .collect();
    assert!(
        untested.is_empty(),
        "{CONTRACT} states differences without a test: {untested:?}; cite the number in a test of tests/ or in a module \
         of unit tests, or declare the difference in a row of {TABLE}"
    );
}

#[test]
fn links_refer_to_existing_files() {
    let folder = Path::new(CONTRACT)
        .parent()
        .expect("the file is in a folder");
    for link in read(Path::new(CONTRACT))
        .split("](")
        .skip(1)
        .filter_map(|rest| rest.split(')').next())
    {
        let path = link.split('#').next().unwrap_or_default();
        assert!(
            root().join(folder).join(path).exists(),
            "{CONTRACT} links {link:?}, which does not exist"
        );
    }
}

/// The log is for people: events record values by `Display`, so that no line has `Some("x")` or the like.
#[test]
fn events_have_no_debug_forms() {
    let mut events = 0;
    let mut found = Vec::new();
    for path in files(Path::new("src"), &["rs"]) {
        let text = read(&path);
        for (start, _) in text.match_indices("tracing::") {
            let Some((call, _)) = text[start..].split_once(");") else {
                continue;
            };
            let Some((_, fields)) = call.split_once("!(") else {
                continue;
            };
            events += 1;
            if fields
                .split([',', '(', '='])
                .any(|part| part.trim_start().starts_with('?'))
            {
                found.push(format!("{}: {call}", path.display()));
            }
        }
    }
    assert!(events > 30, "{events} events only");
    assert!(found.is_empty(), "{}", found.join("\n"));
}

#[test]
fn finds_citations_and_ranges() {
    for (text, expected) in [
        ("/// The whole id (C18).", &[18][..]),
        ("(CONFORMANCE C74, C76 to C78)", &[74, 76, 77, 78]),
        ("C1", &[1]),
        ("c: [C15,C999]", &[15, 999]),
        ("because: C72 (trailers), C102", &[72, 102]),
        (
            "[`C2`](#c2) C3-C5, C7..=C8, C10–C11",
            &[2, 3, 4, 5, 7, 8, 10, 11],
        ),
        ("C9 to Cx, C19 to", &[9, 19]),
        (
            "caf%C3%A9 \\C3 0xC0 C1234 C12a CVE-2018 SHA+C5/ =C6 aC7 C_8 C",
            &[],
        ),
    ] {
        assert_eq!(citations(text), expected, "{text}");
    }
}

#[test]
fn finds_unit_tests_at_end_of_file() {
    assert_eq!(
        unit_tests("// C1\n#[cfg(test)]\nmod tests {\n// C2\n}\n"),
        "mod tests {\n// C2\n}\n"
    );
    assert_eq!(
        unit_tests("// C1\n#[cfg(test)]\nfn f() {}\n// C2\n#[cfg(test)]\nmod tests;\n"),
        ""
    );
}

/// Numbers that a test cites.
fn tested() -> BTreeSet<u16> {
    assert!(
        root().join(GENERAL_DIFFERENCES).is_file(),
        "moved or removed: {GENERAL_DIFFERENCES}"
    );
    let mut tested = BTreeSet::new();
    for file in files(Path::new("tests"), &CODE) {
        let text = read(&file);
        if file == Path::new(GENERAL_DIFFERENCES) {
            let reasons = text
                .lines()
                .filter(|line| line.trim().starts_with("because: \""));
            tested.extend(reasons.flat_map(citations));
        } else {
            tested.extend(citations(&text));
        }
    }
    for file in files(Path::new(TABLE), &["yaml"]) {
        // The text before the first row describes the chapter.
        let text = read(&file);
        let rows = text.split("\n  - ").skip(1);
        tested.extend(
            rows.filter(|row| row.contains("differs:"))
                .flat_map(citations),
        );
    }
    for file in files(Path::new("src"), &["rs"]) {
        let text = read(&file);
        let is_test = file.ends_with("tests.rs") || file.iter().any(|part| part == "tests");
        tested.extend(citations(if is_test { &text } else { unit_tests(&text) }));
    }
    tested
}

/// The module of unit tests at the end of a file.
fn unit_tests(text: &str) -> &str {
    const ATTRIBUTE: &str = "#[cfg(test)]\n";
    text.find(&format!("{ATTRIBUTE}mod tests {{"))
        .map_or("", |at| &text[at + ATTRIBUTE.len()..])
}

/// The entries of the contract: list items that begin with an anchor and the number that it has.
fn entries(text: &str) -> Vec<Entry> {
    let parts = text.split("\n- <a id=\"c").skip(1);
    let entry = |part: &str| {
        let (id, rest) = part
            .split_once("\"></a>**C")
            .expect("the number stands behind its anchor");
        let (number, rest) = rest
            .split_once("** ")
            .expect("the text stands behind its number");
        assert_eq!(id, number, "the anchor of C{number}");
        let body = rest.split("\n\n").next().unwrap_or_default();
        Entry {
            number: number.parse().expect("a number"),
            differs: body.contains("\n  - **Differs:** "),
        }
    };
    parts.map(entry).collect()
}

/// The numbers that a text cites, in order: `C` and one to three digits, as a word. `C3 to C5` cites all three.
fn citations(text: &str) -> Vec<u16> {
    let mut found = Vec::new();
    let mut at = 0;
    while let Some(next) = text[at..].find('C') {
        let start = at + next;
        at = start + 1;
        // Escapes, hexadecimal numbers and base64.
        let joined = |c: char| c.is_ascii_alphanumeric() || "_%\\+=-".contains(c);
        if text[..start].ends_with(joined) {
            continue;
        }
        if let Some((first, length)) = number(&text[start..]) {
            at = start + length;
            let last = range_end(&text[at..]).map_or(first, |(last, length)| {
                at += length;
                last
            });
            found.extend(first..=last);
        }
    }
    found
}

/// The number at the beginning of a text, and its length with the `C`.
fn number(text: &str) -> Option<(u16, usize)> {
    let digits = text.strip_prefix('C')?;
    let length = digits
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(digits.len());
    let (number, rest) = digits.split_at(length);
    let is_word = !rest.starts_with(|c: char| c.is_ascii_alphanumeric() || "_%+=".contains(c));
    let number = number.parse().ok().filter(|_| length <= 3 && is_word)?;
    Some((number, length + 1))
}

/// The last number of a range whose first one stands before a text, and the length up to it.
fn range_end(text: &str) -> Option<(u16, usize)> {
    [" to ", "..=", "..", "-", "–"].iter().find_map(|word| {
        let (last, length) = number(text.strip_prefix(word)?)?;
        Some((last, word.len() + length))
    })
}

/// The files of these extensions in a folder, or a file itself. Paths begin at the root of the project.
fn files(path: &Path, extensions: &[&str]) -> Vec<PathBuf> {
    let is_wanted = |path: &Path| {
        path.extension()
            .is_some_and(|end| extensions.iter().any(|wanted| end == *wanted))
    };
    if !root().join(path).is_dir() {
        return if is_wanted(path) && path != Path::new(ITSELF) {
            vec![path.to_owned()]
        } else {
            Vec::new()
        };
    }
    if path.ends_with("node_modules") {
        return Vec::new();
    }
    let entries = fs::read_dir(root().join(path))
        .unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let names = entries.map(|entry| entry.expect("a folder that is listed").file_name());
    names
        .flat_map(|name| files(&path.join(name), extensions))
        .collect()
}

fn read(path: &Path) -> String {
    fs::read_to_string(root().join(path))
        .unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}
