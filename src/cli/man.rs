//! `man`: manual pages of all commands, or the one of the program.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::{Args, Command};
use clap_mangen::Man;
use clap_mangen::roff::{Roff, roman};

use super::invocation::Invocation;

const HELP: &str = "\
Packages install the pages below /usr/share/man/man1. To read one without installing it:
  kube-bastion man | man -l -";

#[derive(Clone, Debug, Args)]
#[command(after_help = HELP)]
pub(super) struct Options {
    /// Directory that gets a page per command; it is created if it is missing [default: the page of
    /// kube-bastion goes to standard output]
    #[arg(value_name = "DIR")]
    directory: Option<PathBuf>,
}

pub(super) fn run(options: &Options) -> Result<ExitCode> {
    let mut root = Invocation::Command.command().disable_help_subcommand(true);
    root.build();
    let Some(directory) = &options.directory else {
        let written = std::io::stdout().write_all(&render(&root)?);
        written.context("cannot write the page to standard output")?;
        return Ok(ExitCode::SUCCESS);
    };
    std::fs::create_dir_all(directory)
        .with_context(|| format!("cannot create the directory {directory:?}"))?;
    write_pages(&root, directory)?;
    Ok(ExitCode::SUCCESS)
}

/// Writes the page of a command and those of its subcommands.
fn write_pages(command: &Command, directory: &Path) -> Result<()> {
    let path = directory.join(format!("{}.1", page_name(command)));
    std::fs::write(&path, render(command)?)
        .with_context(|| format!("cannot write the page {path:?}"))?;
    command
        .get_subcommands()
        .filter(|command| !command.is_hide_set())
        .try_for_each(|command| write_pages(command, directory))
}

fn render(command: &Command) -> Result<Vec<u8>> {
    let version = env!("CARGO_PKG_VERSION");
    // The examples are a section of their own, whose lines are kept.
    let man = Man::new(command.clone().after_help(""))
        .title(page_name(command).to_uppercase())
        .source(format!("kube-bastion {version}"))
        .manual("kube-bastion manual");
    let mut page = Vec::new();
    man.render_title(&mut page)?;
    man.render_name_section(&mut page)?;
    man.render_synopsis_section(&mut page)?;
    man.render_description_section(&mut page)?;
    man.render_options_section(&mut page)?;
    if command.has_subcommands() {
        man.render_subcommands_section(&mut page)?;
    }
    if let Some(notes) = command.get_after_help() {
        let notes = notes.to_string();
        let mut section = Roff::default();
        section.control("SH", ["NOTES"]);
        section.control("nf", []);
        section.text([roman(notes)]);
        section.control("fi", []);
        section.to_writer(&mut page)?;
    }
    Ok(page)
}

/// Returns the name of a page, such as `kube-bastion-serve`.
fn page_name(command: &Command) -> &str {
    command
        .get_display_name()
        .unwrap_or_else(|| command.get_name())
}
