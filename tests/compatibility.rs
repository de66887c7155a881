//! `docs/compatibility.md` is made of the table that the end-to-end tests ask the apiserver and the
//! bastion.

#[path = "support/raw/script.rs"]
#[allow(dead_code, reason = "here scripts are read, not played")]
mod raw;
#[path = "e2e/differential/table.rs"]
#[allow(dead_code, reason = "here questions are told, not asked")]
mod table;

use std::fmt::Write;
use std::path::Path;

use table::{Aspects, Difference, Row, STANDING, Standing, Table};

const DOCUMENT: &str = "docs/compatibility.md";

const HEAD: &str = "# Compatibility with kube-apiserver's proxy

A client of the apiserver's `/proxy/` can be pointed at the bastion: same URLs, same rights, same answers. What differs
does so on purpose, and is listed here.

This page is made by `make compatibility` of the table in `tests/e2e/differential/table/`. `make e2e` asks every
question of it of a real kube-apiserver v1.36.3 and of the bastion, before the same backends, and fails where an answer,
or what a backend got to see, differs otherwise than declared; also where a declared difference is gone.

The C-numbers are those of the tests.
";

#[test]
fn the_table_is_whole() {
    let faults = Table::load().unwrap().faults();
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

/// `make compatibility` writes it anew.
#[test]
fn the_document_is_that_of_the_table() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(DOCUMENT);
    let told = document(&Table::load().unwrap());
    if std::env::var_os("UPDATE_COMPATIBILITY").is_some() {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, &told).unwrap();
    }
    let kept = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        kept == told,
        "{DOCUMENT} is stale: run `make compatibility` and commit it"
    );
}

const NEVER: &str = "a String can always be written to";

fn document(table: &Table) -> String {
    let mut text = HEAD.to_owned();
    same(table, &mut text).expect(NEVER);
    differences(table, &mut text).expect(NEVER);
    rows(table, &mut text).expect(NEVER);
    text
}

fn same(table: &Table, text: &mut String) -> std::fmt::Result {
    let differing = table.rows().filter(|row| row.differs.is_some()).count();
    let all = table.rows().count();
    writeln!(
        text,
        "\n## What is the same\n\nOf {all} questions, {} have the same answer.\n",
        all - differing
    )?;
    writeln!(
        text,
        "| chapter | what | questions | same answer |\n|---|---|---|---|"
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
    writeln!(text, "\n## What differs, and what is gained\n")?;
    writeln!(
        text,
        "| | about | kube-apiserver | kube-bastion | gain |\n|---|---|---|---|---|"
    )?;
    for Difference {
        because,
        about,
        theirs,
        ours,
        gain,
    } in better
    {
        let gain = gain.as_deref().unwrap_or_default();
        writeln!(
            text,
            "| [{because}](#{}) | {about} | {theirs} | {ours} | {gain} |",
            anchor(because)
        )?;
    }
    writeln!(text, "\nWhere it gains nothing, it is a limit:\n")?;
    writeln!(
        text,
        "| | about | kube-apiserver | kube-bastion |\n|---|---|---|---|"
    )?;
    for Difference {
        because,
        about,
        theirs,
        ours,
        ..
    } in limits
    {
        writeln!(
            text,
            "| [{because}](#{}) | {about} | {theirs} | {ours} |",
            anchor(because)
        )?;
    }
    writeln!(text, "\nOn every request and answer:\n")?;
    for Standing { because, told, .. } in STANDING {
        writeln!(text, "- {told} ({because})")?;
    }
    writeln!(
        text,
        "\nConstrained impersonation (KEP-5284, new in 1.36) is not asked for: whoever has only its verbs cannot \
         impersonate through the bastion."
    )
}

fn rows(table: &Table, text: &mut String) -> std::fmt::Result {
    writeln!(text, "\n## The questions that show it\n")?;
    writeln!(
        text,
        "`saw` is what the backend got to see; an aspect of nothing was absent."
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
            writeln!(text, "\n- {}{}", row.name, question(row))?;
            writeln!(text, "  - kube-apiserver: {}", aspects(&differs.theirs))?;
            writeln!(text, "  - kube-bastion: {}", aspects(&differs.ours))?;
        }
    }
    Ok(())
}

/// Where a heading is to be found.
fn anchor(heading: &str) -> String {
    heading
        .to_lowercase()
        .replace(' ', "-")
        .replace(['(', ')'], "")
}

fn question(row: &Row) -> String {
    let mut told = if row.ask.is_empty() {
        String::new()
    } else {
        format!(": {}", code(&row.ask))
    };
    if row.setting != "default" && !row.setting.is_empty() {
        told += &format!(" (bastion: {})", row.setting);
    }
    told
}

fn aspects(aspects: &Aspects) -> String {
    let told = aspects.iter().map(|(name, expected)| match expected {
        Some(expected) => format!("{name} {}", code(&expected.to_string())),
        None => format!("no {name}"),
    });
    told.collect::<Vec<_>>().join(", ")
}

/// Markdown's code, whatever it holds.
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
