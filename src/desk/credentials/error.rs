//! Errors of credentials. They contain no tokens, keys or passwords.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use crate::tls::TlsError;

/// Reason why a user has no valid credentials.
#[derive(Clone, Debug, thiserror::Error)]
pub enum CredentialsError {
    #[error("the user {user:?} has a token and a password (username); remove one of them")]
    TokenAndPassword { user: String },
    #[error("the user {user:?} has exec and auth-provider; remove one of them")]
    ExecAndAuthProvider { user: String },
    #[error(
        "a token, or a user or group to impersonate, has characters that a header cannot have; \
         remove line breaks and control characters"
    )]
    NotAHeader,
    #[error("a UID, groups or extra attributes are impersonated without a user; set --as=USER")]
    ImpersonationWithoutUser,
    #[error("cannot read the token file {path:?} (tokenFile)")]
    TokenFile {
        path: PathBuf,
        source: Arc<io::Error>,
    },
    #[error("the token file {path:?} (tokenFile) is empty")]
    EmptyTokenFile { path: PathBuf },
    #[error(
        "the user {user:?} has a client certificate without its key; set client-key or \
         client-key-data"
    )]
    NoKey { user: String },
    #[error("{field} of the user {user:?} is not base64; use {file} with the path of a PEM file")]
    NotBase64 {
        user: String,
        field: &'static str,
        file: &'static str,
    },
    #[error("cannot read the client certificate or key {path:?} of the user {user:?}")]
    ReadCertificate {
        user: String,
        path: PathBuf,
        source: Arc<io::Error>,
    },
    #[error("the client certificate of the user {user:?} cannot be used")]
    Certificate { user: String, source: Arc<TlsError> },
    #[error("exec of the user {user:?} has no {field}{remedy}")]
    ExecField {
        user: String,
        field: &'static str,
        remedy: &'static str,
    },
    #[error(
        "exec of the user {user:?} has the apiVersion {version:?}; use \
         client.authentication.k8s.io/v1 or client.authentication.k8s.io/v1beta1, and a plugin \
         that supports it"
    )]
    ExecVersion { user: String, version: String },
    #[error(
        "exec: the plugin {command} requires a terminal (interactiveMode: Always): standard input \
         is not a terminal"
    )]
    ExecNotInteractive { command: String },
    /// The hint of the kubeconfig follows on lines of its own.
    #[error(
        "exec: executable {command} not found; install the credential plugin of the user \
         {user:?}{hint}"
    )]
    ExecNotFound {
        command: String,
        user: String,
        hint: String,
    },
    #[error("exec: cannot run {command}: {source}")]
    ExecRun {
        command: String,
        source: Arc<io::Error>,
    },
    #[error("exec: executable {command} failed with exit code {code}; log in again, or run it")]
    ExecFailed { command: String, code: i32 },
    #[error("exec: executable {command} was ended by a signal")]
    ExecKilled { command: String },
    #[error("exec: executable {command} did not finish within {seconds} s; run it to see why")]
    ExecTimeout { command: String, seconds: u64 },
    #[error("exec: executable {command} printed {problem}")]
    ExecOutput {
        command: String,
        problem: &'static str,
    },
    #[error(
        "exec: the plugin {command} is configured to use API version {expected} and returned \
         version {returned:?}"
    )]
    ExecOtherVersion {
        command: String,
        expected: String,
        returned: String,
    },
    #[error(
        "the auth-provider {name:?} of the user {user:?} is not supported (kubectl removed it in \
         1.26); {remedy}"
    )]
    AuthProvider {
        user: String,
        name: String,
        remedy: &'static str,
    },
    #[error("auth-provider oidc of the user {user:?}: {field} is missing or malformed")]
    OidcField { user: String, field: &'static str },
    #[error(
        "the id-token of the user {user:?} has expired and there is no refresh-token; log in again"
    )]
    OidcExpired { user: String },
    #[error("cannot refresh the id-token at {issuer}: {reason}")]
    Oidc { issuer: String, reason: String },
    #[error("the renewal of the credentials ended unexpectedly; repeat the request")]
    Canceled,
}
