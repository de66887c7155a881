//! `forward`: local TCP and UDP ports for the services, pods and workloads of a cluster.
//!
//! ```text
//!   client ── listen ── serve ── route ── bastion ── HTTP/2 CONNECT, a stream per connection
//!                         │        │
//!                         │        └─ endpoints ── sessions ── port-forward through the API server
//!                         └─ relay, udp, report
//!
//!   client ── gateway ── socks or HTTP ── bastion
//! ```

mod bastion;
mod command;
mod endpoints;
mod file;
mod gateway;
mod listen;
mod pac;
mod proxy;
mod relay;
mod report;
mod resolve;
mod route;
mod serve;
mod sessions;
pub mod socks;
mod spec;
mod udp;

use std::ffi::OsString;
use std::process::ExitCode;
use std::rc::Rc;
use std::time::Duration;

use futures::future::join_all;
use serde_json::json;

use super::Context;
use super::api::Api;
use super::targets::probe::{self, ProbeError};
use super::targets::{Kind, Protocol};
use crate::drain::Drain;
use bastion::{TunnelError, Tunnels};
pub use command::CommandError;
pub use file::{FileError, read as read_file};
use gateway::Gateway;
pub use listen::ListenError;
use listen::{Addresses, Sockets};
pub use proxy::{Proxy, ProxyError};
use relay::Traffic;
use report::{Lines, Report};
pub use resolve::ResolveError;
use resolve::{ResolvedPort, Target};
pub use route::ConnectError;
use route::{PodWay, Route};
use serve::{Forward, serve};
use sessions::Sessions;
pub use spec::{SpecError, TargetSpec};

/// Way to the targets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Via {
    /// Tunnels through a bastion
    Bastion,
    /// Port-forwarding of the API server
    ApiServer,
}

/// Options of the command.
#[derive(Clone, Debug)]
pub struct Options {
    pub targets: Vec<TargetSpec>,
    /// Local addresses of targets without their own.
    pub addresses: Vec<String>,
    pub proxy: Option<Proxy>,
    /// `None` for a bastion if the server is one.
    pub via: Option<Via>,
    /// Time to wait for a running pod at the start.
    pub pod_running_timeout: Duration,
    /// Targets that cannot be forwarded do not end the command.
    pub keep_going: bool,
    /// Print the ports as JSON.
    pub json: bool,
    /// Program with arguments to run. Empty to run until a signal.
    pub command: Vec<OsString>,
}

/// Reason why nothing is forwarded.
#[derive(Debug, thiserror::Error)]
pub enum ForwardError {
    #[error(transparent)]
    Resolve(#[from] ResolveError),
    #[error(transparent)]
    Listen(#[from] ListenError),
    #[error(
        "port {port} of {target} is of protocol UDP, which port-forwarding of an API server does \
         not carry; use a bastion (--via=bastion)"
    )]
    Udp { target: String, port: String },
    #[error(transparent)]
    Probe(#[from] ProbeError),
    #[error("{server} is not a bastion; omit --via=bastion")]
    NotBastion { server: String },
    #[error(transparent)]
    Bastion(TunnelError),
    #[error("cannot forward to {target}: {source}")]
    Connect {
        target: String,
        source: ConnectError,
    },
    #[error(
        "{server} is used as an API server, and the local proxy (--socks) needs a bastion; name \
         targets and ports instead"
    )]
    Proxy { server: String },
    #[error(transparent)]
    OpenProxy(#[from] ProxyError),
    #[error("no target can be forwarded")]
    Nothing,
    #[error(transparent)]
    Command(#[from] CommandError),
}

/// Ways to all targets.
enum Ways {
    Bastion(Rc<Tunnels>),
    ApiServer(Rc<Sessions>),
}

/// Forwards the targets until the drain begins, or the command of the options ends, whose exit code
/// is returned. `drain` is called once signals must not end the process any more.
///
/// # Errors
/// [`ForwardError`] before anything is forwarded.
pub async fn run(
    context: Context,
    options: Options,
    drain: impl FnOnce() -> std::io::Result<Drain>,
) -> Result<ExitCode, ForwardError> {
    let Context {
        namespace,
        servers,
        credentials,
        request_timeout,
        ..
    } = context;
    let api = Rc::new(Api::new(
        servers.clone(),
        credentials.clone(),
        request_timeout,
    ));
    let ways = if uses_bastion(&api, options.via).await? {
        let tunnels = Rc::new(Tunnels::new(servers, credentials));
        tunnels.check().await.map_err(ForwardError::Bastion)?;
        Ways::Bastion(tunnels)
    } else {
        reject_udp(&options.targets)?;
        if options.proxy.is_some() {
            let server = api.client.names();
            return Err(ForwardError::Proxy { server });
        }
        Ways::ApiServer(Rc::new(Sessions::new(Rc::clone(&api))))
    };
    let pac = options.proxy.as_ref().and_then(|proxy| proxy.pac.as_ref());
    let writes_pac = pac.is_some_and(|file| file.as_os_str() == "-");
    let lines = match (options.json, options.command.is_empty() && !writes_pac) {
        (true, _) => Lines::None,
        (false, true) => Lines::Stdout,
        (false, false) => Lines::Stderr,
    };
    let report = Rc::new(Report::new(lines));
    let preparing = options.targets.iter();
    let preparing = preparing.map(|spec| prepare(&api, &ways, spec, &namespace, &options));
    let mut forwards = Vec::new();
    for prepared in join_all(preparing).await {
        match prepared.and_then(|(target, routes)| listen(&target, routes, &options)) {
            Ok(ready) => forwards.extend(ready),
            Err(error) if options.keep_going => report.print(&format!("kube-bastion: {error}")),
            Err(error) => return Err(error),
        }
    }
    let gateway = match (&options.proxy, &ways) {
        (Some(proxy), Ways::Bastion(tunnels)) => Some(proxy.open(tunnels)?),
        _ => None,
    };
    if forwards.is_empty() && gateway.is_none() {
        return Err(ForwardError::Nothing);
    }
    announce(&forwards, gateway.as_ref(), &report, options.json);
    serve_until_end(
        &forwards,
        gateway.as_ref(),
        &report,
        &options.command,
        drain,
    )
    .await
}

/// Serves until the command ends; without one, until the drain begins.
async fn serve_until_end(
    forwards: &[Rc<Forward>],
    gateway: Option<&Rc<Gateway>>,
    report: &Rc<Report>,
    command: &[OsString],
    drain: impl FnOnce() -> std::io::Result<Drain>,
) -> Result<ExitCode, ForwardError> {
    let serving = serve(forwards, gateway, report);
    let ended = async {
        if !command.is_empty() {
            let ports: Vec<_> = forwards.iter().map(|forward| forward.local_port).collect();
            return Ok(command::run(command, &ports).await?);
        }
        let drain = drain().map_err(CommandError::Signals)?;
        let status = forwards.iter().map(|forward| {
            let name = format!(
                "{} {} -> {}",
                forward.target,
                forward.local_port,
                forward.remote_name()
            );
            (name, Rc::clone(&forward.traffic))
        });
        let proxy = gateway.map(|it| ("proxy".to_owned(), Rc::clone(&it.traffic)));
        tokio::select! {
            () = drain.begun() => {}
            () = report.show_status(status.chain(proxy).collect()) => {}
        }
        Ok(ExitCode::SUCCESS)
    };
    tokio::select! {
        ended = ended => ended,
        () = serving => Ok(ExitCode::SUCCESS),
    }
}

fn reject_udp(targets: &[TargetSpec]) -> Result<(), ForwardError> {
    for target in targets {
        let mut ports = target.ports.iter();
        if let Some(port) = ports.find(|port| port.protocol == Protocol::Udp) {
            return Err(ForwardError::Udp {
                target: target.to_string(),
                port: port.remote.to_string(),
            });
        }
    }
    Ok(())
}

/// Returns true if the tunnels of a bastion are used.
async fn uses_bastion(api: &Api, via: Option<Via>) -> Result<bool, ForwardError> {
    if via == Some(Via::ApiServer) {
        return Ok(false);
    }
    let is_bastion = probe::is_bastion(api).await?;
    if !is_bastion && via.is_some() {
        let server = api.client.names();
        return Err(ForwardError::NotBastion { server });
    }
    Ok(is_bastion)
}

/// Looks up a target, and connects to the server or pod without a connection to its application; with
/// one before a command is run, which needs all targets. Returns the route of each port, and the remote port that is printed.
async fn prepare(
    api: &Rc<Api>,
    ways: &Ways,
    spec: &TargetSpec,
    namespace: &str,
    options: &Options,
) -> Result<(Target, Vec<(Route, u16)>), ForwardError> {
    let is_bastion = matches!(ways, Ways::Bastion(_));
    let target = Target::look_up(api, spec, namespace, is_bastion).await?;
    let mut routes = Vec::new();
    for port in &target.ports {
        let route = route(ways, &target, port);
        let failed = |source| ForwardError::Connect {
            target: target.to_string(),
            source,
        };
        let printed = check(&route, options.pod_running_timeout).await;
        let printed = printed.map_err(failed)?;
        if !options.command.is_empty() {
            let ready = route.wait(options.pod_running_timeout).await;
            ready.map_err(failed)?;
        }
        routes.push((route, printed.unwrap_or(port.remote)));
    }
    Ok((target, routes))
}

fn route(ways: &Ways, target: &Target, port: &ResolvedPort) -> Route {
    let Target {
        kind,
        name,
        namespace,
        endpoints,
        ..
    } = target;
    let domain = match kind {
        Kind::Service => "svc",
        _ => "pod",
    };
    let way = match ways {
        // The bastion selects among the endpoints of a service.
        Ways::Bastion(tunnels) if matches!(kind, Kind::Service | Kind::Pod) => {
            return Route::Bastion {
                tunnels: Rc::clone(tunnels),
                protocol: port.protocol,
                authority: format!("{name}.{namespace}.{domain}:{}", port.remote),
                known: Rc::default(),
            };
        }
        Ways::Bastion(tunnels) => PodWay::Bastion(Rc::clone(tunnels), port.protocol),
        Ways::ApiServer(sessions) => PodWay::ApiServer(Rc::clone(sessions)),
    };
    Route::Pods {
        endpoints: Rc::clone(endpoints),
        port: port.target.clone(),
        way,
    }
}

/// Waits for a pod, and opens the session to it. Returns the number of its port. `None` if the
/// bastion selects it.
async fn check(route: &Route, limit: Duration) -> Result<Option<u16>, ConnectError> {
    let Route::Pods {
        endpoints,
        port,
        way,
    } = route
    else {
        return Ok(None);
    };
    let (pod, number) = endpoints.wait(port, &[], limit).await?;
    if !endpoints.are_ready() {
        super::warn(format_args!(
            "no pod is ready; connections use running ones, such as {pod}"
        ));
    }
    if let PodWay::ApiServer(sessions) = way {
        sessions.check(endpoints.namespace(), &pod).await?;
    }
    Ok(Some(number))
}

/// Listens on the local ports of a target.
fn listen(
    target: &Target,
    routes: Vec<(Route, u16)>,
    options: &Options,
) -> Result<Vec<Rc<Forward>>, ForwardError> {
    let addresses = target.addresses.as_ref().unwrap_or(&options.addresses);
    let addresses = Addresses::parse(addresses)?;
    let mut forwards = Vec::new();
    for (port, (route, printed)) in target.ports.iter().zip(routes) {
        let sockets = match port.protocol {
            Protocol::Tcp => Sockets::Tcp(addresses.listen(port.local, port.remote)?),
            Protocol::Udp => Sockets::Udp(addresses.listen(port.local, port.remote)?),
        };
        let address = sockets.addresses().first().copied();
        forwards.push(Rc::new(Forward {
            target: target.to_string(),
            namespace: target.namespace.clone(),
            local_port: address.map_or(port.local, |address| address.port()),
            remote_port: printed,
            sockets,
            route,
            traffic: Rc::new(Traffic::default()),
        }));
    }
    Ok(forwards)
}

/// Prints the local ports: a line per address as kubectl does, or one line of JSON.
fn announce(
    forwards: &[Rc<Forward>],
    gateway: Option<&Rc<Gateway>>,
    report: &Report,
    as_json: bool,
) {
    let mut entries = Vec::new();
    for forward in forwards {
        let protocol = match forward.sockets.protocol() {
            Protocol::Tcp => "tcp",
            Protocol::Udp => "udp",
        };
        for address in forward.sockets.addresses() {
            report.line(&format!(
                "Forwarding from {address} -> {}",
                forward.remote_name()
            ));
            entries.push(json!({
                "target": forward.target,
                "namespace": forward.namespace,
                "address": address.ip().to_string(),
                "localPort": address.port(),
                "remotePort": forward.remote_port,
                "protocol": protocol,
            }));
        }
    }
    let proxies = gateway
        .map(|gateway| gateway.addresses())
        .unwrap_or_default();
    for address in &proxies {
        report.line(&format!(
            "Forwarding from {address} -> SOCKS5 and HTTP proxy"
        ));
    }
    if as_json {
        use std::io::Write;
        let mut output = json!({"forwards": entries});
        if !proxies.is_empty() {
            let proxies = proxies.iter().map(
                |address| json!({"address": address.ip().to_string(), "localPort": address.port()}),
            );
            output["proxy"] = proxies.collect();
        }
        // Fails if the output is closed, which is no reason to end the forwards.
        let _ = writeln!(std::io::stdout(), "{output}");
    }
}
