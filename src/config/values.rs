//! Scalars of the configuration: parsed where they stand, so that an error carries their line, and said in the words
//! of the field.

use std::net::SocketAddr;
use std::time::Duration;

use serde::de::{Deserializer, Error};
use serde::{Deserialize, Serializer};
use tracing_subscriber::EnvFilter;

/// Reads `IP:port` or `[IPv6]:port`.
///
/// # Errors
/// Says what would be right.
pub fn parse_address(text: &str) -> Result<SocketAddr, String> {
    text.parse().map_err(|_| format!("{text:?} is not an address: give IP:port, as 0.0.0.0:8443 or [::]:8443"))
}

/// Reads a duration as Go writes it: whole numbers with the units `h`, `m`, `s`, `ms`, as `1m30s`. Zero is refused.
///
/// # Errors
/// Says what would be right.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let fault = || format!("{text:?} is not a duration: give a number with a unit (h, m, s, ms), as 30s or 1m30s");
    let units = [("ms", 1), ("h", 3_600_000), ("m", 60_000), ("s", 1000)];
    let mut rest = text;
    let mut total = Duration::ZERO;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit()).ok_or_else(fault)?;
        let number: u64 = rest[..digits].parse().map_err(|_| fault())?;
        rest = &rest[digits..];
        let (unit, millis) = units.into_iter().find(|(unit, _)| rest.starts_with(unit)).ok_or_else(fault)?;
        rest = &rest[unit.len()..];
        let part = number.checked_mul(millis).map(Duration::from_millis).ok_or_else(fault)?;
        total = total.checked_add(part).ok_or_else(fault)?;
    }
    if total.is_zero() { Err(fault()) } else { Ok(total) }
}

/// Writes a duration so that [`parse_duration`] reads it back.
fn format_duration(duration: Duration) -> String {
    let millis = duration.as_millis();
    if millis.is_multiple_of(1000) { format!("{}s", millis / 1000) } else { format!("{millis}ms") }
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

/// Labels of letters, digits and dashes (RFC 1123), joined by dots.
pub(super) fn dns_domain<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    scalar(deserializer, |text| {
        let label = |label: &str| {
            let inner = label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
            inner && !label.is_empty() && !label.starts_with('-') && !label.ends_with('-')
        };
        let good = text.split('.').all(label);
        let fault = || format!("{text:?} is not a DNS domain: give it without a dot at its ends, as cluster.local");
        good.then(|| text.to_ascii_lowercase()).ok_or_else(fault)
    })
}

pub(super) fn address<'de, D: Deserializer<'de>>(deserializer: D) -> Result<SocketAddr, D::Error> {
    scalar(deserializer, parse_address)
}

pub(super) fn optional_address<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<SocketAddr>, D::Error> {
    let text = Option::<String>::deserialize(deserializer)?;
    text.map(|text| parse_address(&text).map_err(D::Error::custom)).transpose()
}

pub(super) fn count<'de, D: Deserializer<'de>>(deserializer: D) -> Result<usize, D::Error> {
    scalar(deserializer, |text| {
        text.parse().map_err(|_| format!("{text:?} is not a count: give a whole number, 0 or more"))
    })
}

pub(super) fn positive<'de, D: Deserializer<'de>>(deserializer: D) -> Result<usize, D::Error> {
    scalar(deserializer, |text| {
        let number = text.parse().ok().filter(|number| *number > 0);
        number.ok_or_else(|| format!("{text:?} is not a size: give a whole number, 1 or more"))
    })
}

pub(super) fn log_level<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    scalar(deserializer, |text| match EnvFilter::builder().parse(text) {
        Ok(_) => Ok(text.to_owned()),
        Err(error) => Err(format!("{text:?} is not a log level ({error}): give error, warn, info, debug or trace")),
    })
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
    scalar(deserializer, |text| {
        if text == expected {
            Ok(text.to_owned())
        } else {
            Err(format!("{text:?} is not a {field} that this bastion reads: give {expected}"))
        }
    })
}

fn scalar<'de, D: Deserializer<'de>, T>(
    deserializer: D,
    parse: impl FnOnce(&str) -> Result<T, String>,
) -> Result<T, D::Error> {
    let text = String::deserialize(deserializer)?;
    parse(&text).map_err(D::Error::custom)
}

#[cfg(test)]
mod tests {
    use super::*;

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
            assert_eq!(parse_duration(text).ok(), millis.map(Duration::from_millis), "{text}");
        }
    }
}
