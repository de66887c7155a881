//! Scalars of the configuration: parsed where they stand, so that an error carries their line, and
//! said in the words of the field.

use std::net::SocketAddr;
use std::time::Duration;

use serde::de::{Deserializer, Error};
use serde::{Deserialize, Serializer};
use tracing_subscriber::EnvFilter;

/// More threads than any machine has cores.
pub(super) const MAX_WORKERS: usize = 1024;
/// More sockets than a process can have open.
pub(super) const MAX_CONNECTIONS: usize = 10_000_000;
/// Far more than an API server answers in time.
pub(super) const MAX_REVIEWS: usize = 10_000;
/// Some hundred bytes each: a larger memory is a mistake of the pen.
pub(super) const MAX_CACHE: usize = 1_000_000;
/// More memory than any machine has (1 TiB).
pub(super) const MAX_BYTES: usize = 1 << 40;
/// An address has no more ports to connect from.
pub(super) const MAX_IDLE: usize = 65_535;
/// More attempts than this turn one request into a load test of its service.
pub(super) const MAX_ATTEMPTS: usize = 10;
pub(super) const MAX_PERCENT: usize = 100;
/// More retries per second and worker than this are not a minimum any more.
pub(super) const MAX_BUDGET_PER_SECOND: usize = 10_000;

const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];

/// Reads `IP:port` or `[IPv6]:port`.
///
/// # Errors
/// Says what would be right.
pub fn parse_address(text: &str) -> Result<SocketAddr, String> {
    text.parse().map_err(|_| {
        format!("{text:?} is not an address: give IP:port, as 0.0.0.0:8443 or [::]:8443")
    })
}

/// Reads a duration as Go writes it: whole numbers with the units `h`, `m`, `s`, `ms`, as `1m30s`.
/// Zero is refused.
///
/// # Errors
/// Says what would be right.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let fault = || {
        format!(
            "{text:?} is not a duration: give a number with a unit (h, m, s, ms), as 30s or 1m30s"
        )
    };
    let units = [("ms", 1), ("h", 3_600_000), ("m", 60_000), ("s", 1000)];
    let mut rest = text;
    let mut total = Duration::ZERO;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit()).ok_or_else(fault)?;
        let number: u64 = rest[..digits].parse().map_err(|_| fault())?;
        rest = &rest[digits..];
        let (unit, millis) = units
            .into_iter()
            .find(|(unit, _)| rest.starts_with(unit))
            .ok_or_else(fault)?;
        rest = &rest[unit.len()..];
        let part = number
            .checked_mul(millis)
            .map(Duration::from_millis)
            .ok_or_else(fault)?;
        total = total.checked_add(part).ok_or_else(fault)?;
    }
    if total.is_zero() {
        Err(fault())
    } else {
        Ok(total)
    }
}

/// Reads a number of bytes as Kubernetes writes quantities: a whole number, alone or with a suffix
/// (`k`, `M`, `G`, `Ki`, `Mi`, `Gi`), as `32Mi`.
///
/// # Errors
/// Says what would be right.
pub fn parse_bytes(text: &str) -> Result<usize, String> {
    let fault = || {
        format!(
            "{text:?} is not a number of bytes: give a whole number with k, M, G, Ki, Mi, Gi or nothing, as 32Mi, 1024Gi at most"
        )
    };
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
        _ => return Err(fault()),
    };
    let bytes = number
        .parse::<usize>()
        .ok()
        .and_then(|number| number.checked_mul(unit));
    bytes.filter(|bytes| *bytes <= MAX_BYTES).ok_or_else(fault)
}

/// Reads a number of threads; 0 leaves it to the bastion.
///
/// # Errors
/// Says what would be right.
pub fn parse_workers(text: &str) -> Result<usize, String> {
    between::<0, MAX_WORKERS>(text)
}

fn between<const MIN: usize, const MAX: usize>(text: &str) -> Result<usize, String> {
    let number = text
        .parse()
        .ok()
        .filter(|number| (MIN..=MAX).contains(number));
    number
        .ok_or_else(|| format!("{text:?} is not a count: give a whole number from {MIN} to {MAX}"))
}

/// Reads a level, or directives that each give one for a module. Stricter than the filter, which
/// takes any bare word for a module: `inf` would log nothing at all.
///
/// # Errors
/// Says what would be right.
pub fn parse_log_level(text: &str) -> Result<String, String> {
    let right = "give off, error, warn, info, debug or trace, or directives as info,kube_bastion::watch=debug";
    let fault = |part: &str| {
        let part = if part == text {
            String::new()
        } else {
            format!(" ({part:?})")
        };
        format!("{text:?} is not a log level{part}: {right}")
    };
    let parts: Vec<&str> = text.split(',').map(str::trim).collect();
    for part in &parts {
        let (module, level) = part
            .split_once('=')
            .map_or((None, *part), |(module, level)| (Some(module), level));
        let known = LEVELS.iter().any(|known| known.eq_ignore_ascii_case(level));
        if !known || module.is_some_and(str::is_empty) || EnvFilter::builder().parse(part).is_err()
        {
            return Err(fault(part));
        }
    }
    Ok(parts.join(","))
}

/// Writes a duration so that [`parse_duration`] reads it back.
fn format_duration(duration: Duration) -> String {
    let millis = duration.as_millis();
    if millis.is_multiple_of(1000) {
        format!("{}s", millis / 1000)
    } else {
        format!("{millis}ms")
    }
}

/// Writes a number of bytes so that [`parse_bytes`] reads it back.
fn format_bytes(bytes: usize) -> String {
    let unit = [("Gi", 1 << 30), ("Mi", 1 << 20), ("Ki", 1 << 10)].into_iter();
    match unit
        .into_iter()
        .find(|(_, unit)| bytes > 0 && bytes.is_multiple_of(*unit))
    {
        Some((suffix, unit)) => format!("{}{suffix}", bytes / unit),
        None => bytes.to_string(),
    }
}

pub(super) mod bytes {
    use super::{Deserializer, Serializer, format_bytes, parse_bytes, scalar};

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<usize, D::Error> {
        scalar(deserializer, parse_bytes)
    }

    #[expect(clippy::trivially_copy_pass_by_ref, reason = "serde calls it so")]
    pub fn serialize<S: Serializer>(bytes: &usize, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&format_bytes(*bytes))
    }
}

pub(super) mod duration {
    use super::{Deserializer, Duration, Serializer, format_duration, parse_duration, scalar};

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
        scalar(deserializer, parse_duration)
    }

    pub fn serialize<S: Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&format_duration(*duration))
    }
}

/// As [`duration`], with `0s` for none at all.
pub(super) mod duration_or_zero {
    use super::{Deserializer, Duration, parse_duration, scalar};

    pub use super::duration::serialize;

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
        scalar(deserializer, |text| match text {
            "0" | "0s" => Ok(Duration::ZERO),
            text => parse_duration(text).map_err(|fault| format!("{fault}; 0s turns it off")),
        })
    }
}

/// As [`duration`], where null is none.
pub(super) mod optional_duration {
    use super::{
        Deserialize, Deserializer, Duration, Error, Serializer, format_duration, parse_duration,
    };

    pub fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Option<Duration>, D::Error> {
        let text = Option::<String>::deserialize(deserializer)?;
        text.map(|text| parse_duration(&text).map_err(D::Error::custom))
            .transpose()
    }

    #[expect(clippy::ref_option, reason = "serde passes fields by reference")]
    pub fn serialize<S: Serializer>(
        duration: &Option<Duration>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        match duration {
            Some(duration) => serializer.serialize_str(&format_duration(*duration)),
            None => serializer.serialize_none(),
        }
    }
}

/// Labels of letters, digits and dashes (RFC 1123), joined by dots.
pub(super) fn dns_domain<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    scalar(deserializer, |text| {
        let label = |label: &str| {
            let inner = label
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
            inner && !label.is_empty() && !label.starts_with('-') && !label.ends_with('-')
        };
        let good = text.split('.').all(label);
        let fault = || {
            format!(
                "{text:?} is not a DNS domain: give it without a dot at its ends, as cluster.local"
            )
        };
        good.then(|| text.to_ascii_lowercase()).ok_or_else(fault)
    })
}

pub(super) fn address<'de, D: Deserializer<'de>>(deserializer: D) -> Result<SocketAddr, D::Error> {
    scalar(deserializer, parse_address)
}

pub(super) fn optional_address<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<SocketAddr>, D::Error> {
    let text = Option::<String>::deserialize(deserializer)?;
    text.map(|text| parse_address(&text).map_err(D::Error::custom))
        .transpose()
}

pub(super) fn count<'de, D: Deserializer<'de>, const MIN: usize, const MAX: usize>(
    deserializer: D,
) -> Result<usize, D::Error> {
    scalar(deserializer, between::<MIN, MAX>)
}

pub(super) fn flag<'de, D: Deserializer<'de>>(deserializer: D) -> Result<bool, D::Error> {
    let given = Option::<bool>::deserialize(deserializer)?;
    given.ok_or_else(|| {
        D::Error::custom("null is not a choice: give true or false, or leave the field out")
    })
}

/// A section of which nothing is said, as `serving:` with all its fields commented out, is left
/// out.
pub(super) fn or_default<'de, D: Deserializer<'de>, T: Deserialize<'de> + Default>(
    deserializer: D,
) -> Result<T, D::Error> {
    Ok(Option::<T>::deserialize(deserializer)?.unwrap_or_default())
}

pub(super) fn log_level<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    scalar(deserializer, parse_log_level)
}

pub(super) fn api_version<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    constant(deserializer, "apiVersion", super::API_VERSION)
}

pub(super) fn kind<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    constant(deserializer, "kind", super::KIND)
}

fn constant<'de, D: Deserializer<'de>>(
    deserializer: D,
    field: &str,
    expected: &'static str,
) -> Result<String, D::Error> {
    let text = Option::<String>::deserialize(deserializer)?.unwrap_or_default();
    if text == expected {
        Ok(text)
    } else {
        Err(D::Error::custom(format!(
            "{text:?} is not a {field} that this bastion reads: give {expected}"
        )))
    }
}

fn scalar<'de, D: Deserializer<'de>, T>(
    deserializer: D,
    parse: impl FnOnce(&str) -> Result<T, String>,
) -> Result<T, D::Error> {
    let Some(text) = Option::<String>::deserialize(deserializer)? else {
        // The defaults are those of whole sections and not known here, so null cannot stand for
        // one.
        let fault = parse("").err().unwrap_or_default();
        return Err(D::Error::custom(format!(
            "null: {fault}, or leave the field out"
        )));
    };
    parse(&text).map_err(D::Error::custom)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_level_is_a_level_or_gives_one_to_modules() {
        for good in [
            "off",
            "info",
            "DEBUG",
            "warn,kube_bastion::watch=debug",
            "info, h2=off",
        ] {
            assert!(parse_log_level(good).is_ok(), "{good}");
        }
        for bad in [
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
            let fault = parse_log_level(bad).unwrap_err();
            assert!(
                fault.starts_with(&format!("{bad:?} is not a log level"))
                    && fault.contains("trace"),
                "{fault}"
            );
        }
    }

    #[test]
    fn bytes_read_as_kubernetes_writes_quantities() {
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
            let read = parse_bytes(text);
            assert_eq!(read.clone().ok(), bytes, "{text}");
            if let Ok(read) = read {
                assert_eq!(parse_bytes(&format_bytes(read)), Ok(read), "{text}");
            }
        }
    }

    #[test]
    fn durations_read_as_go_writes_them() {
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
            ("1d", None),
            ("99999999999999999999s", None),
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
