//! Connection flags of kubectl.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;

use crate::config::parse_path;
use crate::kubeconfig::Secret;

/// Flags of kubectl for the connection to a cluster, with its names, shorthands and defaults.
#[derive(Clone, Debug, Default, Args)]
#[command(next_help_heading = "Connection", args_override_self = true)]
pub struct ConnectionFlags {
    /// Kubeconfig file [default: those of $KUBECONFIG, else ~/.kube/config]
    #[arg(long, value_name = "FILE", value_parser = path)]
    pub kubeconfig: Option<PathBuf>,

    /// Context of the kubeconfig [default: its current context]
    #[arg(long, value_name = "NAME")]
    pub context: Option<String>,

    /// Cluster of the kubeconfig [default: that of the context]
    #[arg(long, value_name = "NAME")]
    pub cluster: Option<String>,

    /// User of the kubeconfig [default: that of the context]
    #[arg(long, value_name = "NAME")]
    pub user: Option<String>,

    /// Namespace [default: that of the context, else "default"]
    #[arg(long, short = 'n', value_name = "NAME")]
    pub namespace: Option<String>,

    /// URL of an API server; repeat for several servers of the same cluster
    #[arg(long = "server", short = 's', value_name = "URL", action = clap::ArgAction::Append)]
    pub servers: Vec<String>,

    /// Use all API servers that the cluster publishes in the EndpointSlice default/kubernetes
    #[arg(long)]
    pub discover: bool,

    /// Server name for TLS [default: the host of the URL]
    #[arg(long, value_name = "NAME")]
    pub tls_server_name: Option<String>,

    /// CA certificates of the API server (PEM)
    #[arg(long, value_name = "FILE", value_parser = path)]
    pub certificate_authority: Option<PathBuf>,

    /// Skip the verification of the API server's certificate; credentials may reach an impostor
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
    pub insecure_skip_tls_verify: bool,

    /// Client certificate (PEM)
    #[arg(long, value_name = "FILE", value_parser = path)]
    pub client_certificate: Option<PathBuf>,

    /// Private key of the client certificate (PEM)
    #[arg(long, value_name = "FILE", value_parser = path)]
    pub client_key: Option<PathBuf>,

    /// Bearer token
    #[arg(long, value_name = "TOKEN", value_parser = secret)]
    pub token: Option<Secret>,

    /// User to impersonate
    #[arg(long = "as", value_name = "USER")]
    pub impersonate: Option<String>,

    /// Group to impersonate; repeatable
    #[arg(long = "as-group", value_name = "GROUP", action = clap::ArgAction::Append)]
    pub impersonate_groups: Vec<String>,

    /// UID to impersonate
    #[arg(long = "as-uid", value_name = "UID")]
    pub impersonate_uid: Option<String>,

    /// Extra attribute to impersonate, KEY=VALUE; repeatable, also for one key
    #[arg(
        long = "as-user-extra",
        value_name = "KEY=VALUE",
        action = clap::ArgAction::Append,
        value_parser = extra
    )]
    pub impersonate_extra: Vec<(String, String)>,

    /// Timeout of a request, a number of seconds or with a unit (1s, 2m, 3h); 0 is none
    #[arg(long, value_name = "DURATION", default_value = "0", value_parser = parse_timeout)]
    pub request_timeout: Timeout,

    /// Do not ask the API server to compress responses
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
    pub disable_compression: bool,
}

/// Timeout of a request. `None` means without a timeout.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Timeout(pub Option<Duration>);

/// Value of a flag that is not accepted. clap adds the flag and the value.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum FlagError {
    #[error("not a duration; use a number of seconds, or units as in 1s, 2m, 3h or 1h30m")]
    Timeout,
    #[error("not a boolean; use true or false")]
    Boolean,
    #[error("not KEY=VALUE")]
    Extra,
}

/// Parses a path. As with kubectl, an empty one counts as a missing flag.
pub fn path(text: &str) -> Result<PathBuf, crate::config::ValueError> {
    if text.is_empty() {
        return Ok(PathBuf::new());
    }
    parse_path(text)
}

#[expect(clippy::unnecessary_wraps, reason = "clap expects a Result")]
fn secret(text: &str) -> Result<Secret, FlagError> {
    Ok(text.to_owned().into())
}

fn extra(text: &str) -> Result<(String, String), FlagError> {
    let (key, value) = text.split_once('=').ok_or(FlagError::Extra)?;
    Ok((key.to_owned(), value.to_owned()))
}

/// Parses the forms of Go's `strconv.ParseBool`.
pub fn go_bool(text: &str) -> Result<bool, FlagError> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(false),
        _ => Err(FlagError::Boolean),
    }
}

/// Parses `--request-timeout` as kubectl does: whole seconds, or the units of Go's durations with
/// fractions. A duration that is not positive disables the timeout.
fn parse_timeout(text: &str) -> Result<Timeout, FlagError> {
    let seconds = if let Ok(seconds) = text.parse::<u32>() {
        f64::from(seconds)
    } else {
        go_duration(text).ok_or(FlagError::Timeout)?
    };
    let timeout = Duration::try_from_secs_f64(seconds).ok();
    Ok(Timeout(timeout.filter(|timeout| !timeout.is_zero())))
}

/// Parses a duration of Go in seconds, such as `1h30m` or `-1.5s`.
pub fn go_duration(text: &str) -> Option<f64> {
    let (sign, mut rest) = match text.strip_prefix('-') {
        Some(rest) => (-1.0, rest),
        None => (1.0, text.strip_prefix('+').unwrap_or(text)),
    };
    if rest == "0" {
        return Some(0.0);
    }
    let mut seconds = 0.0;
    loop {
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let number: f64 = rest[..end].parse().ok()?;
        rest = &rest[end..];
        let (length, unit) = match rest {
            _ if rest.starts_with("ns") => (2, 1e-9),
            _ if rest.starts_with("us") => (2, 1e-6),
            _ if rest.starts_with("µs") || rest.starts_with("μs") => (3, 1e-6),
            _ if rest.starts_with("ms") => (2, 1e-3),
            _ if rest.starts_with('s') => (1, 1.0),
            _ if rest.starts_with('m') => (1, 60.0),
            _ if rest.starts_with('h') => (1, 3600.0),
            _ => return None,
        };
        seconds += number * unit;
        rest = &rest[length..];
        if rest.is_empty() {
            return Some(sign * seconds);
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Command {
        #[command(flatten)]
        flags: ConnectionFlags,
    }

    fn parse(arguments: &[&str]) -> Result<ConnectionFlags, String> {
        let parsed = Command::try_parse_from([&["command"], arguments].concat());
        parsed
            .map(|command| command.flags)
            .map_err(|error| error.to_string())
    }

    #[test]
    fn reads_timeouts_as_kubectl_does() {
        for (text, expected) in [
            ("0", Some(0)),
            ("0s", Some(0)),
            ("5", Some(5_000)),
            ("1s", Some(1_000)),
            ("2m", Some(120_000)),
            ("3h", Some(10_800_000)),
            ("1h30m", Some(5_400_000)),
            ("1.5s", Some(1_500)),
            (".5s", Some(500)),
            ("250ms", Some(250)),
            ("-1s", Some(0)),
            ("1d", None),
            ("s", None),
            ("1 s", None),
            ("1h30", None),
            ("1..2s", None),
            ("", None),
            ("NaNs", None),
        ] {
            let expected = expected.map(|millis| {
                Timeout(Some(Duration::from_millis(millis)).filter(|timeout| !timeout.is_zero()))
            });
            assert_eq!(parse_timeout(text).ok(), expected, "{text:?}");
        }
    }

    #[test]
    fn takes_the_forms_of_kubectls_command_line() {
        let flags = parse(&[]).unwrap();
        assert!(!flags.insecure_skip_tls_verify && flags.request_timeout == Timeout(None));
        let flags = parse(&[
            "-s",
            "https://a:6443",
            "--server=https://b:6443",
            "-n=web",
            "--insecure-skip-tls-verify",
            "--as=jane",
            "--as-group",
            "a,b",
            "--as-group=c",
            "--as-user-extra=k=v=w",
            "--context=x",
            "--context=y",
            "--token=t0k3n",
            "--disable-compression=false",
            "--request-timeout=5s",
        ])
        .unwrap();
        assert_eq!(flags.servers, ["https://a:6443", "https://b:6443"]);
        assert_eq!(flags.namespace.as_deref(), Some("web"));
        assert!(flags.insecure_skip_tls_verify && !flags.disable_compression);
        assert_eq!(flags.impersonate_groups, ["a,b", "c"]);
        assert_eq!(flags.impersonate_extra, [("k".into(), "v=w".into())]);
        assert_eq!(flags.context.as_deref(), Some("y"));
        assert_eq!(flags.request_timeout, Timeout(Some(Duration::from_secs(5))));
        assert!(!format!("{flags:?}").contains("t0k3n"));
        for (arguments, part) in [
            (&["--insecure-skip-tls-verify=yes"][..], "use true or false"),
            (&["--request-timeout=1d"], "use a number of seconds"),
            (&["--as-user-extra=k"], "not KEY=VALUE"),
        ] {
            let error = parse(arguments).unwrap_err();
            assert!(error.contains(part), "{error}");
        }
    }
}
