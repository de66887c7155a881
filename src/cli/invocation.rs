//! Names under which the binary runs: as a command of its own, or as a plugin of kubectl.

use std::ffi::OsStr;
use std::path::Path;

use clap::{Command, CommandFactory};

use super::Cli;

/// Name of the executable that kubectl runs for `kubectl bastion`.
const PLUGIN: &str = "kubectl-bastion";
/// Name of the executable that kubectl runs to complete the arguments of the plugin.
const PLUGIN_COMPLETION: &str = "kubectl_complete-bastion";

/// Role of the process, by the name of its executable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Invocation {
    Command,
    Plugin,
    PluginCompletion,
}

impl Invocation {
    pub fn of_process() -> Self {
        Self::new(&std::env::args_os().next().unwrap_or_default())
    }

    /// Returns the role for the first argument of a process.
    pub fn new(program: &OsStr) -> Self {
        match Path::new(program).file_name().and_then(OsStr::to_str) {
            Some(PLUGIN) => Self::Plugin,
            Some(PLUGIN_COMPLETION) => Self::PluginCompletion,
            _ => Self::Command,
        }
    }

    /// Returns the name of the executable of a user's command line.
    pub fn executable(self) -> &'static str {
        match self {
            Self::Command => "kube-bastion",
            Self::Plugin | Self::PluginCompletion => PLUGIN,
        }
    }

    /// Returns the command line, whose usage and examples have the name that the user types.
    pub fn command(self) -> Command {
        let command = Cli::command();
        match self {
            Self::Command => command,
            Self::Plugin | Self::PluginCompletion => name_plugin(command)
                .bin_name("kubectl bastion")
                .display_name(PLUGIN),
        }
    }
}

/// Replaces the name of the program in the examples of all commands.
fn name_plugin(command: Command) -> Command {
    let command = match command.get_after_help() {
        Some(help) => {
            let help = help
                .to_string()
                .replace("kube-bastion ", "kubectl bastion ");
            command.after_help(help)
        }
        None => command,
    };
    command.mut_subcommands(name_plugin)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn name_of_the_executable_selects_the_role() {
        for (program, role) in [
            ("kube-bastion", Invocation::Command),
            ("/usr/local/bin/kubectl-bastion", Invocation::Plugin),
            ("kubectl_complete-bastion", Invocation::PluginCompletion),
            ("/opt/kubectl-bastion/kube-bastion", Invocation::Command),
            ("", Invocation::Command),
        ] {
            assert_eq!(Invocation::new(program.as_ref()), role, "{program:?}");
        }
    }

    #[test]
    fn usage_and_examples_have_the_name_of_the_plugin() {
        let mut command = Invocation::Plugin.command();
        command.build();
        let mut texts = vec![command.render_long_help().to_string()];
        for subcommand in command.get_subcommands_mut() {
            texts.push(subcommand.render_long_help().to_string());
        }
        assert!(texts.len() > 5);
        for text in texts {
            let usage = text.lines().find(|line| line.starts_with("Usage: "));
            let usage = usage.expect("every help has a usage");
            assert!(usage.starts_with("Usage: kubectl bastion"), "{usage}");
            assert!(!text.contains("  kube-bastion "), "{text}");
        }
    }
}
