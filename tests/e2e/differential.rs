//! Sends every request of the table to the proxy of a real apiserver and to the bastion, in front
//! of the same backends, and compares the responses and the requests that the backends received.
//!
//! `DIFFERENTIAL=TEXT make e2e` sends only the rows whose name or C-numbers contain `TEXT`. With
//! `DIFFERENTIAL_SHOW` in the environment, it prints all observations.

mod callers;
mod compare;
mod observe;
mod report;
mod scenarios;
mod send;
mod setting;
#[allow(dead_code, reason = "texts of the documentation are not used here")]
mod table;

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use compare::{Verdict, compare};
use observe::{Observation, observe};
use report::Counts;
use send::Side;
pub use send::{RecordedResponse, parse_response, response_status};
use setting::Setting;
use table::{Row, Table};

use crate::fixture::Fixture;
use crate::support::raw;

/// Duration beyond which a row is reported as slow.
const SLOW_ROW: Duration = Duration::from_secs(1);

/// Number of runs of a row after which a difference is reported. The first ones may differ because
/// the machine is busy.
const MAX_RUNS: usize = 3;

pub async fn behaves_as_the_table_declares(fixture: &mut Fixture) -> Result<()> {
    let table = Table::load()?;
    let wanted = std::env::var("DIFFERENTIAL").unwrap_or_default();
    let is_wanted = |row: &Row| row.name.contains(&wanted) || row.c.contains(&wanted);
    let setting = Setting::new(fixture).await?;
    let (began, mut all) = (Instant::now(), Counts::default());
    for chapter in &table.chapters {
        let mut counts = Counts::default();
        for row in chapter.rows.iter().filter(|row| is_wanted(row)) {
            let mut verdict = compare_row(&setting, row).await?;
            for _ in 1..MAX_RUNS {
                if !matches!(verdict, Verdict::Wrong(_)) {
                    break;
                }
                println!("     again: {}", row.name);
                verdict = compare_row(&setting, row).await?;
            }
            if let Verdict::Wrong(mismatches) = &verdict {
                report::mismatches(&row.name, mismatches);
            }
            counts.count(&verdict);
        }
        report::chapter(chapter, counts);
        all.add(counts);
    }
    report::total(all);
    println!("     in {:.1} s", began.elapsed().as_secs_f32());
    ensure!(all.total() > 0, "no row matches {wanted:?}");
    let gaps = if wanted.is_empty() {
        table.gaps()
    } else {
        Vec::new()
    };
    ensure!(
        gaps.is_empty(),
        "the table is incomplete:\n  {}",
        gaps.join("\n  ")
    );
    ensure!(
        all.wrong == 0,
        "{} rows differ in an undeclared way",
        all.wrong
    );
    Ok(())
}

async fn compare_row(setting: &Setting<'_>, row: &Row) -> Result<Verdict> {
    let began = Instant::now();
    let apiserver = observe_side(setting, &setting.apiserver()?, row).await?;
    let bastion = observe_side(setting, &setting.bastion(&row.setting)?, row).await?;
    if std::env::var_os("DIFFERENTIAL_SHOW").is_some() {
        println!("     {} ({:?})", row.name, began.elapsed());
        apiserver
            .iter()
            .for_each(|(name, value)| println!("          apiserver {name}: {value:?}"));
        bastion
            .iter()
            .for_each(|(name, value)| println!("          bastion   {name}: {value:?}"));
    }
    if began.elapsed() > SLOW_ROW {
        println!("     slow: {} took {:?}", row.name, began.elapsed());
    }
    Ok(compare(row, bastion, apiserver))
}

async fn observe_side(setting: &Setting<'_>, side: &Side, row: &Row) -> Result<Observation> {
    setting.backends.begin(row.backend.clone());
    if let Some(scenario) = &row.scenario {
        return scenarios::run(scenario, setting, side, row).await;
    }
    let by = setting.callers.get(&row.caller)?;
    let response = match row.http {
        Some(2) => send::send_h2(side, row, by, &setting.backends).await,
        _ => send::send(side, row, by, &setting.backends).await,
    };
    let seen = setting.backends.finish().await;
    let response = response.unwrap_or_else(|error| RecordedResponse {
        end: format!("{error:#}"),
        ..RecordedResponse::default()
    });
    let mut observation = observe(&response, &seen);
    observation
        .values_mut()
        .for_each(|value| *value = setting.name_own_tokens(value));
    Ok(observation)
}
