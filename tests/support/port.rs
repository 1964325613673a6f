//! A port for a server that stops and restarts.

use std::net::TcpListener;

use keygate::{Random as _, SystemRandom};

/// A port without a listener, outside of the range for outgoing connections: while a server is
/// down, such a connection could take its port.
pub(crate) fn free_port() -> u16 {
    let ports = std::iter::repeat_with(|| {
        let mut number = [0; 2];
        SystemRandom.fill(&mut number).unwrap();
        20_000 + u16::from_be_bytes(number) % 12_000
    });
    ports.take(1_000).find(|port| TcpListener::bind(("127.0.0.1", *port)).is_ok()).unwrap()
}
