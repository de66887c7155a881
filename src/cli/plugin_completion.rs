//! Completion of the plugin's arguments, by the protocol between kubectl and the executable
//! `kubectl_complete-bastion`.
//!
//! kubectl passes the arguments behind `kubectl bastion`, the last of which is incomplete. The
//! executable prints a candidate per line, with its description behind a tab, and at the end a
//! directive for the shell.

use std::ffi::OsString;
use std::fmt::Write;
use std::path::PathBuf;

use clap::builder::ValueHint;
use clap::{Arg, Command};

use super::invocation::Invocation;
use crate::kubeconfig::Sections;

/// Behavior of the shell with the candidates: bits of cobra's `ShellCompDirective`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Directive {
    /// Completes the names of files if there are no candidates.
    Files = 0,
    /// Offers nothing but the candidates.
    Candidates = 4,
}

/// Candidates for the incomplete argument.
#[derive(Debug)]
struct Completion {
    /// Texts and their descriptions.
    candidates: Vec<(String, String)>,
    directive: Directive,
}

/// Returns the text that kubectl expects for `arguments`.
pub(super) fn complete(arguments: &[OsString]) -> String {
    let mut root = Invocation::Plugin.command();
    root.build();
    let arguments: Vec<_> = arguments.iter().map(|it| it.to_string_lossy()).collect();
    let arguments: Vec<&str> = arguments.iter().map(|it| &**it).collect();
    let completion = Line::new(&root, &arguments).complete();
    let mut text = String::new();
    for (candidate, description) in completion.candidates {
        let _ = writeln!(text, "{candidate}\t{description}");
    }
    let _ = writeln!(text, ":{}", completion.directive as u8);
    text
}

/// Command line up to the incomplete argument.
#[derive(Debug)]
struct Line<'a> {
    /// Command that the argument belongs to.
    command: &'a Command,
    /// Flag whose value the argument is.
    flag: Option<&'a Arg>,
    /// Number of arguments before it that are neither flags nor their values.
    positionals: usize,
    /// `--` stands before the argument.
    only_positionals: bool,
    /// Value of `--kubeconfig`.
    kubeconfig: Option<PathBuf>,
    incomplete: &'a str,
}

impl<'a> Line<'a> {
    fn new(root: &'a Command, arguments: &[&'a str]) -> Self {
        let (incomplete, complete) = arguments.split_last().unwrap_or((&"", &[]));
        let mut line = Self {
            command: root,
            flag: None,
            positionals: 0,
            only_positionals: false,
            kubeconfig: None,
            incomplete,
        };
        for argument in complete {
            line.add(argument);
        }
        line
    }

    fn add(&mut self, argument: &'a str) {
        if let Some(flag) = self.flag.take() {
            self.set(flag, argument);
        } else if self.only_positionals {
            self.positionals += 1;
        } else if argument == "--" {
            self.only_positionals = true;
        } else if argument.starts_with('-') && argument.len() > 1 {
            let (name, value) = match argument.split_once('=') {
                Some((name, value)) => (name, Some(value)),
                None => (argument, None),
            };
            match (self.find(name), value) {
                (Some(flag), Some(value)) => self.set(flag, value),
                (flag, _) => self.flag = flag.filter(|flag| needs_value(flag)),
            }
        } else if let Some(command) = self.command.find_subcommand(argument) {
            self.command = command;
        } else {
            self.positionals += 1;
        }
    }

    fn set(&mut self, flag: &Arg, value: &str) {
        if flag.get_long() == Some("kubeconfig") {
            self.kubeconfig = Some(value.into());
        }
    }

    /// Finds a flag by `--name` or `-n`.
    fn find(&self, name: &str) -> Option<&'a Arg> {
        let mut flags = self.command.get_arguments();
        match name.strip_prefix("--") {
            Some(long) => flags.find(|flag| flag.get_long() == Some(long)),
            None => flags.find(|flag| flag.get_short() == name.chars().nth(1)),
        }
    }

    fn complete(&self) -> Completion {
        if let Some(flag) = self.flag {
            return self.values(flag, "", self.incomplete);
        }
        if self.incomplete.starts_with('-') && !self.only_positionals {
            return match self.incomplete.split_once('=') {
                Some((name, value)) => self.find(name).map_or(Completion::NONE, |flag| {
                    self.values(flag, &format!("{name}="), value)
                }),
                None => self.flags(),
            };
        }
        let positionals: Vec<_> = self.command.get_positionals().collect();
        let several = positionals.last().filter(|last| takes_several(last));
        if let Some(positional) = positionals.get(self.positionals).or(several) {
            return self.values(positional, "", self.incomplete);
        }
        self.subcommands()
    }

    fn subcommands(&self) -> Completion {
        let commands = self.command.get_subcommands();
        let commands = commands.filter(|command| !command.is_hide_set());
        let candidates = commands.map(|command| {
            let about = command.get_about().map(ToString::to_string);
            (command.get_name().to_owned(), about.unwrap_or_default())
        });
        Completion::new(candidates, self.incomplete)
    }

    fn flags(&self) -> Completion {
        let flags = self.command.get_arguments();
        let candidates = flags.filter(|flag| !flag.is_hide_set()).filter_map(|flag| {
            let help = flag.get_help().map(ToString::to_string).unwrap_or_default();
            Some((format!("--{}", flag.get_long()?), help))
        });
        Completion::new(candidates, self.incomplete)
    }

    /// Completes a value of a flag or a positional argument, with `prefix` before it.
    fn values(&self, argument: &Arg, prefix: &str, incomplete: &str) -> Completion {
        let names = match argument.get_long() {
            Some("context") => self.names(|sections| sections.contexts.names()),
            Some("cluster") => self.names(|sections| sections.clusters.names()),
            Some("user") => self.names(|sections| sections.users.names()),
            _ => Vec::new(),
        };
        let names = names.into_iter().map(|name| (name, String::new()));
        let possible = argument.get_possible_values().into_iter();
        let possible = possible.filter(|value| !value.is_hide_set()).map(|value| {
            let help = value.get_help().map(ToString::to_string);
            (value.get_name().to_owned(), help.unwrap_or_default())
        });
        let is_path = !matches!(
            argument.get_value_hint(),
            ValueHint::Unknown | ValueHint::Other
        );
        let mut completion = Completion::new(names.chain(possible), incomplete);
        for (candidate, _) in &mut completion.candidates {
            candidate.insert_str(0, prefix);
        }
        if is_path {
            completion.directive = Directive::Files;
        }
        completion
    }

    /// Returns names in the kubeconfig; none if it cannot be read.
    fn names(&self, names: impl FnOnce(&Sections) -> Vec<String>) -> Vec<String> {
        let sections = Sections::of_user(self.kubeconfig.as_deref()).ok().flatten();
        sections.as_ref().map(names).unwrap_or_default()
    }
}

impl Completion {
    const NONE: Self = Self {
        candidates: Vec::new(),
        directive: Directive::Candidates,
    };

    fn new(candidates: impl Iterator<Item = (String, String)>, incomplete: &str) -> Self {
        let candidates = candidates.filter(|(candidate, _)| candidate.starts_with(incomplete));
        Self {
            // A description is the rest of a line.
            candidates: candidates
                .map(|(candidate, description)| (candidate, description.replace('\n', " ")))
                .collect(),
            directive: Directive::Candidates,
        }
    }
}

/// Returns true for flags whose value is the argument behind them.
fn needs_value(flag: &Arg) -> bool {
    flag.get_action().takes_values()
        && !flag.is_require_equals_set()
        && flag
            .get_num_args()
            .is_none_or(|count| count.min_values() > 0)
}

fn takes_several(positional: &Arg) -> bool {
    let count = positional.get_num_args();
    matches!(positional.get_action(), clap::ArgAction::Append)
        || count.is_some_and(|count| count.max_values() > 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    const KUBECONFIG: &str = "\
{apiVersion: v1, kind: Config, current-context: shop,
 contexts: [{name: shop, context: {cluster: c}}, {name: stage, context: {}}, {name: sales}],
 clusters: [{name: c, cluster: {server: 'https://c'}}], users: [{name: jane, user: {}}]}
";

    fn lines(arguments: &[&str]) -> Vec<String> {
        let arguments: Vec<OsString> = arguments.iter().map(Into::into).collect();
        let text = complete(&arguments);
        let candidates = text.lines().map(|line| line.split('\t').next());
        candidates.flatten().map(str::to_owned).collect()
    }

    #[test]
    fn completes_commands_flags_and_values() {
        for (arguments, expected) in [
            (&["ve"][..], &["version", ":4"][..]),
            (&["completion", "z"], &["zsh", ":4"]),
            (&["serve", "--tls-min"], &["--tls-min-version", ":4"]),
            (&["serve", "--logging-format", ""], &["text", "json", ":4"]),
            (
                &["serve", "--logging-format=j"],
                &["--logging-format=json", ":4"],
            ),
            (&["check", "--load", "--log-l"], &["--log-level", ":4"]),
            (&["version", "--output", "y"], &["yaml", ":4"]),
            (&["version", "-o", "y"], &["yaml", ":4"]),
            (&["serve", "--config", "bast"], &[":0"]),
            (&["man", ""], &[":0"]),
            (&["man", "directory", ""], &[":4"]),
            (&["serve", "--unknown=x"], &[":4"]),
        ] {
            assert_eq!(lines(arguments), expected, "{arguments:?}");
        }
        assert!(lines(&[""]).len() > 5);
    }

    #[test]
    fn completes_names_of_the_kubeconfig() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("config");
        std::fs::write(&path, KUBECONFIG).unwrap();
        let path = path.to_str().unwrap();
        for (arguments, expected) in [
            (
                &["--context", ""][..],
                &["shop", "stage", "sales", ":4"][..],
            ),
            (&["--context", "s"], &["shop", "stage", "sales", ":4"]),
            (&["--context=st"], &["--context=stage", ":4"]),
        ] {
            for before in [
                vec![
                    "serve".to_owned(),
                    "--kubeconfig".to_owned(),
                    path.to_owned(),
                ],
                vec!["serve".to_owned(), format!("--kubeconfig={path}")],
            ] {
                let before = before.iter().map(String::as_str);
                let line: Vec<_> = before.chain(arguments.iter().copied()).collect();
                assert_eq!(lines(&line), expected, "{line:?}");
            }
        }
    }

    #[test]
    fn unreadable_kubeconfig_has_no_candidates() {
        let line = ["serve", "--kubeconfig=/nonexistent", "--context", ""];
        assert_eq!(lines(&line), [":4"]);
    }
}
