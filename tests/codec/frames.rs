//! Client of HTTP/2 that sends any bytes as fields (RFC 9113, RFC 7541).

use anyhow::Result;
use tokio::io::AsyncWriteExt;

use super::runner::Bed;
use crate::support::frames::{
    ACK, DATA, END_HEADERS, END_STREAM, GOAWAY, HEADERS, PREFACE, RST_STREAM, SETTINGS,
    decode_status, frame, literal, read_frame,
};

/// Names and values.
pub type Fields = Vec<(Vec<u8>, Vec<u8>)>;

/// Outcome of a stream.
#[derive(Debug)]
pub enum Outcome {
    Response(u16, Vec<u8>),
    /// The stream or the connection ended without a complete response.
    Refused,
}

/// Sends a request on a new connection and reads its response.
pub async fn exchange(
    bed: &Bed,
    fields: &Fields,
    data: Option<&str>,
    trailers: Option<&Fields>,
) -> Result<Outcome> {
    let mut client = bed.connect(&[b"h2"]).await?;
    let mut sent = PREFACE.to_vec();
    frame(&mut sent, SETTINGS, 0, 0, &[]);
    let ends = |last: bool| if last { END_STREAM } else { 0 };
    let last = data.is_none() && trailers.is_none();
    let block = |fields: &Fields| {
        let mut block = Vec::new();
        for (name, value) in fields {
            literal(&mut block, name, &bed.expand(value));
        }
        block
    };
    frame(
        &mut sent,
        HEADERS,
        END_HEADERS | ends(last),
        1,
        &block(fields),
    );
    if let Some(data) = data {
        frame(
            &mut sent,
            DATA,
            ends(trailers.is_none()),
            1,
            data.as_bytes(),
        );
    }
    if let Some(trailers) = trailers {
        frame(
            &mut sent,
            HEADERS,
            END_HEADERS | END_STREAM,
            1,
            &block(trailers),
        );
    }
    client.write_all(&sent).await?;
    client.flush().await?;
    let (mut status, mut body) = (None, Vec::new());
    while let Some(received) = read_frame(&mut client).await {
        let (kind, flags) = (received.kind, received.flags);
        match kind {
            SETTINGS if flags & ACK == 0 => {
                let mut ack = Vec::new();
                frame(&mut ack, SETTINGS, ACK, 0, &[]);
                client.write_all(&ack).await?;
                client.flush().await?;
            }
            HEADERS if status.is_none() => status = Some(decode_status(&received.payload)?),
            DATA => body.extend_from_slice(&received.payload),
            RST_STREAM | GOAWAY => return Ok(Outcome::Refused),
            _ => {}
        }
        if let (DATA | HEADERS, Some(status)) = (kind, status)
            && flags & END_STREAM != 0
        {
            return Ok(Outcome::Response(status, body));
        }
    }
    Ok(Outcome::Refused)
}
