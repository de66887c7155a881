//! The report in Markdown.

use std::process::Command;

use crate::outcome::{Outcome, Samples};
use crate::settings::{MAX_MEMORY_ROUNDS, Settings};
use crate::statistics::Spread;
use crate::workloads::{APISERVER_GOAL, BASELINE, Goal, NGINX};

/// Returns a table of all workloads and one of each workload.
pub fn report(outcomes: &[Outcome], settings: &Settings) -> String {
    let mut text = format!("# Benchmark report\n\n{}\n", circumstances(settings));
    text += &format!("## Goals\n\n{}\n", goals(outcomes, settings));
    text += "![Ratio to the reference](ratios.svg)\n\n## Figures\n\n";
    text += "Medians of the rounds, with the range in parentheses. `x` is the ratio to HAProxy, in the\n";
    text += "workloads of indexes to the small one; it is computed for each round. Latencies are medians,\n";
    text += "except for h2load's in closed loops, which are means.\n";
    for outcome in outcomes {
        text += &format!("\n### {}\n\n{}", outcome.workload.title, figures(outcome));
    }
    text
}

fn goals(outcomes: &[Outcome], settings: &Settings) -> String {
    let mut header = vec!["workload", "unit", "figure", "x reference", "goal", "met"];
    header.push("x reference, nginx");
    if settings.baseline.is_some() {
        header.push("x reference, baseline");
    }
    let mut rows = vec![header.into_iter().map(str::to_owned).collect()];
    for outcome in outcomes {
        let subject = outcome.workload.measure.subject();
        let goal = match outcome.workload.goal {
            Goal::Ratio(limit) => format!("x <= {limit:.2}"),
            Goal::Figure(limit) => format!("<= {limit}"),
        };
        let mut row = vec![
            outcome.workload.title.to_owned(),
            outcome.workload.measure.unit().to_owned(),
            or_none(outcome.figure(subject)),
            or_none(outcome.ratio(subject)),
            goal,
            met(outcome.is_met_by(subject)),
            or_none(outcome.ratio(NGINX)),
        ];
        if settings.baseline.is_some() {
            row.push(or_none(outcome.ratio(BASELINE)));
        }
        rows.push(row);
    }
    // The first workload with kube-apiserver has the goal.
    if let Some(ratio) = outcomes.iter().find_map(Outcome::apiserver_ratio) {
        let mut row = vec![
            "kube-apiserver / kube-bastion".to_owned(),
            "CPU time".to_owned(),
            ratio.to_string(),
            String::new(),
            format!(">= {APISERVER_GOAL:.0}"),
            met(Some(ratio.median >= APISERVER_GOAL)),
        ];
        row.resize(rows[0].len(), String::new());
        rows.push(row);
    }
    table(&rows)
}

fn figures(outcome: &Outcome) -> String {
    let unit = outcome.workload.measure.unit();
    let header = [
        "peer",
        unit,
        "in user mode",
        "x",
        "per second",
        "latency µs",
    ];
    let mut rows = vec![header.map(str::to_owned).to_vec()];
    let median = |peer: &Samples, pick: fn(&crate::statistics::Sample) -> Option<f64>| {
        let spread = Spread::new(peer.rounds.iter().filter_map(pick));
        spread.map_or_else(String::new, |spread| {
            let digits = usize::from(spread.median < 1000.0);
            format!("{:.digits$}", spread.median)
        })
    };
    for peer in &outcome.peers {
        rows.push(vec![
            peer.name.to_owned(),
            or_none(outcome.figure(peer.name)),
            median(peer, |sample| sample.user),
            or_none(outcome.ratio(peer.name)),
            median(peer, |sample| sample.per_second),
            median(peer, |sample| sample.latency),
        ]);
    }
    table(&rows)
}

fn circumstances(settings: &Settings) -> String {
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let model = std::fs::read_to_string("/proc/cpuinfo")
        .ok()
        .and_then(|text| {
            let line = text.lines().find(|line| line.starts_with("model name"))?;
            Some(line.split_once(':')?.1.trim().to_owned())
        })
        .unwrap_or_default();
    let lines = [
        format!(
            "- Date: {}",
            jiff::Timestamp::now().strftime("%Y-%m-%d %H:%M UTC")
        ),
        format!(
            "- Commit: {}",
            first_line("git", &["describe", "--always", "--dirty"])
        ),
        format!(
            "- Machine: {cores} x {model}, Linux {}",
            first_line("uname", &["-r"])
        ),
        format!(
            "- Peers: {}; {}",
            first_line("haproxy", &["-v"]),
            first_line("nginx", &["-v"])
        ),
        format!(
            "- Rounds: {} interleaved, {} s per load, after one that is discarded; of memory at most {}",
            settings.rounds, settings.seconds, MAX_MEMORY_ROUNDS
        ),
    ];
    lines.join("\n") + "\n"
}

/// Returns the first line that a program prints on standard output or standard error.
fn first_line(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output();
    output
        .ok()
        .and_then(|output| {
            let all = [output.stdout, output.stderr].concat();
            Some(String::from_utf8_lossy(&all).lines().next()?.to_owned())
        })
        .unwrap_or_else(|| format!("{program}: unknown"))
}

fn met(is_met: Option<bool>) -> String {
    is_met
        .map_or("", |is_met| if is_met { "yes" } else { "no" })
        .to_owned()
}

fn or_none(spread: Option<Spread>) -> String {
    spread.map_or_else(String::new, |spread| spread.to_string())
}

/// Returns a Markdown table that is aligned as plain text, too. The first row is the header.
fn table(rows: &[Vec<String>]) -> String {
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column));
        cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let columns = rows.first().map_or(0, Vec::len);
    let mut text = String::new();
    for (index, row) in rows.iter().enumerate() {
        for (column, cell) in row.iter().enumerate() {
            let width = width(column);
            text += &format!("| {cell:width$} ");
        }
        text += "|\n";
        if index == 0 {
            for column in 0..columns {
                text += &format!("|{}", "-".repeat(width(column) + 2));
            }
            text += "|\n";
        }
    }
    text
}
