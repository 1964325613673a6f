//! Rate limits of verified keys.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use thiserror::Error;

use crate::manager::KeyManager;
use crate::manager::verify::VerifiedKey;
use crate::runtime::spawn::{Elapsed, Panicked, caught, timeout};

/// How often idle keys are forgotten.
const TIDY: Duration = Duration::from_secs(10);

/// Limits how many requests a key may make in a time. Set it with
/// [`KeyManagerBuilder::rate_limiter`](crate::manager::KeyManagerBuilder::rate_limiter).
///
#[cfg_attr(
    feature = "rate-limit",
    doc = "[`RateLimits`](crate::manager::RateLimits) counts within the process. Implement this for one"
)]
#[cfg_attr(
    not(feature = "rate-limit"),
    doc = "`RateLimits` (feature `rate-limit`) counts within the process. Implement this for one"
)]
/// that several processes share. It is asked in [`KeyManager::admit`], and so by the layer, once
/// for each request whose key is valid. A limiter that panics, or does not answer within the
/// deadline of the store, does not limit: the request is let in, and a line is logged.
#[async_trait]
pub trait RateLimiter: fmt::Debug + Send + Sync + 'static {
    /// Counts a request with this key. `None` if the key is not limited.
    async fn count(&self, key: &VerifiedKey) -> Option<RateStatus>;

    /// Forgets keys that were not used for a while. Called every ten seconds.
    async fn tidy(&self);
}

#[async_trait]
impl<R: RateLimiter + ?Sized> RateLimiter for Arc<R> {
    async fn count(&self, key: &VerifiedKey) -> Option<RateStatus> {
        (**self).count(key).await
    }

    async fn tidy(&self) {
        (**self).tidy().await;
    }
}

/// A rate limit, as responses tell it to callers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RatePolicy {
    name: String,
    quota: u32,
    window: Duration,
    header: String,
}

impl RatePolicy {
    /// A limit of so many requests within this time. The name is 1 to 40 of `a-z`, `0-9`, `_`
    /// and `-`.
    ///
    /// # Errors
    ///
    /// For another name.
    pub fn new(name: &str, quota: u32, window: Duration) -> Result<Self, RateLimitError> {
        let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"_-".contains(&b);
        if !(1..=40).contains(&name.len()) || !name.bytes().all(plain) {
            return Err(RateLimitError::Name);
        }
        let header = format!("\"{name}\";q={quota};w={}", seconds(window));
        Ok(Self { name: name.to_owned(), quota, window, header })
    }

    /// The name of the limit.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// How many requests may be made within the window.
    pub fn quota(&self) -> u32 {
        self.quota
    }

    /// The window.
    pub fn window(&self) -> Duration {
        self.window
    }

    /// The value of the response's header `RateLimit-Policy`
    /// (draft-ietf-httpapi-ratelimit-headers-11), which the layer sets.
    pub fn header(&self) -> &str {
        &self.header
    }
}

/// Whole seconds, rounded up.
pub(crate) fn seconds(time: Duration) -> u64 {
    time.as_secs() + u64::from(time.subsec_nanos() > 0)
}

/// Why a rate limit is not valid.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum RateLimitError {
    /// The text is not a limit, or one of its numbers is out of range.
    #[error("a rate limit is a number of requests per s, m or h, such as 50/s")]
    Limit,
    /// The name has other characters, or too many.
    #[error("the name of a rate limit has 1 to 40 of a-z, 0-9, _ and -")]
    Name,
    /// Another limit has this name.
    #[error("another rate limit has this name")]
    NameTaken,
}

/// How much of its rate limit a key has left, after a request.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct RateStatus {
    /// The limit.
    pub policy: Arc<RatePolicy>,
    /// How many requests may be made at once now.
    pub remaining: u32,
    /// After which time the whole quota is available again, if no request is made.
    pub reset: Duration,
    /// For a request over the limit, which is refused: after which time one is let in again.
    pub retry_after: Option<Duration>,
}

impl RateStatus {
    /// The whole quota of a limit.
    pub fn new(policy: Arc<RatePolicy>) -> Self {
        Self { remaining: policy.quota, policy, reset: Duration::ZERO, retry_after: None }
    }

    /// The value of the response's header `RateLimit`
    /// (draft-ietf-httpapi-ratelimit-headers-11), which the layer sets.
    pub fn header(&self) -> String {
        format!("\"{}\";r={};t={}", self.policy.name, self.remaining, seconds(self.reset))
    }
}

impl KeyManager {
    /// Counts a request. `None` if the key is not limited, or the limiter failed.
    pub(super) async fn count_rate(
        &self,
        limiter: &Arc<dyn RateLimiter>,
        key: &VerifiedKey,
    ) -> Option<RateStatus> {
        let inner = &*self.inner;
        // Not the implementation for `Arc`, which would allocate a second future.
        let counted = caught(async { (**limiter).count(key).await });
        let reason = match timeout(&*inner.runtime, inner.store_deadline, counted).await {
            Ok(Ok(status)) => return status,
            Ok(Err(Panicked)) => "it panicked",
            Err(Elapsed) => "no answer in time",
        };
        if let Some(left_out) = inner.unlimited.pass() {
            tracing::error!(reason, left_out, "the rate limiter failed, and does not limit");
        }
        None
    }

    /// Has idle keys forgotten until the manager is dropped.
    pub(super) fn tidy_rates(&self) {
        let Some(limiter) = self.inner.limiter.clone() else { return };
        self.repeat(TIDY, move |Self { inner }| {
            let limiter = Arc::clone(&limiter);
            async move {
                let tidied = caught(async { limiter.tidy().await });
                let _ = timeout(&*inner.runtime, inner.store_deadline, tidied).await;
            }
        });
    }
}
