//! kubectl with `kube-bastion proxy` as its server, in front of a bastion and of the API server.

use std::process::Command;

use anyhow::{Result, ensure};

use super::side_by_side::start;
use super::{kubectl, reach_containers};
use crate::clients::go_program;
use crate::fixture::{Fixture, SHOP};
use crate::pass_through::{administrator, kubeconfig_for, objects, passing};
use crate::support::cluster::KubeconfigUser;
use crate::support::program::Program;
use crate::support::streaming_kubelet::StreamingKubelet;

/// All commands of kubectl: through the proxy, the bastion and the API server to the kubelet.
pub async fn kubectl_works_through_the_proxy_and_the_bastion(fixture: &mut Fixture) -> Result<()> {
    let bastion = passing(fixture, &[]).await?;
    let token = administrator(fixture, "desk-administrator").await?;
    let user = KubeconfigUser::Token(&token);
    let upstream = kubeconfig_for(fixture, &bastion, "desk-upstream", &user)?;
    let flags = [
        format!("--kubeconfig={}", upstream.display()),
        "--port=0".to_owned(),
        // Rejected by default are `exec` and `attach`.
        "--reject-paths=".to_owned(),
    ];
    let ours = Command::new(env!("CARGO_BIN_EXE_kube-bastion"));
    let (_proxy, address) = start(ours, &flags).await?;
    let cluster = &fixture.cluster;
    // A server without TLS gets no credentials of kubectl.
    let server = format!("http://{address}");
    let kubeconfig = cluster.kubeconfig("through-proxy", &server, &cluster.ca.file, &user)?;
    let truth = cluster.kubeconfig("proxy-truth", &cluster.server, &cluster.ca.file, &user)?;
    let mut informer = Command::new(go_program("informer")?);
    informer
        .arg("--kubeconfig")
        .arg(&kubeconfig)
        .arg("--truth")
        .arg(&truth)
        .arg(format!("--namespace={SHOP}"));
    let mut informer = Program::start(&mut informer)?;
    informer.wait_for_line("synced").await?;
    objects(fixture, &kubeconfig)?;
    for arguments in [
        ["create", "configmap", "informed-1"],
        ["create", "configmap", "informed-2"],
        ["label", "configmap/informed-1", "seen=yes"],
        ["delete", "configmap", "informed-2"],
    ] {
        let output = kubectl(fixture, &kubeconfig)
            .args(arguments)
            .arg(format!("--namespace={SHOP}"))
            .output()?;
        ensure!(output.status.success(), "{arguments:?}: {output:?}");
    }
    // Its cache equals what the API server has.
    informer.finish().await?;
    let kubelet =
        StreamingKubelet::start(&fixture.cluster, &fixture.namespace, "node-1", 2).await?;
    reach_containers(fixture, &kubelet, &|| kubectl(fixture, &kubeconfig)).await?;
    let by_spdy = || {
        let mut command = kubectl(fixture, &kubeconfig);
        command
            .env("KUBECTL_REMOTE_COMMAND_WEBSOCKETS", "false")
            .env("KUBECTL_PORT_FORWARD_WEBSOCKETS", "false");
        command
    };
    reach_containers(fixture, &kubelet, &by_spdy).await
}
