//! A network between a store and its server, which can be cut in two ways.

use std::sync::{Arc, Mutex};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch::{Receiver, Sender, channel};

/// What becomes of the bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Network {
    /// They are passed on.
    Whole,
    /// Connections are closed, also those that are made now.
    Closed,
    /// Bytes are swallowed, and connections stay open; also those that are made now.
    /// A connection that has lost any stays silent for good.
    Silent,
}

/// Listens until it is dropped.
#[derive(Debug)]
pub(crate) struct Proxy {
    port: u16,
    network: Sender<Network>,
    server: Arc<Mutex<String>>,
}

impl Proxy {
    /// In front of the server at that address, `host:port`.
    pub(crate) async fn start(server: String) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let (network, changes) = channel(Network::Whole);
        let server = Arc::new(Mutex::new(server));
        let target = Arc::clone(&server);
        tokio::spawn(async move {
            let mut closed = changes.clone();
            loop {
                let near = tokio::select! {
                    accepted = listener.accept() => accepted.unwrap().0,
                    gone = closed.wait_for(|_| false) => return assert!(gone.is_err()),
                };
                let server = target.lock().unwrap().clone();
                tokio::spawn(connect(near, server, changes.clone()));
            }
        });
        Self { port, network, server }
    }

    pub(crate) fn set(&self, network: Network) {
        self.network.send_replace(network);
    }

    /// Connections from now on lead to another server.
    pub(crate) fn redirect(&self, server: String) {
        *self.server.lock().unwrap() = server;
    }

    /// The URL, by way of this.
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

async fn connect(near: TcpStream, server: String, network: Receiver<Network>) {
    let Ok(far) = TcpStream::connect(server).await else { return };
    let (near_in, near_out) = near.into_split();
    let (far_in, far_out) = far.into_split();
    let (there, back) =
        (pass(near_in, far_out, network.clone()), pass(far_in, near_out, network.clone()));
    tokio::pin!(there, back);
    // Where one side ends, so does the other.
    tokio::select! {
        () = &mut there => {}
        () = &mut back => {}
    }
}

async fn pass(
    mut from: tokio::net::tcp::OwnedReadHalf,
    mut to: tokio::net::tcp::OwnedWriteHalf,
    mut network: Receiver<Network>,
) {
    let mut bytes = [0; 8192];
    let mut silent = false;
    loop {
        let now = *network.borrow_and_update();
        silent |= now == Network::Silent;
        if now == Network::Closed {
            return;
        }
        let read = tokio::select! {
            changed = network.changed() => match changed {
                Ok(()) => continue,
                Err(_) => return,
            },
            read = from.read(&mut bytes) => read.unwrap_or(0),
        };
        let now = *network.borrow();
        silent |= now == Network::Silent;
        if read == 0 || now == Network::Closed {
            return;
        }
        if !silent && to.write_all(&bytes[..read]).await.is_err() {
            return;
        }
    }
}
