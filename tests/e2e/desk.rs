//! The commands for the desk, and the API server as they use it.

mod databases;
mod envoy;
mod failover;
mod forward;
mod kubelet;
mod names;
mod open;
mod plugin;
mod portforward;
mod side_by_side;
mod survival;
mod through_proxy;

pub use databases::psql_works_through_forward;
pub use envoy::envoy_terminates_udp_tunnels_of_forward;
pub use failover::{
    proxy_discovers_the_api_servers, proxy_fails_no_read_when_an_api_server_is_killed,
};
pub use forward::*;
pub use kubelet::{kubectl, kubectl_reaches_containers_through_the_kubelet, reach_containers};
pub use names::forward_reaches_udp_ports_and_all_names;
pub use open::open_shows_sites_through_the_bastion_and_the_api_server;
pub use plugin::*;
pub use portforward::*;
pub use side_by_side::proxy_behaves_as_kubectl_proxy;
pub use survival::forward_survives_what_ends_kubectl_port_forward;
pub use through_proxy::kubectl_works_through_the_proxy_and_the_bastion;
