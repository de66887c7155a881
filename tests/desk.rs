//! Commands of the desk, with the binary on loopback.

#[path = "desk/api.rs"]
mod api;
#[path = "desk/forward/api_server.rs"]
mod forward_api_server;
#[path = "desk/forward/bastion.rs"]
mod forward_bastion;
#[path = "desk/forward/command.rs"]
mod forward_command;
#[path = "desk/forward/pods.rs"]
mod forward_pods;
#[path = "desk/forward/program.rs"]
mod forward_program;
#[path = "desk/forward/socks.rs"]
mod forward_socks;
#[path = "desk/forward/terminal.rs"]
mod forward_terminal;
#[path = "desk/forward/tunnels.rs"]
mod forward_tunnels;
#[path = "desk/forward/udp.rs"]
mod forward_udp;
#[path = "desk/kubeconfig.rs"]
mod kubeconfig;
#[path = "desk/proxy.rs"]
mod proxy;
#[path = "desk/rotation.rs"]
mod rotation;

#[path = "desk/open.rs"]
mod open;
#[path = "support/mod.rs"]
mod support;
