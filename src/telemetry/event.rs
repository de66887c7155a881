//! Lines of events, as JSON and as text. Both begin with time, level and message, as the lines of
//! the access log do.

use std::fmt::{self, Debug};

use serde_json::Value;
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

use crate::config::LogFormat;
use crate::model::error_chain;

/// Formats events as lines.
#[derive(Clone, Copy, Debug)]
pub(super) struct EventFormat(pub LogFormat);

impl<S, N> FormatEvent<S, N> for EventFormat
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        _: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let mut fields = Fields {
            module: event.metadata().target().to_owned(),
            ..Fields::default()
        };
        event.record(&mut fields);
        let time = jiff::Timestamp::now();
        let level = *event.metadata().level();
        match self.0 {
            LogFormat::Json => fields.write_json(&mut writer, time, level),
            LogFormat::Text => fields.write_text(&mut writer, time, level),
        }
    }
}

/// Fields of an event.
#[derive(Debug, Default)]
struct Fields {
    /// Module that logs, or the target of events that have one of their own.
    module: String,
    message: String,
    others: Vec<(&'static str, FieldValue)>,
}

#[derive(Debug)]
enum FieldValue {
    /// A number, a boolean or a string.
    Plain(Value),
    /// The text of a value that formats itself, such as an address.
    Text(String),
}

impl Fields {
    fn write_json(
        self,
        writer: &mut Writer<'_>,
        time: jiff::Timestamp,
        level: Level,
    ) -> fmt::Result {
        let level = level.as_str().to_ascii_lowercase();
        let message = Value::String(self.message);
        let module = Value::String(self.module);
        write!(
            writer,
            r#"{{"ts":"{time:.3}","level":"{level}","msg":{message},"module":{module}"#
        )?;
        for (name, value) in self.others {
            let value = match value {
                FieldValue::Plain(value) => value,
                FieldValue::Text(text) => text.into(),
            };
            write!(writer, r#","{name}":{value}"#)?;
        }
        writer.write_str("}\n")
    }

    fn write_text(
        self,
        writer: &mut Writer<'_>,
        time: jiff::Timestamp,
        level: Level,
    ) -> fmt::Result {
        write!(writer, "{time:.3} ")?;
        if writer.has_ansi_escapes() {
            write!(writer, "\x1b[{}m{level}\x1b[0m ", color(level))?;
        } else {
            write!(writer, "{level} ")?;
        }
        // A message may quote what was read from a file or the network.
        for character in self.message.chars() {
            if character.is_control() {
                write!(writer, "{}", character.escape_debug())?;
            } else {
                writer.write_char(character)?;
            }
        }
        for (name, value) in self.others {
            match value {
                FieldValue::Plain(Value::String(text)) => write!(writer, " {name}={text:?}")?,
                FieldValue::Plain(value) => write!(writer, " {name}={value}")?,
                FieldValue::Text(text) if is_word(&text) => write!(writer, " {name}={text}")?,
                FieldValue::Text(text) => write!(writer, " {name}={text:?}")?,
            }
        }
        writer.write_str("\n")
    }

    fn record(&mut self, field: &Field, value: FieldValue) {
        let text = |value| match value {
            FieldValue::Plain(Value::String(text)) | FieldValue::Text(text) => text,
            FieldValue::Plain(value) => value.to_string(),
        };
        match field.name() {
            "message" => self.message = text(value),
            // Events of libraries that use the crate `log` have their metadata as fields.
            "log.target" => self.module = text(value),
            name if name.starts_with("log.") => {}
            name => self.others.push((name, value)),
        }
    }
}

impl Visit for Fields {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.record(field, FieldValue::Plain(value.into()));
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.record(field, FieldValue::Plain(value.into()));
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.record(field, FieldValue::Plain(value.into()));
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.record(field, FieldValue::Plain(value.into()));
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.record(field, FieldValue::Plain(value.into()));
    }

    fn record_error(&mut self, field: &Field, value: &(dyn std::error::Error + 'static)) {
        self.record(field, FieldValue::Plain(error_chain(value).into()));
    }

    /// Receives the values that are recorded by `Display`, and the message.
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        self.record(field, FieldValue::Text(format!("{value:?}")));
    }
}

/// Returns true if a text needs no quotes as a value of `key=value`.
fn is_word(text: &str) -> bool {
    let is_plain = |byte: u8| byte.is_ascii_graphic() && !matches!(byte, b'"' | b'=' | b'\\');
    !text.is_empty() && text.bytes().all(is_plain)
}

/// Returns the color of a level on a terminal.
fn color(level: Level) -> u8 {
    match level {
        Level::ERROR => 31,
        Level::WARN => 33,
        Level::INFO => 32,
        Level::DEBUG => 34,
        Level::TRACE => 35,
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;
    use crate::testing::Sink;

    /// Returns the lines of the events that `log` writes.
    fn logged(format: LogFormat, log: impl FnOnce()) -> String {
        let sink = Sink::default();
        let writer = sink.clone();
        let subscriber = tracing_subscriber::fmt()
            .with_max_level(Level::DEBUG)
            .with_ansi(false)
            .event_format(EventFormat(format))
            .with_writer(move || writer.clone())
            .finish();
        tracing::subscriber::with_default(subscriber, log);
        sink.text()
    }

    fn log_all_kinds() {
        let address: std::net::SocketAddr = "127.0.0.1:80".parse().unwrap();
        let error = io::Error::other("no \"luck\"\nat all");
        let failure: &(dyn std::error::Error + 'static) = &error;
        tracing::warn!(
            count = 3,
            ratio = 0.5,
            done = true,
            name = "a \"b\"",
            %address,
            %error,
            failure,
            "cannot do it"
        );
        tracing::debug!(target: "kube_bastion::test", "line one\nline two");
    }

    #[test]
    fn json_lines_begin_with_time_level_and_message() {
        let text = logged(LogFormat::Json, log_all_kinds);
        let lines: Vec<_> = text.lines().collect();
        let [first, second] = lines[..] else {
            panic!("{text}")
        };
        let event: Value = serde_json::from_str(first).unwrap();
        let time = event["ts"].as_str().unwrap();
        assert!(
            time.len() == "2026-01-02T03:04:05.678Z".len()
                && time.parse::<jiff::Timestamp>().is_ok(),
            "{time}"
        );
        assert!(
            first.starts_with(&format!(
                r#"{{"ts":"{time}","level":"warn","msg":"cannot do it","module":"kube_bastion::telemetry::event::tests","#
            )),
            "{first}"
        );
        let expected = serde_json::json!({
            "ts": time, "level": "warn", "msg": "cannot do it",
            "module": "kube_bastion::telemetry::event::tests",
            "count": 3, "ratio": 0.5, "done": true, "name": "a \"b\"",
            "address": "127.0.0.1:80", "error": "no \"luck\"\nat all", "failure": "no \"luck\"\nat all",
        });
        assert_eq!(event, expected);
        let event: Value = serde_json::from_str(second).unwrap();
        assert_eq!(event["module"], "kube_bastion::test");
        assert_eq!(event["msg"], "line one\nline two");
    }

    #[test]
    fn text_lines_begin_with_time_level_and_message() {
        let text = logged(LogFormat::Text, log_all_kinds);
        let lines: Vec<_> = text.lines().collect();
        let [first, second] = lines[..] else {
            panic!("{text}")
        };
        let (time, rest) = first.split_once(' ').unwrap();
        assert!(time.parse::<jiff::Timestamp>().is_ok(), "{time}");
        assert_eq!(
            rest,
            "WARN cannot do it count=3 ratio=0.5 done=true name=\"a \\\"b\\\"\" \
             address=127.0.0.1:80 error=\"no \\\"luck\\\"\\nat all\" \
             failure=\"no \\\"luck\\\"\\nat all\""
        );
        assert!(
            second.ends_with("DEBUG line one\\nline two"),
            "control characters are escaped: {second}"
        );
    }
}
