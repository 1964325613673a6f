//! Last-used times: recorded in memory by requests, written in batches by a background
//! task.

use std::cell::Cell;
use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use event_listener::Event;

use crate::key::digest::BuildUniformHasher;
use crate::key::id::KeyId;
use crate::manager::error::StoreTimeout;
use crate::meters::{Timer, measure_call};
use crate::record::KeyUse;
use crate::runtime::clock::Timestamp;
use crate::runtime::spawn::{Elapsed, Panicked, Runtime, caught, timeout};
use crate::store::key_store::{KeyStore, StoreError};
use crate::text::with_causes;
use crate::throttle::Throttle;

/// The number of maps. Threads share them only if there are more threads than maps.
const SHARDS: usize = 16;
/// How long uses are collected before they are written.
const PAUSE: Duration = Duration::from_millis(250);
/// How long to wait before uses that could not be written are retried. New uses wait as
/// well, and must be readable within a second.
const RETRY: Duration = Duration::from_millis(250);
const BATCH: usize = 1_000;
/// After this many uses, those of the same key are merged.
const RECENT: usize = 1_024;

type Uses = HashMap<KeyId, Timestamp, BuildUniformHasher>;

/// Records uses and has a background task write them.
pub(crate) struct LastUses {
    shared: Arc<Shared>,
    runtime: Arc<dyn Runtime>,
}

#[derive(Default)]
struct Shared {
    shards: [Shard; SHARDS],
    /// Set by the first use after a flush.
    pending: AtomicBool,
    /// How many uses the task has drained but not yet written.
    in_hand: AtomicUsize,
    closed: AtomicBool,
    ended: AtomicBool,
    work: Event,
    closing: Event,
    end: Event,
    /// Why the last batch was not written, if it was not.
    failure: Mutex<Option<String>>,
}

/// On a separate cache line, so that threads do not slow each other down.
#[derive(Default)]
#[repr(align(128))]
struct Shard(Mutex<Noted>);

#[derive(Default)]
struct Noted {
    /// A list, because a request that inserts into a map would wait when the map grows.
    recent: Vec<KeyUse>,
    latest: Uses,
}

impl LastUses {
    pub(crate) fn start(
        store: Arc<dyn KeyStore>,
        deadline: Duration,
        runtime: Arc<dyn Runtime>,
    ) -> Self {
        let shared = Arc::new(Shared::default());
        let task = Task {
            shared: Arc::clone(&shared),
            runtime: Arc::clone(&runtime),
            store,
            deadline,
            failures: Throttle::default(),
        };
        runtime.spawn(Box::pin(task.run()));
        Self { shared, runtime }
    }

    /// Records that the key was used at this time.
    pub(crate) fn record(&self, id: KeyId, at: Timestamp) {
        self.shared.note(shard_of_this_thread(), id, at);
        if !self.shared.pending.load(Ordering::Relaxed)
            && !self.shared.pending.swap(true, Ordering::AcqRel)
        {
            self.shared.work.notify(1);
        }
    }

    /// Why the last batch was not written, if it was not.
    pub(crate) fn failure(&self) -> Option<String> {
        self.shared.failure.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Lets the task write the remaining uses and end.
    pub(crate) fn close(&self) {
        self.shared.closed.store(true, Ordering::Release);
        self.shared.closing.notify(usize::MAX);
        self.shared.work.notify(usize::MAX);
    }

    /// Waits for the task to end, at most until the deadline. Returns how many uses were
    /// not written.
    pub(crate) async fn ended(&self, deadline: Duration) -> u64 {
        let ended = async {
            loop {
                let listener = self.shared.end.listen();
                if self.shared.ended.load(Ordering::Acquire) {
                    return;
                }
                listener.await;
            }
        };
        let _ = timeout(&*self.runtime, deadline, ended).await;
        let noted = self.shared.shards.iter().map(|shard| shard.lock().keys() as u64).sum::<u64>();
        let unwritten = noted + self.shared.in_hand.load(Ordering::Acquire) as u64;
        if unwritten > 0 {
            tracing::error!(unwritten, "last-used times were not written before the shutdown");
        }
        unwritten
    }
}

impl fmt::Debug for LastUses {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LastUses").finish_non_exhaustive()
    }
}

impl Drop for LastUses {
    fn drop(&mut self) {
        self.close();
    }
}

impl Shard {
    fn lock(&self) -> MutexGuard<'_, Noted> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Noted {
    fn add(&mut self, used: KeyUse) {
        if self.recent.len() == RECENT {
            self.fold();
        }
        // Allocated in full at the first use, so that no later request waits for it.
        self.recent.reserve(RECENT - self.recent.len());
        self.recent.push(used);
    }

    fn fold(&mut self) {
        for used in self.recent.drain(..) {
            keep_latest(&mut self.latest, used);
        }
    }

    /// How many keys were used.
    fn keys(&mut self) -> usize {
        self.fold();
        self.latest.len()
    }
}

/// For uses that arrive in order.
fn keep_latest(uses: &mut Uses, used: KeyUse) {
    let latest = uses.entry(used.id).or_insert(used.at);
    if used.replaces(Some(*latest)) {
        *latest = used.at;
    }
}

/// For uses in any order. If they are more than a day apart, a clock was wrong, and the
/// earlier is kept: the next use corrects a time that is too early.
fn keep_plausible(uses: &mut Uses, KeyUse { id, at }: KeyUse) {
    let kept = uses.entry(id).or_insert(at);
    let (earlier, later) = (at.min(*kept), at.max(*kept));
    let plausible = KeyUse { id, at: earlier }.latest_plausible();
    *kept = if later > plausible { earlier } else { later };
}

impl Shared {
    fn note(&self, shard: usize, id: KeyId, at: Timestamp) {
        if let Some(shard) = self.shards.get(shard) {
            shard.lock().add(KeyUse { id, at });
        }
    }

    /// The unwritten uses of earlier rounds together with the new ones.
    fn drain(&self, unwritten: Vec<KeyUse>) -> Vec<KeyUse> {
        let mut noted = Uses::default();
        for shard in &self.shards {
            let mut shard = shard.lock();
            shard.fold();
            for (id, at) in shard.latest.drain() {
                keep_plausible(&mut noted, KeyUse { id, at });
            }
        }
        let mut all: Uses = unwritten.into_iter().map(|used| (used.id, used.at)).collect();
        for (id, at) in noted {
            keep_latest(&mut all, KeyUse { id, at });
        }
        all.into_iter().map(|(id, at)| KeyUse { id, at }).collect()
    }
}

fn shard_of_this_thread() -> usize {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    thread_local! {
        static SHARD: Cell<usize> = Cell::new(NEXT.fetch_add(1, Ordering::Relaxed) % SHARDS);
    }
    SHARD.try_with(Cell::get).unwrap_or_default()
}

struct Task {
    shared: Arc<Shared>,
    runtime: Arc<dyn Runtime>,
    store: Arc<dyn KeyStore>,
    deadline: Duration,
    failures: Throttle,
}

impl Task {
    async fn run(self) {
        let mut unwritten = Vec::new();
        loop {
            let closed = self.wait().await;
            self.shared.pending.store(false, Ordering::Release);
            let uses = self.shared.drain(unwritten);
            unwritten = self.write(&uses).await;
            if closed {
                break;
            }
            if !unwritten.is_empty() {
                // A manager that is closing does not wait for the pause.
                let closing = self.shared.closing.listen();
                if !self.shared.closed.load(Ordering::Acquire) {
                    let _ = timeout(&*self.runtime, RETRY, closing).await;
                }
                self.shared.pending.store(true, Ordering::Release);
            }
        }
    }

    /// Waits for uses and then for the batch to fill, or for the shutdown.
    async fn wait(&self) -> bool {
        let is_closed = || self.shared.closed.load(Ordering::Acquire);
        loop {
            let listener = self.shared.work.listen();
            if is_closed() {
                return true;
            }
            if self.shared.pending.load(Ordering::Acquire) {
                let _ = timeout(&*self.runtime, PAUSE, listener).await;
                return is_closed();
            }
            listener.await;
        }
    }

    /// Writes in batches. Returns the uses that could not be written, for a retry.
    async fn write(&self, uses: &[KeyUse]) -> Vec<KeyUse> {
        let mut unwritten = Vec::new();
        self.shared.in_hand.store(uses.len(), Ordering::Release);
        for batch in uses.chunks(BATCH) {
            let timer = Timer::start();
            let call = caught(async { self.store.record_uses(batch).await });
            let written = match timeout(&*self.runtime, self.deadline, call).await {
                Ok(Ok(result)) => result,
                Ok(Err(Panicked)) => Err(StoreError::unavailable("the key store panicked")),
                Err(Elapsed) => Err(StoreError::unavailable(StoreTimeout)),
            };
            measure_call("record_uses", timer, &written);
            let failure = written.err().map(|error| with_causes(&error));
            (*self.shared.failure.lock().unwrap_or_else(PoisonError::into_inner))
                .clone_from(&failure);
            if let Some(error) = failure {
                let uses = batch.len();
                if let Some(left_out) = self.failures.pass() {
                    tracing::warn!(
                        uses,
                        error,
                        left_out,
                        "not all last-used times were written, will retry"
                    );
                }
                unwritten.extend_from_slice(batch);
            } else {
                self.shared.in_hand.fetch_sub(batch.len(), Ordering::AcqRel);
            }
        }
        unwritten
    }
}

impl Drop for Task {
    fn drop(&mut self) {
        self.shared.ended.store(true, Ordering::Release);
        self.shared.end.notify(usize::MAX);
    }
}

#[cfg(test)]
mod tests;
