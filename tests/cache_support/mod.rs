//! Parts of the cache tests: keys, and a feed that the test controls.

#[path = "../support/mod.rs"]
pub(crate) mod support;

use std::future::pending;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use keygate::store::{ChangeFeed, KeyDigest, News, OrgLimit};
use keygate::*;
use tokio::sync::mpsc;

use support::eventually;

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
