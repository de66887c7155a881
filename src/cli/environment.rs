//! Warnings about environment variables that look like settings and are not.

use clap::{Command, CommandFactory};

use super::Cli;

/// Prefix of the variables of all settings.
pub(super) const PREFIX: &str = "KUBE_BASTION_";

/// Logs a warning for each variable with the prefix that no flag reads, such as a misspelled one.
pub(super) fn warn_of_unknown_variables() {
    let root = Cli::command();
    let variables = std::env::vars_os().filter_map(|(name, _)| name.into_string().ok());
    for variable in variables.filter(|name| is_unknown(&root, name)) {
        tracing::warn!(
            variable,
            "unknown environment variable has no effect; see kube-bastion serve --help"
        );
    }
}

fn is_unknown(root: &Command, variable: &str) -> bool {
    let Some(name) = variable.strip_prefix(PREFIX) else {
        return false;
    };
    let mut arguments = root.get_subcommands().flat_map(Command::get_arguments);
    let is_setting = arguments.any(|argument| argument.get_env().is_some_and(|of| of == variable));
    !is_setting && !is_service_link(name)
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
    }
}
