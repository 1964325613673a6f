//! How audit records are delivered to the sink, and counts of what was lost.

use std::error::Error as StdError;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use thiserror::Error;

use crate::audit::sink::AuditError;
use crate::text::with_causes;
use crate::throttle::Throttle;

/// How audit records of requests are delivered to the sink. Records of *changes* are always
/// strict, and do not wait for those of requests.
///
/// | | strict | buffered |
/// |---|---|---|
/// | the response is sent | once its record is durable | at once |
/// | a sink that fails or hangs | 503 within the deadline | retried with pauses |
/// | a full queue | 503 | wait for room up to the deadline, then 503; or shed |
/// | `kill -9` | loses no record of a response that was sent | loses what was queued |
/// | refusals of one key beyond 20 in 10 seconds | summed, without waiting | summed |
/// | a refusal for which the queue has no room | summed, without waiting | summed |
///
/// # Sums of refusals
///
/// A key that is refused repeatedly, because it is revoked, expired or used from an address
/// that is not allowed, does not fill the log. Per key and outcome, the first 20 refusals
/// in 10 seconds get a record each. The rest share one record, which has their
/// [`count`](crate::audit::RequestEvent::count) and the time, path and address of the last.
/// [`Delivery::sum_refusals`] changes these limits. The 10 seconds begin with the first
/// refusal. When they are over, or at shutdown, the sum is queued; while the queue has no
/// room, the sum continues.
///
/// Refusals are counted for at most 4,096 pairs of key and outcome at a time, in at most 10
/// kB each. When another pair comes up, the oldest sum is queued early; if the queue has no
/// room for it, the refusal is counted in [`AuditStats::shed`].
///
/// ```
/// use std::time::Duration;
/// use keygate::audit::WhenFull;
/// use keygate::Delivery;
///
/// let delivery = Delivery::buffered()
///     .capacity(65_536)
///     .when_full(WhenFull::Shed)
///     .deadline(Duration::from_millis(500));
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Delivery {
    pub(crate) strict: bool,
    pub(crate) when_full: WhenFull,
    pub(crate) capacity: usize,
    pub(crate) batch: usize,
    pub(crate) linger: Duration,
    pub(crate) deadline: Duration,
    pub(crate) refusals_alone: u32,
    pub(crate) refusal_window: Duration,
}

/// What happens to a record when the queue of buffered delivery is full.
///
/// No variants will be added to this type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WhenFull {
    /// The request waits for room before it is handled. After the deadline, it is refused
    /// with 503.
    Wait,
    /// The record is dropped, counted in [`AuditStats::shed`], and reported in the log.
    Shed,
}

impl Delivery {
    /// The record is durable before the response is sent.
    pub fn strict() -> Self {
        Self { strict: true, ..Self::buffered() }
    }

    /// The record is queued and written soon after. When the queue is full, requests wait.
    pub fn buffered() -> Self {
        Self {
            strict: false,
            when_full: WhenFull::Wait,
            capacity: 16_384,
            batch: 1_000,
            linger: Duration::from_millis(100),
            deadline: Duration::from_secs(2),
            refusals_alone: 20,
            refusal_window: Duration::from_secs(10),
        }
    }

    /// Sets what happens when the queue is full. The default is [`WhenFull::Wait`]. Strict
    /// delivery never sheds.
    pub fn when_full(self, when_full: WhenFull) -> Self {
        Self { when_full, ..self }
    }

    /// Sets how many records of admitted requests may be queued or in the sink before the
    /// queue is full; at least 1. Requests in progress at that moment may add their records
    /// on top. Changes have separate room of the same size, and refusals a quarter of it.
    /// The default is 16,384.
    pub fn capacity(self, records: usize) -> Self {
        Self { capacity: records.max(1), ..self }
    }

    /// Sets the largest batch given to the sink; at least 1. The default is 1,000.
    pub fn batch(self, records: usize) -> Self {
        Self { batch: records.max(1), ..self }
    }

    /// Sets how long buffered records are collected before they are written. The default is
    /// 100 milliseconds.
    pub fn linger(self, time: Duration) -> Self {
        Self { linger: time, ..self }
    }

    /// Sets how long a request waits for its record (strict) or for room
    /// (buffered), and how long the sink may take for one batch. The default is 2 seconds.
    pub fn deadline(self, time: Duration) -> Self {
        Self { deadline: time, ..self }
    }

    /// Sets how many refusals of one key and outcome within this time get a record each,
    /// before the rest are summed. The default is 20 in 10 seconds. With a time of zero,
    /// only refusals that find no room in the queue are summed.
    pub fn sum_refusals(self, beyond: u32, within: Duration) -> Self {
        Self { refusals_alone: beyond, refusal_window: within, ..self }
    }

    pub(crate) fn sheds(&self) -> bool {
        !self.strict && self.when_full == WhenFull::Shed
    }
}

/// Counts of audit records since the manager was built.
///
/// The counts are requests and changes, not rows of the log: a record that sums up 80
/// refusals counts as 80. Together they cover everything that was to be recorded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct AuditStats {
    /// Written and acknowledged by the sink.
    pub written: u64,
    /// Dropped because the queue was full.
    pub shed: u64,
    /// Given up: rejected by the sink, left over at shutdown, or failed or not begun in
    /// time while a caller waited. Also reported in the log.
    pub failed: u64,
    /// Waiting to be written, or in the sink.
    pub queued: u64,
    /// Refusals in sums that are still open, and so not queued yet.
    pub summed: u64,
    /// Refusals that were summed so far, in sums that are still open or not.
    pub total_summed: u64,
}

impl AuditStats {
    pub(crate) fn plus(self, other: Self) -> Self {
        Self {
            written: self.written + other.written,
            shed: self.shed + other.shed,
            failed: self.failed + other.failed,
            queued: self.queued + other.queued,
            summed: self.summed + other.summed,
            total_summed: self.total_summed + other.total_summed,
        }
    }
}

/// Whether audit records are being written, for the health report.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct AuditHealth {
    /// Records in the queue or in the sink, including those of changes and refusals.
    pub(crate) queued: usize,
    /// The number of records of admitted requests at which the queue is full.
    pub(crate) capacity: usize,
    /// Since when every call of the sink has failed, with requests or with changes. `None`
    /// if the last one of each succeeded, or there was none yet.
    pub(crate) failing: Option<Instant>,
    /// When a call of the sink last succeeded.
    pub(crate) last_success: Option<Instant>,
}

/// How the calls of the sink went.
#[derive(Clone, Copy, Debug, Default)]
struct Calls {
    last_success: Option<Instant>,
    /// Since when every call has failed.
    failing: Option<Instant>,
}

#[derive(Debug, Default)]
pub(crate) struct Counters {
    written: AtomicU64,
    shed: AtomicU64,
    failed: AtomicU64,
    calls: Mutex<Calls>,
    shedding: Throttle,
    failures: Throttle,
    retries: Throttle,
}

impl Counters {
    pub(crate) fn written(&self, count: u64) {
        self.written.fetch_add(count, Ordering::Relaxed);
    }

    /// Counts one shed record.
    pub(crate) fn shed(&self) {
        let shed = self.shed.fetch_add(1, Ordering::Relaxed) + 1;
        if let Some(left_out) = self.shedding.pass() {
            tracing::warn!(shed, left_out, "the audit queue is full, records are dropped");
        }
    }

    /// Counts records that were given up.
    pub(crate) fn failed(&self, records: u64, error: &dyn StdError) {
        if records > 0 {
            self.failed.fetch_add(records, Ordering::Relaxed);
            if let Some(left_out) = self.failures.pass() {
                let error = with_causes(error);
                tracing::error!(records, error, left_out, "audit records were not written");
            }
        }
    }

    /// Counts the records left when the writer ends. Always logged.
    pub(crate) fn left_over(&self, records: u64) {
        if records > 0 {
            let failed = self.failed.fetch_add(records, Ordering::Relaxed) + records;
            let error = DeliveryError::Closed;
            tracing::error!(records, failed, %error, "audit records were not written");
        }
    }

    /// Logs that a batch will be retried.
    pub(crate) fn retried(&self, records: usize, error: &AuditError) {
        if let Some(left_out) = self.retries.pass() {
            let error = with_causes(error);
            tracing::warn!(records, error, left_out, "audit records will be retried");
        }
    }

    /// Stores whether a call of the sink succeeded.
    pub(crate) fn called(&self, works: bool) {
        let mut calls = self.calls.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        if works {
            *calls = Calls { last_success: Some(now), failing: None };
        } else {
            calls.failing = calls.failing.or(Some(now));
        }
    }

    /// Since when every call of the sink has failed.
    pub(crate) fn failing(&self) -> Option<Instant> {
        self.calls.lock().unwrap_or_else(PoisonError::into_inner).failing
    }

    /// When a call of the sink last succeeded.
    pub(crate) fn last_success(&self) -> Option<Instant> {
        self.calls.lock().unwrap_or_else(PoisonError::into_inner).last_success
    }

    pub(crate) fn stats(&self, queued: u64, summed: u64, total_summed: u64) -> AuditStats {
        AuditStats {
            written: self.written.load(Ordering::Relaxed),
            shed: self.shed.load(Ordering::Relaxed),
            failed: self.failed.load(Ordering::Relaxed),
            queued,
            summed,
            total_summed,
        }
    }
}

/// A record could not be delivered as its mode promises.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum DeliveryError {
    /// There was no room in the queue within the deadline.
    #[error("the audit queue is full")]
    Full,
    /// The record was not durable within the deadline. If the sink had it by then, it may
    /// still become durable.
    #[error("the audit log did not confirm the record in time")]
    TimedOut,
    /// The sink failed; its error is in the log.
    #[error("the audit log failed")]
    Failed,
    /// The manager has been shut down.
    #[error("the audit log is shut down")]
    Closed,
}
