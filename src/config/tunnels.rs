//! Section `tunnels`.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::values::fields;

const MAX_TUNNELS: usize = 1_000_000;

/// Tunnels to services and pods by CONNECT and CONNECT-UDP, as `HTTPS_PROXY` and
/// `kube-bastion forward` use them. They carry any protocol, and need the right to `create` `pods/portforward` or
/// `services/portforward`.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct Tunnels {
    /// If false, CONNECT and CONNECT-UDP get a 405.
    #[serde(deserialize_with = "fields::flag")]
    pub enabled: bool,
    /// Maximum number of open tunnels of one user in each replica, from 1 to 1000000. Those for
    /// impersonated users count for the user who opens them. Further ones get a 429.
    #[serde(deserialize_with = "fields::count::<_, 1, MAX_TUNNELS>")]
    #[schemars(range(min = 1, max = MAX_TUNNELS))]
    pub max_per_caller: usize,
}

impl Default for Tunnels {
    fn default() -> Self {
        Self {
            enabled: true,
            max_per_caller: 256,
        }
    }
}
