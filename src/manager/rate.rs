//! Rate limits of verified keys.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;

use crate::manager::KeyManager;
use crate::manager::verify::VerifiedKey;
use crate::runtime::spawn::{caught, timeout};

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

/// How much of its rate limit a key has left, after a request.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct RateStatus {
    /// The name of the limit: visible ASCII without `"` and `\`.
    pub name: Arc<str>,
    /// How many requests may be made within the window.
    pub quota: u32,
    /// The window.
    pub window: Duration,
    /// How many requests may be made at once now.
    pub remaining: u32,
    /// After which time the whole quota is available again, if no request is made.
    pub reset: Duration,
    /// For a request over the limit, which is refused: after which time one is let in again.
    pub retry_after: Option<Duration>,
}

impl RateStatus {
    /// The whole quota of a limit.
    pub fn new(name: impl Into<Arc<str>>, quota: u32, window: Duration) -> Self {
        let name = name.into();
        Self { name, quota, window, remaining: quota, reset: Duration::ZERO, retry_after: None }
    }
}

impl KeyManager {
    /// Counts a request, if there is a limiter. An error is a request over the limit.
    pub(super) async fn count_rate(
        &self,
        key: &VerifiedKey,
    ) -> Result<Option<RateStatus>, RateStatus> {
        let inner = &*self.inner;
        let Some(limiter) = &inner.limiter else { return Ok(None) };
        let counted = caught(async { limiter.count(key).await });
        match timeout(&*inner.runtime, inner.store_deadline, counted).await {
            Ok(Ok(Some(status))) if status.retry_after.is_some() => Err(status),
            Ok(Ok(status)) => Ok(status),
            failed => {
                if let Some(left_out) = inner.unlimited.pass() {
                    let reason = if failed.is_ok() { "it panicked" } else { "no answer in time" };
                    tracing::error!(
                        reason,
                        left_out,
                        "the rate limiter failed, and does not limit"
                    );
                }
                Ok(None)
            }
        }
    }

    /// Has idle keys forgotten until the manager is dropped.
    pub(super) fn tidy_rates(&self) {
        let Some(limiter) = &self.inner.limiter else { return };
        let (limiter, inner) = (Arc::clone(limiter), Arc::downgrade(&self.inner));
        let runtime = Arc::clone(&self.inner.runtime);
        self.inner.runtime.spawn(Box::pin(async move {
            while inner.strong_count() > 0 {
                let _ = caught(async { limiter.tidy().await }).await;
                runtime.sleep(TIDY).await;
            }
        }));
    }
}
