//! Warnings about environment variables that look like settings and are not.

use clap::{Command, CommandFactory};

use super::Cli;
use crate::model::similar::similar;

/// Prefix of the variables of all settings.
pub(super) const PREFIX: &str = "KUBE_BASTION_";

/// Logs a warning for each variable with the prefix that no flag reads, such as a misspelled one.
pub(super) fn warn_of_unknown_variables() {
    let root = Cli::command();
    let variables = std::env::vars_os().filter_map(|(name, _)| name.into_string().ok());
    for variable in variables.filter(|name| is_unknown(&root, name)) {
        let hint = suggestion(&root, &variable).map_or_else(
            || "see kube-bastion serve --help".to_owned(),
            |setting| format!("did you mean {setting}?"),
        );
        tracing::warn!(
            variable,
            "unknown environment variable has no effect; {hint}"
        );
    }
}

fn is_unknown(root: &Command, variable: &str) -> bool {
    let Some(name) = variable.strip_prefix(PREFIX) else {
        return false;
    };
    !variables_of(root).contains(&variable) && !is_service_link(name)
}

/// Returns the variable of a flag that `variable` probably stands for.
fn suggestion<'a>(root: &'a Command, variable: &str) -> Option<&'a str> {
    let known = variables_of(root);
    // The prefix, which all have, would make all similar.
    let names: Vec<_> = known
        .iter()
        .filter_map(|name| name.strip_prefix(PREFIX))
        .collect();
    let similar = similar(variable.strip_prefix(PREFIX)?, &names)?;
    let is_similar = |name: &&&str| name.strip_prefix(PREFIX) == Some(similar);
    known.iter().find(is_similar).copied()
}

/// Returns the variables of all flags.
fn variables_of(root: &Command) -> Vec<&str> {
    let arguments = root.get_subcommands().flat_map(Command::get_arguments);
    arguments
        .filter_map(|argument| argument.get_env()?.to_str())
        .collect()
}

/// Returns true for the variables that Kubernetes sets in pods for the Services `kube-bastion` and
/// `kube-bastion-metrics`. `name` has no prefix.
fn is_service_link(name: &str) -> bool {
    let name = name.strip_prefix("METRICS_").unwrap_or(name);
    name == "PORT"
        || name == "SERVICE_HOST"
        || name == "SERVICE_PORT"
        || name.starts_with("SERVICE_PORT_")
        || name
            .strip_prefix("PORT_")
            .is_some_and(|rest| rest.starts_with(|first: char| first.is_ascii_digit()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn recognizes_settings_and_service_links() {
        let root = Cli::command();
        for (variable, unknown) in [
            ("KUBE_BASTION_LOG_LEVEL", false),
            ("KUBE_BASTION_LOGLEVEL", true),
            ("KUBE_BASTION_AUTHORIZED_CACHE_TTL", true),
            ("KUBE_BASTION_PORTS", true),
            ("KUBE_BASTION_SERVICE_HOST", false),
            ("KUBE_BASTION_SERVICE_PORT_HTTPS", false),
            ("KUBE_BASTION_PORT", false),
            ("KUBE_BASTION_PORT_443_TCP_ADDR", false),
            ("KUBE_BASTION_METRICS_SERVICE_HOST", false),
            ("KUBE_BASTION_METRICS_PORT_8080_TCP", false),
            ("HOME", false),
        ] {
            assert_eq!(is_unknown(&root, variable), unknown, "{variable}");
        }
        for (variable, setting) in [
            ("KUBE_BASTION_LOGLEVEL", Some("KUBE_BASTION_LOG_LEVEL")),
            ("KUBE_BASTION_WORKER", Some("KUBE_BASTION_WORKERS")),
            ("KUBE_BASTION_TLS_CERT", Some("KUBE_BASTION_TLS_CERT_FILE")),
            ("KUBE_BASTION_IMAGE", None),
        ] {
            assert_eq!(suggestion(&root, variable), setting, "{variable}");
        }
    }
}
