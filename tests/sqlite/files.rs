//! Helpers of the SQLite tests: keys, records, raw connections, and other processes on the same file.

#[path = "../support/peer.rs"]
mod peer;

use std::error::Error;
use std::ffi::OsStr;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, io};

use getrandom::SysRng;
use keygate::audit::{
    AuditEvent, AuditId, AuditRecord, ChangeAction, ChangeEvent, ChangePhase, Outcome, RequestEvent,
};
use keygate::store::{KeyDigest, OrgLimit};
use keygate::{ApiKey, KeyId, KeyName, KeyStore, OrgId, SqliteStore, Timestamp};
use rusqlite::Connection;
use tempfile::TempDir;

pub(crate) use self::peer::{Peer, this_program};
pub(crate) use crate::support::org;

pub(crate) const LIMIT: OrgLimit = OrgLimit::at_most(20);

/// A new file in its own folder, which is deleted with the first value.
pub(crate) fn new_store() -> (TempDir, PathBuf, SqliteStore) {
    let (folder, path) = new_path();
    let store = SqliteStore::open(&path).unwrap();
    (folder, path, store)
}

/// Where a new file may be created, in its own folder.
pub(crate) fn new_path() -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("keys.db");
    (folder, path)
}

/// A connection outside of keygate.
pub(crate) fn raw(path: &Path) -> Connection {
    Connection::open(path).unwrap()
}

pub(crate) fn at(micros: i64) -> Timestamp {
    Timestamp::from_unix_micros(1_769_860_800_000_000 + micros).unwrap()
}

/// A key that is in no store.
pub(crate) fn key(org: &OrgId) -> ApiKey {
    let id = KeyId::random(&mut SysRng).unwrap();
    ApiKey {
        id,
        org: org.clone(),
        name: KeyName::new("Ключ 👩‍💻").unwrap(),
        digest: KeyDigest::of(id.to_bytes()),
        created_at: at(1),
        expires_at: Some(at(86_400_000_000)),
        ..ApiKey::sample(0)
    }
}

pub(crate) fn change(key: &ApiKey, at: Timestamp, number: u64) -> AuditRecord {
    let event = ChangeEvent::new("ada", ChangeAction::Updated, ChangePhase::Begun);
    record(key, at, number, AuditEvent::Change(event))
}

pub(crate) fn request(key: &ApiKey, at: Timestamp, number: u64) -> AuditRecord {
    let mut event = RequestEvent::new("GET", format!("/v1/things/{number}"), Outcome::Allowed);
    (event.ip, event.status) = ("192.0.2.1".parse().ok(), Some(200));
    record(key, at, number, AuditEvent::Request(event))
}

fn record(key: &ApiKey, at: Timestamp, number: u64, event: AuditEvent) -> AuditRecord {
    let mut id = [0; 16];
    id[8..].copy_from_slice(&number.to_be_bytes());
    AuditRecord { id: AuditId::from_bytes(id), at, org: key.org.clone(), key: key.id, event }
}

/// An error and all its sources.
pub(crate) fn chain(error: &dyn Error) -> String {
    match error.source() {
        Some(source) => format!("{error}: {}", chain(source)),
        None => error.to_string(),
    }
}

/// SQLite finds no damage.
pub(crate) fn assert_sound(path: &Path) {
    let verdict: String =
        raw(path).query_row("PRAGMA integrity_check", [], |row| row.get(0)).unwrap();
    assert_eq!(verdict, "ok");
}

/// A file or folder that not even root can write to, until this is dropped.
pub(crate) struct Immutable<'a>(&'a Path);

impl<'a> Immutable<'a> {
    pub(crate) fn make(path: &'a Path) -> Self {
        let made = Command::new("chattr").arg("+i").arg(path).status();
        assert!(made.is_ok_and(|status| status.success()), "`chattr +i` does not work here");
        Self(path)
    }
}

impl Drop for Immutable<'_> {
    fn drop(&mut self) {
        let _ = Command::new("chattr").arg("-i").arg(self.0).status();
    }
}

/// Another process that holds a lock of the file.
pub(crate) fn lock(begin: &str, path: &Path) -> Peer {
    let mut peer = peer(begin, path);
    assert_eq!(peer.says(), "locked");
    peer
}

/// Another process on the same file, with that task.
pub(crate) fn peer(task: &str, path: &Path) -> Peer {
    peer_by(this_program(), task, path)
}

/// The same, started by a command that is or runs this program.
pub(crate) fn peer_by(program: Command, task: &str, path: &Path) -> Peer {
    let variables = [("KEYGATE_CHILD", OsStr::new(task)), ("KEYGATE_CHILD_FILE", path.as_os_str())];
    Peer::start(program, "files::child", &variables)
}

#[test]
#[ignore = "not a test: a process that other tests start"]
fn child() {
    let Ok(task) = env::var("KEYGATE_CHILD") else { return };
    let path = PathBuf::from(env::var_os("KEYGATE_CHILD_FILE").unwrap());
    let mut orders = io::stdin().lines().map_while(Result::ok);
    let say = |line: &str| {
        let mut out = io::stdout().lock();
        write!(out, "\n@{line}\n").unwrap();
        out.flush().unwrap();
    };
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    let runtime = runtime.worker_threads(2).enable_io().build().unwrap();
    match task.as_str() {
        "open" => {
            say("ready");
            orders.next();
            match SqliteStore::open(&path) {
                Ok(store) => {
                    let inserted = runtime.block_on(store.insert(&key(&org("acme")), LIMIT));
                    say(&format!("{inserted:?}"));
                }
                Err(error) => say(&chain(&error)),
            }
        }
        "create" | "insert" => {
            let store = SqliteStore::open(&path).unwrap();
            say("ready");
            for org in orders.map(|line| org(&line)) {
                if task == "create" {
                    let created = runtime.block_on(crate::races::creators(&store, &org, 32));
                    say(&created.to_string());
                } else {
                    let inserted = runtime.block_on(store.insert(&key(&org), LIMIT));
                    say(&format!("{inserted:?}"));
                }
            }
        }
        #[cfg(all(unix, feature = "serde"))]
        "serve" => {
            let store = SqliteStore::open(&path).unwrap();
            runtime.spawn(async move {
                crate::remote::serve(store, &path, || say("ready")).await;
            });
            orders.next();
        }
        begin => {
            let connection = raw(&path);
            connection.execute_batch(begin).unwrap();
            say("locked");
            orders.next();
            connection.execute_batch("ROLLBACK").unwrap();
        }
    }
}
