//! Command line: `serve`, `demo` and `check`.

mod environment;
mod settings;
mod source;

use std::ffi::OsString;

use anyhow::{Context, Result};
use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{Args, Parser, Subcommand};
use tokio::signal::unix::{SignalKind, signal};

use crate::app::{self, Bound};
use crate::config::Log;
use crate::demo;
use crate::drain::Drain;
use crate::telemetry;
use settings::Settings;

/// Authenticating, authorizing and load-balancing proxy to the nodes, pods and services of a
/// Kubernetes cluster, with the URLs and the RBAC of the API server's /proxy/
#[derive(Debug, Parser)]
#[command(version, max_term_width = 100)]
#[command(after_help = "\
Try it without a cluster:
  kube-bastion demo

Run it outside of a cluster, on a host with a route to the addresses of its pods (a node, a VPN):
  kube-bastion serve --kubeconfig ~/.kube/config \\
    --tls-cert-file tls.crt --tls-private-key-file tls.key
  curl --cacert ca.crt -H \"Authorization: Bearer $(kubectl create token SERVICE_ACCOUNT)\" \\
    https://localhost:8443/api/v1/namespaces/default/services/web/proxy/

Precedence of settings: flag, environment variable, file of --config, default.")]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Proxy requests to a cluster
    #[command(after_help = SERVE_HELP)]
    Serve(Box<Settings>),
    /// Run a built-in cluster with backends on loopback, and print curl commands to try
    Demo(demo::Options),
    /// Validate a configuration and print the effective one, without secrets
    #[command(after_help = CHECK_HELP)]
    Check(Box<CheckOptions>),
}

const SERVE_HELP: &str = "\
Without a cluster source, the cluster is that of $KUBECONFIG, else of the pod's service account,
else of ~/.kube/config. The bastion dials the addresses of pods and nodes itself: outside of the
cluster, it needs a route to them.

Precedence of settings: flag, environment variable, file of --config, default. The file has more
settings than there are flags; docs/reference.md lists all of them.";

const CHECK_HELP: &str = "\
Without --load, only the file of --config is read, so that a configuration can be checked on a
host without its certificates. With --load, certificates, keys, CAs, kubeconfig, manifests and
tokens are loaded as serve loads them; no port is bound, nothing is dialed, and no credential
plugin of the kubeconfig is run.";

#[derive(Clone, Debug, Args)]
struct CheckOptions {
    /// Load the files that the configuration names
    #[arg(long)]
    load: bool,
    #[command(flatten)]
    settings: Settings,
}

impl Cli {
    /// Parses the command line; prints help or an error and ends the process if there is nothing to
    /// run.
    pub fn from_command_line() -> Self {
        Self::try_from(std::env::args_os()).unwrap_or_else(|error| error.exit())
    }

    fn try_from<I>(arguments: I) -> Result<Self, clap::Error>
    where
        I: IntoIterator<Item: Into<OsString> + Clone>,
    {
        Self::try_parse_from(arguments).map_err(|mut error| {
            let invalid = error.get(ContextKind::InvalidArg).map(ToString::to_string);
            // Flags are complete without a value, so that clap takes `--flag true` for a flag and
            // an argument.
            if error.kind() == ErrorKind::UnknownArgument
                && let Some(value) = invalid.filter(|value| value.parse::<bool>().is_ok())
            {
                let tip = format!("write the value after an equals sign: --FLAG={value}");
                error.insert(
                    ContextKind::Suggested,
                    ContextValue::StyledStrs(vec![tip.into()]),
                );
            }
            error
        })
    }

    /// Runs the subcommand.
    ///
    /// # Errors
    /// The invalid setting, the file that cannot be loaded, or the failure that ended the process.
    pub fn run(self) -> Result<()> {
        match self.command {
            Command::Check(options) => {
                let config = options.settings.into_config()?;
                if options.load {
                    // Warnings about manifests, whatever the level of a real start.
                    telemetry::init(&Log {
                        level: "warn".into(),
                        ..Log::default()
                    });
                    let counts = control_runtime()?.block_on(app::load_all(&config))?;
                    eprintln!(
                        "kube-bastion: configuration is valid; the files that it names were loaded"
                    );
                    if let Some(counts) = counts {
                        eprintln!("kube-bastion: manifests: {counts}");
                    }
                } else {
                    eprintln!(
                        "kube-bastion: configuration is valid; referenced files were not checked \
                         (use --load)"
                    );
                }
                print!("{}", config.to_yaml());
                Ok(())
            }
            Command::Serve(settings) => {
                let config = settings.into_config()?;
                // Before the runtime starts, so that no event of its tasks is lost.
                telemetry::init(&config.log);
                environment::warn_of_unknown_variables();
                control_runtime()?.block_on(async {
                    let drain = drain_on_signals()?;
                    Bound::new(config).await?.run(drain).await
                })
            }
            Command::Demo(options) => control_runtime()?.block_on(async {
                let drain = drain_on_signals()?;
                demo::run(options, drain).await
            }),
        }
    }
}

/// Builds the runtime of everything outside the request path: watches, reviews, the admin port,
/// reloads.
fn control_runtime() -> Result<tokio::runtime::Runtime> {
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    runtime
        .worker_threads(2)
        .thread_name("control")
        .enable_all()
        .build()
        .context("cannot start the control runtime")
}

/// Begins the drain on the first SIGTERM or SIGINT, and ends it on the second.
fn drain_on_signals() -> Result<Drain> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let drain = Drain::default();
    let handle = drain.clone();
    // Both signals share the sequence: SIGINT after SIGTERM is the second signal.
    tokio::spawn(async move {
        for act in [Drain::begin, Drain::force] {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            act(&handle);
        }
    });
    Ok(drain)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::config::Config;
    use clap::CommandFactory;

    fn config(arguments: &[&str]) -> Result<Config> {
        match Cli::try_from([&["kube-bastion"], arguments].concat())?.command {
            Command::Serve(settings) => settings.into_config(),
            Command::Check(_) | Command::Demo(_) => unreachable!("tests use serve only"),
        }
    }

    #[test]
    fn command_line_is_well_formed() {
        Cli::command().debug_assert();
    }

    #[test]
    fn environment_variables_are_named_after_their_flags() {
        let root = Cli::command();
        let mut variables = 0;
        for argument in root
            .get_subcommands()
            .flat_map(clap::Command::get_arguments)
        {
            let (Some(flag), Some(variable)) = (argument.get_long(), argument.get_env()) else {
                continue;
            };
            let expected = format!("KUBE_BASTION_{}", flag.replace('-', "_").to_uppercase());
            assert_eq!(variable.to_str(), Some(&*expected), "--{flag}");
            variables += 1;
        }
        assert!(variables > 20, "{variables}");
    }

    #[test]
    fn flags_override_the_file_and_the_file_overrides_defaults() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("bastion.yaml");
        let yaml = "apiVersion: kube-bastion.dev/v1alpha1\nkind: BastionConfiguration\n\
                    serving: {workers: 3, secureListenAddress: '127.0.0.1:1'}\n\
                    drain: {timeout: 5s}\n";
        std::fs::write(&file, yaml).unwrap();
        let file = file.to_str().unwrap();
        let config =
            config(&["serve", "--config", file, "--workers=7", "--anonymous-auth"]).unwrap();
        assert_eq!(
            (config.serving.workers, config.drain.timeout),
            (7, Duration::from_secs(5))
        );
        assert_eq!(
            config.serving.secure_listen_address,
            "127.0.0.1:1".parse().unwrap()
        );
        assert!(config.authentication.anonymous && config.log.access);
    }

    #[test]
    fn rejects_invalid_flags_with_the_accepted_form() {
        for (arguments, part) in [
            (
                &["serve", "--secure-listen-address=localhost"][..],
                "use IP:port",
            ),
            (
                &["serve", "--drain-timeout=30"],
                "use whole numbers with the units h, m, s or ms",
            ),
            (&["serve", "--tls-min-version=1.1"], "VersionTLS12"),
            (&["serve", "--workers=1000000"], "from 0 to 1024"),
            (&["serve", "--workers", "-1"], "from 0 to 1024"),
            (&["serve", "--drain-timeout=0s"], "is not longer than 0s"),
            (&["serve", "--anonymous-auth", "true"], "--FLAG=true"),
            (
                &["serve", "--log-level=inf"],
                "use off, error, warn, info, debug or trace",
            ),
            (
                &["serve", "--log-level=a=b=c"],
                "\"a=b=c\" is not a log level",
            ),
            (
                &["serve", "--tls-cert-file=a"],
                "serving.tlsPrivateKeyFile: not set",
            ),
            (
                &["serve", "--token-auth-file=a"],
                "(--token-auth-file) requires it; set a directory of YAML files (--manifests-dir)",
            ),
            (
                &["serve", "--manifests-dir=m", "--kubeconfig=k"],
                "--kubeconfig cannot be used with --manifests-dir",
            ),
            (
                &["serve", "--manifests-dir=m", "--kubeconfig=k"],
                "Usage: kube-bastion serve",
            ),
            (
                &["check", "--manifests-dir=m", "--kubeconfig=k"],
                "Usage: kube-bastion check",
            ),
            (
                &["serve", "--token-auth-file=t", "--context=c"],
                "--context cannot be used with --token-auth-file",
            ),
            (
                &["serve", "--config=/nonexistent"],
                "cannot read the configuration file \"/nonexistent\"",
            ),
        ] {
            let error = config(arguments).unwrap_err().to_string();
            assert!(error.contains(part), "{arguments:?}: {error}");
        }
    }
}
