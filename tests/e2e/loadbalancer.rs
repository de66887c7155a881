//! Services of `type: LoadBalancer`: status, events, conflicts, election and removal.

mod dns;
mod honored;
mod local;
mod restricted;
mod traffic;

pub use dns::dns_server_has_tcp_and_udp_on_one_address;
pub use honored::listeners_honor_ranges_affinity_and_unready_addresses;
pub use local::local_policy_follows_the_endpoints;
pub use restricted::low_port_needs_the_sysctl_or_the_capability;
pub use traffic::listeners_carry_tcp_and_udp;

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Event, Service};
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams, PostParams};
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use tokio::net::TcpListener;

use crate::fixture::{Fixture, SHOP, bastion};
use crate::support::bastion::Bastion;
use crate::support::client::get_plain;
use crate::support::cluster::HOME;
use crate::support::eventually;

const CLASS: &str = "kube-bastion.dev/bastion";
const ADDRESS: &str = "203.0.113.10";
/// Maximum time for an answer, on a busy machine.
const PATIENCE: Duration = Duration::from_secs(30);
const CONDITION: &str = "kube-bastion.dev/LoadBalancerReady";

/// Services of the namespace of the fixture.
pub struct Services(Api<Service>);

impl Services {
    pub fn new(fixture: &Fixture) -> Self {
        let client = fixture.cluster.client.clone();
        Self(Api::namespaced(client, SHOP))
    }

    /// Creates a Service of the class, or of that in `more`, with ports as `(80, "TCP")`.
    pub async fn create(&self, name: &str, ports: &[(u16, &str)], more: Value) -> Result<()> {
        let ports: Vec<_> = ports
            .iter()
            .map(|(port, protocol)| {
                let name = format!("p{port}-{}", protocol.to_lowercase());
                json!({"name": name, "port": port, "protocol": protocol, "targetPort": 8080})
            })
            .collect();
        let mut spec = json!({
            "type": "LoadBalancer", "loadBalancerClass": CLASS, "selector": {"app": "web"},
            "allocateLoadBalancerNodePorts": false, "ports": ports,
        });
        for (field, value) in more.as_object().context("an object")? {
            spec[field] = value.clone();
        }
        let service = json!({"metadata": {"name": name}, "spec": spec});
        let service = serde_json::from_value(service)?;
        self.0.create(&PostParams::default(), &service).await?;
        Ok(())
    }

    pub async fn patch(&self, name: &str, spec: Value) -> Result<()> {
        let patch = Patch::Merge(json!({"spec": spec}));
        self.0.patch(name, &PatchParams::default(), &patch).await?;
        Ok(())
    }

    pub async fn delete(&self, name: &str) -> Result<()> {
        self.0.delete(name, &DeleteParams::default()).await?;
        Ok(())
    }

    async fn status(&self, name: &str) -> Result<Value> {
        Ok(serde_json::to_value(self.0.get(name).await?.status)?)
    }

    /// Waits until the reason of the condition is this one, and returns the status.
    pub async fn reason(&self, name: &str, reason: &str) -> Result<Value> {
        let mut status = Value::Null;
        let what = format!("the condition of {name} to be {reason}");
        let waited = eventually(&what, async || {
            status = self.status(name).await?;
            Ok(condition(&status)["reason"] == reason)
        });
        waited.await.with_context(|| format!("{status:#}"))?;
        Ok(status)
    }
}

fn condition(status: &Value) -> Value {
    let conditions = status["conditions"].as_array().into_iter().flatten();
    let mut own = conditions.filter(|condition| condition["type"] == CONDITION);
    own.next().cloned().unwrap_or_default()
}

/// Starts a bastion that serves the class, with settings of the section as JSON.
pub async fn start(fixture: &Fixture, name: &str, more: Value) -> Result<Bastion> {
    let file = fixture.cluster.folder.path().join(format!("{name}.yaml"));
    std::fs::write(&file, configuration(fixture, name, &more)?)?;
    let server = &fixture.cluster.server;
    let kubeconfig = fixture.cluster.bastion_kubeconfig(name, server).await?;
    let flag = format!("--config={}", file.display());
    let started = bastion(&kubeconfig, &fixture.serving, &[&flag])?;
    started.ready().await?;
    Ok(started)
}

/// Returns the configuration of a bastion that serves the class, whose account gets the permissions.
fn configuration(fixture: &Fixture, name: &str, more: &Value) -> Result<String> {
    // The permissions of the component, beside those of deploy/ that the fixture has applied.
    let rbac = "deploy/components/load-balancer-controller/rbac.yaml";
    fixture.cluster.kubectl(&["apply", "-f", rbac])?;
    let mut section = json!({
        "class": CLASS, "addresses": [ADDRESS], "bindAddresses": ["127.0.0.1"],
        "lease": {"namespace": HOME, "identity": name},
    });
    for (field, value) in more.as_object().context("an object")? {
        section[field] = value.clone();
    }
    let config = json!({
        "apiVersion": "kube-bastion.dev/v1alpha1", "kind": "BastionConfiguration",
        "loadBalancer": section, "drain": {"timeout": "1s"},
    });
    Ok(config.to_string())
}

/// Waits until a replica holds the Lease. Returns its name.
async fn leader(fixture: &Fixture, among: &[&str]) -> Result<String> {
    let leases = Api::<Lease>::namespaced(fixture.cluster.client.clone(), HOME);
    let mut holder = String::new();
    eventually(&format!("one of {among:?} to be elected"), async || {
        let lease = leases.get_opt("kube-bastion-load-balancer").await?;
        let spec = lease.and_then(|lease| lease.spec).unwrap_or_default();
        holder = spec.holder_identity.unwrap_or_default();
        Ok(among.contains(&&*holder))
    })
    .await?;
    Ok(holder)
}

/// Waits until these events of a Service exist.
async fn events(fixture: &Fixture, service: &str, expected: &[&str]) -> Result<BTreeSet<String>> {
    let api = Api::<Event>::namespaced(fixture.cluster.client.clone(), SHOP);
    let fields = format!("involvedObject.kind=Service,involvedObject.name={service}");
    let mut reasons = BTreeSet::new();
    let what = format!("the events of {service}");
    let waited = eventually(&what, async || {
        let list = api.list(&ListParams::default().fields(&fields)).await?;
        let found = list.items.into_iter().filter_map(|event| event.reason);
        reasons = found.collect();
        Ok(expected.iter().all(|reason| reasons.contains(*reason)))
    });
    waited.await.with_context(|| format!("{reasons:?}"))?;
    Ok(reasons)
}

/// Ends a bastion, which must have written every status. It releases the Lease, so that the next one
/// need not wait for its end.
async fn stop(bastion: Bastion) -> Result<()> {
    let log = bastion.log();
    ensure!(!log.contains("cannot write the status"), "{log}");
    terminate(bastion).await
}

/// Ends a bastion.
pub async fn terminate(mut bastion: Bastion) -> Result<()> {
    bastion.signal(Signal::SIGTERM)?;
    let ended = tokio::task::spawn_blocking(move || bastion.wait()).await??;
    ensure!(ended.success(), "{ended}");
    Ok(())
}

pub async fn status_follows_the_services(fixture: &mut Fixture) -> Result<()> {
    let services = Services::new(fixture);
    let foreign = json!({"loadBalancerClass": "other.example/lb"});
    services
        .create("lb-foreign", &[(80, "TCP")], foreign)
        .await?;
    let without = json!({"loadBalancerClass": null});
    services.create("lb-cloud", &[(80, "TCP")], without).await?;
    let before = [
        services.0.get("lb-foreign").await?,
        services.0.get("lb-cloud").await?,
    ];

    let running = start(fixture, "lb-status", json!({})).await?;
    let ports = [(80, "TCP"), (80, "UDP"), (81, "SCTP"), (22, "TCP")];
    services.create("lb-web", &ports, json!({})).await?;
    let status = services.reason("lb-web", "UnsupportedProtocol").await?;
    let expected = json!([{
        "ip": ADDRESS,
        "ipMode": "Proxy",
        "ports": [
            {"port": 80, "protocol": "TCP"},
            {"port": 80, "protocol": "UDP"},
            {"port": 81, "protocol": "SCTP", "error": "kube-bastion.dev/UnsupportedProtocol"},
            {"port": 22, "protocol": "TCP", "error": "kube-bastion.dev/PortNotAllowed"},
        ],
    }]);
    ensure!(status["loadBalancer"]["ingress"] == expected, "{status:#}");
    events(
        fixture,
        "lb-web",
        &["EnsuringLoadBalancer", "SyncLoadBalancerFailed"],
    )
    .await?;
    // The ports beside SCTP are served.
    eventually("the TCP port", async || {
        let answer = get_plain(SocketAddr::from(([127, 0, 0, 1], 80)), "/name").await;
        Ok(answer.is_ok_and(|(status, _)| status == 200))
    })
    .await?;
    let valid = json!({"ports": [{"name": "p80-tcp", "port": 80, "targetPort": 8080}]});
    services.patch("lb-web", valid).await?;
    services.reason("lb-web", "Ready").await?;
    events(fixture, "lb-web", &["EnsuredLoadBalancer"]).await?;

    let ranges = json!({"loadBalancerSourceRanges": ["199.199.199.199/32"]});
    services.patch("lb-web", ranges).await?;
    eventually("listeners with source ranges", async || {
        Ok(running.log().contains(r#""clients":"199.199.199.199/32""#))
    })
    .await?;

    services
        .create("lb-late", &[(80, "TCP")], json!({}))
        .await?;
    let status = services.reason("lb-late", "PortConflict").await?;
    let message = condition(&status)["message"].to_string();
    ensure!(status["loadBalancer"]["ingress"].is_null(), "{status:#}");
    ensure!(message.contains("shop/lb-web"), "{message}");
    events(fixture, "lb-late", &["SyncLoadBalancerFailed"]).await?;

    // No finalizer delays the deletion, and the waiting Service gets the port.
    services.delete("lb-web").await?;
    ensure!(services.0.get_opt("lb-web").await?.is_none());
    services.reason("lb-late", "Ready").await?;
    let cluster_ip = json!({"type": "ClusterIP", "loadBalancerClass": null});
    services.patch("lb-late", cluster_ip).await?;
    eventually(
        "the status of the former load balancer to be removed",
        async || {
            let status = services.status("lb-late").await?;
            Ok(condition(&status).is_null() && status["loadBalancer"]["ingress"].is_null())
        },
    )
    .await?;
    events(fixture, "lb-late", &["DeletedLoadBalancer"]).await?;

    let after = [
        services.0.get("lb-foreign").await?,
        services.0.get("lb-cloud").await?,
    ];
    ensure!(before == after, "changed: {before:?} {after:?}");
    stop(running).await?;
    for name in ["lb-late", "lb-foreign", "lb-cloud"] {
        services.delete(name).await?;
    }
    Ok(())
}

pub async fn port_in_use_is_reported_until_it_is_free(fixture: &mut Fixture) -> Result<()> {
    let services = Services::new(fixture);
    let address = SocketAddr::from(([127, 0, 0, 6], 96));
    let other = TcpListener::bind(address).await?;
    let settings = json!({"bindAddresses": [address.ip()]});
    let running = start(fixture, "lb-busy", settings).await?;
    services
        .create("lb-busy", &[(96, "TCP"), (97, "TCP")], json!({}))
        .await?;
    let status = services.reason("lb-busy", "BindFailed").await?;
    let ports = &status["loadBalancer"]["ingress"][0]["ports"];
    let expected = json!([
        {"port": 96, "protocol": "TCP", "error": "kube-bastion.dev/BindFailed"},
        {"port": 97, "protocol": "TCP"},
    ]);
    ensure!(*ports == expected, "{status:#}");
    let message = condition(&status)["message"].to_string();
    ensure!(message.contains("127.0.0.6:96/TCP"), "{message}");
    let announced = events(fixture, "lb-busy", &["SyncLoadBalancerFailed"]).await?;
    // Nothing was announced before it was known which ports are open.
    ensure!(!announced.contains("EnsuredLoadBalancer"), "{announced:?}");
    drop(other);
    services.reason("lb-busy", "Ready").await?;
    ensure!(get_plain(address, "/name").await?.0 == 200);
    stop(running).await?;
    services.delete("lb-busy").await
}

pub async fn another_replica_takes_over(fixture: &mut Fixture) -> Result<()> {
    let services = Services::new(fixture);
    let mut names = vec!["lb-a", "lb-b", "lb-c"];
    let mut replicas = Vec::new();
    for (name, address) in names.iter().zip(["127.0.0.2", "127.0.0.3", "127.0.0.4"]) {
        let settings = json!({"bindAddresses": [address]});
        replicas.push(start(fixture, name, settings).await?);
    }
    services
        .create("lb-first", &[(91, "TCP")], json!({}))
        .await?;
    services.reason("lb-first", "Ready").await?;
    services
        .create("lb-second", &[(91, "TCP")], json!({}))
        .await?;
    services.reason("lb-second", "PortConflict").await?;
    for (signal, added) in [
        (Signal::SIGKILL, "lb-third"),
        (Signal::SIGTERM, "lb-fourth"),
    ] {
        let name = leader(fixture, &names).await?;
        let index = names.iter().position(|known| *known == name);
        let index = index.context("a known replica")?;
        names.remove(index);
        let mut replica = replicas.remove(index);
        replica.signal(signal)?;
        replica.wait()?;
        leader(fixture, &names).await?;
        // The new leader has the same view of the holders.
        services.create(added, &[(91, "TCP")], json!({})).await?;
        services.reason(added, "PortConflict").await?;
        ensure!(condition(&services.status("lb-first").await?)["reason"] == "Ready");
    }
    let Some(last) = replicas.pop() else {
        bail!("a replica is left");
    };
    services.delete("lb-first").await?;
    services.reason("lb-second", "Ready").await?;
    stop(last).await?;
    for name in ["lb-second", "lb-third", "lb-fourth"] {
        services.delete(name).await?;
    }
    Ok(())
}

pub async fn deleted_services_go_away(fixture: &mut Fixture) -> Result<()> {
    let services = Services::new(fixture);
    let with = start(fixture, "lb-with", json!({"finalizer": true})).await?;
    services
        .create("lb-kept", &[(92, "TCP")], json!({}))
        .await?;
    services
        .create("lb-gone", &[(93, "TCP")], json!({}))
        .await?;
    let finalizers = async |name: &str| -> Result<Vec<String>> {
        let service = services.0.get(name).await?;
        Ok(service.metadata.finalizers.unwrap_or_default())
    };
    for name in ["lb-kept", "lb-gone"] {
        services.reason(name, "Ready").await?;
        eventually("the finalizer", async || {
            Ok(finalizers(name).await? == ["service.kubernetes.io/load-balancer-cleanup"])
        })
        .await?;
    }
    // Another finalizer keeps the Service while it is changed.
    let both = json!({"metadata": {"finalizers": [
        "service.kubernetes.io/load-balancer-cleanup", "example.com/test",
    ]}});
    let parameters = PatchParams::default();
    services
        .0
        .patch("lb-gone", &parameters, &Patch::Merge(both))
        .await?;
    services.delete("lb-gone").await?;
    eventually("the finalizer to be removed", async || {
        Ok(finalizers("lb-gone").await? == ["example.com/test"])
    })
    .await?;
    let ports = json!({"ports": [{"name": "other", "port": 94, "targetPort": 8080}]});
    services.patch("lb-gone", ports).await?;
    // A later Service shows that the change has been seen.
    services
        .create("lb-later", &[(93, "TCP")], json!({}))
        .await?;
    services.reason("lb-later", "Ready").await?;
    let none = json!({"metadata": {"finalizers": null}});
    services
        .0
        .patch("lb-gone", &parameters, &Patch::Merge(none))
        .await?;
    ensure!(services.0.get_opt("lb-gone").await?.is_none());
    stop(with).await?;

    // Before an uninstall, the finalizers are removed by the setting.
    let without = start(fixture, "lb-without", json!({})).await?;
    for name in ["lb-kept", "lb-later"] {
        eventually("the finalizer to be removed", async || {
            Ok(finalizers(name).await?.is_empty())
        })
        .await?;
    }
    stop(without).await?;
    for name in ["lb-kept", "lb-later"] {
        services.delete(name).await?;
        ensure!(services.0.get_opt(name).await?.is_none(), "{name} is stuck");
    }
    Ok(())
}
