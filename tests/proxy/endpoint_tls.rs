//! TLS versions and cipher suites of endpoints, and errors of handshakes.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::support::pki::Pair;
use crate::support::program::Program;
use crate::support::test_bed::TestBed;
use crate::support::tls_endpoint::{TlsEndpoint, pod_path};

const SUPPORTED: &str = "the endpoint offers no TLS version or cipher suite that kube-bastion \
                         supports (TLS 1.2 with ECDHE and AES-GCM or ChaCha20-Poly1305, TLS 1.3)";

#[tokio::test]
async fn names_cause_of_failed_handshake() -> Result<()> {
    let bed = TestBed::new().await?;
    let endpoint = TlsEndpoint::start(&bed.ca, bed.folder.path(), &["127.0.0.1"]).await?;
    let path = pod_path(endpoint.address()?.port());
    for (description, expected) in [
        (
            40,
            &*format!("{SUPPORTED}, or requires a client certificate: "),
        ),
        (70, &*format!("{SUPPORTED}: ")),
        (71, &*format!("{SUPPORTED}: ")),
        (
            116,
            "the endpoint requires a client certificate that it trusts: ",
        ),
        (120, "the endpoint does not offer HTTP/1.1: "),
    ] {
        let (response, ()) = tokio::try_join!(bed.get(&path), endpoint.alert(description))?;
        ensure!(
            response.status == 503 && response.body.contains(&format!("tls: {expected}")),
            "alert {description}: {response:?}"
        );
    }
    let serve = async {
        let mut stream = endpoint.accept_tcp().await?;
        stream
            .write_all(b"HTTP/1.0 400 Bad Request\r\n\r\nClient sent an HTTP request")
            .await?;
        // Kept open: a reset could overtake the response.
        let _ = stream.read(&mut [0; 4096]).await?;
        anyhow::Ok(stream)
    };
    let (response, _stream) = tokio::try_join!(bed.get(&path), serve)?;
    ensure!(
        response
            .body
            .contains("the endpoint does not speak TLS on this port; use http: in the id"),
        "{response:?}"
    );
    Ok(())
}

#[tokio::test]
async fn minimum_version_applies_to_endpoints() -> Result<()> {
    let bed = TestBed::upstream("tlsMinVersion: VersionTLS13").await?;
    let start =
        async |version| TlsEndpoint::start_with_version(&bed.ca, bed.folder.path(), version).await;
    let endpoint = start(&rustls::version::TLS12).await?;
    let path = pod_path(endpoint.address()?.port());
    let (response, accepted) = tokio::join!(bed.get(&path), endpoint.accept());
    let response = response?;
    ensure!(
        accepted.is_err()
            && response.status == 503
            && response.body.contains(
                "tls: the endpoint does not offer TLS 1.3, which upstream.tlsMinVersion requires"
            ),
        "{response:?}"
    );
    let endpoint = start(&rustls::version::TLS13).await?;
    let path = pod_path(endpoint.address()?.port());
    let (_, accepted) = tokio::join!(bed.get(&path), async {
        endpoint.accept_http2().await.map(drop)
    });
    accepted
}

/// Starts `openssl s_server`, which serves a page about the handshake. Returns its port.
async fn s_server(folder: &Path, pair: &Pair, options: &str) -> Result<(Program, u16)> {
    let mut command = Command::new("openssl");
    command
        .args(["s_server", "-accept", "127.0.0.1:0", "-www", "-cert"])
        .arg(&pair.certificate)
        .arg("-key")
        .arg(&pair.key)
        .args(options.split_whitespace())
        .current_dir(folder);
    let mut program = Program::start(&mut command)?;
    let line = program.wait_for_line("ACCEPT 127.0.0.1:").await?;
    let port = line.trim().rsplit(':').next().context("a port")?.parse()?;
    Ok((program, port))
}

/// Runs `openssl` with arguments that are separated by spaces.
fn openssl(folder: &Path, arguments: &str) -> Result<()> {
    let output = Command::new("openssl")
        .args(arguments.split(' '))
        .current_dir(folder)
        .output()
        .context("cannot run openssl: install it")?;
    let error = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "openssl {arguments}: {error}");
    Ok(())
}

#[tokio::test]
async fn supports_tls_of_other_implementations_as_documented() -> Result<()> {
    let bed = TestBed::new().await?;
    let folder = bed.folder.path();
    for (name, key) in [
        ("rsa", "rsa:2048"),
        ("short", "rsa:1024"),
        ("p521", "ec -pkeyopt ec_paramgen_curve:secp521r1"),
        ("ed448", "ed448"),
    ] {
        let request = format!(
            "req -x509 -newkey {key} -nodes -days 1 -subj /CN=x -keyout {name}.key -out {name}.crt"
        );
        openssl(folder, &request)?;
    }
    for (key, options, supported) in [
        ("rsa", "", true),
        ("rsa", "-tls1_3 -ciphersuites TLS_AES_128_GCM_SHA256", true),
        ("rsa", "-tls1_2 -cipher ECDHE-RSA-CHACHA20-POLY1305", true),
        ("rsa", "-tls1_2 -cipher ECDHE-RSA-AES256-GCM-SHA384", true),
        ("short", "-cipher ALL:@SECLEVEL=0", true),
        ("p521", "", true),
        ("ed448", "", true),
        (
            "rsa",
            "-tls1_2 -sigalgs RSA+SHA1 -cipher ALL:@SECLEVEL=0",
            true,
        ),
        ("rsa", "-tls1_2 -cipher ECDHE-RSA-AES128-SHA", false),
        ("rsa", "-tls1_2 -cipher AES128-GCM-SHA256", false),
        ("rsa", "-tls1_2 -cipher DHE-RSA-AES128-GCM-SHA256", false),
        ("rsa", "-tls1_1 -cipher ALL:@SECLEVEL=0", false),
    ] {
        let pair = Pair {
            certificate: folder.join(format!("{key}.crt")),
            key: folder.join(format!("{key}.key")),
        };
        let (_server, port) = s_server(folder, &pair, options).await?;
        let response = bed.get(&pod_path(port)).await?;
        let expected = if supported {
            response.status == 200
        } else {
            response.status == 503 && response.body.contains(&format!("tls: {SUPPORTED}"))
        };
        ensure!(expected, "{key}, {options}: {response:?}");
    }
    Ok(())
}
