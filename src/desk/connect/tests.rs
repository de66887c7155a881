//! Connections to a TLS server on loopback, directly and through proxies.

use std::net::SocketAddr;
use std::sync::Mutex;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls::pki_types::PrivateKeyDer;
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, copy_bidirectional};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use super::*;
use crate::desk::credentials::{Credentials, Login};
use crate::kubeconfig::{ExecPlugin, InteractiveMode, Secret, UserEntry};
use crate::model::error_chain;

/// A certificate authority.
struct Ca {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
}

impl Ca {
    fn new() -> Self {
        crate::tls::install_provider();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let pem = params.self_signed(&key).unwrap().pem();
        Self {
            issuer: Issuer::new(params, key),
            pem,
        }
    }

    fn bundle(&self) -> CaBundle {
        CaBundle {
            pem: self.pem.clone().into_bytes(),
            origin: "ca.crt".into(),
        }
    }

    fn verification(&self) -> Verification {
        Verification::Authority(self.bundle())
    }

    fn issue(&self, name: &str, year: i32) -> (rcgen::Certificate, KeyPair) {
        let mut params = CertificateParams::new([name.to_owned()]).unwrap();
        params.not_after = rcgen::date_time_ymd(year, 1, 1);
        let key = KeyPair::generate().unwrap();
        (params.signed_by(&key, &self.issuer).unwrap(), key)
    }

    /// Returns the TLS of a server with ALPN, which asks for a client certificate.
    fn acceptor(&self, name: &str, year: i32) -> TlsAcceptor {
        let (certificate, key) = self.issue(name, year);
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut roots = RootCertStore::empty();
        roots.add(self.certificate()).unwrap();
        let clients =
            WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider))
                .allow_unauthenticated()
                .build()
                .unwrap();
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_client_cert_verifier(clients)
            .with_single_cert(
                vec![certificate.der().clone()],
                PrivateKeyDer::try_from(key.serialize_der()).unwrap(),
            )
            .unwrap();
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        TlsAcceptor::from(Arc::new(config))
    }

    fn certificate(&self) -> rustls::pki_types::CertificateDer<'static> {
        let parsed = crate::model::pem::certificates(self.pem.as_bytes()).unwrap();
        parsed[0].clone()
    }
}

/// Number of the last bytes of a certificate, which are of its signature.
const TAIL: usize = 16;

/// Starts a server that sends each client the end of its certificate, or zeros, and then what the
/// client sends.
async fn server(acceptor: TlsAcceptor) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                let Ok(mut stream) = acceptor.accept(stream).await else {
                    return;
                };
                let certificates = stream.get_ref().1.peer_certificates();
                let tail = certificates.map_or([0; TAIL], |chain| *chain[0].last_chunk().unwrap());
                stream.write_all(&tail).await.unwrap();
                let mut byte = [0];
                while stream.read_exact(&mut byte).await.is_ok() {
                    stream.write_all(&byte).await.unwrap();
                }
            });
        }
    });
    address
}

/// Kind of a proxy.
#[derive(Clone)]
enum Kind {
    Http,
    Https(TlsAcceptor),
    Socks,
}

/// Starts a proxy that connects to `target`, whatever the name, and requires the password `p@ss` of
/// `jane`. Returns its address and the names that it was asked for.
async fn proxy(kind: Kind, target: SocketAddr) -> (SocketAddr, Arc<Mutex<Vec<String>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let names = Arc::<Mutex<Vec<String>>>::default();
    let recorded = Arc::clone(&names);
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (kind, names) = (kind.clone(), Arc::clone(&recorded));
            tokio::spawn(async move {
                match kind {
                    Kind::Http => serve_connect(stream, target, &names).await,
                    Kind::Socks => serve_socks(stream, target, &names).await,
                    Kind::Https(acceptor) => {
                        if let Ok(stream) = acceptor.accept(stream).await {
                            assert!(stream.get_ref().1.peer_certificates().is_none());
                            serve_connect(stream, target, &names).await;
                        }
                    }
                }
            });
        }
    });
    (address, names)
}

async fn relay(mut stream: impl AsyncRead + AsyncWrite + Unpin, target: SocketAddr) {
    let mut upstream = TcpStream::connect(target).await.unwrap();
    let _ = copy_bidirectional(&mut stream, &mut upstream).await;
}

async fn serve_connect(
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
    target: SocketAddr,
    names: &Mutex<Vec<String>>,
) {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.unwrap());
    }
    let head = String::from_utf8(head).unwrap();
    let name = head.split(' ').nth(1).unwrap().to_owned();
    assert!(head.starts_with(&format!("CONNECT {name} HTTP/1.1\r\nHost: {name}\r\n")));
    let credentials = format!(
        "Proxy-Authorization: Basic {}\r\n",
        STANDARD.encode("jane:p@ss")
    );
    if !head.contains(&credentials) {
        let refusal = b"HTTP/1.1 407 Proxy Authentication Required\r\n\r\n";
        stream.write_all(refusal).await.unwrap();
        return;
    }
    if name.starts_with("forbidden") {
        let refusal = b"HTTP/1.1 403 Not \x1bhere\r\nContent-Length: 0\r\n\r\n";
        stream.write_all(refusal).await.unwrap();
        return;
    }
    names.lock().unwrap().push(name);
    let accepted = b"HTTP/1.1 103 Early\r\n\r\nHTTP/1.1 200 OK\r\nA: b\r\n\r\n";
    stream.write_all(accepted).await.unwrap();
    relay(stream, target).await;
}

async fn serve_socks(mut stream: TcpStream, target: SocketAddr, names: &Mutex<Vec<String>>) {
    assert_eq!(stream.read_u8().await.unwrap(), 5);
    let methods = read_text(&mut stream).await;
    if !methods.contains(&2) {
        stream.write_all(&[5, 0xff]).await.unwrap();
        return;
    }
    stream.write_all(&[5, 2]).await.unwrap();
    assert_eq!(stream.read_u8().await.unwrap(), 1);
    let credentials = (read_text(&mut stream).await, read_text(&mut stream).await);
    let is_jane = credentials == (b"jane".to_vec(), b"p@ss".to_vec());
    stream.write_all(&[1, u8::from(!is_jane)]).await.unwrap();
    if !is_jane {
        return;
    }
    let mut request = [0; 3];
    stream.read_exact(&mut request).await.unwrap();
    assert_eq!(request, [5, 1, 0]);
    let host = match stream.read_u8().await.unwrap() {
        1 => {
            let mut address = [0; 4];
            stream.read_exact(&mut address).await.unwrap();
            std::net::IpAddr::from(address).to_string()
        }
        3 => String::from_utf8(read_text(&mut stream).await).unwrap(),
        other => panic!("address of type {other}"),
    };
    let port = stream.read_u16().await.unwrap();
    if host == "forbidden" {
        stream
            .write_all(&[5, 2, 0, 1, 0, 0, 0, 0, 0, 0])
            .await
            .unwrap();
        return;
    }
    names.lock().unwrap().push(format!("{host}:{port}"));
    let reply = [5, 0, 0, 3, 2, b'a', b'b', 0, 1];
    stream.write_all(&reply).await.unwrap();
    relay(stream, target).await;
}

async fn read_text(stream: &mut TcpStream) -> Vec<u8> {
    let mut text = vec![0; stream.read_u8().await.unwrap().into()];
    stream.read_exact(&mut text).await.unwrap();
    text
}

fn direct() -> Arc<Proxies> {
    let environment = ProxyEnvironment::default();
    Arc::new(Proxies::from_environment(
        &environment,
        Verification::System,
    ))
}

fn tls(verification: &Verification, name: Option<&str>) -> Arc<ServerTls> {
    Arc::new(ServerTls::new(verification, name, None).unwrap())
}

/// Sends a byte and returns the end of the client certificate that the server has seen.
async fn exchange(connector: &Connector, http2: bool) -> ([u8; TAIL], Stream) {
    let mut stream = connector.open(http2).await.unwrap();
    let mut tail = [0; TAIL];
    stream.read_exact(&mut tail).await.unwrap();
    stream.write_all(b"x").await.unwrap();
    stream.flush().await.unwrap();
    assert_eq!(stream.read_u8().await.unwrap(), b'x');
    (tail, stream)
}

async fn failure(connector: &Connector) -> String {
    let error = connector.open(true).await.map(drop).unwrap_err();
    error_chain(&error)
}

#[tokio::test]
async fn connects_directly_with_alpn_and_client_certificate() {
    let ca = Ca::new();
    let address = server(ca.acceptor("localhost", 2100)).await;
    let (certificate, key) = ca.issue("jane", 2100);
    let user = UserEntry {
        client_certificate_data: Some(STANDARD.encode(certificate.pem())),
        client_key_data: Some(Secret::from(STANDARD.encode(key.serialize_pem()))),
        ..UserEntry::default()
    };
    let login = Login {
        user,
        ..Login::default()
    };
    let credentials = Arc::new(Credentials::new(login).unwrap());
    let with_certificate =
        Arc::new(ServerTls::new(&ca.verification(), None, Some(credentials)).unwrap());
    let without = tls(&ca.verification(), None);
    let insecure = tls(&Verification::None, Some("any.example"));
    let tail = *certificate.der().last_chunk().unwrap();
    for (tls, expected) in [
        (with_certificate, tail),
        (without, [0; TAIL]),
        (insecure, [0; TAIL]),
    ] {
        let connector = Connector::new("localhost", address.port(), Some(tls), direct());
        for (http2, protocol) in [(true, "h2"), (false, "http/1.1")] {
            let (seen, stream) = exchange(&connector, http2).await;
            assert_eq!(seen, expected);
            assert_eq!(stream.alpn_protocol(), Some(protocol.as_bytes()));
        }
    }
}

#[tokio::test]
async fn skips_certificates_of_the_ca_file_that_cannot_be_parsed() {
    let ca = Ca::new();
    let address = server(ca.acceptor("localhost", 2100)).await;
    let damaged = "-----BEGIN CERTIFICATE-----\nMAMCAQE=\n-----END CERTIFICATE-----\n";
    let bundle = |pem: String| CaBundle {
        pem: pem.into_bytes(),
        origin: "ca.crt".into(),
    };
    let verification = Verification::Authority(bundle(damaged.to_owned() + &ca.pem));
    let tls = tls(&verification, None);
    let connector = Connector::new("localhost", address.port(), Some(tls), direct());
    exchange(&connector, true).await;
    let error = ServerTls::new(&Verification::Authority(bundle(damaged.into())), None, None);
    let error = error.map(drop).unwrap_err().to_string();
    assert!(
        error.starts_with("the CA ca.crt has no certificate that can be used"),
        "{error}"
    );
}

#[tokio::test]
async fn presents_a_rotated_certificate_of_a_plugin() {
    let ca = Ca::new();
    let address = server(ca.acceptor("localhost", 2100)).await;
    let folder = tempfile::tempdir().unwrap();
    let output = folder.path().join("output");
    let exec = ExecPlugin {
        command: "cat".into(),
        args: vec![output.display().to_string()],
        api_version: "client.authentication.k8s.io/v1".into(),
        interactive_mode: Some(InteractiveMode::Never),
        ..ExecPlugin::default()
    };
    let user = UserEntry {
        exec: Some(exec),
        ..UserEntry::default()
    };
    let login = Login {
        user,
        ..Login::default()
    };
    let credentials = Arc::new(Credentials::new(login).unwrap());
    let tls = ServerTls::new(&ca.verification(), None, Some(Arc::clone(&credentials))).unwrap();
    let connector = Connector::new("localhost", address.port(), Some(Arc::new(tls)), direct());
    let mut generations = Vec::new();
    for token in ["a", "b"] {
        let (certificate, key) = ca.issue("jane", 2100);
        let (chain, key) = (certificate.pem(), key.serialize_pem());
        let status = serde_json::json!({
            "token": token, "clientCertificateData": chain, "clientKeyData": key
        });
        let credential = serde_json::json!({
            "kind": "ExecCredential",
            "apiVersion": "client.authentication.k8s.io/v1",
            "status": status,
        });
        std::fs::write(&output, credential.to_string()).unwrap();
        if generations.is_empty() {
            // A connection does not run the plugin, which may take longer than its timeout.
            let (seen, _) = exchange(&connector, true).await;
            assert_eq!(seen, [0; TAIL]);
        }
        let current = credentials.current().await.unwrap();
        if token == "b" {
            credentials.renew(&current).await.unwrap().unwrap();
        }
        for _ in 0..2 {
            let (seen, _) = exchange(&connector, true).await;
            assert_eq!(seen, *certificate.der().last_chunk().unwrap(), "{token}");
        }
        generations.push(credentials.generation());
    }
    assert!(generations[0] != generations[1]);
}

#[tokio::test]
async fn connects_through_proxies() {
    let ca = Ca::new();
    let target = server(ca.acceptor("api.example", 2100)).await;
    let https = Kind::Https(ca.acceptor("localhost", 2100));
    let verification = Verification::AuthorityOrSystem(ca.bundle());
    for (scheme, kind) in [
        ("http", Kind::Http),
        ("https", https),
        ("socks5", Kind::Socks),
    ] {
        let (address, names) = proxy(kind, target).await;
        let proxies = |user: &str| {
            let url = format!("{scheme}://{user}localhost:{}", address.port());
            Arc::new(Proxies::always(&url, verification.clone()).unwrap())
        };
        let connector = |host: &str, user: &str| {
            let tls = tls(&ca.verification(), Some("api.example"));
            Connector::new(host, 6443, Some(tls), proxies(user))
        };
        // The name is that of the server: the proxy looks it up.
        let jane = connector("api.example", "jane:p%40ss@");
        let (_, stream) = exchange(&jane, true).await;
        assert_eq!(stream.alpn_protocol(), Some(&b"h2"[..]), "{scheme}");
        assert_eq!(matches!(stream, Stream::Boxed(_)), scheme == "https");
        exchange(&connector("192.0.2.7", "jane:p%40ss@"), false).await;
        assert_eq!(
            *names.lock().unwrap(),
            ["api.example:6443", "192.0.2.7:6443"]
        );
        let refusal = if scheme == "socks5" {
            "the proxy refused: not allowed by its rules"
        } else {
            "the proxy refused with status 403 Not here"
        };
        for (host, user, part) in [
            ("api.example", "", "requires a user and a password"),
            (
                "api.example",
                "jane:s3cr3t@",
                "rejects the user or the password",
            ),
            ("forbidden", "jane:p%40ss@", refusal),
        ] {
            let error = failure(&connector(host, user)).await;
            let place = format!("{host}:6443 through the proxy {scheme}://localhost:");
            assert!(error.contains(part) && error.contains(&place), "{error}");
            assert!(
                !error.contains("s3cr3t") && !error.contains("jane"),
                "{error}"
            );
        }
    }
}

#[tokio::test]
async fn carries_plain_http_through_a_tunnel() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let target = listener.local_addr().unwrap();
    let (address, names) = proxy(Kind::Http, target).await;
    let url = format!("http://jane:p%40ss@{address}");
    let proxies = Arc::new(Proxies::always(&url, Verification::System).unwrap());
    let connector = Connector::new("api.example", 8080, None, proxies);
    let mut stream = connector.open(true).await.unwrap();
    assert!(matches!(stream, Stream::Plain(_)));
    stream.write_all(b"x").await.unwrap();
    let (mut accepted, _) = listener.accept().await.unwrap();
    assert_eq!(accepted.read_u8().await.unwrap(), b'x');
    assert_eq!(*names.lock().unwrap(), ["api.example:8080"]);
}

#[tokio::test]
async fn an_https_proxy_without_a_trusted_certificate_is_an_error() {
    let (ca, other) = (Ca::new(), Ca::new());
    let target = server(ca.acceptor("api.example", 2100)).await;
    let (address, names) = proxy(Kind::Https(other.acceptor("localhost", 2100)), target).await;
    let url = format!("https://jane:p%40ss@localhost:{}", address.port());
    let verification = Verification::AuthorityOrSystem(ca.bundle());
    let proxies = Arc::new(Proxies::always(&url, verification).unwrap());
    let tls = tls(&ca.verification(), None);
    let connector = Connector::new("api.example", 6443, Some(tls), proxies);
    let error = failure(&connector).await;
    assert!(
        error.contains("the TLS handshake with the proxy failed"),
        "{error}"
    );
    assert!(
        error.contains("certificate signed by unknown authority"),
        "{error}"
    );
    assert!(names.lock().unwrap().is_empty());
}

#[tokio::test]
async fn names_server_cause_and_remedy_of_failures() {
    let (ca, other) = (Ca::new(), Ca::new());
    let valid = server(ca.acceptor("localhost", 2100)).await;
    let expired = server(ca.acceptor("localhost", 2001)).await;
    let plain = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let plain_address = plain.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = plain.accept().await {
            let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await;
            let _ = stream.read_u8().await;
        }
    });
    let closed = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let closed_address = closed.local_addr().unwrap();
    drop(closed);
    let good = || tls(&ca.verification(), None);
    for (address, tls, parts) in [
        (
            valid,
            tls(&other.verification(), None),
            [
                "certificate signed by unknown authority",
                "--certificate-authority=FILE",
            ],
        ),
        (
            valid,
            tls(&ca.verification(), Some("api.example")),
            [
                "is not valid for the name api.example; it is valid for",
                "--tls-server-name=NAME",
            ],
        ),
        (expired, good(), ["has expired", "renew it"]),
        (plain_address, good(), ["does not speak TLS", "use http://"]),
        (
            closed_address,
            good(),
            ["refused the connection", "--server"],
        ),
    ] {
        let connector = Connector::new("localhost", address.port(), Some(tls), direct());
        let error = failure(&connector).await;
        for part in parts {
            assert!(error.contains(part), "{part:?} is not in {error:?}");
        }
        assert!(
            error.contains(&format!("localhost:{}", address.port())),
            "{error}"
        );
    }
    let connector = Connector::new("kube-bastion.invalid", 1, None, direct());
    let error = failure(&connector).await;
    assert!(
        error.contains("cannot find the host of the server kube-bastion.invalid:1"),
        "{error}"
    );
}

#[test]
fn selects_the_proxy_of_the_environment() {
    let environment = ProxyEnvironment {
        https: Some("secure.example:3128".into()),
        http: Some("socks5://plain.example".into()),
        no_proxy: Some("direct.example,192.0.2.0/24".into()),
    };
    let proxies = Proxies::from_environment(&environment, Verification::System);
    let name = |is_https, host| {
        proxies
            .proxy_for(is_https, host, 443)
            .map(proxy::ProxyUrl::name)
    };
    assert_eq!(
        name(true, "api.example"),
        Some("http://secure.example:3128")
    );
    assert_eq!(
        name(false, "api.example"),
        Some("socks5://plain.example:1080")
    );
    for host in [
        "direct.example",
        "192.0.2.9",
        "localhost",
        "127.0.0.1",
        "::1",
    ] {
        assert_eq!(name(true, host), None, "{host}");
    }
    // That of the kubeconfig has no exceptions.
    let always = Proxies::always("https://u:s3cr3t@[::1]", Verification::System).unwrap();
    assert_eq!(
        always
            .proxy_for(true, "localhost", 1)
            .map(proxy::ProxyUrl::name),
        Some("https://[::1]:443")
    );
    assert!(!format!("{always:?}").contains("s3cr3t"));
    let invalid = ProxyEnvironment {
        https: Some("ftp://x".into()),
        ..ProxyEnvironment::default()
    };
    let proxies = Proxies::from_environment(&invalid, Verification::System);
    assert!(proxies.proxy_for(true, "api.example", 443).is_none());
}
