//! The pass-through in front of three API servers that are killed, frozen, drained and restarted
//! in turn, while requests flow.

use std::process::Command;

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::core::v1::{ConfigMap, ServiceAccount};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::api::rbac::v1::{Role, RoleBinding};
use kube::api::{Api, Patch, PatchParams, PostParams};
use serde_json::{Value, json};

use crate::clients::go_program;
use crate::fixture::Fixture;
use crate::support::api_load::{ApiLoad, ApiReport, ApiTarget, Kind};
use crate::support::bastion::Bastion;
use crate::support::client::Client;
use crate::support::cluster::KubeconfigUser;
use crate::support::control_plane::ControlPlane;
use crate::support::eventually;
use crate::support::objects::Objects;
use crate::support::program::Program;
use crate::support::streaming_kubelet::StreamingKubelet;

const NAMESPACE: &str = "load";
const ACCOUNT: &str = "load";
/// Namespace whose objects do not change. A watch of it that ends right after its start is reported by
/// client-go, because it received no event.
const QUIET: &str = "quiet";
/// Pod that is evicted and in which commands run.
const POD: &str = "guarded";
const NODE: &str = "node-1";
/// Address of the kubelet, that of the node.
const NODE_LAST: u8 = 2;
const READS: [Kind; 2] = [Kind::Get, Kind::List];
/// Successful requests of each kind before and after a fault.
const ROUND: u64 = 100;

/// A control plane of three, a bastion in front of it, and the objects of the load.
struct Setting {
    plane: ControlPlane,
    bastion: Bastion,
    target: ApiTarget,
    _kubelet: StreamingKubelet,
}

impl Setting {
    async fn new(fixture: &Fixture) -> Result<Self> {
        let cluster = &fixture.cluster;
        let plane = ControlPlane::start(cluster, &fixture.namespace).await?;
        let kubelet = StreamingKubelet::start(cluster, &fixture.namespace, NODE, NODE_LAST).await?;
        let objects = Api::<ConfigMap>::namespaced(cluster.client.clone(), NAMESPACE);
        // The scenarios share the objects.
        if objects.get_opt("read").await?.is_none() {
            create_objects(fixture).await?;
        }
        let config = cluster.folder.path().join("apiservers.yaml");
        let text = "apiVersion: kube-bastion.dev/v1alpha1\nkind: BastionConfiguration\n\
                    apiServers: {enabled: true}\n";
        std::fs::write(&config, text)?;
        let kubeconfig = cluster
            .bastion_kubeconfig("apiservers", &cluster.server)
            .await?;
        let flag = format!("--config={}", config.display());
        let bastion = crate::fixture::bastion(&kubeconfig, &fixture.serving, &[&flag])?;
        bastion.ready().await?;
        let target = ApiTarget {
            address: bastion.secure,
            ca: cluster.ca.file.clone(),
            token: cluster.token(NAMESPACE, ACCOUNT, None).await?,
            namespace: NAMESPACE.to_owned(),
            evicted: Some(POD.to_owned()),
            executed: Some(POD.to_owned()),
        };
        Ok(Self {
            plane,
            bastion,
            target,
            _kubelet: kubelet,
        })
    }

    /// Starts informers of client-go through the bastion: of the objects of the load, and of others.
    async fn informers(&self, fixture: &Fixture) -> Result<Vec<Program>> {
        let by = KubeconfigUser::Token(&self.target.token);
        let server = format!("https://{}", self.bastion.secure);
        let kubeconfig = |name: &str, server: &str| {
            let cluster = &fixture.cluster;
            cluster.kubeconfig(name, server, &cluster.ca.file, &by)
        };
        let mut informers = Vec::new();
        for namespace in [NAMESPACE, QUIET] {
            let mut command = Command::new(go_program("informer")?);
            command
                .arg("--kubeconfig")
                .arg(kubeconfig("informer", &server)?)
                .arg("--truth")
                .arg(kubeconfig("truth", &fixture.cluster.server)?)
                .arg(format!("--namespace={namespace}"));
            let mut program = Program::start(&mut command)?;
            program.wait_for_line("synced").await?;
            informers.push(program);
        }
        Ok(informers)
    }

    /// Connects to the bastion without credentials.
    async fn anonymous(&self) -> Result<Client> {
        Client::connect(self.target.address, &self.target.ca, None, None).await
    }
}

async fn create_objects(fixture: &Fixture) -> Result<()> {
    let client = &fixture.cluster.client;
    let objects = Objects::new(client, NAMESPACE).await?;
    objects
        .create::<ConfigMap>(json!({"metadata": {"name": "read"}, "data": {"a": "b"}}))
        .await?;
    objects
        .create::<ServiceAccount>(json!({"metadata": {"name": ACCOUNT}}))
        .await?;
    let subject = json!({"kind": "ServiceAccount", "name": ACCOUNT, "namespace": NAMESPACE});
    let quiet = Objects::new(client, QUIET).await?;
    quiet
        .allow(
            ACCOUNT,
            subject.clone(),
            &["configmaps"],
            &["list", "watch"],
        )
        .await?;
    objects
        .allow(
            ACCOUNT,
            subject,
            &["configmaps", "pods/eviction", "pods/exec"],
            &["get", "list", "watch", "create", "patch"],
        )
        .await?;
    let address = fixture.namespace.address(NODE_LAST);
    objects
        .pod(POD, json!({"app": POD}), address, json!([]))
        .await?;
    // No controller of the fixture maintains budgets.
    let budgets = Api::<PodDisruptionBudget>::namespaced(client.clone(), NAMESPACE);
    let budget = json!({
        "metadata": {"name": POD},
        "spec": {"minAvailable": 1, "selector": {"matchLabels": {"app": POD}}},
    });
    let budget = serde_json::from_value(budget)?;
    budgets.create(&PostParams::default(), &budget).await?;
    let status = json!({"status": {
        "observedGeneration": 1, "disruptionsAllowed": 0,
        "currentHealthy": 1, "desiredHealthy": 1, "expectedPods": 1,
    }});
    budgets
        .patch_status(POD, &PatchParams::default(), &Patch::Merge(status))
        .await?;
    Ok(())
}

/// Ends informers, whose caches must be complete, and checks that no watch ended right after its
/// start.
async fn finish(informers: Vec<Program>) -> Result<()> {
    for mut informer in informers {
        informer.finish().await?;
        let output = informer.output();
        let short = output.iter().find(|line| line.contains("very short watch"));
        ensure!(short.is_none(), "{short:?}");
        let equal = output.iter().find(|line| line.contains("is equal"));
        println!("     informer: {}", equal.context("it was compared")?);
    }
    Ok(())
}

/// Checks that no repeatable request failed while servers ended or stopped without a shutdown.
fn ensure_few_cut(report: &ApiReport, faults: usize) -> Result<()> {
    // A response that had begun cannot be repeated: with each fault, each task may have waited for
    // the rest of one.
    let limit = ApiLoad::max_in_flight() * faults as u64;
    report.ensure_at_most_cut(&Kind::REPEATABLE, limit)
}

fn print(what: &str, report: &ApiReport) {
    print!("     {what}:\n{report}");
}

/// Each API server gets its share of the requests. Evictions that a budget refuses (429) set no
/// server aside.
pub async fn requests_spread_evenly_over_api_servers(fixture: &mut Fixture) -> Result<()> {
    /// Number of measurements, one of which must be even: the machine may stall during another.
    const MEASUREMENTS: usize = 3;
    let setting = Setting::new(fixture).await?;
    let informers = setting.informers(fixture).await?;
    let mut shares = Vec::new();
    for _ in 0..MEASUREMENTS {
        shares = measure_shares(fixture, &setting).await?;
        println!("     GET requests: {shares:?}");
        if is_even(&shares) {
            break;
        }
    }
    finish(informers).await?;
    ensure!(is_even(&shares), "{shares:?}");
    Ok(())
}

/// Returns true if all shares are within 10 % of an even one.
fn is_even(shares: &[u64]) -> bool {
    let even = shares.iter().sum::<u64>() / 3;
    shares.iter().all(|share| share.abs_diff(even) <= even / 10)
}

/// Runs a load, and returns the number of GET requests that each API server has answered.
async fn measure_shares(fixture: &Fixture, setting: &Setting) -> Result<Vec<u64>> {
    let count = || {
        setting
            .plane
            .requests(&fixture.cluster, "configmaps", "GET")
    };
    // The counters are read one after the other, which would be uneven during the load.
    let before = count().await?;
    let load = ApiLoad::start(&setting.target);
    load.progress(&Kind::REQUESTS, 20).await?;
    load.progress(&[Kind::Get], 3000).await?;
    load.progress(&[Kind::Evict], 50).await?;
    let report = load.stop().await;
    let after = count().await?;
    print("three API servers", &report);
    report.ensure_none_failed(&Kind::ALL)?;
    let shares = after
        .iter()
        .zip(&before)
        .map(|(after, before)| after - before);
    Ok(shares.collect())
}

/// A killed server loses what was in flight on it. Reads and server-side applies are sent again.
pub async fn killed_api_servers_fail_no_repeatable_request(fixture: &mut Fixture) -> Result<()> {
    let mut setting = Setting::new(fixture).await?;
    let informers = setting.informers(fixture).await?;
    let load = ApiLoad::start(&setting.target);
    for index in 0..setting.plane.servers.len() {
        load.progress(&Kind::REQUESTS, ROUND / 4).await?;
        setting.plane.kill(index)?;
        load.progress(&READS, ROUND).await?;
        load.progress(&[Kind::Apply, Kind::Evict, Kind::Exec], ROUND / 4)
            .await?;
        setting.plane.restart(&fixture.cluster, index).await?;
    }
    load.progress(&READS, ROUND).await?;
    let report = load.stop().await;
    print("each API server killed", &report);
    ensure_few_cut(&report, setting.plane.servers.len())?;
    // A watch that ends completely would hide that events may be missing (CONFORMANCE C99).
    let (cut, ended) = report.resumed_watches();
    ensure!(cut > 0 && ended == 0, "{cut} watches cut, {ended} ended");
    finish(informers).await
}

/// A frozen server keeps its connections and answers nothing. Its watches are aborted, and requests
/// go to the others.
pub async fn frozen_api_servers_fail_no_repeatable_request(fixture: &mut Fixture) -> Result<()> {
    let setting = Setting::new(fixture).await?;
    let informers = setting.informers(fixture).await?;
    let load = ApiLoad::start(&setting.target);
    for index in 0..setting.plane.servers.len() {
        load.progress(&READS, ROUND).await?;
        let cut = load.cut_watches();
        setting.plane.freeze(index)?;
        // The watches are spread evenly, so the frozen server has some.
        load.cut_beyond(cut).await?;
        load.progress(&READS, ROUND).await?;
        load.progress(&[Kind::Apply], ROUND / 4).await?;
        setting.plane.thaw(index)?;
        // Until its lease is renewed, the server is not published.
        setting.plane.published(&fixture.cluster, 3).await?;
    }
    let report = load.stop().await;
    print("each API server frozen", &report);
    ensure_few_cut(&report, setting.plane.servers.len())?;
    finish(informers).await
}

/// A server that shuts down gracefully, as in an upgrade of the control plane.
pub async fn drained_api_servers_fail_no_request(fixture: &mut Fixture) -> Result<()> {
    let mut setting = Setting::new(fixture).await?;
    let informers = setting.informers(fixture).await?;
    let load = ApiLoad::start(&setting.target);
    for index in 0..setting.plane.servers.len() {
        load.progress(&READS, ROUND).await?;
        setting.plane.drain(index).await?;
        load.progress(&READS, ROUND).await?;
        load.progress(&[Kind::Apply, Kind::Evict, Kind::Exec], ROUND / 4)
            .await?;
        setting.plane.restart(&fixture.cluster, index).await?;
    }
    let report = load.stop().await;
    print("each API server drained", &report);
    report.ensure_none_failed(&Kind::ALL)?;
    finish(informers).await
}

/// Without any API server, a request gets an answer immediately instead of a hanging connection.
/// Clients without credentials get the answer of the API server.
pub async fn answers_without_api_servers_and_credentials(fixture: &mut Fixture) -> Result<()> {
    const CLUSTER_INFO: &str = "/api/v1/namespaces/kube-public/configmaps/cluster-info";
    let mut setting = Setting::new(fixture).await?;
    let mut direct = Client::connect(
        setting.plane.servers[0].address,
        &setting.target.ca,
        None,
        None,
    )
    .await?;
    let equal = async |direct: &mut Client, status: u16| -> Result<Value> {
        let expected = direct.get(CLUSTER_INFO).await?;
        let response = setting.anonymous().await?.get(CLUSTER_INFO).await?;
        ensure!(
            response.status == status
                && (response.status, &response.body) == (expected.status, &expected.body),
            "{response:?}, the API server answers {expected:?}"
        );
        Ok(serde_json::from_str(&response.body)?)
    };
    let denied = equal(&mut direct, 403).await?;
    ensure!(
        denied["message"]
            .as_str()
            .is_some_and(|message| message.contains("system:anonymous")),
        "{denied}"
    );
    publish_cluster_info(fixture).await?;
    eventually("the role to be known", async || {
        Ok(direct.get(CLUSTER_INFO).await?.status == 200)
    })
    .await?;
    let info = eventually_equal(&equal, &mut direct).await?;
    ensure!(info["data"]["kubeconfig"] == "{}", "{info}");

    for index in 0..setting.plane.servers.len() {
        setting.plane.kill(index)?;
    }
    let mut client = setting.anonymous().await?;
    for method in [http::Method::GET, http::Method::POST] {
        let response = client
            .send(method.clone(), "/version", bytes::Bytes::new())
            .await?;
        let status: Value = serde_json::from_str(&response.body)?;
        ensure!(
            response.status == 503
                && response.headers.contains_key(http::header::RETRY_AFTER)
                && status["kind"] == "Status",
            "{method}: {response:?}"
        );
    }
    for index in 0..setting.plane.servers.len() {
        setting.plane.restart(&fixture.cluster, index).await?;
    }
    eventually("the API servers to be used again", async || {
        Ok(client.get("/version").await?.status == 200)
    })
    .await
}

/// All API servers know a new role after a moment.
async fn eventually_equal(
    equal: &impl AsyncFn(&mut Client, u16) -> Result<Value>,
    direct: &mut Client,
) -> Result<Value> {
    let mut info = Value::Null;
    eventually("the same answer of all API servers", async || {
        let result = equal(direct, 200).await;
        let is_equal = result.is_ok();
        info = result.unwrap_or_default();
        Ok(is_equal)
    })
    .await?;
    Ok(info)
}

/// Publishes `cluster-info`, as kubeadm does.
async fn publish_cluster_info(fixture: &Fixture) -> Result<()> {
    let objects = Objects {
        client: fixture.cluster.client.clone(),
        namespace: "kube-public".to_owned(),
    };
    let metadata = json!({"name": "cluster-info"});
    objects
        .create::<ConfigMap>(json!({"metadata": metadata, "data": {"kubeconfig": "{}"}}))
        .await?;
    let permission = json!({
        "apiGroups": [""], "resources": ["configmaps"], "resourceNames": ["cluster-info"],
        "verbs": ["get"],
    });
    objects
        .create::<Role>(json!({"metadata": metadata, "rules": [permission]}))
        .await?;
    let subject = json!({
        "kind": "User", "name": "system:anonymous", "apiGroup": "rbac.authorization.k8s.io",
    });
    let role = json!({
        "kind": "Role", "name": "cluster-info", "apiGroup": "rbac.authorization.k8s.io",
    });
    objects
        .create::<RoleBinding>(
            json!({"metadata": metadata, "roleRef": role, "subjects": [subject]}),
        )
        .await
}
