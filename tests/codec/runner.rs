//! Runs cases through one bastion and compares what the endpoint and the client receive.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Result, ensure};
use tokio::io::{AsyncWriteExt, split};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc::unbounded_channel;
use tokio::time::timeout;
use tokio_rustls::client::TlsStream;

use super::case::{Case, Expected, Want};
use super::client::{Client, compare_content, compare_fields, compare_own, line, lines_of};
use super::endpoint::{Endpoint, Seen};
use super::strict::{Kind, Reader, show};
use super::support::client::tls_from;
use super::support::test_bed::{PREFIX, TestBed};

/// Maximum time of a case.
pub const CASE_TIMEOUT: Duration = Duration::from_secs(5);

/// Fields that the bastion sets or consumes. They are compared only if a case lists them.
const OWN_REQUEST_FIELDS: [&str; 14] = [
    "accept-encoding",
    "audit-id",
    "connection",
    "content-length",
    "expect",
    "host",
    "te",
    "transfer-encoding",
    "upgrade",
    "x-forwarded-for",
    "x-forwarded-host",
    "x-forwarded-prefix",
    "x-forwarded-proto",
    "x-forwarded-uri",
];

/// Runs a table through one bastion.
///
/// # Errors
/// Returns an error with the list of all failures.
pub async fn run(table: &str, cases: Vec<Case>) -> Result<()> {
    let bed = Bed::new().await?;
    let mut failures = Vec::new();
    let mut count = 0;
    let mut names = std::collections::HashSet::new();
    for case in cases {
        let name = format!("{table}: {}", case.name);
        ensure!(names.insert(name.clone()), "two cases have the name {name}");
        if selected(&name) {
            count += 1;
            let failure = bed.check(&case).await.err();
            failures.extend(failure.map(|failure| format!("{name}: {failure}")));
        }
    }
    finish(table, count, &failures)
}

/// Returns true if the case runs.
pub fn selected(name: &str) -> bool {
    std::env::var("CODEC_CASE").map_or(true, |chosen| name.contains(&chosen))
}

/// Reports the result of a table.
///
/// # Errors
/// Returns an error if there are failures.
pub fn finish(table: &str, count: usize, failures: &[String]) -> Result<()> {
    let passed = count - failures.len();
    println!("{table}: {passed} of {count} cases passed");
    ensure!(
        failures.is_empty(),
        "{table}: {} of {count} cases failed\n{}",
        failures.len(),
        failures.join("\n")
    );
    Ok(())
}

/// Bastion and strict endpoint.
pub struct Bed {
    bastion: TestBed,
    pub endpoint: Endpoint,
    address: String,
    /// Number of cases so far. Each has a client with an address of its own.
    cases: AtomicU32,
}

impl Bed {
    pub async fn new() -> Result<Self> {
        let mut bed = TestBed::new().await?;
        let address = bed.backend.local_addr()?.to_string();
        let unused = TcpListener::bind("127.0.0.1:0").await?;
        let endpoint = Endpoint::serve(std::mem::replace(&mut bed.backend, unused));
        Ok(Self {
            bastion: bed,
            endpoint,
            address,
            cases: AtomicU32::new(0),
        })
    }

    /// Begins a case whose last expected request is the one with the number `expected`.
    pub fn begin(&self, case: &Case, expected: usize) {
        self.cases.fetch_add(1, Ordering::Relaxed);
        self.endpoint
            .begin(self.client().to_string(), case.script.clone(), expected);
        if matches!(case.want, Want::Cut) {
            self.endpoint.expect_cut();
        }
    }

    /// Address of the client of the case.
    fn client(&self) -> IpAddr {
        let number = self.cases.load(Ordering::Relaxed);
        Ipv4Addr::from_bits(Ipv4Addr::new(127, 9, 0, 0).to_bits() + number).into()
    }

    /// Connects the client of the case.
    pub async fn connect(&self, alpn: &[&[u8]]) -> Result<TlsStream<TcpStream>> {
        let TestBed { bastion, ca, .. } = &self.bastion;
        tls_from(self.client(), bastion.secure, &ca.file, alpn).await
    }

    /// Replaces the placeholders.
    pub fn expand(&self, text: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(text.len() + 200);
        let mut rest = text;
        let client = self.client().to_string();
        while let Some(at) = rest.iter().position(|byte| *byte == b'@') {
            bytes.extend_from_slice(&rest[..at]);
            let (value, length) = match rest.get(at + 1) {
                Some(b'P') => (PREFIX, 2),
                Some(b'H') => ("Host: h\r\n", 2),
                Some(b'T') => ("Authorization: Bearer t\r\n", 2),
                Some(b'A') => ("Host: h\r\nAuthorization: Bearer t\r\n", 2),
                Some(b'C') => (&*client, 2),
                Some(b'E') => (&*self.address, 2),
                _ => ("@", 1),
            };
            bytes.extend_from_slice(value.as_bytes());
            rest = &rest[at + length..];
        }
        bytes.extend_from_slice(rest);
        bytes
    }

    async fn check(&self, case: &Case) -> Result<(), String> {
        let is_last_closed = case.closes || matches!(case.want, Want::Reject(_));
        let expected = case.requests.len() + usize::from(!is_last_closed);
        self.begin(case, expected);
        let result = timeout(CASE_TIMEOUT, self.exchange(case)).await;
        let result = result.unwrap_or_else(|_| Err("no end of the exchange".into()));
        let (seen, violations) = self.endpoint.results();
        let mut got = match result {
            Ok(()) if violations.is_empty() => return Ok(()),
            Ok(()) => String::new(),
            Err(got) => got,
        };
        if !violations.is_empty() {
            got += &format!(" and malformed bytes at the endpoint: {violations:?}");
        }
        if !seen.is_empty() {
            got += &format!(" (the endpoint received {})", lines_of(&seen));
        }
        Err(format!("expected {}, got {got}", case.summary()))
    }

    async fn exchange(&self, case: &Case) -> Result<(), String> {
        let input = self.expand(&case.parts[0]);
        let mut client = self.open(&input, case.dripped).await?;
        client.send(input);
        for part in &case.parts[1..] {
            let head = client.head().await?;
            if head.status() != 100 {
                return Err(format!("no interim response, but {}", line(&head)));
            }
            client.send(self.expand(part));
        }
        if case.ends {
            client.send(Vec::new());
        }
        let method = client.method.clone();
        // Later requests of a case are all answered with a body.
        for index in 0..case.requests.len() {
            client
                .ok(if index == 0 { &method } else { b"GET" })
                .await
                .map_err(|got| format!("for request {index}: {got}"))?;
        }
        match &case.want {
            Want::Pass => {}
            Want::Reject(codes) => {
                client.status(codes, true).await?;
                client.ends().await?;
            }
            Want::Status(codes) => client.status(codes, false).await.map(|_| ())?,
            Want::Failure(code) => return client.status(&[*code], false).await.map(|_| ()),
            Want::Cut => {
                client.is_cut().await?;
                let (seen, _) = self.endpoint.results();
                if seen.iter().any(|seen| seen.complete) {
                    return Err("a complete request at the endpoint".into());
                }
                return Ok(());
            }
            Want::Answer(answer) => client.answer(answer).await?,
            Want::BadGateway(text) => {
                let status = client.status(&[503], false).await?;
                let message = status["message"].as_str().unwrap_or_default();
                let lower = message.to_ascii_lowercase();
                if !lower.starts_with("error trying to reach service: ") || !lower.contains(text) {
                    return Err(format!("the message {message:?}"));
                }
                return Ok(());
            }
        }
        if let Want::Reject(_) | Want::Status(_) = case.want {
            return self.compare(&case.requests, 0);
        }
        if let Want::Answer(answer) = &case.want
            && (answer.cut || client.closing)
        {
            return client.ends().await;
        }
        if case.closes {
            client.ends().await?;
            return self.compare(&case.requests, 0);
        }
        // The connection is in step: one more request gets one more response, and nothing else
        // follows.
        client.send(self.expand(b"GET @P/after HTTP/1.1\r\n@AConnection: close\r\n\r\n"));
        client
            .ok(b"GET")
            .await
            .map_err(|got| format!("for the next request: {got}"))?;
        client.ends().await?;
        let Want::Answer(answer) = &case.want else {
            return self.compare(&case.requests, 1);
        };
        let (seen, _) = self.endpoint.results();
        let reused = seen.len() == 2 && seen[0].connection == seen[1].connection;
        match answer.reuse {
            Some(reuse) if reuse != reused => Err(format!("reuse of the connection: {reused}")),
            _ => Ok(()),
        }
    }

    /// Opens a connection for an input. Sending no bytes closes the side of the client.
    async fn open(&self, input: &[u8], dripped: bool) -> Result<Client, String> {
        let stream = self.connect(&[]).await.map_err(|error| error.to_string())?;
        let (read, mut write) = split(stream);
        let (sender, mut receiver) = unbounded_channel::<Vec<u8>>();
        // Concurrent with reading: a rejection may precede the end of a large input. The loop ends
        // with the client, and an error is seen by its reads.
        tokio::spawn(async move {
            while let Some(bytes) = receiver.recv().await {
                if bytes.is_empty() {
                    let _ = write.shutdown().await;
                    return;
                }
                let size = if dripped { 1 } else { bytes.len() };
                for piece in bytes.chunks(size) {
                    if write.write_all(piece).await.is_err() || write.flush().await.is_err() {
                        return;
                    }
                }
            }
        });
        let line = input.split(|byte| *byte == b'\n').next().unwrap_or(input);
        let kind = if line.ends_with(b" HTTP/1.0\r") {
            Kind::OldResponse
        } else {
            Kind::Response
        };
        let method = input.split(|byte| *byte == b' ').next().unwrap_or_default();
        Ok(Client {
            reader: Reader::new(read),
            sender,
            kind,
            method: method.to_vec(),
            closing: false,
        })
    }

    /// Compares the requests that the endpoint received, except `extra` at the end.
    pub fn compare(&self, expected: &[Expected], extra: usize) -> Result<(), String> {
        let (seen, _) = self.endpoint.results();
        if seen.len() != expected.len() + extra {
            return Err(format!("{} requests at the endpoint", seen.len()));
        }
        expected
            .iter()
            .zip(&seen)
            .try_for_each(|(expected, seen)| self.compare_one(expected, seen))
    }

    fn compare_one(&self, expected: &Expected, seen: &Seen) -> Result<(), String> {
        let wanted_line = [&*expected.line, b" HTTP/1.1"].concat();
        if seen.head.line != wanted_line {
            return Err(format!("the request line {}", line(&seen.head)));
        }
        let host = self.expand(&expected.host);
        if seen.head.values("host").next() != Some(&host) {
            return Err(format!("the fields {}", show(&seen.head.fields)));
        }
        let own: Vec<_> = expected
            .own
            .iter()
            .map(|field| self.expand(field.as_bytes()))
            .collect();
        compare_own(&seen.head, &own, &expected.absent)?;
        let (mut fields, mut content) = (seen.head.fields.clone(), seen.content.clone());
        if expected.any_spelling {
            for (name, _) in fields.iter_mut().chain(&mut content.trailers) {
                name.make_ascii_lowercase();
            }
        }
        compare_fields(&fields, &expected.fields, &OWN_REQUEST_FIELDS)?;
        compare_content(&content, &expected.body, &expected.trailers)
    }
}
