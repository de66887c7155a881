//! Entry point: parses the command line, runs the subcommand, reports errors.

use std::process::ExitCode;

use kube_bastion::cli::Cli;
use kube_bastion::model::error_chain;
use kube_bastion::tls;

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    tls::install_provider();
    match Cli::from_command_line().run() {
        Ok(code) => code,
        Err(error) => {
            eprintln!("kube-bastion: {}", error_chain(&*error));
            ExitCode::FAILURE
        }
    }
}
