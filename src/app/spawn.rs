//! Builds the pipeline stages and starts the background tasks.

use std::sync::Arc;

use anyhow::Result;
use arc_swap::ArcSwapOption;
use http::HeaderValue;
use secrecy::ExposeSecret;
use tokio::runtime::Handle;

use super::Addresses;
use super::load::{Files, Source, api_certificate};
use super::tasks::{bearer, purge_caches, reload_own_token, reload_server_tls, sweep_balance};
use super::worker::Shared;
use crate::authenticate::{
    Authenticator, RequestHeaderAuthenticator, TokenReviewAuthenticator, TokenReviewHandler, Tokens,
};
use crate::authorize::{AccessReviewHandler, Authorizer, PolicySource, Reviews};
use crate::balance::LoadBalancer;
use crate::client_connection::{ConnectionQuota, Shares};
use crate::cluster::{Cluster, Kind, Writer};
use crate::config::Config;
use crate::drain::Drain;
use crate::forward::{Dialer, Http1Endpoints, OwnAddresses};
use crate::http::HeadMemory;
use crate::http::h1::Timeouts;
use crate::listen::Limits;
use crate::metrics::Metrics;
use crate::model::address::AddressPolicy;
use crate::proxy::{Stages, TunnelPolicy, Tunnels};
use crate::ready::{BlockReady, Ready};
use crate::resolve::{Lookups, Resolver};
use crate::review::{Admission, ApiHealth, ReviewApi, Reviewer};
use crate::rewrite::Budget;
use crate::supervise::Supervisor;
use crate::telemetry::{AccessLog, OPERATOR_TARGET};
use crate::tls::{ApiServerTls, Fingerprint, KubeletTls, sha256_hex};
use crate::trust::Trust;
use crate::watch::kubernetes::{
    self, AuthenticationConfigMap, Connections, FailureLog, KubernetesWatch,
};
use crate::watch::manifests::Manifests;
use crate::watch::{self, Feed};

/// Inputs of the wiring, and the supervisor that receives the background tasks.
pub(super) struct Setup<'a> {
    pub config: &'a Config,
    pub files: &'a Files,
    pub ready: &'a Ready,
    pub metrics: &'a Metrics,
    pub supervisor: &'a mut Supervisor,
}

impl Setup<'_> {
    /// Builds the pipeline stages shared by all workers, and starts the cluster source.
    pub fn stages(
        &mut self,
        source: Source,
        api_server_tls: Option<Arc<ApiServerTls>>,
        own_authorization: &Arc<ArcSwapOption<HeaderValue>>,
    ) -> Result<Arc<Stages>> {
        let config = self.config;
        let addresses_allowed = AddressPolicy {
            allow_loopback: config.targets.allow_loopback,
        };
        let local_node = config.load_balancer.node_name.as_deref().map(Into::into);
        let (cluster, writer) = Cluster::new(
            addresses_allowed,
            config.targets.pod_less_endpoints,
            local_node,
        );
        let (tokens, authorizer, api) = match source {
            Source::Kubernetes(api) => {
                let (tokens, authorizer, failures) =
                    self.kubernetes(&api, writer, own_authorization)?;
                (tokens, authorizer, Some((api, failures)))
            }
            Source::Manifests(manifests) => {
                let (tokens, authorizer) = self.manifests(*manifests, writer);
                (tokens, authorizer, None)
            }
        };
        let pass_through = api_server_tls
            .map(|tls| self.pass_through(&tls, api, own_authorization))
            .transpose()?;
        let trust = &self.files.trust;
        Ok(Arc::new(Stages {
            authenticator: Authenticator {
                tokens,
                client_cas: trust.client_cas.clone(),
                front_proxy: RequestHeaderAuthenticator(trust.front_proxy.clone()),
                anonymous: config.authentication.anonymous,
            },
            authorizer: Authorizer {
                policy: authorizer,
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
            sub_path_decoding: config.targets.sub_path_decoding,
            trusted_proxies: config.serving.trusted_proxies.clone(),
            rewriting: Budget::new(config.rewriting.max_memory, self.metrics.pages.clone()),
            pass_through,
            tunnels: config.tunnels.enabled.then(|| Tunnels {
                callers: Shares::new(config.tunnels.max_per_caller),
            }),
            tunnel_policy: TunnelPolicy::new(
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
    ) -> Result<(Tokens, PolicySource, FailureLog)> {
        let Self {
            config,
            files,
            ready,
            metrics,
            ..
        } = *self;
        tracing::info!(api = %api.cluster_url, "using Kubernetes API server");
        let watch = KubernetesWatch::new(api, ready, metrics)?;
        let feed = self.index(writer, KubernetesWatch::blockers(ready));
        let failures = watch.failures();
        watch.start(&feed, self.supervisor);
        // A CA file replaces the published client CAs. Front proxies have no setting of their own,
        // so their CAs always come from the ConfigMap.
        let config_map = AuthenticationConfigMap {
            client_cas: config
                .serving
                .client_ca_file
                .is_none()
                .then(|| files.trust.client_cas.clone()),
            front_proxy: files.trust.front_proxy.clone(),
        };
        self.supervisor.restart(
            "watch-authentication",
            config_map.follow(api, ready, metrics, failures.clone())?,
        );
        // Tokens of service accounts rotate in their file; a token inside a kubeconfig is constant.
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
        if let Some(certificate) = api_certificate(api)? {
            metrics.certificates.api_client(certificate.expires);
            for concern in certificate.concerns {
                tracing::warn!("{concern}");
            }
        }
        let (tokens, reviews) = self.reviews(api)?;
        let caches = (Arc::clone(&tokens), Arc::clone(&reviews));
        self.supervisor
            .restart("purge-caches", move || purge_caches(caches.clone()));
        let policy = PolicySource::Review(reviews);
        Ok((Tokens::Review(tokens), policy, failures))
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
        let handler = TokenReviewHandler(config.authentication.token_review.clone());
        let (capacity, stale, counters) = (
            handler.0.cache_size,
            settings.stale_on_error,
            metrics.tokens.clone(),
        );
        let tokens = TokenReviewAuthenticator::new(handler, reviewer, capacity, stale, counters);
        let admission = Admission::new(settings, metrics.access_reviews.clone());
        let reviewer = Reviewer::new(api, admission, config.authorization.timeout);
        let handler = AccessReviewHandler(config.authorization.clone());
        let (capacity, counters) = (handler.0.cache_size, metrics.reviews.clone());
        let reviews = Reviews::new(handler, reviewer, capacity, stale, counters);
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
        if let Some(directory) = &config.source.manifests.directory {
            let objects = manifests.counts();
            tracing::info!(
                directory = %directory.display(),
                %objects,
                "using directory of manifests"
            );
        }
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

    /// Starts the only task that writes the index.
    fn index(&mut self, writer: Writer, blockers: Vec<(Kind, BlockReady)>) -> Feed {
        let (feed, index) = watch::feed(writer, blockers, self.metrics);
        // A panic may leave an object half-joined, and the joined state cannot be rebuilt from
        // here: only a new process lists everything again.
        self.supervisor.fatal("index", index.run());
        feed
    }

    /// Starts the tasks that reload changed certificates and CAs.
    pub fn follow_files(&mut self) {
        let Files {
            server_tls,
            client_tls,
            trust,
        } = self.files;
        let (tls, file) = (
            Arc::clone(server_tls),
            self.config.serving.client_ca_file.clone(),
        );
        let client_cas = trust.handshake_cas();
        // A restarted run reloads first, because a change may have been lost with the previous run.
        let mut restarted = false;
        let metrics = self.metrics.clone();
        metrics.certificates.serving(tls.expires());
        self.supervisor.restart("serving-tls", move || {
            let again = std::mem::replace(&mut restarted, true);
            let (tls, cas, file) = (Arc::clone(&tls), client_cas.clone(), file.clone());
            reload_server_tls(tls, cas, file, metrics.clone(), again)
        });
        let kubelet = Arc::clone(&client_tls.kubelet);
        let certificates = self.metrics.certificates.clone();
        let expose = move |kubelet: &KubeletTls| {
            kubelet
                .expires()
                .into_iter()
                .for_each(|expires| certificates.kubelet_client(expires));
        };
        expose(&kubelet);
        self.supervisor.restart("kubelet-tls", move || {
            Arc::clone(&kubelet).watch_files(expose.clone())
        });
        if self.config.serving.tls_cert_file.is_none() {
            let chain = server_tls.chain();
            let leaf = chain.first().map(|leaf| sha256_hex(leaf, ":"));
            let ca = server_tls.self_signed_ca();
            tracing::warn!(
                target: OPERATOR_TARGET,
                sha256 = leaf.unwrap_or_default(),
                ca_key = Fingerprint::of_ca(&chain).map(tracing::field::display),
                ca = ca.map(|path| tracing::field::display(path.display())),
                "serving a self-signed certificate; set serving.tlsCertFile for a permanent one"
            );
        }
    }

    /// Builds the state shared by all workers.
    pub fn shared(
        &mut self,
        stages: Arc<Stages>,
        kubelet_token: Arc<ArcSwapOption<HeaderValue>>,
        addresses: Addresses,
        drain: &Drain,
    ) -> Result<Shared> {
        let config = self.config;
        // A target that resolves to one of these would loop, so the dialer rejects them.
        let own = [
            Some(addresses.secure),
            addresses.insecure,
            Some(addresses.admin),
        ];
        let dialer = Dialer {
            settings: config.upstream.clone(),
            tls: self.files.client_tls.clone(),
            own_addresses: OwnAddresses::new(own.into_iter().flatten()),
            own_udp: OwnAddresses::default(),
            failures: self.metrics.dial_failures.clone(),
            http1_endpoints: Http1Endpoints::default(),
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
                timeouts: Timeouts {
                    idle: config.serving.idle_timeout,
                    head: config.serving.head_timeout,
                    body: config.serving.body_timeout,
                    write: config.serving.write_timeout,
                },
                head_memory: HeadMemory::new(config.serving.max_head_memory),
                quota: ConnectionQuota::new(
                    config.serving.max_connections,
                    config.serving.max_connections_per_client,
                ),
            },
            proxy_protocol: config.serving.proxy_protocol.from.clone(),
            access: access.map(Arc::new),
            load_balancer: None,
            drain: drain.clone(),
        })
    }
}
