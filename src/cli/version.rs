//! `version`: the version of the binary, its commit, its platform and the compiler that built it.

use std::process::ExitCode;

use anyhow::Result;
use clap::{Args, ValueEnum};
use serde::Serialize;

const HELP: &str = "\
Prints the version of this binary only and contacts no server, with and without --client.";

#[derive(Clone, Debug, Args)]
#[command(after_help = HELP)]
pub(super) struct Options {
    /// Output format
    #[arg(long, short, value_name = "FORMAT", value_enum, default_value = "text")]
    output: Output,
    /// Accepted as by kubectl version; has no effect
    #[arg(long)]
    client: bool,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Output {
    Text,
    Json,
    Yaml,
}

#[derive(Debug, Serialize)]
struct Build {
    version: &'static str,
    /// `unknown` if the binary was built without the repository.
    commit: &'static str,
    platform: String,
    rustc: &'static str,
}

impl Build {
    fn of_binary() -> Self {
        Self {
            version: env!("CARGO_PKG_VERSION"),
            commit: env!("KUBE_BASTION_COMMIT"),
            platform: format!("{}/{}", std::env::consts::OS, architecture()),
            rustc: env!("KUBE_BASTION_RUSTC"),
        }
    }
}

/// Returns the architecture by the name that Kubernetes and container images use.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

pub(super) fn run(options: &Options) -> Result<ExitCode> {
    let version = Build::of_binary();
    match options.output {
        Output::Text => {
            println!("kube-bastion {}", version.version);
            println!("commit: {}", version.commit);
            println!("platform: {}", version.platform);
            println!("compiler: {}", version.rustc);
        }
        Output::Json => println!("{}", serde_json::to_string_pretty(&version)?),
        Output::Yaml => print!("{}", serde_saphyr::to_string(&version)?),
    }
    Ok(ExitCode::SUCCESS)
}
