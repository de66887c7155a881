//! The access log. A request fills one [`Record`]; dropping it feeds the metrics and writes the
//! line.
//!
//! Lines gather in a buffer per worker and leave in large pieces through one writer thread, because
//! a write per request costs more than all the rest of the log. Where standard output does not take
//! them, lines are lost and counted; requests never wait for the log. Lines of requests whose
//! caller is not known gather apart and are lost first, so that a flood by anybody hides nothing
//! that authenticated callers did.

use std::borrow::Cow;
use std::cell::{Cell, RefCell};
use std::convert::Infallible;
use std::fmt;
use std::io::Write;
use std::net::IpAddr;
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{
    Receiver, RecvTimeoutError, SyncSender, TrySendError, channel, sync_channel,
};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use futures::FutureExt;
use http::{Method, StatusCode, Uri, Version};

use crate::config::LogFormat;
use crate::drain::Drain;
use crate::metrics::Metrics;
use crate::model::identity::ANONYMOUS_USER;
use crate::model::{Endpoint, Identity, Resource, Target, Verb};

/// A piece is sent on when it has grown to this, or when [`Recorder::flush`] is called.
const FLUSH_BYTES: usize = 32 * 1024;
/// Pieces that may wait for the writer before lines are lost.
const QUEUE_LEN: usize = 64;
/// Of these, pieces of lines of unknown callers are added only while fewer wait.
const WAITING_UNAUTHENTICATED: usize = QUEUE_LEN / 2;

// What a caller can make long is cut, and the cut is marked: nobody may fill the log, or the memory
// of its queue, with one request. In bytes.
/// A path longer than this is an app's own state, not a name.
const MAX_PATH: usize = 2048;
/// The same before it is known who calls: enough for the names of a target.
const MAX_PATH_UNAUTHENTICATED: usize = 256;
/// kube-apiserver logs as much of an `Audit-Id`.
const MAX_AUDIT_ID: usize = 64;
/// A namespace is a DNS label (63); what is longer names none.
const MAX_NAMESPACE: usize = 64;
/// A scheme, a DNS subdomain (253) and a port (63), and some more for what is no such name.
const MAX_ID: usize = 384;
/// Users of OIDC are an issuer's URL and a subject of up to 255.
const MAX_USER: usize = 512;
/// The methods that are served have 7 at most; others are any token.
const MAX_METHOD: usize = 32;
/// Some chained causes with their addresses.
const MAX_ERROR: usize = 1024;
/// How long the end waits for standard output to take what is left.
const SHUTDOWN_WAIT: Duration = Duration::from_secs(1);
/// The same where the end was forced: enough for a reader that reads, nothing that a person would
/// notice.
const LAST_FORCED: Duration = Duration::from_millis(100);

/// The process's access log: a thread that writes what the workers send.
#[derive(Debug)]
pub struct AccessLog {
    pieces: Option<SyncSender<Batch>>,
    format: LogFormat,
    unwritten: Arc<Unwritten>,
    /// Disconnected once the thread has ended. Only `drop` looks at it: the lock is what lets
    /// workers share the rest.
    ended: Mutex<Receiver<Infallible>>,
    drain: Drain,
}

/// Pieces that were sent and are not written yet.
#[derive(Debug, Default)]
struct Unwritten {
    lines: AtomicU64,
    pieces: AtomicUsize,
}

impl Unwritten {
    fn add(&self, lines: u64) {
        self.lines.fetch_add(lines, Ordering::Relaxed);
        self.pieces.fetch_add(1, Ordering::Relaxed);
    }

    fn remove(&self, lines: u64) {
        self.lines.fetch_sub(lines, Ordering::Relaxed);
        self.pieces.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Some whole lines.
#[derive(Debug, Default)]
struct Batch {
    bytes: Vec<u8>,
    lines: u64,
}

impl AccessLog {
    /// Starts the writer on `sink`. A forced `drain` hurries its end.
    ///
    /// # Errors
    /// Where the thread cannot be started.
    pub fn start(
        format: LogFormat,
        mut sink: impl Write + Send + 'static,
        drain: Drain,
    ) -> std::io::Result<Self> {
        let (pieces, received) = sync_channel::<Batch>(QUEUE_LEN);
        let (end, ended) = channel();
        let unwritten = Arc::new(Unwritten::default());
        let left = Arc::clone(&unwritten);
        std::thread::Builder::new()
            .name("access-log".into())
            .spawn(move || {
                let _end = end;
                for piece in received {
                    // A closed pipe is no reason to stop serving.
                    let _ = sink.write_all(&piece.bytes).and_then(|()| sink.flush());
                    left.remove(piece.lines);
                }
            })?;
        Ok(Self {
            pieces: Some(pieces),
            format,
            unwritten,
            ended: Mutex::new(ended),
            drain,
        })
    }
}

impl Drop for AccessLog {
    /// Waits until what the workers sent is written, but not for a reader that does not read: the
    /// thread, which may be stuck in its write, is left behind for the end of the process. The
    /// recorders are gone by then.
    fn drop(&mut self) {
        self.pieces = None;
        let forced = self.drain.forced().now_or_never().is_some();
        let patience = if forced { LAST_FORCED } else { SHUTDOWN_WAIT };
        let ended = self.ended.get_mut().unwrap_or_else(PoisonError::into_inner);
        if ended.recv_timeout(patience) == Err(RecvTimeoutError::Timeout) {
            let lines = self.unwritten.lines.load(Ordering::Relaxed);
            tracing::warn!(
                lines,
                "standard output takes nothing: the last lines of the access log are lost"
            );
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
    pieces: SyncSender<Batch>,
    unwritten: Arc<Unwritten>,
    format: LogFormat,
    authenticated: Batch,
    unauthenticated: Batch,
    clock: Clock,
}

impl Recorder {
    /// `log` is none where the access log is off.
    pub fn new(metrics: Metrics, log: Option<&AccessLog>) -> Rc<Self> {
        let lines = log.and_then(|log| {
            let pieces = log.pieces.clone()?;
            Some(RefCell::new(Lines {
                pieces,
                unwritten: Arc::clone(&log.unwritten),
                format: log.format,
                authenticated: Batch::with_room(),
                // Takes its memory once there is something to write.
                unauthenticated: Batch::default(),
                clock: Clock::default(),
            }))
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
            lines
                .borrow_mut()
                .write(&Line { record, duration }, &self.metrics);
        }
    }
}

impl Drop for Recorder {
    fn drop(&mut self) {
        self.flush();
    }
}

impl Batch {
    fn with_room() -> Self {
        Self {
            bytes: Vec::with_capacity(FLUSH_BYTES),
            lines: 0,
        }
    }
}

impl Lines {
    fn write(&mut self, line: &Line<'_>, metrics: &Metrics) {
        let authenticated = line.record.is_authenticated();
        let piece = if authenticated {
            &mut self.authenticated
        } else {
            &mut self.unauthenticated
        };
        piece.lines += 1;
        match self.format {
            LogFormat::Json => line.write_json(&mut self.clock, &mut piece.bytes),
            LogFormat::Text => line.write_text(&mut self.clock, &mut piece.bytes),
        }
        if piece.bytes.len() >= FLUSH_BYTES {
            self.send(authenticated, metrics);
        }
    }

    fn flush(&mut self, metrics: &Metrics) {
        self.send(true, metrics);
        self.send(false, metrics);
    }

    fn send(&mut self, authenticated: bool, metrics: &Metrics) {
        let (piece, lost, room) = if authenticated {
            (
                &mut self.authenticated,
                &metrics.access_lines_lost.authenticated,
                QUEUE_LEN,
            )
        } else {
            (
                &mut self.unauthenticated,
                &metrics.access_lines_lost.unauthenticated,
                WAITING_UNAUTHENTICATED,
            )
        };
        if piece.bytes.is_empty() {
            return;
        }
        // Two workers that look at the same time may both add one: the queue's own bound holds all
        // the same.
        if self.unwritten.pieces.load(Ordering::Relaxed) >= room {
            lost.inc_by(piece.lines);
            piece.bytes.clear();
            piece.lines = 0;
            return;
        }
        let piece = std::mem::replace(piece, Batch::with_room());
        let lines = piece.lines;
        // Counted before it is sent, because the writer may be done with it at once.
        self.unwritten.add(lines);
        if let Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) =
            self.pieces.try_send(piece)
        {
            self.unwritten.remove(lines);
            lost.inc_by(lines);
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
    /// Whom the caller impersonates.
    pub impersonated_user: Option<Arc<Identity>>,
    pub verb: Option<Verb>,
    pub resource: Option<Resource>,
    pub namespace: String,
    /// The id of the path, scheme and port included.
    pub id: String,
    /// The endpoint that was tried last, known as soon as it is, whatever becomes of the request.
    pub endpoint: Option<Endpoint>,
    pub code: StatusCode,
    /// Why the bastion itself refused or failed the request.
    pub error: Option<String>,
    /// Bytes of the body, or of the tunnel, from the client: counted where they pass. None where
    /// there is no body.
    pub received: Option<Rc<Cell<u64>>>,
    /// Bytes of the body, or of the tunnel, to the client.
    pub sent: u64,
}

impl Record {
    /// On the heap from the first, because it goes from hand to hand and is large.
    pub fn start(
        recorder: &Rc<Recorder>,
        method: Method,
        uri: Uri,
        version: Version,
        client: IpAddr,
        audit_id: http::HeaderValue,
    ) -> Box<Self> {
        Box::new(Self {
            recorder: Rc::clone(recorder),
            started: Instant::now(),
            method,
            uri,
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
            // What stands when the client goes away before there is an answer.
            code: StatusCode::from_u16(499).expect("499 is a code"),
            error: None,
            received: None,
            sent: 0,
        })
    }

    /// The path names a target.
    pub fn name(&mut self, target: &Target<'_>, verb: Verb) {
        self.verb = Some(verb);
        self.resource = Some(target.resource);
        self.namespace = target.namespace.clone().into_owned();
        self.id = target.id.clone().into_owned();
    }

    /// Whether it is known who calls. An anonymous caller is a stranger, whatever they may do.
    fn is_authenticated(&self) -> bool {
        self.identity
            .as_ref()
            .is_some_and(|identity| identity.user != ANONYMOUS_USER)
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

/// One line. Written by hand, because a serializer's share was a seventh of all instructions of a
/// request.
struct Line<'a> {
    record: &'a Record,
    duration: Duration,
}

impl Line<'_> {
    /// One JSON object.
    fn write_json(&self, clock: &mut Clock, line: &mut Vec<u8>) {
        let Record {
            method,
            version,
            client,
            audit_id,
            endpoint,
            code,
            error,
            namespace,
            id,
            ..
        } = self.record;
        line.extend_from_slice(b"{\"time\":\"");
        clock.write(line);
        line.push(b'"');
        put_string(line, "user", &self.user());
        if let Some(impersonated_user) = &self.record.impersonated_user {
            put_string(
                line,
                "impersonatedUser",
                &cut(&impersonated_user.user, MAX_USER),
            );
        }
        put(line, "client", format_args!("\"{client}\""));
        put_string(line, "verb", self.verb());
        put_string(line, "method", &cut(method.as_str(), MAX_METHOD));
        put_string(line, "resource", self.resource());
        put_string(line, "namespace", &cut(namespace, MAX_NAMESPACE));
        put_string(line, "name", &cut(id, MAX_ID));
        // Without the query, which may hold secrets.
        put_string(line, "path", &self.path());
        put(line, "protocol", format_args!("\"{version:?}\""));
        if let Some(endpoint) = endpoint {
            put(line, "endpoint", format_args!("\"{}\"", endpoint.address));
            put_string(line, "endpointName", &endpoint.name);
        }
        put(line, "code", format_args!("{}", code.as_u16()));
        put(line, "received", format_args!("{}", self.record.received()));
        put(line, "sent", format_args!("{}", self.record.sent));
        put(line, "duration", format_args!("{}", Seconds(self.duration)));
        put_string(
            line,
            "auditId",
            &cut(audit_id.to_str().unwrap_or_default(), MAX_AUDIT_ID),
        );
        if let Some(error) = error {
            put_string(line, "error", &cut(error, MAX_ERROR));
        }
        line.extend_from_slice(b"}\n");
    }

    /// `key=value`, strings that come from outside in quotes: none can pass for a field.
    fn write_text(&self, clock: &mut Clock, line: &mut Vec<u8>) {
        let Record {
            method,
            version,
            client,
            audit_id,
            endpoint,
            code,
            error,
            namespace,
            id,
            sent,
            ..
        } = self.record;
        clock.write(line);
        let slash = if namespace.is_empty() { "" } else { "/" };
        let written = write!(
            line,
            " {} {} {} {version:?} user={} client={client} verb={} target=\"{}/{}{slash}{}\" ",
            code.as_u16(),
            cut(method.as_str(), MAX_METHOD),
            InQuotes(&self.path()),
            InQuotes(&self.user()),
            self.verb(),
            self.resource(),
            Escaped(&cut(namespace, MAX_NAMESPACE)),
            Escaped(&cut(id, MAX_ID)),
        );
        let written = written.and_then(|()| match &self.record.impersonated_user {
            Some(impersonated_user) => {
                write!(
                    line,
                    "impersonated-user={} ",
                    InQuotes(&cut(&impersonated_user.user, MAX_USER))
                )
            }
            None => Ok(()),
        });
        let written = written.and_then(|()| match endpoint {
            Some(Endpoint { address, name }) => {
                write!(line, "endpoint={address} endpoint-name={} ", InQuotes(name))
            }
            None => write!(line, "endpoint=- "),
        });
        let (received, duration) = (self.record.received(), Seconds(self.duration));
        let written = written.and_then(|()| {
            let audit_id = cut(audit_id.to_str().unwrap_or_default(), MAX_AUDIT_ID);
            let audit_id = InQuotes(&audit_id);
            write!(
                line,
                "received={received} sent={sent} duration={duration} audit-id={audit_id}"
            )
        });
        let written = written.and_then(|()| match error {
            Some(error) => write!(line, " error={:?}", cut(error, MAX_ERROR)),
            None => Ok(()),
        });
        written.expect("a Vec takes whatever is written");
        line.push(b'\n');
    }

    fn user(&self) -> Cow<'_, str> {
        cut(
            self.record
                .identity
                .as_deref()
                .map_or("", |identity| &identity.user),
            MAX_USER,
        )
    }

    fn path(&self) -> Cow<'_, str> {
        let known = self.record.is_authenticated();
        cut(
            self.record.uri.path(),
            if known {
                MAX_PATH
            } else {
                MAX_PATH_UNAUTHENTICATED
            },
        )
    }

    fn verb(&self) -> &'static str {
        self.record.verb.map_or("", Verb::as_str)
    }

    fn resource(&self) -> &'static str {
        self.record.resource.map_or("", Resource::plural)
    }
}

/// The text, or its first `most` bytes and a mark. Almost all is short, and costs a comparison.
fn cut(text: &str, most: usize) -> Cow<'_, str> {
    if text.len() <= most {
        return Cow::Borrowed(text);
    }
    let end = (0..=most)
        .rev()
        .find(|end| text.is_char_boundary(*end))
        .unwrap_or_default();
    Cow::Owned([&text[..end], "…"].concat())
}

/// Printable ASCII that ends no string: almost all that is ever logged, and to be told so costs
/// less than to be escaped.
fn is_plain(text: &str) -> bool {
    text.bytes()
        .all(|byte| (0x20..0x7f).contains(&byte) && byte != b'"' && byte != b'\\')
}

/// As `{:?}`, in quotes.
struct InQuotes<'a>(&'a str);

impl fmt::Display for InQuotes<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if is_plain(self.0) {
            write!(f, "\"{}\"", self.0)
        } else {
            write!(f, "{:?}", self.0)
        }
    }
}

/// The same for a part of what stands in quotes.
struct Escaped<'a>(&'a str);

impl fmt::Display for Escaped<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if is_plain(self.0) {
            f.write_str(self.0)
        } else {
            write!(f, "{}", self.0.escape_debug())
        }
    }
}

/// `,"key":value`, where the value is JSON already.
fn put(line: &mut Vec<u8>, key: &str, value: fmt::Arguments<'_>) {
    line.extend_from_slice(b",\"");
    line.extend_from_slice(key.as_bytes());
    line.extend_from_slice(b"\":");
    line.write_fmt(value)
        .expect("a Vec takes whatever is written");
}

fn put_string(line: &mut Vec<u8>, key: &str, value: &str) {
    put(line, key, format_args!(""));
    if is_plain(value) {
        line.push(b'"');
        line.extend_from_slice(value.as_bytes());
        line.push(b'"');
    } else {
        serde_json::to_writer(line, value).expect("a Vec takes whatever is written");
    }
}

/// A duration in seconds, to the microsecond.
struct Seconds(Duration);

impl fmt::Display for Seconds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{:06}", self.0.as_secs(), self.0.subsec_micros())
    }
}

/// Writes the time of day (RFC 3339). Its text is made once a second.
#[derive(Debug, Default)]
struct Clock {
    second: u64,
    text: String,
}

impl Clock {
    fn write(&mut self, line: &mut Vec<u8>) {
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        if now.as_secs() != self.second || self.text.is_empty() {
            self.second = now.as_secs();
            let seconds = i64::try_from(self.second).unwrap_or_default();
            let time = jiff::Timestamp::from_second(seconds).unwrap_or_default();
            time.to_string()
                .trim_end_matches('Z')
                .clone_into(&mut self.text);
        }
        write!(line, "{}.{:03}Z", self.text, now.subsec_millis())
            .expect("a Vec takes whatever is written");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::LostLines;
    use prometheus_client::registry::Registry;

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

    /// A pipe that nobody reads.
    struct Stuck;

    impl Write for Stuck {
        fn write(&mut self, _: &[u8]) -> std::io::Result<usize> {
            loop {
                std::thread::park();
            }
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn the_end_does_not_wait_for_a_reader_that_does_not_read() {
        for (forced, patience) in [(false, SHUTDOWN_WAIT), (true, LAST_FORCED)] {
            let drain = Drain::default();
            let log = AccessLog::start(LogFormat::Text, Stuck, drain.clone()).unwrap();
            log_a_request(&log, |_| ());
            if forced {
                drain.force();
            }
            assert_eq!(log.unwritten.lines.load(Ordering::Relaxed), 1);
            let started = Instant::now();
            drop(log);
            let waited = started.elapsed();
            assert!(
                waited >= patience && waited < patience + Duration::from_millis(500),
                "forced {forced}: {waited:?}"
            );
        }
    }

    #[test]
    fn unauthenticated_lines_are_lost_first() {
        // Nothing is taken out of the queue.
        let log = AccessLog::start(LogFormat::Json, Stuck, Drain::default()).unwrap();
        let metrics = Metrics::new(&mut Registry::default());
        let recorder = Recorder::new(metrics.clone(), Some(&log));
        let log_pieces = |known: bool, count: usize| {
            for _ in 0..count {
                log_to(&recorder, |record| {
                    if !known {
                        record.identity = None;
                    }
                });
                recorder.flush();
            }
        };
        let lost = || {
            let LostLines {
                authenticated,
                unauthenticated,
            } = &metrics.access_lines_lost;
            (authenticated.get(), unauthenticated.get())
        };
        log_pieces(false, QUEUE_LEN);
        assert_eq!(lost(), (0, (QUEUE_LEN - WAITING_UNAUTHENTICATED) as u64));
        log_pieces(true, QUEUE_LEN - WAITING_UNAUTHENTICATED);
        assert_eq!(
            lost(),
            (0, (QUEUE_LEN - WAITING_UNAUTHENTICATED) as u64),
            "half of the queue is kept for them"
        );
        log_pieces(true, 2);
        assert_eq!(lost().0, 2);
    }

    #[test]
    fn fields_are_cut_and_the_cut_is_marked() {
        let long = "é".repeat(10_000);
        let change = |record: &mut Record| {
            record.uri = format!("/{}", "p".repeat(50_000)).parse().unwrap();
            record.method = Method::from_bytes("M".repeat(5000).as_bytes()).unwrap();
            record.audit_id = http::HeaderValue::try_from("a".repeat(5000)).unwrap();
            record.impersonated_user = Some(Arc::new(Identity::new(
                &long,
                "",
                vec![],
                Default::default(),
            )));
            record.identity = record.impersonated_user.clone();
            (record.namespace, record.id, record.error) =
                (long.clone(), long.clone(), Some(long.clone()));
        };
        let line: serde_json::Value =
            serde_json::from_str(&logged(LogFormat::Json, change)).unwrap();
        for (field, most) in [
            ("path", MAX_PATH),
            ("method", MAX_METHOD),
            ("auditId", MAX_AUDIT_ID),
            ("user", MAX_USER),
            ("impersonatedUser", MAX_USER),
            ("namespace", MAX_NAMESPACE),
            ("name", MAX_ID),
            ("error", MAX_ERROR),
        ] {
            let value = line[field].as_str().unwrap();
            assert!(
                value.ends_with('…') && value.len() == most + '…'.len_utf8(),
                "{field}: {}",
                value.len()
            );
        }
        let text = logged(LogFormat::Text, change);
        assert!(
            text.lines().count() == 1 && text.len() < 8192 && text.matches('…').count() == 8,
            "{text}"
        );
        let text = logged(LogFormat::Text, |record| {
            change(record);
            (record.identity, record.impersonated_user) = (None, None);
        });
        assert!(
            text.contains(&format!("/{}…", "p".repeat(MAX_PATH_UNAUTHENTICATED - 1))),
            "{text}"
        );
    }

    fn logged(format: LogFormat, change: impl FnOnce(&mut Record)) -> String {
        let sink = Sink::default();
        let log = AccessLog::start(format, sink.clone(), Drain::default()).unwrap();
        log_a_request(&log, change);
        drop(log);
        let bytes = sink.0.lock().unwrap().clone();
        String::from_utf8(bytes).unwrap()
    }

    fn log_a_request(log: &AccessLog, change: impl FnOnce(&mut Record)) {
        log_to(
            &Recorder::new(Metrics::new(&mut Registry::default()), Some(log)),
            change,
        );
    }

    fn log_to(recorder: &Rc<Recorder>, change: impl FnOnce(&mut Record)) {
        let uri = Uri::from_static("/api/v1/namespaces/ns/pods/p:80/proxy/x?token=secret");
        let audit_id = http::HeaderValue::from_static("id-1");
        let client = "192.0.2.1".parse().unwrap();
        let mut record = Record::start(
            recorder,
            Method::GET,
            uri,
            Version::HTTP_11,
            client,
            audit_id,
        );
        record.identity = Some(Arc::new(Identity::new(
            "a \"b\"\n",
            "",
            vec![],
            Default::default(),
        )));
        record.verb = Some(Verb::Get);
        record.resource = Some(Resource::Pods);
        (record.namespace, record.id) = ("ns".into(), "p:80".into());
        record.code = StatusCode::OK;
        record.endpoint = Some(Endpoint {
            address: "10.0.0.1:80".parse().unwrap(),
            name: "p".into(),
        });
        record.sent = 7;
        change(&mut record);
    }

    /// What is left of a line once all that stands in quotes is taken out: the bastion's own words.
    fn own_words(line: &str) -> String {
        let mut quoted = false;
        let mut escaped = false;
        let outside = |c: &char| {
            let was = quoted;
            if *c == '"' && !escaped {
                quoted = !quoted;
            }
            escaped = *c == '\\' && !escaped;
            !was && !quoted
        };
        line.chars().filter(outside).collect()
    }

    #[test]
    fn nothing_from_outside_can_pass_for_a_field() {
        const FORGED: &str = "x\" forged=1 endpoint=192.0.2.9:80 'forged'\\\"\nforged";
        let line = logged(LogFormat::Text, |record| {
            record.uri = Uri::from_static("/a\"forged=1");
            record.identity = Some(Arc::new(Identity::new(
                FORGED,
                "",
                vec![],
                Default::default(),
            )));
            record.impersonated_user = record.identity.clone();
            (record.namespace, record.id) = (FORGED.into(), FORGED.into());
            record.endpoint.as_mut().unwrap().name = FORGED.into();
            record.audit_id = http::HeaderValue::from_static("a\" forged=1");
            record.error = Some(FORGED.into());
        });
        assert_eq!(line.lines().count(), 1, "{line}");
        let own = own_words(&line);
        assert!(
            !own.contains("forged") && own.matches("endpoint=").count() == 1,
            "{own}"
        );
        assert!(
            own.contains(" endpoint=10.0.0.1:80 endpoint-name= received=0 "),
            "{own}"
        );
    }

    #[test]
    fn a_text_line_tells_who_did_what_and_keeps_the_query_to_itself() {
        let line = logged(LogFormat::Text, |_| ());
        assert_eq!(line.lines().count(), 1, "{line}");
        for part in [
            " 200 GET ",
            r#"user="a \"b\"\n""#,
            "verb=get",
            r#"target="pods/ns/p:80" endpoint=10.0.0.1:80 endpoint-name="p" "#,
            "sent=7",
            r#"audit-id="id-1""#,
        ] {
            assert!(line.contains(part), "{part} in {line}");
        }
        assert!(!line.contains("secret"), "{line}");
    }

    #[test]
    fn a_json_line_is_json() {
        let line: serde_json::Value =
            serde_json::from_str(&logged(LogFormat::Json, |_| ())).unwrap();
        assert_eq!(line["user"], "a \"b\"\n");
        assert_eq!(line["path"], "/api/v1/namespaces/ns/pods/p:80/proxy/x");
        assert_eq!((&line["code"], &line["sent"]), (&200.into(), &7.into()));
    }
}
