//! Two processes that use and change the same keys, each with half of the threads.

use std::io::{BufRead, BufReader, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::Mutex;

use serde::{Deserialize, Serialize};

use super::event::Event;
use super::slots::News;

/// What one process tells the other: news of a slot while it works, and then its events, each
/// with the number of its key.
#[derive(Deserialize, Serialize)]
pub(crate) enum Message {
    News(usize, News),
    Event(u32, Event),
}

/// The other process, and the number of this one: 0 or 1.
pub(crate) struct Other {
    pub(crate) own_number: u32,
    stream: UnixStream,
    turn: Mutex<()>,
}

impl Other {
    pub(crate) fn new(own_number: u32, stream: UnixStream) -> Self {
        Self { own_number, stream, turn: Mutex::default() }
    }

    pub(crate) fn tell(&self, message: &Message) {
        let line = serde_json::to_string(message).unwrap() + "\n";
        let _turn = self.turn.lock().unwrap();
        (&self.stream).write_all(line.as_bytes()).unwrap();
    }

    /// Says that there are no more messages.
    pub(crate) fn end(&self) {
        self.stream.shutdown(Shutdown::Write).unwrap();
    }

    /// What the other process tells, until its end.
    pub(crate) fn messages(&self) -> impl Iterator<Item = Message> {
        let lines = BufReader::new(&self.stream).lines();
        lines.map(|line| serde_json::from_str(&line.unwrap()).unwrap())
    }
}
