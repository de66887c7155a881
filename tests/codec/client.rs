//! Client of a case: reads responses strictly and compares them.

use tokio::io::ReadHalf;
use tokio::net::TcpStream;
use tokio::sync::mpsc::UnboundedSender;
use tokio_rustls::client::TlsStream;

use super::case::Answer;
use super::endpoint::Seen;
use super::strict::{Content, Fault, Field, Framing, Head, Kind, Reader, show};

const OWN_RESPONSE_FIELDS: [&str; 6] = [
    "audit-id",
    "cache-control",
    "connection",
    "content-length",
    "date",
    "transfer-encoding",
];

/// Connection of the client of a case.
pub struct Client {
    pub reader: Reader<ReadHalf<TlsStream<TcpStream>>>,
    pub sender: UnboundedSender<Vec<u8>>,
    pub kind: Kind,
    /// Method of the first request.
    pub method: Vec<u8>,
    /// A response announced the end of the connection.
    pub closing: bool,
}

impl Client {
    pub fn send(&self, bytes: Vec<u8>) {
        // The end of the writing task is seen by reads.
        let _ = self.sender.send(bytes);
    }

    pub async fn head(&mut self) -> Result<Head, String> {
        match self.reader.head(self.kind).await {
            Ok(Some(head)) => Ok(head),
            Ok(None) => Err("the end of the connection".into()),
            Err(fault) => Err(format!("a malformed response: {fault:?}")),
        }
    }

    /// Reads a final response, and the codes of interim responses before it.
    async fn response(
        &mut self,
        method: &[u8],
        content: &mut Content,
    ) -> Result<(Head, Vec<u16>, Result<(), Fault>), String> {
        let mut interim = Vec::new();
        let head = loop {
            let head = self.head().await?;
            let framing = head.response_framing(method, self.kind)?;
            if head.status() >= 200 {
                break (head, framing);
            }
            if self.kind == Kind::OldResponse || framing != Framing::None {
                return Err(format!("the interim response {}", line(&head)));
            }
            interim.push(head.status());
        };
        let (head, framing) = head;
        let has = |option: &[u8]| {
            head.values("connection")
                .any(|value| value.eq_ignore_ascii_case(option))
        };
        self.closing = framing == Framing::Close
            || has(b"close")
            || (self.kind == Kind::OldResponse && !has(b"keep-alive"));
        let read = self.reader.body(framing, content).await;
        Ok((head, interim, read))
    }

    /// Reads the default response of the endpoint.
    pub async fn ok(&mut self, method: &[u8]) -> Result<(), String> {
        let mut content = Content::default();
        let (head, _, read) = self.response(method, &mut content).await?;
        let body = if method == b"HEAD" { "" } else { "ok" };
        if head.status() != 200 || content.body != body.as_bytes() || read.is_err() {
            let body = content.body.escape_ascii();
            return Err(format!("{} with {body} {read:?}", line(&head)));
        }
        Ok(())
    }

    /// Reads a `Status` with one of the codes.
    pub async fn status(
        &mut self,
        codes: &[u16],
        closes: bool,
    ) -> Result<serde_json::Value, String> {
        let method = self.method.clone();
        let mut content = Content::default();
        let (head, interim, read) = self.response(&method, &mut content).await?;
        let body = String::from_utf8_lossy(&content.body);
        let got = |what: &str| Err(format!("{what}: {} {body:.200}", line(&head)));
        if !codes.contains(&head.status()) || read.is_err() || (closes && !interim.is_empty()) {
            return got("another response");
        }
        if head.values("audit-id").count() != 1 {
            return got("no audit id");
        }
        if closes && !self.closing {
            return got("no Connection: close");
        }
        if method == b"HEAD" {
            return Ok(serde_json::Value::Null);
        }
        let status: serde_json::Value = serde_json::from_str(&body).unwrap_or_default();
        if status["kind"] != "Status" || status["code"] != head.status() {
            return got("no Status");
        }
        Ok(status)
    }

    pub async fn ends(&mut self) -> Result<(), String> {
        if !self.reader.buffer.is_empty() || self.reader.fill().await {
            let rest = self.reader.buffer.escape_ascii();
            return Err(format!("more bytes at the end of the connection: {rest}"));
        }
        Ok(())
    }

    /// Expects the end of the connection, perhaps after a 400 or 431.
    pub async fn is_cut(&mut self) -> Result<(), String> {
        if !self.reader.buffer.is_empty() || self.reader.fill().await {
            self.status(&[400, 431], false).await?;
        }
        self.ends().await
    }

    pub async fn answer(&mut self, expected: &Answer) -> Result<(), String> {
        let method = self.method.clone();
        let mut content = Content::default();
        let (head, interim, read) = match self.response(&method, &mut content).await {
            // Nothing of the body arrived, so the head need not have been sent.
            Err(_) if expected.cut && expected.body.is_empty() => return self.ends().await,
            response => response?,
        };
        let got = format!("{} {}", line(&head), show(&head.fields));
        if head.status() != expected.status || interim != expected.interim {
            return Err(format!("{interim:?} and {got}"));
        }
        let reason = String::from_utf8_lossy(&head.line[13..]).into_owned();
        if expected.reason.is_some_and(|wanted| wanted != reason) {
            return Err(format!("the reason {reason:?}"));
        }
        if head.values("audit-id").count() != 1 {
            return Err(format!("no audit id: {got}"));
        }
        if let Some(fields) = &expected.fields {
            compare_fields(&head.fields, fields, &OWN_RESPONSE_FIELDS)?;
        }
        compare_own(&head, &expected.own, &expected.absent)?;
        if !expected.cut {
            read.map_err(|fault| format!("{fault:?} in the body after {got}"))?;
            return compare_content(&content, &expected.body, &expected.trailers);
        }
        if read.is_ok() || !expected.body.starts_with(&content.body) {
            let body = content.body.escape_ascii();
            return Err(format!("a complete response: {got} with {body}"));
        }
        Ok(())
    }
}

pub fn compare_fields(got: &[Field], expected: &[Vec<u8>], own: &[&str]) -> Result<(), String> {
    let is_listed = |name: &str| {
        expected
            .iter()
            .any(|line| line.starts_with(format!("{name}:").as_bytes()))
    };
    let got: Vec<Vec<u8>> = got
        .iter()
        .filter(|(name, _)| !own.contains(&&*name.to_ascii_lowercase()) || is_listed(name))
        .map(text)
        .collect();
    if got != expected {
        let show = |lines: &[Vec<u8>]| lines.join(&b" | "[..]).escape_ascii().to_string();
        return Err(format!(
            "fields {:.300} instead of {:.300}",
            show(&got),
            show(expected)
        ));
    }
    Ok(())
}

pub fn compare_own<F: AsRef<[u8]>>(head: &Head, own: &[F], absent: &[&str]) -> Result<(), String> {
    for field in own {
        let field = String::from_utf8_lossy(field.as_ref());
        let (name, value) = field.split_once(": ").unwrap_or((&field, ""));
        let values: Vec<&[u8]> = head.values(name).collect();
        if values != [value.as_bytes()] {
            return Err(format!("not {field} in {}", show(&head.fields)));
        }
    }
    for name in absent {
        if head.values(name).next().is_some() {
            return Err(format!("{name} in {}", show(&head.fields)));
        }
    }
    Ok(())
}

pub fn compare_content(got: &Content, body: &[u8], trailers: &[Vec<u8>]) -> Result<(), String> {
    if got.body != body {
        return Err(format!(
            "the body {:.300}",
            got.body.escape_ascii().to_string()
        ));
    }
    if got.trailers.iter().map(text).ne(trailers.iter().cloned()) {
        return Err(format!("the trailers {}", show(&got.trailers)));
    }
    Ok(())
}

fn text((name, value): &Field) -> Vec<u8> {
    [name.as_bytes(), b": ", value].concat()
}

pub fn line(head: &Head) -> String {
    format!("{:.300}", head.line.escape_ascii().to_string())
}

pub fn lines_of(seen: &[Seen]) -> String {
    let lines: Vec<String> = seen.iter().map(|seen| line(&seen.head)).collect();
    lines.join(" | ")
}
