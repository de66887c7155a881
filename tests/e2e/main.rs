//! The bastion against a real etcd, kube-apiserver and kube-controller-manager. Pods and nodes are
//! objects of that API whose addresses are backends in a network namespace of the test's own.
//!
//! `make e2e` runs all of it; `cargo test --test e2e -- NAME` runs the scenarios whose name holds
//! NAME, and with `DIFFERENTIAL=TEXT` in the environment only those rows of the table whose name
//! holds TEXT. It needs root (for the namespace) and Go (to build the control plane, unless
//! `KUBEBUILDER_ASSETS` brings one, and clients); the scenarios of the clients need Node with npm,
//! curl and Chromium, and say so where one is missing.

mod balance;
mod callers;
mod clients;
mod conformance;
mod deployed;
mod differential;
mod faults;
mod kubelet;
mod outages;
#[path = "../support/mod.rs"]
mod support;
mod targets;
mod world;

use std::process::ExitCode;
use std::time::Instant;

use anyhow::Result;
use world::World;

macro_rules! scenarios {
    ($world:ident, $filter:ident, $results:ident: $($module:ident::$name:ident),* $(,)?) => {
        $(
            let name = concat!(stringify!($module), "::", stringify!($name));
            if name.contains(&*$filter) {
                let began = Instant::now();
                let outcome = $module::$name(&mut $world).await;
                let took = began.elapsed().as_secs();
                match &outcome {
                    Ok(()) => println!("test {name} ... ok ({took} s)"),
                    Err(error) => println!("test {name} ... FAILED ({took} s)\n{error:#}"),
                }
                $results.push((name, outcome.is_ok()));
            }
        )*
    };
}

fn main() -> Result<ExitCode> {
    support::process::serve_if_child()?;
    kube_bastion::tls::install_provider();
    let filter = std::env::args()
        .skip(1)
        .find(|argument| !argument.starts_with('-'))
        .unwrap_or_default();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?;
    let results = match runtime.block_on(run(filter)) {
        Ok(results) => results,
        Err(error) => {
            eprintln!("the end-to-end tests could not begin: {error:#}");
            return Ok(ExitCode::FAILURE);
        }
    };
    let failed: Vec<_> = results
        .iter()
        .filter(|(_, ok)| !ok)
        .map(|(name, _)| *name)
        .collect();
    println!(
        "\n{} passed, {} failed",
        results.len() - failed.len(),
        failed.len()
    );
    for name in &failed {
        println!("failed: {name}");
    }
    Ok(if failed.is_empty() && !results.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

async fn run(filter: String) -> Result<Vec<(&'static str, bool)>> {
    let mut world = World::new().await?;
    let mut results = Vec::new();
    // In this order: the later ones stop the API.
    scenarios!(world, filter, results:
        targets::services_pods_and_nodes_are_reached,
        targets::kubectl_prints_what_the_apiservers_own_proxy_prints,
        targets::kubectl_proxy_stands_in_front,
        targets::what_is_not_there_is_told_as_the_apiserver_tells_it,
        targets::bodies_and_upgrades_stream_both_ways,
        callers::rbac_decides_for_tokens_of_service_accounts,
        callers::rbac_decides_for_client_certificates,
        callers::failures_say_more_to_who_may_see_the_target,
        callers::who_is_nobody_gets_401,
        callers::published_cas_are_followed_on_an_open_connection,
        differential::the_table_holds,
        balance::ten_thousand_requests_go_round,
        balance::a_killed_backend_fails_no_request,
        balance::endpoints_come_and_go_under_load,
        balance::a_new_endpoint_is_used_at_once,
        balance::a_slice_that_leaves_its_service_serves_no_more,
        conformance::sixteen_urls_answer_twenty_times_at_once,
        conformance::seven_methods_reach_a_path,
        conformance::five_methods_reach_the_bare_proxy_and_two_are_redirected,
        conformance::node_logs_are_read_through_the_kubelet,
        conformance::kubectl_proxy_serves_by_port_and_by_socket,
        kubelet::credentials_are_for_a_kubelet_that_is_verified,
        clients::kubectl_works_by_a_kubeconfig_of_its_own,
        clients::curl_speaks_both_versions_of_http,
        clients::curl_streams_what_comes,
        clients::client_go_asks_by_proxy_get,
        clients::websockets_open_over_http1,
        clients::websockets_open_over_http2,
        clients::a_browser_is_at_home,
        clients::a_browser_is_at_home_behind_kubectl_proxy,
        clients::grpc_interoperates,
        clients::grpc_refusals_are_grpc_statuses,
        clients::grpc_cancellations_reach_the_server,
        clients::grpc_servers_go_away_and_no_call_fails,
        clients::grpc_streams_outlive_the_beginning_of_a_drain,
        deployed::the_manifests_are_accepted_by_the_api,
        deployed::a_pod_finds_its_account_and_follows_its_token,
        deployed::sigterm_finishes_what_runs,
        faults::processes_killed_in_turn_fail_no_request,
        faults::black_holed_addresses_fail_no_request,
        faults::a_frozen_process_gets_no_new_requests,
        faults::a_rolling_update_fails_no_request,
        faults::readiness_flaps_fail_no_request,
        faults::rotated_certificates_and_tokens_fail_no_request,
        faults::a_hanging_list_stops_no_other_watch,
        faults::reviews_answered_429_and_500_fail_no_hot_caller,
        faults::silently_dead_connections_to_the_api_are_replaced,
        outages::a_broken_watch_is_resumed,
        outages::the_last_known_state_serves_without_the_api,
        outages::an_api_that_is_not_there_at_start_is_waited_for,
        faults::an_etcd_restart_fails_no_request,
        faults::an_api_server_down_for_a_minute_fails_no_request,
    );
    Ok(results)
}
