//! Callers of the table, by name, with their credentials.

use std::collections::BTreeMap;

use anyhow::{Context, Result};

use crate::fixture::Fixture;
use crate::support::pki::{Ca, Pair};

/// Credentials of a caller.
#[derive(Clone, Debug, Default)]
pub struct Credentials {
    pub token: Option<String>,
    pub certificate: Option<Pair>,
    /// The token as a WebSocket subprotocol.
    subprotocol: String,
}

impl Credentials {
    /// Replaces the placeholders of a header line.
    pub fn fill(&self, line: &str) -> String {
        line.replace("{subprotocol}", &self.subprotocol)
    }
}

/// Callers of the rows. `objects.yaml` has their permissions.
#[derive(Debug)]
pub struct Callers(BTreeMap<&'static str, Credentials>);

/// Service accounts of the table's namespace.
const ACCOUNTS: [&str; 10] = [
    "operator",
    "getter",
    "creator",
    "lister",
    "named",
    "bare-named",
    "node-getter",
    "impersonator",
    "viewer",
    "unauthorized-user",
];

impl Callers {
    pub async fn new(fixture: &Fixture) -> Result<Self> {
        let folder = fixture.cluster.folder.path();
        let mut callers = BTreeMap::new();
        let token = |token: String| Credentials {
            token: Some(token),
            ..Credentials::default()
        };
        let certificate = |pair: Pair| Credentials {
            certificate: Some(pair),
            ..Credentials::default()
        };
        for account in ACCOUNTS {
            callers.insert(
                account,
                token(fixture.cluster.token("table", account, None).await?),
            );
        }
        // A caller whose token is only in a WebSocket subprotocol.
        let token_of_operator = callers
            .get("operator")
            .and_then(|caller| caller.token.clone())
            .unwrap_or_default();
        let subprotocol = format!(
            "base64url.bearer.authorization.k8s.io.{}",
            base64url(&token_of_operator)
        );
        callers.insert(
            "socket",
            Credentials {
                subprotocol,
                ..Credentials::default()
            },
        );
        callers.insert("none", Credentials::default());
        callers.insert("wrong", token("not-a-token".into()));
        callers.insert(
            "forged",
            token("eyJhbGciOiJub25lIn0.eyJzdWIiOiJhZG1pbiJ9.".into()),
        );
        callers.insert(
            "admin",
            certificate(
                fixture
                    .cluster
                    .ca
                    .client(folder, "table-admin", "system:masters")?,
            ),
        );
        callers.insert(
            "jane",
            certificate(
                fixture
                    .cluster
                    .ca
                    .client(folder, "table-jane", "table-devs")?,
            ),
        );
        let other = Ca::new(folder, "table-other-ca")?;
        callers.insert(
            "untrusted-certificate",
            certificate(other.client(folder, "untrusted-certificate", "system:masters")?),
        );
        callers.insert(
            "untrusted-certificate-with-token",
            Credentials {
                token: Some(token_of_operator),
                certificate: Some(other.client(
                    folder,
                    "untrusted-beside-token",
                    "system:masters",
                )?),
                ..Credentials::default()
            },
        );
        let ca = &fixture.cluster.ca;
        callers.insert(
            "expired",
            certificate(ca.client_until(folder, "expired", 2001)?),
        );
        // Another folder, because the files have the name of the user.
        let version_1 = folder.join("version-1");
        std::fs::create_dir_all(&version_1)?;
        callers.insert(
            "version-1",
            certificate(ca.client_of_version_1(&version_1, "table-jane", "table-devs")?),
        );
        let front = &fixture.cluster.front_proxy;
        callers.insert(
            "front-proxy",
            certificate(front.client(folder, "front-proxy", "front")?),
        );
        callers.insert(
            "other-front",
            certificate(front.client(folder, "other-front", "front")?),
        );
        Ok(Self(callers))
    }

    pub fn get(&self, name: &str) -> Result<&Credentials> {
        self.0
            .get(name)
            .with_context(|| format!("unknown caller {name:?}"))
    }
}

fn base64url(text: &str) -> String {
    use base64::Engine;
    base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(text)
}
