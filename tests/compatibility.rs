//! Generation of `docs/compatibility.md` from the table of the differential tests.

#[path = "support/raw/script.rs"]
#[allow(dead_code, reason = "scripts are parsed here and not run")]
mod raw;
#[path = "e2e/differential/table.rs"]
#[allow(dead_code, reason = "requests are documented here and not sent")]
mod table;

use std::fmt::Write;
use std::path::Path;

use table::{Aspects, Difference, GENERAL_DIFFERENCES, Row, Table};

const DOCUMENT: &str = "docs/compatibility.md";

const HEAD: &str = "# Compatibility with kube-apiserver's proxy

Clients of the apiserver's `/proxy/` can use the bastion instead: same URLs, same permissions, same responses. This page
lists all differences, which are deliberate.

`make compatibility` generates this page from the table in `tests/e2e/differential/table/`. `make e2e` sends every request
of the table to a real kube-apiserver v1.36.3 and to the bastion, in front of the same backends. It fails if a response,
or the request that a backend received, differs in another way than declared, or if a declared difference no longer
exists.

The C-numbers refer to [conformance.md](conformance.md).
";

#[test]
fn table_is_complete() {
    let gaps = Table::load().unwrap().gaps();
    assert!(gaps.is_empty(), "{}", gaps.join("\n"));
}

/// `make compatibility` updates the document.
#[test]
fn document_matches_table() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(DOCUMENT);
    let generated = document(&Table::load().unwrap());
    if std::env::var_os("UPDATE_COMPATIBILITY").is_some() {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, &generated).unwrap();
    }
    let current = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        current == generated,
        "{DOCUMENT} is outdated: run make compatibility and commit it"
    );
}

const INFALLIBLE: &str = "writing to a String does not fail";

fn document(table: &Table) -> String {
    let mut text = HEAD.to_owned();
    same(table, &mut text).expect(INFALLIBLE);
    differences(table, &mut text).expect(INFALLIBLE);
    rows(table, &mut text).expect(INFALLIBLE);
    text
}

fn same(table: &Table, text: &mut String) -> std::fmt::Result {
    let differing = table.rows().filter(|row| row.differs.is_some()).count();
    let all = table.rows().count();
    writeln!(
        text,
        "\n## Common behavior\n\nOf {all} requests, {} have the same result.\n",
        all - differing
    )?;
    writeln!(
        text,
        "| chapter | behavior | requests | same result |\n|---|---|---|---|"
    )?;
    for chapter in &table.chapters {
        let same = chapter
            .rows
            .iter()
            .filter(|row| row.differs.is_none())
            .count();
        writeln!(
            text,
            "| {} | {} | {} | {same} |",
            chapter.title,
            chapter.same,
            chapter.rows.len()
        )?;
    }
    Ok(())
}

fn differences(table: &Table, text: &mut String) -> std::fmt::Result {
    let (better, limits): (Vec<_>, Vec<_>) = table
        .differences
        .iter()
        .partition(|difference| difference.gain.is_some());
    writeln!(text, "\n## Differences with a benefit\n")?;
    writeln!(
        text,
        "| | subject | kube-apiserver | kube-bastion | benefit |\n|---|---|---|---|---|"
    )?;
    for Difference {
        because,
        about,
        apiserver,
        bastion,
        gain,
    } in better
    {
        let gain = gain.as_deref().unwrap_or_default();
        writeln!(
            text,
            "| [{because}](#{}) | {about} | {apiserver} | {bastion} | {gain} |",
            anchor(because)
        )?;
    }
    writeln!(text, "\n## Limits\n")?;
    writeln!(
        text,
        "| | subject | kube-apiserver | kube-bastion |\n|---|---|---|---|"
    )?;
    for Difference {
        because,
        about,
        apiserver,
        bastion,
        ..
    } in limits
    {
        writeln!(
            text,
            "| [{because}](#{}) | {about} | {apiserver} | {bastion} |",
            anchor(because)
        )?;
    }
    writeln!(
        text,
        "\n## General differences\n\nThese apply to all requests and responses:\n"
    )?;
    for general in GENERAL_DIFFERENCES {
        writeln!(text, "- {} ({})", general.text, general.because)?;
    }
    writeln!(
        text,
        "\nConstrained impersonation (KEP-5284, new in 1.36) is not supported: callers with only its verbs cannot impersonate \
         through the bastion."
    )
}

fn rows(table: &Table, text: &mut String) -> std::fmt::Result {
    writeln!(text, "\n## Requests with a different result\n")?;
    writeln!(
        text,
        "Aspects that begin with `received` describe the request that the backend received."
    )?;
    for difference in &table.differences {
        writeln!(
            text,
            "\n### {}\n\n{}.",
            difference.because, difference.about
        )?;
        for row in table.rows() {
            let Some(differs) = row
                .differs
                .as_ref()
                .filter(|differs| differs.because == difference.because)
            else {
                continue;
            };
            writeln!(text, "\n- {}{}", row.name, request(row))?;
            writeln!(text, "  - kube-apiserver: {}", aspects(&differs.apiserver))?;
            writeln!(text, "  - kube-bastion: {}", aspects(&differs.bastion))?;
        }
    }
    Ok(())
}

/// Returns the anchor of a heading.
fn anchor(heading: &str) -> String {
    heading
        .to_lowercase()
        .replace(' ', "-")
        .chars()
        .filter(|letter| letter.is_alphanumeric() || "-_".contains(*letter))
        .collect()
}

fn request(row: &Row) -> String {
    let mut text = if row.request.is_empty() {
        String::new()
    } else {
        format!(": {}", code(&row.request))
    };
    if row.setting != "default" && !row.setting.is_empty() {
        text += &format!(" (bastion: {})", row.setting);
    }
    text
}

fn aspects(aspects: &Aspects) -> String {
    let texts = aspects.iter().map(|(name, expected)| match expected {
        Some(expected) => format!("{name} {}", code(&expected.to_string())),
        None => format!("no {name}"),
    });
    texts.collect::<Vec<_>>().join(", ")
}

/// Formats a text as code in Markdown.
fn code(text: &str) -> String {
    let text = text.replace('\n', "⏎");
    if text.is_empty() {
        return "(empty)".into();
    }
    if text.contains('`') {
        format!("`` {text} ``")
    } else {
        format!("`{text}`")
    }
}
