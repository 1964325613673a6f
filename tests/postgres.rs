//! `PostgresStore` on a real server: `cargo test --features postgres,conformance
//! --test postgres -- --ignored`.
#![cfg(all(feature = "postgres", feature = "conformance"))]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::print_stdout,
    reason = "tests"
)]

mod postgres_support;

#[path = "postgres_support/connections.rs"]
mod connections;
#[path = "postgres_support/large.rs"]
mod large;
#[path = "postgres_support/locked.rs"]
mod locked;
#[path = "postgres_support/opening.rs"]
mod opening;
#[path = "postgres_support/proxy.rs"]
mod proxy;
#[path = "postgres_support/purging.rs"]
mod purging;
#[path = "postgres_support/races.rs"]
mod races;
#[path = "postgres_support/turns.rs"]
mod turns;

use keygate::audit::{AuditQuery, AuditScope};
use keygate::conformance::{self, TwoHandles};
use keygate::store::OrgLimit;
use keygate::{Allowlist, ApiKey, AuditLog, AuditSink, KeyStore};

use crate::postgres_support::{change, in_schema, key};

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
#[ignore = "needs PostgreSQL"]
async fn the_store_conforms() {
    in_schema(|options| async move {
        let store = options.connect().await.unwrap();
        conformance::check_store(|| async { store.clone() }).await.unwrap();
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
#[ignore = "needs PostgreSQL"]
async fn the_store_conforms_without_prepared_statements() {
    in_schema(|options| async move {
        let store = options.prepared(false).connections(1).connect().await.unwrap();
        conformance::check_store(|| async { store.clone() }).await.unwrap();
        conformance::check_audit_log(|| async { store.clone() }).await.unwrap();
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
#[ignore = "needs PostgreSQL"]
async fn two_stores_on_one_schema_conform_together() {
    in_schema(|options| async move {
        let (a, b) = (options.clone().connect().await.unwrap(), options.connect().await.unwrap());
        conformance::check_store(|| async { TwoHandles::new(a.clone(), b.clone()) }).await.unwrap();
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
#[ignore = "needs PostgreSQL"]
async fn a_reconnected_schema_conforms() {
    in_schema(|options| async move {
        let connect = || async { options.clone().connect().await.unwrap() };
        conformance::check_reopened_store(connect).await.unwrap();
        conformance::check_reopened_audit_log(connect).await.unwrap();
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
#[ignore = "needs PostgreSQL"]
async fn the_audit_log_conforms() {
    in_schema(|options| async move {
        let store = options.connect().await.unwrap();
        conformance::check_audit_log(|| async { store.clone() }).await.unwrap();
    })
    .await;
}

#[tokio::test]
#[ignore = "needs PostgreSQL"]
async fn texts_with_nul_round_trip() {
    in_schema(|options| async move {
        let store = options.connect().await.unwrap();
        let record = change(1, "a\0b\u{FDD0}0\u{FDD0}c");
        store.record(std::slice::from_ref(&record)).await.unwrap();
        let query = AuditQuery::new(record.org.clone(), AuditScope::OrgChanges);
        assert_eq!(store.page(&query).await.unwrap().records, [record]);
        let key = ApiKey {
            key_prefix: "a\0b".to_owned(),
            allowlist: Allowlist::restore(["10.0.0.1\0", "\0"]),
            ..key(1)
        };
        store.insert(&key, OrgLimit::NONE).await.unwrap();
        let found = store.find_by_digest(&key.digest).await.unwrap().unwrap();
        assert_eq!(*found, key);
        assert!(!found.allowlist.is_readable());
    })
    .await;
}
