//! `completion`: prints the completion script of a shell.

use std::io::Write;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::Args;
use clap_complete::Shell;
use clap_complete::aot::generate;

use super::invocation::Invocation;

const HELP: &str = "\
Bash, for the current user:
  kube-bastion completion bash > ~/.local/share/bash-completion/completions/kube-bastion
Zsh, in a directory of $fpath:
  kube-bastion completion zsh > ~/.zfunc/_kube-bastion
Fish:
  kube-bastion completion fish > ~/.config/fish/completions/kube-bastion.fish
PowerShell, in the profile:
  kube-bastion completion powershell | Out-String | Invoke-Expression
Elvish, in rc.elv:
  eval (kube-bastion completion elvish | slurp)

kubectl completes the arguments of the plugin (kubectl bastion ...) itself if the binary is in
$PATH under the name kubectl_complete-bastion as well:
  ln -s kubectl-bastion kubectl_complete-bastion";

#[derive(Clone, Debug, Args)]
#[command(after_help = HELP)]
pub(super) struct Options {
    /// Shell that the script is for
    #[arg(value_name = "SHELL")]
    shell: Shell,
}

pub(super) fn run(options: &Options) -> Result<ExitCode> {
    let name = Invocation::of_process().executable();
    // The script goes through a buffer: clap_complete panics if it cannot write.
    let mut script = Vec::new();
    let mut command = Invocation::Command.command();
    generate(options.shell, &mut command, name, &mut script);
    let mut script = String::from_utf8(script)?;
    if options.shell == Shell::Bash {
        script = with_one_label_per_command(&script, name);
    }
    let written = std::io::stdout().write_all(script.as_bytes());
    written.context("cannot write the script to standard output")?;
    Ok(ExitCode::SUCCESS)
}

/// Corrects a script of `clap_complete` 4.6 for a program whose name has a hyphen. It writes the
/// hyphen in two ways, so that no subcommand has candidates.
fn with_one_label_per_command(script: &str, name: &str) -> String {
    let defined = format!("{}__subcmd__", name.replace('-', "__"));
    let matched = format!("{}__subcmd__", name.replace('-', "__subcmd__"));
    script.replace(&matched, &defined)
}
