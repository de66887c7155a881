//! Failures to connect to a pod.

use super::pods::NoPod;
use crate::desk::api::ApiError;
use crate::desk::portforward::OpenError;
use crate::desk::portforward::session::StreamError;

/// Failure to open a connection to a pod.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    #[error(transparent)]
    NoPod(#[from] NoPod),
    #[error(transparent)]
    Api(Box<ApiError>),
    #[error(transparent)]
    Session(#[from] OpenError),
    #[error("cannot connect to the pod: {0}")]
    Pod(#[from] StreamError),
}

impl From<ApiError> for DialError {
    fn from(error: ApiError) -> Self {
        Self::Api(Box::new(error))
    }
}
