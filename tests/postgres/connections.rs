//! Lost and silent connections.

use std::time::{Duration, Instant};

use keygate::audit::{AuditQuery, AuditScope};
use keygate::store::{KeyUse, OrgLimit};
use keygate::{AuditLog, KeyStore, StoreError};
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::postgres_support::{Schema, count, key, new_key, org, url};
use crate::proxy::{Network, Proxy, address};
use crate::support::eventually;

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
#[ignore = "needs PostgreSQL"]
async fn killed_server_sessions_are_replaced() {
    let schema = Schema::new();
    let store = schema.store().await;
    store.insert(&key(1), OrgLimit::NONE).await.unwrap();
    let mut readers = JoinSet::new();
    for _ in 0..8 {
        let (store, begun) = (store.clone(), Instant::now());
        readers.spawn(async move {
            while begun.elapsed() < Duration::from_secs(2) {
                // Reads are retried.
                assert!(store.find_by_digest(&key(1).digest).await.unwrap().is_some());
            }
        });
    }
    for _ in 0..3 {
        tokio::time::sleep(Duration::from_millis(400)).await;
        assert!(schema.kill_sessions().await >= 2);
    }
    readers.join_all().await;
    // The connections for changes were killed as well.
    schema.kill_sessions().await;
    store.insert(&key(2), OrgLimit::NONE).await.unwrap();
    store.record_uses(&[KeyUse { id: key(2).id, at: key(2).created_at }]).await.unwrap();
}

/// The pauses between reconnects start again after a working session.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
#[ignore = "needs PostgreSQL"]
async fn repeatedly_killed_sessions_are_replaced_as_quickly_as_the_first_ones() {
    let schema = Schema::new();
    let options = schema.options().deadline(Duration::from_secs(1));
    let store = options.connect().await.unwrap();
    for round in 0..10 {
        // Each connection is used in turn.
        for _ in 0..8 {
            let found = store.find_by_digest(&key(1).digest).await;
            assert!(found.is_ok(), "in round {round}: {found:?}");
        }
        schema.kill_sessions().await;
    }
}

/// If the network loses a call or its answer, the server's session is idle.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs PostgreSQL"]
async fn after_each_outage_that_loses_answers_calls_work_again() {
    const DEADLINE: Duration = Duration::from_millis(500);
    let schema = Schema::new();
    schema.store().await.insert(&key(1), OrgLimit::NONE).await.unwrap();
    let proxy = Proxy::start(address(&url())).await;
    let near = schema.options_at(&proxy.url(&url())).deadline(DEADLINE);
    let store = eventually("it opens", async || near.clone().connect().await.ok()).await;
    // Enough that each of the four connections for changes is lost twice.
    for outage in 1..=10 {
        // A caller may give up before the store does.
        let patience = if outage % 3 == 0 { DEADLINE / 2 } else { DEADLINE * 8 };
        let fill = async |name| {
            timeout(patience, store.insert(&new_key(&org(name)), OrgLimit::NONE)).await
        };
        let find = async || timeout(patience, store.find_by_digest(&key(1).digest)).await;
        proxy.set(Network::Silent);
        let (a, b, c, d, e, f) =
            tokio::join!(fill("a"), fill("b"), fill("c"), fill("d"), find(), find());
        for lost in [a, b, c, d] {
            assert_eq!(matches!(lost, Ok(Err(_))), outage % 3 != 0, "{lost:?}");
            assert!(!matches!(lost, Ok(Ok(()))), "{lost:?}");
        }
        for lost in [e, f] {
            assert!(matches!(lost, Err(_) | Ok(Err(StoreError::Unavailable(_)))), "{lost:?}");
            assert_eq!(lost.is_ok(), outage % 3 != 0, "{lost:?}");
        }
        proxy.set(Network::Intact);
        eventually("a look-up", async || find().await.ok()?.unwrap_or_default()).await;
        eventually("a change", async || fill("e").await.is_ok_and(|done| done.is_ok())).await;
    }
}

/// The transaction of a read that was cancelled is ended, wherever the cancellation met it.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
#[ignore = "needs PostgreSQL"]
async fn reads_that_the_server_cancels_do_not_harm_later_ones() {
    for prepared in [true, false] {
        let schema = Schema::new();
        let store = schema.options().prepared(prepared).connect().await.unwrap();
        let query = AuditQuery::new(org("acme"), AuditScope::OrgChanges);
        let mut readers = JoinSet::new();
        for _ in 0..4 {
            let (store, query) = (store.clone(), query.clone());
            readers.spawn(async move {
                loop {
                    drop(store.page(&query).await);
                }
            });
        }
        let cancel = format!(
            "SELECT count(*) FILTER (WHERE pg_cancel_backend(pid)) FROM pg_stat_activity \
             WHERE pid <> pg_backend_pid() AND state = 'active' \
             AND (query LIKE '%{}%' OR query LIKE 'BEGIN READ ONLY%')",
            schema.name
        );
        let (db, mut cancelled) = (schema.db().await, 0);
        while cancelled < 100 {
            cancelled += count(&db, &cancel).await;
        }
        // Its readers go on, so that no session is idle.
        let ok = async || store.page(&query).await.is_ok();
        eventually("they succeed again", async || ok().await && ok().await && ok().await).await;
        readers.shutdown().await;
    }
}
