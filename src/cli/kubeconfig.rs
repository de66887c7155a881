//! `kubeconfig`: prints a kubeconfig for a bastion, or merges it into a file.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, ensure};
use clap::Args;
use clap::builder::{OsStringValueParser, TypedValueParser};

use super::source::path_parser;
use crate::config::{ValueError, parse_path};
use crate::desk::context::ServerUrl;
use crate::desk::kubeconfig::{self, Entries, Login, Server, Trust};
use crate::desk::warn;
use crate::kubeconfig::Environment;
use crate::model::pem;
use crate::tls::Fingerprint;

const HELP: &str = "\
The kubeconfig has the server, its CA and the user of a context of your kubeconfig: token, token
file, client certificate, credential plugin or auth provider, as they are. The certificate of the
server is verified before anything is printed:

With the file of its CA, which the kubeconfig then contains:
  kube-bastion kubeconfig --server https://bastion.example:8443 --certificate-authority ca.crt
With the fingerprint of its CA's public key, where the server sends its CA:
  kube-bastion kubeconfig --server https://bastion.example:8443 --fingerprint sha256:...
With the CAs of this system:
  kube-bastion kubeconfig --server https://bastion.example

Add a context to ~/.kube/config, or to the file of $KUBECONFIG, and use it:
  kube-bastion kubeconfig --server https://bastion.example --name bastion --merge
  kubectl --context bastion get --raw /api/v1/namespaces/shop/services/web/proxy/

The fingerprint of the file of a CA, as kubeadm join takes it (--discovery-token-ca-cert-hash):
  openssl x509 -in ca.crt -noout -pubkey | openssl pkey -pubin -outform DER | openssl dgst -sha256";

#[derive(Clone, Debug, Args)]
#[command(after_help = HELP)]
pub(super) struct Options {
    /// URL of the bastion, https://HOST:PORT
    #[arg(long, short, value_name = "URL")]
    server: String,

    /// PEM file with the CA of the server; the kubeconfig contains it
    #[arg(long, value_name = "FILE", conflicts_with = "fingerprint")]
    #[arg(value_parser = path_parser())]
    certificate_authority: Option<PathBuf>,

    /// SHA-256 of the public key of the server's CA, sha256:HEX; the server must send this CA, and
    /// the kubeconfig contains it
    #[arg(long, value_name = "FINGERPRINT")]
    fingerprint: Option<Fingerprint>,

    /// Name in the certificate of the server [default: the host of the URL]
    #[arg(long, value_name = "NAME")]
    tls_server_name: Option<String>,

    /// Kubeconfig with the user to log in as [default: those of $KUBECONFIG, else ~/.kube/config]
    #[arg(long, value_name = "FILE", value_parser = path_parser())]
    kubeconfig: Option<PathBuf>,

    /// Context with the user to log in as [default: the current context]
    #[arg(long, value_name = "NAME")]
    context: Option<String>,

    /// Namespace of the new context [default: that of the context with the user]
    #[arg(long, short, value_name = "NAME")]
    namespace: Option<String>,

    /// Name of the new cluster and context [default: the host of the URL]
    #[arg(long, value_name = "NAME")]
    name: Option<String>,

    /// Name of the user in the new kubeconfig [default: its present name]
    #[arg(long, value_name = "NAME")]
    user_name: Option<String>,

    /// Merge into a kubeconfig instead of printing one [default FILE: the first of $KUBECONFIG that
    /// exists, else ~/.kube/config]
    #[arg(long, value_name = "FILE", num_args = 0..=1, default_missing_value = "")]
    #[arg(value_parser = OsStringValueParser::new().try_map(MergeFile::parse))]
    merge: Option<MergeFile>,

    /// Make the merged context the current one
    #[arg(long, requires = "merge")]
    set_current: bool,

    /// Replace entries of the same names in the file to merge into
    #[arg(long, requires = "merge")]
    overwrite: bool,
}

/// File to merge into.
#[derive(Clone, Debug)]
enum MergeFile {
    /// The one that kubectl would change.
    Default,
    Path(PathBuf),
}

impl MergeFile {
    fn parse(text: OsString) -> Result<Self, ValueError> {
        if text.is_empty() {
            Ok(Self::Default)
        } else {
            parse_path(text).map(Self::Path)
        }
    }

    /// Returns its path.
    fn path(self) -> Result<PathBuf> {
        let Self::Path(path) = self else {
            let (files, _) = Environment::of_process().default_files();
            let existing = files.iter().find(|file| file.exists());
            let path = existing.or(files.last()).cloned();
            return path
                .context("there is no home directory; set the file of --merge or $KUBECONFIG");
        };
        Ok(path)
    }
}

pub(super) fn run(options: Options) -> Result<ExitCode> {
    let url = ServerUrl::parse(&options.server)?;
    ensure!(
        url.is_https,
        "{:?} is not an https:// URL, and credentials must not cross the network in clear text; \
         use https://HOST:PORT",
        options.server
    );
    let login = Login::load(options.kubeconfig.as_deref(), options.context.as_deref())?;
    warn_without_user(login.as_ref());
    let target = options.merge.clone().map(MergeFile::path).transpose()?;
    let (trust, authority) = trust(&options)?;
    let pinned = verify(&url, options.tls_server_name.as_deref(), &trust)?;
    let server = Server {
        url: format!("https://{}{}", url.authority, url.path),
        authority: authority.or(pinned),
        tls_server_name: options.tls_server_name,
    };
    let files = login.as_ref().map(|login| login.files.clone());
    let name = options.name.unwrap_or(url.host);
    let mut entries = Entries::new(name, server, options.namespace, login);
    let renames = options.user_name.is_some();
    if let Some(name) = options.user_name {
        entries.rename_user(name);
    }
    let Some(target) = target else {
        print!("{}", entries.to_yaml());
        return Ok(ExitCode::SUCCESS);
    };
    // A second copy of the user would not get the tokens that are refreshed in the first.
    let has_user = files.iter().flatten().any(|file| is_same(file, &target));
    if has_user && !renames {
        entries.remove_user();
    }
    merge(&target, &entries, options.set_current, options.overwrite)
}

fn merge(target: &Path, entries: &Entries, set_current: bool, overwrite: bool) -> Result<ExitCode> {
    let changes = kubeconfig::Options {
        set_current,
        overwrite,
    };
    let merged = kubeconfig::merge(target, entries, changes)?;
    if merged.lost_comments {
        warn(format_args!(
            "the kubeconfig {target:?} was not in block style and has been formatted anew, without \
             its comments"
        ));
    }
    let name = &entries.name;
    let usage = if merged.is_current {
        "it is the current context".to_owned()
    } else {
        format!("use it with kubectl --context {name}")
    };
    eprintln!("kube-bastion: context {name:?} is in the kubeconfig {target:?}; {usage}");
    Ok(ExitCode::SUCCESS)
}

fn warn_without_user(login: Option<&Login>) {
    match login {
        None => warn(
            "no kubeconfig has a user to log in as; add one to the new kubeconfig with kubectl \
             config set-credentials, or set --kubeconfig",
        ),
        Some(Login {
            context,
            user: None,
            ..
        }) => warn(format_args!(
            "the context {context:?} has no user; add one to the new kubeconfig with kubectl config \
             set-credentials, or set --context"
        )),
        Some(_) => {}
    }
}

/// Returns what verifies the server, and the PEM of the CA for the kubeconfig.
fn trust(options: &Options) -> Result<(Trust, Option<String>)> {
    if let Some(fingerprint) = options.fingerprint {
        return Ok((Trust::Fingerprint(fingerprint), None));
    }
    let Some(path) = &options.certificate_authority else {
        return Ok((Trust::System, None));
    };
    let file = std::fs::read(path)
        .with_context(|| format!("cannot read the CA {path:?} (--certificate-authority)"))?;
    let certificates = pem::certificates(&file)
        .with_context(|| format!("the CA {path:?} (--certificate-authority) cannot be used"))?;
    // Without the comments and keys that a PEM file may have.
    let pem = certificates.iter().map(kubeconfig::pem).collect();
    Ok((Trust::Certificates(certificates), Some(pem)))
}

fn verify(url: &ServerUrl, name: Option<&str>, trust: &Trust) -> Result<Option<String>> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    let verified = runtime.block_on(kubeconfig::verify(url, name, trust));
    // A name lookup may still be running.
    runtime.shutdown_background();
    Ok(verified?)
}

fn is_same(file: &Path, other: &Path) -> bool {
    let canonical = |path: &Path| path.canonicalize().ok();
    file == other || canonical(file).is_some_and(|file| canonical(other) == Some(file))
}
