//! Configuration: `kind: BastionConfiguration` of `kube-bastion.dev/v1alpha1`, plain data with one
//! section per component.
//!
//! Scalars are parsed into their types while the file is read. Doc comments of fields are the
//! descriptions in `config/bastionconfiguration.schema.json` and in `docs/reference.md`.

mod api_servers;
mod auth;
mod load_balancer;
mod log;
mod parse_error;
mod serving;
mod source;
mod suggest;
mod targets;
mod tunnels;
mod upstream;
mod validate;
mod values;

use std::path::{Path, PathBuf};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use api_servers::{ApiServers, CertificateCallers, ListedServer};
pub use auth::{Authentication, Authorization, Reviews, TokenReview};
pub use load_balancer::{
    LabelOperator, LabelRequirement, LabelSelector, Lease, LoadBalancer, PortRange,
    PublishedAddress,
};
pub use log::{Log, LogFormat};
pub use parse_error::ParseError;
pub use serving::{Admin, Drain, ProxyProtocol, Serving, TlsVersion};
pub use source::{KubernetesSource, ManifestsSource, Source, SourceKind};
pub use targets::Targets;
pub use tunnels::Tunnels;
pub use upstream::{Retry, Rewriting, Upstream};
pub use validate::Conflict;
pub use values::{
    Expected, ValueError, parse_address, parse_bool, parse_bytes, parse_class, parse_duration,
    parse_ip, parse_log_level, parse_path, parse_published_address, parse_workers,
};

use values::fields;

/// The only `apiVersion` so far.
pub const API_VERSION: &str = "kube-bastion.dev/v1alpha1";
/// The only `kind`.
pub const KIND: &str = "BastionConfiguration";

/// Configuration of kube-bastion. Only `apiVersion` and `kind` are required.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Config {
    /// Version of the format: `kube-bastion.dev/v1alpha1`.
    #[serde(deserialize_with = "fields::api_version")]
    #[schemars(extend("const" = API_VERSION))]
    pub api_version: String,
    /// Kind of the file: `BastionConfiguration`.
    #[serde(deserialize_with = "fields::kind")]
    #[schemars(extend("const" = KIND))]
    pub kind: String,
    #[serde(default, deserialize_with = "fields::or_default")]
    pub serving: Serving,
    #[serde(default, deserialize_with = "fields::or_default")]
    pub admin: Admin,
    #[serde(default, deserialize_with = "fields::or_default")]
    pub source: Source,
    #[serde(default, deserialize_with = "fields::or_default")]
    pub authentication: Authentication,
    #[serde(default, deserialize_with = "fields::or_default")]
    pub authorization: Authorization,
    #[serde(default, deserialize_with = "fields::or_default")]
    pub reviews: Reviews,
    #[serde(default, deserialize_with = "fields::or_default")]
    pub targets: Targets,
    #[serde(default, deserialize_with = "fields::or_default")]
    pub upstream: Upstream,
    #[serde(default, deserialize_with = "fields::or_default")]
    pub api_servers: ApiServers,
    #[serde(default, deserialize_with = "fields::or_default")]
    pub tunnels: Tunnels,
    #[serde(default, deserialize_with = "fields::or_default")]
    pub load_balancer: LoadBalancer,
    #[serde(default, deserialize_with = "fields::or_default")]
    pub rewriting: Rewriting,
    #[serde(default, deserialize_with = "fields::or_default")]
    pub log: Log,
    #[serde(default, deserialize_with = "fields::or_default")]
    pub drain: Drain,
}

/// Error of loading or validating a configuration. Only the operator can correct it.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read the configuration file {path:?} (--config)")]
    Read {
        path: PathBuf,
        source: std::io::Error,
    },
    /// The file is not a text.
    #[error(
        "invalid configuration file {}: byte {offset} is not UTF-8; save the file as UTF-8 text",
        path.display()
    )]
    NotUtf8 { path: PathBuf, offset: usize },
    /// The file is not a valid configuration: `FILE:LINE:COLUMN: FIELD: REASON`.
    #[error("invalid configuration file {}:{source}", path.display())]
    Invalid { path: PathBuf, source: ParseError },
    /// The configuration has no form as a file.
    #[error("the configuration cannot be printed: {0}")]
    NotText(String),
    #[error(transparent)]
    Conflict(#[from] Conflict),
}

impl Config {
    /// Returns the defaults, as a file with only `apiVersion` and `kind` has them.
    pub fn new() -> Self {
        Self {
            api_version: API_VERSION.into(),
            kind: KIND.into(),
            ..Self::default()
        }
    }

    /// Reads and parses a file.
    ///
    /// # Errors
    /// [`ConfigError::Read`], [`ConfigError::NotUtf8`] or [`ConfigError::Invalid`].
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let bytes = std::fs::read(path).map_err(|source| ConfigError::Read {
            path: path.into(),
            source,
        })?;
        let text = String::from_utf8(bytes).map_err(|error| ConfigError::NotUtf8 {
            path: path.into(),
            offset: error.utf8_error().valid_up_to(),
        })?;
        Self::parse(&text).map_err(|source| ConfigError::Invalid {
            path: path.into(),
            source,
        })
    }

    /// Parses a YAML document.
    ///
    /// # Errors
    /// [`ParseError`] for an unknown field, an invalid value or malformed YAML.
    pub fn parse(text: &str) -> Result<Self, ParseError> {
        // As in manifests, `yes` and `on` are strings (YAML 1.2).
        let options = serde_saphyr::options! { strict_booleans: true, with_snippet: false };
        // The errors of the parser have a position, those of the wrapper the path of the field.
        let mut path = String::new();
        serde_saphyr::with_deserializer_from_str_with_options(text, options, |deserializer| {
            serde_path_to_error::deserialize(deserializer).map_err(|error| {
                path = error.path().to_string();
                error.into_inner()
            })
        })
        .map_err(|error| ParseError::new(&path, &error))
    }

    /// Checks the fields against each other, after flags and environment variables are applied.
    ///
    /// # Errors
    /// [`ConfigError::Conflict`] with the field to change.
    pub fn validate(&self) -> Result<(), ConfigError> {
        Ok(validate::validate(self)?)
    }

    /// Formats the configuration as a file. It has the names of files, never their contents.
    ///
    /// # Errors
    /// [`ConfigError::NotText`] if a path is not UTF-8, which those of flags and files are.
    pub fn to_yaml(&self) -> Result<String, ConfigError> {
        serde_saphyr::to_string(self).map_err(|error| ConfigError::NotText(error.to_string()))
    }
}

/// Generates the JSON schema (draft 2020-12) of the file from the types.
pub fn schema() -> String {
    let schema = schemars::schema_for!(Config);
    serde_json::to_string_pretty(&schema).expect("a schema is plain data") + "\n"
}

#[cfg(test)]
mod tests;
