//! Rate limits that are counted within the process.

use std::fmt;
use std::num::NonZeroU32;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use governor::clock::{Clock, DefaultClock};
use governor::middleware::StateInformationMiddleware;
use governor::state::keyed::DashMapStateStore;
use governor::{Quota, RateLimiter as Governor};

use crate::key::id::KeyId;
use crate::manager::rate::{RateLimitError, RateLimiter, RatePolicy, RateStatus};
use crate::manager::verify::VerifiedKey;

/// How many requests may be made in a time: `50/s`, `600/m` or `10000/h` as a text.
///
/// The quota may be used at once, and then comes back evenly (GCRA): of 600 in a minute, one
/// every tenth of a second.
///
/// ```
/// use std::time::Duration;
/// use keygate::manager::RateLimit;
///
/// let limit: RateLimit = "600/m".parse()?;
/// assert_eq!(limit, RateLimit::new(600, Duration::from_secs(60))?);
/// # Ok::<(), keygate::error::RateLimitError>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RateLimit {
    quota: NonZeroU32,
    window: Duration,
}

impl RateLimit {
    /// So many requests in this time.
    ///
    /// # Errors
    ///
    /// If either is zero, or the time is longer than a day.
    pub fn new(quota: u32, window: Duration) -> Result<Self, RateLimitError> {
        const LONGEST: Duration = Duration::from_secs(24 * 60 * 60);
        let quota = NonZeroU32::new(quota).ok_or(RateLimitError::Limit)?;
        if window > LONGEST || (window / quota.get()).is_zero() {
            return Err(RateLimitError::Limit);
        }
        Ok(Self { quota, window })
    }

    /// The time in which one request of the quota comes back.
    fn interval(self) -> Duration {
        self.window / self.quota.get()
    }
}

impl FromStr for RateLimit {
    type Err = RateLimitError;

    fn from_str(text: &str) -> Result<Self, RateLimitError> {
        let (quota, unit) = text.split_once('/').ok_or(RateLimitError::Limit)?;
        let seconds = match unit {
            "s" => 1,
            "m" => 60,
            "h" => 60 * 60,
            _ => return Err(RateLimitError::Limit),
        };
        if !quota.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(RateLimitError::Limit);
        }
        Self::new(quota.parse().map_err(|_| RateLimitError::Limit)?, Duration::from_secs(seconds))
    }
}

/// Rate limits for each key, counted within the process: with n processes, a key may make up
/// to n times as many requests.
///
/// Each key is counted alone, by its id. Keys that have their whole quota again are forgotten.
/// A million keys in use take some 55 MB, which stay reserved for later ones.
///
/// ```
/// # #[tokio::main]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use keygate::manager::RateLimits;
/// use keygate::{KeyManager, MemoryStore};
///
/// let limits = RateLimits::new("600/m".parse()?)
///     .tier("pro", "6000/m".parse()?)?
///     // The name of the tier: here by the plan that the host has stored with the key.
///     .choose(|key| key.metadata().get("plan"));
/// let keys = KeyManager::builder(MemoryStore::new()).rate_limiter(limits).build()?;
/// # Ok(())
/// # }
/// ```
pub struct RateLimits {
    /// The default one first.
    tiers: Vec<Tier>,
    choose: Box<Choose>,
    clock: DefaultClock,
}

type Choose = dyn for<'k> Fn(&'k VerifiedKey) -> Option<&'k str> + Send + Sync;
type Counts = Governor<KeyId, DashMapStateStore<KeyId>, DefaultClock, StateInformationMiddleware>;

struct Tier {
    policy: Arc<RatePolicy>,
    limit: RateLimit,
    counts: Counts,
}

impl Tier {
    fn new(name: &str, limit: RateLimit, clock: &DefaultClock) -> Result<Self, RateLimitError> {
        // A quota of at least a nanosecond for each request is never refused.
        let quota = Quota::with_period(limit.interval())
            .unwrap_or(Quota::per_second(limit.quota))
            .allow_burst(limit.quota);
        let counts = Counts::new(quota, DashMapStateStore::default(), clock.clone());
        let policy = Arc::new(RatePolicy::new(name, limit.quota.get(), limit.window)?);
        Ok(Self { policy, limit, counts })
    }
}

impl RateLimits {
    /// This limit for every key, under the name `default`.
    pub fn new(default: RateLimit) -> Self {
        let clock = DefaultClock::default();
        // The name is valid.
        let tiers = Tier::new("default", default, &clock).into_iter().collect();
        Self { tiers, choose: Box::new(|_| None), clock }
    }

    /// Adds another limit, by name: 1 to 40 of `a-z`, `0-9`, `_` and `-`.
    ///
    /// # Errors
    ///
    /// For another name, or one that is there already.
    pub fn tier(mut self, name: &str, limit: RateLimit) -> Result<Self, RateLimitError> {
        if self.tiers.iter().any(|tier| tier.policy.name() == name) {
            return Err(RateLimitError::NameTaken);
        }
        self.tiers.push(Tier::new(name, limit, &self.clock)?);
        Ok(self)
    }

    /// Chooses the limit of a key by name. A key for which this is `None`, or the name of no
    /// limit, has the default one. The function is called for every request.
    pub fn choose(
        self,
        name: impl for<'k> Fn(&'k VerifiedKey) -> Option<&'k str> + Send + Sync + 'static,
    ) -> Self {
        Self { choose: Box::new(name), ..self }
    }

    /// How many keys are counted now.
    pub fn keys(&self) -> usize {
        self.tiers.iter().map(|tier| tier.counts.len()).sum()
    }

    fn tier_of(&self, key: &VerifiedKey) -> Option<&Tier> {
        let chosen = (self.choose)(key);
        let named =
            chosen.and_then(|name| self.tiers.iter().find(|tier| tier.policy.name() == name));
        named.or(self.tiers.first())
    }
}

#[async_trait]
impl RateLimiter for RateLimits {
    async fn count(&self, key: &VerifiedKey) -> Option<RateStatus> {
        let tier = self.tier_of(key)?;
        let mut status = RateStatus::new(Arc::clone(&tier.policy));
        match tier.counts.check_key(&key.id()) {
            Ok(state) => {
                status.remaining = state.remaining_burst_capacity();
                let used = tier.limit.quota.get().saturating_sub(status.remaining);
                status.reset = tier.limit.interval() * used;
            }
            Err(not_until) => {
                let wait = not_until.wait_time_from(self.clock.now());
                status.remaining = 0;
                status.reset = tier.limit.interval() * (tier.limit.quota.get() - 1) + wait;
                status.retry_after = Some(wait);
            }
        }
        Some(status)
    }

    async fn tidy(&self) {
        for tier in &self.tiers {
            tier.counts.retain_recent();
        }
    }
}

impl fmt::Debug for RateLimits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let tiers = self.tiers.iter().map(|tier| (tier.policy.name(), tier.limit));
        f.debug_map().entries(tiers).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_is_parsed_from_its_only_text() {
        let limit = |quota, seconds| RateLimit::new(quota, Duration::from_secs(seconds)).unwrap();
        for (text, expected) in
            [("50/s", limit(50, 1)), ("600/m", limit(600, 60)), ("10000/h", limit(10_000, 3_600))]
        {
            assert_eq!(text.parse(), Ok(expected));
        }
        for text in [
            "",
            "50",
            "/s",
            "50/",
            "0/s",
            "-1/s",
            "+5/s",
            "5/d",
            "5/S",
            "5 /s",
            "5.5/s",
            "99999999999/s",
        ] {
            assert_eq!(text.parse::<RateLimit>(), Err(RateLimitError::Limit), "{text}");
        }
        assert_eq!(RateLimit::new(5, Duration::ZERO), Err(RateLimitError::Limit));
        assert_eq!(RateLimit::new(u32::MAX, Duration::from_nanos(1)), Err(RateLimitError::Limit));
    }

    #[test]
    fn a_tier_has_a_new_name_of_few_characters() {
        let limits = || RateLimits::new("1/s".parse().unwrap());
        for name in ["", "default", "Pro", "a b", "a\"", &"a".repeat(41)] {
            assert!(limits().tier(name, "1/s".parse().unwrap()).is_err(), "{name}");
        }
        let limits = limits().tier("pro_2", "1/s".parse().unwrap()).unwrap();
        assert!(limits.tier("pro_2", "2/s".parse().unwrap()).is_err());
    }
}
