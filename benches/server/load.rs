//! The load: connections that ask again and again, each with a random one of the keys in use.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

pub(crate) const CONNECTIONS: usize = 32;

pub(crate) struct Load {
    address: SocketAddr,
    /// The same request with each of the keys.
    requests: Arc<[Box<str>]>,
}

impl Load {
    pub(crate) fn new(address: SocketAddr, keys: &[String]) -> Self {
        let request = |key: &String| {
            format!(
                "GET /v1/whoami HTTP/1.1\r\nHost: {address}\r\nAuthorization: Bearer {key}\r\n\r\n"
            )
        };
        Self { address, requests: keys.iter().map(|key| request(key).into()).collect() }
    }

    /// Asks with the first so many keys until then; returns the number of answers.
    pub(crate) async fn run(&self, keys: usize, until: Instant) -> u64 {
        assert!(keys <= self.requests.len(), "too few keys");
        let connection = |number| {
            let requests = Arc::clone(&self.requests);
            tokio::spawn(ask(self.address, requests, keys, number as u64, until))
        };
        let connections: Vec<_> = (0..CONNECTIONS).map(connection).collect();
        let mut answers = 0;
        for connection in connections {
            answers += connection.await.unwrap();
        }
        answers
    }
}

async fn ask(
    address: SocketAddr,
    requests: Arc<[Box<str>]>,
    keys: usize,
    connection: u64,
    until: Instant,
) -> u64 {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.set_nodelay(true).unwrap();
    let mut answer = vec![0; 4_096];
    let mut random = connection + 1;
    let mut answers = 0;
    while Instant::now() < until {
        // Xorshift.
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        let request = &requests[(random % keys as u64) as usize];
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut read = 0;
        loop {
            let more = stream.read(&mut answer[read..]).await.unwrap();
            assert!(more > 0, "the server has closed");
            read += more;
            match length_of(&answer[..read]) {
                Some(length) if length <= read => break,
                _ => {}
            }
        }
        assert!(answer.starts_with(b"HTTP/1.1 200 "), "{}", String::from_utf8_lossy(&answer));
        answers += 1;
    }
    answers
}

/// The length of an answer with its body, once its head is complete.
fn length_of(answer: &[u8]) -> Option<usize> {
    const LENGTH: &[u8] = b"content-length: ";
    let head = answer.windows(4).position(|four| four == b"\r\n\r\n")?;
    let at = answer[..head].windows(LENGTH.len()).position(|window| window == LENGTH).unwrap();
    let digits = answer[at + LENGTH.len()..head].iter().take_while(|byte| byte.is_ascii_digit());
    let body = digits.fold(0, |length, digit| length * 10 + usize::from(digit - b'0'));
    Some(head + 4 + body)
}
