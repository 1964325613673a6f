//! A network between a store and its server that can be cut, slowed down and damaged.
#![allow(dead_code, reason = "each test crate uses its part")]

use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch::{Receiver, Sender, channel};
use tokio::time::sleep;

/// What happens to the bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Network {
    /// They are forwarded.
    Intact,
    /// Connections are closed, including new ones.
    Closed,
    /// Bytes are dropped and connections stay open, including new ones. A connection that has
    /// lost bytes stays silent forever.
    Silent,
    /// Like `Silent`, and a close by the other side is not noticed before the network is
    /// restored.
    BlackHole,
    /// Connections are reset.
    Reset,
    /// This direction ends, the other one continues.
    HalfClosed,
    /// This many bytes are forwarded, and then the connection is closed.
    Truncated(usize),
    /// This many bytes are forwarded, and then no more.
    Incomplete(usize),
    /// Each packet is delayed for that long.
    Slow(Duration),
    /// This many bytes per second are forwarded.
    Limited(usize),
}

/// A direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    /// To the server.
    ToServer,
    /// From the server.
    FromServer,
}

/// A planned fault.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PlannedFault {
    pub(crate) side: Side,
    /// The number of the packet in that direction, from 1 up, at which it occurs.
    pub(crate) packet: usize,
    pub(crate) network: Network,
    /// Whether the whole network has the fault from then on, or only that connection.
    pub(crate) lasting: bool,
}

/// The state of the network, and its direction; `None` for both.
type State = (Network, Option<Side>);

/// Listens until it is dropped.
#[derive(Debug)]
pub(crate) struct Proxy {
    port: u16,
    state: Arc<Sender<State>>,
    planned: Arc<Mutex<Option<PlannedFault>>>,
    server: Arc<Mutex<String>>,
    _end: Sender<()>,
}

impl Proxy {
    /// Starts a proxy for the server at that address, `host:port`.
    pub(crate) async fn start(server: String) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let state = Arc::new(channel((Network::Intact, None)).0);
        let planned = Arc::default();
        let server = Arc::new(Mutex::new(server));
        let (end, mut ended) = channel(());
        let (target, shared) = (
            Arc::clone(&server),
            Shared { state: Arc::clone(&state), planned: Arc::clone(&planned), end: ended.clone() },
        );
        tokio::spawn(async move {
            loop {
                let client = tokio::select! {
                    accepted = listener.accept() => accepted.unwrap().0,
                    gone = ended.changed() => return assert!(gone.is_err()),
                };
                let server = target.lock().unwrap().clone();
                tokio::spawn(connect(client, server, shared.clone()));
            }
        });
        Self { port, state, planned, server, _end: end }
    }

    pub(crate) fn set(&self, network: Network) {
        self.state.send_replace((network, None));
    }

    /// Sets the network in one direction only.
    pub(crate) fn set_on(&self, side: Side, network: Network) {
        self.state.send_replace((network, Some(side)));
    }

    /// Plans a fault for the next packets.
    pub(crate) fn plan(&self, fault: PlannedFault) {
        *self.planned.lock().unwrap() = Some(fault);
    }

    /// Cancels a planned fault. Returns whether it occurred.
    pub(crate) fn fault_occurred(&self) -> bool {
        self.planned.lock().unwrap().take().is_none()
    }

    /// Makes new connections lead to another server.
    pub(crate) fn redirect(&self, server: String) {
        *self.server.lock().unwrap() = server;
    }

    /// The URL through this proxy.
    pub(crate) fn url(&self, url: &str) -> String {
        url_at(url, self.port)
    }
}

/// The URL with another port of this machine.
pub(crate) fn url_at(url: &str, port: u16) -> String {
    url.replace(&address(url), &format!("127.0.0.1:{port}"))
}

/// The server's address in a URL.
pub(crate) fn address(url: &str) -> String {
    let (_, rest) = url.rsplit_once('@').unwrap();
    rest.split_once('/').unwrap().0.to_owned()
}

/// State shared by all connections.
#[derive(Clone)]
struct Shared {
    state: Arc<Sender<State>>,
    planned: Arc<Mutex<Option<PlannedFault>>>,
    end: Receiver<()>,
}

impl Shared {
    /// Counts a packet in that direction. Returns the fault for this connection alone, if
    /// there is one.
    fn count(&self, side: Side) -> Option<Network> {
        let mut planned = self.planned.lock().unwrap();
        let fault = planned.as_mut().filter(|fault| fault.side == side)?;
        fault.packet -= 1;
        let fault = (fault.packet == 0).then(|| planned.take()).flatten()?;
        if fault.lasting {
            self.state.send_replace((fault.network, Some(side)));
            return None;
        }
        Some(fault.network)
    }
}

async fn connect(client: TcpStream, server: String, shared: Shared) {
    let Ok(server_stream) = TcpStream::connect(server).await else { return };
    let _ = (client.set_nodelay(true), server_stream.set_nodelay(true));
    let (client_in, client_out) = client.into_split();
    let (server_in, server_out) = server_stream.into_split();
    let mut end = shared.end.clone();
    let to_server = Direction::new(Side::ToServer, shared.clone()).pass(client_in, server_out);
    let from_server = Direction::new(Side::FromServer, shared).pass(server_in, client_out);
    tokio::pin!(to_server, from_server);
    // If one side ends, so does the other.
    tokio::select! {
        () = &mut to_server => {}
        () = &mut from_server => {}
        _ = end.changed() => {}
    }
}

struct Direction {
    side: Side,
    shared: Shared,
    state: Receiver<State>,
    /// The fault of this connection.
    own: Option<Network>,
    silent: bool,
    /// The network state that silenced this direction.
    black_hole: bool,
}

impl Direction {
    fn new(side: Side, shared: Shared) -> Self {
        let state = shared.state.subscribe();
        Self { side, shared, state, own: None, silent: false, black_hole: false }
    }

    /// The state of the network for this direction now.
    fn now(&mut self) -> Network {
        let (network, side) = *self.state.borrow_and_update();
        let shared =
            if side.is_none_or(|side| side == self.side) { network } else { Network::Intact };
        // A cut of the whole network affects both directions.
        let cut = matches!(network, Network::Closed | Network::Reset | Network::BlackHole);
        let now = self.own.unwrap_or(if cut { network } else { shared });
        self.silent |= matches!(now, Network::Silent | Network::BlackHole);
        self.black_hole |= now == Network::BlackHole;
        now
    }

    async fn pass(mut self, mut from: OwnedReadHalf, mut to: OwnedWriteHalf) {
        let mut bytes = [0; 8192];
        loop {
            match self.now() {
                Network::Closed => return,
                Network::Reset => return reset(&from, &to),
                Network::HalfClosed => return half_close(from, to).await,
                _ => {}
            }
            let read = tokio::select! {
                changed = self.state.changed() => match changed {
                    Ok(()) => continue,
                    Err(_) => return,
                },
                read = from.read(&mut bytes) => read.unwrap_or(0),
            };
            if read == 0 {
                if self.black_hole && self.own.is_none() {
                    let _ = self.state.wait_for(|(now, _)| *now == Network::Intact).await;
                } else if self.black_hole {
                    std::future::pending::<()>().await;
                }
                return;
            }
            if let Some(own) = self.shared.count(self.side) {
                self.own = Some(own);
            }
            let bytes = &bytes[..read];
            match self.now() {
                Network::Closed => return,
                Network::Reset => return reset(&from, &to),
                Network::HalfClosed => return half_close(from, to).await,
                _ if self.silent => {}
                Network::Truncated(at) => {
                    let _ = to.write_all(&bytes[..at.min(read)]).await;
                    return;
                }
                Network::Incomplete(at) => {
                    self.silent = true;
                    if to.write_all(&bytes[..at.min(read)]).await.is_err() {
                        return;
                    }
                }
                Network::Slow(time) => {
                    sleep(time).await;
                    if to.write_all(bytes).await.is_err() {
                        return;
                    }
                }
                Network::Limited(rate) => {
                    // A hundredth of a second's worth at a time.
                    for part in bytes.chunks((rate / 100).max(1)) {
                        sleep(Duration::from_millis(10)).await;
                        if to.write_all(part).await.is_err() {
                            return;
                        }
                    }
                }
                Network::Intact | Network::Silent | Network::BlackHole => {
                    if to.write_all(bytes).await.is_err() {
                        return;
                    }
                }
            }
        }
    }
}

fn reset(from: &OwnedReadHalf, to: &OwnedWriteHalf) {
    let _ = (from.as_ref().set_zero_linger(), to.as_ref().set_zero_linger());
}

/// Ends one direction. Returns when the other end is gone too.
async fn half_close(mut from: OwnedReadHalf, mut to: OwnedWriteHalf) {
    let _ = to.shutdown().await;
    let mut bytes = [0; 8192];
    while !matches!(from.read(&mut bytes).await, Ok(0) | Err(_)) {}
}
