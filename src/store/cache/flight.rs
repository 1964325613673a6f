//! Single flight: one call of the store at a time for each digest, shared by all callers.

use std::collections::HashMap;
use std::error::Error as StdError;
use std::fmt;
use std::future::poll_fn;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::task::{Poll, Waker};

use futures_util::future::{FutureExt, Shared};
use thiserror::Error;

use super::entries::{Asked, Entries, Found};
use super::quiet::quietly;
use crate::key::digest::KeyDigest;
use crate::runtime::{BoxFuture, caught};
use crate::store::contract::{KeyStore, StoreError};

type Answer = Result<Found, Arc<StoreError>>;

/// The calls in progress. There are never more than waiting callers.
#[derive(Default)]
pub(super) struct Flights(Mutex<State>);

#[derive(Default)]
struct State {
    by_digest: HashMap<KeyDigest, Flight>,
    started: u64,
}

struct Flight {
    number: u64,
    asked: Asked,
    passengers: usize,
    call: Call,
}

impl Flights {
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
            let mut seat = match self.board(store, entries, digest, may_join) {
                Boarding::Seat(seat) => seat,
                Boarding::Landed(found) => return Ok(found),
            };
            let Call { answer, everyone } = &mut seat.call;
            let found = quietly(answer, everyone).await.map_err(own)?;
            if entries.is_too_old(seat.asked) {
                return Err(StoreError::unavailable(TooOld));
            }
            // The store may have been asked before a change that this caller has seen.
            if !seat.joined || entries.is_current(digest, seat.asked, &found) {
                return Ok(found);
            }
            may_join = false;
        }
    }

    fn board(
        self: &Arc<Self>,
        store: &Arc<dyn KeyStore>,
        entries: &Arc<Entries>,
        digest: &KeyDigest,
        may_join: bool,
    ) -> Boarding {
        let mut state = self.lock();
        if may_join
            && let Some(flight) = state.by_digest.get_mut(digest)
            && entries.may_join(flight.asked)
        {
            flight.passengers += 1;
            return Boarding::Seat(Seat {
                flights: Arc::clone(self),
                digest: *digest,
                number: flight.number,
                joined: true,
                asked: flight.asked,
                call: flight.call.clone(),
            });
        }
        // The answer may have arrived since the caller checked.
        if let Some(found) = entries.find(digest) {
            return Boarding::Landed(found);
        }
        state.started += 1;
        let (number, asked) = (state.started, entries.asking());
        let question = Question {
            flights: Arc::clone(self),
            store: Arc::clone(store),
            entries: Arc::clone(entries),
            digest: *digest,
            number,
            asked,
        };
        let call = Call::new(question);
        let flight = Flight { number, asked, passengers: 1, call: call.clone() };
        let replaced = state.by_digest.insert(*digest, flight);
        drop(state);
        // Dropped outside the lock, since this may drop a call of the store.
        drop(replaced);
        let flights = Arc::clone(self);
        Boarding::Seat(Seat { flights, digest: *digest, number, joined: false, asked, call })
    }

    /// Removes the flight if it has this number and `when` returns true.
    fn end(&self, digest: &KeyDigest, number: u64, when: impl FnOnce(&mut Flight) -> bool) {
        let mut state = self.lock();
        let flight = state.by_digest.get_mut(digest).filter(|flight| flight.number == number);
        let ended = flight.is_some_and(when).then(|| state.by_digest.remove(digest));
        drop(state);
        drop(ended);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Flights {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Flights").finish_non_exhaustive()
    }
}

enum Boarding {
    Seat(Seat),
    Landed(Found),
}

/// One caller's share of a flight. The last one to be dropped removes the flight.
struct Seat {
    flights: Arc<Flights>,
    digest: KeyDigest,
    number: u64,
    /// Whether another caller had started the flight.
    joined: bool,
    asked: Asked,
    call: Call,
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.flights.end(&self.digest, self.number, |flight| {
            flight.passengers -= 1;
            flight.passengers == 0
        });
    }
}

/// The call of the store, and the waker of all callers that wait for it.
#[derive(Clone)]
struct Call {
    answer: Shared<BoxFuture<'static, Answer>>,
    everyone: Arc<OnceLock<Waker>>,
}

impl Call {
    fn new(question: Question) -> Self {
        let everyone = Arc::new(OnceLock::new());
        let waker = Arc::clone(&everyone);
        let answer: BoxFuture<'static, Answer> = Box::pin(async move {
            // `Shared` polls the inner future with a waker that wakes all callers.
            poll_fn(|cx| Poll::Ready(_ = waker.set(cx.waker().clone()))).await;
            question.put().await
        });
        Self { answer: answer.shared(), everyone }
    }
}

struct Question {
    flights: Arc<Flights>,
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
        self.flights.end(&self.digest, self.number, |_| true);
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
