//! The announcements of a feed so far.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use keygate::store::{ChangeFeed, News};
use keygate::{KeyId, PostgresStore};
use tokio::task::JoinHandle;

use crate::postgres_support::administrator;

/// Longer than any step takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);
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
        let begun = Instant::now();
        loop {
            let found = self.news.lock().unwrap().iter().skip(from).position(&is_it);
            if let Some(place) = found {
                return from + place;
            }
            let all = self.all();
            assert!(begun.elapsed() < PATIENCE, "no such announcement in {:?}", &all[from..]);
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    /// Waits for a proof that covers everything committed by now. Returns its index.
    pub(crate) async fn proof(&self) -> usize {
        let now = Instant::now();
        self.wait(0, |news| proves(news, now)).await
    }

    /// The announcements of that work, without proofs.
    pub(crate) async fn of(&self, work: impl Future<Output = ()>) -> Vec<News> {
        let from = self.proof().await + 1;
        work.await;
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

pub(crate) fn changed(id: KeyId) -> Vec<News> {
    vec![News::Changed(id)]
}

/// The channel for announcements.
pub(crate) async fn channel(schema: &str) -> String {
    let sql = format!("SELECT channel || ' ' || tableoid FROM {schema}.schema_version");
    administrator().await.query_one(&sql, &[]).await.unwrap().get(0)
}

/// Sessions that listen to the schema's channel.
pub(crate) async fn listeners(schema: &str) -> Vec<i32> {
    let sql = "SELECT pid FROM pg_stat_activity WHERE starts_with(query, $1)";
    let begins = format!("LISTEN \"{}\"", channel(schema).await);
    let rows = administrator().await.query(sql, &[&begins]).await.unwrap();
    rows.iter().map(|row| row.get(0)).collect()
}

/// Waits until this many sessions listen.
pub(crate) async fn until_listeners(schema: &str, count: usize) {
    let begun = Instant::now();
    while listeners(schema).await.len() != count {
        assert!(begun.elapsed() < PATIENCE, "not {count}: {:?}", listeners(schema).await);
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
