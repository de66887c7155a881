//! Sends every request of the table to the proxy of a real apiserver and to the bastion, in front
//! of the same backends, and compares the responses and the requests that the backends received.
//!
//! `DIFFERENTIAL=TEXT make e2e` sends only the rows whose name or C-numbers contain `TEXT`. With
//! `DIFFERENTIAL_SHOW` in the environment, it prints all observations.

mod ask;
mod callers;
mod compare;
mod observe;
mod report;
mod scenarios;
mod setting;
#[allow(dead_code, reason = "texts of the documentation are not used here")]
mod table;

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use ask::Side;
use compare::{Verdict, compare};
use observe::{Observation, observe};
use report::Counts;
use setting::Setting;
use table::{Row, Table};

use crate::support::raw;
use crate::world::World;

/// Duration beyond which a row is reported as slow.
const SLOW_ROW: Duration = Duration::from_secs(1);

pub async fn behaves_as_the_table_declares(world: &mut World) -> Result<()> {
    let table = Table::load()?;
    let wanted = std::env::var("DIFFERENTIAL").unwrap_or_default();
    let is_wanted = |row: &Row| row.name.contains(&wanted) || row.c.contains(&wanted);
    let setting = Setting::new(world).await?;
    let (began, mut all) = (Instant::now(), Counts::default());
    for chapter in &table.chapters {
        let mut counts = Counts::default();
        for row in chapter.rows.iter().filter(|row| is_wanted(row)) {
            let verdict = compare_row(&setting, row).await?;
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
    let theirs = observe_side(setting, &setting.theirs()?, row).await?;
    let ours = observe_side(setting, &setting.ours(&row.setting)?, row).await?;
    if std::env::var_os("DIFFERENTIAL_SHOW").is_some() {
        println!("     {} ({:?})", row.name, began.elapsed());
        theirs
            .iter()
            .for_each(|(name, value)| println!("          theirs {name}: {value:?}"));
        ours.iter()
            .for_each(|(name, value)| println!("          ours   {name}: {value:?}"));
    }
    if began.elapsed() > SLOW_ROW {
        println!("     slow: {} took {:?}", row.name, began.elapsed());
    }
    Ok(compare(row, ours, theirs))
}

async fn observe_side(setting: &Setting<'_>, side: &Side, row: &Row) -> Result<Observation> {
    setting.stage.begin(row.backend.clone());
    if let Some(scenario) = &row.scenario {
        return scenarios::run(scenario, setting, side, row).await;
    }
    let by = setting.callers.get(&row.caller)?;
    let response = match row.http {
        Some(2) => ask::ask_h2(side, row, by, &setting.stage).await,
        _ => ask::ask(side, row, by, &setting.stage).await,
    };
    let seen = setting.stage.finish().await;
    let response = response.unwrap_or_else(|error| ask::RecordedResponse {
        end: format!("{error:#}"),
        ..ask::RecordedResponse::default()
    });
    let mut observation = observe(&response, &seen);
    observation
        .values_mut()
        .for_each(|value| *value = setting.name_own_tokens(value));
    Ok(observation)
}
