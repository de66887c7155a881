//! The `/proxy/` of the Kubernetes apiserver as a product of its own.
//!
//! ```text
//!    requests                                          facts
//!    listen                                            watch
//!      │  TLS, HTTP/1.1 and HTTP/2                       │  kubernetes: list + watch   manifests: files, reloaded
//!      ▼                                                 ▼
//!    proxy ── the life of one request                  cluster ── the index: nodes, pods, services, endpoints
//!      │                                                 ▲
//!      ├─ identify   who calls?              → Identity  │  apply / delete / reset, one writer;
//!      ├─ target     what does the path name? → Target   │  readers take immutable snapshots
//!      ├─ authorize  may they?               → Permit    │
//!      ├─ resolve    which addresses?        → Route ────┘
//!      ├─ balance    which endpoint now?     → Order
//!      ├─ forward    send, stream, upgrade   → answer
//!      └─ rewrite    Location, pages         → what the client can follow
//! ```
//!
//! `ARCHITECTURE.md` tells the rest. The library is there for the binary and its tests; its API
//! promises nothing.

// The command, and what wires everything.
pub mod app;
pub mod cli;
pub mod demo;

// The way of a request.
pub mod listen;
pub mod proxy;

pub mod authenticate;
pub mod authorize;
pub mod balance;
pub mod forward;
pub mod resolve;
pub mod rewrite;

// The way of facts.
pub mod cluster;
pub mod trust;
pub mod watch;

// What both stand on.
pub mod admin;
pub mod config;
pub mod connection;
pub mod drain;
pub mod file_watch;
pub mod http;
pub mod metrics;
pub mod model;
pub mod ready;
pub mod review;
pub mod supervise;
pub mod telemetry;
pub mod tls;
pub mod ttl_cache;
