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
mod partitions;
#[allow(dead_code, reason = "other tests use the rest")]
#[path = "../postgres_support/mod.rs"]
mod postgres_support;
#[path = "../postgres_support/proxy.rs"]
mod proxy;
mod purging;
mod races;
mod recording;
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
use keygate::store::{KeyDigest, KeyImport, OrgLimit, PreviousSecret};
use keygate::{Allowlist, ApiKey, AuditLog, AuditSink, KeyName, KeyStore, StoreError, Timestamp};

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
        conformance::check_search(|| async { store.clone() }).await.unwrap();
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
async fn an_import_that_fails_after_its_first_key_is_in_doubt() {
    let schema = Schema::new();
    let store = schema.store().await;
    let refuse = "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS \
                  $$ BEGIN RAISE 'not today'; END $$; CREATE TRIGGER refuse AFTER INSERT ON keys \
                  FOR EACH ROW WHEN (NEW.name = 'refused') EXECUTE FUNCTION refuse()";
    schema.db().await.batch_execute(refuse).await.unwrap();
    let previous = PreviousSecret { digest: KeyDigest::of("old"), until: Timestamp::MAX };
    let first = ApiKey { previous: Some(previous), ..key(1) };
    store.insert(&first, OrgLimit::NONE).await.unwrap();
    // Since this digest is taken, the keys are inserted one by one.
    let taken = ApiKey { digest: previous.digest, ..key(2) };
    let refused = ApiKey { name: KeyName::new("refused").unwrap(), ..key(3) };
    let nothing = store.insert_all(&[taken.clone(), refused.clone()]).await;
    assert!(!matches!(nothing, Ok(_) | Err(StoreError::InDoubt(_))), "{nothing:?}");
    let some = store.insert_all(&[key(4), taken, refused]).await;
    assert!(matches!(some, Err(StoreError::InDoubt(_))), "{some:?}");
    assert!(store.get(&key(4).org, &key(4).id).await.unwrap().is_some());
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
