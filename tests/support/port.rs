//! A port for a server that stops and restarts.

use std::net::TcpListener;

/// A port that nothing listens on now. Not one of those that outgoing connections
/// are given: while a server is down, such a connection could take its port.
pub(crate) fn free_port() -> u16 {
    let ports = std::iter::repeat_with(|| {
        let mut number = [0; 2];
        getrandom::fill(&mut number).unwrap();
        20_000 + u16::from_be_bytes(number) % 12_000
    });
    ports.take(1_000).find(|port| TcpListener::bind(("127.0.0.1", *port)).is_ok()).unwrap()
}
