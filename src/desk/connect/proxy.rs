//! Proxies between the desk and the servers.

use std::fmt;
use std::io;
use std::sync::{Arc, OnceLock};

use percent_encoding::percent_decode_str;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::{TlsConnector, client};

use super::environment::NoProxy;
use super::tls::{ServerTls, Verification};
use super::{
    CONNECT_TIMEOUT, ConnectError, HANDSHAKE_TIMEOUT, ProxyEnvironment, Tunnel, host_port,
    http_proxy, socks, tcp,
};
use crate::kubeconfig::Secret;

/// Reason why the URL of a proxy cannot be used. Does not contain the URL, which may have a
/// password.
#[derive(Debug, thiserror::Error)]
#[error(
    "proxy-url of the cluster cannot be used: {reason}; use http://HOST:PORT, https://HOST:PORT or \
     socks5://HOST:PORT"
)]
pub struct ProxyUrlError {
    reason: &'static str,
}

/// Failure of a proxy.
#[derive(Debug, thiserror::Error)]
pub enum ProxyError {
    #[error("cannot connect to the proxy: {0}")]
    Connect(io::Error),
    #[error("the TLS handshake with the proxy failed")]
    Tls(#[source] Box<ConnectError>),
    #[error("the proxy requires a user and a password; write them into its URL")]
    NoCredentials,
    #[error("the proxy rejects the user or the password in its URL")]
    Credentials,
    #[error("the proxy refused with status {status} {reason}; check that it allows this server")]
    Status { status: u16, reason: String },
    #[error("the proxy refused: {0}")]
    Refused(&'static str),
    #[error("the proxy sent no valid response; check the scheme of its URL")]
    Protocol,
    #[error("the proxy did not respond in time")]
    Timeout,
    #[error("the connection to the proxy failed: {0}")]
    Io(#[from] io::Error),
}

/// Protocol of a proxy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Scheme {
    Http,
    Https,
    Socks5,
}

/// URL of a proxy.
#[derive(Clone)]
pub(super) struct ProxyUrl {
    scheme: Scheme,
    host: String,
    port: u16,
    /// Scheme, host and port.
    name: String,
    /// User and password.
    pub(super) credentials: Option<(String, Secret)>,
}

impl fmt::Debug for ProxyUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("ProxyUrl").field(&self.name).finish()
    }
}

impl ProxyUrl {
    fn parse(url: &str) -> Result<Self, ProxyUrlError> {
        let error = |reason| ProxyUrlError { reason };
        let uri: http::Uri = url.parse().map_err(|_| error("it is not a URL"))?;
        let (scheme, default) = match uri.scheme_str() {
            Some("http") => (Scheme::Http, 80),
            Some("https") => (Scheme::Https, 443),
            Some("socks5" | "socks5h") => (Scheme::Socks5, 1080),
            _ => return Err(error("its scheme is not http, https or socks5")),
        };
        let authority = uri.authority().ok_or_else(|| error("it has no host"))?;
        let host = authority.host().trim_matches(['[', ']']).to_owned();
        if host.is_empty() {
            return Err(error("it has no host"));
        }
        let port = authority.port_u16().unwrap_or(default);
        let decode = |text: &str| percent_decode_str(text).decode_utf8_lossy().into_owned();
        let credentials = authority.as_str().rsplit_once('@').map(|(user, _)| {
            let (user, password) = user.split_once(':').unwrap_or((user, ""));
            (decode(user), Secret::from(decode(password)))
        });
        let scheme_name = uri.scheme_str().unwrap_or_default();
        Ok(Self {
            scheme,
            name: format!("{scheme_name}://{}", host_port(&host, port)),
            host,
            port,
            credentials,
        })
    }

    /// Returns the URL without its credentials.
    pub(super) fn name(&self) -> &str {
        &self.name
    }
}

/// Selects the proxy of a server, and connects through it.
#[derive(Debug)]
pub struct Proxies {
    rule: Rule,
    verification: Verification,
    /// For HTTPS proxies, created by the first use.
    tls: OnceLock<Arc<ServerTls>>,
}

#[derive(Debug)]
enum Rule {
    /// The proxy of the kubeconfig, without exceptions.
    Always(ProxyUrl),
    Environment {
        https: Option<ProxyUrl>,
        http: Option<ProxyUrl>,
        no_proxy: NoProxy,
    },
}

impl Proxies {
    /// Uses one proxy for all servers.
    ///
    /// # Errors
    /// The URL is malformed or has an unknown scheme.
    pub fn always(url: &str, verification: Verification) -> Result<Self, ProxyUrlError> {
        Ok(Self::new(Rule::Always(ProxyUrl::parse(url)?), verification))
    }

    /// Uses the proxies of the environment. As in Go, variables that are not URLs have no effect,
    /// and the scheme may be missing.
    pub fn from_environment(environment: &ProxyEnvironment, verification: Verification) -> Self {
        let parse = |name: &str, url: Option<&String>| {
            let url = url?;
            let parsed = ProxyUrl::parse(url).or_else(|error| {
                if url.contains("://") {
                    Err(error)
                } else {
                    ProxyUrl::parse(&format!("http://{url}"))
                }
            });
            if parsed.is_err() {
                crate::desk::warn(format_args!("ignoring ${name}, which is not a proxy URL"));
            }
            parsed.ok()
        };
        let rule = Rule::Environment {
            https: parse("HTTPS_PROXY", environment.https.as_ref()),
            http: parse("HTTP_PROXY", environment.http.as_ref()),
            no_proxy: NoProxy::parse(environment.no_proxy.as_deref().unwrap_or_default()),
        };
        Self::new(rule, verification)
    }

    fn new(rule: Rule, verification: Verification) -> Self {
        Self {
            rule,
            verification,
            tls: OnceLock::new(),
        }
    }

    /// Returns the proxy of a server. `None` if it is reached directly.
    pub(super) fn proxy_for(&self, is_https: bool, host: &str, port: u16) -> Option<&ProxyUrl> {
        match &self.rule {
            Rule::Always(proxy) => Some(proxy),
            Rule::Environment {
                https,
                http,
                no_proxy,
            } => {
                let proxy = if is_https { https } else { http };
                proxy.as_ref().filter(|_| !no_proxy.matches(host, port))
            }
        }
    }

    /// Opens a tunnel through a proxy.
    pub(super) async fn connect(
        &self,
        proxy: &ProxyUrl,
        host: &str,
        port: u16,
    ) -> Result<Tunnel, ProxyError> {
        let mut stream = tcp::connect(&proxy.host, proxy.port)
            .await
            .map_err(ProxyError::Connect)?;
        let tunnel = async {
            Ok(match proxy.scheme {
                Scheme::Http => {
                    http_proxy::connect(&mut stream, proxy, host, port).await?;
                    Tunnel::Tcp(stream)
                }
                Scheme::Socks5 => {
                    socks::connect(&mut stream, proxy, host, port).await?;
                    Tunnel::Tcp(stream)
                }
                Scheme::Https => {
                    let mut stream = self.handshake(stream, proxy).await?;
                    http_proxy::connect(&mut stream, proxy, host, port).await?;
                    Tunnel::Tls(Box::new(stream))
                }
            })
        };
        timeout(CONNECT_TIMEOUT, tunnel)
            .await
            .unwrap_or(Err(ProxyError::Timeout))
    }

    async fn handshake(
        &self,
        stream: TcpStream,
        proxy: &ProxyUrl,
    ) -> Result<client::TlsStream<TcpStream>, ProxyError> {
        let of_setup = |error: super::TlsSetupError| ProxyError::Tls(Box::new(error.into()));
        let tls = if let Some(tls) = self.tls.get() {
            tls
        } else {
            let tls = ServerTls::new(&self.verification, None, None).map_err(of_setup)?;
            self.tls.get_or_init(|| Arc::new(tls))
        };
        // A tunnel needs HTTP/1.1.
        let config = tls.config(false).map_err(of_setup)?;
        let name = tls.server_name(&proxy.host).map_err(of_setup)?;
        let handshake = TlsConnector::from(config).connect(name, stream);
        match timeout(HANDSHAKE_TIMEOUT, handshake).await {
            Ok(handshake) => handshake.map_err(|error| {
                ProxyError::Tls(Box::new(ConnectError::of_handshake(&proxy.name, error)))
            }),
            Err(_) => Err(ProxyError::Timeout),
        }
    }
}
