//! Credentials for kubelets. `nodes/proxy` is equivalent to root on a node, and so are the
//! credentials of the bastion.

use std::net::SocketAddr;

use anyhow::{Context, Result, ensure};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use tokio::net::TcpListener;

use crate::fixture::{Fixture, bastion};
use crate::support::client::Client;
use crate::support::eventually;
use crate::support::kubelet::Kubelet;
use crate::support::pki::Ca;

const LAST: u8 = 39;

/// CONFORMANCE C32, C52.
pub async fn sends_credentials_only_to_verified_kubelets(fixture: &mut Fixture) -> Result<()> {
    let folder = fixture.cluster.folder.path();
    let address = fixture.namespace.address(LAST);
    let serving = fixture
        .cluster
        .ca
        .server(folder, "received-kubelet", &[&address.to_string()])?;
    let listener =
        TcpListener::from_std(fixture.namespace.bind(SocketAddr::from((address, 10250)))?)?;
    let kubelet = Kubelet::start(listener, &serving, &fixture.cluster.ca.file)?;
    fixture.objects.node("kubelet-node", address).await?;

    let own = fixture
        .cluster
        .ca
        .client(folder, "bastion-at-kubelets", "system:masters")?;
    let certificate = CertificateDer::from_pem_file(&own.certificate)?.to_vec();
    let verify = format!(
        "--kubelet-certificate-authority={}",
        fixture.cluster.ca.file.display()
    );
    let wrong_ca = format!(
        "--kubelet-certificate-authority={}",
        Ca::new(folder, "no-kubelets-ca")?.file.display()
    );
    let certificate_flag = format!("--kubelet-client-certificate={}", own.certificate.display());
    let key_flag = format!("--kubelet-client-key={}", own.key.display());
    let kubeconfig = fixture
        .cluster
        .bastion_kubeconfig("kubelet-node", &fixture.cluster.server)
        .await?;

    // The token is an opt-in, because the serving certificate of any node verifies as that of a
    // kubelet.
    let token = "--kubelet-service-account-token";
    let cases: [(&str, &[&str], u16, bool, bool); 6] = [
        ("not verified", &[], 200, false, false),
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
            &[&verify, token, &certificate_flag, &key_flag],
            200,
            false,
            true,
        ),
        (
            "not verified, with a certificate",
            &[&certificate_flag, &key_flag],
            200,
            false,
            true,
        ),
        ("of another CA", &[&wrong_ca, token], 503, false, false),
    ];
    for (name, flags, code, sends_token, sends_certificate) in cases {
        let bastion = bastion(&kubeconfig, &fixture.serving, flags)?;
        bastion.ready().await?;
        let mut client = Client::connect(
            bastion.secure,
            &fixture.cluster.ca.file,
            Some(&fixture.token),
            None,
        )
        .await?;
        eventually("the node to be known", async || {
            Ok(client.get("/api/v1/nodes/kubelet-node/proxy").await?.status == 301)
        })
        .await?;
        // The port of the kubelet uses HTTPS with any scheme in the id.
        for target in [
            "kubelet-node",
            "kubelet-node:10250",
            "http:kubelet-node:10250",
        ] {
            let response = client
                .get(&format!("/api/v1/nodes/{target}/proxy/healthz"))
                .await?;
            ensure!(response.status == code, "{name}, {target}: {response:?}");
            let received = kubelet.take_credentials();
            if code != 200 {
                ensure!(
                    response.body.contains("tls: ") && received.is_empty(),
                    "{name}, {target}: {response:?}, {received:?}"
                );
                continue;
            }
            let received = received
                .first()
                .with_context(|| format!("{name}, {target}: no request reached the kubelet"))?;
            let token = received.authorization.as_deref();
            ensure!(
                token.is_some_and(|token| token.starts_with("Bearer ey")) == sends_token,
                "{name}: {received:?}"
            );
            ensure!(token.is_some() == sends_token, "{name}: {received:?}");
            ensure!(
                !token.is_some_and(|token| token.contains(&fixture.token)),
                "{name}: the caller's own token"
            );
            ensure!(
                received.certificate == sends_certificate.then(|| certificate.clone()),
                "{name}: {received:?}"
            );
        }
    }
    Ok(())
}
