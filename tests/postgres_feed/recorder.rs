//! The announcements of a feed so far.

use std::fmt::Debug;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use keygate::store::{ChangeFeed, News};
use keygate::{KeyId, PostgresStore};
use tokio::task::JoinHandle;

use crate::postgres_support::Schema;
use crate::support::eventually;

/// Short heartbeats make the tests faster.
pub(crate) const HEARTBEAT: Duration = Duration::from_millis(20);

/// The deadline of a store whose network is cut: it tries to connect for this long.
pub(crate) const REACH: Duration = Duration::from_secs(3);

/// Polls a feed continuously until it is dropped.
#[derive(Debug)]
pub(crate) struct Recorder {
    news: Arc<Mutex<Vec<News>>>,
    task: JoinHandle<()>,
}

impl Recorder {
    /// Follows the feed of that store.
    pub(crate) fn by(store: &PostgresStore) -> Self {
        let mut feed = store.changes().heartbeat(HEARTBEAT);
        let news = Arc::<Mutex<Vec<News>>>::default();
        let recorder = Arc::clone(&news);
        let task = tokio::spawn(async move {
            loop {
                let next = feed.next().await;
                recorder.lock().unwrap().push(next);
            }
        });
        Self { news, task }
    }

    pub(crate) fn count(&self) -> usize {
        self.news.lock().unwrap().len()
    }

    pub(crate) fn all(&self) -> Vec<News> {
        self.news.lock().unwrap().clone()
    }

    /// Waits for such an announcement from that index on. Returns its index.
    pub(crate) async fn wait(&self, from: usize, is_it: impl Fn(&News) -> bool) -> usize {
        eventually("the announcement", async || {
            self.news.lock().unwrap()[from..].iter().position(&is_it).map(|place| from + place)
        })
        .await
    }

    /// Waits for a loss from that index on. Returns its index.
    pub(crate) async fn loss(&self, from: usize) -> usize {
        self.wait(from, |news| *news == News::Missed).await
    }

    /// Waits for a proof that covers everything committed by now. Returns its index.
    pub(crate) async fn proof(&self) -> usize {
        let now = Instant::now();
        self.wait(0, |news| proves(news, now)).await
    }

    /// The announcements of that work, which succeeds, without proofs.
    pub(crate) async fn of<T: Debug, E: Debug>(
        &self,
        work: impl Future<Output = Result<T, E>>,
    ) -> Vec<News> {
        let from = self.proof().await + 1;
        work.await.unwrap();
        let to = self.proof().await;
        let is_proof = |news: &News| matches!(news, News::UpToDate { .. });
        self.all()[from..to].iter().copied().filter(|news| !is_proof(news)).collect()
    }
}

impl Drop for Recorder {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Whether it proves that every change committed before `instant` was announced.
pub(crate) fn proves(news: &News, instant: Instant) -> bool {
    matches!(news, News::UpToDate { as_of } if *as_of >= instant)
}

pub(crate) fn changed(id: KeyId) -> [News; 1] {
    [News::Changed(id)]
}

impl Schema {
    /// The channel for announcements.
    pub(crate) async fn channel(&self) -> String {
        let sql = "SELECT channel || ' ' || tableoid FROM schema_version";
        self.db().await.query_one(sql, &[]).await.unwrap().get(0)
    }

    /// Waits until this many sessions listen to the channel. Returns them.
    pub(crate) async fn until_listeners(&self, count: usize) -> Vec<i32> {
        let begins = format!("LISTEN \"{}\"", self.channel().await);
        let sql = "SELECT pid FROM pg_stat_activity WHERE starts_with(query, $1)";
        let db = self.db().await;
        eventually("this many sessions listen", async || {
            let rows = db.query(sql, &[&begins]).await.unwrap();
            (rows.len() == count).then(|| rows.iter().map(|row| row.get(0)).collect())
        })
        .await
    }
}
