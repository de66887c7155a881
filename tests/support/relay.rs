//! A cable that can be cut or frozen: passes TCP on to an address until a test says otherwise.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::Result;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;

/// Dropping it leaves its connections be; [`Relay::cut`] breaks them all, [`Relay::freeze`] keeps
/// them open and passes no more bytes. Later ones pass again.
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
        let kept = Arc::clone(&shared);
        tokio::spawn(async move {
            while let Ok((near, _)) = listener.accept().await {
                let shared = Arc::clone(&shared);
                tokio::spawn(async move {
                    shared.open.fetch_add(1, Ordering::Relaxed);
                    pass(near, to, &shared).await;
                    shared.open.fetch_sub(1, Ordering::Relaxed);
                });
            }
        });
        Ok(Self {
            address,
            shared: kept,
        })
    }

    pub fn cut(&self) {
        self.shared.cut.notify_waiters();
    }

    /// The two ends of each open connection hear nothing more of each other: no byte, no FIN, no
    /// RST. The kernel goes on acknowledging, so that only a timeout between bytes can notice it.
    pub fn freeze(&self) {
        self.shared.freeze.notify_waiters();
    }

    /// Connections that pass or are frozen.
    pub fn open(&self) -> usize {
        self.shared.open.load(Ordering::Relaxed)
    }
}

async fn pass(mut near: TcpStream, to: SocketAddr, shared: &Shared) {
    let Ok(mut far) = TcpStream::connect(to).await else {
        return;
    };
    tokio::select! {
        _ = tokio::io::copy_bidirectional(&mut near, &mut far) => return,
        () = shared.cut.notified() => return,
        () = shared.freeze.notified() => {}
    }
    // Bytes that came before are left in the socket: reading them would not matter, writing them on
    // would.
    shared.cut.notified().await;
}
