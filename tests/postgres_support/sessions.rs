//! The sessions of a test's stores, and the locks that they wait for.

use std::time::SystemTime;

use tokio_postgres::Client;

use crate::postgres_support::{Schema, administrator};
use crate::support::eventually;

impl Schema {
    pub(crate) async fn sessions(&self, db: &Client) -> i64 {
        let sessions = "SELECT count(*) FROM pg_stat_activity WHERE application_name = $1";
        db.query_one(sessions, &[&self.name]).await.unwrap().get(0)
    }

    pub(crate) async fn sessions_end(&self) {
        let db = administrator().await;
        eventually("the sessions end", async || self.sessions(&db).await == 0).await;
    }

    /// Ends the sessions. Returns their number.
    pub(crate) async fn kill_sessions(&self) -> usize {
        let kill = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity \
                    WHERE application_name = $1";
        administrator().await.query(kill, &[&self.name]).await.unwrap().len()
    }

    /// The sessions that wait for a lock, with the beginning of their statements.
    pub(crate) async fn lock_waits(&self) -> Vec<(i32, SystemTime)> {
        let waits = "SELECT pid, query_start FROM pg_stat_activity \
                     WHERE application_name = $1 AND wait_event_type = 'Lock'";
        let rows = administrator().await.query(waits, &[&self.name]).await.unwrap();
        rows.iter().map(|row| (row.get(0), row.get(1))).collect()
    }

    pub(crate) async fn until_lock_wait(&self) -> Vec<(i32, SystemTime)> {
        eventually("a session waits for a lock", async || {
            Some(self.lock_waits().await).filter(|waits| !waits.is_empty())
        })
        .await
    }

    /// A transaction that holds these locks.
    pub(crate) async fn lock(&self, statements: &str) -> Client {
        let db = self.db().await;
        db.batch_execute(&format!("BEGIN; {statements}")).await.unwrap();
        db
    }
}

/// Ends the transaction of [`Schema::lock`].
pub(crate) async fn unlock(db: Client) {
    db.batch_execute("ROLLBACK").await.unwrap();
}
