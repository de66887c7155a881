//! Load generators for what wrk and h2load do not measure: large bodies, full and resumed TLS
//! handshakes, and HTTP/1.1 at a fixed rate. Each thread has one blocking connection.

use std::net::SocketAddr;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use rustls::HandshakeKind;

use crate::http1::{Connection, client_config};
use crate::workloads::Direction;

/// Peer under load.
#[derive(Clone, Copy)]
pub struct Target<'a> {
    pub address: SocketAddr,
    pub ca: &'a Path,
    /// Head of the requests.
    pub head: &'a [u8],
}

/// Transfers bodies in a closed loop. Returns the number of complete transfers; the last one of
/// each thread runs to its end.
///
/// # Errors
/// Returns an error if a response is not 2xx or a download has another size.
pub fn transfer_bodies(
    target: Target<'_>,
    direction: Direction,
    bytes: u64,
    duration: Duration,
) -> Result<u64> {
    const CONNECTIONS: usize = 8;
    let config = client_config(target.ca, true)?;
    let end = Instant::now() + duration;
    let counts = in_threads(CONNECTIONS, |_| {
        let mut connection = Connection::open(&config, target.address)?;
        let mut count = 0;
        while count == 0 || Instant::now() < end {
            match direction {
                Direction::Upload => connection.upload(target.head, bytes)?,
                Direction::Download => {
                    let read = connection.exchange(target.head)?;
                    ensure!(read == bytes, "a download has {read} bytes");
                }
            }
            count += 1;
        }
        Ok(count)
    })?;
    Ok(counts.iter().sum())
}

/// Opens a connection, sends one request and closes, in a closed loop. Returns the sorted
/// durations of all connections in µs.
///
/// # Errors
/// Returns an error if a response is not 2xx, or a handshake is not of the required kind.
pub fn handshakes(target: Target<'_>, resumed: bool, duration: Duration) -> Result<Vec<f64>> {
    const THREADS: usize = 4;
    let end = Instant::now() + duration;
    let durations = in_threads(THREADS, |_| {
        // The sessions of a thread are its own.
        let config = client_config(target.ca, resumed)?;
        let mut durations = Vec::new();
        if resumed {
            // Its handshake is full, and leaves tickets.
            let mut first = Connection::open(&config, target.address)?;
            first.exchange(target.head)?;
            first.close();
        }
        while Instant::now() < end {
            let began = Instant::now();
            let mut connection = Connection::open(&config, target.address)?;
            connection.exchange(target.head)?;
            durations.push(micros(began.elapsed()));
            let kind = connection.handshake();
            let is_expected = match kind {
                Some(HandshakeKind::Resumed) => resumed,
                Some(HandshakeKind::Full) => !resumed,
                // A HelloRetryRequest is another round trip, which no peer needs.
                _ => false,
            };
            ensure!(is_expected, "a handshake is {kind:?}");
            connection.close();
        }
        Ok(durations)
    })?;
    Ok(sorted(&durations))
}

/// Sends requests at a fixed rate, spread evenly over the connections and in time. Returns the
/// sorted latencies in µs.
///
/// A request whose time comes before the previous response of its connection is sent late, and
/// its latency counts from the time at which it was due, so that a pause of the peer is not hidden
/// by requests that were never sent (coordinated omission). The delay of a timer of the generator
/// itself does not count.
///
/// # Errors
/// Returns an error if a response is not 2xx.
pub fn at_fixed_rate(target: Target<'_>, rate: u32, duration: Duration) -> Result<Vec<f64>> {
    const CONNECTIONS: u32 = 32;
    /// Time for all threads to connect.
    const LEAD: Duration = Duration::from_millis(500);
    let config = client_config(target.ca, true)?;
    let interval = Duration::from_secs(1) * CONNECTIONS / rate;
    let start = Instant::now() + LEAD;
    let latencies = in_threads(CONNECTIONS as usize, |index| {
        let mut connection = Connection::open(&config, target.address)?;
        connection.exchange(target.head)?;
        let mut due = start + interval * u32::try_from(index)? / CONNECTIONS;
        let mut latencies = Vec::new();
        while due < start + duration {
            let began = if Instant::now() < due {
                wait_until(due);
                Instant::now()
            } else {
                due
            };
            connection.exchange(target.head)?;
            latencies.push(micros(began.elapsed()));
            due += interval;
        }
        Ok(latencies)
    })?;
    Ok(sorted(&latencies))
}

#[expect(
    clippy::disallowed_methods,
    reason = "the thread has one blocking connection and no other work"
)]
fn wait_until(time: Instant) {
    std::thread::sleep(time.saturating_duration_since(Instant::now()));
}

/// Runs a function in threads, and returns the results of all.
///
/// # Errors
/// Returns the error of one of them.
pub fn in_threads<T: Send>(
    count: usize,
    run: impl Fn(usize) -> Result<T> + Sync,
) -> Result<Vec<T>> {
    std::thread::scope(|scope| {
        let run = &run;
        let threads: Vec<_> = (0..count)
            .map(|index| scope.spawn(move || run(index)))
            .collect();
        threads
            .into_iter()
            .map(|thread| thread.join().map_err(|_| anyhow!("a thread panicked"))?)
            .collect::<Result<_>>()
            .context("the load generator failed")
    })
}

fn micros(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e6
}

fn sorted(figures: &[Vec<f64>]) -> Vec<f64> {
    let mut all = figures.concat();
    all.sort_by(f64::total_cmp);
    all
}
