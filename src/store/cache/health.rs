//! The health of a cache.

/// The health of a [`CachedStore`](crate::CachedStore), for a host's health report.
///
/// ```
/// use std::time::Duration;
/// use keygate::store::CacheState;
/// use keygate::{CachedStore, MemoryStore};
///
/// let cached = CachedStore::builder(MemoryStore::new(), Duration::from_secs(1)).build()?;
/// let health = cached.health();
/// assert_eq!((health.state, health.entries), (CacheState::WithoutFeed, 0));
/// # Ok::<(), keygate::error::CacheError>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct CacheHealth {
    /// Whether the cache is used.
    pub state: CacheState,
    /// How many keys are cached. Some of them may be too old to be used.
    pub entries: usize,
    /// How many digests without a key are cached.
    pub negative_entries: usize,
}

/// Whether a cache is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum CacheState {
    /// There is no feed: answers are used for `max_staleness`.
    WithoutFeed,
    /// The feed announces changes: answers are used until they change.
    Following,
    /// The feed is silent or has not started: every look-up goes to the store.
    Bypassed,
}
