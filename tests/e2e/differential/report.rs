//! Report of a run: a line per chapter, and all mismatches.

use super::compare::Verdict;
use super::table::Chapter;

/// Counts of one chapter.
#[derive(Clone, Copy, Debug, Default)]
pub struct Counts {
    pub same: usize,
    pub better: usize,
    pub wrong: usize,
}

impl Counts {
    pub fn count(&mut self, verdict: &Verdict) {
        match verdict {
            Verdict::Same => self.same += 1,
            Verdict::Better => self.better += 1,
            Verdict::Wrong(_) => self.wrong += 1,
        }
    }

    pub fn add(&mut self, other: Self) {
        self.same += other.same;
        self.better += other.better;
        self.wrong += other.wrong;
    }

    pub fn total(self) -> usize {
        self.same + self.better + self.wrong
    }
}

pub fn mismatches(row: &str, mismatches: &[String]) {
    println!("     DIFFERENT: {row}");
    for mismatch in mismatches {
        println!("          {mismatch}");
    }
}

pub fn chapter(chapter: &Chapter, counts: Counts) {
    line(&chapter.title, counts);
}

pub fn total(counts: Counts) {
    line("all rows", counts);
}

fn line(title: &str, counts: Counts) {
    let Counts {
        same,
        better,
        wrong,
    } = counts;
    println!(
        "     {title:<36} {:>4} rows: {same:>4} same, {better:>3} better on purpose, {wrong:>3} different",
        counts.total()
    );
}
