//! How a cache does.

/// How a [`CachedStore`](crate::CachedStore) does, for a host's health report.
///
/// ```
/// use std::time::Duration;
/// use keygate::{CacheState, CachedStore, MemoryStore};
///
/// let cached = CachedStore::builder(MemoryStore::new(), Duration::from_secs(1)).build()?;
/// let health = cached.health();
/// assert_eq!((health.state, health.entries), (CacheState::WithoutFeed, 0));
/// # Ok::<(), keygate::CacheError>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct CacheHealth {
    /// Whether the cache is used.
    pub state: CacheState,
    /// How many keys are kept. Some of them may be too old to be used.
    pub entries: usize,
    /// How many digests without a key are kept.
    pub absent_entries: usize,
}

/// Whether a cache is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum CacheState {
    /// There is no feed: answers are used for `max_staleness`.
    WithoutFeed,
    /// The feed tells of changes: answers are used until one is told.
    Following,
    /// There is no word of the feed, or not yet: every look-up goes to the store.
    Bypassed,
}
