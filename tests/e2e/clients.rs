//! Common clients: kubectl, curl, client-go, the generated clients of Kubernetes, gRPC, WebSocket, a
//! browser; and h2spec. `targets` has `kubectl get --raw` and `kubectl --server`.

mod browser;
mod curl;
mod generated;
mod go;
mod grpc;
mod h2spec;
mod kubectl;
mod site;
mod websocket;

pub use browser::{browser_shows_a_site, browser_shows_a_site_behind_kubectl_proxy, drive, serve};
pub use curl::{curl_streams_responses, curl_uses_both_versions_of_http};
pub use generated::{javascript_client_reaches_sub_paths, python_client_reaches_sub_paths};
pub use go::{client_go_uses_proxy_get, program as go_program};
pub use grpc::{
    grpc_calls_and_streams_work, grpc_cancellations_reach_the_server,
    grpc_errors_are_grpc_statuses, grpc_goaway_fails_no_call, grpc_streams_continue_during_a_drain,
};
pub use h2spec::h2spec_finds_a_conforming_server;
pub use kubectl::{KubectlProxy, kubectl_works_with_a_kubeconfig_for_the_bastion};
pub use site::site;
pub use websocket::{websockets_open_over_http1, websockets_open_over_http2};
