//! `open`: the applications of a cluster in the browser, each at the root of a host of its own.
//!
//! ```text
//!   browser ── listener ── handler ── site ── desk client ── bastion or API server
//!                            │          │ └──── portforward ── pod
//!                            │          └─ target, Host and credentials of the way to the target
//!                            └─ hosts of the targets, requests of other sites
//! ```

mod handler;
mod headers;
mod hosts;
mod listener;
mod portforward;
mod site;

use std::rc::Rc;
use std::time::Duration;

use tokio_util::task::TaskTracker;

use super::api::Api;
use super::targets::probe::{self, ProbeError};
use super::targets::{
    DialError, Found, LookupError, Pods, ReadyPods, lookup, pods, ready, reference,
};
pub use super::targets::{Kind, Reference, ReferenceError};
use super::{Context, browser, printable, warn};
use crate::drain::Drain;
use crate::model::Scheme;
use handler::SiteHandler;
use hosts::{HostParts, Hosts, url};
use listener::{ListenError, Listener};
use portforward::{PodClient, PodDial};
pub use site::Via;
use site::{Host, Route, Site};

/// Time for open responses to end after the first signal.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(1);

/// Options of the command.
#[derive(Clone, Debug)]
pub struct Options {
    pub targets: Vec<Reference>,
    /// Port of the targets that have none of their own.
    pub port: Option<String>,
    /// `None` for the first way that works.
    pub via: Option<Via>,
    /// 0 for a free port.
    pub local_port: u16,
    pub browser: bool,
}

/// Reason why nothing was opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error(transparent)]
    Lookup(#[from] LookupError),
    #[error(transparent)]
    Listen(#[from] ListenError),
    #[error(transparent)]
    Probe(#[from] ProbeError),
    #[error(
        "{server} is not a bastion that forwards requests in absolute form; omit --via=bastion"
    )]
    NotBastion { server: String },
    #[error(
        "{target} cannot be opened through {via}; use --via=proxy, or open one of its pods instead"
    )]
    Unsupported { target: String, via: &'static str },
    #[error("a bastion forwards requests as the user itself; omit --as, or use --via=proxy")]
    Impersonation,
    #[error("cannot forward a port of {target}: {source}")]
    PortForward { target: String, source: DialError },
}

/// Opens the targets and serves them until the drain begins.
///
/// # Errors
/// [`OpenError`] before anything is served.
pub async fn run(context: Context, options: Options, drain: Drain) -> Result<(), OpenError> {
    let Context {
        namespace,
        servers,
        credentials,
        request_timeout,
        ..
    } = context;
    let api = Rc::new(Api::new(servers, credentials, request_timeout));
    // The absolute form has no headers for it: they are those of the application.
    let impersonates = !api.client.credentials.impersonation().is_empty();
    if impersonates && options.via == Some(Via::Bastion) {
        return Err(OpenError::Impersonation);
    }
    let is_bastion = match options.via {
        None if impersonates => false,
        None | Some(Via::Bastion) => {
            let is_bastion = probe::is_bastion(&api).await?;
            if !is_bastion && options.via.is_some() {
                let server = api.client.names();
                return Err(OpenError::NotBastion { server });
            }
            is_bastion
        }
        Some(Via::PortForward | Via::Proxy) => false,
    };
    let mut found = Vec::new();
    for reference in &options.targets {
        let port = options.port.as_deref();
        let can_skip = is_bastion && matches!(reference.kind, Kind::Service | Kind::Pod);
        found.push(
            match Found::look_up(&api, &namespace, reference, port).await {
                Err(error) if can_skip && error.is_unavailable() => {
                    Found::unverified(&namespace, reference, port)?
                }
                found => found?,
            },
        );
    }
    let listener = Listener::bind(options.local_port).await?;
    let mut sites = Vec::new();
    for found in found {
        let site = open(&api, found, options.via, is_bastion).await?;
        sites.push(Rc::new(site));
    }
    serve(listener, sites, &options, drain).await;
    Ok(())
}

/// Chooses the way to a target.
async fn open(
    api: &Rc<Api>,
    found: Found,
    via: Option<Via>,
    is_bastion: bool,
) -> Result<Site, OpenError> {
    let target = format!("{}/{}", found.kind.singular(), found.name);
    let unsupported = |via| OpenError::Unsupported {
        target: target.clone(),
        via,
    };
    let host = || match &found.pods {
        Pods::Selected(_) if found.kind != Kind::Service => Host::Pod(ready_pods(api, &found)),
        _ => Host::Fixed(found.name.clone()),
    };
    // A bastion takes TLS for a port by its app protocol only, and a port is forwarded without TLS.
    let tls_port = found
        .port
        .as_ref()
        .filter(|port| port.scheme() == Scheme::Https);
    let is_forwarded = tls_port.is_none_or(|port| port.app_protocol.is_some());
    if is_bastion && found.kind != Kind::Node && is_forwarded {
        let route = Route::Bastion { host: host() };
        return Ok(Site::new(found, route, Rc::clone(api)));
    }
    if via == Some(Via::Bastion) {
        return Err(unsupported("a bastion"));
    }
    if via != Some(Via::Proxy) {
        let forwarded = match tls_port {
            None => port_forward(api, &found).await,
            Some(_) => None,
        };
        match forwarded {
            None if via.is_some() => return Err(unsupported("port-forwarding")),
            None => {}
            Some(Ok(client)) => {
                let route = Route::PortForward { client };
                return Ok(Site::new(found, route, Rc::clone(api)));
            }
            Some(Err(source)) if via.is_some() => {
                return Err(OpenError::PortForward { target, source });
            }
            Some(Err(error)) => warn(format_args!(
                "cannot forward a port of {target}: {error}; using /proxy/ instead"
            )),
        }
    }
    warn(format_args!(
        "{target} is opened through /proxy/ of the API server: absolute links of scripts, cookies \
         with other paths and logins of many applications do not work there"
    ));
    let route = Route::Subresource { host: host() };
    Ok(Site::new(found, route, Rc::clone(api)))
}

fn ready_pods(api: &Rc<Api>, found: &Found) -> ReadyPods {
    ReadyPods::new(Rc::clone(api), &found.namespace, found.pods.clone())
}

/// Returns a client of the pods of a target, after a first connection shows that the user may use
/// port-forwarding. A target without a ready pod is opened, too. `None` if it has no pods.
async fn port_forward(api: &Rc<Api>, found: &Found) -> Option<Result<PodClient, DialError>> {
    let port = found.port.clone()?;
    if found.pods == Pods::None {
        return None;
    }
    let pods = ready_pods(api, found);
    let dial = PodDial::new(Rc::clone(api), pods, &found.namespace, port.target);
    let name = format!("{}/{}", found.kind.singular(), found.name);
    match dial.check().await {
        Ok(()) => {}
        Err(error @ DialError::NoPod(_)) => {
            eprintln!("{name}: {}", printable(&error.to_string()));
        }
        Err(error) => return Some(Err(error)),
    }
    Some(Ok(PodClient::new(name, dial)))
}

/// Prints the URLs, opens the browser, and serves until the drain begins.
async fn serve(listener: Listener, sites: Vec<Rc<Site>>, options: &Options, drain: Drain) {
    let parts: Vec<_> = sites.iter().map(|site| host_parts(&site.found)).collect();
    let hosts = Hosts::new(&parts);
    let port = listener.port;
    let urls: Vec<_> = (0..sites.len())
        .map(|index| url(hosts.host(index), port))
        .collect();
    for (site, url) in sites.iter().zip(&urls) {
        println!("{}: {url}", site.describe());
    }
    if sites.len() == 1 {
        println!("If the browser does not find that host: http://127.0.0.1:{port}/");
    }
    let tasks = TaskTracker::new();
    let handler = Rc::new(SiteHandler {
        hosts,
        sites,
        port,
        tasks: tasks.clone(),
    });
    if options.browser {
        match browser::obstacle(|name| std::env::var_os(name)) {
            None => urls.into_iter().for_each(browser::open),
            Some(obstacle) => println!("{}", obstacle.describe()),
        }
    }
    listener.serve(handler, drain.clone(), tasks.clone()).await;
    tasks.close();
    // Pages may have streams that do not end.
    tokio::select! {
        () = tasks.wait() => {}
        () = tokio::time::sleep(DRAIN_TIMEOUT) => {}
        () = drain.forced() => {}
    }
}

fn host_parts(found: &Found) -> HostParts<'_> {
    HostParts {
        name: &found.name,
        namespace: (found.kind != Kind::Node).then_some(&*found.namespace),
        kind: found.kind.singular(),
        port: found.port.as_ref().map_or(0, |port| port.number),
    }
}
