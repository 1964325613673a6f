//! Files that cannot be opened are left unchanged.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::Permissions;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Barrier;
use std::time::Duration;
use std::{fs, thread};

use keygate::audit::{AuditQuery, AuditScope};
use keygate::error::SqliteOpenError;
use keygate::store::{OrgLimit, SqliteOptions};
use keygate::{AuditError, AuditLog, AuditSink, KeyStore, SqliteStore, StoreError};
use tempfile::TempDir;

use crate::files::{
    Immutable, LIMIT, at, chain, key, new_path, new_store, org, peer, peer_by, raw, request,
    this_program,
};
use crate::support::{capture_logs, logs, poll};

type Contents = BTreeMap<PathBuf, Vec<u8>>;

/// The exact content of a folder.
fn contents(folder: &Path) -> Contents {
    let read = |path: &Path| fs::read(path).unwrap_or_default(); // a folder has no bytes
    fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .map(|path| (path.clone(), read(&path)))
        .collect()
}

#[track_caller]
fn assert_same(before: &Contents, after: &Contents, error: &SqliteOpenError) {
    let names: BTreeSet<_> = before.keys().chain(after.keys()).collect();
    let changed: Vec<_> =
        names.iter().filter(|name| before.get(**name) != after.get(**name)).collect();
    assert!(changed.is_empty(), "{error}; but changed: {changed:?}");
}

/// Opening fails and changes nothing in the folder.
#[track_caller]
fn refused(path: &Path) -> SqliteOpenError {
    let folder = path.parent().unwrap();
    let before = contents(folder);
    let error = SqliteStore::open(path).expect_err("the file was opened");
    assert_same(&before, &contents(folder), &error);
    assert!(error.to_string().contains(path.to_str().unwrap()), "{error}");
    // What `main` prints if it returns the error.
    assert!(format!("{error:?}").starts_with(&error.to_string()), "{error:?}");
    error
}

/// A file with a hundred keys, closed.
fn full_file() -> (TempDir, PathBuf) {
    let (folder, path, store) = new_store();
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    for _ in 0..100 {
        runtime.block_on(store.insert(&key(&org("acme")), OrgLimit::NONE)).unwrap();
    }
    closed(folder, &path, store)
}

/// Closes the store and returns a copy of its file. The file itself may stay open for a
/// moment, and SQLite would reuse that descriptor, whatever the file's permissions are by
/// then.
fn closed(folder: TempDir, path: &Path, store: SqliteStore) -> (TempDir, PathBuf) {
    drop(store);
    poll("the store closes its file", || {
        (fs::read_dir(folder.path()).unwrap().count() == 1).then_some(())
    });
    let (other, copy) = new_path();
    fs::copy(path, &copy).unwrap();
    (other, copy)
}

#[test]
fn a_file_that_is_not_a_database_is_refused_and_unchanged() {
    let (_folder, path) = new_path();
    for bytes in [
        &b"\n"[..],
        b"ab",
        b"not a database, but someone's notes",
        &[0; 4096],
        &[0xFF; 100_000],
        b"SQLite format 3\0",
        b"SQLite format 3\0 followed by text that is not a database and is at least as long as the header, 100 bytes",
    ] {
        fs::write(&path, bytes).unwrap();
        let error = refused(&path);
        assert!(matches!(error, SqliteOpenError::NotKeygate { .. }), "{bytes:?}: {error:?}");
    }
}

#[test]
fn another_programs_database_is_refused_and_unchanged() {
    for setup in [
        "CREATE TABLE notes (text TEXT); INSERT INTO notes VALUES ('mine')",
        "PRAGMA journal_mode = WAL; CREATE TABLE notes (text TEXT)",
        "CREATE TABLE keys (id BLOB PRIMARY KEY)",
        "CREATE VIEW v AS SELECT 1",
        "PRAGMA application_id = 7",
        "PRAGMA user_version = 1",
        "PRAGMA user_version = 1; CREATE TABLE notes (text TEXT)",
    ] {
        let (_folder, path) = new_path();
        raw(&path).execute_batch(setup).unwrap();
        let error = refused(&path);
        assert!(matches!(error, SqliteOpenError::NotKeygate { .. }), "{setup}: {error:?}");
    }
}

#[test]
fn another_programs_database_in_use_is_refused_and_unchanged() {
    let (folder, path) = new_path();
    let other = raw(&path);
    other.execute_batch("PRAGMA journal_mode = WAL; CREATE TABLE notes (text TEXT)").unwrap();
    let mut before = contents(folder.path());
    let error = SqliteStore::open(&path).unwrap_err();
    assert!(matches!(error, SqliteOpenError::NotKeygate { .. }), "{error:?}");
    let mut after = contents(folder.path());
    // A reader registers in the shared memory.
    for contents in [&mut before, &mut after] {
        assert!(contents.insert(folder.path().join("keys.db-shm"), vec![]).is_some());
    }
    assert_same(&before, &after, &error);
    other.execute_batch("INSERT INTO notes VALUES ('still mine')").unwrap();
}

#[test]
fn a_truncated_or_overwritten_file_is_refused_and_unchanged() {
    let (_folder, path) = full_file();
    let whole = fs::read(&path).unwrap();
    let mut overwritten = whole.clone();
    overwritten[100..4096].fill(0xA5); // the schema
    let lengths = [2, 50, 99, 100, 1000, 4095, 4096, 5000, whole.len() / 2, whole.len() - 4096];
    for bytes in lengths.map(|length| &whole[..length]).into_iter().chain([&overwritten[..]]) {
        fs::write(&path, bytes).unwrap();
        let error = refused(&path);
        // The beginning of a file shows whether it is a database.
        let is_damage =
            matches!(error, SqliteOpenError::NotKeygate { .. } | SqliteOpenError::Damaged { .. });
        assert!(is_damage, "{} bytes: {error:?}", bytes.len());
    }
}

#[tokio::test]
async fn overwritten_pages_are_errors_and_never_wrong_answers() {
    let (folder, path, store) = new_store();
    let keys: Vec<_> = (0..100).map(|_| key(&org("acme"))).collect();
    for key in &keys {
        store.insert(key, OrgLimit::NONE).await.unwrap();
    }
    let (_folder, path) = closed(folder, &path, store);
    let mut bytes = fs::read(&path).unwrap();
    // All pages but those of the header and the schema.
    let db = raw(&path);
    let sql = "SELECT pageno FROM dbstat WHERE name <> 'sqlite_schema'";
    let mut pages = db.prepare(sql).unwrap();
    for page in pages.query_map([], |row| row.get::<_, i64>(0)).unwrap() {
        let end = page.unwrap() as usize * 4096;
        bytes[end - 4096..end].fill(0xA5);
    }
    drop(pages);
    drop(db);
    fs::write(&path, &bytes).unwrap();
    let error = refused(&path);
    assert!(matches!(error, SqliteOpenError::Damaged { .. }), "{error:?}");

    let store = SqliteOptions::new().check_within(Duration::ZERO).open(&path).unwrap();
    store.record_uses(&[]).await.unwrap();
    for key in &keys {
        let found = store.find_by_digest(&key.digest).await;
        assert!(matches!(found, Err(StoreError::Corrupt(_))), "{found:?}");
    }
    let inserted = store.insert(&key(&org("acme")), LIMIT).await;
    assert!(matches!(inserted, Err(StoreError::Corrupt(_))), "{inserted:?}");
}

#[tokio::test]
async fn a_damaged_page_is_reported_by_health_and_intact_pages_can_be_read() {
    let (folder, path, store) = new_store();
    let key = key(&org("acme"));
    store.insert(&key, LIMIT).await.unwrap();
    let records: Vec<_> = (0..2_000).map(|n| request(&key, at(n), n.cast_unsigned())).collect();
    store.record(&records).await.unwrap();
    let (_folder, path) = closed(folder, &path, store);
    let sql = "SELECT rootpage FROM sqlite_schema WHERE name = 'requests'";
    let page: i64 = raw(&path).query_row(sql, [], |row| row.get(0)).unwrap();
    let mut bytes = fs::read(&path).unwrap();
    let start = (page as usize - 1) * 4096;
    bytes[start..start + 4096].fill(0xA5);
    fs::write(&path, &bytes).unwrap();
    let error = refused(&path);
    assert!(matches!(error, SqliteOpenError::Damaged { .. }), "{error:?}");

    let store = SqliteOptions::new().check_within(Duration::ZERO).open(&path).unwrap();
    store.record_uses(&[]).await.unwrap();
    capture_logs();
    for _ in 0..3 {
        let page = store.page(&AuditQuery::new(org("acme"), AuditScope::KeyRequests(key.id))).await;
        assert!(matches!(page, Err(AuditError::Unavailable(_))), "{page:?}");
    }
    assert_eq!(logs().matches("is damaged").count(), 1, "{}", logs());
    for _ in 0..3 {
        let health = store.record_uses(&[]).await.unwrap_err();
        assert!(chain(&health).contains("damaged pages"), "{health:?}");
    }
    let found = store.find_by_digest(&key.digest).await.unwrap();
    assert_eq!(found.as_deref(), Some(&key));
    store.delete(&key.org, &key.id, None).await.unwrap();
}

#[test]
fn a_newer_schema_is_refused_and_unchanged() {
    let (_folder, path) = full_file();
    raw(&path).execute_batch("PRAGMA user_version = 99").unwrap();
    let error = refused(&path);
    assert!(matches!(error, SqliteOpenError::TooNew { found: 99, .. }), "{error:?}");
}

#[test]
fn wrong_urls_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let before = contents(folder.path());
    let inside = folder.path().display();
    for url in [
        format!("postgres://localhost{inside}/keys.db"),
        format!("sqlite:{inside}/keys.db?mode=rwc"),
        format!("file:{inside}/keys.db"),
        format!("mysql://{inside}/keys.db"),
        "sqlite:".to_owned(),
        "sqlite::memory:".to_owned(),
        ":memory:".to_owned(),
        String::new(),
    ] {
        let error = SqliteStore::open(&url).unwrap_err();
        assert!(matches!(error, SqliteOpenError::BadUrl { .. }), "{url}: {error:?}");
    }
    assert!(contents(folder.path()) == before);
}

#[test]
fn the_obstacle_to_opening_a_file_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let within = |name: &str| folder.path().join(name);
    fs::create_dir(within("folder")).unwrap();
    fs::write(within("file"), "text").unwrap();
    symlink(within("nowhere.db"), within("link")).unwrap();
    symlink(within("missing"), within("linked")).unwrap();
    for (path, in_the_way, what) in [
        ("folder", "folder", "is a folder, not a file"),
        ("missing/keys.db", "missing", "does not exist"),
        ("missing/deep/keys.db", "missing", "does not exist"),
        ("file/keys.db", "file", "is a file, not a folder"),
        ("file/deep/keys.db", "file", "is a file, not a folder"),
        ("link", "link", "is a link whose target does not exist"),
        ("linked/keys.db", "linked", "is a link whose target does not exist"),
    ] {
        let before = contents(folder.path());
        let error = SqliteStore::open(within(path)).unwrap_err();
        match &error {
            SqliteOpenError::BadPath { path: file, place, reason } => {
                assert_eq!((file, place), (&within(path), &within(in_the_way)), "{error}");
                assert_eq!(*reason, what, "{error}");
            }
            error => panic!("{path}: {error:?}"),
        }
        assert_same(&before, &contents(folder.path()), &error);
    }
    let error = SqliteStore::open("/dev/null").unwrap_err();
    assert!(error.to_string().contains("/dev/null is not a regular file"), "{error}");

    fs::create_dir(within("real")).unwrap();
    symlink(within("real"), within("to-real")).unwrap();
    SqliteStore::open(within("to-real/keys.db")).unwrap();
    symlink(within("real/keys.db"), within("to-file")).unwrap();
    SqliteStore::open(within("to-file")).unwrap();
}

/// The output of a process that opens the file without the privileges of root.
fn opened_within_its_rights(path: &Path) -> String {
    let mut program = Command::new("setpriv");
    program.args(["--bounding-set", "-dac_override,-dac_read_search"]);
    program.arg(this_program().get_program());
    let mut peer = peer_by(program, "open", path);
    assert_eq!(peer.says(), "ready");
    peer.order("go");
    peer.says()
}

#[test]
#[ignore = "needs root to give up a part of its rights"]
fn a_folder_without_permission_to_enter_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let locked = folder.path().join("locked");
    fs::create_dir_all(locked.join("deep")).unwrap();
    fs::set_permissions(&locked, Permissions::from_mode(0o000)).unwrap();
    let named = format!("{} is a folder that cannot be entered", locked.display());
    let message = opened_within_its_rights(&locked.join("deep/keys.db"));
    assert!(message.contains(&named), "{message}");
    fs::set_permissions(&locked, Permissions::from_mode(0o500)).unwrap();
    let message = opened_within_its_rights(&locked.join("keys.db"));
    assert!(message.contains("check the permissions of the file and its folder"), "{message}");
    fs::set_permissions(&locked, Permissions::from_mode(0o700)).unwrap();
}

#[test]
#[ignore = "needs root and a file system with `chattr +i`"]
fn a_read_only_file_or_folder_is_refused_and_unchanged() {
    let (folder, path) = full_file();
    let immutable = Immutable::make(&path);
    let error = refused(&path);
    assert!(matches!(error, SqliteOpenError::ReadOnly { .. }), "{error:?}");
    drop(immutable);
    let immutable = Immutable::make(folder.path());
    let error = refused(&folder.path().join("new.db"));
    assert!(matches!(error, SqliteOpenError::ReadOnly { .. }), "{error:?}");
    drop(immutable);
    SqliteStore::open(&path).unwrap();
}

#[tokio::test]
async fn an_empty_file_becomes_a_database_and_a_url_works_like_a_path() {
    let (_folder, path) = new_path();
    fs::write(&path, b"").unwrap();
    let key = key(&org("acme"));
    SqliteStore::open(&path).unwrap().insert(&key, LIMIT).await.unwrap();
    for scheme in ["sqlite:", "sqlite://"] {
        let store = SqliteStore::open(format!("{scheme}{}", path.display())).unwrap();
        assert_eq!(store.get(&key.org, &key.id).await.unwrap().as_deref(), Some(&key));
    }
}

#[tokio::test]
async fn only_the_owner_can_read_a_new_file_and_its_companions() {
    let (folder, _path, store) = new_store();
    store.insert(&key(&org("acme")), LIMIT).await.unwrap();
    let files: Vec<_> = fs::read_dir(folder.path()).unwrap().map(|file| file.unwrap()).collect();
    assert_eq!(files.len(), 3, "{files:?}");
    for file in files {
        let mode = file.metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{file:?}");
    }
}

#[test]
fn files_readable_by_other_users_cause_a_warning() {
    let (_folder, path, store) = new_store();
    for (file, mode) in [("keys.db", 0o640), ("keys.db-wal", 0o604), ("keys.db-shm", 0o660)] {
        capture_logs();
        let again = SqliteStore::open(&path).unwrap();
        assert!(!logs().contains("other users"), "{}", logs());
        let file = path.with_file_name(file);
        fs::set_permissions(&file, Permissions::from_mode(mode)).unwrap();
        let third = SqliteStore::open(&path).unwrap();
        let warning = format!(
            "{} can be read by other users of this machine (mode {mode:03o})",
            file.display()
        );
        assert_eq!(logs().matches(&warning).count(), 1, "{}", logs());
        assert_eq!(logs().matches("other users").count(), 1, "{}", logs());
        fs::set_permissions(&file, Permissions::from_mode(0o600)).unwrap();
        drop((again, third));
    }
    drop(store);
}

#[test]
fn concurrent_threads_all_open_a_new_file() {
    for round in 0..100 {
        let (_folder, path) = new_path();
        let start = Barrier::new(8);
        thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    start.wait();
                    let opened = SqliteStore::open(&path);
                    assert!(opened.is_ok(), "round {round}: {opened:?}");
                });
            }
        });
    }
}

#[test]
fn concurrent_processes_all_open_a_new_file() {
    for round in 0..5 {
        let (_folder, path) = new_path();
        let mut peers: Vec<_> = (0..6).map(|_| peer("open", &path)).collect();
        for peer in &mut peers {
            assert_eq!(peer.says(), "ready");
        }
        for peer in &mut peers {
            peer.order("go");
        }
        for mut peer in peers {
            assert_eq!(peer.says(), "Ok(())", "round {round}");
            peer.end();
        }
        let keys: i64 =
            raw(&path).query_row("SELECT count(*) FROM keys", [], |row| row.get(0)).unwrap();
        assert_eq!(keys, 6);
    }
}
