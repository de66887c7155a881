//! Section `log`.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::values::fields;

/// Events on standard error, and the access log on standard output.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct Log {
    /// Level of events: `off`, `error`, `warn`, `info`, `debug`, `trace`, or directives such as
    /// `info,kube_bastion::watch=debug`. Only libraries have `trace` events, and only in debug
    /// builds.
    #[serde(deserialize_with = "fields::log_level")]
    pub level: String,
    /// Format of events and of the access log: `text` for people, `json` for machines.
    pub format: LogFormat,
    /// Writes an access log with one line per request.
    #[serde(deserialize_with = "fields::flag")]
    pub access: bool,
}

impl Default for Log {
    fn default() -> Self {
        Self {
            level: "info".into(),
            format: LogFormat::Text,
            access: true,
        }
    }
}

/// Format of log lines.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema, clap::ValueEnum,
)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    #[default]
    Text,
    Json,
}
