//! `check`: validates a configuration and, with `--load`, the files that it names.

use std::process::ExitCode;

use anyhow::Result;
use clap::Args;

use super::control_runtime;
use super::settings::Settings;
use crate::app;
use crate::config::Log;
use crate::telemetry;

const HELP: &str = "\
Without --load, only the file of --config is read, so that a configuration can be checked on a
host without its certificates. With --load, certificates, keys, CAs, kubeconfig, manifests and
tokens are loaded as serve loads them; no port is bound, nothing is dialed or written, and no
credential plugin of the kubeconfig is run. A certificate that is expired or not yet valid is an
error here; serve logs a warning and uses it.";

#[derive(Clone, Debug, Args)]
#[command(after_help = HELP)]
pub(super) struct Options {
    /// Load the files that the configuration names
    #[arg(long)]
    load: bool,
    #[command(flatten)]
    settings: Settings,
}

pub(super) fn run(options: Options) -> Result<ExitCode> {
    let config = options.settings.into_config()?;
    if options.load {
        // Warnings about manifests, whatever the level of a real start.
        telemetry::init(&Log {
            level: "warn".into(),
            ..Log::default()
        });
        let counts = control_runtime()?.block_on(app::load_all(&config))?;
        eprintln!("kube-bastion: configuration is valid; the files that it names were loaded");
        if let Some(counts) = counts {
            eprintln!("kube-bastion: manifests: {counts}");
        }
    } else {
        eprintln!(
            "kube-bastion: configuration is valid; referenced files were not checked (use --load)"
        );
    }
    print!("{}", config.to_yaml()?);
    Ok(ExitCode::SUCCESS)
}
