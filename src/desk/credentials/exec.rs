//! Credential plugins: programs that print an `ExecCredential` (`client.authentication.k8s.io`).

use std::fmt;
use std::io::{self, IsTerminal};
use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::io::AsyncReadExt;
use tokio::process::Command;
use tokio::time::timeout;

use super::renewal::Obtained;
use super::{CredentialsError, Login, bearer, certificate};
use crate::kubeconfig::{EnvironmentVariable, ExecPlugin, InteractiveMode, Secret};

const V1: &str = "client.authentication.k8s.io/v1";
const V1BETA1: &str = "client.authentication.k8s.io/v1beta1";
/// Variable with the input of a plugin.
const EXEC_INFO: &str = "KUBERNETES_EXEC_INFO";
/// Maximum time of a run.
const TIMEOUT: Duration = Duration::from_mins(1);
/// Maximum time of a run in which the user may log in.
const INTERACTIVE_TIMEOUT: Duration = Duration::from_mins(10);
/// Maximum size of the output: tokens and certificates take some kilobytes.
const MAX_OUTPUT: u64 = 1024 * 1024;

/// A credential plugin.
pub(super) struct Plugin {
    /// Name of the user.
    user: String,
    command: String,
    args: Vec<String>,
    env: Vec<EnvironmentVariable>,
    version: &'static str,
    hint: String,
    mode: InteractiveMode,
    /// `spec.cluster` of the input.
    cluster: Option<Value>,
    pub(super) stdin_is_terminal: fn() -> bool,
    timeout: Duration,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ExecCredential {
    #[serde(default)]
    kind: String,
    #[serde(default)]
    api_version: String,
    status: Option<Status>,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Status {
    expiration_timestamp: Option<String>,
    token: Option<Secret>,
    client_certificate_data: Option<String>,
    client_key_data: Option<Secret>,
}

impl fmt::Debug for Plugin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Plugin")
            .field("command", &self.command)
            .finish_non_exhaustive()
    }
}

impl Plugin {
    /// Checks the fields of `exec`, with the rules and defaults of client-go.
    pub fn new(login: &Login, exec: &ExecPlugin) -> Result<Self, CredentialsError> {
        let user = || login.name.clone();
        let missing = |field, remedy| CredentialsError::ExecField {
            user: user(),
            field,
            remedy,
        };
        if exec.command.is_empty() {
            return Err(missing("command", ""));
        }
        let version = match &*exec.api_version {
            V1 => V1,
            V1BETA1 => V1BETA1,
            "" => {
                return Err(missing(
                    "apiVersion",
                    "; set client.authentication.k8s.io/v1",
                ));
            }
            other => {
                return Err(CredentialsError::ExecVersion {
                    user: user(),
                    version: other.to_owned(),
                });
            }
        };
        if exec.env.iter().any(|variable| variable.name.is_empty()) {
            return Err(missing("name of a variable in env", ""));
        }
        let mode = match exec.interactive_mode {
            Some(mode) => mode,
            None if version == V1BETA1 => InteractiveMode::IfAvailable,
            None => {
                let remedy = ", which v1 requires; set Never, IfAvailable or Always";
                return Err(missing("interactiveMode", remedy));
            }
        };
        Ok(Self {
            user: user(),
            command: exec.command.clone(),
            args: exec.args.clone(),
            env: exec.env.clone(),
            version,
            hint: printable(&exec.install_hint),
            mode,
            cluster: exec.provide_cluster_info.then(|| cluster(login)),
            stdin_is_terminal: || io::stdin().is_terminal(),
            timeout: TIMEOUT,
        })
    }

    /// Runs the plugin. Its standard error is that of the process.
    pub async fn run(&self) -> Result<Obtained, CredentialsError> {
        let is_interactive = match self.mode {
            InteractiveMode::Never => false,
            InteractiveMode::IfAvailable => (self.stdin_is_terminal)(),
            InteractiveMode::Always if !(self.stdin_is_terminal)() => {
                return Err(CredentialsError::ExecNotInteractive {
                    command: self.command.clone(),
                });
            }
            InteractiveMode::Always => true,
        };
        let mut command = Command::new(&self.command);
        command
            .args(&self.args)
            .envs(self.env.iter().map(|env| (&env.name, env.value.expose())))
            .env(EXEC_INFO, self.input(is_interactive).to_string())
            .stdin(if is_interactive {
                Stdio::inherit()
            } else {
                Stdio::null()
            })
            .stdout(Stdio::piped())
            .kill_on_drop(true);
        let limit = if is_interactive {
            INTERACTIVE_TIMEOUT
        } else {
            self.timeout
        };
        let output = timeout(limit, self.output(command)).await;
        let output = output.unwrap_or_else(|_| {
            Err(CredentialsError::ExecTimeout {
                command: self.command.clone(),
                seconds: limit.as_secs(),
            })
        })?;
        self.decode(&output)
    }

    /// Returns the value of `KUBERNETES_EXEC_INFO`.
    fn input(&self, is_interactive: bool) -> Value {
        let mut spec = json!({"interactive": is_interactive});
        if let Some(cluster) = &self.cluster {
            spec["cluster"] = cluster.clone();
        }
        json!({"kind": "ExecCredential", "apiVersion": self.version, "spec": spec})
    }

    async fn output(&self, mut command: Command) -> Result<Vec<u8>, CredentialsError> {
        let of_run = |source| CredentialsError::ExecRun {
            command: self.command.clone(),
            source: Arc::new(source),
        };
        let mut child = command.spawn().map_err(|error| {
            // A script whose interpreter is missing exists.
            if error.kind() == io::ErrorKind::NotFound && !Path::new(&self.command).is_file() {
                CredentialsError::ExecNotFound {
                    command: self.command.clone(),
                    user: self.user.clone(),
                    hint: self.hint(),
                }
            } else {
                of_run(error)
            }
        })?;
        let mut output = Vec::new();
        if let Some(stdout) = child.stdout.take() {
            let mut stdout = stdout.take(MAX_OUTPUT + 1);
            stdout.read_to_end(&mut output).await.map_err(of_run)?;
        }
        if output.len() as u64 > MAX_OUTPUT {
            return Err(self.problem("more than 1 MiB"));
        }
        let status = child.wait().await.map_err(of_run)?;
        match status.code() {
            Some(0) => Ok(output),
            Some(code) => Err(CredentialsError::ExecFailed {
                command: self.command.clone(),
                code,
            }),
            None => Err(CredentialsError::ExecKilled {
                command: self.command.clone(),
            }),
        }
    }

    /// Decodes the output. Errors do not contain it.
    fn decode(&self, output: &[u8]) -> Result<Obtained, CredentialsError> {
        let credential: ExecCredential = serde_json::from_slice(output)
            .map_err(|_| self.problem("no ExecCredential in JSON"))?;
        if credential.kind != "ExecCredential" {
            return Err(self.problem("an object of another kind than ExecCredential"));
        }
        if credential.api_version != self.version {
            return Err(CredentialsError::ExecOtherVersion {
                command: self.command.clone(),
                expected: self.version.to_owned(),
                returned: printable(&credential.api_version),
            });
        }
        let status = credential.status;
        let status = status.ok_or_else(|| self.problem("an ExecCredential without status"))?;
        let token = status.token.filter(|token| !token.expose().is_empty());
        let chain = status.client_certificate_data;
        let chain = chain.filter(|chain| !chain.is_empty());
        let key = status.client_key_data;
        let key = key.filter(|key| !key.expose().is_empty());
        let certificate = match (chain, key) {
            (Some(chain), Some(key)) => Some(certificate::parse(
                &self.user,
                Path::new("clientCertificateData"),
                chain.as_bytes(),
                Path::new("clientKeyData"),
                key.expose().as_bytes(),
            )?),
            (None, None) if token.is_some() => None,
            (None, None) => return Err(self.problem("neither a token nor a certificate and key")),
            _ => return Err(self.problem("only a certificate or only a key, not both")),
        };
        let expires = status.expiration_timestamp.map(|text| {
            let expires: Result<Timestamp, _> = text.parse();
            expires
                .map(SystemTime::from)
                .map_err(|_| self.problem("an expirationTimestamp that is not RFC 3339"))
        });
        Ok(Obtained {
            authorization: token.as_ref().map(bearer).transpose()?,
            certificate,
            expires: expires.transpose()?,
        })
    }

    fn hint(&self) -> String {
        if self.hint.is_empty() {
            String::new()
        } else {
            format!("\n\n{}", self.hint)
        }
    }

    fn problem(&self, problem: &'static str) -> CredentialsError {
        CredentialsError::ExecOutput {
            command: self.command.clone(),
            problem,
        }
    }
}

/// Returns `spec.cluster`, with the CA as data.
fn cluster(login: &Login) -> Value {
    let info = &login.cluster;
    let mut cluster = json!({"server": info.server});
    if let Some(name) = &info.settings.tls_server_name {
        cluster["tls-server-name"] = json!(name);
    }
    if info.settings.insecure_skip_tls_verify {
        cluster["insecure-skip-tls-verify"] = json!(true);
    }
    if let Some(authority) = &info.authority {
        cluster["certificate-authority-data"] = json!(STANDARD.encode(&authority.pem));
    }
    if let Some(url) = &info.settings.proxy_url {
        cluster["proxy-url"] = json!(url);
    }
    if info.settings.disable_compression {
        cluster["disable-compression"] = json!(true);
    }
    if let Some(config) = &info.config {
        cluster["config"] = config.clone();
    }
    cluster
}

/// Replaces control characters, which could change the state of a terminal, except for line breaks
/// and tabs.
fn printable(text: &str) -> String {
    text.chars()
        .map(|c| match c {
            '\n' | '\t' => c,
            c if c.is_control() => char::REPLACEMENT_CHARACTER,
            c => c,
        })
        .collect()
}

#[cfg(test)]
mod tests;
