//! The command line: `serve`, `demo` and `check`. Flags are named as kube-apiserver and
//! kube-rbac-proxy name theirs; each has an environment variable, and both stand over the file.

mod source;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::{Args, Parser, Subcommand};
use tokio::signal::unix::{SignalKind, signal};

use crate::app::{self, Bound};
use crate::config::{
    Config, LogFormat, TlsVersion, parse_address, parse_duration, parse_log_level, parse_workers,
};
use crate::demo;
use crate::drain::Drain;
use crate::telemetry;
use source::Source;

/// The Kubernetes apiserver's /proxy/ as a product of its own: reach nodes, pods and services of a
/// cluster from outside, as the cluster's RBAC allows, round-robin over the ready endpoints.
#[derive(Debug, Parser)]
#[command(version, about, max_term_width = 100)]
#[command(after_help = "\
First look, without a cluster:
  kube-bastion demo

Outside a cluster, with a kubeconfig:
  kube-bastion serve --kubeconfig ~/.kube/config
  kubectl --server https://127.0.0.1:8443 --insecure-skip-tls-verify get --raw \\
    /api/v1/namespaces/default/services/web/proxy/

A setting is taken from its flag, else its environment variable, else the file of --config, else its default.")]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve /proxy/ for a cluster
    Serve(Box<Settings>),
    /// Serve a built-in cluster with real backends on loopback, and print curl lines to try
    Demo(demo::Options),
    /// Check a configuration and print what would be in effect, without secrets
    #[command(after_help = CHECK_HELP)]
    Check(Box<CheckOptions>),
}

const CHECK_HELP: &str = "\
Without --load, no file but that of --config is read, so that a configuration can be checked where its certificates are not.
With it, certificates and keys, client CAs, the kubeconfig, manifests and tokens are loaded as serve would load them here;
no port is bound, nothing is dialled, and no credential plugin of the kubeconfig is run.";

#[derive(Clone, Debug, Args)]
struct CheckOptions {
    /// Load the files that the configuration names, too
    #[arg(long)]
    load: bool,
    #[command(flatten)]
    settings: Settings,
}

/// Settings that can be given on the command line. The file of --config knows some more.
#[derive(Clone, Debug, Default, Args)]
struct Settings {
    /// Configuration file (kind: `BastionConfiguration`); config/ of the sources has commented
    /// examples
    #[arg(long, value_name = "FILE", env = "KUBE_BASTION_CONFIG")]
    config: Option<PathBuf>,

    #[command(flatten)]
    source: Source,

    /// IP:port for HTTPS [default: 0.0.0.0:8443]
    #[arg(
        long,
        value_name = "ADDRESS",
        env = "KUBE_BASTION_SECURE_LISTEN_ADDRESS",
        help_heading = "Serving"
    )]
    #[arg(value_parser = parse_address)]
    secure_listen_address: Option<SocketAddr>,
    /// IP:port for plain HTTP, where tokens cross in clear text; none unless given
    #[arg(
        long,
        value_name = "ADDRESS",
        env = "KUBE_BASTION_INSECURE_LISTEN_ADDRESS",
        help_heading = "Serving"
    )]
    #[arg(value_parser = parse_address)]
    insecure_listen_address: Option<SocketAddr>,
    /// IP:port for /livez, /readyz and /metrics [default: 0.0.0.0:8080]
    #[arg(
        long,
        value_name = "ADDRESS",
        env = "KUBE_BASTION_ADMIN_LISTEN_ADDRESS",
        help_heading = "Serving"
    )]
    #[arg(value_parser = parse_address)]
    admin_listen_address: Option<SocketAddr>,
    /// PEM file with the serving certificate; self-signed without one
    #[arg(
        long,
        value_name = "FILE",
        env = "KUBE_BASTION_TLS_CERT_FILE",
        help_heading = "Serving"
    )]
    tls_cert_file: Option<PathBuf>,
    /// PEM file with the private key of the serving certificate
    #[arg(
        long,
        value_name = "FILE",
        env = "KUBE_BASTION_TLS_PRIVATE_KEY_FILE",
        help_heading = "Serving"
    )]
    tls_private_key_file: Option<PathBuf>,
    /// Oldest TLS version that is spoken [default: `VersionTLS12`]
    #[arg(
        long,
        value_name = "VERSION",
        env = "KUBE_BASTION_TLS_MIN_VERSION",
        help_heading = "Serving"
    )]
    tls_min_version: Option<TlsVersion>,
    /// Threads that serve; 0 takes one per core of the CPU quota [default: 0]
    #[arg(
        long,
        value_name = "COUNT",
        env = "KUBE_BASTION_WORKERS",
        help_heading = "Serving"
    )]
    #[arg(value_parser = parse_workers)]
    workers: Option<usize>,
    /// How long running requests and tunnels may go on after SIGTERM [default: 30s]
    #[arg(
        long,
        value_name = "DURATION",
        env = "KUBE_BASTION_DRAIN_TIMEOUT",
        help_heading = "Serving"
    )]
    #[arg(value_parser = parse_duration)]
    drain_timeout: Option<Duration>,

    /// PEM file with the CAs of client certificates; without it, those that the cluster publishes
    #[arg(
        long,
        value_name = "FILE",
        env = "KUBE_BASTION_CLIENT_CA_FILE",
        help_heading = "Callers"
    )]
    client_ca_file: Option<PathBuf>,
    /// Let callers without credentials in as system:anonymous [default: false]
    #[arg(
        long,
        value_name = "BOOL",
        env = "KUBE_BASTION_ANONYMOUS_AUTH",
        help_heading = "Callers"
    )]
    #[arg(num_args = 0..=1, default_missing_value = "true", require_equals = true)]
    anonymous_auth: Option<bool>,
    /// How long a good token is remembered [default: 10s]
    #[arg(
        long,
        value_name = "DURATION",
        env = "KUBE_BASTION_AUTHENTICATION_CACHE_TTL",
        help_heading = "Callers"
    )]
    #[arg(value_parser = parse_duration)]
    authentication_token_webhook_cache_ttl: Option<Duration>,
    /// How long a yes of the authorizer is remembered [default: 10s]
    #[arg(
        long,
        value_name = "DURATION",
        env = "KUBE_BASTION_AUTHORIZED_CACHE_TTL",
        help_heading = "Callers"
    )]
    #[arg(value_parser = parse_duration)]
    authorization_webhook_cache_authorized_ttl: Option<Duration>,
    /// How long a no of the authorizer is remembered [default: 10s]
    #[arg(
        long,
        value_name = "DURATION",
        env = "KUBE_BASTION_UNAUTHORIZED_CACHE_TTL",
        help_heading = "Callers"
    )]
    #[arg(value_parser = parse_duration)]
    authorization_webhook_cache_unauthorized_ttl: Option<Duration>,

    /// PEM file with the CAs of the kubelets; unverified without it
    #[arg(
        long,
        value_name = "FILE",
        env = "KUBE_BASTION_KUBELET_CERTIFICATE_AUTHORITY",
        help_heading = "Targets"
    )]
    kubelet_certificate_authority: Option<PathBuf>,
    /// PEM file with the client certificate for kubelets
    #[arg(
        long,
        value_name = "FILE",
        env = "KUBE_BASTION_KUBELET_CLIENT_CERTIFICATE",
        help_heading = "Targets"
    )]
    kubelet_client_certificate: Option<PathBuf>,
    /// PEM file with the private key of the client certificate for kubelets
    #[arg(
        long,
        value_name = "FILE",
        env = "KUBE_BASTION_KUBELET_CLIENT_KEY",
        help_heading = "Targets"
    )]
    kubelet_client_key: Option<PathBuf>,
    /// Show the service account token to verified kubelets; a compromised node can collect it
    /// [default: false]
    #[arg(
        long,
        value_name = "BOOL",
        env = "KUBE_BASTION_KUBELET_SERVICE_ACCOUNT_TOKEN",
        help_heading = "Targets"
    )]
    #[arg(num_args = 0..=1, default_missing_value = "true", require_equals = true)]
    kubelet_service_account_token: Option<bool>,

    /// What is logged: off, error, warn, info, debug, trace, or directives [default: info]
    #[arg(
        long,
        value_name = "LEVEL",
        env = "KUBE_BASTION_LOG_LEVEL",
        help_heading = "Logs"
    )]
    #[arg(value_parser = parse_log_level)]
    log_level: Option<String>,
    /// How it is logged [default: text]
    #[arg(
        long,
        value_name = "FORMAT",
        env = "KUBE_BASTION_LOGGING_FORMAT",
        help_heading = "Logs"
    )]
    logging_format: Option<LogFormat>,
    /// Log a line per request on standard output [default: true]
    #[arg(
        long,
        value_name = "BOOL",
        env = "KUBE_BASTION_ACCESS_LOG",
        help_heading = "Logs"
    )]
    #[arg(num_args = 0..=1, default_missing_value = "true", require_equals = true)]
    access_log: Option<bool>,
}

impl Cli {
    /// Does what the line asks for.
    ///
    /// # Errors
    /// What could not be done, for the person who asked.
    pub fn run(self) -> Result<()> {
        match self.command {
            Command::Check(options) => {
                let config = options.settings.effective()?;
                if options.load {
                    control_runtime()?.block_on(app::load_all(&config))?;
                } else {
                    eprintln!(
                        "kube-bastion: the files that the configuration names are not checked; check --load does"
                    );
                }
                print!("{}", config.to_yaml());
                Ok(())
            }
            Command::Serve(settings) => {
                let config = settings.effective()?;
                telemetry::init(&config.log);
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

/// Runs what is not the data path: watches, reviews, the admin port, reloads.
fn control_runtime() -> Result<tokio::runtime::Runtime> {
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    runtime
        .worker_threads(2)
        .thread_name("control")
        .enable_all()
        .build()
        .context("cannot start the control runtime")
}

/// The first SIGTERM or SIGINT begins the drain, the second ends it.
fn drain_on_signals() -> Result<Drain> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let drain = Drain::default();
    let told = drain.clone();
    tokio::spawn(async move {
        for act in [Drain::begin, Drain::force] {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            act(&told);
        }
    });
    Ok(drain)
}

impl Settings {
    /// The file, with environment and flags over it, checked as a whole.
    fn effective(self) -> Result<Config> {
        let mut config = self
            .config
            .as_deref()
            .map_or_else(|| Ok(Config::new()), Config::load)?;
        self.apply(&mut config);
        config.validate()?;
        Ok(config)
    }

    fn apply(self, config: &mut Config) {
        let Config {
            serving,
            admin,
            source,
            authentication,
            authorization,
            targets,
            log,
            drain,
            ..
        } = config;
        self.source.apply(source);
        set_if_some(
            &mut serving.secure_listen_address,
            self.secure_listen_address,
        );
        set_if_some(
            &mut serving.insecure_listen_address,
            self.insecure_listen_address.map(Some),
        );
        set_if_some(&mut admin.listen_address, self.admin_listen_address);
        set_if_some(&mut serving.tls_cert_file, self.tls_cert_file.map(Some));
        set_if_some(
            &mut serving.tls_private_key_file,
            self.tls_private_key_file.map(Some),
        );
        set_if_some(&mut serving.tls_min_version, self.tls_min_version);
        set_if_some(&mut serving.workers, self.workers);
        set_if_some(&mut drain.timeout, self.drain_timeout);
        set_if_some(&mut serving.client_ca_file, self.client_ca_file.map(Some));
        set_if_some(&mut authentication.anonymous, self.anonymous_auth);
        set_if_some(
            &mut authentication.token_review.cache_ttl,
            self.authentication_token_webhook_cache_ttl,
        );
        set_if_some(
            &mut authorization.allowed_cache_ttl,
            self.authorization_webhook_cache_authorized_ttl,
        );
        set_if_some(
            &mut authorization.denied_cache_ttl,
            self.authorization_webhook_cache_unauthorized_ttl,
        );
        set_if_some(
            &mut targets.kubelet_certificate_authority,
            self.kubelet_certificate_authority.map(Some),
        );
        set_if_some(
            &mut targets.kubelet_client_certificate,
            self.kubelet_client_certificate.map(Some),
        );
        set_if_some(
            &mut targets.kubelet_client_key,
            self.kubelet_client_key.map(Some),
        );
        set_if_some(
            &mut targets.kubelet_service_account_token,
            self.kubelet_service_account_token,
        );
        set_if_some(&mut log.level, self.log_level);
        set_if_some(&mut log.format, self.logging_format);
        set_if_some(&mut log.access, self.access_log);
    }
}

fn set_if_some<T>(setting: &mut T, given: Option<T>) {
    if let Some(given) = given {
        *setting = given;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    fn effective(line: &[&str]) -> Result<Config> {
        match Cli::try_parse_from([&["kube-bastion"], line].concat())?.command {
            Command::Serve(settings) => settings.effective(),
            Command::Check(_) | Command::Demo(_) => unreachable!("no test asks for it"),
        }
    }

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }

    #[test]
    fn flags_stand_over_the_file_and_the_file_over_defaults() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("bastion.yaml");
        let yaml = "apiVersion: kube-bastion.dev/v1alpha1\nkind: BastionConfiguration\n\
                    serving: {workers: 3, secureListenAddress: '127.0.0.1:1'}\ndrain: {timeout: 5s}\n";
        std::fs::write(&file, yaml).unwrap();
        let file = file.to_str().unwrap();
        let config =
            effective(&["serve", "--config", file, "--workers=7", "--anonymous-auth"]).unwrap();
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
    fn bad_flags_say_what_would_be_right() {
        for (line, told) in [
            (
                &["serve", "--secure-listen-address=localhost"][..],
                "give IP:port",
            ),
            (
                &["serve", "--drain-timeout=30"],
                "give a number with a unit",
            ),
            (&["serve", "--tls-min-version=1.1"], "VersionTLS12"),
            (&["serve", "--workers=1000000"], "from 0 to 1024"),
            (
                &["serve", "--log-level=inf"],
                "give off, error, warn, info, debug or trace",
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
                "source.manifests.directory: not set",
            ),
            (
                &["serve", "--context=a"],
                "source.kubernetes.kubeconfig: not set",
            ),
            (
                &["serve", "--manifests-dir=m", "--kubeconfig=k"],
                "--kubeconfig cannot be used with --manifests-dir",
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
            let error = effective(line).unwrap_err().to_string();
            assert!(error.contains(told), "{line:?}: {error}");
        }
    }
}
