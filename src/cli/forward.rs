//! The command `forward`.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use clap::{Args, ValueEnum};
use tokio::runtime::{Builder, LocalOptions};

use super::drain_on_signals;
use crate::desk::flags::go_duration;
use crate::desk::forward::{self, TargetSpec, Via};
use crate::desk::{ConnectionFlags, Context};

const HELP: &str = "\
Targets and ports:
  A target is TYPE/NAME with its ports behind it; several targets may follow each other. Types: svc,
  pod, deploy, sts, ds, rs, rc, job. The first target may be the name of a pod alone.
  svc/NAME.NAMESPACE names a service of another namespace. So does TYPE/NAME.NAMESPACE, unless the
  namespace of -n has an object of the name NAME.NAMESPACE.
  A port is [LOCAL:]REMOTE, where REMOTE is a number or the name of a port. Without LOCAL, the local
  port is the number of the remote one; in :REMOTE it is any free one.

  kube-bastion forward svc/db 5432
  kube-bastion forward web-0 8080:80 svc/db.shop 5432 deploy/api :http
  kube-bastion forward -f forwards.yaml    a list of {target: svc/db.shop, ports: [15432:5432]}

Run a command once all ports are open, and end with it and its exit status. Local ports are in its
environment as FORWARD_PORT_1, FORWARD_PORT_2, ...
  kube-bastion forward svc/db 5432 -- psql -h localhost
  kube-bastion forward svc/db :5432 -- sh -c 'pg_dump -h localhost -p $FORWARD_PORT_1 shop'

The way to the targets (--via):
  bastion     tunnels (HTTP/2 CONNECT) through a kube-bastion; needs create on services/portforward or
              pods/portforward
  api-server  port-forwarding by the kubelets; needs create on pods/portforward, and get and list on
              the objects. It also reaches what a pod binds to its own loopback address.
Without --via, the first if the server is a bastion. Connections use the ready pods in turn; a pod
that ends, or a bastion that restarts, ends its own connections only.";

/// Format of the output.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Output {
    /// One line with the ports once all are open
    Json,
}

#[derive(Clone, Debug, Args)]
#[command(after_help = HELP)]
pub(super) struct Options {
    /// Targets, each with its ports behind it
    #[arg(value_name = "TARGET PORT", required_unless_present = "file")]
    targets: Vec<String>,

    /// Program to run once all ports are open
    #[arg(last = true, value_name = "COMMAND")]
    command: Vec<OsString>,

    /// YAML file with further targets: a list of target, namespace, ports, addresses
    #[arg(long, short, value_name = "FILE", value_hint = clap::ValueHint::FilePath)]
    file: Option<PathBuf>,

    /// Local addresses to listen on: IP addresses, or localhost for both loopback addresses
    #[arg(
        long,
        value_name = "ADDRESS",
        value_delimiter = ',',
        default_value = "localhost"
    )]
    address: Vec<String>,

    /// Way to the targets [default: bastion if the server is one, else api-server]
    #[arg(long, value_name = "WAY")]
    via: Option<Via>,

    /// Time to wait until a pod of each target runs
    #[arg(long, value_name = "DURATION", default_value = "1m", value_parser = positive_duration)]
    pod_running_timeout: Duration,

    /// Forward the other targets if one cannot be forwarded
    #[arg(long)]
    keep_going: bool,

    /// Format of the output [default: lines as those of kubectl port-forward]
    #[arg(long, short, value_name = "FORMAT")]
    output: Option<Output>,

    #[command(flatten)]
    connection: ConnectionFlags,
}

fn positive_duration(text: &str) -> Result<Duration> {
    let seconds = go_duration(text).context("not a duration; use units as in 30s, 1m or 1h30m")?;
    let duration = Duration::try_from_secs_f64(seconds).ok();
    match duration.filter(|duration| !duration.is_zero()) {
        Some(duration) => Ok(duration),
        None => bail!("not longer than 0s"),
    }
}

pub(super) fn run(options: Options) -> Result<ExitCode> {
    let mut targets = TargetSpec::parse_all(&options.targets)?;
    if let Some(file) = &options.file {
        targets.extend(forward::read_file(file)?);
    }
    let context = Context::load(&options.connection)?;
    let runtime = Builder::new_current_thread()
        .enable_all()
        .build_local(LocalOptions::default())
        .context("cannot start the runtime")?;
    let options = forward::Options {
        targets,
        addresses: options.address,
        via: options.via,
        pod_running_timeout: options.pod_running_timeout,
        keep_going: options.keep_going,
        json: options.output == Some(Output::Json),
        command: options.command,
    };
    runtime.block_on(async {
        let drain = || drain_on_signals().map_err(std::io::Error::other);
        Ok(forward::run(context, options, drain).await?)
    })
}
