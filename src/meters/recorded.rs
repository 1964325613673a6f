//! Counts and times for the recorder of the `metrics` facade. Handles are made when a manager
//! or a cache is built, so a recorder has to be installed before.

use std::fmt;
use std::time::{Duration, Instant};

use metrics::{Counter, Gauge, Histogram, Unit};

use crate::audit::delivery::AuditStats;
use crate::audit::record::Outcome;
use crate::meters::{MALFORMED, UNAVAILABLE, UNKNOWN};
use crate::store::key_store::StoreError;

/// The names of all metrics.
const VERIFICATIONS: &str = "keygate_verifications_total";
const VERIFICATION_TIME: &str = "keygate_verification_duration_seconds";
const QUEUE: &str = "keygate_audit_queue_records";
const RECORDS: &str = "keygate_audit_records_total";
const CACHE: &str = "keygate_cache_lookups_total";
const CACHE_IN_USE: &str = "keygate_cache_in_use";
const STORE_TIME: &str = "keygate_store_duration_seconds";

/// The operation of a look-up by digest.
const FIND: &str = "find_by_digest";

/// Describes all metrics to the recorder.
fn describe() {
    let count = Unit::Count;
    metrics::describe_counter!(VERIFICATIONS, count, "Verified credentials by outcome");
    metrics::describe_histogram!(VERIFICATION_TIME, Unit::Seconds, "Time of a verification");
    metrics::describe_gauge!(QUEUE, count, "Audit records that wait or are being written");
    metrics::describe_counter!(
        RECORDS,
        count,
        "Requests and changes by what became of their audit record"
    );
    metrics::describe_counter!(CACHE, count, "Look-ups in the cache: hit or miss");
    metrics::describe_gauge!(
        CACHE_IN_USE,
        count,
        "1 while the cache is used, 0 while every look-up goes to the store"
    );
    metrics::describe_histogram!(
        STORE_TIME,
        Unit::Seconds,
        "Time of a call of the key store by operation and outcome"
    );
}

/// Measures a time.
#[derive(Clone, Copy)]
pub(crate) struct Timer(Instant);

impl Timer {
    pub(crate) fn start() -> Self {
        Self(Instant::now())
    }

    fn elapsed(self) -> Duration {
        self.0.elapsed()
    }
}

/// Counts verifications.
pub(crate) struct VerifyMeter {
    /// By name, the most frequent one first.
    outcomes: Vec<(&'static str, Counter)>,
    time: Histogram,
    /// Of the look-ups that succeed: each request makes one, so its histogram is kept.
    look_up: Histogram,
}

impl VerifyMeter {
    pub(crate) fn new() -> Self {
        describe();
        let refusals = Outcome::ALL.iter().filter(|outcome| outcome.is_refusal());
        let names = [Outcome::Allowed.as_str(), MALFORMED, UNKNOWN, UNAVAILABLE];
        let names = names.into_iter().chain(refusals.map(|outcome| outcome.as_str()));
        let counter = |name| (name, metrics::counter!(VERIFICATIONS, "outcome" => name));
        Self {
            outcomes: names.map(counter).collect(),
            time: metrics::histogram!(VERIFICATION_TIME),
            look_up: histogram(FIND, "ok"),
        }
    }

    pub(crate) fn count(&self, outcome: &'static str, timer: Option<Timer>) {
        if let Some((_, counter)) = self.outcomes.iter().find(|(name, _)| *name == outcome) {
            counter.increment(1);
        }
        if let Some(timer) = timer {
            self.time.record(timer.elapsed());
        }
    }

    /// Measures a look-up by digest.
    pub(crate) fn looked_up<T>(&self, found: &Result<T, StoreError>, timer: Timer) {
        match found {
            Ok(_) => self.look_up.record(timer.elapsed()),
            Err(_) => measure_call(FIND, timer, found),
        }
    }
}

/// Counts look-ups in a cache.
#[cfg(feature = "cache")]
#[derive(Clone)]
pub(crate) struct CacheMeter {
    hit: Counter,
    miss: Counter,
}

#[cfg(feature = "cache")]
impl CacheMeter {
    pub(crate) fn new() -> Self {
        let result = |name: &'static str| metrics::counter!(CACHE, "result" => name);
        Self { hit: result("hit"), miss: result("miss") }
    }

    pub(crate) fn count(&self, is_hit: bool) {
        let counter = if is_hit { &self.hit } else { &self.miss };
        counter.increment(1);
    }
}

/// Measures a call of a store.
pub(crate) fn measure_call<T>(
    operation: &'static str,
    timer: Timer,
    result: &Result<T, StoreError>,
) {
    histogram(operation, result_of(result)).record(timer.elapsed());
}

/// The label for the result of a call of the store.
fn result_of<T>(result: &Result<T, StoreError>) -> &'static str {
    match result {
        Ok(_) => "ok",
        Err(StoreError::LimitReached) => "limit_reached",
        Err(StoreError::NotFound) => "not_found",
        Err(StoreError::Conflict) => "conflict",
        Err(StoreError::InDoubt(_)) => "in_doubt",
        Err(_) => "unavailable",
    }
}

fn histogram(operation: &'static str, outcome: &'static str) -> Histogram {
    metrics::histogram!(STORE_TIME, "operation" => operation, "outcome" => outcome)
}

/// One number of the audit log's counters.
type Field = fn(&AuditStats) -> u64;

/// Reports what is counted elsewhere, from time to time.
pub(crate) struct Reporter {
    records: [(Counter, Field); 4],
    queue: Gauge,
    cache: Gauge,
    last: AuditStats,
    last_queued: usize,
}

impl Reporter {
    pub(crate) fn new() -> Self {
        let result = |name: &'static str| metrics::counter!(RECORDS, "result" => name);
        Self {
            records: [
                (result("written"), |stats| stats.written),
                (result("summed"), |stats| stats.total_summed),
                (result("shed"), |stats| stats.shed),
                (result("failed"), |stats| stats.failed),
            ],
            queue: metrics::gauge!(QUEUE),
            cache: metrics::gauge!(CACHE_IN_USE),
            last: AuditStats::default(),
            last_queued: 0,
        }
    }

    /// Differences, so that several managers of one process add up.
    pub(crate) fn report(&mut self, stats: AuditStats, queued: usize, cache: Option<bool>) {
        for (counter, read) in &self.records {
            counter.increment(read(&stats).saturating_sub(read(&self.last)));
        }
        #[allow(clippy::cast_precision_loss, reason = "a queue has far fewer than 2^52 records")]
        self.queue.increment(queued as f64 - self.last_queued as f64);
        (self.last, self.last_queued) = (stats, queued);
        if let Some(is_used) = cache {
            self.cache.set(f64::from(u8::from(is_used)));
        }
    }
}

/// Nothing to show: the values are in the recorder.
macro_rules! shown {
    ($($name:ident)+) => {$(
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(stringify!($name))
            }
        }
    )+};
}

shown! { VerifyMeter Reporter }
#[cfg(feature = "cache")]
shown! { CacheMeter }
