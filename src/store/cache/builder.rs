//! The builder of a `CachedStore`.

use std::sync::Arc;
use std::time::Duration;

use thiserror::Error;

use super::CachedStore;
use super::entries::Entries;
use super::follow::Listening;
use super::singleflight::SingleFlight;
use crate::meters::CacheMeter;
use crate::runtime::spawn::{self, Runtime};
use crate::store::feed::ChangeFeed;
use crate::store::key_store::KeyStore;

/// The largest `max_staleness`, which bounds how long a revoked key may be accepted.
const LONGEST: Duration = Duration::from_secs(5);

/// Builds a [`CachedStore`]; see there for an example.
#[derive(Debug)]
#[must_use = "a builder does nothing until `build` is called"]
pub struct CachedStoreBuilder {
    store: Arc<dyn KeyStore>,
    max_staleness: Duration,
    entries: usize,
    negative_entries: usize,
    feed: Option<Box<dyn ChangeFeed>>,
    runtime: Option<Arc<dyn Runtime>>,
}

impl CachedStore {
    /// Starts building a cache in front of this store. `max_staleness` is how old an answer
    /// may be: more than zero, and at most 5 seconds.
    pub fn builder(store: impl KeyStore, max_staleness: Duration) -> CachedStoreBuilder {
        CachedStoreBuilder {
            store: Arc::new(store),
            max_staleness,
            entries: 100_000,
            negative_entries: 10_000,
            feed: None,
            runtime: None,
        }
    }
}

impl CachedStoreBuilder {
    /// Sets how many keys are cached at most. The default is 100,000. If there are more,
    /// those used most often are kept. The cache is divided into parts that fill up
    /// separately, so a part may evict keys slightly before the total is reached.
    pub fn entries(self, entries: usize) -> Self {
        Self { entries, ..self }
    }

    /// Sets how many digests without a key are remembered. The default is 10,000. They have
    /// separate room, so that a flood of unknown keys does not evict real ones.
    pub fn negative_entries(self, negative_entries: usize) -> Self {
        Self { negative_entries, ..self }
    }

    /// Listens to this feed. Entries then have no maximum age: they are used until a change
    /// is announced, and not at all while the feed is silent.
    pub fn feed(self, feed: impl ChangeFeed) -> Self {
        Self { feed: Some(Box::new(feed)), ..self }
    }

    /// Sets the async runtime that listens to the feed. The default is the tokio runtime
    /// that [`build`](Self::build) is called on. Not needed without a feed.
    pub fn runtime(self, runtime: impl Runtime) -> Self {
        Self { runtime: Some(Arc::new(runtime)), ..self }
    }

    /// Creates the cache, and starts to listen to the feed.
    ///
    /// # Errors
    ///
    /// [`CacheError::MaxStaleness`] if it is zero or more than 5 seconds,
    /// [`CacheError::NoRuntime`] if there is a feed but no runtime to listen on.
    pub fn build(self) -> Result<CachedStore, CacheError> {
        let Self { store, max_staleness, .. } = self;
        if max_staleness.is_zero() || max_staleness > LONGEST {
            return Err(CacheError::MaxStaleness(max_staleness));
        }
        let entries =
            Entries::new(max_staleness, self.entries, self.negative_entries, self.feed.is_some());
        let entries = Arc::new(entries);
        let listening = match self.feed {
            None => None,
            Some(feed) => {
                let runtime = self.runtime.or_else(spawn::current).ok_or(CacheError::NoRuntime)?;
                let listening =
                    Listening::start(feed, Arc::clone(&entries), max_staleness, runtime);
                Some(Arc::new(listening))
            }
        };
        Ok(CachedStore {
            store,
            entries,
            singleflight: Arc::new(SingleFlight::default()),
            meter: CacheMeter::new(),
            listening,
        })
    }
}

/// Why a cache could not be created.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum CacheError {
    /// `max_staleness` is out of range.
    #[error("max_staleness is {0:?}: it must be more than zero and at most 5 s")]
    MaxStaleness(Duration),
    /// There is no runtime to listen to the feed on.
    #[error(
        "no async runtime: build on a tokio runtime (feature `tokio`), or set one with `runtime`"
    )]
    NoRuntime,
}
