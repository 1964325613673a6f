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
    Whole,
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
    Torn(usize),
    /// Each packet is delayed for that long.
    Slow(Duration),
    /// This many bytes per second are forwarded.
    Narrow(usize),
}

/// A direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    /// To the server.
    There,
    /// From the server.
    Back,
}

/// A planned fault.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Strike {
    pub(crate) side: Side,
    /// The number of the packet in that direction, from 1 up, at which it occurs.
    pub(crate) piece: usize,
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
    armed: Arc<Mutex<Option<Strike>>>,
    server: Arc<Mutex<String>>,
    _end: Sender<()>,
}

impl Proxy {
    /// Starts a proxy for the server at that address, `host:port`.
    pub(crate) async fn start(server: String) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let state = Arc::new(channel((Network::Whole, None)).0);
        let armed = Arc::default();
        let server = Arc::new(Mutex::new(server));
        let (end, mut ended) = channel(());
        let (target, wire) = (
            Arc::clone(&server),
            Wire { state: Arc::clone(&state), armed: Arc::clone(&armed), end: ended.clone() },
        );
        tokio::spawn(async move {
            loop {
                let near = tokio::select! {
                    accepted = listener.accept() => accepted.unwrap().0,
                    gone = ended.changed() => return assert!(gone.is_err()),
                };
                let server = target.lock().unwrap().clone();
                tokio::spawn(connect(near, server, wire.clone()));
            }
        });
        Self { port, state, armed, server, _end: end }
    }

    pub(crate) fn set(&self, network: Network) {
        self.state.send_replace((network, None));
    }

    /// Sets the network in one direction only.
    pub(crate) fn set_on(&self, side: Side, network: Network) {
        self.state.send_replace((network, Some(side)));
    }

    /// Plans a fault for the next packets.
    pub(crate) fn strike(&self, strike: Strike) {
        *self.armed.lock().unwrap() = Some(strike);
    }

    /// Cancels a planned fault. Returns whether it occurred.
    pub(crate) fn has_struck(&self) -> bool {
        self.armed.lock().unwrap().take().is_none()
    }

    /// Makes new connections lead to another server.
    pub(crate) fn redirect(&self, server: String) {
        *self.server.lock().unwrap() = server;
    }

    /// The URL through this proxy.
    pub(crate) fn url(&self, url: &str) -> String {
        let (user, rest) = url.rsplit_once('@').unwrap();
        let (_, database) = rest.split_once('/').unwrap();
        format!("{user}@127.0.0.1:{}/{database}", self.port)
    }
}

/// The server's address in a URL.
pub(crate) fn address(url: &str) -> String {
    let (_, rest) = url.rsplit_once('@').unwrap();
    rest.split_once('/').unwrap().0.to_owned()
}

/// State shared by all connections.
#[derive(Clone)]
struct Wire {
    state: Arc<Sender<State>>,
    armed: Arc<Mutex<Option<Strike>>>,
    end: Receiver<()>,
}

impl Wire {
    /// Counts a packet in that direction. Returns the fault for this connection alone, if
    /// there is one.
    fn count(&self, side: Side) -> Option<Network> {
        let mut armed = self.armed.lock().unwrap();
        let strike = armed.as_mut().filter(|strike| strike.side == side)?;
        strike.piece -= 1;
        let strike = (strike.piece == 0).then(|| armed.take()).flatten()?;
        if strike.lasting {
            self.state.send_replace((strike.network, Some(side)));
            return None;
        }
        Some(strike.network)
    }
}

async fn connect(near: TcpStream, server: String, wire: Wire) {
    let Ok(far) = TcpStream::connect(server).await else { return };
    let _ = (near.set_nodelay(true), far.set_nodelay(true));
    let (near_in, near_out) = near.into_split();
    let (far_in, far_out) = far.into_split();
    let mut end = wire.end.clone();
    let there = Direction::new(Side::There, wire.clone()).pass(near_in, far_out);
    let back = Direction::new(Side::Back, wire).pass(far_in, near_out);
    tokio::pin!(there, back);
    // If one side ends, so does the other.
    tokio::select! {
        () = &mut there => {}
        () = &mut back => {}
        _ = end.changed() => {}
    }
}

struct Direction {
    side: Side,
    wire: Wire,
    state: Receiver<State>,
    /// The fault of this connection.
    own: Option<Network>,
    silent: bool,
    /// The network state that silenced this direction.
    hole: bool,
}

impl Direction {
    fn new(side: Side, wire: Wire) -> Self {
        let state = wire.state.subscribe();
        Self { side, wire, state, own: None, silent: false, hole: false }
    }

    /// The state of the network for this direction now.
    fn now(&mut self) -> Network {
        let (network, side) = *self.state.borrow_and_update();
        let shared =
            if side.is_none_or(|side| side == self.side) { network } else { Network::Whole };
        // A cut of the whole network affects both directions.
        let cut = matches!(network, Network::Closed | Network::Reset | Network::BlackHole);
        let now = self.own.unwrap_or(if cut { network } else { shared });
        self.silent |= matches!(now, Network::Silent | Network::BlackHole);
        self.hole |= now == Network::BlackHole;
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
                if self.hole && self.own.is_none() {
                    let _ = self.state.wait_for(|(now, _)| *now == Network::Whole).await;
                } else if self.hole {
                    std::future::pending::<()>().await;
                }
                return;
            }
            if let Some(own) = self.wire.count(self.side) {
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
                Network::Torn(at) => {
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
                Network::Narrow(rate) => {
                    // A hundredth of a second's worth at a time.
                    for part in bytes.chunks((rate / 100).max(1)) {
                        sleep(Duration::from_millis(10)).await;
                        if to.write_all(part).await.is_err() {
                            return;
                        }
                    }
                }
                Network::Whole | Network::Silent | Network::BlackHole => {
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
