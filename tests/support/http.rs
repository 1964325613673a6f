//! A raw HTTP/1.1 client.

use std::fmt::Display;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::str::FromStr;

use super::PATIENCE;

/// An HTTP/1.1 client that sends any bytes. Like other clients, it reconnects after an answer
/// that closes the connection.
pub(crate) struct Client {
    to: SocketAddr,
    stream: TcpStream,
    unread: Vec<u8>,
    is_closed: bool,
}

/// An answer as it was received.
#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) status: u16,
    /// The header lines, unchanged.
    pub(crate) headers: Vec<String>,
    pub(crate) body: Vec<u8>,
}

impl Client {
    pub(crate) fn connect(to: SocketAddr) -> Self {
        let stream = TcpStream::connect(to).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        stream.set_nodelay(true).unwrap();
        Self { to, stream, unread: Vec::new(), is_closed: false }
    }

    pub(crate) fn send(&mut self, bytes: impl AsRef<[u8]>) {
        if self.is_closed {
            *self = Self::connect(self.to);
        }
        // A server that has already refused may have closed the connection; its answer tells.
        let _ = self.stream.write_all(bytes.as_ref());
    }

    /// Sends a request without a body and reads the answer.
    pub(crate) fn ask(&mut self, method: &str, target: &str, headers: &[&str]) -> Reply {
        self.send_request(method, target, headers, "");
        self.try_reply(method == "HEAD").unwrap()
    }

    /// Sends a JSON request and reads the answer.
    pub(crate) fn ask_json(
        &mut self,
        method: &str,
        target: &str,
        headers: &[&str],
        body: impl Display,
    ) -> Reply {
        let body = body.to_string();
        let length = format!("Content-Length: {}", body.len());
        let headers = [&["Content-Type: application/json", &length][..], headers].concat();
        self.send_request(method, target, &headers, &body);
        self.reply()
    }

    /// Sends the head of a request, and the body only after the answer has arrived.
    pub(crate) fn ask_with_late_body(
        &mut self,
        method: &str,
        target: &str,
        headers: &[&str],
        body: &[u8],
    ) -> Reply {
        let length = format!("Content-Length: {}", body.len());
        let reply = self.ask(method, target, &[headers, &[&length]].concat());
        let _ = self.stream.write_all(body);
        reply
    }

    fn send_request(&mut self, method: &str, target: &str, headers: &[&str], body: &str) {
        let lines: String = headers.iter().map(|line| format!("{line}\r\n")).collect();
        let host = self.to;
        self.send(format!("{method} {target} HTTP/1.1\r\nHost: {host}\r\n{lines}\r\n{body}"));
    }

    pub(crate) fn reply(&mut self) -> Reply {
        self.try_reply(false).unwrap()
    }

    /// Reads one answer. Returns an error if the server closes without one.
    pub(crate) fn try_reply(&mut self, to_head: bool) -> io::Result<Reply> {
        let end = loop {
            if let Some(at) = self.unread.windows(4).position(|four| four == b"\r\n\r\n") {
                break at;
            }
            self.read_more()?;
        };
        let head = String::from_utf8(self.unread.drain(..end + 4).collect()).unwrap();
        let mut lines = head.trim_end().split("\r\n");
        let status = lines.next().and_then(|line| line.split(' ').nth(1)).unwrap();
        let status = u16::from_str(status).unwrap();
        let headers: Vec<String> = lines.map(str::to_owned).collect();
        let mut reply = Reply { status, headers, body: Vec::new() };
        assert_eq!(reply.header("transfer-encoding"), None, "this client does not read chunks");
        let empty = to_head || matches!(status, 100..=199 | 204 | 304);
        let length = reply.header("content-length").filter(|_| !empty);
        let length = length.map_or(0, |length| length.parse().unwrap());
        while self.unread.len() < length {
            self.read_more()?;
        }
        reply.body = self.unread.drain(..length).collect();
        self.is_closed = reply.closes();
        Ok(reply)
    }

    fn read_more(&mut self) -> io::Result<()> {
        let mut bytes = [0; 16_384];
        match self.stream.read(&mut bytes)? {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            read => {
                self.unread.extend_from_slice(&bytes[..read]);
                Ok(())
            }
        }
    }
}

impl Reply {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find_map(|line| {
            let (found, value) = line.split_once(':')?;
            found.eq_ignore_ascii_case(name).then(|| value.trim())
        })
    }

    /// Whether the answer closes its connection.
    pub(crate) fn closes(&self) -> bool {
        self.header("connection").is_some_and(|value| value.eq_ignore_ascii_case("close"))
    }

    /// The parts that must be equal in answers that cannot be distinguished.
    pub(crate) fn but_date(&self) -> (u16, Vec<&str>, &[u8]) {
        let is_date = |line: &&str| line.to_ascii_lowercase().starts_with("date:");
        let headers = self.headers.iter().map(String::as_str).filter(|line| !is_date(line));
        (self.status, headers.collect(), &self.body)
    }

    pub(crate) fn json(&self) -> serde_json::Value {
        let text = String::from_utf8_lossy(&self.body);
        serde_json::from_slice(&self.body).unwrap_or_else(|e| panic!("{e}: {text}"))
    }

    /// The whole answer as text, to search for leaks.
    pub(crate) fn text(&self) -> String {
        format!("{}\n{}", self.headers.join("\n"), String::from_utf8_lossy(&self.body))
    }
}
