//! `proxy`: forwards a local port or Unix socket to the API servers, with the flags of
//! `kubectl proxy`.

use std::net::IpAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use clap::Args;
use tokio::runtime::{Builder, LocalOptions};

use super::drain_on_signals;
use crate::config::{Log, LogFormat};
use crate::desk::flags::{go_bool, go_duration, path};
use crate::desk::proxy::files::Files;
use crate::desk::proxy::filter::{
    DEFAULT_ACCEPT_HOSTS, DEFAULT_ACCEPT_PATHS, DEFAULT_REJECT_METHODS, DEFAULT_REJECT_PATHS,
    Filter, Patterns,
};
use crate::desk::proxy::path::Prefix;
use crate::desk::proxy::{self, Settings, Socket};
use crate::desk::{ConnectionFlags, Context, browser, warn};
use crate::telemetry;

const DEFAULT_PORT: u16 = 8001;
const DEFAULT_ADDRESS: &str = "127.0.0.1";
const HELP: &str = "\
Examples:
  # Forward port 8001 to the API servers of the current context
  kube-bastion proxy
  curl localhost:8001/api/v1/pods
  # Balance requests over several API servers of the cluster
  kube-bastion proxy --server=https://10.0.0.1:6443 --server=https://10.0.0.2:6443
  # Use a free port, which is printed, and open it in the browser
  kube-bastion proxy --port=0 --open
  # Serve the files of a directory, and the API below /api/ only
  kube-bastion proxy --www=./site --www-prefix=/site/ --api-prefix=/api/
  # Serve the API below another prefix: curl localhost:8001/k8s/api/v1/pods
  kube-bastion proxy --api-prefix=/k8s/

A request is forwarded if its path matches an expression of --accept-paths and none of
--reject-paths, its host matches one of --accept-hosts, its method matches none of
--reject-methods, and no page of another site has caused it. The expressions are those of Go, in
lists that are split at each comma.";

#[derive(Clone, Debug, Args)]
#[command(after_help = HELP, args_override_self = true)]
pub(super) struct Options {
    /// Port to listen on; 0 selects a free one
    #[arg(long, short = 'p', value_name = "PORT", default_value_t = DEFAULT_PORT)]
    port: u16,
    /// IP address to listen on
    #[arg(long, value_name = "ADDRESS", default_value = DEFAULT_ADDRESS)]
    address: String,
    /// Unix socket to listen on instead of a port; only its user has access
    #[arg(long, short = 'u', value_name = "PATH", value_parser = path)]
    unix_socket: Option<PathBuf>,
    /// Prefix of the paths of the API; it is removed unless it begins with /api
    #[arg(long, value_name = "PREFIX", default_value = "/", value_parser = Prefix::parse)]
    api_prefix: Prefix,
    /// Directory with static files to serve
    #[arg(long, short = 'w', value_name = "DIR", value_parser = path)]
    www: Option<PathBuf>,
    /// Prefix of the paths of static files
    #[arg(
        long,
        short = 'P',
        value_name = "PREFIX",
        default_value = "/static/",
        value_parser = Prefix::parse
    )]
    www_prefix: Prefix,
    /// Expressions of paths to accept
    #[arg(
        long,
        value_name = "LIST",
        default_value = DEFAULT_ACCEPT_PATHS,
        value_parser = Patterns::parse
    )]
    accept_paths: Patterns,
    /// Expressions of paths to reject, even if they are accepted
    #[arg(
        long,
        value_name = "LIST",
        default_value = DEFAULT_REJECT_PATHS,
        value_parser = Patterns::parse
    )]
    reject_paths: Patterns,
    /// Expressions of hosts to accept, as the Host header has them without port
    #[arg(
        long,
        value_name = "LIST",
        default_value = DEFAULT_ACCEPT_HOSTS,
        value_parser = Patterns::parse
    )]
    accept_hosts: Patterns,
    /// Expressions of methods to reject, such as POST,PUT,PATCH
    #[arg(
        long,
        value_name = "LIST",
        default_value = DEFAULT_REJECT_METHODS,
        value_parser = Patterns::parse
    )]
    reject_methods: Patterns,
    /// Accept all requests, also those that pages of other sites cause
    #[arg(
        long,
        value_name = "BOOL",
        num_args = 0..=1,
        require_equals = true,
        default_value_t = false,
        default_missing_value = "true",
        value_parser = go_bool,
        hide_default_value = true,
        hide_possible_values = true
    )]
    disable_filter: bool,
    /// Interval of TCP keep-alive probes to the API servers, such as 30s; 0 is the default of 15s
    #[arg(long, value_name = "DURATION", default_value = "0", value_parser = parse_keepalive)]
    keepalive: Duration,
    /// Append paths to that of the API server's URL
    #[arg(
        long,
        value_name = "BOOL",
        num_args = 0..=1,
        require_equals = true,
        default_value_t = false,
        default_missing_value = "true",
        value_parser = go_bool,
        hide_default_value = true,
        hide_possible_values = true
    )]
    append_server_path: bool,
    /// Open the API in the browser
    #[arg(long)]
    open: bool,
    /// Log a line per request; kubectl's levels are accepted
    #[arg(
        short = 'v',
        long = "v",
        value_name = "LEVEL",
        num_args = 0..=1,
        default_value_t = 0,
        default_missing_value = "1",
        hide_default_value = true
    )]
    verbosity: u8,
    #[command(flatten)]
    connection: ConnectionFlags,
}

/// Value of a flag that is not accepted.
#[derive(Debug, thiserror::Error)]
#[error("not a duration; use units as in 30s, 2m or 1h30m")]
struct InvalidDuration;

fn parse_keepalive(text: &str) -> Result<Duration, InvalidDuration> {
    let seconds = go_duration(text).ok_or(InvalidDuration)?;
    // A negative one has no meaning of its own here.
    Ok(Duration::try_from_secs_f64(seconds).unwrap_or_default())
}

impl Options {
    /// Returns the path of the Unix socket. As with kubectl, an empty one counts as a missing flag.
    fn socket_path(&self) -> Option<&PathBuf> {
        self.unix_socket
            .as_ref()
            .filter(|path| !path.as_os_str().is_empty())
    }

    /// Returns the settings of the proxy.
    ///
    /// # Errors
    /// Flags that exclude each other.
    fn settings(&self) -> Result<Settings> {
        let www = self
            .www
            .as_ref()
            .filter(|path| !path.as_os_str().is_empty());
        ensure!(
            self.socket_path().is_none() || self.port == DEFAULT_PORT,
            "cannot set --unix-socket and --port at the same time; remove one of them"
        );
        ensure!(
            self.socket_path().is_none() || !self.open,
            "--open needs a port; remove --unix-socket"
        );
        ensure!(
            www.is_none() || self.www_prefix != self.api_prefix,
            "--www-prefix and --api-prefix are both {:?}; choose different ones",
            self.api_prefix.as_str()
        );
        let filter = || Filter {
            accept_paths: self.accept_paths.clone(),
            reject_paths: self.reject_paths.clone(),
            accept_hosts: self.accept_hosts.clone(),
            reject_methods: self.reject_methods.clone(),
        };
        Ok(Settings {
            api_prefix: self.api_prefix.clone(),
            files: www.map(|www| (self.www_prefix.clone(), Files::new(www.clone()))),
            filter: (!self.disable_filter).then(filter),
            keepalive: Some(self.keepalive).filter(|time| !time.is_zero()),
            append_server_path: self.append_server_path,
            verbose: self.verbosity > 0,
        })
    }

    /// Prints the warnings of kubectl, and about flags that have no effect or are dangerous.
    fn warn(&self, context: &Context) {
        let path = context
            .servers
            .iter()
            .find(|server| !server.path.is_empty());
        if let Some(server) = path
            && !self.append_server_path
        {
            warn(format_args!(
                "Your kube context contains a server path {}, use --append-server-path to \
                 automatically append the path to each request",
                server.path
            ));
        }
        let is_socket = self.socket_path().is_some();
        if self.disable_filter && !is_socket {
            warn(
                "Request filter disabled, your proxy is vulnerable to XSRF attacks, please be \
                 cautious",
            );
        }
        if is_socket && self.address != DEFAULT_ADDRESS {
            warn("--address has no effect with --unix-socket");
        } else if !is_socket && !is_loopback(&self.address) {
            warn(format_args!(
                "--address {:?} is not a loopback address: everyone who reaches the port acts with your \
                 credentials",
                self.address
            ));
        }
        if let Some(www) = self.www.as_ref().filter(|www| !www.as_os_str().is_empty()) {
            match std::fs::metadata(www) {
                Ok(found) if found.is_dir() => {}
                Ok(_) => warn(format_args!(
                    "Static file directory {} is not a directory",
                    www.display()
                )),
                Err(error) => warn(format_args!(
                    "Failed to stat static file directory {}: {error}",
                    www.display()
                )),
            }
        }
    }
}

fn is_loopback(address: &str) -> bool {
    let bare = address.trim_start_matches('[').trim_end_matches(']');
    bare == "localhost" || bare.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

/// Runs the command until a signal ends it.
pub(super) fn run(options: &Options) -> Result<ExitCode> {
    let settings = options.settings()?;
    let level = if settings.verbose {
        "warn,kube_bastion::desk=info"
    } else {
        "warn"
    };
    telemetry::init(&Log {
        level: level.into(),
        format: LogFormat::Text,
        access: false,
    });
    let context = Context::load(&options.connection)?;
    let runtime = Builder::new_current_thread()
        .enable_all()
        .build_local(LocalOptions::default())
        .context("cannot start the runtime")?;
    runtime.block_on(async {
        let drain = drain_on_signals()?;
        let socket = match options.socket_path() {
            Some(path) => Socket::unix(path)?,
            None => Socket::tcp(&options.address, options.port).await?,
        };
        options.warn(&context);
        println!("Starting to serve on {socket}");
        if options.open {
            let address = socket.tcp_address().context("the port has no address")?;
            let address = proxy::browser_address(address);
            let url = format!("http://{address}{}", settings.api_prefix.as_str());
            println!("Open {url}");
            match browser::obstacle(|name| std::env::var_os(name)) {
                None => browser::open(url),
                Some(obstacle) => warn(obstacle.describe()),
            }
        }
        proxy::run(socket, settings, context, drain).await;
        Ok(ExitCode::SUCCESS)
    })
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Command {
        #[command(flatten)]
        options: Options,
    }

    fn parse(arguments: &[&str]) -> Result<Options, String> {
        let parsed = Command::try_parse_from([&["proxy"], arguments].concat());
        parsed
            .map(|command| command.options)
            .map_err(|error| error.to_string())
    }

    #[test]
    fn has_the_flags_shorthands_and_defaults_of_kubectl() {
        let options = parse(&[]).unwrap();
        assert_eq!((options.port, &*options.address), (8001, "127.0.0.1"));
        assert_eq!(options.api_prefix.as_str(), "/");
        assert_eq!(options.www_prefix.as_str(), "/static/");
        let settings = options.settings().unwrap();
        assert!(settings.filter.is_some() && settings.files.is_none());
        assert!(settings.keepalive.is_none() && !settings.append_server_path);
        let options = parse(&[
            "-p=0",
            "-w",
            "/srv",
            "-P=/files",
            "--api-prefix=/custom",
            "--accept-paths=^/api,^/apis",
            "--reject-paths=",
            "--accept-hosts=.*",
            "--reject-methods=POST,PUT",
            "--disable-filter=true",
            "--keepalive=1m30s",
            "--append-server-path",
            "-v=6",
        ])
        .unwrap();
        let settings = options.settings().unwrap();
        assert_eq!(options.port, 0);
        assert_eq!(settings.files.unwrap().0.as_str(), "/files/");
        assert_eq!(settings.api_prefix.as_str(), "/custom/");
        assert!(settings.filter.is_none() && settings.append_server_path && settings.verbose);
        assert_eq!(settings.keepalive, Some(Duration::from_secs(90)));
        let socket = parse(&["-u", "/tmp/a.sock", "--www="]).unwrap();
        assert_eq!(socket.socket_path(), Some(&PathBuf::from("/tmp/a.sock")));
        assert!(socket.settings().unwrap().files.is_none());
    }

    #[test]
    fn rejects_flags_that_exclude_each_other() {
        for (arguments, part) in [
            (
                &["--unix-socket=a", "--port=8002"][..],
                "cannot set --unix-socket and --port at the same time",
            ),
            (
                &["--www=a", "--www-prefix=/"],
                "--www-prefix and --api-prefix are both \"/\"",
            ),
        ] {
            let error = parse(arguments)
                .unwrap()
                .settings()
                .unwrap_err()
                .to_string();
            assert!(error.contains(part), "{error}");
        }
        // As with kubectl, the default port counts as a missing flag.
        let options = parse(&["--unix-socket=a", "--port=8001"]).unwrap();
        assert!(options.settings().is_ok());
    }

    #[test]
    fn rejects_invalid_values_with_the_remedy() {
        for (argument, part) in [
            ("--accept-paths=(", "\"(\" is not a regular expression"),
            ("--api-prefix=custom/", "begins with a slash"),
            ("--port=70000", "70000"),
            ("--keepalive=1d", "use units as in 30s"),
            ("--disable-filter=maybe", "true or false"),
        ] {
            let error = parse(&[argument]).unwrap_err();
            assert!(error.contains(part), "{error}");
        }
    }
}
