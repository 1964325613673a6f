//! The conformance suite on the stores in memory, its reports and its demands on the runtime.
#![cfg(feature = "conformance")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a test may fail"
)]

use std::sync::Arc;

use keygate::conformance::{
    TwoHandles, check_audit_log, check_export, check_import, check_search, check_store, only,
};
use keygate::{KeyStore, MemoryAuditLog, MemoryStore};

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn memory_store_conforms() {
    check_store(|| async { MemoryStore::new() }).await.unwrap();
    check_export(|| async { MemoryStore::new() }).await.unwrap();
    check_import(|| async { MemoryStore::new() }).await.unwrap();
    check_search(|| async { MemoryStore::new() }).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn memory_audit_log_conforms() {
    check_audit_log(|| async { MemoryAuditLog::new() }).await.unwrap();
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
async fn a_store_and_a_log_conform_to_two_runs_at_once_through_two_handles() {
    let store: Arc<dyn KeyStore> = Arc::new(MemoryStore::new());
    let handles = || async { TwoHandles::new(Arc::clone(&store), Arc::clone(&store)) };
    let (a, b) = tokio::join!(check_store(handles), check_store(handles));
    a.unwrap();
    b.unwrap();
    let log = Arc::new(MemoryAuditLog::new());
    let handles = || async { TwoHandles::new(Arc::clone(&log), Arc::clone(&log)) };
    let (a, b) = tokio::join!(check_audit_log(handles), check_audit_log(handles));
    a.unwrap();
    b.unwrap();
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
