//! Manually edited rows: an error that names the column, and never an admission.

use std::path::Path;

use keygate::audit::{AuditEvent, AuditQuery, AuditScope, ChangeAction, ChangePhase, Outcome};
use keygate::manager::IssuedKey;
use keygate::{
    Actor, AuditError, AuditLog, AuditSink, Denial, KeyId, KeyManager, KeyStore, ManageError,
    NewKey, SqliteStore, StoreError, VerifyError,
};
use rusqlite::types::Value;

use crate::files::{at, chain, change, key, new_store, org, raw, request};

fn blob(bytes: &[u8]) -> Value {
    Value::Blob(bytes.to_vec())
}

fn text(text: &str) -> Value {
    Value::Text(text.to_owned())
}

async fn issue(keys: &KeyManager, org_name: &str) -> IssuedKey {
    let actor = Actor::new(org(org_name), "ada");
    let new = NewKey::named("key").unwrap().allow(["10.0.0.0/8"]).unwrap();
    keys.create(&actor, new).await.unwrap()
}

fn reopened(path: &Path) -> (SqliteStore, KeyManager) {
    let store = SqliteStore::open(path).unwrap();
    (store.clone(), KeyManager::builder(store).build().unwrap())
}

/// Edits the row of a key in that table and column of keys.
fn edit(path: &Path, (table, id_column): (&str, &str), id: KeyId, column: &str, value: &Value) {
    let sql = format!("UPDATE {table} SET {column} = ?1 WHERE {id_column} = ?2");
    assert_eq!(raw(path).execute(&sql, (value, id.to_bytes())).unwrap(), 1);
}

fn assert_corrupt<T: std::fmt::Debug>(result: Result<T, StoreError>, column: &str) {
    match result {
        Err(error @ StoreError::Corrupt(_)) => {
            let message = chain(&error);
            assert!(message.contains(&format!("column {column} ")), "{column}: {message}");
        }
        other => panic!("{column}: {other:?}"),
    }
}

#[tokio::test]
async fn a_damaged_column_is_named_in_the_error_and_never_admits() {
    let inside = Some("10.0.0.1".parse().unwrap());
    for (column, value) in [
        ("status", text("paused")),
        ("status", text("Active")),
        ("status", text("")),
        ("status", text("active ")),
        ("name", text("two\nlines")),
        ("name", text("x\u{202e}y")),
        ("name", text("")),
        ("name", text(&"n".repeat(101))),
        ("created_at", Value::Integer(i64::MAX)),
        ("created_at", Value::Integer(i64::MIN)),
        ("expires_at", Value::Integer(i64::MAX)),
        ("rotated_at", Value::Integer(i64::MIN)),
        ("last_used_at", Value::Integer(253_402_300_800_000_000)),
        ("attributes", text("")),
        ("attributes", text("[]")),
        ("attributes", text("{\"created_by\":7}")),
        ("previous_digest", Value::Blob(vec![1; 31])),
        ("previous_until", Value::Integer(1)),
        ("revision", Value::Integer(-1)),
        ("revision", Value::Integer(1 << 32)),
    ] {
        let (_folder, path, store) = new_store();
        let keys = KeyManager::builder(store.clone()).build().unwrap();
        let (damaged, whole) = (issue(&keys, "acme").await, issue(&keys, "acme").await);
        let elsewhere = issue(&keys, "other").await;
        assert!(keys.verify(damaged.secret.expose_secret(), inside).await.is_ok());
        edit(&path, ("keys", "id"), damaged.key.id, column, &value);
        // A use is not a change, after which a store reads again what it has kept.
        let (store, keys) = if column == "last_used_at" { reopened(&path) } else { (store, keys) };

        let IssuedKey { key, secret } = damaged;
        assert_corrupt(store.find_by_digest(&key.digest).await, column);
        assert_corrupt(store.get(&key.org, &key.id).await, column);
        // Without the row the list would look complete.
        assert_corrupt(store.list(&key.org).await, column);
        let verified = keys.verify(secret.expose_secret(), inside).await;
        assert!(matches!(verified, Err(VerifyError::Unavailable(_))), "{column}: {verified:?}");

        for issued in [&whole, &elsewhere] {
            let verified = keys.verify(issued.secret.expose_secret(), inside).await.unwrap();
            assert_eq!(verified.id(), issued.key.id);
            assert!(keys.get(&issued.key.org, &issued.key.id).await.is_ok());
        }
        assert_eq!(keys.list(&elsewhere.key.org).await.unwrap().len(), 1);
        // The key can be deleted.
        store.delete(&key.org, &key.id, None).await.unwrap();
        assert_eq!(keys.list(&key.org).await.unwrap().len(), 1);
    }
}

#[tokio::test]
async fn a_damaged_id_digest_or_organisation_is_named_in_the_error() {
    for (column, value) in [
        ("digest", blob(&[0; 32])),
        ("digest", blob(&[1; 31])),
        ("digest", blob(&[1; 33])),
        ("digest", blob(&[])),
        ("id", blob(&[1; 15])),
        ("id", blob(&[])),
    ] {
        let (_folder, path, store) = new_store();
        let keys = KeyManager::builder(store.clone()).build().unwrap();
        let (damaged, whole) = (issue(&keys, "acme").await, issue(&keys, "other").await);
        edit(&path, ("keys", "id"), damaged.key.id, column, &value);
        assert_corrupt(store.list(&damaged.key.org).await, column);
        let inside = Some("10.0.0.1".parse().unwrap());
        let verified = keys.verify(damaged.secret.expose_secret(), inside).await;
        assert!(verified.is_err(), "{column}: {verified:?}");
        if column == "digest" {
            assert_corrupt(store.get(&damaged.key.org, &damaged.key.id).await, column);
            assert!(matches!(verified, Err(VerifyError::Unknown)), "{verified:?}");
        }
        assert!(keys.verify(whole.secret.expose_secret(), inside).await.is_ok());
    }

    let (_folder, path, store) = new_store();
    let keys = KeyManager::builder(store.clone()).build().unwrap();
    let IssuedKey { key, .. } = issue(&keys, "acme").await;
    for name in ["", "two\nlines", &"n".repeat(300)] {
        raw(&path).execute("UPDATE keys SET org = ?1", [name]).unwrap();
        assert_corrupt(store.find_by_digest(&key.digest).await, "org");
    }
}

#[tokio::test]
async fn case_17_a_row_with_an_unreadable_allowlist_is_listed_and_refused() {
    let (_folder, path, store) = new_store();
    let keys = KeyManager::builder(store.clone()).build().unwrap();
    let (damaged, whole) = (issue(&keys, "acme").await, issue(&keys, "acme").await);
    for list in [
        "nonsense\n",
        "10.0.0.0/8\nnonsense\n",
        "10.0.0.0/8 10.0.0.0/9\n",
        "10.0.0.0/33",
        "\n",
        "\n\n",
        "\\",
        "\\n",
        "[]",
        "null",
        "10.0.0.0/8\n\n",
        "\0",
    ] {
        edit(&path, ("keys", "id"), damaged.key.id, "allowlist", &text(list));
        for ip in ["10.0.0.1", "0.0.0.0", "192.0.2.1", "::1"] {
            for ip in [Some(ip.parse().unwrap()), None] {
                match keys.verify(damaged.secret.expose_secret(), ip).await {
                    Err(VerifyError::Denied { denial: Denial::AllowlistUnreadable, .. }) => {}
                    other => panic!("{list:?} {ip:?}: {other:?}"),
                }
            }
        }
        let listed = keys.list(&damaged.key.org).await.unwrap();
        assert_eq!(listed.len(), 2);
        let shown = listed.iter().find(|key| key.id == damaged.key.id).unwrap();
        assert!(!shown.allowlist.is_readable() && !shown.allowlist.is_empty(), "{list:?}");
        let inside = Some("10.0.0.1".parse().unwrap());
        assert!(keys.verify(whole.secret.expose_secret(), inside).await.is_ok());
    }
}

/// A later version may have written it, and the other records are still useful.
#[tokio::test]
async fn an_unknown_stored_name_is_shown_as_unknown() {
    let (_folder, path, store) = new_store();
    let key = key(&org("acme"));
    let records = [request(&key, at(1), 1), request(&key, at(2), 2), change(&key, at(3), 3)];
    store.record(&records).await.unwrap();
    let unknown = "UPDATE recent_0 SET outcome = 'quarantined' WHERE at = (SELECT min(at) FROM recent_0); \
                   UPDATE changes SET action = 'adopted', phase = 'planned'";
    raw(&path).execute_batch(unknown).unwrap();
    let page =
        async |scope| store.page(&AuditQuery::new(org("acme"), scope)).await.unwrap().records;
    let [known, later] = &page(AuditScope::KeyRequests(key.id)).await[..] else { panic!() };
    assert_eq!(*known, records[1]);
    let AuditEvent::Request(event) = &later.event else { panic!("{later:?}") };
    assert_eq!(event.outcome, Outcome::Unknown);
    let [change] = &page(AuditScope::KeyChanges(key.id)).await[..] else { panic!() };
    let AuditEvent::Change(event) = &change.event else { panic!("{change:?}") };
    assert_eq!((event.action, event.phase), (ChangeAction::Unknown, ChangePhase::Unknown));
}

#[tokio::test]
async fn a_damaged_audit_row_is_named_in_the_error() {
    for (table, column, value) in [
        ("changes", "at", Value::Integer(i64::MAX)),
        ("changes", "id", blob(&[1; 15])),
        ("recent_0", "ip", text("10.0.0.256")),
        ("recent_0", "country", text("Germany")),
        ("recent_0", "status", Value::Integer(65_536)),
        ("recent_0", "at", Value::Integer(i64::MIN)),
    ] {
        let (_folder, path, store) = new_store();
        let (damaged, whole) = (key(&org("acme")), key(&org("acme")));
        let record = |key| match table {
            "changes" => change(key, at(1), 1),
            _ => request(key, at(1), 1),
        };
        store.record(&[record(&damaged), record(&whole)]).await.unwrap();
        edit(&path, (table, "key"), damaged.id, column, &value);
        let scope = |id| match table {
            "changes" => AuditScope::KeyChanges(id),
            _ => AuditScope::KeyRequests(id),
        };
        let query = |id| AuditQuery::new(org("acme"), scope(id));
        match store.page(&query(damaged.id)).await {
            Err(error @ AuditError::Rejected(_)) => {
                let message = chain(&error);
                assert!(message.contains(&format!("column {column} ")), "{table}: {message}");
            }
            other => panic!("{table}.{column}: {other:?}"),
        }
        assert_eq!(store.page(&query(whole.id)).await.unwrap().records.len(), 1);
        let keys = KeyManager::builder(store.clone()).audit(store).build().unwrap();
        let page = keys.audit_page(&query(damaged.id)).await.unwrap();
        assert!(matches!(page, Err(ManageError::Unavailable(_))), "{page:?}");
    }
}
