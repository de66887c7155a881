//! Kubeconfig for a server, such as a bastion, with the login of a context that exists.

mod authority;
mod entries;
mod login;
mod merge;
mod text;

pub use authority::{AuthorityError, Trust, pem, verify};
pub use entries::{Entries, Server};
pub use login::Login;
pub use merge::{MergeError, Merged, Options, merge};
