//! The conformance suite, run on the stores of this crate and on broken ones.
#![cfg(feature = "conformance")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a test may fail"
)]

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use keygate::conformance::{
    Report, TwoHandles, check_audit_log, check_export, check_import, check_reopened_audit_log,
    check_reopened_store, check_store, only,
};
use keygate::store::{KeyDigest, KeyUse, OrgLimit, Revision};
use keygate::{ApiKey, KeyId, KeyStore, MemoryAuditLog, MemoryStore, OrgId, StoreError};

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn memory_store_conforms() {
    let report = check_store(|| async { MemoryStore::new() }).await.unwrap();
    names_are_distinct(&report, 90);
    let report = check_export(|| async { MemoryStore::new() }).await.unwrap();
    names_are_distinct(&report, 8);
    let report = check_import(|| async { MemoryStore::new() }).await.unwrap();
    names_are_distinct(&report, 11);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn memory_audit_log_conforms() {
    let report = check_audit_log(|| async { MemoryAuditLog::new() }).await.unwrap();
    names_are_distinct(&report, 39);
}

fn names_are_distinct(report: &Report, at_least: usize) {
    let names: BTreeSet<&str> = report.passed().map(|(name, _)| name).collect();
    assert_eq!(names.len(), report.passed().len());
    assert!(names.len() >= at_least, "{}", names.len());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_store_that_loses_everything_when_reopened_fails() {
    let violations = check_reopened_store(|| async { MemoryStore::new() }).await.unwrap_err();
    assert!(violations.iter().any(|(name, _)| name == "reopened::every_field_comes_back"));
    let violations =
        check_reopened_audit_log(|| async { MemoryAuditLog::new() }).await.unwrap_err();
    assert!(violations.iter().any(|(name, _)| name == "audit::reopened::every_field_comes_back"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_store_that_stays_open_conforms_after_reopening() {
    let store = Arc::new(MemoryStore::new());
    check_reopened_store(|| async { Arc::clone(&store) }).await.unwrap();
    let log = Arc::new(MemoryAuditLog::new());
    check_reopened_audit_log(|| async { Arc::clone(&log) }).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_report_names_the_properties_that_hold() {
    let names = vec!["uses::a_use_shows", "insert::a_taken_id_is_a_conflict"];
    let report = only(names, check_store(|| async { MemoryStore::new() })).await.unwrap();
    let text = report.to_string();
    let lines: Vec<&str> = text.lines().collect();
    assert!(lines[0].starts_with("2 properties hold, checked in "), "{text}");
    assert_eq!(lines[1..], ["insert::a_taken_id_is_a_conflict", "uses::a_use_shows"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn one_store_conforms_to_two_runs_at_once_through_two_handles() {
    let store: Arc<dyn KeyStore> = Arc::new(MemoryStore::new());
    let handles = || async { TwoHandles::new(Arc::clone(&store), Arc::clone(&store)) };
    let (a, b) = tokio::join!(check_store(handles), check_store(handles));
    a.unwrap();
    b.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn one_log_conforms_to_two_runs_at_once_through_two_handles() {
    let log = Arc::new(MemoryAuditLog::new());
    let handles = || async { TwoHandles::new(Arc::clone(&log), Arc::clone(&log)) };
    let (a, b) = tokio::join!(check_audit_log(handles), check_audit_log(handles));
    a.unwrap();
    b.unwrap();
}

/// A database on a busy machine: it makes a change some time after the call, even if the
/// caller has given up.
#[derive(Debug, Default)]
struct LateStore(Arc<MemoryStore>);

async fn late(
    change: impl Future<Output = Result<(), StoreError>> + Send + 'static,
) -> Result<(), StoreError> {
    let change = async {
        tokio::time::sleep(Duration::from_millis(60)).await;
        change.await
    };
    tokio::spawn(change).await.unwrap()
}

#[async_trait]
impl KeyStore for LateStore {
    async fn insert(&self, key: &ApiKey, limit: OrgLimit) -> Result<(), StoreError> {
        let (store, key) = (Arc::clone(&self.0), key.clone());
        late(async move { store.insert(&key, limit).await }).await
    }

    async fn find_by_digest(&self, digest: &KeyDigest) -> Result<Option<Arc<ApiKey>>, StoreError> {
        self.0.find_by_digest(digest).await
    }

    async fn get(&self, org: &OrgId, id: &KeyId) -> Result<Option<Arc<ApiKey>>, StoreError> {
        self.0.get(org, id).await
    }

    async fn list(&self, org: &OrgId) -> Result<Vec<Arc<ApiKey>>, StoreError> {
        self.0.list(org).await
    }

    async fn replace(&self, key: &ApiKey, expected: Revision) -> Result<(), StoreError> {
        let (store, key) = (Arc::clone(&self.0), key.clone());
        late(async move { store.replace(&key, expected).await }).await
    }

    async fn delete(
        &self,
        org: &OrgId,
        id: &KeyId,
        expected: Option<Revision>,
    ) -> Result<(), StoreError> {
        let (store, org, id) = (Arc::clone(&self.0), org.clone(), *id);
        late(async move { store.delete(&org, &id, expected).await }).await
    }

    async fn record_uses(&self, uses: &[KeyUse]) -> Result<(), StoreError> {
        self.0.record_uses(uses).await
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_dropped_call_may_take_effect_after_a_later_call() {
    let names = vec![
        "calls::a_dropped_insert_does_no_harm",
        "calls::a_dropped_replace_does_no_harm",
        "calls::a_dropped_delete_does_no_harm",
    ];
    let report = only(names, check_store(|| async { LateStore::default() })).await.unwrap();
    assert_eq!(report.passed().len(), 3);
}

#[tokio::test]
async fn a_single_threaded_runtime_is_refused() {
    let violations = check_store(|| async { MemoryStore::new() }).await.unwrap_err();
    let text = format!("{violations:?}");
    assert!(text.contains("found:    a current-thread runtime"), "{text}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_runtime_with_one_worker_is_refused() {
    let violations = check_audit_log(|| async { MemoryAuditLog::new() }).await.unwrap_err();
    let (property, violation) = violations.iter().next().unwrap();
    assert_eq!((property, violation.found()), ("runtime", "a runtime with 1 worker"));
}
