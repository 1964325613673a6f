//! What a cache is told of the changes that others make.

use std::fmt;
use std::time::Instant;

use async_trait::async_trait;

use crate::key::id::KeyId;

/// Tells of every change to the keys of a store, whoever makes it.
///
/// # Writing a feed
///
/// One task calls [`next`](Self::next) again and again, for as long as the cache
/// lives. A feed owes it this:
///
/// 1. **It begins with [`News::Missed`]**, and says so again whenever it may have
///    lost news: after each reconnection, *once it is listening*, so that what is read
///    from then on is covered; and as soon as it knows that the connection is gone.
/// 2. **[`News::UpToDate`] is proof, not hope.** `as_of` is an instant such that
///    every change that was finished before it has been told already. A feed that
///    sends a mark through the same channel as the changes, and gets it back behind
///    them, may give the instant at which it sent the mark.
/// 3. **It says so often**: several times within the cache's `max_staleness`. A feed
///    that cannot is silent, and the cache goes without entries meanwhile.
/// 4. **It never ends.** It reconnects by itself, with pauses, and waits until then.
#[async_trait]
pub trait ChangeFeed: fmt::Debug + Send + 'static {
    /// Waits for what comes next. Nothing may be lost where the call is dropped and
    /// made again.
    async fn next(&mut self) -> News;
}

/// One piece of news. The type is closed: a cache has to know them all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum News {
    /// That key was made, changed or removed. A use is no change.
    Changed(KeyId),
    /// Every change that was finished before this instant has been told.
    UpToDate {
        /// The instant, on this machine's monotonic clock.
        as_of: Instant,
    },
    /// Changes may have been missed: whatever was read before is worth nothing, and
    /// nothing is worth keeping until the next [`News::UpToDate`].
    Missed,
}
