//! What a kubelet is shown: `nodes/proxy` is as good as root on a node, and the bastion's own
//! credentials are no less.

use std::net::SocketAddr;

use anyhow::{Context, Result, ensure};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use tokio::net::TcpListener;

use crate::support::client::Client;
use crate::support::eventually;
use crate::support::kubelet::Kubelet;
use crate::support::pki::Ca;
use crate::world::{World, bastion};

const LAST: u8 = 39;

/// CONFORMANCE C32, C52.
pub async fn credentials_are_for_a_kubelet_that_is_verified(world: &mut World) -> Result<()> {
    let folder = world.cluster.folder.path();
    let address = world.namespace.address(LAST);
    let serving = world
        .cluster
        .ca
        .server(folder, "shown-kubelet", &[&address.to_string()])?;
    let listener =
        TcpListener::from_std(world.namespace.bind(SocketAddr::from((address, 10250)))?)?;
    let kubelet = Kubelet::start(listener, &serving, &world.cluster.ca.file)?;
    world.objects.node("shown", address).await?;

    let own = world
        .cluster
        .ca
        .client(folder, "bastion-at-kubelets", "system:masters")?;
    let certificate = CertificateDer::from_pem_file(&own.certificate)?.to_vec();
    let verify = format!(
        "--kubelet-certificate-authority={}",
        world.cluster.ca.file.display()
    );
    let stranger = format!(
        "--kubelet-certificate-authority={}",
        Ca::new(folder, "no-kubelets-ca")?.file.display()
    );
    let shown_certificate = format!("--kubelet-client-certificate={}", own.certificate.display());
    let shown_key = format!("--kubelet-client-key={}", own.key.display());
    let kubeconfig = world
        .cluster
        .bastion_kubeconfig("shown", &world.cluster.server)
        .await?;

    // The token is an opt-in: a node's own serving certificate verifies as a kubelet's.
    let token = "--kubelet-service-account-token";
    let cases: [(&str, &[&str], u16, bool, bool); 6] = [
        ("nobody is verified", &[], 200, false, false),
        ("verified", &[&verify], 200, false, false),
        (
            "verified, with the token",
            &[&verify, token],
            200,
            true,
            false,
        ),
        (
            "verified, with a certificate",
            &[&verify, token, &shown_certificate, &shown_key],
            200,
            false,
            true,
        ),
        (
            "nobody is verified, with a certificate",
            &[&shown_certificate, &shown_key],
            200,
            false,
            true,
        ),
        ("of another CA", &[&stranger, token], 503, false, false),
    ];
    for (name, flags, code, token_shown, certificate_shown) in cases {
        let bastion = bastion(&kubeconfig, &world.serving, flags)?;
        bastion.ready().await?;
        let mut client = Client::connect(
            bastion.secure,
            &world.cluster.ca.file,
            Some(&world.token),
            None,
        )
        .await?;
        eventually("the node to be known", async || {
            Ok(client.get("/api/v1/nodes/shown/proxy").await?.status == 301)
        })
        .await?;
        // Whatever the scheme says, the kubelet's port is spoken to by HTTPS.
        for target in ["shown", "shown:10250", "http:shown:10250"] {
            let answer = client
                .get(&format!("/api/v1/nodes/{target}/proxy/healthz"))
                .await?;
            ensure!(answer.status == code, "{name}, {target}: {answer:?}");
            let shown = kubelet.shown();
            if code != 200 {
                ensure!(
                    answer.body.contains("tls: ") && shown.is_empty(),
                    "{name}, {target}: {answer:?}, {shown:?}"
                );
                continue;
            }
            let shown = shown
                .first()
                .with_context(|| format!("{name}, {target}: nothing reached the kubelet"))?;
            let token = shown.authorization.as_deref();
            ensure!(
                token.is_some_and(|token| token.starts_with("Bearer ey")) == token_shown,
                "{name}: {shown:?}"
            );
            ensure!(token.is_some() == token_shown, "{name}: {shown:?}");
            ensure!(
                !token.is_some_and(|token| token.contains(&world.token)),
                "{name}: the caller's own token"
            );
            ensure!(
                shown.certificate == certificate_shown.then(|| certificate.clone()),
                "{name}: {shown:?}"
            );
        }
    }
    Ok(())
}
