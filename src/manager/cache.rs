//! The cache in front of a manager's store, if there is one.

use std::any::Any;

use crate::manager::report::PartHealth;
use crate::store::key_store::KeyStore;

/// The manager's store, if it is a cache.
#[derive(Debug, Default)]
pub(super) struct Cache {
    #[cfg(feature = "cache")]
    store: Option<crate::store::cache::CachedStore>,
}

impl Cache {
    pub(super) fn of(store: &impl KeyStore) -> Self {
        let store: &dyn Any = store;
        #[cfg(feature = "cache")]
        {
            use std::sync::Arc;

            use crate::store::cache::CachedStore;

            let shared = store.downcast_ref::<Arc<CachedStore>>().map(|shared| &**shared);
            Self { store: store.downcast_ref().or(shared).cloned() }
        }
        #[cfg(not(feature = "cache"))]
        {
            let _ = store;
            Self::default()
        }
    }

    /// Whether the cache is used, if there is one.
    pub(super) fn health(&self) -> Option<PartHealth> {
        #[cfg(feature = "cache")]
        {
            use crate::store::cache::CacheState;

            Some(match self.store.as_ref()?.health().state {
                CacheState::WithoutFeed | CacheState::Following => PartHealth(None),
                CacheState::Bypassed => PartHealth::fails(
                    "the feed of changes is silent: every look-up goes to the store".to_owned(),
                ),
            })
        }
        #[cfg(not(feature = "cache"))]
        None
    }
}
