//! How long a server session may take over a statement, and what time it is there.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// The times within the deadline of a call. The server gives up before the client does,
/// so that what the client calls a failure is one.
#[derive(Clone, Copy, Debug)]
pub(super) struct Patience {
    deadline: Duration,
}

impl Patience {
    pub(super) fn of(deadline: Duration) -> Self {
        Self { deadline }
    }

    /// How long a statement may wait for a lock.
    fn lock(self) -> Duration {
        self.deadline / 4
    }

    /// A change is not begun where less than this is left, and the server makes none
    /// for so long before the client gives up.
    pub(super) fn margin(self) -> Duration {
        self.deadline / 8
    }

    /// Whether there is too little time left to begin a change.
    pub(super) fn is_spent(self, until: Instant) -> bool {
        until.saturating_duration_since(Instant::now()) < self.deadline / 4
    }

    /// `lock_timeout` for a statement that ends at that instant.
    pub(super) fn lock_timeout(self, until: Instant) -> String {
        let left = until.saturating_duration_since(Instant::now() + self.margin());
        setting(self.lock().min(left))
    }

    /// Settings for a session that is used by nobody else. The last one, which tells the
    /// server to look whether the client is still there, is not known to every server.
    pub(super) fn settings(self) -> [String; 2] {
        let (lock, statement) = (setting(self.lock()), setting(self.deadline * 3 / 4));
        let idle = setting(self.deadline);
        [
            format!(
                "SET lock_timeout = {lock}; SET statement_timeout = {statement}; \
                 SET idle_in_transaction_session_timeout = {idle}"
            ),
            format!(
                "SELECT pg_catalog.set_config(name, '{idle}', false) FROM pg_catalog.pg_settings \
                 WHERE name = 'client_connection_check_interval'"
            ),
        ]
    }

    /// How long the server may go on with what this side has given up.
    pub(super) fn of_the_server(self) -> Duration {
        self.deadline * 3 / 4
    }
}

/// A setting of the server, in milliseconds; zero would stand for no limit.
fn setting(time: Duration) -> String {
    time.as_millis().clamp(1, i32::MAX as u128).to_string()
}

/// The clock of the server, as the last answer over a connection showed it.
#[derive(Debug)]
pub(super) struct ServerClock(Mutex<(Instant, i64)>);

impl ServerClock {
    /// `micros` since 1970 is what the server's clock has just shown.
    pub(super) fn new(micros: i64) -> Self {
        Self(Mutex::new((Instant::now(), micros)))
    }

    pub(super) fn learn(&self, micros: i64) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = (Instant::now(), micros);
    }

    /// That instant by the server's clock, in microseconds since 1970: early by the time
    /// that the answer took, and never late.
    pub(super) fn at(&self, instant: Instant) -> i64 {
        let (learned, micros) = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let since = instant.saturating_duration_since(learned);
        micros.saturating_add(i64::try_from(since.as_micros()).unwrap_or(i64::MAX))
    }
}
