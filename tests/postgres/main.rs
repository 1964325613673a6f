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

mod connections;
mod large;
mod locked;
mod neighbours;
mod opening;
#[allow(dead_code, reason = "other tests use the rest")]
#[path = "../postgres_support/mod.rs"]
mod postgres_support;
#[path = "../postgres_support/proxy.rs"]
mod proxy;
mod purging;
mod races;
#[path = "../postgres_support/sessions.rs"]
mod sessions;
#[path = "../support/mod.rs"]
mod support;
mod turns;

use keygate::audit::{
    AuditEvent, AuditId, AuditQuery, AuditRecord, AuditScope, ChangeAction, ChangeEvent,
    ChangePhase,
};
use keygate::conformance::{self, TwoHandles};
use keygate::store::OrgLimit;
use keygate::{Allowlist, ApiKey, AuditLog, AuditSink, KeyStore, Timestamp};

use crate::postgres_support::{Schema, key};

fn change(actor: &str) -> AuditRecord {
    let change = ChangeEvent::new(actor, ChangeAction::Created, ChangePhase::Begun);
    AuditRecord {
        id: AuditId::from_bytes([7; 16]),
        at: Timestamp::from_unix_micros(7).unwrap(),
        org: key(1).org,
        key: key(1).id,
        event: AuditEvent::Change(change),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
#[ignore = "needs PostgreSQL"]
async fn the_store_conforms_with_and_without_prepared_statements() {
    let schema = Schema::new();
    for options in [schema.options(), schema.options().prepared(false).connections(1)] {
        let store = options.connect().await.unwrap();
        conformance::check_store(|| async { store.clone() }).await.unwrap();
        conformance::check_audit_log(|| async { store.clone() }).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
#[ignore = "needs PostgreSQL"]
async fn two_stores_on_one_schema_conform_together() {
    let schema = Schema::new();
    let (a, b) = (schema.store().await, schema.store().await);
    conformance::check_store(|| async { TwoHandles::new(a.clone(), b.clone()) }).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
#[ignore = "needs PostgreSQL"]
async fn a_reconnected_schema_conforms() {
    let schema = Schema::new();
    conformance::check_reopened_store(|| schema.store()).await.unwrap();
    conformance::check_reopened_audit_log(|| schema.store()).await.unwrap();
}

#[tokio::test]
#[ignore = "needs PostgreSQL"]
async fn texts_with_nul_round_trip() {
    let schema = Schema::new();
    let store = schema.store().await;
    let record = change("a\0b\u{FDD0}0\u{FDD0}c");
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
}
