//! A TCP relay to an address, whose connections a test can close or freeze.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

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

struct Shared {
    to: Mutex<SocketAddr>,
    cut: Notify,
    freeze: Notify,
    open: AtomicUsize,
}

impl Relay {
    pub async fn start(to: SocketAddr) -> Result<Self> {
        Self::serve(TcpListener::bind("127.0.0.1:0").await?, to)
    }

    /// Relays the connections of a listener, which may be in another network namespace than `to`.
    pub fn serve(listener: TcpListener, to: SocketAddr) -> Result<Self> {
        let address = listener.local_addr()?;
        let shared = Arc::new(Shared {
            to: Mutex::new(to),
            cut: Notify::default(),
            freeze: Notify::default(),
            open: AtomicUsize::default(),
        });
        let relay = Arc::clone(&shared);
        tokio::spawn(async move {
            while let Ok((near, _)) = listener.accept().await {
                let shared = Arc::clone(&shared);
                tokio::spawn(async move {
                    shared.open.fetch_add(1, Ordering::Relaxed);
                    relay_connection(near, &shared).await;
                    shared.open.fetch_sub(1, Ordering::Relaxed);
                });
            }
        });
        Ok(Self {
            address,
            shared: relay,
        })
    }

    /// Relays later connections to another address, as the Service in front of replicas does.
    pub fn redirect(&self, to: SocketAddr) {
        *self.shared.to.lock().expect("no thread panics with it") = to;
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

async fn relay_connection(mut near: TcpStream, shared: &Shared) {
    let to = *shared.to.lock().expect("no thread panics with it");
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
