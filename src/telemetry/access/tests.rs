use std::io::Write;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use http::{HeaderValue, Method, StatusCode, Version};
use prometheus_client::registry::Registry;

use super::format::{
    MAX_AUDIT_ID_BYTES, MAX_ERROR_BYTES, MAX_ID_BYTES, MAX_METHOD_BYTES, MAX_NAMESPACE_BYTES,
    MAX_PATH_BYTES, MAX_PATH_BYTES_UNAUTHENTICATED, MAX_USER_BYTES,
};
use super::writer::{FORCED_SHUTDOWN_WAIT, MAX_QUEUED_UNAUTHENTICATED, QUEUE_LEN, SHUTDOWN_WAIT};
use super::*;
use crate::config::LogFormat;
use crate::drain::Drain;
use crate::http::RequestTarget;
use crate::metrics::{LostLines, Metrics};
use crate::model::{Endpoint, Identity, Resource, Verb};
use crate::testing::Sink;

/// Pipe without a reader.
struct BlockedPipe;

impl Write for BlockedPipe {
    fn write(&mut self, _: &[u8]) -> std::io::Result<usize> {
        loop {
            std::thread::park();
        }
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

fn logged(format: LogFormat, change: impl FnOnce(&mut Record)) -> String {
    let sink = Sink::default();
    let log = AccessLog::start(format, sink.clone(), Drain::default()).unwrap();
    log_request(&log, change);
    drop(log);
    sink.text()
}

fn log_request(log: &AccessLog, change: impl FnOnce(&mut Record)) {
    log_to(
        &Recorder::new(Metrics::new(&mut Registry::default()), Some(log)),
        change,
    );
}

fn log_to(recorder: &Rc<Recorder>, change: impl FnOnce(&mut Record)) {
    let target = b"/api/v1/namespaces/ns/pods/p:80/proxy/x?token=secret";
    let target = RequestTarget::parse(&Method::GET, target).unwrap();
    let audit_id = HeaderValue::from_static("id-1");
    let client = "192.0.2.1".parse().unwrap();
    let mut record = Record::start(
        recorder,
        Method::GET,
        target,
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

/// Removes quoted strings from a line, which leaves what the bastion itself wrote.
fn unquoted(line: &str) -> String {
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
fn drop_does_not_wait_for_a_blocked_pipe() {
    for (forced, wait) in [(false, SHUTDOWN_WAIT), (true, FORCED_SHUTDOWN_WAIT)] {
        let drain = Drain::default();
        let log = AccessLog::start(LogFormat::Text, BlockedPipe, drain.clone()).unwrap();
        log_request(&log, |_| ());
        if forced {
            drain.force();
        }
        assert_eq!(log.unwritten.lines.load(Ordering::Relaxed), 1);
        let started = Instant::now();
        drop(log);
        let waited = started.elapsed();
        assert!(
            waited >= wait && waited < wait + Duration::from_millis(500),
            "forced {forced}: {waited:?}"
        );
    }
}

#[test]
fn drops_unauthenticated_lines_first() {
    // Nothing leaves the queue.
    let log = AccessLog::start(LogFormat::Json, BlockedPipe, Drain::default()).unwrap();
    let metrics = Metrics::new(&mut Registry::default());
    let recorder = Recorder::new(metrics.clone(), Some(&log));
    let log_batches = |authenticated: bool, count: usize| {
        for _ in 0..count {
            log_to(&recorder, |record| {
                if !authenticated {
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
    log_batches(false, QUEUE_LEN);
    assert_eq!(lost(), (0, (QUEUE_LEN - MAX_QUEUED_UNAUTHENTICATED) as u64));
    log_batches(true, QUEUE_LEN - MAX_QUEUED_UNAUTHENTICATED);
    assert_eq!(
        lost(),
        (0, (QUEUE_LEN - MAX_QUEUED_UNAUTHENTICATED) as u64),
        "half of the queue is reserved for authenticated callers"
    );
    log_batches(true, 2);
    assert_eq!(lost().0, 2);
}

#[test]
fn truncates_and_marks_long_fields() {
    let long = "é".repeat(10_000);
    let change = |record: &mut Record| {
        record.target = RequestTarget::from_valid_path(&format!("/{}", "p".repeat(50_000)));
        record.method = Method::from_bytes("M".repeat(5000).as_bytes()).unwrap();
        record.audit_id = HeaderValue::try_from("a".repeat(5000)).unwrap();
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
    let line: serde_json::Value = serde_json::from_str(&logged(LogFormat::Json, change)).unwrap();
    for (field, max_bytes) in [
        ("path", MAX_PATH_BYTES),
        ("method", MAX_METHOD_BYTES),
        ("auditId", MAX_AUDIT_ID_BYTES),
        ("user", MAX_USER_BYTES),
        ("impersonatedUser", MAX_USER_BYTES),
        ("namespace", MAX_NAMESPACE_BYTES),
        ("name", MAX_ID_BYTES),
        ("error", MAX_ERROR_BYTES),
    ] {
        let value = line[field].as_str().unwrap();
        assert!(
            value.ends_with('…') && value.len() == max_bytes + '…'.len_utf8(),
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
        text.contains(&format!(
            "/{}…",
            "p".repeat(MAX_PATH_BYTES_UNAUTHENTICATED - 1)
        )),
        "{text}"
    );
}

#[test]
fn client_strings_cannot_imitate_fields() {
    const FORGED: &str = "x\" forged=1 endpoint=192.0.2.9:80 'forged'\\\"\nforged";
    let line = logged(LogFormat::Text, |record| {
        record.target = RequestTarget::from_valid_path("/a\"forged=1");
        record.identity = Some(Arc::new(Identity::new(
            FORGED,
            "",
            vec![],
            Default::default(),
        )));
        record.impersonated_user = record.identity.clone();
        (record.namespace, record.id) = (FORGED.into(), FORGED.into());
        record.endpoint.as_mut().unwrap().name = FORGED.into();
        record.audit_id = HeaderValue::from_static("a\" forged=1");
        record.error = Some(FORGED.into());
    });
    assert_eq!(line.lines().count(), 1, "{line}");
    let own = unquoted(&line);
    assert!(
        !own.contains("forged") && own.matches("endpoint=").count() == 1,
        "{own}"
    );
    assert!(
        own.contains(" endpoint=10.0.0.1:80 endpointName= received=0 "),
        "{own}"
    );
}

#[test]
fn text_line_has_all_fields_without_the_query() {
    let line = logged(LogFormat::Text, |_| ());
    assert_eq!(line.lines().count(), 1, "{line}");
    for part in [
        r#"Z INFO request code=200 method=GET path="/api/v1/namespaces/ns/pods/p:80/proxy/x" "#,
        r#" protocol=HTTP/1.1 user="a \"b\"\n" client=192.0.2.1 verb=get resource=pods "#,
        r#" namespace="ns" name="p:80" endpoint=10.0.0.1:80 endpointName="p" received=0 sent=7 "#,
        r#" auditId="id-1""#,
    ] {
        assert!(line.contains(part), "{part} in {line}");
    }
    assert!(!line.contains("secret"), "{line}");
}

/// A reader that knows the keys of one format knows those of the other, too.
#[test]
fn both_formats_have_the_same_keys() {
    let change = |record: &mut Record| {
        record.impersonated_user = record.identity.clone();
        record.error = Some("e".into());
    };
    let json: serde_json::Map<String, serde_json::Value> =
        serde_json::from_str(&logged(LogFormat::Json, change)).unwrap();
    let text = unquoted(&logged(LogFormat::Text, change));
    let mut keys: Vec<_> = text
        .split_whitespace()
        .filter_map(|word| word.split_once('='))
        .map(|(key, _)| key)
        .chain(["ts", "level", "msg"])
        .collect();
    keys.sort_unstable();
    let mut expected: Vec<_> = json.keys().map(String::as_str).collect();
    expected.sort_unstable();
    assert_eq!(keys, expected);
}

#[test]
fn json_line_is_valid_json() {
    let line: serde_json::Value = serde_json::from_str(&logged(LogFormat::Json, |_| ())).unwrap();
    assert!(line["ts"].as_str().unwrap().ends_with('Z'));
    assert_eq!(
        (&line["level"], &line["msg"]),
        (&"info".into(), &"request".into())
    );
    assert_eq!(line["user"], "a \"b\"\n");
    assert_eq!(line["path"], "/api/v1/namespaces/ns/pods/p:80/proxy/x");
    assert_eq!((&line["code"], &line["sent"]), (&200.into(), &7.into()));
}
