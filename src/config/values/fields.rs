//! Adapters between serde and the parsers: `deserialize_with` and `with` of the sections.
//!
//! Scalars are parsed while the file is read, so that an error carries its line and field.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use serde::de::{Deserializer, Error};
use serde::{Deserialize, Serializer};

use super::load_balancer::{
    parse_class, parse_ip, parse_object_name, parse_port_range, parse_published_address,
};
use super::{
    Duration, Expected, ValueError, format_bytes, format_duration, parse_address, parse_bool,
    parse_bytes, parse_count, parse_dns_domain, parse_duration, parse_host_port, parse_log_level,
    parse_network, parse_path,
};
use crate::config::{API_VERSION, KIND, PortRange, PublishedAddress};
use crate::model::Networks;

pub(in crate::config) mod bytes {
    use super::{Deserializer, Expected, Serializer, format_bytes, parse_bytes, scalar};

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<usize, D::Error> {
        scalar(deserializer, Expected::Bytes, parse_bytes)
    }

    #[expect(
        clippy::trivially_copy_pass_by_ref,
        reason = "serde passes fields by reference"
    )]
    pub fn serialize<S: Serializer>(bytes: &usize, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&format_bytes(*bytes))
    }
}

pub(in crate::config) mod duration {
    use super::{
        Deserializer, Duration, Expected, Serializer, format_duration, parse_duration, scalar,
    };

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
        scalar(deserializer, Expected::Duration, parse_duration)
    }

    pub fn serialize<S: Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&format_duration(*duration))
    }
}

/// As [`duration`], and `0s` turns the setting off.
pub(in crate::config) mod duration_or_zero {
    use super::{Deserializer, Duration, Expected, parse_duration, scalar};

    pub use super::duration::serialize;

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
        let expected = Expected::DurationOrZero;
        scalar(deserializer, expected, |text| match text {
            "0" | "0s" => Ok(Duration::ZERO),
            text => parse_duration(text).map_err(|_| expected.error(text)),
        })
    }
}

/// As [`duration`], and null leaves the setting unset.
pub(in crate::config) mod optional_duration {
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

/// List of networks; null is the empty list.
pub(in crate::config) mod networks {
    use super::{Deserialize, Deserializer, Error, Networks, Serializer, parse_network};

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Networks, D::Error> {
        let texts = Option::<Vec<String>>::deserialize(deserializer)?.unwrap_or_default();
        let networks = texts.iter().map(|text| parse_network(text));
        networks.collect::<Result<_, _>>().map_err(D::Error::custom)
    }

    pub fn serialize<S: Serializer>(networks: &Networks, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(networks.iter().map(|network| network.to_string()))
    }
}

pub(in crate::config) fn dns_domain<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<String, D::Error> {
    scalar(deserializer, Expected::DnsDomain, parse_dns_domain)
}

pub(in crate::config) fn address<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<SocketAddr, D::Error> {
    scalar(deserializer, Expected::Address, parse_address)
}

pub(in crate::config) fn optional_address<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<SocketAddr>, D::Error> {
    let text = Option::<String>::deserialize(deserializer)?;
    text.map(|text| parse_address(&text).map_err(D::Error::custom))
        .transpose()
}

pub(in crate::config) fn optional_path<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<PathBuf>, D::Error> {
    let text = Option::<String>::deserialize(deserializer)?;
    text.map(|text| parse_path(&text).map_err(D::Error::custom))
        .transpose()
}

pub(in crate::config) fn count<'de, D: Deserializer<'de>, const MIN: usize, const MAX: usize>(
    deserializer: D,
) -> Result<usize, D::Error> {
    let expected = Expected::Count { min: MIN, max: MAX };
    scalar(deserializer, expected, parse_count::<MIN, MAX>)
}

pub(in crate::config) fn flag<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<bool, D::Error> {
    // Through a string, because serde's errors for booleans have neither value nor accepted form.
    scalar(deserializer, Expected::Bool, parse_bool)
}

pub(in crate::config) fn host_port<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<String, D::Error> {
    scalar(deserializer, Expected::HostPort, parse_host_port)
}

pub(in crate::config) fn class<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<String, D::Error> {
    let text = Option::<String>::deserialize(deserializer)?.unwrap_or_default();
    parse_class(&text).map_err(D::Error::custom)
}

pub(in crate::config) fn ips<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Vec<IpAddr>, D::Error> {
    list(deserializer, parse_ip)
}

pub(in crate::config) fn published_addresses<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Vec<PublishedAddress>, D::Error> {
    list(deserializer, parse_published_address)
}

pub(in crate::config) fn port_ranges<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Vec<PortRange>, D::Error> {
    list(deserializer, parse_port_range)
}

pub(in crate::config) fn optional_object_name<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<String>, D::Error> {
    let text = Option::<String>::deserialize(deserializer)?;
    text.map(|text| parse_object_name(&text).map_err(D::Error::custom))
        .transpose()
}

pub(in crate::config) fn log_level<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<String, D::Error> {
    scalar(deserializer, Expected::LogLevel, parse_log_level)
}

pub(in crate::config) fn api_version<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<String, D::Error> {
    constant(deserializer, "apiVersion", API_VERSION)
}

pub(in crate::config) fn kind<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<String, D::Error> {
    constant(deserializer, "kind", KIND)
}

/// Takes the default of a section that is null, such as `serving:` with all its fields commented
/// out.
pub(in crate::config) fn or_default<'de, D: Deserializer<'de>, T: Deserialize<'de> + Default>(
    deserializer: D,
) -> Result<T, D::Error> {
    Ok(Option::<T>::deserialize(deserializer)?.unwrap_or_default())
}

/// Parses a list of scalars; null is the empty list.
fn list<'de, D: Deserializer<'de>, T>(
    deserializer: D,
    parse: impl Fn(&str) -> Result<T, ValueError>,
) -> Result<Vec<T>, D::Error> {
    let texts = Option::<Vec<String>>::deserialize(deserializer)?.unwrap_or_default();
    let values = texts.iter().map(|text| parse(text));
    values.collect::<Result<_, _>>().map_err(D::Error::custom)
}

fn constant<'de, D: Deserializer<'de>>(
    deserializer: D,
    field: &'static str,
    expected: &'static str,
) -> Result<String, D::Error> {
    let value = Option::<String>::deserialize(deserializer)?.unwrap_or_default();
    if value == expected {
        return Ok(value);
    }
    Err(D::Error::custom(ValueError::Unsupported {
        field,
        value,
        expected,
    }))
}

/// Parses a scalar. Null is an error: the default belongs to the section and is not known here.
fn scalar<'de, D: Deserializer<'de>, T>(
    deserializer: D,
    expected: Expected,
    parse: impl FnOnce(&str) -> Result<T, ValueError>,
) -> Result<T, D::Error> {
    match Option::<String>::deserialize(deserializer)? {
        Some(text) => parse(&text).map_err(D::Error::custom),
        None => Err(D::Error::custom(ValueError::Null(expected))),
    }
}
