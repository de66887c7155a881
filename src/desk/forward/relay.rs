//! Relay between a local client and a target.

use std::cell::Cell;
use std::io;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;

/// Size in bytes of the buffer of each direction.
const BUFFER: usize = 32 * 1024;

/// Connections and bytes of a target so far.
#[derive(Debug, Default)]
pub struct Traffic {
    pub open: Cell<usize>,
    pub total: Cell<u64>,
    /// Bytes towards the target.
    pub sent: Cell<u64>,
    pub received: Cell<u64>,
}

/// Failure of a connection, by the side that it came from.
#[derive(Debug)]
pub enum RelayError {
    Local(io::Error),
    Remote(io::Error),
}

/// Local connection that is reset when it is dropped, unless it has ended.
#[derive(Debug)]
pub struct Client {
    stream: TcpStream,
    has_ended: bool,
}

impl Client {
    pub fn new(stream: TcpStream) -> Self {
        Self {
            stream,
            has_ended: false,
        }
    }

    /// Relays bytes until both sides have ended. The end of one is passed on as its end only, and a
    /// failure resets the other: a transfer that was cut off must not look complete.
    ///
    /// # Errors
    /// [`RelayError`]
    pub async fn relay<R>(mut self, remote: R, traffic: &Traffic) -> Result<(), RelayError>
    where
        R: AsyncRead + AsyncWrite + Unpin,
    {
        let (mut local_reader, mut local_writer) = self.stream.split();
        let (mut remote_reader, mut remote_writer) = tokio::io::split(remote);
        let up = async {
            let pumped = pump(&mut local_reader, &mut remote_writer, &traffic.sent).await;
            pumped.map_err(|error| error.between(RelayError::Local, RelayError::Remote))
        };
        let down = async {
            let pumped = pump(&mut remote_reader, &mut local_writer, &traffic.received).await;
            pumped.map_err(|error| error.between(RelayError::Remote, RelayError::Local))
        };
        tokio::try_join!(up, down)?;
        self.has_ended = true;
        Ok(())
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        if !self.has_ended {
            // Fails if the client has closed the connection.
            let _ = self.stream.set_zero_linger();
        }
    }
}

enum PumpError {
    Read(io::Error),
    Write(io::Error),
}

impl PumpError {
    fn between(
        self,
        reader: fn(io::Error) -> RelayError,
        writer: fn(io::Error) -> RelayError,
    ) -> RelayError {
        match self {
            Self::Read(error) => reader(error),
            Self::Write(error) => writer(error),
        }
    }
}

/// Copies one direction with its end.
async fn pump(
    reader: &mut (impl AsyncRead + Unpin),
    writer: &mut (impl AsyncWrite + Unpin),
    count: &Cell<u64>,
) -> Result<(), PumpError> {
    let mut buffer = vec![0; BUFFER];
    loop {
        let length = reader.read(&mut buffer).await.map_err(PumpError::Read)?;
        if length == 0 {
            return writer.shutdown().await.map_err(PumpError::Write);
        }
        let written = writer.write_all(&buffer[..length]).await;
        written.map_err(PumpError::Write)?;
        count.set(count.get() + length as u64);
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    async fn connection() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (client, accepted) = tokio::join!(TcpStream::connect(address), listener.accept());
        (client.unwrap(), accepted.unwrap().0)
    }

    /// Returns a client, its backend, and the relay between them.
    async fn relay() -> (
        TcpStream,
        TcpStream,
        impl Future<Output = (Result<(), RelayError>, Traffic)>,
    ) {
        let (client, local) = connection().await;
        let (remote, backend) = connection().await;
        let relaying = async move {
            let traffic = Traffic::default();
            let result = Client::new(local).relay(remote, &traffic).await;
            (result, traffic)
        };
        (client, backend, relaying)
    }

    #[tokio::test]
    async fn end_of_one_side_leaves_the_other_open() {
        let (mut client, mut backend, relaying) = relay().await;
        let exchange = async {
            client.write_all(b"request").await.unwrap();
            client.shutdown().await.unwrap();
            let mut request = String::new();
            backend.read_to_string(&mut request).await.unwrap();
            assert_eq!(request, "request");
            backend.write_all(b"answer").await.unwrap();
            drop(backend);
            let mut answer = String::new();
            client.read_to_string(&mut answer).await.unwrap();
            assert_eq!(answer, "answer");
        };
        let ((result, traffic), ()) = tokio::join!(relaying, exchange);
        assert!(result.is_ok());
        assert_eq!((traffic.sent.get(), traffic.received.get()), (7, 6));
    }

    /// A server that answers and closes (kubernetes/kubernetes issue 8766).
    #[tokio::test]
    async fn end_of_the_target_reaches_a_client_that_sends_nothing() {
        let (mut client, mut backend, relaying) = relay().await;
        let exchange = async {
            backend.write_all(b"bye").await.unwrap();
            drop(backend);
            let mut answer = String::new();
            client.read_to_string(&mut answer).await.unwrap();
            assert_eq!(answer, "bye");
            drop(client);
        };
        let ((result, _), ()) = tokio::join!(relaying, exchange);
        assert!(result.is_ok());
    }

    #[tokio::test]
    async fn reset_of_the_target_resets_the_client() {
        let (mut client, backend, relaying) = relay().await;
        let exchange = async {
            backend.set_zero_linger().unwrap();
            drop(backend);
            let error = client.read(&mut [0; 1]).await.unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
        };
        let ((result, _), ()) = tokio::join!(relaying, exchange);
        assert!(matches!(result, Err(RelayError::Remote(_))), "{result:?}");
    }

    #[tokio::test]
    async fn reset_of_the_client_ends_the_relay() {
        let (client, _backend, relaying) = relay().await;
        client.set_zero_linger().unwrap();
        drop(client);
        let (result, _) = relaying.await;
        assert!(matches!(result, Err(RelayError::Local(_))), "{result:?}");
    }
}
