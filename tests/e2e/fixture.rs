//! Shared state of the scenarios: a cluster with some objects, their backends, and a bastion.

use std::collections::HashMap;
use std::process::Command;
use std::sync::Arc;

use anyhow::{Context, Result};
use k8s_openapi::api::core::v1::ServiceAccount;
use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::json;
use tokio_rustls::TlsAcceptor;

use crate::support::backend::Backend;
use crate::support::bastion::Bastion;
use crate::support::client::Client;
use crate::support::cluster::Cluster;
use crate::support::eventually;
use crate::support::load::Target;
use crate::support::net::Namespace;
use crate::support::objects::Objects;
use crate::support::pki::Pair;

pub const SHOP: &str = "shop";

pub struct Fixture {
    pub bastion: Bastion,
    pub backends: HashMap<String, Backend>,
    pub namespace: Namespace,
    pub objects: Objects,
    pub serving: Pair,
    /// Token of the service account `caller`, which may `get` and `create` services/proxy and
    /// pods/proxy.
    pub token: String,
    pub cluster: Cluster,
}

impl Fixture {
    pub async fn new() -> Result<Self> {
        let namespace = Namespace::new()?;
        let cluster = Cluster::start().await?;
        // The bastion has exactly the permissions of deploy/.
        cluster.kubectl(&["apply", "-k", "deploy/"])?;
        let objects = Objects::new(&cluster.client, SHOP).await?;
        let serving = cluster.ca.server(
            cluster.folder.path(),
            "bastion",
            &["localhost", "127.0.0.1"],
        )?;
        let mut backends = HashMap::new();
        let tls = acceptor(&serving)?;

        objects.node("node-1", namespace.address(2)).await?;
        backends.insert(
            "node-1".into(),
            Backend::start(&namespace, 2, 9100, "node-1", None)?,
        );
        objects
            .service(
                "web",
                json!({"selector": {"app": "web"}, "ports": [{"name": "http", "port": 80, "targetPort": 8080}]}),
            )
            .await?;
        for (last, name) in [(11, "web-1"), (12, "web-2"), (13, "web-3")] {
            let ports = json!([{"name": "http", "containerPort": 8080}]);
            objects
                .pod(name, json!({"app": "web"}), namespace.address(last), ports)
                .await?;
            backends.insert(
                name.into(),
                Backend::start(&namespace, last, 8080, name, None)?,
            );
        }
        objects.service("safe", json!({"selector": {"app": "safe"}, "ports": [{"port": 443, "targetPort": 8443, "appProtocol": "https"}]})).await?;
        objects
            .pod(
                "safe-1",
                json!({"app": "safe"}),
                namespace.address(14),
                json!([]),
            )
            .await?;
        backends.insert(
            "safe-1".into(),
            Backend::start(&namespace, 14, 8443, "safe-1", Some(tls))?,
        );
        objects
            .service(
                "empty",
                json!({"selector": {"app": "empty"}, "ports": [{"port": 80}]}),
            )
            .await?;
        objects
            .service(
                "two",
                json!({"selector": {"app": "web"}, "ports": [
                    {"name": "a", "port": 80, "targetPort": 8080}, {"name": "b", "port": 81, "targetPort": 8080},
                ]}),
            )
            .await?;
        objects
            .service(
                "outside",
                json!({"type": "ExternalName", "externalName": "example.com"}),
            )
            .await?;

        objects
            .create::<ServiceAccount>(json!({"metadata": {"name": "caller"}}))
            .await?;
        let caller = json!({"kind": "ServiceAccount", "name": "caller", "namespace": SHOP});
        objects
            .allow(
                "caller",
                caller.clone(),
                &["services/proxy", "pods/proxy"],
                &["get", "create"],
            )
            .await?;
        objects
            .allow_cluster_wide("caller-nodes", caller, &["nodes/proxy"], &["get"])
            .await?;
        let token = cluster.token(SHOP, "caller", None).await?;

        let own = cluster
            .bastion_kubeconfig("bastion", &cluster.server)
            .await?;
        let bastion = bastion(&own, &serving, &[])?;
        bastion.ready().await?;
        let fixture = Self {
            bastion,
            backends,
            namespace,
            objects,
            serving,
            token,
            cluster,
        };
        fixture.endpoints("services/web", 3).await?;
        fixture.endpoints("services/safe", 1).await?;
        Ok(fixture)
    }

    /// Waits until a target has responses of `count` endpoints.
    pub async fn endpoints(&self, target: &str, count: usize) -> Result<()> {
        let mut client = self.client().await?;
        eventually(&format!("{count} endpoints of {target}"), async || {
            let mut names = std::collections::HashSet::new();
            for _ in 0..count * 2 {
                let response = client.get(&path(&format!("{target}/proxy/name"))).await?;
                if response.status == 200 {
                    names.insert(response.body);
                }
            }
            Ok(names.len() == count)
        })
        .await
    }

    /// Waits until the shared bastion and the apiserver know a target.
    pub async fn wait_until_known(&self, target: &str) -> Result<()> {
        for server in [
            self.bastion.secure,
            self.cluster.server.trim_start_matches("https://").parse()?,
        ] {
            let mut client =
                Client::connect(server, &self.cluster.ca.file, Some(&self.token), None).await?;
            let mut code = http::StatusCode::OK;
            eventually(&format!("{target} at {server}"), async || {
                code = client.get(&path(&format!("{target}/proxy"))).await?.status;
                // The redirect to the slash follows the lookup of the target, and sends no request.
                Ok(code == 301)
            })
            .await
            .with_context(|| format!("the status is {code}"))?;
        }
        Ok(())
    }

    /// Connects to the shared bastion as the caller.
    pub async fn client(&self) -> Result<Client> {
        Client::connect(
            self.bastion.secure,
            &self.cluster.ca.file,
            Some(&self.token),
            None,
        )
        .await
    }

    /// Returns the target of loads: `services/web` through a bastion, as the caller.
    pub fn target(&self, bastion: &Bastion) -> Target {
        Target {
            address: bastion.secure,
            ca: self.cluster.ca.file.clone(),
            token: Some(self.token.clone()),
            certificate: None,
            path: path("services/web/proxy/name"),
        }
    }

    /// Creates a service account that may `get` services/proxy, by a `RoleBinding` of the same
    /// name. Returns its token.
    pub async fn account(&self, name: &str) -> Result<String> {
        self.objects
            .create::<ServiceAccount>(json!({"metadata": {"name": name}}))
            .await?;
        let subject = json!({"kind": "ServiceAccount", "name": name, "namespace": SHOP});
        self.objects
            .allow(name, subject, &["services/proxy"], &["get"])
            .await?;
        self.cluster.token(SHOP, name, None).await
    }

    /// Runs `kubectl` as the caller through the shared bastion. Returns success and output.
    pub fn kubectl_through(&self, arguments: &[&str]) -> Result<(bool, String)> {
        let server = format!("--server=https://{}", self.bastion.secure);
        let (ca, token) = (
            format!("--certificate-authority={}", self.cluster.ca.file.display()),
            format!("--token={}", self.token),
        );
        // An empty kubeconfig keeps kubectl from reading that of the user.
        let output = Command::new(&self.cluster.kubectl)
            .args(["--kubeconfig=/dev/null", &server, &ca, &token])
            .args(arguments)
            .output()?;
        let text = [output.stdout, output.stderr].concat();
        Ok((
            output.status.success(),
            String::from_utf8_lossy(&text).into_owned(),
        ))
    }
}

/// Starts a bastion with the common flags of the scenarios.
pub fn bastion(kubeconfig: &std::path::Path, serving: &Pair, more: &[&str]) -> Result<Bastion> {
    let flags = [
        format!("--kubeconfig={}", kubeconfig.display()),
        format!("--tls-cert-file={}", serving.certificate.display()),
        format!("--tls-private-key-file={}", serving.key.display()),
    ];
    let flags: Vec<&str> = flags
        .iter()
        .map(String::as_str)
        .chain(more.iter().copied())
        .collect();
    Bastion::start(&flags)
}

/// Returns a path in the namespace of the scenarios.
pub fn path(rest: &str) -> String {
    format!("/api/v1/namespaces/{SHOP}/{rest}")
}

pub fn acceptor(pair: &Pair) -> Result<TlsAcceptor> {
    let chain = CertificateDer::pem_file_iter(&pair.certificate)?.collect::<Result<Vec<_>, _>>()?;
    let key = PrivateKeyDer::from_pem_file(&pair.key)?;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder =
        ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
    let config = builder.with_no_client_auth().with_single_cert(chain, key)?;
    Ok(TlsAcceptor::from(Arc::new(config)))
}
