//! Wiring of the controller for Services of `type: LoadBalancer`.

use std::sync::Arc;

use anyhow::{Context, Result};
use tokio::sync::watch;

use super::Addresses;
use super::spawn::Setup;
use crate::drain::Drain;
use crate::forward::Dialer;
use crate::loadbalancer::assign;
use crate::loadbalancer::lease::{ApiStore, Elector, default_identity};
use crate::loadbalancer::listeners::{AffinityTable, Binder, BoundListeners, ListenerLimits};
use crate::loadbalancer::writer::{ApiRequests, Writer};
use crate::loadbalancer::{BindReport, Controller, Inventory, Listeners, status};
use crate::supervise::Supervisor;
use crate::watch::kubernetes::{self, Connections};

/// Running controller, as the data path needs it.
pub(super) struct LoadBalancer {
    /// Listeners to serve.
    listeners: watch::Receiver<Arc<Listeners>>,
    /// Report of the data path.
    binds: watch::Sender<Arc<BindReport>>,
    elector: Arc<Elector<ApiStore>>,
    limits: ListenerLimits,
}

/// Bound listeners, which the workers serve.
#[derive(Debug)]
pub(super) struct Served {
    pub bound: watch::Receiver<Arc<BoundListeners>>,
    pub wanted: watch::Receiver<Arc<Listeners>>,
    pub affinity: Arc<AffinityTable>,
    pub limits: ListenerLimits,
}

impl LoadBalancer {
    /// Starts the task that binds the listeners. The dialer rejects their addresses then.
    pub fn bind(&self, dialer: &Dialer, drain: &Drain, supervisor: &mut Supervisor) -> Served {
        let (listeners, binds) = (self.listeners.clone(), self.binds.clone());
        let binder = Binder::new(listeners, binds, dialer, drain.clone());
        let served = Served {
            bound: binder.bound(),
            wanted: self.listeners.clone(),
            affinity: Arc::default(),
            limits: self.limits.clone(),
        };
        supervisor.restart("loadbalancer-listeners", move || Arc::clone(&binder).run());
        served
    }

    /// Releases the Lease, so that another replica can take it.
    pub async fn release(&self) {
        self.elector.release().await;
    }
}

impl Setup<'_> {
    /// Starts the controller. `None` if no class is configured.
    pub fn load_balancer(
        &mut self,
        api: Option<&kube::Config>,
        addresses: Addresses,
        drain: &Drain,
    ) -> Result<Option<LoadBalancer>> {
        let (config, serving) = (&self.config.load_balancer, &self.config.serving);
        if !config.is_enabled() {
            return Ok(None);
        }
        let api = api.context("loadBalancer.class requires source.type \"kubernetes\"")?;
        let inventory = Inventory::new(config);
        kubernetes::follow_load_balancers(
            api,
            self.ready,
            self.metrics,
            &inventory,
            config,
            self.supervisor,
        )?;
        let own = [
            Some(addresses.secure),
            addresses.insecure,
            Some(addresses.admin),
        ];
        let settings = assign::Settings {
            class: config.class.clone(),
            bind_addresses: config.bind_addresses.clone(),
            namespace_selector: config.namespace_selector.clone(),
            allowed_ports: config.allowed_ports.clone(),
            own_ports: own.into_iter().flatten().map(|own| own.port()).collect(),
            node_name: config.node_name.as_deref().map(Into::into),
        };
        let binds = watch::Sender::<Arc<BindReport>>::default();
        let controller =
            Controller::new(settings, inventory, binds.subscribe(), self.ready.clone());
        let listeners = controller.listeners();
        let client = kubernetes::review_client(api, Connections::Pooled)?;
        let lease = &config.lease;
        let identity = lease.identity.clone().unwrap_or_else(default_identity);
        let namespace = lease.namespace.as_deref();
        let namespace = namespace.unwrap_or(&api.default_namespace);
        let store = ApiStore::new(client.clone(), namespace, &lease.name);
        let elector = Elector::new(store, &identity, &config.class);
        let writer = Writer::new(
            status::Settings {
                class: config.class.clone(),
                finalizer: config.finalizer,
            },
            ApiRequests::new(client, &identity),
            controller.results(),
            elector.is_leader(),
            self.ready.clone(),
        );
        let assigning = Arc::clone(&controller);
        self.supervisor
            .restart("loadbalancer-assign", move || Arc::clone(&assigning).run());
        let (electing, draining) = (Arc::clone(&elector), drain.clone());
        self.supervisor.restart("loadbalancer-lease", move || {
            Arc::clone(&electing).run(draining.clone())
        });
        self.supervisor
            .restart("loadbalancer-status", move || Arc::clone(&writer).run());
        tracing::info!(
            class = config.class,
            identity,
            lease = %format_args!("{namespace}/{}", lease.name),
            "serving Services of type LoadBalancer; their listeners are public"
        );
        Ok(Some(LoadBalancer {
            listeners,
            binds,
            elector,
            limits: ListenerLimits::new(
                serving.max_connections,
                serving.max_connections_per_client,
            ),
        }))
    }
}
