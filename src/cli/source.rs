//! Flags and environment variables of the cluster source: a Kubernetes API or manifests, never
//! both.

use std::path::PathBuf;

use clap::builder::{OsStringValueParser, TypedValueParser};
use clap::error::ErrorKind;
use clap::parser::ValueSource;
use clap::{ArgMatches, Args, FromArgMatches};

use super::invocation::Invocation;
use crate::config::{KubernetesSource, ManifestsSource, Source, SourceKind, parse_path};

/// Returns the parser of flags that name a file or a directory.
pub(super) fn path_parser() -> impl TypedValueParser<Value = PathBuf> {
    OsStringValueParser::new().try_map(parse_path)
}

/// Source selected by flags, otherwise the one selected by environment variables, otherwise none.
/// Variables of the other source are discarded, so that a flag always has an effect.
#[derive(Clone, Debug, Default)]
pub(super) struct SourceFlags {
    kind: Option<SourceKind>,
    values: Values,
}

/// Flags of both sources.
#[derive(Clone, Debug, Default, Args)]
struct Values {
    /// Kubeconfig of the cluster [default: $KUBECONFIG, the service account of the pod,
    /// ~/.kube/config]
    #[arg(
        long,
        value_name = "FILE",
        env = "KUBE_BASTION_KUBECONFIG",
        help_heading = "Cluster source"
    )]
    #[arg(value_parser = path_parser())]
    kubeconfig: Option<PathBuf>,
    /// Context of the kubeconfig [default: its current context]
    #[arg(
        long,
        value_name = "NAME",
        env = "KUBE_BASTION_CONTEXT",
        help_heading = "Cluster source"
    )]
    context: Option<String>,
    /// Directory of YAML manifests to serve instead of a cluster
    #[arg(
        long,
        value_name = "DIR",
        env = "KUBE_BASTION_MANIFESTS_DIR",
        help_heading = "Cluster source"
    )]
    #[arg(value_parser = path_parser())]
    manifests_dir: Option<PathBuf>,
    /// Tokens for --manifests-dir, one per line: token,user,uid,"group1,group2"
    #[arg(
        long,
        value_name = "FILE",
        env = "KUBE_BASTION_TOKEN_AUTH_FILE",
        help_heading = "Cluster source"
    )]
    #[arg(value_parser = path_parser())]
    token_auth_file: Option<PathBuf>,
}

/// Source, flag and argument id of each flag above.
const FLAGS: [(SourceKind, &str, &str); 4] = [
    (SourceKind::Kubernetes, "--kubeconfig", "kubeconfig"),
    (SourceKind::Kubernetes, "--context", "context"),
    (SourceKind::Manifests, "--manifests-dir", "manifests_dir"),
    (
        SourceKind::Manifests,
        "--token-auth-file",
        "token_auth_file",
    ),
];

impl SourceFlags {
    /// Applies the selected source to that of the file, and resets the section of the other one.
    pub fn apply(self, source: &mut Source) {
        match self.kind {
            Some(SourceKind::Kubernetes) => source.manifests = ManifestsSource::default(),
            Some(SourceKind::Manifests) => source.kubernetes = KubernetesSource::default(),
            None => {}
        }
        set_if_some(&mut source.kind, self.kind);
        let (kubernetes, manifests) = (&mut source.kubernetes, &mut source.manifests);
        set_if_some(&mut kubernetes.kubeconfig, self.values.kubeconfig.map(Some));
        set_if_some(&mut kubernetes.context, self.values.context.map(Some));
        set_if_some(
            &mut manifests.directory,
            self.values.manifests_dir.map(Some),
        );
        set_if_some(
            &mut manifests.token_auth_file,
            self.values.token_auth_file.map(Some),
        );
    }
}

impl Args for SourceFlags {
    fn augment_args(command: clap::Command) -> clap::Command {
        Values::augment_args(command)
    }

    fn augment_args_for_update(command: clap::Command) -> clap::Command {
        Values::augment_args_for_update(command)
    }
}

impl FromArgMatches for SourceFlags {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let mut values = Values::from_arg_matches(matches)?;
        // A flag decides. The environment must be unambiguous only where there is no flag.
        let kind = match selected(matches, ValueSource::CommandLine)? {
            Some(kind) => Some(kind),
            None => selected(matches, ValueSource::EnvVariable)?,
        };
        match kind {
            Some(SourceKind::Kubernetes) => {
                (values.manifests_dir, values.token_auth_file) = (None, None);
            }
            Some(SourceKind::Manifests) => (values.kubeconfig, values.context) = (None, None),
            None => {}
        }
        Ok(Self { kind, values })
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

/// Returns the source that is selected by flags or by environment variables.
fn selected(matches: &ArgMatches, by: ValueSource) -> Result<Option<SourceKind>, clap::Error> {
    let mut present = FLAGS
        .into_iter()
        .filter(|(_, _, id)| matches.value_source(id) == Some(by));
    let Some((kind, flag, _)) = present.next() else {
        return Ok(None);
    };
    let Some((_, other, _)) = present.find(|(other, ..)| *other != kind) else {
        return Ok(Some(kind));
    };
    let environment = if by == ValueSource::EnvVariable {
        " (both set by environment variables)"
    } else {
        ""
    };
    let message = format!(
        "{flag} cannot be used with {other}{environment}; use a Kubernetes API (--kubeconfig, \
         --context) or manifests (--manifests-dir, --token-auth-file)"
    );
    // Only `check` has --load. clap would print the usage of the whole program.
    let name = if matches.try_contains_id("load").is_ok() {
        "check"
    } else {
        "serve"
    };
    let mut program = Invocation::of_process().command();
    program.build();
    let subcommand = program.find_subcommand_mut(name);
    let subcommand = subcommand.expect("serve and check are subcommands");
    Err(subcommand.error(ErrorKind::ArgumentConflict, message))
}

/// Overwrites a setting with the value of its flag or environment variable, if it has one.
pub(super) fn set_if_some<T>(setting: &mut T, value: Option<T>) {
    if let Some(value) = value {
        *setting = value;
    }
}
