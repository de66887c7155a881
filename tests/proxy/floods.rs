//! Floods of HTTP/2 frames. Each ends with a closed connection, or is absorbed with bounded memory,
//! and does not affect other connections.

use std::sync::atomic::Ordering;

use anyhow::{Result, ensure};
use socket2::SockRef;

use crate::flooded::{Flooded, headers, request, single, stream_id};
use crate::support::eventually;
use crate::support::frames::{
    CONTINUATION, DATA, END_STREAM, ENHANCE_YOUR_CALM, HEADERS, INITIAL_WINDOW_SIZE, MAX_PAYLOAD,
    PING, PRIORITY, PROTOCOL_ERROR, RST_STREAM, Reaction, SETTINGS, WINDOW_UPDATE, decode_status,
    ensure_closed, frame, header_block, literal,
};

const MIB: usize = 1 << 20;

/// Concurrent streams of a connection.
const MAX_STREAMS: usize = 100;
/// Resets that the bastion itself causes before it closes the connection.
const MAX_OWN_RESETS: usize = 1024;
/// Allowance for memory that the allocator keeps, and for connections of the test itself.
const SLACK: usize = 16 * MIB;

/// Requests that are reset immediately (CVE-2023-44487).
#[tokio::test]
async fn closes_connection_that_resets_its_requests() -> Result<()> {
    let flooded = Flooded::new().await?;
    let block = request("GET", "/silent");
    let reset = |n: u32| {
        let mut sent = headers(END_STREAM, stream_id(n), &block);
        frame(&mut sent, RST_STREAM, 0, stream_id(n), &[0, 0, 0, 8]);
        sent
    };
    // Many in one TLS record.
    let client = flooded.client(&[]).await?;
    let reaction = client
        .flood(500, |round| {
            (round * 80..round * 80 + 80).flat_map(reset).collect()
        })
        .await?;
    flooded.memory_below("rapid reset", SLACK)?;
    ensure_closed("rapid reset", &reaction, ENHANCE_YOUR_CALM)?;
    ensure!(flooded.requests() <= MAX_STREAMS);
    // Each in a record of its own: the bastion may read them one by one.
    let client = flooded.client(&[]).await?;
    let reaction = client.flood(20_000, reset).await?;
    println!("rapid reset, one by one: {reaction:?}");
    flooded.memory_below("rapid reset, one by one", SLACK)?;
    ensure!(flooded.requests() <= 2 * MAX_STREAMS);
    flooded.serves_another_connection().await
}

/// Requests that are reset when they have reached the endpoint.
#[tokio::test]
async fn cancels_requests_of_reset_streams() -> Result<()> {
    let flooded = Flooded::new().await?;
    let descriptors = flooded.bed.idle_descriptors().await?;
    let block = request("GET", "/silent");
    let mut client = flooded.client(&[]).await?;
    let all = u32::try_from(MAX_STREAMS)?;
    for round in 0..20 {
        let ids = || (round * all..(round + 1) * all).map(stream_id);
        let sent: Vec<u8> = ids()
            .flat_map(|id| headers(END_STREAM, id, &block))
            .collect();
        client.send(&sent).await?;
        let expected = MAX_STREAMS * (round as usize + 1);
        eventually("the requests", async || Ok(flooded.requests() == expected)).await?;
        let now = flooded.bed.bastion.descriptors()?;
        ensure!(
            now <= descriptors + 2 * MAX_STREAMS,
            "{now} descriptors, {descriptors} before"
        );
        let sent: Vec<u8> = ids()
            .flat_map(|id| single(RST_STREAM, 0, id, &[0, 0, 0, 8]))
            .collect();
        client.send(&sent).await?;
    }
    client.processed().await?;
    flooded.memory_below("reset requests", SLACK)?;
    eventually("closed connections to the endpoint", async || {
        Ok(flooded.bed.bastion.descriptors()? <= descriptors + 4)
    })
    .await?;
    flooded.serves_another_connection().await
}

/// Frames of the stream with an id.
type Frames<'a> = &'a dyn Fn(u32) -> Vec<u8>;

/// Requests followed by a frame for which the bastion must reset them (CVE-2025-8671).
#[tokio::test]
async fn closes_connection_that_provokes_resets() -> Result<()> {
    let flooded = Flooded::new().await?;
    let block = request("GET", "/silent");
    let with = |name: &str, value: &str| {
        let mut block = request("POST", "/silent");
        literal(&mut block, name.as_bytes(), value.as_bytes());
        block
    };
    let (with_length, with_connection) = (with("content-length", "5"), with("connection", "x"));
    let get = |id: u32| headers(END_STREAM, id, &block);
    let window = |id: u32, size: u32| single(WINDOW_UPDATE, 0, id, &size.to_be_bytes());
    let own = |id: u32| [&id.to_be_bytes()[..], &[0]].concat();
    let cases: [(&str, u32, Frames<'_>); 8] = [
        ("WINDOW_UPDATE of 0", PROTOCOL_ERROR, &|id| {
            [get(id), window(id, 0)].concat()
        }),
        ("window overflow", ENHANCE_YOUR_CALM, &|id| {
            [get(id), window(id, (1 << 31) - 1)].concat()
        }),
        ("DATA behind the end", PROTOCOL_ERROR, &|id| {
            [get(id), single(DATA, 0, id, b"x")].concat()
        }),
        ("HEADERS behind the end", PROTOCOL_ERROR, &|id| {
            [get(id), get(id)].concat()
        }),
        ("PRIORITY of itself", ENHANCE_YOUR_CALM, &|id| {
            [get(id), single(PRIORITY, 0, id, &own(id))].concat()
        }),
        ("body longer than its length", ENHANCE_YOUR_CALM, &|id| {
            [headers(0, id, &with_length), single(DATA, 0, id, b"123456")].concat()
        }),
        ("body shorter than its length", ENHANCE_YOUR_CALM, &|id| {
            [
                headers(0, id, &with_length),
                single(DATA, END_STREAM, id, b"1234"),
            ]
            .concat()
        }),
        ("malformed head", ENHANCE_YOUR_CALM, &|id| {
            headers(END_STREAM, id, &with_connection)
        }),
    ];
    for (name, code, provoke) in cases {
        let requests = flooded.requests();
        let client = flooded.client(&[]).await?;
        let reaction = client
            .flood(5_000, |round| provoke(stream_id(round)))
            .await?;
        flooded.memory_below(name, SLACK)?;
        ensure_closed(name, &reaction, code)?;
        ensure!(flooded.requests() - requests <= MAX_OWN_RESETS + MAX_STREAMS);
    }
    flooded.serves_another_connection().await
}

/// A head that never ends (CVE-2024-27316).
#[tokio::test]
async fn closes_connection_that_sends_endless_continuations() -> Result<()> {
    const FRAMES: u32 = 100_000;
    let flooded = Flooded::new().await?;
    let mut field = Vec::new();
    literal(&mut field, b"x-a", b"1");
    let mut start = request("GET", "/ok");
    literal(&mut start, b"x-long", &vec![b'x'; 100_000]);
    for (name, start, continued) in [
        ("empty CONTINUATION frames", &start[..5000], &[][..]),
        ("CONTINUATION frames of a byte", &start[..5000], b"x"),
        (
            "CONTINUATION frames of a field",
            &request("GET", "/ok"),
            &field,
        ),
        (
            "full CONTINUATION frames",
            &start[..5000],
            &[b'x'; MAX_PAYLOAD],
        ),
    ] {
        let client = flooded.client(&[]).await?;
        let reaction = client
            .flood(FRAMES, |round| {
                if round == 0 {
                    single(HEADERS, END_STREAM, 1, start)
                } else {
                    single(CONTINUATION, 0, 1, continued)
                }
            })
            .await?;
        flooded.memory_below(name, SLACK)?;
        ensure_closed(name, &reaction, ENHANCE_YOUR_CALM)?;
    }
    ensure!(flooded.requests() == 0);
    flooded.serves_another_connection().await
}

/// Frames that the bastion answers, of a client that does not read.
#[tokio::test]
async fn reads_no_frames_whose_answers_are_not_read() -> Result<()> {
    /// 64 MiB.
    const PARTS: u32 = 4096;
    let flooded = Flooded::new().await?;
    let settings = [0, 4, 0, 1, 0, 0];
    for (name, frame) in [
        ("PING", single(PING, 0, 0, b"12345678")),
        ("SETTINGS", single(SETTINGS, 0, 0, &settings)),
        ("empty SETTINGS", single(SETTINGS, 0, 0, &[])),
    ] {
        let part = frame.repeat(MAX_PAYLOAD / frame.len());
        let mut client = flooded.client(&[]).await?;
        let sent = client.flood_unread(PARTS, &part).await;
        println!("{name}: {sent} of {PARTS} parts");
        flooded.memory_below(name, SLACK)?;
        ensure!(sent < PARTS, "{name}: all were read");
        flooded.serves_another_connection().await?;
    }
    Ok(())
}

/// Frames that have no effect.
#[tokio::test]
async fn absorbs_frames_without_effect() -> Result<()> {
    const ROUNDS: u32 = 1000;
    let flooded = Flooded::new().await?;
    let priority = [0, 0, 0, 5, 1];
    for (name, frame) in [
        ("PRIORITY", single(PRIORITY, 0, 1, &priority)),
        (
            "PRIORITY of an idle stream",
            single(PRIORITY, 0, 9, &priority),
        ),
        ("unknown", single(0xfe, 0, 1, b"unknown")),
        ("empty unknown", single(0xfe, 0, 0, &[])),
        (
            "acknowledgement of no PING",
            single(PING, 1, 0, b"12345678"),
        ),
        (
            "reset of a closed stream",
            single(RST_STREAM, 0, 1, &[0; 4]),
        ),
        (
            "unknown setting",
            single(SETTINGS, 0, 0, &[9, 9, 0, 0, 0, 1]),
        ),
    ] {
        let mut client = flooded.client(&[]).await?;
        client
            .send(&headers(END_STREAM, 1, &request("GET", "/ok")))
            .await?;
        client
            .until(|frame| frame.stream == 1 && frame.flags & END_STREAM != 0)
            .await?;
        let part = frame.repeat(MAX_PAYLOAD / frame.len());
        let reaction = client.flood(ROUNDS, |_| part.clone()).await?;
        flooded.memory_below(name, SLACK)?;
        ensure!(reaction == Reaction::Absorbed, "{name}: {reaction:?}");
    }
    flooded.serves_another_connection().await?;
    // Events of h2 would be as many as the frames.
    let lines = flooded.bed.bastion.log().lines().count();
    ensure!(lines < 200, "{lines} lines");
    Ok(())
}

#[tokio::test]
async fn closes_connection_that_sends_empty_data() -> Result<()> {
    let flooded = Flooded::new().await?;
    let block = request("POST", "/stalled");
    let client = flooded.client(&[]).await?;
    let reaction = client
        .flood(100_000, |round| {
            if round == 0 {
                headers(0, 1, &block)
            } else {
                single(DATA, 0, 1, &[])
            }
        })
        .await?;
    flooded.memory_below("empty DATA", SLACK)?;
    ensure_closed("empty DATA", &reaction, ENHANCE_YOUR_CALM)?;
    flooded.serves_another_connection().await
}

/// Bodies in frames of one byte, which take more memory than the flow control counts.
#[tokio::test]
async fn closes_connection_that_sends_bodies_bytewise_to_a_stalled_endpoint() -> Result<()> {
    let flooded = Flooded::new().await?;
    // What the sockets take does not wait in the bastion.
    SockRef::from(&flooded.bed.backend).set_recv_buffer_size(4096)?;
    let bytes = single(DATA, 0, 1, b"x").repeat(1000);
    let client = flooded.client(&[]).await?;
    let reaction = client
        .flood(2000, |round| {
            if round == 0 {
                headers(0, 1, &request("POST", "/stalled"))
            } else {
                bytes.clone()
            }
        })
        .await?;
    flooded.memory_below("DATA of one byte", 3 * SLACK)?;
    ensure_closed("DATA of one byte", &reaction, ENHANCE_YOUR_CALM)?;
    flooded.serves_another_connection().await
}

#[tokio::test]
async fn passes_bodies_in_frames_of_one_byte() -> Result<()> {
    const LENGTH: usize = 20_000;
    let flooded = Flooded::new().await?;
    let mut client = flooded.client(&[]).await?;
    client
        .send(&headers(0, 1, &request("POST", "/body")))
        .await?;
    for n in 0..LENGTH {
        let flags = if n + 1 == LENGTH { END_STREAM } else { 0 };
        client.send(&single(DATA, flags, 1, b"x")).await?;
    }
    let head = client.until(|frame| frame.kind == HEADERS).await?;
    ensure!(decode_status(&head.payload)? == 200);
    flooded.memory_below("a body in frames of one byte", SLACK)
}

/// Responses that wait for a window that never opens.
#[tokio::test]
async fn bounds_memory_of_responses_without_window() -> Result<()> {
    const CONNECTIONS: usize = 4;
    let flooded = Flooded::new().await?;
    for (path, each) in [("/endless", 256 * 1024), ("/ok", 32 * 1024)] {
        let block = request("GET", path);
        let mut clients = Vec::new();
        let start = flooded.requests();
        for _ in 0..CONNECTIONS {
            let mut client = flooded.client(&[(INITIAL_WINDOW_SIZE, 0)]).await?;
            for n in 0..u32::try_from(MAX_STREAMS)? {
                client
                    .send(&headers(END_STREAM, stream_id(n), &block))
                    .await?;
            }
            clients.push(client);
        }
        let all = CONNECTIONS * MAX_STREAMS;
        eventually("all requests", async || {
            Ok(flooded.requests() == start + all)
        })
        .await?;
        for client in &mut clients {
            for _ in 0..MAX_STREAMS {
                client.until(|frame| frame.kind == HEADERS).await?;
            }
            client.processed().await?;
        }
        flooded.memory_below(
            &format!("responses of {path} without a window"),
            SLACK + all * each,
        )?;
        // No further stream is accepted.
        let client = &mut clients[0];
        let id = stream_id(u32::try_from(MAX_STREAMS)?);
        client.send(&headers(END_STREAM, id, &block)).await?;
        let refused = client.until(|frame| frame.stream == id).await?;
        ensure!(
            refused.kind == RST_STREAM && refused.payload == [0, 0, 0, 7],
            "{refused:?}"
        );
        flooded.serves_another_connection().await?;
        drop(clients);
    }
    Ok(())
}

#[tokio::test]
async fn rejects_header_lists_over_the_limits() -> Result<()> {
    let flooded = Flooded::new().await?;
    let head = |fields: usize, length: usize| {
        let mut block = request("GET", "/ok");
        for n in 0..fields {
            literal(&mut block, format!("x-{n}").as_bytes(), &vec![b'x'; length]);
        }
        block
    };
    for (name, block, status) in [
        ("a head near 1 MiB", head(10, 100_000), 200),
        ("a head over 1 MiB", head(11, 100_000), 431),
        ("a field over 1 MiB", head(1, MIB), 431),
        ("1000 fields", head(1000 - 1, 1), 200),
        ("1001 fields", head(1000, 1), 431),
        ("30,000 fields", head(30_000, 1), 431),
    ] {
        let mut client = flooded.client(&[]).await?;
        let mut sent = Vec::new();
        header_block(&mut sent, END_STREAM, 1, &block);
        client.send(&sent).await?;
        let head = client.until(|frame| frame.stream == 1).await?;
        ensure!(head.kind == HEADERS, "{name}: {head:?}");
        let got = decode_status(&head.payload)?;
        ensure!(got == status, "{name}: {got}");
        // Only the stream has ended.
        client
            .send(&headers(END_STREAM, 3, &request("GET", "/ok")))
            .await?;
        client
            .until(|frame| frame.stream == 3 && frame.kind == HEADERS)
            .await?;
    }
    let mut sent = Vec::new();
    header_block(&mut sent, END_STREAM, 1, &head(50, 100_000));
    let client = flooded.client(&[]).await?;
    let reaction = client.flood(1, |_| std::mem::take(&mut sent)).await?;
    ensure_closed("a head of 5 MB", &reaction, ENHANCE_YOUR_CALM)?;
    flooded.serves_another_connection().await
}

/// Interim responses are not under flow control. An endpoint must not fill the memory with them.
#[tokio::test]
async fn bounds_memory_of_interim_responses_to_clients_that_do_not_read() -> Result<()> {
    const STREAMS: u32 = 10;
    let flooded = Flooded::new().await?;
    let block = request("GET", "/hints");
    let mut client = flooded.client(&[]).await?;
    for n in 0..STREAMS {
        client
            .send(&headers(END_STREAM, stream_id(n), &block))
            .await?;
    }
    eventually("all interim responses", async || {
        Ok(flooded.endpoint.hinted.load(Ordering::Relaxed) == STREAMS as usize)
    })
    .await?;
    for _ in 0..STREAMS {
        client
            .until(|frame| frame.kind == DATA && frame.flags & END_STREAM != 0)
            .await?;
    }
    flooded.memory_below("200 MB of interim responses", SLACK)
}
