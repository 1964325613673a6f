//! Parts of the cache tests: a store that can be paused, and a feed that the test controls.

#[path = "../support/mod.rs"]
pub(crate) mod support;

use std::fmt;
use std::future::{Future, pending};
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use keygate::store::{ChangeFeed, KeyDigest, KeyUse, News, OrgLimit, Revision};
use keygate::*;
use tokio::sync::{Semaphore, mpsc};

pub(crate) use support::{eventually, soon};

pub(crate) fn digest(number: u64) -> KeyDigest {
    key(number).digest
}

pub(crate) fn acme() -> OrgId {
    support::org("acme")
}

/// The key with that number as it is created.
pub(crate) fn key(number: u64) -> ApiKey {
    ApiKey::sample(number)
}

pub(crate) async fn insert(store: &dyn KeyStore, number: u64) -> ApiKey {
    let key = key(number);
    store.insert(&key, OrgLimit::NONE).await.unwrap();
    key
}

pub(crate) async fn revoke(store: &dyn KeyStore, key: &ApiKey) {
    let revoked = ApiKey { status: Status::Revoked, revision: key.revision.next(), ..key.clone() };
    store.replace(&revoked, key.revision).await.unwrap();
}

pub(crate) async fn status(store: &dyn KeyStore, key: &ApiKey) -> Option<Status> {
    store.find_by_digest(&key.digest).await.unwrap().map(|found| found.status)
}

/// A place where calls stop until the test lets them continue.
#[derive(Clone, Debug)]
pub(crate) struct Gate(Arc<(Semaphore, Semaphore)>);

impl Gate {
    fn new() -> Self {
        Self(Arc::new((Semaphore::new(0), Semaphore::new(0))))
    }

    async fn pass(&self) {
        self.0.0.add_permits(1);
        self.0.1.acquire().await.unwrap().forget();
    }

    /// Waits for a call that stops here.
    pub(crate) async fn reached(&self) {
        soon(self.0.0.acquire()).await.unwrap().forget();
    }

    /// Lets one call continue.
    pub(crate) fn open(&self) {
        self.0.1.add_permits(1);
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Failure {
    Unavailable,
    Corrupt,
    Panic,
}

/// A store that counts look-ups. A test can pause its calls or make them fail.
#[derive(Clone)]
pub(crate) struct Probe(Arc<State>);

struct State {
    inner: Arc<dyn KeyStore>,
    finds: AtomicUsize,
    dropped: AtomicUsize,
    before: Mutex<Option<Gate>>,
    after: Mutex<Option<Gate>>,
    after_change: Mutex<Option<Gate>>,
    failure: Mutex<Option<Failure>>,
}

impl fmt::Debug for Probe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Probe")
    }
}

impl Probe {
    pub(crate) fn new() -> Self {
        Self::over(MemoryStore::new())
    }

    pub(crate) fn over(inner: impl KeyStore) -> Self {
        Self(Arc::new(State {
            inner: Arc::new(inner),
            finds: AtomicUsize::new(0),
            dropped: AtomicUsize::new(0),
            before: Mutex::default(),
            after: Mutex::default(),
            after_change: Mutex::default(),
            failure: Mutex::default(),
        }))
    }

    /// The store itself. The cache does not learn of changes made here.
    pub(crate) fn inner(&self) -> &dyn KeyStore {
        &*self.0.inner
    }

    /// How many look-ups have started.
    pub(crate) fn finds(&self) -> usize {
        self.0.finds.load(SeqCst)
    }

    /// How many look-ups were dropped before their end.
    pub(crate) fn dropped(&self) -> usize {
        self.0.dropped.load(SeqCst)
    }

    /// Makes later look-ups stop before they read.
    pub(crate) fn hold_before(&self) -> Gate {
        put(&self.0.before)
    }

    /// Makes later look-ups stop after they read.
    pub(crate) fn hold_after(&self) -> Gate {
        put(&self.0.after)
    }

    /// Makes later changes stop after they were made.
    pub(crate) fn hold_after_change(&self) -> Gate {
        put(&self.0.after_change)
    }

    /// Makes later look-ups and changes run without stopping.
    pub(crate) fn let_pass(&self) {
        for gate in [&self.0.before, &self.0.after, &self.0.after_change] {
            *gate.lock().unwrap() = None;
        }
    }

    /// Makes look-ups fail like this. Changes are made but report the same failure.
    pub(crate) fn fail(&self, failure: Option<Failure>) {
        *self.0.failure.lock().unwrap() = failure;
    }

    fn outcome<T>(&self, done: Result<T, StoreError>) -> Result<T, StoreError> {
        let failure = *self.0.failure.lock().unwrap();
        match failure {
            None => done,
            Some(Failure::Unavailable) => Err(StoreError::unavailable("the line is cut")),
            Some(Failure::Corrupt) => Err(StoreError::corrupt("no such status")),
            Some(Failure::Panic) => panic!("the store of a test panics"),
        }
    }

    async fn change<T>(
        &self,
        work: impl Future<Output = Result<T, StoreError>>,
    ) -> Result<T, StoreError> {
        let done = work.await;
        stop(&self.0.after_change).await;
        self.outcome(done)
    }
}

fn put(place: &Mutex<Option<Gate>>) -> Gate {
    let gate = Gate::new();
    *place.lock().unwrap() = Some(gate.clone());
    gate
}

async fn stop(place: &Mutex<Option<Gate>>) {
    let gate = place.lock().unwrap().clone();
    if let Some(gate) = gate {
        gate.pass().await;
    }
}

struct CountDrop<'a>(Option<&'a AtomicUsize>);

impl Drop for CountDrop<'_> {
    fn drop(&mut self) {
        if let Some(count) = self.0 {
            count.fetch_add(1, SeqCst);
        }
    }
}

#[async_trait]
impl KeyStore for Probe {
    async fn insert(&self, key: &ApiKey, limit: OrgLimit) -> Result<(), StoreError> {
        self.change(self.0.inner.insert(key, limit)).await
    }

    async fn find_by_digest(&self, digest: &KeyDigest) -> Result<Option<Arc<ApiKey>>, StoreError> {
        self.0.finds.fetch_add(1, SeqCst);
        let mut count = CountDrop(Some(&self.0.dropped));
        stop(&self.0.before).await;
        let found = self.0.inner.find_by_digest(digest).await;
        stop(&self.0.after).await;
        count.0 = None;
        self.outcome(found)
    }

    async fn get(&self, org: &OrgId, id: &KeyId) -> Result<Option<Arc<ApiKey>>, StoreError> {
        self.0.inner.get(org, id).await
    }

    async fn list(&self, org: &OrgId) -> Result<Vec<Arc<ApiKey>>, StoreError> {
        self.0.inner.list(org).await
    }

    async fn replace(&self, key: &ApiKey, expected: Revision) -> Result<(), StoreError> {
        self.change(self.0.inner.replace(key, expected)).await
    }

    async fn delete(
        &self,
        org: &OrgId,
        id: &KeyId,
        expected: Option<Revision>,
    ) -> Result<(), StoreError> {
        self.change(self.0.inner.delete(org, id, expected)).await
    }

    async fn record_uses(&self, uses: &[KeyUse]) -> Result<(), StoreError> {
        self.0.inner.record_uses(uses).await
    }
}

/// A feed that the test controls. It goes silent when the test drops its end.
#[derive(Debug)]
pub(crate) struct Manual {
    news: mpsc::UnboundedReceiver<Option<News>>,
    /// Whether the last news is being processed.
    given: bool,
    heard: Arc<AtomicUsize>,
}

/// The test's end of the feed.
#[derive(Debug)]
pub(crate) struct Say {
    news: mpsc::UnboundedSender<Option<News>>,
    sent: AtomicUsize,
    heard: Arc<AtomicUsize>,
}

pub(crate) fn feed() -> (Say, Manual) {
    let (sender, receiver) = mpsc::unbounded_channel();
    let heard = Arc::new(AtomicUsize::new(0));
    let say = Say { news: sender, sent: AtomicUsize::new(0), heard: Arc::clone(&heard) };
    (say, Manual { news: receiver, given: false, heard })
}

impl Say {
    pub(crate) fn news(&self, news: News) {
        self.sent.fetch_add(1, SeqCst);
        self.news.send(Some(news)).unwrap();
    }

    pub(crate) fn up_to_date(&self) {
        self.news(News::UpToDate { as_of: Instant::now() });
    }

    /// Waits until all announcements have been processed.
    pub(crate) async fn heard(&self) {
        eventually("all announcements are processed", async || {
            self.heard.load(SeqCst) == self.sent.load(SeqCst)
        })
        .await;
    }

    pub(crate) fn panic(&self) {
        self.news.send(None).unwrap();
    }

    /// Whether the feed has been dropped.
    pub(crate) fn is_unheard(&self) -> bool {
        self.news.is_closed()
    }
}

#[async_trait]
impl ChangeFeed for Manual {
    async fn next(&mut self) -> News {
        if std::mem::take(&mut self.given) {
            self.heard.fetch_add(1, SeqCst);
        }
        let news = match self.news.recv().await {
            Some(Some(news)) => news,
            Some(None) => panic!("the feed of a test panics"),
            None => pending().await,
        };
        self.given = true;
        news
    }
}

/// A feed of a store that no other process changes.
#[derive(Debug, Default)]
pub(crate) struct Quiet(bool);

#[async_trait]
impl ChangeFeed for Quiet {
    async fn next(&mut self) -> News {
        if !std::mem::replace(&mut self.0, true) {
            return News::Missed;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
        News::UpToDate { as_of: Instant::now() }
    }
}
