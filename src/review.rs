//! Reviews by the API (TokenReview, SubjectAccessReview): objects that are created to be answered, never stored.

use std::fmt::Debug;
use std::sync::Arc;
use std::time::Duration;

use kube::Resource;
use kube::api::{Api, PostParams};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::runtime::Handle;

/// How long a failure to ask is the answer: a moment, so that those who wait in line are not each made to wait for a
/// timeout of their own.
pub const FAILURE_HOLDS: Duration = Duration::from_millis(500);

/// Asks the API for reviews of one kind.
#[derive(Clone, Debug)]
pub struct Reviewer<K> {
    api: Api<K>,
    /// Reviews run on the control runtime, where the client's connections live.
    control: Handle,
    timeout: Duration,
}

impl<K> Reviewer<K>
where
    K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Serialize + Send + Sync + 'static,
{
    /// `client` must not retry by itself: a review has a deadline of its own.
    pub fn new(client: kube::Client, control: Handle, timeout: Duration) -> Self {
        Self { api: Api::all(client), control, timeout }
    }

    /// The API's answer, from which `status` takes what was asked for.
    ///
    /// # Errors
    /// Why there is none; it has been logged.
    pub async fn ask<S>(&self, review: K, status: impl FnOnce(K) -> Option<S>) -> Result<S, Arc<str>> {
        let (api, timeout) = (self.api.clone(), self.timeout);
        let asked = self
            .control
            .spawn(async move { tokio::time::timeout(timeout, api.create(&PostParams::default(), &review)).await });
        let fault = match asked.await {
            Ok(Ok(Ok(review))) => match status(review) {
                Some(status) => return Ok(status),
                None => "the API answered without a status".to_owned(),
            },
            Ok(Ok(Err(error))) => error.to_string(),
            Ok(Err(_)) => format!("the API did not answer within {timeout:?}"),
            Err(_) => "the bastion is shutting down".to_owned(),
        };
        tracing::warn!(fault, "a {} failed", K::kind(&()));
        Err(fault.into())
    }
}
