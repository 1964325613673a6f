//! The `ChangeFeed` trait: announces changes to a cache.

use std::fmt;
use std::time::Instant;

use async_trait::async_trait;

use crate::key::id::KeyId;

/// Announces every change to the keys of a store, from any process.
///
/// # Writing a feed
///
/// One task calls [`next`](Self::next) in a loop for as long as the cache lives. A feed
/// must meet these requirements:
///
/// 1. **It begins with [`News::Missed`]**, and repeats it whenever it may have lost news:
///    after each reconnection, *once it is listening*, so that everything read from then on
///    is covered; and as soon as it knows that the connection is lost.
/// 2. **[`News::UpToDate`] is proof.** Every change that was finished before `as_of` must
///    have been announced already. A feed that sends a heartbeat through the same channel
///    as the changes, and receives it after them, may use the instant at which it sent the
///    heartbeat.
/// 3. **It sends `UpToDate` often**: several times within the cache's `max_staleness`.
///    Otherwise the cache is not used.
/// 4. **It never ends.** It reconnects by itself, with pauses, and waits meanwhile.
#[async_trait]
pub trait ChangeFeed: fmt::Debug + Send + 'static {
    /// Waits for the next news. No news may be lost if the call is dropped and repeated.
    async fn next(&mut self) -> News;
}

/// One piece of news. No variants will be added to this type: a cache has to handle them
/// all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum News {
    /// This key was created, changed or removed. A use is not a change.
    Changed(KeyId),
    /// Every change that was finished before this instant has been announced.
    UpToDate {
        /// The instant, on this machine's monotonic clock.
        as_of: Instant,
    },
    /// Changes may have been missed. All earlier answers are invalid, and nothing may be
    /// cached until the next [`News::UpToDate`].
    Missed,
}
