//! Puts a `CachedStore` together.

use std::sync::Arc;
use std::time::Duration;

use thiserror::Error;

use super::CachedStore;
use super::entries::Entries;
use super::flight::Flights;
use super::follow::Listening;
use crate::runtime::{self, Runtime};
use crate::store::contract::KeyStore;
use crate::store::feed::ChangeFeed;

/// A key that is accepted longer than this after its revocation is accepted too long.
const LONGEST: Duration = Duration::from_secs(5);

/// Puts a [`CachedStore`] together; see there for an example.
#[derive(Debug)]
#[must_use = "a builder does nothing until `build` is called"]
pub struct CachedStoreBuilder {
    store: Arc<dyn KeyStore>,
    max_staleness: Duration,
    entries: usize,
    absent_entries: usize,
    feed: Option<Box<dyn ChangeFeed>>,
    runtime: Option<Arc<dyn Runtime>>,
}

impl CachedStore {
    /// Begins a cache in front of that store. `max_staleness` is how old an answer
    /// may be: more than nothing, and at most 5 seconds.
    pub fn builder(store: impl KeyStore, max_staleness: Duration) -> CachedStoreBuilder {
        CachedStoreBuilder {
            store: Arc::new(store),
            max_staleness,
            entries: 100_000,
            absent_entries: 10_000,
            feed: None,
            runtime: None,
        }
    }
}

impl CachedStoreBuilder {
    /// Sets for how many keys there is room; 100,000 otherwise. Where there are more,
    /// those stay that are used most. The room is in parts that fill up one by one, so
    /// that it may become narrow in one of them a little earlier.
    pub fn entries(self, entries: usize) -> Self {
        Self { entries, ..self }
    }

    /// Sets how many digests without a key are remembered; 10,000 otherwise. They
    /// have a room of their own, so that no flood of unknown keys pushes out real ones.
    pub fn absent_entries(self, absent_entries: usize) -> Self {
        Self { absent_entries, ..self }
    }

    /// Listens to that feed. Entries have no age then: they are used until a change
    /// is told, and not at all while the feed is silent.
    pub fn feed(self, feed: impl ChangeFeed) -> Self {
        Self { feed: Some(Box::new(feed)), ..self }
    }

    /// Sets the async runtime that listens to the feed; otherwise the tokio runtime
    /// that [`build`](Self::build) is called on. Not needed without a feed.
    pub fn runtime(self, runtime: impl Runtime) -> Self {
        Self { runtime: Some(Arc::new(runtime)), ..self }
    }

    /// Makes the cache, and starts to listen to the feed.
    ///
    /// # Errors
    ///
    /// [`CacheError::MaxStaleness`] where it is zero or more than 5 seconds,
    /// [`CacheError::NoRuntime`] where there is a feed and nothing to listen on.
    pub fn build(self) -> Result<CachedStore, CacheError> {
        let Self { store, max_staleness, .. } = self;
        if max_staleness.is_zero() || max_staleness > LONGEST {
            return Err(CacheError::MaxStaleness(max_staleness));
        }
        let entries =
            Entries::new(max_staleness, self.entries, self.absent_entries, self.feed.is_some());
        let entries = Arc::new(entries);
        let listening = match self.feed {
            None => None,
            Some(feed) => {
                let runtime =
                    self.runtime.or_else(runtime::current).ok_or(CacheError::NoRuntime)?;
                let listening =
                    Listening::start(feed, Arc::clone(&entries), max_staleness, runtime);
                Some(Arc::new(listening))
            }
        };
        Ok(CachedStore { store, entries, flights: Arc::new(Flights::default()), listening })
    }
}

/// Why a cache could not be made.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum CacheError {
    /// An answer has to be younger than that, or cannot be as young.
    #[error("max_staleness is {0:?}: it has to be more than zero, and at most 5 s")]
    MaxStaleness(Duration),
    /// There is nothing to listen to the feed on.
    #[error("no async runtime: call `build` on a tokio runtime, or set one with `runtime`")]
    NoRuntime,
}
