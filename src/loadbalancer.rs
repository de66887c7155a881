//! Controller for Services of `type: LoadBalancer`.
//!
//! ```text
//!   Services, nodes, endpoints … ─► inventory ─► assign ─► listeners ─► data path, on all replicas
//!   (watch)                                      │  ▲
//!                                                │  └── listeners that cannot be bound
//!                                                ▼
//!                                  lease ─► status ─► API: status and events, by the elected one
//! ```

pub mod assign;
pub mod controller;
pub mod events;
pub mod inventory;
pub mod lease;
pub mod listener;
pub mod listeners;
mod metadata;
pub mod nodes;
pub mod request;
pub mod service;
pub mod status;
pub mod writer;

pub use controller::Controller;
pub use inventory::Inventory;
pub use listener::{
    BindFailures, BindReport, ListenerKey, ListenerSpec, Listeners, Protocol, Rejection,
    RequestedAddresses,
};
