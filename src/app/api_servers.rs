//! Wiring of the pass-through to the API servers.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::Result;
use arc_swap::ArcSwapOption;
use futures::FutureExt;
use http::HeaderValue;

use super::spawn::Setup;
use crate::apiservers::{
    self, ApiServers, Credential, DirectConnector, InvalidServerName, Probe, ServerConfig,
};
use crate::config::ListedServer;
use crate::proxy::{PassThrough, ProvenTokens, UnprovenRequests};
use crate::tls::ApiServerTls;
use crate::watch::kubernetes::{FailureLog, follow_api_servers};

impl Setup<'_> {
    /// Builds the pass-through, and starts the discovery and the health checks of the API servers.
    pub(super) fn pass_through(
        &mut self,
        tls: &Arc<ApiServerTls>,
        api: Option<(Box<kube::Config>, FailureLog)>,
        own_authorization: &Arc<ArcSwapOption<HeaderValue>>,
    ) -> Result<PassThrough> {
        let settings = &self.config.api_servers;
        let servers = if let Some((api, failures)) = api
            && settings.servers.is_empty()
        {
            self.discovered(tls, &api, failures)?
        } else {
            let listed = settings.servers.iter().map(|server| {
                let ListedServer {
                    address,
                    tls_server_name,
                } = server;
                let name = tls_server_name
                    .as_ref()
                    .unwrap_or(&settings.tls_server_name);
                DirectConnector::server(address.clone(), name, tls)
            });
            ApiServers::new(listed.collect::<Result<_, _>>()?)
        };
        let probed = servers.clone();
        let probe = Probe {
            credential: Credential::Proven,
            authorization: Arc::clone(own_authorization),
            always: true,
        };
        self.supervisor.restart("api-server-health", move || {
            apiservers::keep_probing(probed.clone(), probe.clone()).boxed()
        });
        let tls = Arc::clone(tls);
        self.supervisor
            .restart("api-server-tls", move || Arc::clone(&tls).watch_files());
        Ok(PassThrough {
            servers,
            anonymous: settings.anonymous,
            certificates: settings.client_certificates,
            front_proxy: self.files.trust.front_proxy.clone(),
            own_authorization: Arc::clone(own_authorization),
            proven: ProvenTokens::default(),
            unproven: UnprovenRequests::default(),
            drain_timeout: self.config.drain.timeout,
        })
    }

    /// Follows the API servers that the cluster publishes. Until it does, that of the cluster source
    /// is used.
    fn discovered(
        &mut self,
        tls: &Arc<ApiServerTls>,
        api: &kube::Config,
        failures: FailureLog,
    ) -> Result<ApiServers> {
        let servers = ApiServers::new(source_server(api, tls)?.into_iter().collect());
        let (set, tls) = (servers.clone(), Arc::clone(tls));
        let name = self.config.api_servers.tls_server_name.clone();
        // Checked here, so that the discovery cannot fail later.
        DirectConnector::server(String::new(), &name, &tls)?;
        let replace = move |addresses: BTreeSet<SocketAddr>| {
            let server = |address: SocketAddr| {
                DirectConnector::server(address.to_string(), &name, &tls).ok()
            };
            let servers: Vec<_> = addresses.into_iter().filter_map(server).collect();
            set.replace(servers);
        };
        let task = follow_api_servers(api, self.ready, self.metrics, failures, Arc::new(replace))?;
        self.supervisor.restart("watch-apiservers", task);
        Ok(servers)
    }
}

/// Returns the API server of the cluster source. `None` without TLS.
fn source_server(
    api: &kube::Config,
    tls: &Arc<ApiServerTls>,
) -> Result<Option<ServerConfig>, InvalidServerName> {
    let url = &api.cluster_url;
    let (Some("https"), Some(host)) = (url.scheme_str(), url.host()) else {
        return Ok(None);
    };
    let address = format!("{host}:{}", url.port_u16().unwrap_or(443));
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let name = api.tls_server_name.as_deref().unwrap_or(host);
    DirectConnector::server(address, name, tls).map(Some)
}
