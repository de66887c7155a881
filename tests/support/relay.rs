//! A TCP relay to an address, whose connections a test can close or freeze.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::Result;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;

/// TCP relay. [`Relay::cut`] closes all connections; [`Relay::freeze`] keeps them open and relays
/// no more bytes. Later connections are relayed again. Dropping it has no effect on its
/// connections.
pub struct Relay {
    pub address: SocketAddr,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    cut: Notify,
    freeze: Notify,
    open: AtomicUsize,
}

impl Relay {
    pub async fn start(to: SocketAddr) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let shared = Arc::<Shared>::default();
        let relay = Arc::clone(&shared);
        tokio::spawn(async move {
            while let Ok((near, _)) = listener.accept().await {
                let shared = Arc::clone(&shared);
                tokio::spawn(async move {
                    shared.open.fetch_add(1, Ordering::Relaxed);
                    relay_connection(near, to, &shared).await;
                    shared.open.fetch_sub(1, Ordering::Relaxed);
                });
            }
        });
        Ok(Self {
            address,
            shared: relay,
        })
    }

    pub fn cut(&self) {
        self.shared.cut.notify_waiters();
    }

    /// Relays nothing more on open connections: no byte, no FIN, no RST. The kernel still
    /// acknowledges bytes, so only a timeout between bytes detects it.
    pub fn freeze(&self) {
        self.shared.freeze.notify_waiters();
    }

    /// Number of open connections, including frozen ones.
    pub fn open(&self) -> usize {
        self.shared.open.load(Ordering::Relaxed)
    }
}

async fn relay_connection(mut near: TcpStream, to: SocketAddr, shared: &Shared) {
    let Ok(mut far) = TcpStream::connect(to).await else {
        return;
    };
    tokio::select! {
        _ = tokio::io::copy_bidirectional(&mut near, &mut far) => return,
        () = shared.cut.notified() => return,
        () = shared.freeze.notified() => {}
    }
    // Bytes that arrived before stay unread in the sockets.
    shared.cut.notified().await;
}
