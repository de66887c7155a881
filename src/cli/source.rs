//! Where the facts come from, as the command line and the environment say it: a Kubernetes API or
//! manifests, never both.

use std::path::PathBuf;

use clap::error::ErrorKind;
use clap::parser::ValueSource;
use clap::{ArgMatches, Args, FromArgMatches};

use super::set_if_some;
use crate::config::{self, KubernetesSource, ManifestsSource, SourceKind};

/// The source that the line names, else the one that the environment names: of what names another
/// source in the environment, nothing is left. None where neither names one.
#[derive(Clone, Debug, Default)]
pub(super) struct Source {
    kind: Option<SourceKind>,
    given: SourceFlags,
}

/// Where the facts come from.
#[derive(Clone, Debug, Default, Args)]
struct SourceFlags {
    /// Kubeconfig of the cluster; without it, the service account of the pod
    #[arg(
        long,
        value_name = "FILE",
        env = "KUBE_BASTION_KUBECONFIG",
        help_heading = "Facts"
    )]
    kubeconfig: Option<PathBuf>,
    /// Context of the kubeconfig; its current one unless given
    #[arg(
        long,
        value_name = "NAME",
        env = "KUBE_BASTION_CONTEXT",
        help_heading = "Facts"
    )]
    context: Option<String>,
    /// Folder of YAML manifests to serve instead of a cluster
    #[arg(
        long,
        value_name = "DIR",
        env = "KUBE_BASTION_MANIFESTS_DIR",
        help_heading = "Facts"
    )]
    manifests_dir: Option<PathBuf>,
    /// Tokens for --manifests-dir: token,user,uid,"group1,group2", a line each
    #[arg(
        long,
        value_name = "FILE",
        env = "KUBE_BASTION_TOKEN_AUTH_FILE",
        help_heading = "Facts"
    )]
    token_auth_file: Option<PathBuf>,
}

/// What names a source: its flag, and the argument's id.
const NAMES: [(SourceKind, &str, &str); 4] = [
    (SourceKind::Kubernetes, "--kubeconfig", "kubeconfig"),
    (SourceKind::Kubernetes, "--context", "context"),
    (SourceKind::Manifests, "--manifests-dir", "manifests_dir"),
    (
        SourceKind::Manifests,
        "--token-auth-file",
        "token_auth_file",
    ),
];

impl Source {
    /// Over the file: a source that is named here is the one, and what the file says of the other
    /// does not count.
    pub(super) fn apply(self, source: &mut config::Source) {
        match self.kind {
            Some(SourceKind::Kubernetes) => source.manifests = ManifestsSource::default(),
            Some(SourceKind::Manifests) => source.kubernetes = KubernetesSource::default(),
            None => {}
        }
        set_if_some(&mut source.kind, self.kind);
        set_if_some(
            &mut source.kubernetes.kubeconfig,
            self.given.kubeconfig.map(Some),
        );
        set_if_some(&mut source.kubernetes.context, self.given.context.map(Some));
        set_if_some(
            &mut source.manifests.directory,
            self.given.manifests_dir.map(Some),
        );
        set_if_some(
            &mut source.manifests.token_auth_file,
            self.given.token_auth_file.map(Some),
        );
    }
}

impl Args for Source {
    fn augment_args(command: clap::Command) -> clap::Command {
        SourceFlags::augment_args(command)
    }

    fn augment_args_for_update(command: clap::Command) -> clap::Command {
        SourceFlags::augment_args_for_update(command)
    }
}

impl FromArgMatches for Source {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let mut given = SourceFlags::from_arg_matches(matches)?;
        let line = named(matches, ValueSource::CommandLine)?;
        // A flag decides; only where there is none must the environment be of one mind.
        let kind = match line {
            Some(kind) => Some(kind),
            None => named(matches, ValueSource::EnvVariable)?,
        };
        match kind {
            Some(SourceKind::Kubernetes) => {
                (given.manifests_dir, given.token_auth_file) = (None, None);
            }
            Some(SourceKind::Manifests) => (given.kubeconfig, given.context) = (None, None),
            None => {}
        }
        Ok(Self { kind, given })
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

/// The source that the line or the environment names.
fn named(matches: &ArgMatches, by: ValueSource) -> Result<Option<SourceKind>, clap::Error> {
    let mut given = NAMES
        .into_iter()
        .filter(|(_, _, id)| matches.value_source(id) == Some(by));
    let Some((kind, flag, _)) = given.next() else {
        return Ok(None);
    };
    match given.find(|(other, ..)| *other != kind) {
        None => Ok(Some(kind)),
        Some((_, other, _)) => {
            let environment = if by == ValueSource::EnvVariable {
                " (both by environment variables)"
            } else {
                ""
            };
            let fault = format!(
                "{flag} cannot be used with {other}{environment}: facts come from a Kubernetes API (--kubeconfig, \
                 --context) or from manifests (--manifests-dir, --token-auth-file)"
            );
            Err(clap::Error::raw(ErrorKind::ArgumentConflict, fault))
        }
    }
}
