//! Single flight: one call of the store at a time for each digest, shared by all callers.

use std::collections::HashMap;
use std::error::Error as StdError;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures_util::future::{FutureExt, Shared};
use thiserror::Error;

use super::entries::{Asked, Entries, Found};
use crate::key::digest::KeyDigest;
use crate::runtime::spawn::{BoxFuture, caught};
use crate::store::key_store::{KeyStore, StoreError};

type Answer = Result<Found, Arc<StoreError>>;

/// The calls in progress. There are never more than waiting callers.
#[derive(Default)]
pub(super) struct SingleFlight(Mutex<State>);

#[derive(Default)]
struct State {
    by_digest: HashMap<KeyDigest, Started>,
    started: u64,
}

struct Started {
    number: u64,
    asked: Asked,
    waiters: usize,
    call: Call,
}

impl SingleFlight {
    /// The store's answer. Any of the waiting callers drives the call when polled, so that
    /// a caller that is dropped does not stop it.
    pub(super) async fn ask(
        self: &Arc<Self>,
        store: &Arc<dyn KeyStore>,
        entries: &Arc<Entries>,
        digest: &KeyDigest,
    ) -> Result<Found, StoreError> {
        let mut may_join = true;
        loop {
            let mut waiter = match self.join(store, entries, digest, may_join) {
                Joined::Waiter(waiter) => waiter,
                Joined::Answered(found) => return Ok(found),
            };
            let found = (&mut waiter.call).await.map_err(own)?;
            if entries.is_too_old(waiter.asked) {
                return Err(StoreError::unavailable(TooOld));
            }
            // The store may have been asked before a change that this caller has seen.
            if !waiter.joined || entries.is_current(digest, waiter.asked, &found) {
                return Ok(found);
            }
            may_join = false;
        }
    }

    fn join(
        self: &Arc<Self>,
        store: &Arc<dyn KeyStore>,
        entries: &Arc<Entries>,
        digest: &KeyDigest,
        may_join: bool,
    ) -> Joined {
        let mut state = self.lock();
        if may_join
            && let Some(started) = state.by_digest.get_mut(digest)
            && entries.may_join(started.asked)
        {
            started.waiters += 1;
            return Joined::Waiter(Waiter {
                calls: Arc::clone(self),
                digest: *digest,
                number: started.number,
                joined: true,
                asked: started.asked,
                call: started.call.clone(),
            });
        }
        // The answer may have arrived since the caller checked.
        if let Some(found) = entries.find(digest) {
            return Joined::Answered(found);
        }
        state.started += 1;
        let (number, asked) = (state.started, entries.asking());
        let question = Question {
            calls: Arc::clone(self),
            store: Arc::clone(store),
            entries: Arc::clone(entries),
            digest: *digest,
            number,
            asked,
        };
        let answer: BoxFuture<'static, Answer> = Box::pin(question.put());
        let call = answer.shared();
        let started = Started { number, asked, waiters: 1, call: call.clone() };
        let replaced = state.by_digest.insert(*digest, started);
        drop(state);
        // Dropped outside the lock, since this may drop a call of the store.
        drop(replaced);
        let calls = Arc::clone(self);
        Joined::Waiter(Waiter { calls, digest: *digest, number, joined: false, asked, call })
    }

    /// Removes the call if it has this number and `when` returns true.
    fn end(&self, digest: &KeyDigest, number: u64, when: impl FnOnce(&mut Started) -> bool) {
        let mut state = self.lock();
        let started = state.by_digest.get_mut(digest).filter(|started| started.number == number);
        let ended = started.is_some_and(when).then(|| state.by_digest.remove(digest));
        drop(state);
        drop(ended);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

enum Joined {
    Waiter(Waiter),
    /// The answer arrived meanwhile.
    Answered(Found),
}

/// One caller that waits. The last one to be dropped removes the call.
struct Waiter {
    calls: Arc<SingleFlight>,
    digest: KeyDigest,
    number: u64,
    /// Whether another caller had started it.
    joined: bool,
    asked: Asked,
    call: Call,
}

impl Drop for Waiter {
    fn drop(&mut self) {
        self.calls.end(&self.digest, self.number, |started| {
            started.waiters -= 1;
            started.waiters == 0
        });
    }
}

/// The call of the store, which all that wait for it drive.
type Call = Shared<BoxFuture<'static, Answer>>;

struct Question {
    calls: Arc<SingleFlight>,
    store: Arc<dyn KeyStore>,
    entries: Arc<Entries>,
    digest: KeyDigest,
    number: u64,
    asked: Asked,
}

impl Question {
    async fn put(self) -> Answer {
        // Otherwise a panic would reach every caller that waits.
        let found = caught(self.store.find_by_digest(&self.digest)).await;
        let found = found.unwrap_or_else(|_| Err(StoreError::unavailable(Panicked)));
        if let Ok(found) = &found {
            self.entries.keep(self.digest, self.asked, found);
        }
        self.calls.end(&self.digest, self.number, |_| true);
        found.map_err(Arc::new)
    }
}

/// The answer took longer than `max_staleness`, so it may be older than that.
#[derive(Debug, Error)]
#[error("the store took longer to answer than max_staleness permits")]
struct TooOld;

#[derive(Debug, Error)]
#[error("the store panicked")]
struct Panicked;

/// A copy of the error for another caller, of the same kind and text.
fn own(error: Arc<StoreError>) -> StoreError {
    let error = match Arc::try_unwrap(error) {
        Ok(error) => return error,
        Err(error) => error,
    };
    match &*error {
        StoreError::LimitReached => StoreError::LimitReached,
        StoreError::NotFound => StoreError::NotFound,
        StoreError::Conflict => StoreError::Conflict,
        StoreError::Unavailable(_) => StoreError::unavailable(SharedSource(error)),
        StoreError::InDoubt(_) => StoreError::in_doubt(SharedSource(error)),
        StoreError::Corrupt(_) => StoreError::corrupt(SharedSource(error)),
    }
}

/// The source of an error that several callers share.
#[derive(Debug)]
struct SharedSource(Arc<StoreError>);

impl SharedSource {
    fn source(&self) -> &(dyn StdError + 'static) {
        self.0.source().unwrap_or(&*self.0)
    }
}

impl fmt::Display for SharedSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self.source(), f)
    }
}

impl StdError for SharedSource {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.source().source()
    }
}
