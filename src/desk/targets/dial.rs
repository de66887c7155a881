//! Failures to connect to a pod.

use std::sync::Arc;

use http::StatusCode;

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
    /// Shared by the connections that waited for the session.
    #[error(transparent)]
    Session(Arc<OpenError>),
    #[error("cannot connect to the pod: {0}")]
    Pod(#[from] StreamError),
}

impl DialError {
    /// Returns the status with which the API server has refused a session.
    pub fn refused_session(&self) -> Option<StatusCode> {
        match self {
            Self::Session(error) => match &**error {
                OpenError::Refused { status, .. } => Some(*status),
                _ => None,
            },
            _ => None,
        }
    }
}

impl From<OpenError> for DialError {
    fn from(error: OpenError) -> Self {
        Self::Session(Arc::new(error))
    }
}

impl From<ApiError> for DialError {
    fn from(error: ApiError) -> Self {
        Self::Api(Box::new(error))
    }
}
