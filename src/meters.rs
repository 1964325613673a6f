//! What is counted and measured with the feature `metrics`; without it, nothing.

#[cfg(feature = "metrics")]
pub(crate) mod recorded;

#[cfg(all(feature = "metrics", feature = "cache"))]
pub(crate) use recorded::CacheMeter;
#[cfg(feature = "metrics")]
pub(crate) use recorded::{Timer, VerifyMeter, measure_call};
#[cfg(all(not(feature = "metrics"), feature = "cache"))]
pub(crate) use unrecorded::CacheMeter;
#[cfg(not(feature = "metrics"))]
pub(crate) use unrecorded::{Timer, VerifyMeter, measure_call};

/// The outcomes of verifications that are no outcomes in the audit log.
pub(crate) const MALFORMED: &str = "malformed";
pub(crate) const UNKNOWN: &str = "unknown";
pub(crate) const UNAVAILABLE: &str = "unavailable";

#[cfg(not(feature = "metrics"))]
mod unrecorded {
    #[derive(Clone, Copy, Debug)]
    pub(crate) struct Timer;

    impl Timer {
        pub(crate) fn start() -> Self {
            Self
        }
    }

    #[derive(Debug)]
    pub(crate) struct VerifyMeter;

    impl VerifyMeter {
        pub(crate) fn new() -> Self {
            Self
        }

        pub(crate) fn count(&self, _outcome: &'static str, _timer: Option<Timer>) {}

        pub(crate) fn looked_up<T>(&self, _found: &T, _timer: Timer) {}
    }

    pub(crate) fn measure_call<T>(_operation: &'static str, _timer: Timer, _result: &T) {}

    #[cfg(feature = "cache")]
    #[derive(Clone, Debug)]
    pub(crate) struct CacheMeter;

    #[cfg(feature = "cache")]
    impl CacheMeter {
        pub(crate) fn new() -> Self {
            Self
        }

        pub(crate) fn count(&self, _is_hit: bool) {}
    }
}
