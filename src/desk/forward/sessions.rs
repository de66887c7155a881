//! Sessions of the port-forward protocol, one per pod, shared by all targets.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;

use http::StatusCode;
use tokio::sync::Mutex;
use tokio::time::Instant;

use crate::desk::api::Api;
use crate::desk::portforward::{self, OpenError, PortStream, Session, StreamError};
use crate::desk::targets::DialError;

/// Maximum number of pods whose sessions stay open without a connection.
const MAX_SESSIONS: usize = 16;

/// Namespace and name of a pod.
type PodName = (String, String);

/// Open sessions. A session that is dropped ends after its last connection.
#[derive(Debug)]
pub struct Sessions {
    api: Rc<Api>,
    pods: RefCell<HashMap<PodName, Rc<Slot>>>,
}

/// Session of a pod. Locked while it is opened.
#[derive(Debug)]
struct Slot {
    session: Mutex<Option<Session>>,
    /// Number of attempts to open a session so far, and the failure of the last one.
    attempts: Cell<u64>,
    failure: RefCell<Option<Arc<OpenError>>>,
    used: RefCell<Instant>,
}

impl Sessions {
    pub fn new(api: Rc<Api>) -> Self {
        Self {
            api,
            pods: RefCell::default(),
        }
    }

    /// Opens a session to a pod unless there is one, which shows that the user may.
    ///
    /// # Errors
    /// [`DialError`]
    pub async fn check(&self, namespace: &str, pod: &str) -> Result<(), DialError> {
        self.session(namespace, pod).await.map(drop)
    }

    /// Returns true if the session of a pod has ended, which it forgets.
    pub fn has_ended(&self, namespace: &str, pod: &str) -> bool {
        let mut pods = self.pods.borrow_mut();
        let name = (namespace.to_owned(), pod.to_owned());
        let Some(slot) = pods.get(&name) else {
            return false;
        };
        let has_ended = match slot.session.try_lock() {
            Ok(session) => session.as_ref().is_some_and(|session| !session.is_open()),
            // It is being opened.
            Err(_) => false,
        };
        if has_ended {
            pods.remove(&name);
        }
        has_ended
    }

    /// Opens a connection to a port of a pod.
    ///
    /// # Errors
    /// [`DialError`]
    pub async fn connect(
        &self,
        namespace: &str,
        pod: &str,
        port: u16,
    ) -> Result<PortStream, DialError> {
        let session = self.session(namespace, pod).await?;
        session.connect(port).await.map_err(DialError::from)
    }

    /// Returns the session of a pod, or opens one. One that a local client holds up is left to its
    /// connections. Connections that wait for the same attempt share its failure: one after the
    /// other, each would wait for the timeout of a pod whose node is gone.
    async fn session(&self, namespace: &str, pod: &str) -> Result<Session, DialError> {
        let slot = self.slot(namespace, pod);
        let before = slot.attempts.get();
        let mut current = slot.session.lock().await;
        if let Some(session) = &*current
            && session.is_open()
            && !session.is_held_up()
        {
            return Ok(session.clone());
        }
        if slot.attempts.get() != before
            && let Some(failure) = &*slot.failure.borrow()
        {
            return Err(DialError::Session(Arc::clone(failure)));
        }
        let client = &self.api.client;
        let opened = portforward::open(&client.forwarder, &client.credentials, namespace, pod);
        let opened = opened.await.map_err(Arc::new);
        slot.attempts.set(slot.attempts.get() + 1);
        *slot.failure.borrow_mut() = opened.as_ref().err().cloned();
        let session = opened.map_err(DialError::Session)?;
        *current = Some(session.clone());
        Ok(session)
    }

    fn slot(&self, namespace: &str, pod: &str) -> Rc<Slot> {
        let mut pods = self.pods.borrow_mut();
        let name = (namespace.to_owned(), pod.to_owned());
        if pods.len() >= MAX_SESSIONS && !pods.contains_key(&name) {
            // Sessions of pods that are gone are among those used least recently.
            let oldest = pods.iter().min_by_key(|(_, slot)| *slot.used.borrow());
            if let Some(oldest) = oldest.map(|(name, _)| name.clone()) {
                pods.remove(&oldest);
            }
        }
        let slot = pods.entry(name).or_insert_with(|| {
            Rc::new(Slot {
                session: Mutex::default(),
                attempts: Cell::new(0),
                failure: RefCell::default(),
                used: RefCell::new(Instant::now()),
            })
        });
        *slot.used.borrow_mut() = Instant::now();
        Rc::clone(slot)
    }
}

/// Returns true for a failure that another pod, or the same one later, may not have.
pub fn is_transient(error: &DialError) -> bool {
    match error {
        DialError::Pod(StreamError::Session(_) | StreamError::NoReply { .. }) => true,
        DialError::Session(error) => match &**error {
            OpenError::Refused { status, .. } => {
                *status == StatusCode::NOT_FOUND || status.is_server_error()
            }
            OpenError::Api(_) | OpenError::Timeout => true,
            OpenError::Credentials(_) => false,
        },
        _ => false,
    }
}
