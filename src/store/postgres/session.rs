//! Time limits of server sessions, and the server's clock.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// The time limits within the deadline of a call. The server gives up before the client
/// does, so that a change that the client reports as failed has failed.
#[derive(Clone, Copy, Debug)]
pub(super) struct Patience {
    pub(super) deadline: Duration,
}

impl Patience {
    pub(super) fn of(deadline: Duration) -> Self {
        Self { deadline }
    }

    /// How long before the client's deadline the server stops making changes, since the
    /// commit may have to wait for a lock once more.
    fn margin(self) -> Duration {
        self.deadline / 8
    }

    /// How long a statement that changes a key waits for a lock, with this many changes in
    /// progress. It is retried after that, so that others can run in between.
    pub(super) fn lock(self, under_way: usize) -> Duration {
        let under_way = u32::try_from(under_way).unwrap_or(u32::MAX).max(1);
        (self.deadline / 16 / under_way).max(self.deadline / 200)
    }

    /// Whether too little time is left to begin a change.
    pub(super) fn is_spent(self, until: Instant) -> bool {
        until.saturating_duration_since(Instant::now()) < self.deadline / 4
    }

    /// The parameters of a change that ends at this instant: its deadline by the server's
    /// clock and how far ahead of the clock that can be, both in microseconds, and
    /// `lock_timeout`.
    pub(super) fn of_a_change(
        self,
        until: Instant,
        clock: &ServerClock,
        lock: Duration,
    ) -> (i64, i64, String) {
        let window = i64::try_from(self.deadline.as_micros()).unwrap_or(i64::MAX);
        (clock.at(until - self.margin()), window, setting(lock))
    }

    /// Settings for a session that is not shared. The last one makes the server check
    /// whether the client is still connected; not every server has it.
    pub(super) fn settings(self) -> [String; 2] {
        let (lock, statement) = (setting(self.deadline / 4), setting(self.deadline * 3 / 4));
        let idle = setting(self.deadline);
        [
            format!(
                "SET default_transaction_isolation = 'read committed'; \
                 SET lock_timeout = {lock}; SET statement_timeout = {statement}; \
                 SET idle_in_transaction_session_timeout = {idle}"
            ),
            format!(
                "SELECT pg_catalog.set_config(name, '{idle}', false) FROM pg_catalog.pg_settings \
                 WHERE name = 'client_connection_check_interval'"
            ),
        ]
    }
}

/// A server setting in milliseconds. Zero would mean no limit.
fn setting(time: Duration) -> String {
    time.as_millis().clamp(1, i32::MAX as u128).to_string()
}

/// The server's clock, as of the last answer over a connection.
#[derive(Debug)]
pub(super) struct ServerClock(Mutex<(Instant, i64)>);

impl ServerClock {
    /// `micros` since 1970 is the current time of the server.
    pub(super) fn new(micros: i64) -> Self {
        Self(Mutex::new((Instant::now(), micros)))
    }

    /// `micros` is the server's time shortly before this answer arrived. If it is further
    /// back than `delay` can explain, the server's clock was set back.
    pub(super) fn learn(&self, micros: i64, delay: Duration) {
        let now = Instant::now();
        let known = self.at(now);
        let delay = i64::try_from(delay.as_micros()).unwrap_or(i64::MAX);
        let is_late = micros < known && micros >= known.saturating_sub(delay);
        let micros = if is_late { known } else { micros };
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = (now, micros);
    }

    /// This instant by the server's clock, in microseconds since 1970. It may be early by
    /// the time that the answer took, but is never late.
    pub(super) fn at(&self, instant: Instant) -> i64 {
        let (learned, micros) = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let since = instant.saturating_duration_since(learned);
        micros.saturating_add(i64::try_from(since.as_micros()).unwrap_or(i64::MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn a_late_answer_does_not_set_the_clock_back_and_a_clock_set_back_is_noticed() {
        let clock = ServerClock::new(10_000_000_000);
        let shown = || clock.at(Instant::now());
        clock.learn(9_999_500_000, SECOND);
        assert!(shown() >= 10_000_000_000, "half a second late");
        clock.learn(20_000_000_000, SECOND);
        assert!(shown() >= 20_000_000_000);
        clock.learn(16_400_000_000, SECOND);
        assert!(shown() < 17_000_000_000, "an hour back");
    }
}
