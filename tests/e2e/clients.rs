//! The clients people use, each as itself. `kubectl get --raw` and `kubectl --server` are among the
//! targets.

mod browser;
mod curl;
mod go;
mod grpc;
mod kubectl;
mod site;
mod websocket;

pub use browser::{a_browser_is_at_home, a_browser_is_at_home_behind_kubectl_proxy};
pub use curl::{curl_speaks_both_versions_of_http, curl_streams_what_comes};
pub use go::client_go_asks_by_proxy_get;
pub use grpc::{
    grpc_cancellations_reach_the_server, grpc_interoperates, grpc_refusals_are_grpc_statuses,
    grpc_servers_go_away_and_no_call_fails, grpc_streams_outlive_the_beginning_of_a_drain,
};
pub use kubectl::{KubectlProxy, kubectl_works_by_a_kubeconfig_of_its_own};
pub use websocket::{websockets_open_over_http1, websockets_open_over_http2};
