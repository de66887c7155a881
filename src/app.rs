//! Wires everything: a [`Config`] becomes [`Bound`] once all that can be wrong with it has been
//! tried, and runs until it is drained.

mod sockets;
mod worker;

use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result};
use arc_swap::ArcSwapOption;
use http::HeaderValue;
use prometheus_client::registry::Registry;
use secrecy::ExposeSecret;
use tokio::runtime::Handle;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use crate::admin::Admin;
use crate::authenticate::{
    Authenticator, RequestHeaderAuthenticator, TokenJudge, TokenReviewAuthenticator, Tokens,
};
use crate::authorize::{AccessJudge, Authorizer, PolicySource, Reviews};
use crate::balance::LoadBalancer;
use crate::cluster::{Cluster, Kind, Writer};
use crate::config::{Config, SourceKind};
use crate::connection::ClientShares;
use crate::drain::Drain;
use crate::file_watch::FileWatch;
use crate::forward::{Dialer, OwnAddresses};
use crate::listen::Limits;
use crate::metrics::Metrics;
use crate::model::address::AddressPolicy;
use crate::model::error_chain;
use crate::proxy::{Stages, TunnelPolicy};
use crate::ready::{BlockReady, Ready};
use crate::resolve::{Lookups, Resolver};
use crate::review::{Admission, ApiHealth, ReviewApi, Reviewer};
use crate::rewrite::Budget;
use crate::supervise::Supervisor;
use crate::telemetry::{AccessLog, OPERATOR_TARGET};
use crate::tls::{ClientTls, ServerTls, sha256_hex};
use crate::trust::{DynamicClientCas, Trust};
use crate::watch::kubernetes::{self, AuthenticationConfigMap, Connections, KubernetesWatch};
use crate::watch::manifests::Manifests;
use crate::watch::{self, Feed};
use worker::{Port, Shared};

/// How often the bastion's own token is read again: it rotates within the hour.
const TOKEN_INTERVAL: Duration = Duration::from_mins(1);
/// Interval between removals of ejected endpoints that are gone. A request pays for each endpoint
/// of its service while any is remembered, so this adds little to the minute that they are
/// remembered at most.
const BALANCE_SWEEP: Duration = Duration::from_secs(5);

/// Interval between removals of expired reviews from the caches: a scan of all entries, which holds
/// one shard's lock at a time for less than a millisecond.
const PURGE_INTERVAL: Duration = Duration::from_secs(30);

/// Where a bastion listens, with the ports that port 0 became.
#[derive(Clone, Copy, Debug)]
pub struct Addresses {
    pub secure: SocketAddr,
    pub insecure: Option<SocketAddr>,
    pub admin: SocketAddr,
}

/// A bastion with its ports bound and its TLS loaded, ready to run.
#[expect(
    missing_debug_implementations,
    reason = "it holds credentials of the Kubernetes API"
)]
pub struct Bound {
    config: Config,
    pub addresses: Addresses,
    sockets: Sockets,
    files: Files,
    source: Source,
}

struct Sockets {
    secure: TcpListener,
    insecure: Option<TcpListener>,
    admin: TcpListener,
}

/// The contents of the files that a configuration names, without those of the source.
struct Files {
    server_tls: Arc<ServerTls>,
    client_tls: ClientTls,
    trust: Trust,
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
        sockets::raise_open_files();
        let files = Files::load(&config)?;
        let source = Source::load(&config, &files.trust).await?;
        let secure = bind(config.serving.secure_listen_address, "secureListenAddress")?;
        let insecure = config.serving.insecure_listen_address;
        let insecure = insecure
            .map(|address| bind(address, "insecureListenAddress"))
            .transpose()?;
        let admin = bind(config.admin.listen_address, "admin.listenAddress")?;
        let addresses = Addresses {
            secure: secure.local_addr()?,
            insecure: insecure.as_ref().map(TcpListener::local_addr).transpose()?,
            admin: admin.local_addr()?,
        };
        Ok(Self {
            config,
            addresses,
            sockets: Sockets {
                secure,
                insecure,
                admin,
            },
            files,
            source,
        })
    }

    /// Serves until the drain is over: what runs when it begins is finished, or cut at the
    /// deadline.
    ///
    /// # Errors
    /// A worker, or a background task without which the process cannot go on, failed: restart the
    /// process.
    pub async fn run(self, drain: Drain) -> Result<()> {
        let Self {
            config,
            addresses,
            sockets,
            files,
            source,
        } = self;
        let mut registry = Registry::default();
        let metrics = Metrics::new(&mut registry);
        let ready = Ready::default();
        let mut supervisor = Supervisor::new(ready.clone(), metrics.clone(), drain.clone());
        let mut setup = Setup {
            config: &config,
            files: &files,
            ready: &ready,
            metrics: &metrics,
            supervisor: &mut supervisor,
        };
        let kubelet_token = Arc::new(ArcSwapOption::empty());
        let stages = setup.stages(source, &kubelet_token)?;
        setup.follow_files();
        let shared = setup.shared(stages, kubelet_token, addresses, &drain)?;
        supervisor.fatal(
            "drain",
            enforce_drain_deadline(drain.clone(), ready.clone(), config.drain.timeout),
        );
        let admin = tokio::net::TcpListener::from_std(sockets.admin)?;
        let admin = Arc::new(Admin::new(admin, ready, registry));
        supervisor.restart("admin", move || Arc::clone(&admin).serve());

        let mut ports = vec![Port {
            socket: sockets.secure,
            tls: Some(files.server_tls),
        }];
        ports.extend(sockets.insecure.map(|socket| Port { socket, tls: None }));
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
        supervise(workers, supervisor, &drain).await
    }
}

impl Files {
    fn load(config: &Config) -> Result<Self> {
        let trust = Trust::default();
        if let Some(path) = &config.serving.client_ca_file {
            let pem = std::fs::read(path)
                .with_context(|| format!("cannot read the client CA file {path:?}"))?;
            trust
                .client_cas
                .replace(&pem)
                .with_context(|| format!("the client CA file {path:?} cannot be used"))?;
        }
        let server_tls = Arc::new(ServerTls::new(&config.serving, trust.handshake_cas())?);
        let client_tls = ClientTls::new(&config.targets)?;
        Ok(Self {
            server_tls,
            client_tls,
            trust,
        })
    }
}

impl Source {
    async fn load(config: &Config, trust: &Trust) -> Result<Self> {
        Ok(match config.source.kind {
            SourceKind::Kubernetes => Self::Kubernetes(Box::new(
                kubernetes::connect(&config.source.kubernetes).await?,
            )),
            SourceKind::Manifests => {
                let manifests = config.source.manifests.clone();
                let directory = manifests
                    .directory
                    .context("source.manifests.directory is not set")?;
                Self::Manifests(Box::new(Manifests::load(
                    directory,
                    manifests.token_auth_file,
                    trust.clone(),
                )?))
            }
        })
    }
}

/// Loads everything that the configuration names as a start would: certificates, kubeconfig,
/// manifests. Binds no port and dials nothing.
///
/// # Errors
/// The first file that is no good, with what would be right.
pub async fn load_all(config: &Config) -> Result<()> {
    let files = Files::load(config)?;
    if let Source::Kubernetes(api) = Source::load(config, &files.trust).await? {
        // Plugins may ask somebody: theirs are left for the start.
        if api.auth_info.exec.is_none() && api.auth_info.auth_provider.is_none() {
            kubernetes::review_client(&api, Connections::Pooled)?;
        }
    }
    Ok(())
}

/// Builds what runs, and registers the background tasks.
struct Setup<'a> {
    config: &'a Config,
    files: &'a Files,
    ready: &'a Ready,
    metrics: &'a Metrics,
    supervisor: &'a mut Supervisor,
}

impl Setup<'_> {
    /// Builds the stages of a request that all workers share, and starts the source of facts.
    fn stages(
        &mut self,
        source: Source,
        kubelet_token: &Arc<ArcSwapOption<HeaderValue>>,
    ) -> Result<Arc<Stages>> {
        let config = self.config;
        let addresses_allowed = AddressPolicy {
            allow_loopback: config.targets.allow_loopback,
        };
        let (cluster, writer) = Cluster::new(addresses_allowed, config.targets.pod_less_endpoints);
        let (tokens, authorizer) = match source {
            Source::Kubernetes(api) => self.kubernetes(&api, writer, kubelet_token)?,
            Source::Manifests(manifests) => self.manifests(*manifests, writer),
        };
        let trust = &self.files.trust;
        Ok(Arc::new(Stages {
            authenticator: Authenticator {
                tokens,
                client_cas: trust.client_cas.clone(),
                front_proxy: RequestHeaderAuthenticator(trust.front_proxy.clone()),
                anonymous: config.authentication.anonymous,
            },
            authorizer: Authorizer {
                authorizer,
                accept_bare_names: config.authorization.accept_bare_names,
            },
            resolver: Resolver {
                cluster,
                addresses: addresses_allowed,
                preferred: config.targets.kubelet_preferred_address_types.clone(),
                lookups: Lookups::new(config.targets.lookup_timeout),
            },
            ready: self.ready.clone(),
            metrics: self.metrics.clone(),
            cluster_domain: config.targets.cluster_domain.as_str().into(),
            rewriting: Budget::new(config.rewriting.max_memory, self.metrics.pages.clone()),
            tunnels: TunnelPolicy::new(
                config
                    .authentication
                    .token_review
                    .cache_ttl
                    .min(config.authorization.allowed_cache_ttl),
                config.reviews.stale_on_error,
                config.serving.tunnel_max_age,
            ),
        }))
    }

    fn kubernetes(
        &mut self,
        api: &kube::Config,
        writer: Writer,
        kubelet_token: &Arc<ArcSwapOption<HeaderValue>>,
    ) -> Result<(Tokens, PolicySource)> {
        let Self {
            config,
            files,
            ready,
            metrics,
            ..
        } = *self;
        tracing::info!(api = %api.cluster_url, "the facts come from a Kubernetes API");
        let watch = KubernetesWatch::new(api, ready, metrics)?;
        let feed = self.index(writer, KubernetesWatch::holds(ready));
        watch.start(&feed, self.supervisor);
        let trusted = AuthenticationConfigMap {
            client_cas: config
                .serving
                .client_ca_file
                .is_none()
                .then(|| files.trust.client_cas.clone()),
            front_proxy: files.trust.front_proxy.clone(),
        };
        self.supervisor
            .restart("watch-authentication", trusted.follow(api, ready, metrics)?);
        match (&api.auth_info.token_file, &api.auth_info.token) {
            (Some(file), _) => {
                let (file, token) = (std::path::PathBuf::from(file), Arc::clone(kubelet_token));
                self.supervisor.restart("own-token", move || {
                    reload_own_token(file.clone(), Arc::clone(&token))
                });
            }
            (None, Some(token)) => kubelet_token.store(bearer(token.expose_secret()).map(Arc::new)),
            (None, None) => {}
        }
        let (tokens, reviews) = self.reviews(api)?;
        let caches = (Arc::clone(&tokens), Arc::clone(&reviews));
        self.supervisor
            .restart("purge-caches", move || purge_caches(caches.clone()));
        Ok((Tokens::Review(tokens), PolicySource::Review(reviews)))
    }

    fn reviews(&self, api: &kube::Config) -> Result<(Arc<TokenReviewAuthenticator>, Arc<Reviews>)> {
        let Self {
            config,
            ready,
            metrics,
            ..
        } = self;
        let api = ReviewApi {
            pooled: kubernetes::review_client(api, Connections::Pooled)?,
            fresh: kubernetes::review_client(api, Connections::Fresh)?,
            control: Handle::current(),
            health: ApiHealth::new(Ready::clone(ready), Metrics::clone(metrics)),
        };
        let settings = &config.reviews;
        let admission = Admission::new(settings, metrics.token_reviews.clone());
        let reviewer = Reviewer::new(
            api.clone(),
            admission,
            config.authentication.token_review.timeout,
        );
        let judge = TokenJudge(config.authentication.token_review.clone());
        let (capacity, stale, counters) = (
            judge.0.cache_size,
            settings.stale_on_error,
            metrics.tokens.clone(),
        );
        let tokens = TokenReviewAuthenticator::new(judge, reviewer, capacity, stale, counters);
        let admission = Admission::new(settings, metrics.access_reviews.clone());
        let reviewer = Reviewer::new(api, admission, config.authorization.timeout);
        let judge = AccessJudge(config.authorization.clone());
        let (capacity, counters) = (judge.0.cache_size, metrics.reviews.clone());
        let reviews = Reviews::new(judge, reviewer, capacity, stale, counters);
        Ok((Arc::new(tokens), Arc::new(reviews)))
    }

    fn manifests(&mut self, manifests: Manifests, writer: Writer) -> (Tokens, PolicySource) {
        let Self {
            config,
            files,
            ready,
            metrics,
            ..
        } = *self;
        tracing::info!(directory = ?config.source.manifests.directory, "the facts come from a folder of manifests");
        let Trust {
            token_file, rbac, ..
        } = files.trust.clone();
        let feed = self.index(writer, vec![Manifests::block(ready)]);
        self.supervisor.restart(
            "manifests",
            manifests.follow(feed, ready.clone(), metrics.clone()),
        );
        (Tokens::Static(token_file), PolicySource::Rbac(rbac))
    }

    /// Starts the one task that writes the index.
    fn index(&mut self, writer: Writer, holds: Vec<(Kind, BlockReady)>) -> Feed {
        let (feed, index) = watch::feed(writer, holds, self.metrics);
        // A panic here may leave a fact half-joined, and its state is gone: only a new process
        // reads everything again.
        self.supervisor.fatal("index", index.run());
        feed
    }

    /// Takes changed certificates and CAs into use while the bastion runs.
    fn follow_files(&mut self) {
        let Files {
            server_tls,
            client_tls,
            trust,
        } = self.files;
        let (tls, file) = (
            Arc::clone(server_tls),
            self.config.serving.client_ca_file.clone(),
        );
        let asked_for = trust.handshake_cas();
        let mut restarted = false;
        self.supervisor.restart("serving-tls", move || {
            let again = std::mem::replace(&mut restarted, true);
            reload_server_tls(Arc::clone(&tls), asked_for.clone(), file.clone(), again)
        });
        let kubelet = Arc::clone(&client_tls.kubelet);
        self.supervisor
            .restart("kubelet-tls", move || Arc::clone(&kubelet).watch_files());
        if self.config.serving.tls_cert_file.is_none() {
            let leaf = server_tls
                .chain()
                .first()
                .map(|leaf| sha256_hex(leaf, ":"))
                .unwrap_or_default();
            tracing::warn!(target: OPERATOR_TARGET, sha256 = leaf, "no certificate is configured: serving a self-signed one");
        }
    }

    /// Builds what the workers share.
    fn shared(
        &mut self,
        stages: Arc<Stages>,
        kubelet_token: Arc<ArcSwapOption<HeaderValue>>,
        addresses: Addresses,
        drain: &Drain,
    ) -> Result<Shared> {
        let config = self.config;
        let own = [
            Some(addresses.secure),
            addresses.insecure,
            Some(addresses.admin),
        ];
        let dialer = Dialer {
            settings: config.upstream.clone(),
            tls: self.files.client_tls.clone(),
            itself: OwnAddresses::new(own.into_iter().flatten()),
            failures: self.metrics.dial_failures.clone(),
        };
        let balance = Arc::new(LoadBalancer::new(self.metrics.ejections.clone()));
        let swept = Arc::clone(&balance);
        self.supervisor
            .restart("sweep-ejections", move || sweep_balance(Arc::clone(&swept)));
        let access = || AccessLog::start(config.log.format, std::io::stdout(), drain.clone());
        let access = config.log.access.then(access).transpose()?;
        Ok(Shared {
            stages,
            dialer: Arc::new(dialer),
            balance,
            kubelet_token,
            limits: Limits {
                handshake_timeout: config.serving.handshake_timeout,
                idle_timeout: config.serving.idle_timeout,
                connections: match config.serving.max_connections {
                    0 => None,
                    limit => Some(Arc::new(Semaphore::new(limit))),
                },
                clients: match config.serving.max_connections_per_client {
                    0 => None,
                    limit => Some(ClientShares::new(limit)),
                },
            },
            access: access.map(Arc::new),
            drain: drain.clone(),
        })
    }
}

/// Waits until all workers have ended. Where one panicked, or a background task ended that is
/// fatal, the others end too, and the process is started anew.
async fn supervise(
    workers: Vec<JoinHandle<Result<()>>>,
    mut supervisor: Supervisor,
    drain: &Drain,
) -> Result<()> {
    let mut joins = JoinSet::new();
    for worker in workers {
        joins.spawn_blocking(move || worker.join());
    }
    let mut outcome = Ok(());
    loop {
        let ended = tokio::select! {
            joined = joins.join_next() => match joined {
                Some(joined) => joined?.map_err(|_| anyhow::anyhow!("a worker panicked")).flatten(),
                None => return outcome,
            },
            error = supervisor.failed(), if outcome.is_ok() => Err(error.into()),
        };
        if ended.is_err() {
            drain.force();
            outcome = outcome.and(ended);
        }
    }
}

/// Counts down from the beginning of the drain to its deadline.
async fn enforce_drain_deadline(drain: Drain, ready: Ready, timeout: Duration) {
    drain.begun().await;
    ready.set_draining();
    tracing::info!(
        ?timeout,
        "draining: no new connections, running requests go on"
    );
    tokio::time::sleep(timeout).await;
    tracing::warn!("the drain's deadline is over: what still runs is cut");
    drain.force();
}

fn bind(address: SocketAddr, field: &str) -> Result<TcpListener> {
    sockets::listen(address).with_context(|| {
        format!("cannot listen on {address} ({field}): is another process there? give another address, or port 0")
    })
}

/// Takes changed certificates and client CAs into use. What is no good changes nothing and is
/// logged.
///
/// `again` loads them first: the run before ended somewhere between a change and its use.
async fn reload_server_tls(
    tls: Arc<ServerTls>,
    cas: [DynamicClientCas; 2],
    client_ca_file: Option<std::path::PathBuf>,
    mut again: bool,
) {
    let mut files = FileWatch::new(
        tls.files()
            .into_iter()
            .chain(client_ca_file.clone())
            .collect(),
    );
    loop {
        if !std::mem::take(&mut again) {
            tokio::select! {
                () = files.changed() => {}
                () = cas[0].changed() => {}
                () = cas[1].changed() => {}
            }
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
                let error = error_chain(&error);
                tracing::error!(
                    error,
                    "the certificate changed and cannot be used; the old one stays"
                );
            }
        }
    }
}

/// Frees the memory of cached reviews that can serve no more.
async fn purge_caches((tokens, reviews): (Arc<TokenReviewAuthenticator>, Arc<Reviews>)) {
    loop {
        tokio::time::sleep(PURGE_INTERVAL).await;
        tokens.purge();
        reviews.purge();
    }
}

async fn sweep_balance(balance: Arc<LoadBalancer>) {
    loop {
        tokio::time::sleep(BALANCE_SWEEP).await;
        balance.sweep();
    }
}

fn bearer(token: &str) -> Option<HeaderValue> {
    let mut bearer = HeaderValue::try_from(format!("Bearer {}", token.trim())).ok()?;
    bearer.set_sensitive(true);
    Some(bearer)
}

async fn reload_own_token(file: std::path::PathBuf, token: Arc<ArcSwapOption<HeaderValue>>) {
    loop {
        let read = tokio::fs::read_to_string(&file).await;
        if let Some(bearer) = read.ok().and_then(|token| bearer(&token)) {
            token.store(Some(Arc::new(bearer)));
        } else {
            tracing::warn!(
                ?file,
                "the bastion's own token cannot be read; the old one stays"
            );
        }
        tokio::time::sleep(TOKEN_INTERVAL).await;
    }
}
