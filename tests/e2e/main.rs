//! The bastion with a real etcd, kube-apiserver and kube-controller-manager. Pods and nodes are
//! objects of that API whose addresses are backends in a network namespace.
//!
//! `make e2e` runs all scenarios. `cargo test --test e2e -- FILTER` runs those whose name contains
//! `FILTER`; `--exact`, `--skip` and `--list` work as in the standard test harness. With
//! `DIFFERENTIAL=TEXT` in the environment, the differential scenario sends only the rows whose name
//! contains `TEXT`.
//!
//! The scenarios need root for the namespace, Go for the control plane (unless `KUBEBUILDER_ASSETS`
//! provides it) and for clients, and Node with npm, Python with pip, curl and Chromium for the
//! other clients. Those of `apps` need Debian's packages of Prometheus and `RabbitMQ`, too, and those
//! of `tunnels` `PostgreSQL`, Redis, dnsmasq, OpenSSH and proxytunnel. All scenarios fail if the
//! cluster cannot be set up.

mod apiservers;
mod apps;
mod balance;
mod callers;
mod clients;
mod conformance;
mod demo;
mod deployed;
mod desk;
mod differential;
mod faults;
mod fixture;
mod kubelet;
mod loadbalancer;
mod outages;
mod packages;
mod pass_through;
#[path = "../support/mod.rs"]
mod support;
mod targets;
mod tunnels;

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Instant;

use anyhow::Result;
use fixture::Fixture;
use libtest_mimic::{Arguments, Failed, Trial};
use tokio::runtime::Runtime;
use tokio::sync::Mutex;

/// State that the scenarios share.
struct Shared {
    runtime: Runtime,
    /// `None` if the scenarios are only listed.
    fixture: Mutex<Option<Fixture>>,
}

macro_rules! scenarios {
    ($shared:expr; $($module:ident::$name:ident),* $(,)?) => {
        vec![$({
            let shared = Arc::clone($shared);
            Trial::test(concat!(stringify!($module), "::", stringify!($name)), move || {
                shared.runtime.block_on(async {
                    let started = Instant::now();
                    let mut fixture = shared.fixture.lock().await;
                    let fixture = fixture.as_mut().ok_or("the cluster is not set up")?;
                    let result = $module::$name(fixture).await;
                    // Printed between the name and the result.
                    print!("({} s) ", started.elapsed().as_secs());
                    result.map_err(|error| Failed::from(format!("{error:#}")))
                })
            })
        }),*]
    };
}

fn main() -> Result<ExitCode> {
    support::process::serve_if_child()?;
    kube_bastion::tls::install_provider();
    let mut arguments = Arguments::from_args();
    // The scenarios share one cluster, and their order matters: the last ones stop the API server.
    arguments.test_threads = Some(1);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?;
    let mut fixture = None;
    if !arguments.list {
        match runtime.block_on(Fixture::new()) {
            Ok(new) => fixture = Some(new),
            Err(error) => {
                eprintln!("cannot set up the end-to-end tests: {error:#}");
                return Ok(ExitCode::FAILURE);
            }
        }
    }
    let shared = Arc::new(Shared {
        runtime,
        fixture: Mutex::new(fixture),
    });
    let conclusion = libtest_mimic::run(&arguments, trials(&shared));
    // The processes of the cluster are killed when the fixture is dropped, within the runtime.
    shared
        .runtime
        .block_on(async { drop(shared.fixture.lock().await.take()) });
    if !arguments.list && conclusion.num_passed + conclusion.num_failed == 0 {
        eprintln!("no scenario matches the filter");
        return Ok(ExitCode::FAILURE);
    }
    Ok(conclusion.exit_code())
}

fn trials(shared: &Arc<Shared>) -> Vec<Trial> {
    scenarios! { shared;
        targets::proxies_to_services_pods_and_nodes,
        targets::kubectl_output_equals_that_of_the_apiserver_proxy,
        targets::works_behind_kubectl_proxy,
        targets::missing_targets_return_the_status_of_the_apiserver,
        targets::streams_bodies_and_upgrades_in_both_directions,
        callers::authorizes_service_account_tokens_by_rbac,
        callers::authorizes_client_certificates_by_rbac,
        callers::returns_causes_to_callers_that_may_use_or_read_the_target,
        callers::returns_401_without_valid_credentials,
        callers::applies_changed_client_cas_to_open_connections,
        differential::behaves_as_the_table_declares,
        balance::distributes_ten_thousand_requests_evenly,
        balance::killed_backend_fails_no_request,
        balance::changing_endpoints_fail_no_request,
        balance::uses_new_endpoint_immediately,
        balance::stops_using_slice_that_leaves_its_service,
        conformance::serves_sixteen_urls_twenty_times_in_parallel,
        conformance::forwards_seven_methods_to_a_path,
        conformance::forwards_five_methods_to_bare_proxy_and_redirects_two,
        conformance::reads_node_logs_through_the_kubelet,
        conformance::kubectl_proxy_serves_on_port_and_socket,
        kubelet::sends_credentials_only_to_verified_kubelets,
        clients::kubectl_works_with_a_kubeconfig_for_the_bastion,
        clients::curl_uses_both_versions_of_http,
        clients::curl_streams_responses,
        clients::client_go_uses_proxy_get,
        clients::python_client_reaches_sub_paths,
        clients::javascript_client_reaches_sub_paths,
        clients::websockets_open_over_http1,
        clients::websockets_open_over_http2,
        clients::browser_shows_a_site,
        clients::browser_shows_a_site_behind_kubectl_proxy,
        demo::page_shows_balancing_failover_and_rewritten_links,
        clients::h2spec_finds_a_conforming_server,
        clients::grpc_calls_and_streams_work,
        clients::grpc_errors_are_grpc_statuses,
        clients::grpc_cancellations_reach_the_server,
        clients::grpc_goaway_fails_no_call,
        clients::grpc_streams_continue_during_a_drain,
        apps::jupyterlab_runs_a_notebook,
        apps::tensorboard_shows_scalars,
        apps::streamlit_reruns_its_page,
        apps::verdaccio_publishes_and_shows_packages,
        apps::node_red_deploys_a_flow,
        apps::rabbitmq_management_creates_a_queue,
        apps::jupyterlab_runs_a_notebook_opened,
        apps::streamlit_reruns_its_page_opened,
        apps::rabbitmq_management_creates_a_queue_opened,
        apps::prometheus_answers_a_query,
        tunnels::curl_reaches_services_and_pods_by_connect,
        tunnels::built_in_roles_decide_on_tunnels,
        tunnels::curl_opens_tunnels_over_http2,
        tunnels::node_opens_tunnels_over_http2,
        tunnels::host_name_reaches_its_pod,
        tunnels::databases_work_through_tunnels,
        tunnels::ssh_works_through_connect,
        tunnels::query_outlives_another_pod_and_another_bastion,
        tunnels::dns_answers_through_udp_tunnels,
        tunnels::http3_passes_through_udp_tunnels,
        desk::kubectl_reaches_containers_through_the_kubelet,
        desk::open_shows_sites_through_the_bastion_and_the_api_server,
        pass_through::kubectl_uses_the_bastion_as_its_server,
        pass_through::api_server_decides_on_the_credentials,
        pass_through::kubectl_uses_the_bastion_behind_an_https_proxy,
        pass_through::kubectl_top_shows_figures_of_an_aggregated_api,
        desk::proxy_behaves_as_kubectl_proxy,
        desk::kubectl_works_through_the_proxy_and_the_bastion,
        desk::portforward_sessions_carry_connections,
        desk::forward_reaches_services_pods_and_workloads,
        desk::forward_survives_what_ends_kubectl_port_forward,
        desk::forward_reaches_udp_ports_and_all_names,
        desk::envoy_terminates_udp_tunnels_of_forward,
        desk::psql_works_through_forward,
        desk::proxy_fails_no_read_when_an_api_server_is_killed,
        desk::proxy_discovers_the_api_servers,
        loadbalancer::status_follows_the_services,
        loadbalancer::local_policy_follows_the_endpoints,
        loadbalancer::listeners_carry_tcp_and_udp,
        loadbalancer::listeners_honor_ranges_affinity_and_unready_addresses,
        loadbalancer::port_in_use_is_reported_until_it_is_free,
        loadbalancer::low_port_needs_the_sysctl_or_the_capability,
        loadbalancer::dns_server_has_tcp_and_udp_on_one_address,
        loadbalancer::another_replica_takes_over,
        loadbalancer::deleted_services_go_away,
        deployed::api_accepts_the_manifests,
        deployed::pod_uses_its_service_account_and_reloads_its_token,
        deployed::sigterm_finishes_running_requests,
        desk::kubectl_runs_and_completes_the_plugin,
        desk::kubectl_uses_the_kubeconfig_of_the_plugin,
        apiservers::requests_spread_evenly_over_api_servers,
        apiservers::killed_api_servers_fail_no_repeatable_request,
        apiservers::frozen_api_servers_fail_no_repeatable_request,
        apiservers::drained_api_servers_fail_no_request,
        apiservers::answers_without_api_servers_and_credentials,
        faults::processes_killed_in_turn_fail_no_request,
        faults::black_holed_addresses_fail_no_request,
        faults::stopped_process_gets_no_new_requests,
        faults::rolling_update_fails_no_request,
        faults::readiness_flaps_fail_no_request,
        tunnels::killed_endpoints_end_only_their_own_connections,
        tunnels::rolling_update_fails_no_new_connection,
        faults::rotated_certificates_and_tokens_fail_no_request,
        faults::hanging_list_does_not_stop_other_watches,
        faults::rejected_reviews_fail_no_cached_caller,
        faults::replaces_silently_dead_connections_to_the_api,
        outages::resumes_broken_watch,
        outages::serves_last_known_state_without_the_api,
        tunnels::connections_open_without_the_api,
        outages::waits_for_the_api_at_start,
        faults::etcd_restart_fails_no_request,
        faults::api_outage_of_a_minute_fails_no_request,
    }
}
