//! The conformance suite on the stores of this crate, and on itself.
#![cfg(feature = "conformance")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test may fail")]

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use keygate::conformance::{
    self, Property, TwoHandles, audit_log_properties, check_audit_log, check_export, check_store,
    export_properties, store_properties,
};
use keygate::{
    ApiKey, KeyDigest, KeyId, KeyStore, KeyUse, MemoryAuditLog, MemoryStore, OrgId, OrgLimit,
    Revision, StoreError,
};

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn memory_store_conforms() {
    let report = check_store(|| async { MemoryStore::new() }).await.unwrap();
    assert_eq!(report.passed().len(), store_properties().len());
    let report = check_export(|| async { MemoryStore::new() }).await.unwrap();
    assert_eq!(report.passed().len(), export_properties().len());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn memory_audit_log_conforms() {
    let report = check_audit_log(|| async { MemoryAuditLog::new() }).await.unwrap();
    assert_eq!(report.passed().len(), audit_log_properties().len());
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

/// A database on a busy machine: what it was sent it does after a while, whether its
/// caller is still there or not.
#[derive(Debug, Default)]
struct Late(Arc<MemoryStore>);

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
impl KeyStore for Late {
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
async fn what_was_dropped_may_take_place_after_the_next_call_was_made() {
    use conformance::calls::*;
    a_dropped_insert_does_no_harm(Arc::new(Late::default())).await.unwrap();
    a_dropped_replace_does_no_harm(Arc::new(Late::default())).await.unwrap();
    a_dropped_delete_does_no_harm(Arc::new(Late::default())).await.unwrap();
}

#[tokio::test]
async fn a_runtime_on_which_nothing_races_is_refused() {
    let violations = check_store(|| async { MemoryStore::new() }).await.unwrap_err();
    let text = format!("{violations:?}");
    assert!(text.contains("found:    a current-thread runtime"), "{text}");
    let store: Arc<dyn KeyStore> = Arc::new(MemoryStore::new());
    let race = conformance::use_races::a_use_does_not_undo_a_revocation(store);
    assert_eq!(race.await.unwrap_err().found(), "a current-thread runtime");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_runtime_with_one_worker_is_refused() {
    let violations = check_audit_log(|| async { MemoryAuditLog::new() }).await.unwrap_err();
    let (property, violation) = violations.iter().next().unwrap();
    assert_eq!((property, violation.found()), ("runtime", "a runtime with 1 worker"));
}

#[test]
fn the_suite_is_large_and_no_name_occurs_twice() {
    let names: BTreeSet<&str> = store_properties().iter().map(Property::name).collect();
    assert_eq!(names.len(), store_properties().len());
    assert!(names.len() >= 40);
    let names: BTreeSet<&str> = audit_log_properties().iter().map(Property::name).collect();
    assert_eq!(names.len(), audit_log_properties().len());
    assert!(names.len() >= 12);
}

/// A property that is written but not listed would never be checked.
#[test]
fn every_public_function_of_the_suite_is_listed() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/store/conformance");
    assert_eq!(functions_in(&folder, "", "KeyStore"), names(store_properties()));
    assert_eq!(functions_in(&folder, "", "StoreAndExport"), names(export_properties()));
    let audit = functions_in(&folder.join("audit"), "audit::", "SinkAndLog");
    assert_eq!(audit, names(audit_log_properties()));
}

fn names<S: ?Sized + Send + Sync + 'static>(properties: &[Property<S>]) -> BTreeSet<String> {
    properties.iter().map(|property| property.name().to_owned()).collect()
}

fn functions_in(folder: &Path, parent: &str, subject: &str) -> BTreeSet<String> {
    let mut functions = BTreeSet::new();
    for file in fs::read_dir(folder).unwrap() {
        let path = file.unwrap().path();
        if path.extension().is_none_or(|extension| extension != "rs") {
            continue;
        }
        let module = path.file_stem().unwrap().to_str().unwrap();
        let text = fs::read_to_string(&path).unwrap();
        for function in text.split("\npub async fn ").skip(1) {
            let (name, rest) = function.split_once('(').unwrap();
            let (parameters, _) = rest.split_once(')').unwrap();
            if parameters.contains(&format!("Arc<dyn {subject}>")) {
                functions.insert(format!("{parent}{module}::{name}"));
            }
        }
    }
    functions
}
