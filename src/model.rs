//! Domain types and pure parsing. No I/O.

pub mod address;
pub mod attributes;
pub mod causes;
pub mod client;
pub mod decode;
pub mod dns;
pub mod endpoint;
pub mod identity;
pub mod network;
pub mod nulls;
pub mod path;
pub mod pem;
pub mod protocol;
pub mod proxy_header;
pub mod quote;
pub mod redact;
pub mod similar;
pub mod status;
pub mod target;
pub mod text;
pub mod tunnel;
pub mod yaml;

pub use attributes::{Attributes, Resource, Verb};
pub use causes::error_chain;
pub use client::ClientAddress;
pub use endpoint::{Endpoint, Scheme, ServiceAddress};
pub use identity::Identity;
pub use network::{Network, Networks};
pub use protocol::Protocol;
pub use status::Status;
pub use target::Target;
