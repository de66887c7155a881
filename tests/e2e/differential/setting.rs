//! Setup of the differential tests: the apiserver, some bastions, their objects, and scripted
//! backends.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use anyhow::{Context, Result};
use k8s_openapi::api::core::v1::{EndpointSubset, Endpoints, Node, Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::{Api, ListParams, Patch, PatchParams};
use kube::{Resource, ResourceExt};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use serde_json::Value;
use tokio_rustls::TlsAcceptor;

use super::callers::Callers;
use super::scenarios::rebinding::PORT;
use super::send::Side;
use crate::fixture::{Fixture, bastion};
use crate::support::bastion::Bastion;
use crate::support::cluster::HOME;
use crate::support::eventually;
use crate::support::objects::Objects;
use crate::support::pki::{Ca, Pair};
use crate::support::raw::ScriptedBackends;

/// Servers, callers and backends of the rows.
pub struct Setting<'w> {
    pub fixture: &'w Fixture,
    pub backends: ScriptedBackends,
    pub callers: Callers,
    bastions: BTreeMap<&'static str, (Bastion, String)>,
}

/// Bastions of the rows, with their configuration in addition to the defaults.
const BASTIONS: [(&str, &str); 6] = [
    ("default", ""),
    ("anonymous", "authentication: {anonymous: true}"),
    ("bare-names", "authorization: {acceptBareNames: true}"),
    ("pod-less", "targets: {podLessEndpoints: true, KUBELET}"),
    (
        "own-token",
        "targets: {kubeletServiceAccountToken: true, kubeletCertificateAuthority: CA}",
    ),
    ("no-token", "targets: {kubeletCertificateAuthority: CA}"),
];

/// Listeners: pod or node, address, port, protocol.
const LISTENERS: [(&str, &str, u16, Protocol); 27] = [
    ("p", "10.254.240.41", 8080, Protocol::Plain),
    ("p", "10.254.240.41", 8081, Protocol::Plain),
    ("p", "10.254.240.41", 9090, Protocol::Plain),
    ("p", "10.254.240.41", 9500, Protocol::Plain),
    ("p", "10.254.240.41", 8443, Protocol::Tls),
    ("p", "10.254.240.41", 8444, Protocol::TlsH2),
    ("p", "10.254.240.41", 8445, Protocol::TlsH2),
    ("bare", "10.254.240.42", 80, Protocol::Plain),
    ("bare", "10.254.240.42", 443, Protocol::Tls),
    ("bare", "10.254.240.42", 8080, Protocol::Plain),
    ("udp", "10.254.240.43", 5353, Protocol::Plain),
    ("udp", "10.254.240.43", 8080, Protocol::Plain),
    ("node-a", "10.254.240.45", 10250, Protocol::Kubelet),
    ("node-a", "10.254.240.45", 9100, Protocol::Plain),
    ("node-a", "10.254.240.45", 9443, Protocol::Tls),
    ("t1", "10.254.240.46", 8080, Protocol::Plain),
    ("t2", "10.254.240.47", 8080, Protocol::Plain),
    ("t3", "10.254.240.48", 8080, Protocol::Plain),
    ("unready", "10.254.240.49", 8080, Protocol::Plain),
    ("k", "10.254.240.50", 10250, Protocol::Plain),
    ("k", "10.254.240.50", 10251, Protocol::Kubelet),
    ("untrusted", "10.254.240.51", 10250, Protocol::Untrusted),
    ("proxy", "10.254.240.42", 3128, Protocol::Plain),
    ("proxied", "10.254.240.70", 8080, Protocol::Plain),
    ("six", "fd00:10:254:240::44", 8080, Protocol::Plain),
    ("six", "fd00:10:254:240::44", 80, Protocol::Plain),
    (
        "loopback by NAT64",
        "64:ff9b::7f00:1",
        8080,
        Protocol::Plain,
    ),
];

#[derive(Clone, Copy)]
enum Protocol {
    Plain,
    Tls,
    TlsH2,
    Kubelet,
    Untrusted,
}

impl<'w> Setting<'w> {
    pub async fn new(fixture: &'w Fixture) -> Result<Self> {
        let backends = ScriptedBackends::default();
        listen(fixture, &backends)?;
        settle(&objects(fixture).await?).await?;
        // Started after all objects exist, the bastions are ready with all of them.
        let callers = Callers::new(fixture).await?;
        let mut bastions = BTreeMap::new();
        for (name, configuration) in BASTIONS {
            bastions.insert(name, start(fixture, name, configuration).await?);
        }
        Ok(Self {
            fixture,
            backends,
            callers,
            bastions,
        })
    }

    /// Returns the bastion with a name.
    pub fn bastion(&self, name: &str) -> Result<Side> {
        let (bastion, _) = self
            .bastions
            .get(name)
            .with_context(|| format!("unknown bastion {name:?}"))?;
        Ok(Side {
            name: "bastion",
            address: bastion.secure,
            ca: self.fixture.cluster.ca.file.clone(),
        })
    }

    pub fn apiserver(&self) -> Result<Side> {
        let address = self
            .fixture
            .cluster
            .server
            .trim_start_matches("https://")
            .parse()?;
        Ok(Side {
            name: "apiserver",
            address,
            ca: self.fixture.cluster.ca.file.clone(),
        })
    }

    /// Appends the arguments of the default bastion to a command that runs its binary.
    pub fn bastion_command(&self, mut command: Command) -> Command {
        let folder = self.fixture.cluster.folder.path();
        command
            .arg("serve")
            .arg(format!(
                "--config={}",
                folder.join("table-default.yaml").display()
            ))
            .arg(format!(
                "--kubeconfig={}",
                folder.join("table-default.kubeconfig").display()
            ))
            .arg(format!(
                "--tls-cert-file={}",
                self.fixture.serving.certificate.display()
            ))
            .arg(format!(
                "--tls-private-key-file={}",
                self.fixture.serving.key.display()
            ));
        command
    }

    /// Replaces the tokens of the bastions by a placeholder.
    pub fn name_own_tokens(&self, text: &str) -> String {
        self.bastions
            .values()
            .fold(text.to_owned(), |text, (_, token)| {
                text.replace(token, "{own token}")
            })
    }
}

/// Number of endpoints of services with a selector, if not one.
const ENDPOINTS: [(&str, usize); 3] = [("trio", 3), ("sticky", 3), ("half-dead", 2)];

/// Waits until the controllers have created all endpoints, so that no row depends on timing.
async fn settle(objects: &Objects) -> Result<()> {
    let (client, namespace) = (&objects.client, &objects.namespace);
    let services = Api::<Service>::namespaced(client.clone(), namespace);
    let endpoints = Api::<Endpoints>::namespaced(client.clone(), namespace);
    let slices = Api::<EndpointSlice>::namespaced(client.clone(), namespace);
    for service in services.list(&ListParams::default()).await? {
        let name = service.name_any();
        let selector = service
            .spec
            .and_then(|spec| spec.selector)
            .unwrap_or_default();
        if selector.is_empty() || name == "no-endpoints" {
            continue;
        }
        let expected = ENDPOINTS
            .iter()
            .find(|(found, _)| *found == name)
            .map_or(1, |(_, count)| *count);
        let of = ListParams::default().labels(&format!("kubernetes.io/service-name={name}"));
        eventually(&format!("the endpoints of {name}"), async || {
            let subsets = endpoints
                .get_opt(&name)
                .await?
                .and_then(|found| found.subsets)
                .unwrap_or_default();
            let addresses = |subset: &EndpointSubset| {
                [&subset.addresses, &subset.not_ready_addresses]
                    .into_iter()
                    .flatten()
                    .map(Vec::len)
                    .sum::<usize>()
            };
            let in_slices: usize = slices
                .list(&of)
                .await?
                .iter()
                .flat_map(|slice| &slice.endpoints)
                .map(Vec::len)
                .sum();
            // An address is in several subsets only if it has several ports.
            Ok(subsets.iter().map(addresses).sum::<usize>() == expected && in_slices == expected)
        })
        .await?;
    }
    Ok(())
}

async fn start(fixture: &Fixture, name: &str, configuration: &str) -> Result<(Bastion, String)> {
    let folder = fixture.cluster.folder.path();
    let ca = fixture.cluster.ca.file.display();
    let kubelet = &fixture.cluster.kubelet_client;
    let kubelet = format!(
        "kubeletCertificateAuthority: {ca}, kubeletClientCertificate: {}, kubeletClientKey: {}",
        kubelet.certificate.display(),
        kubelet.key.display()
    );
    let configuration = configuration
        .replace("KUBELET", &kubelet)
        .replace("CA}", &format!("{ca}}}"));
    let mut text = format!(
        "apiVersion: kube-bastion.dev/v1alpha1\nkind: BastionConfiguration\n{configuration}\n"
    );
    if !configuration.contains("targets") {
        text += &format!("targets: {{{kubelet}}}\n");
    }
    let file = folder.join(format!("table-{name}.yaml"));
    std::fs::write(&file, text)?;
    let token = fixture.cluster.token(HOME, HOME, None).await?;
    let by = crate::support::cluster::KubeconfigUser::Token(&token);
    let kubeconfig = fixture.cluster.kubeconfig(
        &format!("table-{name}"),
        &fixture.cluster.server,
        &fixture.cluster.ca.file,
        &by,
    )?;
    let bastion = bastion(
        &kubeconfig,
        &fixture.serving,
        &[&format!("--config={}", file.display())],
    )?;
    bastion.ready().await?;
    Ok((bastion, token))
}

fn listen(fixture: &Fixture, backends: &ScriptedBackends) -> Result<()> {
    let folder = fixture.cluster.folder.path();
    let addresses = [
        "10.254.240.41",
        "10.254.240.42",
        "10.254.240.45",
        "10.254.240.50",
        "10.254.240.51",
    ];
    let trusted = fixture
        .cluster
        .ca
        .server(folder, "table-backend", &addresses)?;
    let untrusted =
        Ca::new(folder, "table-untrusted-ca")?.server(folder, "table-untrusted", &addresses)?;
    let ca = &fixture.cluster.ca.file;
    for (name, ip, port, protocol) in LISTENERS {
        let tls = match protocol {
            Protocol::Plain => None,
            Protocol::Tls => Some(acceptor(&untrusted, ca, &[b"http/1.1"])?),
            Protocol::TlsH2 => Some(acceptor(&untrusted, ca, &[b"h2", b"http/1.1"])?),
            Protocol::Kubelet => Some(acceptor(&trusted, ca, &[b"http/1.1"])?),
            Protocol::Untrusted => Some(acceptor(&untrusted, ca, &[b"http/1.1"])?),
        };
        let listener = fixture.namespace.bind(SocketAddr::new(ip.parse()?, port))?;
        backends.serve(&format!("{name}:{port}"), listener, tls)?;
    }
    let loopback = std::net::TcpListener::bind(("127.0.0.1", PORT))?;
    loopback.set_nonblocking(true)?;
    backends.serve("loopback", loopback, None)?;
    let node = fixture
        .namespace
        .bind(SocketAddr::new([10, 254, 240, 45].into(), PORT))?;
    backends.serve("the address that was checked", node, None)?;
    Ok(())
}

/// Returns an acceptor that requests an optional client certificate.
fn acceptor(pair: &Pair, ca: &Path, alpn: &[&[u8]]) -> Result<TlsAcceptor> {
    let chain = CertificateDer::pem_file_iter(&pair.certificate)?.collect::<Result<Vec<_>, _>>()?;
    let key = PrivateKeyDer::from_pem_file(&pair.key)?;
    let mut roots = RootCertStore::empty();
    for root in CertificateDer::pem_file_iter(ca)? {
        roots.add(root?)?;
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let verifier =
        WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider))
            .allow_unauthenticated()
            .build()?;
    let builder =
        ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
    let mut config = builder
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain, key)?;
    config.alpn_protocols = alpn.iter().map(|protocol| protocol.to_vec()).collect();
    Ok(TlsAcceptor::from(Arc::new(config)))
}

/// Creates the objects of `objects.yaml` with their statuses.
async fn objects(fixture: &Fixture) -> Result<Objects> {
    let objects = Objects::new(&fixture.cluster.client, "table").await?;
    fixture
        .cluster
        .kubectl(&["apply", "-f", "tests/e2e/differential/objects.yaml"])?;
    let text = include_str!("objects.yaml");
    for object in text.split("\n---\n") {
        let object: Value = serde_saphyr::from_str(object)?;
        let Some(status) = object.get("status") else {
            continue;
        };
        let name = object["metadata"]["name"]
            .as_str()
            .context("every object has a name")?;
        let mut status = status.clone();
        if let Some(ip) = status["podIPs"][0]["ip"].as_str().map(str::to_owned) {
            status["podIP"] = ip.into();
        }
        let patched = match object["kind"].as_str() {
            Some("Pod") => {
                patch(
                    Api::<Pod>::namespaced(objects.client.clone(), "table"),
                    name,
                    &status,
                )
                .await
            }
            _ => patch(Api::<Node>::all(objects.client.clone()), name, &status).await,
        };
        patched.with_context(|| format!("the status of {name}"))?;
    }
    Ok(objects)
}

async fn patch<K>(api: Api<K>, name: &str, status: &Value) -> Result<()>
where
    K: Resource<DynamicType = ()> + Clone + serde::de::DeserializeOwned + std::fmt::Debug,
{
    let patch = serde_json::json!({ "status": status });
    api.patch_status(name, &PatchParams::default(), &Patch::Merge(patch))
        .await?;
    Ok(())
}
