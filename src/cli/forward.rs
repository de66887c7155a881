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
use crate::desk::forward::{self, Proxy, TargetSpec, Via};
use crate::desk::{ConnectionFlags, Context};
use crate::model::dns::is_label;

const HELP: &str = "\
Targets and ports:
  A target is TYPE/NAME followed by its ports; several targets may follow each other. Types: svc, pod,
  deploy, sts, ds, rs, rc, job. The first target may be the name of a pod alone.
  svc/NAME.NAMESPACE names a service of another namespace. So does TYPE/NAME.NAMESPACE, unless the
  namespace of -n has an object of the name NAME.NAMESPACE.
  A port is [LOCAL:]REMOTE, where REMOTE is a number or the name of a port. Without LOCAL, the local
  port is the number of the remote one; in :REMOTE it is any free one. The suffix /udp selects UDP,
  which needs a bastion.

  kube-bastion forward svc/db 5432
  kube-bastion forward web-0 8080:80 svc/db.shop 5432 deploy/api :http
  kube-bastion forward svc/dns 5353:53/udp
  kube-bastion forward -f forwards.yaml    a list of {target: svc/db.shop, ports: [15432:5432]}

All names of the cluster through one local port, SOCKS5 (TCP and UDP) and HTTP proxy in one:
  kube-bastion forward --socks 1080
  curl --proxy socks5h://localhost:1080 http://web.shop.svc/
  kube-bastion forward --socks 1080 --pac cluster.pac    for the settings of a browser

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
    /// Targets, each followed by its ports
    #[arg(value_name = "TARGET PORT", required_unless_present_any = ["file", "socks"])]
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

    /// Port of a SOCKS5 and HTTP proxy for all names of the cluster [default address: localhost]
    #[arg(long, value_name = "[ADDRESS:]PORT", value_parser = socks_address)]
    socks: Option<(String, u16)>,

    /// Write a proxy auto-configuration (PAC) for the proxy of --socks; - for standard output
    #[arg(long, value_name = "FILE", requires = "socks", value_hint = clap::ValueHint::FilePath)]
    pac: Option<PathBuf>,

    /// DNS domain of the cluster in the proxy auto-configuration
    #[arg(long, value_name = "DOMAIN", default_value = "cluster.local", value_parser = domain)]
    cluster_domain: String,

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

/// Splits an address with a port; the address is `localhost` by default.
fn socks_address(text: &str) -> Result<(String, u16)> {
    let (address, port) = text.rsplit_once(':').unwrap_or(("localhost", text));
    let port = port.parse();
    let port = port.context("the port is not a number from 0 to 65535; use [ADDRESS:]PORT")?;
    Ok((address.to_owned(), port))
}

fn domain(text: &str) -> Result<String> {
    if !text.split('.').all(is_label) {
        bail!("not a DNS domain such as cluster.local");
    }
    Ok(text.to_owned())
}

pub(super) fn run(options: Options) -> Result<ExitCode> {
    let mut targets = TargetSpec::parse_all(&options.targets)?;
    if let Some(file) = &options.file {
        targets.extend(forward::read_file(file)?);
    }
    if options.output.is_some() && options.pac.as_ref().is_some_and(|it| it.as_os_str() == "-") {
        bail!("--pac - and --output both write to standard output; write the PAC to a file");
    }
    let (pac, cluster_domain) = (options.pac, options.cluster_domain);
    let proxy = options.socks.map(|(address, port)| Proxy {
        address,
        port,
        pac,
        cluster_domain,
    });
    let context = Context::load(&options.connection)?;
    let runtime = Builder::new_current_thread()
        .enable_all()
        .build_local(LocalOptions::default())
        .context("cannot start the runtime")?;
    let options = forward::Options {
        targets,
        addresses: options.address,
        proxy,
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
