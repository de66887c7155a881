//! Every question of the table is asked of the real apiserver's proxy and of the bastion, before
//! the same backends, and what comes back and what the backends saw is held against each other.
//!
//! `DIFFERENTIAL=TEXT make e2e` asks only the rows whose name, or one of whose C-numbers, holds
//! TEXT.

mod ask;
mod callers;
mod compare;
mod observe;
mod report;
mod scenarios;
mod setting;
#[allow(dead_code, reason = "what is for the documentation is not read here")]
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

/// A row that takes longer is named in the report.
const SLOW: Duration = Duration::from_secs(1);

pub async fn the_table_holds(world: &mut World) -> Result<()> {
    let table = Table::load()?;
    let wanted = std::env::var("DIFFERENTIAL").unwrap_or_default();
    let is_wanted = |row: &Row| row.name.contains(&wanted) || row.c.contains(&wanted);
    let setting = Setting::new(world).await?;
    let (began, mut all) = (Instant::now(), Counts::default());
    for chapter in &table.chapters {
        let mut counts = Counts::default();
        for row in chapter.rows.iter().filter(|row| is_wanted(row)) {
            let verdict = judge(&setting, row).await?;
            if let Verdict::Wrong(faults) = &verdict {
                report::fault(&row.name, faults);
            }
            counts.count(&verdict);
        }
        report::chapter(chapter, counts);
        all.add(counts);
    }
    report::total(all);
    println!("     in {:.1} s", began.elapsed().as_secs_f32());
    ensure!(all.total() > 0, "no row's name holds {wanted:?}");
    let faults = if wanted.is_empty() {
        table.faults()
    } else {
        Vec::new()
    };
    ensure!(
        faults.is_empty(),
        "the table is not whole:\n  {}",
        faults.join("\n  ")
    );
    ensure!(
        all.wrong == 0,
        "{} rows differ and should not, or not so",
        all.wrong
    );
    Ok(())
}

async fn judge(setting: &Setting<'_>, row: &Row) -> Result<Verdict> {
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
    if began.elapsed() > SLOW {
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
    let answer = match row.http {
        Some(2) => ask::ask_h2(side, row, by, &setting.stage).await,
        _ => ask::ask(side, row, by, &setting.stage).await,
    };
    let seen = setting.stage.finish().await;
    let answer = answer.unwrap_or_else(|error| ask::Answer {
        end: format!("{error:#}"),
        ..ask::Answer::default()
    });
    let mut observation = observe(&answer, &seen);
    observation
        .values_mut()
        .for_each(|value| *value = setting.name_own_tokens(value));
    Ok(observation)
}
