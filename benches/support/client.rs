//! An HTTP/1.1 client that keeps its connection, of which it gets rid from time to time.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

/// Longer than any answer may take.
const PATIENCE: Duration = Duration::from_secs(30);

pub(crate) struct Client {
    address: SocketAddr,
    stream: Option<TcpStream>,
    /// How many requests each connection carries, and how many it still will.
    requests: u32,
    left: u32,
}

/// An answer, as far as it matters here.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) body: Vec<u8>,
}

impl Client {
    pub(crate) fn new(address: SocketAddr, requests: u32) -> Self {
        Self { address, stream: None, requests, left: 0 }
    }

    /// Sends a request with these further header lines, and reads its answer.
    pub(crate) async fn ask(
        &mut self,
        method: &str,
        target: &str,
        headers: &str,
        body: &str,
    ) -> io::Result<Answer> {
        let asked = timeout(PATIENCE, self.ask_patiently(method, target, headers, body)).await;
        let asked = asked.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
        if asked.is_err() {
            self.stream = None;
        }
        asked
    }

    async fn ask_patiently(
        &mut self,
        method: &str,
        target: &str,
        headers: &str,
        body: &str,
    ) -> io::Result<Answer> {
        if self.left == 0 {
            (self.stream, self.left) = (None, self.requests);
        }
        self.left -= 1;
        let stream = match &mut self.stream {
            Some(stream) => stream,
            none => {
                let stream = TcpStream::connect(self.address).await?;
                stream.set_nodelay(true)?;
                none.insert(stream)
            }
        };
        let (address, length) = (self.address, body.len());
        let content = if body.is_empty() {
            String::new()
        } else {
            format!("Content-Type: application/json\r\nContent-Length: {length}\r\n")
        };
        let request = format!(
            "{method} {target} HTTP/1.1\r\nHost: {address}\r\n{headers}{content}\r\n{body}"
        );
        stream.write_all(request.as_bytes()).await?;
        read_answer(stream, method == "HEAD").await
    }
}

async fn read_answer(stream: &mut TcpStream, to_head: bool) -> io::Result<Answer> {
    let mut bytes = Vec::with_capacity(1_024);
    let end = loop {
        if let Some(at) = bytes.windows(4).position(|four| four == b"\r\n\r\n") {
            break at + 4;
        }
        read_more(stream, &mut bytes).await?;
    };
    let head = String::from_utf8_lossy(&bytes[..end]).to_ascii_lowercase();
    let status: u16 = head.split(' ').nth(1).unwrap().parse().unwrap();
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
    let empty = to_head || matches!(status, 204 | 304);
    let length = if empty { 0 } else { length.map_or(0, |length| length.parse().unwrap()) };
    while bytes.len() < end + length {
        read_more(stream, &mut bytes).await?;
    }
    assert_eq!(bytes.len(), end + length, "more than was asked for: {head}");
    Ok(Answer { status, body: bytes.split_off(end) })
}

async fn read_more(stream: &mut TcpStream, bytes: &mut Vec<u8>) -> io::Result<()> {
    match stream.read_buf(bytes).await? {
        0 => Err(io::ErrorKind::UnexpectedEof.into()),
        _ => Ok(()),
    }
}
