//! Limits how often a log line is repeated.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// The pause between two lines.
const INTERVAL: Duration = Duration::from_secs(10);

/// Allows one line at once, and then one per ten seconds. Each kind of line has its own
/// throttle.
///
/// ```ignore
/// if let Some(left_out) = throttle.pass() {
///     tracing::warn!(left_out, "the store does not answer");
/// }
/// ```
#[derive(Debug, Default)]
pub(crate) struct Throttle(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    last: Option<Instant>,
    left_out: u64,
}

impl Throttle {
    /// Whether the line may be written: the number of lines left out since the last one, or
    /// `None` if this one is left out, too.
    pub(crate) fn pass(&self) -> Option<u64> {
        self.pass_at(Instant::now())
    }

    fn pass_at(&self, now: Instant) -> Option<u64> {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if state.last.is_some_and(|last| now.saturating_duration_since(last) < INTERVAL) {
            state.left_out += 1;
            return None;
        }
        state.last = Some(now);
        Some(std::mem::take(&mut state.left_out))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_log_line_per_interval_passes_and_counts_the_dropped_ones() {
        let (throttle, start) = (Throttle::default(), Instant::now());
        assert_eq!(throttle.pass_at(start), Some(0));
        for _ in 0..3 {
            assert_eq!(throttle.pass_at(start + INTERVAL / 2), None);
        }
        assert_eq!(throttle.pass_at(start + INTERVAL), Some(3));
        assert_eq!(throttle.pass_at(start + INTERVAL), None);
    }
}
