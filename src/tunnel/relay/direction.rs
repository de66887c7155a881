//! One direction of a relay.

use std::cell::{Cell, RefCell};
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::http::Upgraded;

/// Range of the number of bytes of one read. Large reads cost fewer system calls, but a receiver
/// that does not take them holds as much memory.
const MIN_READ: usize = 16 * 1024;
const MAX_READ: usize = MIN_READ << MAX_DOUBLINGS;
const MAX_DOUBLINGS: u8 = 3;
/// Maximum number of bytes by which the memory for gathered bytes is larger than them.
const MAX_RESERVE: usize = 64 * 1024;
/// Number of reads after which the task lets others run.
const MAX_STEPS: usize = 32;

thread_local! {
    /// Read buffer of all relays of a thread. A relay keeps only the bytes that its receiver has
    /// not taken, so an idle one has no buffer.
    static BUFFER: RefCell<Vec<u8>> = RefCell::new(vec![0; MAX_READ]);
}

/// Bytes from one side to the other.
#[derive(Debug)]
pub(super) struct Direction {
    /// Bytes that were read, and that the receiver has not taken.
    pending: Bytes,
    /// Number of bytes to read next for a receiver that does not tell its room: [`MIN_READ`],
    /// doubled as often.
    doublings: u8,
    state: State,
    /// The receiver has no room, so the sender is not read.
    is_full: bool,
    /// Bytes were written since the receiver was flushed.
    is_unflushed: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Open,
    /// The sender has ended; its end has not been written to the receiver yet.
    Ended,
    /// The receiver accepts no more bytes. Those of the sender are dropped until its end: if they
    /// stayed unread, closing its connection would reset it.
    Stopped,
    /// The sender has ended, and the receiver has got its end or accepts no more bytes.
    Closed,
}

/// Failure of a direction.
#[derive(Debug)]
pub(super) enum Failure {
    /// The sender failed.
    Read(io::Error),
    /// The receiver failed.
    Write(io::Error),
}

impl Default for Direction {
    fn default() -> Self {
        Self {
            pending: Bytes::new(),
            doublings: 0,
            state: State::Open,
            is_full: false,
            is_unflushed: false,
        }
    }
}

impl Direction {
    fn size(&self) -> usize {
        MIN_READ << self.doublings
    }

    /// Returns true if the sender is read to pass its bytes on, which reports its failures.
    pub fn is_reading(&self) -> bool {
        self.state == State::Open && self.pending.is_empty() && !self.is_full
    }

    /// Returns true if the receiver took everything that the sender had sent until its end, or
    /// accepts no more bytes.
    pub fn is_delivered(&self) -> bool {
        self.state != State::Open && self.pending.is_empty()
    }

    /// Returns true if the sender has ended, and the receiver has got its end or accepts no more
    /// bytes.
    pub fn is_closed(&self) -> bool {
        self.state == State::Closed
    }

    /// Returns true if the receiver accepts no more bytes, and the sender has not ended.
    pub fn is_stopped(&self) -> bool {
        self.state == State::Stopped
    }

    /// Drops the bytes of the sender from now on.
    pub fn stop(&mut self) {
        self.pending = Bytes::new();
        self.state = match self.state {
            State::Open | State::Stopped => State::Stopped,
            State::Ended | State::Closed => State::Closed,
        };
    }

    /// Passes bytes on, and then the end. `count` is increased by the bytes that are read to be passed
    /// on. `is_last` is true if the other direction is closed.
    pub fn poll(
        &mut self,
        context: &mut Context<'_>,
        from: &mut Upgraded,
        to: &mut Upgraded,
        count: &Cell<u64>,
        is_last: bool,
    ) -> Poll<Result<(), Failure>> {
        for _ in 0..MAX_STEPS {
            ready!(self.poll_write_pending(context, from, to, count))?;
            match self.state {
                State::Open => {
                    if self.poll_read(context, from, to, count)?.is_pending() {
                        if self.pending.is_empty() {
                            self.poll_flush(context, to)?;
                        }
                        return Poll::Pending;
                    }
                }
                // The receiver is dropped now, which sends FIN as a shutdown would.
                State::Ended if is_last && to.is_tcp() => {
                    self.state = State::Closed;
                    return Poll::Ready(Ok(()));
                }
                State::Ended => {
                    // Closed even if this fails: there is no second shutdown.
                    let shut = ready!(Pin::new(to).poll_shutdown(context));
                    self.state = State::Closed;
                    return Poll::Ready(shut.map_err(Failure::Write));
                }
                State::Stopped => {
                    if ready!(poll_discard(context, from))? == 0 {
                        self.state = State::Closed;
                    }
                }
                State::Closed => return Poll::Ready(Ok(())),
            }
        }
        context.waker().wake_by_ref();
        Poll::Pending
    }

    fn poll_write_pending(
        &mut self,
        context: &mut Context<'_>,
        from: &mut Upgraded,
        to: &mut Upgraded,
        count: &Cell<u64>,
    ) -> Poll<Result<(), Failure>> {
        while !self.pending.is_empty() {
            let Poll::Ready(written) = Pin::new(&mut *to).poll_write(context, &self.pending) else {
                self.gather(context, from, count)?;
                return Poll::Pending;
            };
            let written = written.and_then(not_zero).map_err(Failure::Write)?;
            self.is_unflushed = true;
            self.pending.advance(written);
            from.release(written);
        }
        // Releases the memory, too.
        self.pending = Bytes::new();
        Poll::Ready(Ok(()))
    }

    /// Takes what has arrived on a stream of HTTP/2 while the receiver takes nothing, at most its
    /// flow-control window. In h2, each small frame would count as a part of a flood, for which it
    /// closes the connection with all of its streams.
    fn gather(
        &mut self,
        context: &mut Context<'_>,
        from: &mut Upgraded,
        count: &Cell<u64>,
    ) -> Result<(), Failure> {
        let mut gathered = None;
        while self.state == State::Open {
            let Some(Poll::Ready(chunk)) = from.poll_chunk(context) else {
                break;
            };
            let Some(chunk) = chunk.map_err(Failure::Read)? else {
                self.state = State::Ended;
                break;
            };
            count.set(count.get() + chunk.len() as u64);
            let bytes = gathered.get_or_insert_with(|| {
                let pending = std::mem::take(&mut self.pending).try_into_mut();
                pending.unwrap_or_else(|shared| BytesMut::from(&shared[..]))
            });
            let length = bytes.len() + chunk.len();
            if bytes.capacity() < length {
                // Doubled at first, since chunks may be small.
                let mut larger = BytesMut::with_capacity(length + length.min(MAX_RESERVE));
                larger.extend_from_slice(bytes);
                *bytes = larger;
            }
            bytes.extend_from_slice(&chunk);
        }
        if let Some(gathered) = gathered {
            self.pending = gathered.freeze();
        }
        Ok(())
    }

    /// Reads once, and writes as much as the receiver takes.
    fn poll_read(
        &mut self,
        context: &mut Context<'_>,
        from: &mut Upgraded,
        to: &mut Upgraded,
        count: &Cell<u64>,
    ) -> Result<Poll<()>, Failure> {
        match from.poll_chunk(context) {
            // The sender has no bytes in memory, or is a stream of bytes.
            None => {}
            Some(Poll::Pending) => return Ok(Poll::Pending),
            Some(Poll::Ready(chunk)) => {
                match chunk.map_err(Failure::Read)? {
                    Some(chunk) => {
                        count.set(count.get() + chunk.len() as u64);
                        self.pending = chunk;
                    }
                    None => self.state = State::Ended,
                }
                return Ok(Poll::Ready(()));
            }
        }
        let room = to.poll_room(context);
        self.is_full = room.is_pending();
        let Poll::Ready(room) = room else {
            return Ok(Poll::Pending);
        };
        let length = room.unwrap_or(self.size());
        BUFFER.with_borrow_mut(|buffer| {
            let mut read = ReadBuf::new(&mut buffer[..length]);
            let polled = Pin::new(from).poll_read(context, &mut read);
            if polled.map_err(Failure::Read)?.is_pending() {
                return Ok(Poll::Pending);
            }
            let bytes = read.filled();
            count.set(count.get() + bytes.len() as u64);
            if bytes.is_empty() {
                self.state = State::Ended;
            } else {
                self.write(context, to, bytes)?;
            }
            Ok(Poll::Ready(()))
        })
    }

    /// Writes bytes, and keeps a copy of the rest if the receiver is slow.
    fn write(
        &mut self,
        context: &mut Context<'_>,
        to: &mut Upgraded,
        bytes: &[u8],
    ) -> Result<(), Failure> {
        self.is_unflushed = true;
        let mut rest = bytes;
        while !rest.is_empty() {
            match Pin::new(&mut *to).poll_write(context, rest) {
                Poll::Ready(written) => {
                    let written = written.and_then(not_zero).map_err(Failure::Write)?;
                    rest = &rest[written..];
                }
                Poll::Pending => {
                    self.pending = Bytes::copy_from_slice(rest);
                    self.doublings = self.doublings.saturating_sub(1);
                    return Ok(());
                }
            }
        }
        if bytes.len() == self.size() {
            self.doublings = (self.doublings + 1).min(MAX_DOUBLINGS);
        } else if bytes.len() < self.size() / 4 {
            self.doublings = self.doublings.saturating_sub(1);
        }
        Ok(())
    }

    /// Flushes the receiver: TLS may hold records that the socket did not take.
    fn poll_flush(&mut self, context: &mut Context<'_>, to: &mut Upgraded) -> Result<(), Failure> {
        if self.is_unflushed {
            let flushed = Pin::new(to).poll_flush(context);
            if flushed.map_err(Failure::Write)?.is_ready() {
                self.is_unflushed = false;
            }
        }
        Ok(())
    }
}

/// Reads once, and drops the bytes. Returns their number, which is 0 at the end.
fn poll_discard(context: &mut Context<'_>, from: &mut Upgraded) -> Poll<Result<usize, Failure>> {
    BUFFER.with_borrow_mut(|buffer| {
        let mut read = ReadBuf::new(buffer);
        let polled = Pin::new(from).poll_read(context, &mut read);
        ready!(polled).map_err(Failure::Read)?;
        Poll::Ready(Ok(read.filled().len()))
    })
}

fn not_zero(written: usize) -> io::Result<usize> {
    if written == 0 {
        Err(io::ErrorKind::WriteZero.into())
    } else {
        Ok(written)
    }
}
