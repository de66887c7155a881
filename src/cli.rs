//! Command line: one module per command, which has the command's flags, help and `run`.

mod check;
mod completion;
mod environment;
mod explain;
mod forward;
mod invocation;
mod kubeconfig;
mod man;
mod open;
mod plugin_completion;
mod proxy;
mod serve;
mod settings;
mod source;
mod version;

use std::ffi::OsString;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::{FromArgMatches, Parser, Subcommand};
use tokio::signal::unix::{SignalKind, signal};

use crate::demo;
use crate::drain::Drain;
use invocation::Invocation;

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
    Serve(Box<serve::Options>),
    /// Run a built-in cluster with backends on loopback, and print a link and commands to try
    #[command(after_help = demo::HELP)]
    Demo(demo::Options),
    /// Forward a local port to the API servers, with the credentials of the kubeconfig
    Proxy(Box<proxy::Options>),
    /// Open services, pods and workloads in the browser, each at the root of a host of its own
    Open(Box<open::Options>),
    /// Forward local TCP and UDP ports to services, pods and workloads
    Forward(Box<forward::Options>),
    /// Validate a configuration and print the effective one, without secrets
    Check(Box<check::Options>),
    /// Print a kubeconfig for a bastion with your way to log in, or merge it into yours
    Kubeconfig(Box<kubeconfig::Options>),
    /// Print the completion script of a shell
    Completion(completion::Options),
    /// Write the manual pages
    Man(man::Options),
    /// Print the version, the commit and the platform of this binary
    Version(version::Options),
}

impl Cli {
    /// Parses the command line. Prints help, candidates for a completion or an error, and ends the
    /// process, if there is nothing to run.
    pub fn from_command_line() -> Self {
        let invocation = Invocation::of_process();
        if invocation == Invocation::PluginCompletion {
            let arguments: Vec<OsString> = std::env::args_os().skip(1).collect();
            print!("{}", plugin_completion::complete(&arguments));
            std::process::exit(0);
        }
        Self::try_from(invocation, std::env::args_os()).unwrap_or_else(|error| error.exit())
    }

    fn try_from<I>(invocation: Invocation, arguments: I) -> Result<Self, clap::Error>
    where
        I: IntoIterator<Item: Into<OsString> + Clone>,
    {
        let arguments: Vec<OsString> = arguments.into_iter().map(Into::into).collect();
        let mut command = invocation.command();
        let matches = command.try_get_matches_from_mut(&arguments);
        matches
            .and_then(|mut matches| Self::from_arg_matches_mut(&mut matches))
            .map_err(|error| error.format(&mut command))
            .map_err(|error| explain::explain(error, &arguments, std::env::vars_os()))
    }

    /// Runs the subcommand, and returns the exit code of the process. A failure that has been logged
    /// is not an error.
    ///
    /// # Errors
    /// The invalid setting, the file that cannot be loaded, or the failure that ended the process.
    pub fn run(self) -> Result<ExitCode> {
        match self.command {
            Command::Serve(options) => serve::run(*options),
            Command::Demo(options) => control_runtime()?.block_on(async {
                demo::run(options, drain_on_signals()?).await?;
                Ok(ExitCode::SUCCESS)
            }),
            Command::Proxy(options) => proxy::run(&options),
            Command::Open(options) => open::run(*options),
            Command::Forward(options) => forward::run(*options),
            Command::Check(options) => check::run(*options),
            Command::Kubeconfig(options) => kubeconfig::run(*options),
            Command::Completion(options) => completion::run(&options),
            Command::Man(options) => man::run(&options),
            Command::Version(options) => version::run(&options),
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
        match Cli::try_from(Invocation::Command, [&["kube-bastion"], arguments].concat())?.command {
            Command::Serve(options) => options.settings.into_config(),
            _ => unreachable!("tests use serve only"),
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

    /// Values that each kind of flag rejects, and a part of the message.
    const INVALID: [(&str, &[&str], &str); 12] = [
        (
            "ADDRESS",
            &[
                "8443",
                ":8443",
                "localhost:8443",
                "1.2.3.4:99999",
                "https://[::]:8443",
                "",
            ],
            "use IP:port",
        ),
        ("FILE", &["", "~jane/file"], "write "),
        ("DIR", &["", "~jane/directory"], "write "),
        ("VERSION", &["1.2", "TLS12", ""], "VersionTLS12"),
        (
            "COUNT",
            &["-1", "many", "1.5", "1000000", ""],
            "use a whole number from 0 to 1024",
        ),
        (
            "DURATION",
            &["-5s", "30", "1.5s", "1d", "0s", ""],
            "use whole numbers with the units",
        ),
        ("BOOL", &["yes", "on", "1", "True"], "use true or false"),
        ("FORMAT", &["yaml", "JSON", ""], "json"),
        ("CLASS", &["a/b/c", "Kube.dev/x", "a b"], "a qualified name"),
        (
            "HOST",
            &["192.0.2.1:80", "0.0.0.0", "lb_1.test", ""],
            "an address without a port or a DNS name",
        ),
        (
            "IP",
            &["192.0.2.1:80", "lb.test", ""],
            "an address without a port",
        ),
        ("MODE", &["impersonate", "Reject", ""], "front-proxy"),
    ];

    #[test]
    fn every_flag_rejects_invalid_values_by_name_value_and_accepted_form() {
        let mut root = Cli::command();
        root.build();
        let mut rejected = 0;
        for subcommand in ["serve", "check"] {
            let command = root.find_subcommand(subcommand).unwrap();
            let takes_value = |argument: &&clap::Arg| argument.get_action().takes_values();
            for argument in command.get_arguments().filter(takes_value) {
                let (Some(flag), [kind]) = (
                    argument.get_long(),
                    argument.get_value_names().unwrap_or_default(),
                ) else {
                    continue;
                };
                let Some((_, values, part)) = INVALID.iter().find(|(of, ..)| kind == of) else {
                    assert!(["NAME", "LEVEL"].contains(&&**kind), "--{flag} <{kind}>");
                    continue;
                };
                for value in *values {
                    let split = [format!("--{flag}"), (*value).to_owned()];
                    for given in [&split[..], &[format!("--{flag}={value}")]] {
                        let line = ["kube-bastion", subcommand].map(str::to_owned);
                        let error = Cli::try_from(Invocation::Command, [&line[..], given].concat())
                            .unwrap_err()
                            .to_string();
                        assert!(
                            error.contains(&format!("--{flag}"))
                                && error.contains(value)
                                && error.contains(part)
                                && !error.contains("unexpected argument"),
                            "{given:?}: {error}"
                        );
                        rejected += 1;
                    }
                }
            }
        }
        assert!(rejected > 200, "{rejected}");
    }

    #[test]
    fn suggests_what_was_meant() {
        for (arguments, part) in [
            (&["serve", "--log-level=warning"][..], "did you mean warn?"),
            (
                &["serve", "--logging-format=jsn"],
                "a similar value exists: 'json'",
            ),
            (&["serve", "--loging-format=json"], "'--logging-format'"),
            (&["serve", "-config=x"], "flags have two dashes: --config"),
            (&["serve", "bastion.yaml"], "--config=FILE"),
            (&["server"], "'serve'"),
        ] {
            let error = config(arguments).unwrap_err().to_string();
            assert!(error.contains(part), "{arguments:?}: {error}");
        }
    }

    #[test]
    fn boolean_flags_take_their_value_with_and_without_equals_sign() {
        for (arguments, expected) in [
            (&["serve", "--anonymous-auth"][..], true),
            (&["serve", "--anonymous-auth", "true"], true),
            (&["serve", "--anonymous-auth", "false"], false),
            (&["serve", "--anonymous-auth=false"], false),
            (&["serve", "--anonymous-auth", "--workers=1"], true),
        ] {
            let config = config(arguments).unwrap();
            assert_eq!(config.authentication.anonymous, expected, "{arguments:?}");
        }
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
            (
                &["serve", "--anonymous-auth", "yes"],
                "'--anonymous-auth [<BOOL>]': \"yes\" is not a boolean; use true or false",
            ),
            (
                &["serve", "--log-level=inf"],
                "did you mean info? Accepted: off, error, warn, info, debug or trace",
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
