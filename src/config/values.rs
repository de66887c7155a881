//! Parsers of scalar settings, shared by the command line, the environment and the file.

pub(super) mod fields;
mod load_balancer;
mod path;

use std::ffi::OsString;
use std::fmt;
use std::net::SocketAddr;
use std::time::Duration;

use tracing_subscriber::EnvFilter;

pub use load_balancer::{parse_class, parse_ip, parse_published_address};
pub use path::parse_path;

use crate::model::network::NetworkError;
use crate::model::similar::similar;
use crate::model::{Network, dns};

/// Maximum number of worker threads: more than any machine has cores.
pub(super) const MAX_WORKERS: usize = 1024;
/// Maximum of the connection limits: more sockets than a process can have open.
pub(super) const MAX_CONNECTIONS: usize = 10_000_000;
/// Maximum of the review limits: far more than an API server completes in time.
pub(super) const MAX_REVIEWS: usize = 10_000;
/// Maximum number of cached results. An entry takes some hundred bytes, so this is already more
/// than the memory limit of the deployment allows.
pub(super) const MAX_CACHE_ENTRIES: usize = 1_000_000;
/// Maximum of a memory limit, 1 TiB: more than any machine that this runs on.
pub(super) const MAX_BYTES: usize = 1 << 40;
/// Maximum number of idle connections per endpoint: an address has no more source ports.
pub(super) const MAX_IDLE_CONNECTIONS: usize = 65_535;
/// Maximum number of attempts. More would turn one request into a load test of its service.
pub(super) const MAX_ATTEMPTS: usize = 10;
/// Maximum of a percentage.
pub(super) const MAX_PERCENT: usize = 100;
/// Maximum of the guaranteed retries per second. Beyond it the budget limits nothing.
pub(super) const MAX_BUDGET_PER_SECOND: usize = 10_000;

const LOG_LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];

/// Error of a scalar setting. The caller adds the flag or the field; the message has the value and
/// the accepted form.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ValueError {
    /// The value does not have the expected form.
    #[error("{value:?} is not {expected}; use {}", expected.form())]
    Invalid { value: String, expected: Expected },
    /// A log level that resembles a valid one.
    #[error(
        "{value:?} is not {}; did you mean {suggestion}? Accepted: {}",
        Expected::LogLevel,
        Expected::LogLevel.form()
    )]
    SimilarLogLevel {
        value: String,
        suggestion: &'static str,
    },
    /// A path that is empty.
    #[error("\"\" is not a path; write a path, or leave the setting out")]
    NoPath,
    /// A path that neither the log nor a configuration file can show.
    #[error("the path {path:?} is not UTF-8; rename the file or directory")]
    PathNotUtf8 { path: OsString },
    /// A path below the home directory of the process, which has none.
    #[error("{path:?}: ~ cannot be expanded, because HOME is not set; write the absolute path")]
    NoHome { path: String },
    /// A path below the home directory of another user.
    #[error(
        "{path:?}: ~ is only expanded alone or before a slash; write the absolute path, or \
         \"./{path}\" for a file of that name"
    )]
    OtherHome { path: String },
    /// One directive of a log level is invalid, and others are given beside it.
    #[error(
        "{value:?} is not {}: invalid directive {directive:?}; use {}",
        Expected::LogLevel,
        Expected::LogLevel.form()
    )]
    LogDirective { value: String, directive: String },
    /// A network with bits behind its prefix.
    #[error("{value:?} has bits behind its prefix; use {network} for the network, or {host}")]
    HostBits {
        value: String,
        network: Network,
        host: Network,
    },
    /// A duration of zero where it would have no meaning.
    #[error("{value:?} is not longer than 0s; use {}", Expected::Duration.form())]
    Zero { value: String },
    /// Null, which stands for the default of a section but not for that of a scalar.
    #[error("null is not {0}; use {form}, or leave the field out", form = .0.form())]
    Null(Expected),
    /// Another `apiVersion` or `kind` than the one that this version reads.
    #[error("{value:?} is not the {field} of a configuration file; use {expected}")]
    Unsupported {
        field: &'static str,
        value: String,
        expected: &'static str,
    },
}

/// Kind of value that a setting accepts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expected {
    Address,
    Bool,
    Bytes,
    Count { min: usize, max: usize },
    DnsDomain,
    Duration,
    DurationOrZero,
    HostPort,
    Ip,
    LoadBalancerClass,
    LogLevel,
    Network,
    ObjectName,
    PortRange,
    PublishedAddress,
}

impl Expected {
    /// Returns the accepted form, with an example.
    fn form(self) -> String {
        let form = match self {
            Self::Address => {
                "IP:port with a port up to 65535, for example 0.0.0.0:8443 or [::]:8443"
            }
            Self::Bool => "true or false",
            Self::Bytes => {
                "a whole number, alone or with k, M, G, Ki, Mi or Gi, at most 1024Gi, for example \
                 32Mi"
            }
            Self::Count { min, max } => return format!("a whole number from {min} to {max}"),
            Self::DnsDomain => {
                "labels of letters, digits and dashes joined by dots, for example cluster.local"
            }
            Self::Duration => {
                "whole numbers with the units h, m, s or ms, for example 30s or 1m30s"
            }
            Self::DurationOrZero => {
                "whole numbers with the units h, m, s or ms, for example 5m, or 0s to turn it off"
            }
            Self::HostPort => "HOST:PORT, for example 10.0.0.1:6443",
            Self::Ip => "an address without a port, for example 192.0.2.1 or 2001:db8::1",
            Self::LoadBalancerClass => {
                "a qualified name such as kube-bastion.dev/bastion: letters, digits, dashes, dots and \
                 underscores, behind a DNS domain and a slash"
            }
            Self::LogLevel => {
                "off, error, warn, info, debug or trace, or directives, for example \
                 info,kube_bastion::watch=debug"
            }
            Self::Network => {
                "an IP address, or one with the length of a prefix, for example 10.0.0.0/8 or \
                 fd00::/8"
            }
            Self::ObjectName => "NAMESPACE/NAME, for example ingress/public",
            Self::PortRange => {
                "a port or a range of ports from 1 to 65535, for example 443 or 8000-8999"
            }
            Self::PublishedAddress => {
                "an address without a port or a DNS name, for example 192.0.2.1 or lb.example.com"
            }
        };
        form.to_owned()
    }

    fn error(self, value: &str) -> ValueError {
        ValueError::Invalid {
            value: value.to_owned(),
            expected: self,
        }
    }
}

impl fmt::Display for Expected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Address => "an address",
            Self::Bool => "a boolean",
            Self::Bytes => "a number of bytes",
            Self::Count { .. } => "a valid count",
            Self::DnsDomain => "a DNS domain",
            Self::Duration | Self::DurationOrZero => "a duration",
            Self::HostPort => "a host and a port",
            Self::Ip => "an IP address",
            Self::LoadBalancerClass => "a class of load balancers",
            Self::LogLevel => "a log level",
            Self::Network => "a network",
            Self::ObjectName => "the name of an object",
            Self::PortRange => "a range of ports",
            Self::PublishedAddress => "an IP address or a DNS name",
        })
    }
}

/// Parses `IP:port` or `[IPv6]:port`.
///
/// # Errors
/// [`ValueError::Invalid`] for anything else, host names included.
pub fn parse_address(text: &str) -> Result<SocketAddr, ValueError> {
    text.parse().map_err(|_| Expected::Address.error(text))
}

/// Parses a duration in Go's notation, restricted to whole numbers and the units `h`, `m`, `s` and
/// `ms`: `1m30s`.
///
/// kube's `Duration` is not used: it accepts signs, fractions and the empty string, and panics on
/// overflow and on `1s-2s`.
///
/// # Errors
/// [`ValueError::Zero`] for zero, [`ValueError::Invalid`] for anything else.
pub fn parse_duration(text: &str) -> Result<Duration, ValueError> {
    match sum_of_units(text) {
        // The empty string is a sum of no units.
        Some(Duration::ZERO) if !text.is_empty() => Err(ValueError::Zero {
            value: text.to_owned(),
        }),
        Some(duration) if !duration.is_zero() => Ok(duration),
        _ => Err(Expected::Duration.error(text)),
    }
}

fn sum_of_units(text: &str) -> Option<Duration> {
    // `ms` precedes `m`, which is its prefix.
    let units = [("ms", 1), ("h", 3_600_000), ("m", 60_000), ("s", 1000)];
    let mut rest = text;
    let mut total = Duration::ZERO;
    while !rest.is_empty() {
        let (number, suffix) = rest.split_at(rest.find(|c: char| !c.is_ascii_digit())?);
        let number: u64 = number.parse().ok()?;
        let (unit, millis) = units
            .into_iter()
            .find(|(unit, _)| suffix.starts_with(unit))?;
        rest = &suffix[unit.len()..];
        // Checked: a panic on overflow would end the process with a backtrace instead of a message.
        total = total.checked_add(Duration::from_millis(number.checked_mul(millis)?))?;
    }
    Some(total)
}

/// Parses a number of bytes in the notation of Kubernetes quantities: a whole number, alone or with
/// a suffix (`k`, `M`, `G`, `Ki`, `Mi`, `Gi`), at most 1024Gi.
///
/// # Errors
/// [`ValueError::Invalid`] for anything else.
pub fn parse_bytes(text: &str) -> Result<usize, ValueError> {
    let invalid = || Expected::Bytes.error(text);
    let digits = text
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(text.len());
    let (number, suffix) = text.split_at(digits);
    let unit = match suffix {
        "" => 1,
        "k" => 1000,
        "M" => 1_000_000,
        "G" => 1_000_000_000,
        "Ki" => 1 << 10,
        "Mi" => 1 << 20,
        "Gi" => 1 << 30,
        _ => return Err(invalid()),
    };
    let number: usize = number.parse().map_err(|_| invalid())?;
    let bytes = number.checked_mul(unit);
    bytes
        .filter(|bytes| *bytes <= MAX_BYTES)
        .ok_or_else(invalid)
}

/// Parses a number of worker threads, from 0 to 1024.
///
/// # Errors
/// [`ValueError::Invalid`] for anything else.
pub fn parse_workers(text: &str) -> Result<usize, ValueError> {
    parse_count::<0, MAX_WORKERS>(text)
}

fn parse_count<const MIN: usize, const MAX: usize>(text: &str) -> Result<usize, ValueError> {
    let count = text.parse().ok();
    count
        .filter(|count| (MIN..=MAX).contains(count))
        .ok_or_else(|| Expected::Count { min: MIN, max: MAX }.error(text))
}

/// Parses `true` or `false`.
///
/// # Errors
/// [`ValueError::Invalid`] for anything else.
pub fn parse_bool(text: &str) -> Result<bool, ValueError> {
    text.parse().map_err(|_| Expected::Bool.error(text))
}

/// Parses a log level, or directives that each set the level of a module, and returns them
/// normalized.
///
/// Stricter than `EnvFilter`, which takes any bare word for the name of a module: with `inf` it
/// would log nothing.
///
/// # Errors
/// [`ValueError::Invalid`], [`ValueError::SimilarLogLevel`] or [`ValueError::LogDirective`] for
/// anything else.
pub fn parse_log_level(text: &str) -> Result<String, ValueError> {
    let directives: Vec<&str> = text.split(',').map(str::trim).collect();
    for directive in &directives {
        let (module, level) = directive
            .split_once('=')
            .map_or((None, *directive), |(module, level)| (Some(module), level));
        let is_level = LOG_LEVELS
            .iter()
            .any(|known| known.eq_ignore_ascii_case(level));
        if is_level && module != Some("") && EnvFilter::builder().parse(directive).is_ok() {
            continue;
        }
        return Err(if *directive == text {
            match similar(text, &LOG_LEVELS) {
                Some(suggestion) => ValueError::SimilarLogLevel {
                    value: text.to_owned(),
                    suggestion,
                },
                None => Expected::LogLevel.error(text),
            }
        } else {
            ValueError::LogDirective {
                value: text.to_owned(),
                directive: (*directive).to_owned(),
            }
        });
    }
    Ok(directives.join(","))
}

/// Parses a DNS domain in any case, without a dot at either end, and returns it in lower case.
fn parse_dns_domain(text: &str) -> Result<String, ValueError> {
    let domain = text.to_ascii_lowercase();
    if dns::is_subdomain(&domain) {
        Ok(domain)
    } else {
        Err(Expected::DnsDomain.error(text))
    }
}

/// Parses a host, which may be an address, and a port from 1 to 65535.
fn parse_host_port(text: &str) -> Result<String, ValueError> {
    let authority = text.parse::<http::uri::Authority>().ok();
    let is_valid = authority.is_some_and(|authority| {
        !authority.host().is_empty()
            && !text.contains('@')
            && authority.port_u16().is_some_and(|port| port > 0)
    });
    if is_valid {
        Ok(text.to_owned())
    } else {
        Err(Expected::HostPort.error(text))
    }
}

/// Parses a network in CIDR notation, or an address.
fn parse_network(text: &str) -> Result<Network, ValueError> {
    text.parse().map_err(|error| match error {
        NetworkError::Syntax => Expected::Network.error(text),
        NetworkError::HostBits(network, host) => ValueError::HostBits {
            value: text.to_owned(),
            network,
            host,
        },
    })
}

/// Formats a duration so that [`parse_duration`] reads it back.
fn format_duration(duration: Duration) -> String {
    let millis = duration.as_millis();
    let units = [("h", 3_600_000), ("m", 60_000), ("s", 1000)];
    match units
        .into_iter()
        .find(|(_, unit)| millis > 0 && millis.is_multiple_of(*unit))
    {
        Some((suffix, unit)) => format!("{}{suffix}", millis / unit),
        None if millis == 0 => "0s".to_owned(),
        None => format!("{millis}ms"),
    }
}

/// Formats a number of bytes so that [`parse_bytes`] reads it back.
fn format_bytes(bytes: usize) -> String {
    let units = [("Gi", 1 << 30), ("Mi", 1 << 20), ("Ki", 1 << 10)];
    match units
        .into_iter()
        .find(|(_, unit)| bytes > 0 && bytes.is_multiple_of(*unit))
    {
        Some((suffix, unit)) => format!("{}{suffix}", bytes / unit),
        None => bytes.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accepts_log_levels_and_directives_with_a_level() {
        for valid in [
            "off",
            "info",
            "DEBUG",
            "warn,kube_bastion::watch=debug",
            "info, h2=off",
        ] {
            assert!(parse_log_level(valid).is_ok(), "{valid}");
        }
    }

    #[test]
    fn rejects_log_levels_that_would_log_nothing() {
        for invalid in [
            "inf",
            "loud",
            "",
            "info,",
            "a=b=c",
            "kube_bastion",
            "h2=",
            "h2=loud",
            "=info",
            "3",
            "info,[x=info",
        ] {
            let error = parse_log_level(invalid).unwrap_err().to_string();
            assert!(
                error.starts_with(&format!("{invalid:?} is not a log level"))
                    && error.contains("trace"),
                "{error}"
            );
        }
        let error = parse_log_level("info,h2=loud").unwrap_err().to_string();
        assert!(error.contains("invalid directive \"h2=loud\""), "{error}");
    }

    #[test]
    fn parses_bytes_as_kubernetes_quantities() {
        for (text, bytes) in [
            ("0", Some(0)),
            ("1000", Some(1000)),
            ("32Mi", Some(32 << 20)),
            ("64Ki", Some(64 << 10)),
            ("2Gi", Some(2 << 30)),
            ("5M", Some(5_000_000)),
            ("3k", Some(3000)),
            ("1G", Some(1_000_000_000)),
            ("", None),
            ("Mi", None),
            ("32MB", None),
            ("1.5Gi", None),
            ("-1", None),
            ("1025Gi", None),
            ("99999999999999999999", None),
        ] {
            let parsed = parse_bytes(text);
            assert_eq!(parsed.clone().ok(), bytes, "{text}");
            if let Ok(parsed) = parsed {
                assert_eq!(parse_bytes(&format_bytes(parsed)), Ok(parsed), "{text}");
            }
        }
    }

    #[test]
    fn formats_durations_in_their_largest_whole_unit() {
        for (millis, text) in [
            (0, "0s"),
            (1, "1ms"),
            (1500, "1500ms"),
            (90_000, "90s"),
            (300_000, "5m"),
            (43_200_000, "12h"),
        ] {
            let duration = Duration::from_millis(millis);
            assert_eq!(format_duration(duration), text);
            if millis > 0 {
                assert_eq!(parse_duration(text), Ok(duration));
            }
        }
    }

    #[test]
    fn parses_durations_in_the_notation_of_go() {
        let cases = [
            ("10s", Some(10_000)),
            ("1m30s", Some(90_000)),
            ("500ms", Some(500)),
            ("1h", Some(3_600_000)),
            ("10", None),
            ("", None),
            ("0s", None),
            ("s", None),
            ("-1s", None),
            ("1.5h", None),
            ("1s-2s", None),
            ("1d", None),
            ("99999999999999999999s", None),
            ("9999999999999999h", None),
        ];
        for (text, millis) in cases {
            assert_eq!(
                parse_duration(text).ok(),
                millis.map(Duration::from_millis),
                "{text}"
            );
        }
    }
}
