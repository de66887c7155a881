//! kube-bastion: the `/proxy/` subresource of the Kubernetes API server, served outside of it.
//!
//! ```text
//!   client                                               Kubernetes API, or manifests
//!     │                                                    │
//!     ▼                                                    ▼
//!   listen    TLS, HTTP/1.1 and HTTP/2                   watch     lists and watches objects
//!     │                                                    │
//!     ▼                                                    │ apply / delete / reset, one writer
//!   proxy     runs the stages in order                     ▼
//!     │                                                  cluster, trust   snapshots for readers
//!     ├─ authenticate  credentials            → Caller ◄─┤ trust
//!     ├─ authorize     Identity, Verb, Target → Permit ◄─┤ trust
//!     ├─ resolve       Permit                 → Route  ◄─┘ cluster
//!     ├─ balance       Route                  → endpoints in the order of attempts
//!     ├─ forward       request                → response or upgrade
//!     └─ rewrite       response               → links and redirects that lead through the proxy
//!     │
//!     ▼
//!   client
//! ```
//!
//! `model::target` parses the path into a target between `authenticate` and `authorize`. Only
//! `authorize` can create a `Permit`, and `resolve` and `forward` require one.
//!
//! `ARCHITECTURE.md` has the details. The library exists for the binary and its tests; its API is
//! not stable.

// Command line and wiring.
pub mod app;
pub mod cli;
pub mod demo;
pub mod desk;

// Request path.
pub mod listen;
pub mod loadbalancer;
pub mod proxy;

pub mod authenticate;
pub mod authorize;
pub mod resolve;

pub mod balance;
pub mod forward;
pub mod rewrite;
pub mod tunnel;

// Cluster state.
pub mod cluster;
pub mod trust;
pub mod watch;

// Shared infrastructure.
pub mod admin;
pub mod apiservers;
pub mod client_connection;
pub mod config;
pub mod drain;
pub mod file_watch;
pub mod http;
pub mod kubeconfig;
pub mod metrics;
pub mod model;
pub mod ready;
pub mod review;
pub mod supervise;
pub mod telemetry;
#[cfg(test)]
mod testing;
pub mod tls;
pub mod ttl_cache;
