//! The log lines of a test, and secrets that must not be in them.

use std::cell::RefCell;
use std::io::{self, Write};
use std::sync::Once;

thread_local! {
    static LOG: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

struct LogOfThisThread;

impl Write for LogOfThisThread {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        LOG.with_borrow_mut(|log| log.extend_from_slice(bytes));
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Starts to capture log lines, down to `TRACE`. A test sees the lines of its own thread.
/// `#[tokio::test]` runs a test on one thread, so these are all.
pub(crate) fn capture_logs() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        tracing_subscriber::fmt()
            .with_ansi(false)
            .with_max_level(tracing::Level::TRACE)
            .with_span_events(tracing_subscriber::fmt::format::FmtSpan::FULL)
            .with_writer(|| LogOfThisThread)
            .init();
    });
    LOG.with_borrow_mut(Vec::clear);
}

/// The lines that this thread has logged since [`capture_logs`].
pub(crate) fn logs() -> String {
    LOG.with_borrow(|log| String::from_utf8_lossy(log).into_owned())
}

/// The number of lines of this thread that contain all of these texts.
pub(crate) fn log_lines(parts: &[&str]) -> usize {
    logs().lines().filter(|line| parts.iter().all(|part| line.contains(part))).count()
}

/// Asserts that a text contains no part of a key's secret.
pub(crate) fn assert_no_leak(place: &str, text: &str, key: &str) {
    const SHOWN: usize = 12; // of a key with the default prefix, for recognition
    const PART: usize = 10;
    for part in key.as_bytes()[SHOWN..].windows(PART) {
        let part = std::str::from_utf8(part).unwrap();
        if let Some(at) = text.find(part) {
            let start = text[..at].rfind('\n').map_or(0, |newline| newline + 1);
            let line = text[start..].lines().next().unwrap_or_default();
            panic!("{place}: part of the key leaked: {line}");
        }
    }
}
