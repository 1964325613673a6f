//! Last-used times: noted on the request's path, written in batches behind it.

use std::cell::Cell;
use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use event_listener::Event;

use crate::clock::Timestamp;
use crate::key::digest::BuildUniformHasher;
use crate::key::id::KeyId;
use crate::record::KeyUse;
use crate::runtime::{Runtime, within};
use crate::store::contract::{KeyStore, StoreError};

/// Each thread notes in a map of its own, as far as they go round.
const SHARDS: usize = 16;
/// How long uses are gathered before they are written.
const PAUSE: Duration = Duration::from_millis(250);
const RETRY: Duration = Duration::from_secs(1);
const BATCH: usize = 1_000;

type Uses = HashMap<KeyId, Timestamp, BuildUniformHasher>;

/// Notes uses and has them written by a task of its own.
#[derive(Debug)]
pub(crate) struct LastUses {
    shared: Arc<Shared>,
    runtime: Arc<dyn Runtime>,
}

#[derive(Debug, Default)]
struct Shared {
    shards: [Shard; SHARDS],
    /// Set by the first use after a flush.
    pending: AtomicBool,
    closed: AtomicBool,
    ended: AtomicBool,
    work: Event,
    end: Event,
}

/// On a cache line of its own, so that threads do not slow each other.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Shard(Mutex<Uses>);

impl LastUses {
    pub(crate) fn start(
        store: Arc<dyn KeyStore>,
        deadline: Duration,
        runtime: Arc<dyn Runtime>,
    ) -> Self {
        let shared = Arc::new(Shared::default());
        let task =
            Task { shared: Arc::clone(&shared), runtime: Arc::clone(&runtime), store, deadline };
        runtime.spawn(Box::pin(task.run()));
        Self { shared, runtime }
    }

    /// Notes that the key was used at that time.
    pub(crate) fn record(&self, id: KeyId, at: Timestamp) {
        self.shared.note(shard_of_this_thread(), id, at);
        if !self.shared.pending.load(Ordering::Relaxed)
            && !self.shared.pending.swap(true, Ordering::AcqRel)
        {
            self.shared.work.notify(1);
        }
    }

    /// Lets the task write what was noted and end.
    pub(crate) fn close(&self) {
        self.shared.closed.store(true, Ordering::Release);
        self.shared.work.notify(usize::MAX);
    }

    /// Waits for the end of the task, no longer than that. Says how many uses
    /// were not written.
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
        let in_time = within(&*self.runtime, deadline, ended).await.is_ok();
        let noted = self.shared.shards.iter().map(|shard| shard.lock().len() as u64).sum::<u64>();
        // A task that still runs holds some more in its hands.
        let unwritten = if in_time { noted } else { noted.max(1) };
        if unwritten > 0 {
            tracing::error!(unwritten, "last-used times were not written");
        }
        unwritten
    }
}

impl Drop for LastUses {
    fn drop(&mut self) {
        self.close();
    }
}

impl Shard {
    fn lock(&self) -> MutexGuard<'_, Uses> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Shared {
    fn note(&self, shard: usize, id: KeyId, at: Timestamp) {
        if let Some(shard) = self.shards.get(shard) {
            let mut uses = shard.lock();
            let latest = uses.entry(id).or_insert(at);
            *latest = at.max(*latest);
        }
    }

    fn drain(&self) -> Vec<KeyUse> {
        let mut all = Uses::default();
        for shard in &self.shards {
            for (id, at) in shard.lock().drain() {
                let latest = all.entry(id).or_insert(at);
                *latest = at.max(*latest);
            }
        }
        all.into_iter().map(|(id, at)| KeyUse { id, at }).collect()
    }

    fn put_back(&self, uses: &[KeyUse]) {
        for used in uses {
            self.note(0, used.id, used.at);
        }
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
}

impl Task {
    async fn run(self) {
        loop {
            let closed = self.wait().await;
            self.shared.pending.store(false, Ordering::Release);
            let uses = self.shared.drain();
            let failed = self.write(&uses).await;
            if closed {
                break;
            }
            if failed {
                // A closing manager does not wait for the pause.
                let closing = self.shared.work.listen();
                if !self.shared.closed.load(Ordering::Acquire) {
                    let _ = within(&*self.runtime, RETRY, closing).await;
                }
                self.shared.pending.store(true, Ordering::Release);
            }
        }
    }

    /// Waits for uses and then for their company, or for the end.
    async fn wait(&self) -> bool {
        let is_closed = || self.shared.closed.load(Ordering::Acquire);
        loop {
            let listener = self.shared.work.listen();
            if is_closed() {
                return true;
            }
            if self.shared.pending.load(Ordering::Acquire) {
                let _ = within(&*self.runtime, PAUSE, listener).await;
                return is_closed();
            }
            listener.await;
        }
    }

    /// Writes in batches; what fails goes back, to be tried again.
    async fn write(&self, uses: &[KeyUse]) -> bool {
        let mut failed = false;
        for batch in uses.chunks(BATCH) {
            let written = within(&*self.runtime, self.deadline, self.store.record_uses(batch));
            let written = match written.await {
                Ok(result) => result,
                Err(_) => Err(StoreError::unavailable("the key store exceeded its deadline")),
            };
            if let Err(error) = written {
                let uses = batch.len();
                tracing::warn!(uses, %error, "last-used times were not written, will retry");
                self.shared.put_back(batch);
                failed = true;
            }
        }
        failed
    }
}

impl Drop for Task {
    fn drop(&mut self) {
        self.shared.ended.store(true, Ordering::Release);
        self.shared.end.notify(usize::MAX);
    }
}
