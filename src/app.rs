//! Wires everything: a [`Config`] becomes [`Bound`] once all that can be wrong with it has been tried, and runs until
//! it is drained.

mod worker;

use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use arc_swap::ArcSwapOption;
use http::HeaderValue;
use prometheus_client::registry::Registry;
use secrecy::ExposeSecret;
use tokio::runtime::Handle;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use crate::authorize::{Authorize, Authorizer, Reviews};
use crate::balance::Balance;
use crate::cluster::{Cluster, Writer};
use crate::config::{Config, SourceKind};
use crate::drain::Drain;
use crate::forward::{Dialer, Itself};
use crate::identify::{FrontProxy, Identify, TokenReviews, Tokens};
use crate::listen::Limits;
use crate::metrics::Metrics;
use crate::model::address::AddressPolicy;
use crate::model::with_causes;
use crate::proxy::Stages;
use crate::ready::Ready;
use crate::resolve::Resolve;
use crate::rewrite::Budget;
use crate::telemetry::{ALWAYS, AccessLog};
use crate::tls::{ClientCas, ClientTls, FileWatch, ServerTls, sha256_hex};
use crate::watch::kubernetes::{self, KubernetesWatch, Trusted};
use crate::watch::manifests::Manifests;
use worker::{Port, Shared};

/// How often the bastion's own token is read again: it rotates within the hour.
const TOKEN_INTERVAL: Duration = Duration::from_mins(1);

/// Where a bastion listens, with the ports that port 0 became.
#[derive(Clone, Copy, Debug)]
pub struct Addresses {
    pub secure: SocketAddr,
    pub insecure: Option<SocketAddr>,
    pub admin: SocketAddr,
}

/// A bastion with its ports bound and its TLS loaded, ready to run.
#[expect(missing_debug_implementations, reason = "it holds credentials of the Kubernetes API")]
pub struct Bound {
    config: Config,
    pub addresses: Addresses,
    secure: TcpListener,
    insecure: Option<TcpListener>,
    admin: TcpListener,
    server_tls: Arc<ServerTls>,
    client_tls: ClientTls,
    client_cas: ClientCas,
    front_proxy: FrontProxy,
    source: Source,
}

/// What the files that a configuration names hold.
struct Loaded {
    server_tls: Arc<ServerTls>,
    client_tls: ClientTls,
    client_cas: ClientCas,
    front_proxy: FrontProxy,
    source: Source,
}

/// A source that has been found usable.
enum Source {
    Kubernetes(Box<kube::Config>),
    Manifests(Box<Manifests>),
}

impl Bound {
    /// Tries everything that the configuration names: ports, certificates, kubeconfig, manifests.
    ///
    /// # Errors
    /// The first thing that is no good, with its name and what would be right.
    pub async fn new(config: Config) -> Result<Self> {
        config.validate()?;
        let Loaded { server_tls, client_tls, client_cas, front_proxy, source } = Loaded::new(&config).await?;
        let secure = bind(config.serving.secure_listen_address, "secureListenAddress")?;
        let insecure = config.serving.insecure_listen_address;
        let insecure = insecure.map(|address| bind(address, "insecureListenAddress")).transpose()?;
        let admin = bind(config.admin.listen_address, "admin.listenAddress")?;
        let addresses = Addresses {
            secure: secure.local_addr()?,
            insecure: insecure.as_ref().map(TcpListener::local_addr).transpose()?,
            admin: admin.local_addr()?,
        };
        Ok(Self { config, addresses, secure, insecure, admin, server_tls, client_tls, client_cas, front_proxy, source })
    }

    /// Serves until the drain is over: what runs when it begins is finished, or cut at the deadline.
    ///
    /// # Errors
    /// Where something that cannot fail did: the process had better be started again.
    pub async fn run(self, drain: Drain) -> Result<()> {
        let Self {
            config,
            addresses,
            secure,
            insecure,
            admin,
            server_tls,
            client_tls,
            client_cas,
            front_proxy,
            source,
        } = self;
        let mut registry = Registry::default();
        let metrics = Metrics::new(&mut registry);
        let ready = Ready::default();
        let addresses_allowed = AddressPolicy { allow_loopback: config.targets.allow_loopback };
        let (cluster, writer) = Cluster::new(addresses_allowed, config.targets.pod_less_endpoints);
        let kubelet_token = Arc::new(ArcSwapOption::empty());
        let facts = Facts {
            config: &config,
            ready: &ready,
            metrics: &metrics,
            client_cas: &client_cas,
            front_proxy: &front_proxy,
        };
        let (tokens, authorizer) = match source {
            Source::Kubernetes(api) => facts.kubernetes(&api, writer, &kubelet_token)?,
            Source::Manifests(manifests) => facts.manifests(*manifests, writer),
        };
        let asked_for = [client_cas.clone(), front_proxy.cas.clone()];
        tokio::spawn(keep_tls_current(Arc::clone(&server_tls), asked_for, config.serving.client_ca_file));
        tokio::spawn(Arc::clone(&client_tls.kubelet).follow());
        if config.serving.tls_cert_file.is_none() {
            let leaf = server_tls.chain().first().map(|leaf| sha256_hex(leaf, ":")).unwrap_or_default();
            tracing::warn!(target: ALWAYS, sha256 = leaf, "no certificate is configured: serving a self-signed one");
        }

        let stages = Arc::new(Stages {
            identify: Identify { tokens, client_cas, front_proxy, anonymous: config.authentication.anonymous },
            authorize: Authorize { authorizer, accept_bare_names: config.authorization.accept_bare_names },
            resolve: Resolve {
                cluster,
                addresses: addresses_allowed,
                preferred: config.targets.kubelet_preferred_address_types,
            },
            ready: ready.clone(),
            metrics: metrics.clone(),
            cluster_domain: config.targets.cluster_domain.into(),
            rewriting: Budget::new(config.rewriting.max_memory, metrics.pages.clone()),
        });
        let own = [Some(addresses.secure), addresses.insecure, Some(addresses.admin)];
        let dialer = Dialer {
            settings: config.upstream,
            tls: client_tls,
            itself: Itself::new(own.into_iter().flatten()),
            failures: metrics.dial_failures.clone(),
        };
        let access = || AccessLog::start(config.log.format, std::io::stdout(), drain.clone());
        let access = config.log.access.then(access).transpose()?;
        let mut ports = vec![Port { socket: secure, tls: Some(server_tls) }];
        ports.extend(insecure.map(|socket| Port { socket, tls: None }));
        let shared = Shared {
            stages,
            dialer: Arc::new(dialer),
            balance: Arc::new(Balance::default()),
            kubelet_token,
            limits: Limits {
                handshake_timeout: config.serving.handshake_timeout,
                idle_timeout: config.serving.idle_timeout,
                connections: match config.serving.max_connections {
                    0 => None,
                    limit => Some(Arc::new(Semaphore::new(limit))),
                },
            },
            access: access.map(Arc::new),
            drain: drain.clone(),
        };
        let workers = match config.serving.workers {
            // Follows the CPU quota of the cgroup.
            0 => std::thread::available_parallelism().map_or(1, usize::from),
            workers => workers,
        };
        let workers = worker::start(workers, &ports, shared)?;
        drop(ports);
        if let Some(insecure) = addresses.insecure {
            tracing::warn!(%insecure, "serving plain HTTP: tokens cross it in clear text");
        }
        tracing::info!(secure = %addresses.secure, admin = %addresses.admin, workers = workers.len(), "serving");

        let registry = Arc::new(registry);
        let admin =
            tokio::spawn(crate::admin::serve(tokio::net::TcpListener::from_std(admin)?, ready.clone(), registry));
        let ending = tokio::spawn(end(drain.clone(), ready, config.drain.timeout));
        // Whichever ends first: where one panicked, the others end with it, and the process is started anew.
        let mut joins = JoinSet::new();
        for worker in workers {
            joins.spawn_blocking(move || worker.join());
        }
        let mut outcome = Ok(());
        while let Some(joined) = joins.join_next().await {
            let ended = joined?.map_err(|_| anyhow::anyhow!("a worker panicked")).flatten();
            if ended.is_err() {
                drain.force();
                outcome = outcome.and(ended);
            }
        }
        ending.abort();
        admin.abort();
        outcome
    }
}

impl Loaded {
    async fn new(config: &Config) -> Result<Self> {
        let client_cas = ClientCas::default();
        if let Some(path) = &config.serving.client_ca_file {
            let pem = std::fs::read(path).with_context(|| format!("cannot read the client CA file {path:?}"))?;
            client_cas.replace(&pem).with_context(|| format!("the client CA file {path:?} cannot be used"))?;
        }
        let front_proxy = FrontProxy::default();
        let asked_for = [client_cas.clone(), front_proxy.cas.clone()];
        let server_tls = Arc::new(ServerTls::new(&config.serving, asked_for)?);
        let client_tls = ClientTls::new(&config.targets)?;
        let source = match config.source.kind {
            SourceKind::Kubernetes => {
                Source::Kubernetes(Box::new(kubernetes::connect(&config.source.kubernetes).await?))
            }
            SourceKind::Manifests => {
                let manifests = config.source.manifests.clone();
                let directory = manifests.directory.context("source.manifests.directory is not set")?;
                Source::Manifests(Box::new(Manifests::load(directory, manifests.token_auth_file)?))
            }
        };
        Ok(Self { server_tls, client_tls, client_cas, front_proxy, source })
    }
}

/// Loads everything that the configuration names as a start would: certificates, kubeconfig, manifests. Binds no port
/// and dials nothing.
///
/// # Errors
/// The first file that is no good, with what would be right.
pub async fn try_files(config: &Config) -> Result<()> {
    if let Source::Kubernetes(api) = Loaded::new(config).await?.source {
        // Plugins may ask somebody: theirs are left for the start.
        if api.auth_info.exec.is_none() && api.auth_info.auth_provider.is_none() {
            kubernetes::review_client(&api)?;
        }
    }
    Ok(())
}

/// Counts down from the beginning of the drain to its deadline.
async fn end(drain: Drain, ready: Ready, timeout: Duration) {
    drain.begun().await;
    ready.end();
    tracing::info!(?timeout, "draining: no new connections, running requests go on");
    tokio::time::sleep(timeout).await;
    tracing::warn!("the drain's deadline is over: what still runs is cut");
    drain.force();
}

/// What setting up a source needs.
struct Facts<'a> {
    config: &'a Config,
    ready: &'a Ready,
    metrics: &'a Metrics,
    client_cas: &'a ClientCas,
    front_proxy: &'a FrontProxy,
}

impl Facts<'_> {
    fn kubernetes(
        &self,
        api: &kube::Config,
        writer: Writer,
        kubelet_token: &Arc<ArcSwapOption<HeaderValue>>,
    ) -> Result<(Tokens, Authorizer)> {
        let Self { config, ready, metrics, client_cas, front_proxy } = self;
        tracing::info!(api = %api.cluster_url, "the facts come from a Kubernetes API");
        tokio::spawn(KubernetesWatch::new(api, ready, metrics)?.run(writer));
        let trusted = Trusted {
            client_cas: config.serving.client_ca_file.is_none().then(|| ClientCas::clone(client_cas)),
            front_proxy: FrontProxy::clone(front_proxy),
        };
        tokio::spawn(trusted.follow(api, ready, metrics)?);
        match (&api.auth_info.token_file, &api.auth_info.token) {
            (Some(file), _) => {
                tokio::spawn(keep_token_current(file.into(), Arc::clone(kubelet_token)));
            }
            (None, Some(token)) => kubelet_token.store(bearer(token.expose_secret()).map(Arc::new)),
            (None, None) => {}
        }
        let client = kubernetes::review_client(api)?;
        let tokens = TokenReviews::new(
            client.clone(),
            Handle::current(),
            config.authentication.token_review.clone(),
            metrics.tokens.clone(),
        );
        let reviews = Reviews::new(client, Handle::current(), config.authorization.clone(), metrics.reviews.clone());
        Ok((Tokens::Review(Box::new(tokens)), Authorizer::Review(Box::new(reviews))))
    }

    fn manifests(&self, manifests: Manifests, writer: Writer) -> (Tokens, Authorizer) {
        let Self { ready, metrics, config, .. } = self;
        tracing::info!(directory = ?config.source.manifests.directory, "the facts come from a folder of manifests");
        let (tokens, rules) = (Arc::clone(&manifests.tokens), Arc::clone(&manifests.rules));
        let hold = Manifests::hold(ready);
        tokio::spawn(manifests.run(writer, hold, Ready::clone(ready), Metrics::clone(metrics)));
        (Tokens::Static(tokens), Authorizer::Rules(rules))
    }
}

fn bind(address: SocketAddr, field: &str) -> Result<TcpListener> {
    let listener = TcpListener::bind(address).with_context(|| {
        format!("cannot listen on {address} ({field}): is another process there? give another address, or port 0")
    })?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

/// Takes changed certificates and client CAs into use. What is no good changes nothing and is logged.
async fn keep_tls_current(tls: Arc<ServerTls>, cas: [ClientCas; 2], client_ca_file: Option<std::path::PathBuf>) {
    let mut files = FileWatch::new(tls.files().into_iter().chain(client_ca_file.clone()).collect());
    loop {
        tokio::select! {
            () = files.changed() => {}
            () = cas[0].changed() => {}
            () = cas[1].changed() => {}
        }
        if let Some(path) = &client_ca_file {
            let read = std::fs::read(path).map_err(anyhow::Error::from);
            if let Err(error) = read.and_then(|pem| Ok(cas[0].replace(&pem)?)) {
                tracing::error!(%error, ?path, "the client CA file changed and cannot be used; the old CAs stay");
            }
        }
        match tls.reload() {
            Ok(()) => tracing::info!("certificates or client CAs changed and are in use"),
            Err(error) => {
                let error = with_causes(&error);
                tracing::error!(error, "the certificate changed and cannot be used; the old one stays");
            }
        }
    }
}

fn bearer(token: &str) -> Option<HeaderValue> {
    let mut bearer = HeaderValue::try_from(format!("Bearer {}", token.trim())).ok()?;
    bearer.set_sensitive(true);
    Some(bearer)
}

async fn keep_token_current(file: std::path::PathBuf, token: Arc<ArcSwapOption<HeaderValue>>) {
    loop {
        let read = tokio::fs::read_to_string(&file).await;
        if let Some(bearer) = read.ok().and_then(|token| bearer(&token)) {
            token.store(Some(Arc::new(bearer)));
        } else {
            tracing::warn!(?file, "the bastion's own token cannot be read; the old one stays");
        }
        tokio::time::sleep(TOKEN_INTERVAL).await;
    }
}
