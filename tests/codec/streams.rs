//! Cases of HTTP/2: a request on a connection of its own, and its outcome.

use anyhow::{Context, Result, bail};
use tokio::time::timeout;

use super::case::{Case, Want};
use super::frames::{Fields, Outcome, exchange};
use super::runner::{Bed, CASE_TIMEOUT, finish, selected};

/// Request as fields, data and trailers, and its expected outcome.
pub struct Stream {
    pub case: Case,
    pub fields: Fields,
    pub data: Option<&'static str>,
    pub trailers: Option<Fields>,
}

/// Runs a table through one bastion.
///
/// # Errors
/// Returns an error with the list of all failures.
pub async fn run(table: &str, streams: Vec<Stream>) -> Result<()> {
    let bed = Bed::new().await?;
    let mut failures = Vec::new();
    let mut count = 0;
    for stream in streams {
        let name = format!("{table}: {}", stream.case.name);
        if selected(&name) {
            count += 1;
            if let Err(got) = check(&bed, &stream).await {
                let expected = stream.case.summary();
                failures.push(format!("{name}: expected {expected}, got {got:#}"));
            }
        }
    }
    finish(table, count, &failures)
}

/// Fields as bytes.
pub fn list<B: AsRef<[u8]>>(fields: &[(&str, B)]) -> Fields {
    fields
        .iter()
        .map(|(name, value)| (name.as_bytes().to_vec(), value.as_ref().to_vec()))
        .collect()
}

/// A request with exactly these fields, and the token.
pub fn exact(case: Case, fields: &[(&str, &str)]) -> Stream {
    let mut fields = list(fields);
    fields.extend(list(&[("authorization", "Bearer t")]));
    Stream {
        case: case.any_spelling(),
        fields,
        data: None,
        trailers: None,
    }
}

/// A GET with further fields.
pub fn with(case: Case, more: &[(&str, &[u8])]) -> Stream {
    let mut stream = exact(case, &request("GET", "https", "h", "@P/x"));
    let token = stream.fields.split_off(4);
    stream.fields.extend(list(more));
    stream.fields.extend(token);
    stream
}

/// The pseudo-header fields of a request.
pub fn request<'a>(
    method: &'a str,
    scheme: &'a str,
    authority: &'a str,
    path: &'a str,
) -> [(&'a str, &'a str); 4] {
    [
        (":method", method),
        (":scheme", scheme),
        (":authority", authority),
        (":path", path),
    ]
}

async fn check(bed: &Bed, stream: &Stream) -> Result<()> {
    let case = &stream.case;
    bed.begin(case, 1);
    let exchange = exchange(bed, &stream.fields, stream.data, stream.trailers.as_ref());
    let outcome = timeout(CASE_TIMEOUT, exchange)
        .await
        .context("no end of the exchange")??;
    let (seen, violations) = bed.endpoint.results();
    if !violations.is_empty() {
        bail!("malformed bytes at the endpoint: {violations:?}");
    }
    match (&case.want, &outcome) {
        (Want::Pass, Outcome::Response(200, body)) if body == b"ok" => {
            bed.compare(&case.requests, 0).map_err(anyhow::Error::msg)
        }
        (Want::Reject(codes), outcome) => {
            let received = seen.len();
            match outcome {
                Outcome::Response(code, _) if !codes.contains(code) => bail!("{outcome:?}"),
                _ if received > 0 => bail!("{received} requests at the endpoint and {outcome:?}"),
                _ => Ok(()),
            }
        }
        (Want::Cut, Outcome::Response(400, _) | Outcome::Refused)
            if !seen.iter().any(|seen| seen.complete) =>
        {
            Ok(())
        }
        _ => bail!("{outcome:?}"),
    }
}
