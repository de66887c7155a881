//! The plot: ratios of all workloads to their references as horizontal bars, in SVG.

use crate::outcome::Outcome;
use crate::statistics::Spread;
use crate::workloads::{BASELINE, NGINX};

const LABEL_WIDTH: f64 = 320.0;
const SCALE_WIDTH: f64 = 560.0;
const VALUE_WIDTH: f64 = 60.0;
const BAR: f64 = 14.0;
const GAP: f64 = 14.0;
const TOP: f64 = 64.0;
/// Ratio at the right end. Longer bars are cut; their value is printed.
const MAX_RATIO: f64 = 2.0;

const SUBJECT_COLOR: &str = "#2563eb";
const BASELINE_COLOR: &str = "#94a3b8";
const NGINX_COLOR: &str = "#d6bcfa";
const GOAL_COLOR: &str = "#15803d";

/// Returns the plot. Each workload has a bar of the bastion, of the baseline and of nginx, where
/// they were measured, and a mark at the goal.
pub fn plot(outcomes: &[Outcome]) -> String {
    let mut body = String::new();
    let mut y = TOP;
    for outcome in outcomes {
        let subject = outcome.workload.measure.subject();
        let bars: Vec<(Spread, &str)> = [
            (subject, SUBJECT_COLOR),
            (BASELINE, BASELINE_COLOR),
            (NGINX, NGINX_COLOR),
        ]
        .into_iter()
        .filter_map(|(name, color)| Some((outcome.ratio(name)?, color)))
        .collect();
        if bars.is_empty() {
            continue;
        }
        let height = BAR * f64::from(u32::try_from(bars.len()).unwrap_or(0));
        body += &text(
            LABEL_WIDTH - 8.0,
            y + BAR - 3.0,
            "end",
            outcome.workload.title,
        );
        for (index, (ratio, color)) in (0u32..).zip(&bars) {
            body += &bar(y + BAR * f64::from(index), *ratio, color);
        }
        if let Some(goal) = outcome.goal_ratio() {
            let x = position(goal);
            body += &format!(
                "<line x1=\"{x:.1}\" x2=\"{x:.1}\" y1=\"{:.1}\" y2=\"{:.1}\" stroke=\"{GOAL_COLOR}\" stroke-width=\"3\"/>\n",
                y - 3.0,
                y + height + 3.0
            );
        }
        y += height + GAP;
    }
    let (width, height) = (LABEL_WIDTH + SCALE_WIDTH + VALUE_WIDTH, y + 8.0);
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width:.0} {height:.0}\" \
         width=\"{width:.0}\" height=\"{height:.0}\" font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n{}{}{body}</svg>\n",
        legend(),
        axis(y)
    )
}

fn legend() -> String {
    let entries = [
        (SUBJECT_COLOR, "kube-bastion"),
        (BASELINE_COLOR, "baseline"),
        (NGINX_COLOR, "nginx"),
        (GOAL_COLOR, "goal (at most)"),
    ];
    let mut drawn = text(
        8.0,
        20.0,
        "start",
        "Ratio to HAProxy, of indexes to the small one; median and range",
    );
    for (index, (color, name)) in (0u32..).zip(entries) {
        let x = LABEL_WIDTH + 120.0 + 115.0 * f64::from(index);
        drawn +=
            &format!("<rect x=\"{x:.0}\" y=\"10\" width=\"12\" height=\"12\" fill=\"{color}\"/>\n");
        drawn += &text(x + 17.0, 20.0, "start", name);
    }
    drawn
}

fn axis(bottom: f64) -> String {
    let mut drawn = String::new();
    for step in 0u32..=8 {
        let ratio = MAX_RATIO * f64::from(step) / 8.0;
        let (x, is_reference) = (position(ratio), step == 4);
        let color = if is_reference { "#111" } else { "#ddd" };
        drawn += &format!(
            "<line x1=\"{x:.1}\" x2=\"{x:.1}\" y1=\"{:.1}\" y2=\"{bottom:.1}\" stroke=\"{color}\"/>\n",
            TOP - 10.0
        );
        drawn += &text(x, TOP - 15.0, "middle", &format!("{ratio:.2}"));
    }
    drawn
}

fn bar(y: f64, ratio: Spread, color: &str) -> String {
    let (start, end) = (position(0.0), position(ratio.median));
    let (low, high, middle) = (
        position(ratio.low),
        position(ratio.high),
        y + BAR / 2.0 - 1.0,
    );
    let mut drawn = format!(
        "<rect x=\"{start:.1}\" y=\"{y:.1}\" width=\"{:.1}\" height=\"{:.1}\" fill=\"{color}\"/>\n",
        end - start,
        BAR - 2.0
    );
    drawn += &format!(
        "<line x1=\"{low:.1}\" x2=\"{high:.1}\" y1=\"{middle:.1}\" y2=\"{middle:.1}\" stroke=\"#111\"/>\n"
    );
    drawn += &text(
        LABEL_WIDTH + SCALE_WIDTH + 8.0,
        y + BAR - 3.0,
        "start",
        &format!("{:.2}", ratio.median),
    );
    drawn
}

fn position(ratio: f64) -> f64 {
    LABEL_WIDTH + SCALE_WIDTH * ratio.clamp(0.0, MAX_RATIO) / MAX_RATIO
}

fn text(x: f64, y: f64, anchor: &str, content: &str) -> String {
    format!("<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\">{content}</text>\n")
}
