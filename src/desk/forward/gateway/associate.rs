//! UDP ASSOCIATE (RFC 1928 section 7): a flow of CONNECT-UDP for each target of a client.

use std::cell::Cell;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::sleep;

use super::super::listen::{Listener, UdpListener};
use super::super::report::Report;
use super::super::serve::Open;
use super::super::socks::{self, Reply, Target};
use super::super::udp::{FAILURE_PAUSE, Flow, Flows};
use super::{Gateway, UNSPECIFIED, reject, reply};
use crate::desk::targets::Protocol;

/// Maximum number of associations, and of targets of one, the least recently used of which ends.
const MAX_ASSOCIATIONS: usize = 64;
const MAX_FLOWS: usize = 32;

/// Relay of the datagrams of one client.
#[derive(Debug)]
struct Association {
    relay: Rc<UdpListener>,
    /// Address of the client. `None` before its first datagram.
    client: Cell<Option<SocketAddr>>,
    gateway: Rc<Gateway>,
}

impl Drop for Association {
    fn drop(&mut self) {
        let count = &self.gateway.associations;
        count.set(count.get() - 1);
    }
}

impl Gateway {
    /// Relays datagrams until the connection ends. `port` is that of the client's socket, or 0.
    pub(super) async fn associate(
        self: &Rc<Self>,
        mut stream: TcpStream,
        port: u16,
        report: &Rc<Report>,
    ) -> io::Result<()> {
        let (local, peer) = (stream.local_addr()?.ip(), stream.peer_addr()?.ip());
        let relay = <Rc<UdpListener>>::bind(SocketAddr::new(local, 0));
        let relay = relay
            .ok()
            .filter(|_| self.associations.get() < MAX_ASSOCIATIONS);
        let Some(relay) = relay else {
            return reject(stream, &reply(Reply::Failure, UNSPECIFIED)).await;
        };
        self.associations.set(self.associations.get() + 1);
        let client = (port != 0).then(|| SocketAddr::new(peer, port));
        let association = Rc::new(Association {
            relay,
            client: Cell::new(client),
            gateway: Rc::clone(self),
        });
        let accepted = reply(Reply::Succeeded, association.relay.address);
        stream.write_all(&accepted).await?;
        let mut flows = Flows::<Target>::new(MAX_FLOWS);
        let serving = async {
            loop {
                let received = association.relay.socket.receive(|datagrams| {
                    let from = datagrams.from;
                    let client = association.client.get();
                    if client.map_or(from.ip() != peer, |client| client != from) {
                        return;
                    }
                    let parsed = datagrams.iter().filter_map(socks::parse_datagram);
                    for (target, payload) in parsed {
                        association.client.set(Some(from));
                        flows.push(&target, payload, |flow| {
                            run(
                                flow,
                                Rc::clone(&association),
                                target.clone(),
                                Rc::clone(report),
                            )
                        });
                    }
                });
                received.await?;
            }
        };
        let mut ignored = [0; 256];
        let ended = async {
            while stream.read(&mut ignored).await? > 0 {}
            Ok(())
        };
        tokio::select! {
            ended = ended => ended,
            failed = serving => failed,
        }
    }
}

/// Serves the flow to one target.
async fn run(flow: Rc<Flow>, association: Rc<Association>, target: Target, report: Rc<Report>) {
    let gateway = &association.gateway;
    let _open = Open::new(&gateway.traffic);
    let Ok(tunnel) = gateway.open(Protocol::Udp, &target, &report).await else {
        sleep(FAILURE_PAUSE).await;
        return;
    };
    let mut datagram = Vec::new();
    let answer = |payload: &[u8]| {
        let Some(client) = association.client.get() else {
            return;
        };
        datagram.clear();
        socks::write_datagram_header(&target, &mut datagram);
        datagram.extend_from_slice(payload);
        let socket = &association.relay.socket;
        // Fails for an answer that has no room with its header, and is dropped.
        if let Err(error) = socket.send(client, None, &datagram, datagram.len()) {
            tracing::debug!(%error, "cannot send a datagram to the local client");
        }
    };
    if let Err(error) = flow.relay(tunnel.into(), &gateway.traffic, answer).await {
        tracing::debug!(%error, "the flow has failed");
    }
}
