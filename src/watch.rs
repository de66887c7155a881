//! Sources of facts: each tells the index what there is, and goes on telling what changes.

pub mod kubernetes;
pub mod manifests;
mod objects;
