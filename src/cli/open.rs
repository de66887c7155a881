//! The command `open`.

use std::process::ExitCode;

use anyhow::{Context as _, Result};
use clap::Args;
use tokio::runtime::{Builder, LocalOptions};

use super::drain_on_signals;
use crate::desk::open::{self, Reference, Via};
use crate::desk::{ConnectionFlags, Context};

const HELP: &str = "\
Each target has a host of its own, such as http://web--shop.localhost:PORT/, so that applications
do not share cookies. The requests of its page need no prefix and are not rewritten.

Types: svc, pod, node, deploy, sts, ds, rs, rc, job. The ready pods of a workload serve in turn.
A target may have a port: svc/web:8080, svc/web:http. Without one, its only port is used, or the only
one whose appProtocol or name (http, web, www, ui) says that it serves HTTP.

The way to the targets (--via):
  bastion       requests to a kube-bastion as HTTP proxy; needs the right services/proxy or pods/proxy
  port-forward  connections to ready pods through the API server; needs create on pods/portforward
  proxy         the /proxy/ subresource; links and cookies of many applications do not work below it
Without --via, the first of them that the server and the rights of the user allow.";

#[derive(Clone, Debug, Args)]
#[command(after_help = HELP)]
pub(super) struct Options {
    /// Objects to open, as TYPE/NAME or TYPE/NAME:PORT
    #[arg(required = true, value_name = "TYPE/NAME")]
    targets: Vec<String>,

    /// Port of the targets that have none of their own, by number or name
    #[arg(long, value_name = "PORT")]
    port: Option<String>,

    /// Way to the targets [default: the first that works]
    #[arg(long, value_name = "WAY")]
    via: Option<Via>,

    /// Port to listen on, on both loopback addresses; 0 for a free one
    #[arg(
        long,
        visible_alias = "listen-port",
        value_name = "PORT",
        default_value_t = 0
    )]
    local_port: u16,

    /// Do not open the browser; only print the URLs
    #[arg(long)]
    no_browser: bool,

    #[command(flatten)]
    connection: ConnectionFlags,
}

pub(super) fn run(options: Options) -> Result<ExitCode> {
    let targets: Result<Vec<Reference>, _> = options.targets.iter().map(|it| it.parse()).collect();
    let targets = targets?;
    let context = Context::load(&options.connection)?;
    let runtime = Builder::new_current_thread()
        .enable_all()
        .build_local(LocalOptions::default())
        .context("cannot start the runtime")?;
    let options = open::Options {
        targets,
        port: options.port,
        via: options.via,
        local_port: options.local_port,
        browser: !options.no_browser,
    };
    runtime.block_on(async {
        let drain = drain_on_signals()?;
        open::run(context, options, drain).await?;
        anyhow::Ok(ExitCode::SUCCESS)
    })
}
