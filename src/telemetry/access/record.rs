//! Record of a request, and the recorder of a worker that consumes it.

use std::cell::{Cell, RefCell};
use std::net::IpAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use http::{HeaderValue, Method, StatusCode, Version};

use super::format::{Line, MAX_AUDIT_ID_BYTES, MAX_PATH_BYTES};
use super::writer::{AccessLog, Buffers};
use crate::http::RequestTarget;
use crate::metrics::{Metrics, TargetKind};
use crate::model::identity::ANONYMOUS_USER;
use crate::model::tunnel::{PortRef, TunnelObject};
use crate::model::{Endpoint, Identity, Resource, Target, Verb};

/// Destination of the records of one worker: the metrics and the access log. Stays on the thread of
/// the worker.
#[derive(Debug)]
pub struct Recorder {
    metrics: Metrics,
    buffers: Option<RefCell<Buffers>>,
}

impl Recorder {
    /// Creates the recorder of a worker; `log` is `None` if the access log is off.
    pub fn new(metrics: Metrics, log: Option<&AccessLog>) -> Rc<Self> {
        let buffers = log.and_then(Buffers::new).map(RefCell::new);
        Rc::new(Self { metrics, buffers })
    }

    /// Sends the buffered lines to the writer. Each worker calls it several times a second.
    pub fn flush(&self) {
        if let Some(buffers) = &self.buffers {
            buffers.borrow_mut().flush(&self.metrics.access_lines_lost);
        }
    }

    fn finish(&self, record: &Record) {
        let duration = record.started.elapsed();
        let (received, sent) = (record.received(), record.sent);
        self.metrics.requests.record(
            if record.is_for_api_server {
                TargetKind::ApiServer
            } else {
                record.resource.into()
            },
            (&record.method).into(),
            record.code,
            duration,
            received,
            sent,
        );
        if let Some(buffers) = &self.buffers {
            let line = Line { record, duration };
            let lost = &self.metrics.access_lines_lost;
            buffers.borrow_mut().write(&line, lost);
        }
    }
}

impl Drop for Recorder {
    fn drop(&mut self) {
        self.flush();
    }
}

/// Properties of a request, filled in by the pipeline stages. Dropping it records the request.
#[derive(Debug)]
pub struct Record {
    recorder: Rc<Recorder>,
    started: Instant,
    pub method: Method,
    pub target: RequestTarget,
    pub version: Version,
    pub client: IpAddr,
    pub audit_id: HeaderValue,
    pub identity: Option<Arc<Identity>>,
    /// The user that the caller impersonates.
    pub impersonated_user: Option<Arc<Identity>>,
    pub verb: Option<Verb>,
    pub resource: Option<Resource>,
    pub namespace: String,
    /// The id of the path, with scheme and port.
    pub id: String,
    /// The endpoint that was tried last. Set before the dial, so that failed and abandoned requests
    /// have it as well.
    pub endpoint: Option<Endpoint>,
    /// The request is for an API server.
    pub is_for_api_server: bool,
    /// Name of the API server that responded.
    pub api_server: Option<Arc<str>>,
    pub code: StatusCode,
    /// Reason why the bastion rejected or failed the request.
    pub error: Option<String>,
    /// Bytes of the body or of the tunnel from the client, counted while they pass. `None` without
    /// a body.
    pub received: Option<Rc<Cell<u64>>>,
    /// Bytes of the body or of the tunnel to the client.
    pub sent: u64,
}

impl Record {
    /// Starts a record. Boxed, because it is large and moves through the stages and the response
    /// body.
    pub fn start(
        recorder: &Rc<Recorder>,
        method: Method,
        target: RequestTarget,
        version: Version,
        client: IpAddr,
        audit_id: HeaderValue,
    ) -> Box<Self> {
        Box::new(Self {
            recorder: Rc::clone(recorder),
            started: Instant::now(),
            method,
            target,
            version,
            client,
            audit_id,
            identity: None,
            impersonated_user: None,
            verb: None,
            resource: None,
            namespace: String::new(),
            id: String::new(),
            endpoint: None,
            is_for_api_server: false,
            api_server: None,
            // The code of a client that leaves before the response, as in nginx.
            code: StatusCode::from_u16(499).expect("499 is a valid status code"),
            error: None,
            received: None,
            sent: 0,
        })
    }

    /// Sets the target of the request.
    pub fn name(&mut self, target: &Target<'_>, verb: Verb) {
        self.verb = Some(verb);
        self.resource = Some(target.resource);
        self.namespace = target.namespace.clone().into_owned();
        self.id = target.id.clone().into_owned();
    }

    /// Sets the service or pod of a tunnel.
    pub fn name_tunnel(&mut self, object: &TunnelObject, port: &PortRef) {
        self.verb = Some(Verb::Create);
        self.resource = Some(object.resource);
        self.namespace.clone_from(&object.namespace);
        self.id = format!("{}:{port}", object.name);
    }

    /// Returns the path, or the authority of a CONNECT.
    pub(super) fn path(&self) -> &str {
        self.target.tunnel().unwrap_or_else(|| self.target.path())
    }

    /// Releases the memory of the request head beyond what is logged, for a tunnel, which may be open
    /// for days.
    pub fn release_head(&mut self) {
        let path = self.path();
        let end = path.floor_char_boundary(MAX_PATH_BYTES + 1);
        self.target = RequestTarget::from_valid_path(&path[..end]);
        let id = self.audit_id.as_bytes();
        let end = id.len().min(MAX_AUDIT_ID_BYTES + 1);
        if let Ok(id) = HeaderValue::from_bytes(&id[..end]) {
            self.audit_id = id;
        }
    }

    /// Returns true if the caller is authenticated. An anonymous caller is not, independently of
    /// its permissions.
    pub(super) fn is_authenticated(&self) -> bool {
        self.identity
            .as_ref()
            .is_some_and(|identity| identity.user != ANONYMOUS_USER)
    }

    pub(super) fn received(&self) -> u64 {
        self.received.as_deref().map_or(0, Cell::get)
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        // `finish` borrows the record, so the recorder cannot be borrowed from it.
        let recorder = Rc::clone(&self.recorder);
        recorder.finish(self);
    }
}
