//! `serve`: runs the bastion in front of a cluster.

use std::process::ExitCode;

use anyhow::Result;
use clap::Args;

use super::settings::Settings;
use super::{control_runtime, drain_on_signals, environment};
use crate::app::Bound;
use crate::config::LogFormat;
use crate::model::error_chain;
use crate::telemetry::{self, OPERATOR_TARGET};

const HELP: &str = "\
Without a cluster source, the cluster is that of $KUBECONFIG, else of the pod's service account,
else of ~/.kube/config. The bastion dials the addresses of pods and nodes itself: outside of the
cluster, it needs a route to them.

Without --tls-cert-file, a self-signed certificate is used. For clients that verify it:
  kube-bastion serve --self-signed-dir DIR ...
  curl --cacert DIR/ca.crt https://localhost:8443/...

Precedence of settings: flag, environment variable, file of --config, default. The file has more
settings than there are flags; docs/reference.md lists all of them.";

#[derive(Clone, Debug, Args)]
#[command(after_help = HELP)]
pub(super) struct Options {
    #[command(flatten)]
    pub settings: Settings,
}

pub(super) fn run(options: Options) -> Result<ExitCode> {
    let config = options.settings.into_config()?;
    // Before the runtime starts, so that no event of its tasks is lost.
    telemetry::init(&config.log);
    environment::warn_of_unknown_variables();
    let format = config.log.format;
    let served = control_runtime()?.block_on(async {
        let drain = drain_on_signals()?;
        Bound::new(config).await?.run(drain).await
    });
    exit_code(served, format)
}

/// Returns the exit code of `serve`. A failure is logged as an event where the log is JSON, so that
/// the log has no other lines, and left to the caller otherwise.
fn exit_code(served: Result<()>, format: LogFormat) -> Result<ExitCode> {
    match (served, format) {
        (Ok(()), _) => Ok(ExitCode::SUCCESS),
        (Err(error), LogFormat::Text) => Err(error),
        (Err(error), LogFormat::Json) => {
            let error = error_chain(&*error);
            tracing::error!(target: OPERATOR_TARGET, error, "the process exits");
            Ok(ExitCode::FAILURE)
        }
    }
}
