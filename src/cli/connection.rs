//! Flags of kubectl for the connection to a cluster, which the commands of the desk flatten.

pub use crate::desk::ConnectionFlags;
