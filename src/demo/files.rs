//! Files of the demo: certificates, tokens, manifests, a shell function for requests, and kubeconfigs.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::net::SocketAddr;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use aws_lc_rs::rand;
use serde_json::json;

use super::backends::Ports;
use super::manifests;
use crate::tls;

/// Mode of files with keys and tokens.
const SECRET_MODE: u32 = 0o600;
/// Mode of other files. The directory that contains them is for the user alone.
const FILE_MODE: u32 = 0o644;
/// Mode of directories.
const DIRECTORY_MODE: u32 = 0o700;

/// Users of the demo and their groups.
const USERS: [(&str, &str); 2] = [("jane", "viewers"), ("guest", "")];

/// Paths of the files in the directory of the demo.
#[derive(Debug)]
pub(super) struct Files {
    pub certificate: PathBuf,
    pub key: PathBuf,
    pub manifests: PathBuf,
    pub permissions: PathBuf,
    pub tokens: PathBuf,
    pub environment: PathBuf,
    /// Users with their tokens.
    users: Vec<(&'static str, String)>,
}

impl Files {
    /// Writes certificates and tokens.
    ///
    /// # Errors
    /// The file that cannot be written.
    pub fn write(directory: &Path, listen: SocketAddr) -> Result<Self> {
        let manifests = directory.join("manifests");
        let mut files = Self {
            certificate: directory.join("tls.crt"),
            key: directory.join("tls.key"),
            permissions: manifests.join("rbac-page.yaml"),
            manifests,
            tokens: directory.join("tokens.csv"),
            environment: directory.join("env.sh"),
            users: Vec::new(),
        };
        // As `serving.selfSignedDir` does.
        tls::store_self_signed(directory, listen)?;
        let mut csv = String::new();
        for (number, (user, group)) in USERS.into_iter().enumerate() {
            let mut random = [0; 16];
            rand::fill(&mut random)?;
            let token = format!("demo-token-of-{user}-{:x}", u128::from_ne_bytes(random));
            csv += &format!("{token},{user},{number},\"{group}\"\n");
            // A header in a file does not appear in the list of processes.
            let header = format!("Authorization: Bearer {token}\n");
            write(
                &directory.join(format!("{user}.header")),
                &header,
                SECRET_MODE,
            )?;
            files.users.push((user, token));
        }
        write(&files.tokens, &csv, SECRET_MODE)?;
        fs::DirBuilder::new()
            .mode(DIRECTORY_MODE)
            .create(&files.manifests)
            .with_context(|| format!("cannot create the directory {:?}", files.manifests))?;
        Ok(files)
    }

    /// Writes the manifests of a cluster with the backends on `ports`.
    ///
    /// # Errors
    /// The file that cannot be written.
    pub fn write_manifests(&self, ports: &Ports) -> Result<()> {
        for (path, yaml) in [
            (
                self.manifests.join("cluster.yaml"),
                &*manifests::cluster(ports),
            ),
            (self.manifests.join("rbac.yaml"), manifests::RBAC),
            (self.permissions.clone(), manifests::PAGE_RBAC),
        ] {
            write(&path, yaml, FILE_MODE)?;
        }
        Ok(())
    }

    /// Writes the files for clients of the bastion at `url`: the function `kb`, and a kubeconfig for
    /// each user.
    ///
    /// # Errors
    /// The file that cannot be written.
    pub fn write_clients(&self, directory: &Path, url: &str) -> Result<()> {
        for (user, token) in &self.users {
            let cluster = json!({
                "server": url,
                "certificate-authority": directory.join("ca.crt"),
            });
            let context = json!({"cluster": "demo", "user": user, "namespace": "demo"});
            let kubeconfig = json!({
                "apiVersion": "v1",
                "kind": "Config",
                "clusters": [{"name": "demo", "cluster": cluster}],
                "users": [{"name": user, "user": {"token": token}}],
                "contexts": [{"name": "demo", "context": context}],
                "current-context": "demo",
            });
            // JSON is YAML.
            let text = format!("{kubeconfig:#}\n");
            let file = directory.join(format!("{user}.kubeconfig"));
            write(&file, &text, SECRET_MODE)?;
        }
        let directory = quoted(&directory.to_string_lossy());
        let script = format!(
            "\
# Defines kb. Read it into a shell: . FILE
KB_DIR={directory}
KB_URL={url}

# kb USER PATH [OPTION OF CURL ...]: sends a request as jane or guest.
kb() {{
  if [ $# -lt 2 ]; then
    echo 'usage: kb jane|guest PATH [OPTION OF CURL ...]' >&2
    return 2
  fi
  kb_header=$KB_DIR/$1.header kb_path=$2
  shift 2
  curl -sS --globoff --cacert \"$KB_DIR/ca.crt\" --header \"@$kb_header\" \\
    \"$@\" \"$KB_URL$kb_path\"
}}
"
        );
        write(&self.environment, &script, FILE_MODE)
    }
}

/// Quotes a word for a shell.
fn quoted(word: &str) -> String {
    format!("'{}'", word.replace('\'', r"'\''"))
}

/// Creates a file, with its mode from the start.
fn write(path: &Path, text: &str, mode: u32) -> Result<()> {
    let create = || -> io::Result<()> {
        let mut options = OpenOptions::new();
        let mut file = options.write(true).create_new(true).mode(mode).open(path)?;
        file.write_all(text.as_bytes())
    };
    create().with_context(|| format!("cannot write {path:?}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quotes_paths_for_shells() {
        for path in ["/tmp/a", "/tmp/it's here", "/tmp/$(id) `id` \"x\""] {
            let output = std::process::Command::new("sh")
                .args(["-c", &format!("printf %s {}", quoted(path))])
                .output()
                .unwrap();
            assert_eq!(String::from_utf8(output.stdout).unwrap(), path);
        }
    }
}
