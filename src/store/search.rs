//! Finds keys across organisations, for operators: `KeySearch`.

use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;

use crate::key::id::KeyId;
use crate::record::ApiKey;
use crate::runtime::clock::Timestamp;
use crate::store::key_store::StoreError;

/// Finds keys of all organisations, for [`Operator`](crate::manager::Operator). Requests and the
/// management API do not use it.
///
/// # Writing a search
///
/// Each [`Search`] has an order, and a cursor is a place in it. The work for a page is bounded:
/// keep an index in the order of each search. A key that is added, removed or changed between two
/// pages may be missed or met twice; the others are met once.
///
/// | search | keys | order |
/// |---|---|---|
/// | `KeyPrefix(p)` | `key_prefix = p` | `id` |
/// | `Expiring { from, until }` | `from <= expires_at < until` | `expires_at`, `id` |
/// | `UnusedSince(t)` | last used before `t`, or, if never used, created before `t`; neither rotated nor enabled since | the day of the use or creation, `id` |
///
/// The last order is by day, so that an index need not change with each use. [`SearchPage::assemble`]
/// leaves out the keys of that day that were used later, and those that were rotated or enabled.
/// [`SearchCursor::at`] is the first part of the order: microseconds, days since 1970, or 0 for a
/// prefix.
///
/// The `conformance` suite checks it with
#[cfg_attr(feature = "conformance", doc = "[`check_search`](crate::conformance::check_search).")]
#[cfg_attr(not(feature = "conformance"), doc = "`check_search`.")]
#[async_trait]
pub trait KeySearch: fmt::Debug + Send + Sync + 'static {
    /// The key with this id, of any organisation.
    async fn find_by_id(&self, id: &KeyId) -> Result<Option<Arc<ApiKey>>, StoreError>;

    /// Up to `limit` keys after the cursor. An empty page without a cursor is the end; a page
    /// may be short, and even empty, and still lead on.
    async fn search(
        &self,
        search: &Search,
        after: Option<&SearchCursor>,
        limit: usize,
    ) -> Result<SearchPage, StoreError>;
}

#[async_trait]
impl<S: KeySearch + ?Sized> KeySearch for Arc<S> {
    async fn find_by_id(&self, id: &KeyId) -> Result<Option<Arc<ApiKey>>, StoreError> {
        (**self).find_by_id(id).await
    }

    async fn search(
        &self,
        search: &Search,
        after: Option<&SearchCursor>,
        limit: usize,
    ) -> Result<SearchPage, StoreError> {
        (**self).search(search, after, limit).await
    }
}

/// Which keys to find.
///
/// No variants will be added to this type: every store has to handle each of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Search {
    /// Those that are shown with this prefix, such as `vsp_sk_4fT9x`.
    KeyPrefix(String),
    /// Those that expire from one instant until before another.
    Expiring {
        /// The first instant.
        from: Timestamp,
        /// The first instant after the last.
        until: Timestamp,
    },
    /// Those that were neither used nor created, rotated or enabled since this instant.
    UnusedSince(Timestamp),
}

impl Search {
    /// Whether the key is one of them.
    pub fn matches(&self, key: &ApiKey) -> bool {
        match self {
            Self::KeyPrefix(prefix) => key.key_prefix == *prefix,
            Self::Expiring { from, until } => {
                key.expires_at.is_some_and(|at| (*from..*until).contains(&at))
            }
            Self::UnusedSince(since) => {
                let changed = [key.rotated_at, key.attributes.enabled_at];
                last_active(key) < *since && !changed.iter().flatten().any(|at| at >= since)
            }
        }
    }

    /// The place of a key in the order of the search.
    pub fn place(&self, key: &ApiKey) -> SearchCursor {
        let at = match self {
            Self::KeyPrefix(_) => 0,
            Self::Expiring { .. } => key.expires_at.map_or(0, Timestamp::unix_micros),
            Self::UnusedSince(_) => day_of(last_active(key)),
        };
        SearchCursor { at, id: key.id }
    }
}

/// When the key was last used, or else created.
fn last_active(key: &ApiKey) -> Timestamp {
    key.last_used_at.unwrap_or(key.created_at)
}

/// Days since 1970.
pub(super) fn day_of(at: Timestamp) -> i64 {
    at.unix_micros().div_euclid(24 * 60 * 60 * 1_000_000)
}

/// A place in the order of a search.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct SearchCursor {
    at: i64,
    id: KeyId,
}

impl SearchCursor {
    /// The place with these parts.
    pub fn new(at: i64, id: KeyId) -> Self {
        Self { at, id }
    }

    /// The first part of the order.
    pub fn at(&self) -> i64 {
        self.at
    }

    /// The id, which orders keys of one `at`.
    pub fn id(&self) -> KeyId {
        self.id
    }
}

/// A page of keys that were found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct SearchPage {
    /// The keys.
    pub keys: Vec<Arc<ApiKey>>,
    /// Where the next page begins; `None` at the end.
    pub next: Option<SearchCursor>,
}

impl SearchPage {
    /// Makes a page from up to `limit` keys with their places, in order: those that match.
    pub fn assemble(
        search: &Search,
        found: Vec<(SearchCursor, Arc<ApiKey>)>,
        limit: usize,
    ) -> Self {
        let next = found.last().map(|(place, _)| *place).filter(|_| found.len() >= limit);
        let keys = found.into_iter().map(|(_, key)| key).filter(|key| search.matches(key));
        Self { keys: keys.collect(), next }
    }
}
