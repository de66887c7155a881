//! The access log. A request fills one [`Record`]; dropping it feeds the metrics and writes the line.
//!
//! Lines gather in a buffer per worker and leave in large pieces through one writer thread, because a write per
//! request costs more than all the rest of the log. Where standard output does not take them, lines are lost and
//! counted; requests never wait for the log.

use std::cell::{Cell, RefCell};
use std::fmt;
use std::io::Write;
use std::net::IpAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::mpsc::{SyncSender, TrySendError, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use http::{Method, StatusCode, Uri, Version};
use serde::Serialize;

use crate::config::LogFormat;
use crate::metrics::Metrics;
use crate::model::{Endpoint, Identity, Resource, Target, Verb};

/// A piece is sent on when it has grown to this, or when [`Recorder::flush`] is called.
const PIECE: usize = 32 * 1024;
/// Pieces that may wait for the writer before lines are lost.
const WAITING: usize = 64;

/// The process's access log: a thread that writes what the workers send.
#[derive(Debug)]
pub struct AccessLog {
    pieces: Option<SyncSender<Vec<u8>>>,
    format: LogFormat,
    thread: Option<JoinHandle<()>>,
}

impl AccessLog {
    /// Starts the writer on `sink`.
    ///
    /// # Errors
    /// Where the thread cannot be started.
    pub fn start(format: LogFormat, mut sink: impl Write + Send + 'static) -> std::io::Result<Self> {
        let (pieces, received) = sync_channel::<Vec<u8>>(WAITING);
        let thread = std::thread::Builder::new().name("access-log".into()).spawn(move || {
            for piece in received {
                // A closed pipe is no reason to stop serving.
                let _ = sink.write_all(&piece).and_then(|()| sink.flush());
            }
        })?;
        Ok(Self { pieces: Some(pieces), format, thread: Some(thread) })
    }
}

impl Drop for AccessLog {
    /// Waits until what the workers sent is written. Their recorders are gone by then.
    fn drop(&mut self) {
        self.pieces = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Where the records of one worker go. Lives on that worker's thread.
#[derive(Debug)]
pub struct Recorder {
    metrics: Metrics,
    lines: Option<RefCell<Lines>>,
}

#[derive(Debug)]
struct Lines {
    pieces: SyncSender<Vec<u8>>,
    format: LogFormat,
    buffer: Vec<u8>,
    count: u64,
}

impl Recorder {
    /// `log` is none where the access log is off.
    pub fn new(metrics: Metrics, log: Option<&AccessLog>) -> Rc<Self> {
        let lines = log.and_then(|log| {
            let pieces = log.pieces.clone()?;
            Some(RefCell::new(Lines { pieces, format: log.format, buffer: Vec::with_capacity(PIECE), count: 0 }))
        });
        Rc::new(Self { metrics, lines })
    }

    /// Hands what has gathered to the writer. Each worker calls it a few times a second.
    pub fn flush(&self) {
        if let Some(lines) = &self.lines {
            lines.borrow_mut().flush(&self.metrics);
        }
    }

    fn finish(&self, record: &Record) {
        let duration = record.started.elapsed();
        let (received, sent) = (record.received(), record.sent);
        self.metrics.requests.record(
            record.resource.into(),
            (&record.method).into(),
            record.code,
            duration,
            received,
            sent,
        );
        if let Some(lines) = &self.lines {
            let mut lines = lines.borrow_mut();
            lines.write(&Line::of(record, duration));
            if lines.buffer.len() >= PIECE {
                lines.flush(&self.metrics);
            }
        }
    }
}

impl Drop for Recorder {
    fn drop(&mut self) {
        self.flush();
    }
}

impl Lines {
    fn write(&mut self, line: &Line<'_>) {
        self.count += 1;
        match self.format {
            LogFormat::Json => {
                serde_json::to_writer(&mut self.buffer, line).expect("a Vec takes whatever is written");
                self.buffer.push(b'\n');
            }
            LogFormat::Text => writeln!(self.buffer, "{line}").expect("a Vec takes whatever is written"),
        }
    }

    fn flush(&mut self, metrics: &Metrics) {
        if self.buffer.is_empty() {
            return;
        }
        let piece = std::mem::replace(&mut self.buffer, Vec::with_capacity(PIECE));
        let count = std::mem::take(&mut self.count);
        if let Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) = self.pieces.try_send(piece) {
            metrics.access_lines_lost.inc_by(count);
        }
    }
}

/// What becomes known of a request while it is served. Dropping it ends the request.
#[derive(Debug)]
pub struct Record {
    recorder: Rc<Recorder>,
    started: Instant,
    pub method: Method,
    pub uri: Uri,
    pub version: Version,
    pub client: IpAddr,
    pub audit_id: http::HeaderValue,
    pub identity: Option<Arc<Identity>>,
    pub verb: Option<Verb>,
    pub resource: Option<Resource>,
    pub namespace: String,
    /// The id of the path, scheme and port included.
    pub id: String,
    pub endpoint: Option<Endpoint>,
    pub code: StatusCode,
    /// Why the bastion itself refused or failed the request.
    pub error: Option<String>,
    /// Bytes of the body, or of the tunnel, from the client: counted where they pass. None where there is no body.
    pub received: Option<Rc<Cell<u64>>>,
    /// Bytes of the body, or of the tunnel, to the client.
    pub sent: u64,
}

impl Record {
    pub fn start(
        recorder: &Rc<Recorder>,
        method: Method,
        uri: Uri,
        version: Version,
        client: IpAddr,
        audit_id: http::HeaderValue,
    ) -> Self {
        Self {
            recorder: Rc::clone(recorder),
            started: Instant::now(),
            method,
            uri,
            version,
            client,
            audit_id,
            identity: None,
            verb: None,
            resource: None,
            namespace: String::new(),
            id: String::new(),
            endpoint: None,
            // What stands when the client goes away before there is an answer.
            code: StatusCode::from_u16(499).expect("499 is a code"),
            error: None,
            received: None,
            sent: 0,
        }
    }

    /// The path names a target.
    pub fn name(&mut self, target: &Target<'_>, verb: Verb) {
        self.verb = Some(verb);
        self.resource = Some(target.resource);
        self.namespace = target.namespace.clone().into_owned();
        self.id = target.id.clone().into_owned();
    }

    fn received(&self) -> u64 {
        self.received.as_deref().map_or(0, Cell::get)
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        let recorder = Rc::clone(&self.recorder);
        recorder.finish(self);
    }
}

/// One line, in the order in which it is written.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Line<'a> {
    time: String,
    user: &'a str,
    client: IpAddr,
    verb: &'static str,
    method: &'a str,
    resource: &'static str,
    namespace: &'a str,
    name: &'a str,
    /// Without the query, which may hold secrets.
    path: &'a str,
    protocol: Protocol,
    endpoint: Option<String>,
    endpoint_name: Option<&'a str>,
    code: u16,
    received: u64,
    sent: u64,
    /// Seconds.
    duration: f64,
    audit_id: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<&'a str>,
}

impl<'a> Line<'a> {
    fn of(record: &'a Record, duration: Duration) -> Self {
        Self {
            time: format!("{:.3}", jiff::Timestamp::now()),
            user: record.identity.as_deref().map_or("", |identity| &identity.user),
            client: record.client,
            verb: record.verb.map_or("", Verb::as_str),
            method: record.method.as_str(),
            resource: record.resource.map_or("", Resource::plural),
            namespace: &record.namespace,
            name: &record.id,
            path: record.uri.path(),
            protocol: Protocol(record.version),
            endpoint: record.endpoint.as_ref().map(|endpoint| endpoint.address.to_string()),
            endpoint_name: record.endpoint.as_ref().map(|endpoint| &*endpoint.name),
            code: record.code.as_u16(),
            received: record.received(),
            sent: record.sent,
            duration: f64::from(u32::try_from(duration.as_micros()).unwrap_or(u32::MAX)) / 1e6,
            audit_id: record.audit_id.to_str().unwrap_or_default(),
            error: record.error.as_deref(),
        }
    }
}

/// The text form: `key=value`, strings that come from outside in quotes.
impl fmt::Display for Line<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { time, client, verb, method, resource, code, received, sent, duration, .. } = self;
        let Protocol(protocol) = self.protocol;
        let namespace = if self.namespace.is_empty() { "" } else { "/" };
        write!(
            f,
            "{time} {code} {method} {:?} {protocol:?} user={:?} client={client} verb={verb} \
             target={resource}/{}{namespace}{} ",
            self.path,
            self.user,
            self.namespace.escape_debug(),
            self.name.escape_debug(),
        )?;
        match (&self.endpoint, self.endpoint_name) {
            (Some(address), Some(name)) => write!(f, "endpoint={address} ({name}) ")?,
            _ => f.write_str("endpoint=- ")?,
        }
        write!(f, "received={received} sent={sent} duration={duration:.6} audit-id={:?}", self.audit_id)?;
        self.error.map_or(Ok(()), |error| write!(f, " error={error:?}"))
    }
}

struct Protocol(Version);

impl Serialize for Protocol {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(match self.0 {
            Version::HTTP_2 => "HTTP/2.0",
            Version::HTTP_10 => "HTTP/1.0",
            _ => "HTTP/1.1",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use prometheus_client::registry::Registry;
    use std::sync::Mutex;

    #[derive(Clone, Default)]
    struct Sink(Arc<Mutex<Vec<u8>>>);

    impl Write for Sink {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    fn logged(format: LogFormat) -> String {
        let sink = Sink::default();
        let log = AccessLog::start(format, sink.clone()).unwrap();
        let recorder = Recorder::new(Metrics::new(&mut Registry::default()), Some(&log));
        let uri = Uri::from_static("/api/v1/namespaces/ns/pods/p:80/proxy/x?token=secret");
        let audit_id = http::HeaderValue::from_static("id-1");
        let client = "192.0.2.1".parse().unwrap();
        let mut record = Record::start(&recorder, Method::GET, uri, Version::HTTP_11, client, audit_id);
        record.identity = Some(Arc::new(Identity::new("a \"b\"\n", "", vec![], Default::default())));
        record.verb = Some(Verb::Get);
        record.resource = Some(Resource::Pods);
        (record.namespace, record.id) = ("ns".into(), "p:80".into());
        record.code = StatusCode::OK;
        record.sent = 7;
        drop(record);
        drop(recorder);
        drop(log);
        let bytes = sink.0.lock().unwrap().clone();
        String::from_utf8(bytes).unwrap()
    }

    #[test]
    fn a_text_line_tells_who_did_what_and_keeps_the_query_to_itself() {
        let line = logged(LogFormat::Text);
        assert_eq!(line.lines().count(), 1, "{line}");
        for part in
            [" 200 GET ", r#"user="a \"b\"\n""#, "verb=get", "target=pods/ns/p:80 ", "sent=7", r#"audit-id="id-1""#]
        {
            assert!(line.contains(part), "{part} in {line}");
        }
        assert!(!line.contains("secret"), "{line}");
    }

    #[test]
    fn a_json_line_is_json() {
        let line: serde_json::Value = serde_json::from_str(&logged(LogFormat::Json)).unwrap();
        assert_eq!(line["user"], "a \"b\"\n");
        assert_eq!(line["path"], "/api/v1/namespaces/ns/pods/p:80/proxy/x");
        assert_eq!((&line["code"], &line["sent"]), (&200.into(), &7.into()));
    }
}
