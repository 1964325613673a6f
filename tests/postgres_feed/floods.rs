//! Floods of meaningless announcements, from other roles and on the schema's own channel.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use keygate::KeyStore;
use keygate::store::{News, OrgLimit};
use tokio::task::JoinHandle;

use crate::postgres_support::{Role, Schema, administrator, key, session};
use crate::recorder::Recorder;

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
#[ignore = "needs PostgreSQL"]
async fn case_51_a_role_without_rights_neither_finds_the_channel_nor_is_accepted_on_it() {
    let (schema, role) = (Schema::new(), Role::new().await);
    let store = schema.store().await;
    store.insert(&key(1), OrgLimit::NONE).await.unwrap();
    let recorder = Recorder::by(&store);
    recorder.proof().await;
    let other = session(&role.url().parse().unwrap()).await;
    let read = format!("SELECT channel FROM {}.schema_version", schema.name);
    let denied = other.query(&read, &[]).await.unwrap_err();
    assert!(denied.to_string().contains("db error"), "{denied}");
    let visible = "SELECT (SELECT string_agg(prosrc, '') FROM pg_proc) || \
                   (SELECT string_agg(query, '') FROM pg_stat_activity)";
    let visible: String = other.query_one(visible, &[]).await.unwrap().get(0);
    assert!(visible.contains("schema_version"), "the role can read the functions");
    let channel = schema.channel().await;
    let random = channel.split(' ').next().unwrap();
    assert!(!visible.contains(random), "another role can read the channel");
    let flood = format!(
        "SELECT pg_notify('{}', payload) FROM generate_series(1, 100), \
         unnest(ARRAY['*', '{}', 'nonsense']) AS payload",
        schema.name,
        key(1).id
    );
    for _ in 0..20 {
        assert_eq!(recorder.of(other.batch_execute(&flood)).await, []);
    }
}

/// Sends meaningless announcements on that channel until it is dropped.
pub(crate) struct Flood {
    sent: Arc<AtomicU64>,
    task: JoinHandle<()>,
}

impl Flood {
    pub(crate) fn on(channel: String) -> Self {
        let sent = Arc::<AtomicU64>::default();
        let count = Arc::clone(&sent);
        let task = tokio::spawn(async move {
            let db = administrator().await;
            let say = "SELECT pg_notify($1, payload) FROM generate_series(1, 50) AS n, \
                       unnest(ARRAY['*', 'nonsense ' || n, '00000000-' || n]) AS payload";
            let say = db.prepare(say).await.unwrap();
            loop {
                db.query(&say, &[&channel]).await.unwrap();
                // The server drops repeated announcements within a transaction.
                count.fetch_add(101, Ordering::SeqCst);
            }
        });
        Self { sent, task }
    }

    /// The number of announcements so far.
    pub(crate) fn sent(&self) -> u64 {
        self.sent.load(Ordering::SeqCst)
    }
}

impl Drop for Flood {
    fn drop(&mut self) {
        self.task.abort();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
#[ignore = "needs PostgreSQL"]
async fn case_51_a_flood_causes_one_reload_per_heartbeat() {
    let schema = Schema::new();
    let store = schema.store().await;
    let recorder = Recorder::by(&store);
    let from = recorder.proof().await;
    let flood = Flood::on(schema.channel().await);
    let mut to = from;
    while flood.sent() < 20_000 {
        to = recorder.proof().await;
    }
    let news = &recorder.all()[from + 1..=to];
    let missed = news.iter().filter(|news| **news == News::Missed).count();
    let proofs = news.len() - missed;
    assert!((1..=proofs).contains(&missed), "{proofs} proofs, {missed} missed");
    assert!(flood.sent() > 10 * proofs as u64, "no flood: {proofs} proofs meanwhile");
}
