//! A cable that can be cut: passes TCP on to an address until a test says otherwise.

use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::Result;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;

/// Dropping it leaves its connections be; [`Relay::cut`] breaks them all, and later ones pass again.
pub struct Relay {
    pub address: SocketAddr,
    cut: Arc<Notify>,
}

impl Relay {
    pub async fn start(to: SocketAddr) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let cut = Arc::new(Notify::new());
        let told = Arc::clone(&cut);
        tokio::spawn(async move {
            while let Ok((mut near, _)) = listener.accept().await {
                let told = Arc::clone(&told);
                tokio::spawn(async move {
                    let Ok(mut far) = TcpStream::connect(to).await else { return };
                    tokio::select! {
                        _ = tokio::io::copy_bidirectional(&mut near, &mut far) => {}
                        () = told.notified() => {}
                    }
                });
            }
        });
        Ok(Self { address, cut })
    }

    pub fn cut(&self) {
        self.cut.notify_waiters();
    }
}
