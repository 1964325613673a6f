//! Commits whose pages were written but cannot be synced.

use std::fs::{self, File};
use std::path::Path;
use std::process::Command;

use keygate::{KeyStore, SqliteStore};
use tempfile::TempDir;

use crate::files::{Peer, assert_sound, org, peer_by, this_program};

/// A process that inserts keys. Syncing fails in it while the folder contains `failing`, and
/// once if it contains `failing-once`.
fn peer(folder: &TempDir) -> Peer {
    let within = |name: &str| folder.path().join(name);
    let library = within("failing_sync.so");
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/sqlite/failing_sync.c");
    let compiled =
        Command::new("cc").args(["-shared", "-fPIC", "-o"]).args([&library, &source]).status();
    assert!(compiled.unwrap().success());
    let mut program = this_program();
    program
        .env("LD_PRELOAD", library)
        .env("KEYGATE_FAIL_SYNC", within("failing"))
        .env("KEYGATE_FAIL_SYNC_ONCE", within("failing-once"));
    let mut peer = peer_by(program, "insert", &within("keys.db"));
    assert_eq!(peer.says(), "ready");
    peer.order("before");
    assert_eq!(peer.says(), "Ok(())");
    peer
}

#[tokio::test]
async fn a_change_that_cannot_be_synced_is_in_doubt() {
    let folder = tempfile::tempdir().unwrap();
    let mut peer = peer(&folder);
    let flag = folder.path().join("failing");
    File::create(&flag).unwrap();
    peer.order("in-doubt");
    let answer = peer.says();
    assert!(answer.starts_with("Err(InDoubt("), "{answer}");
    drop(peer);
    let path = folder.path().join("keys.db");
    let store = SqliteStore::open(&path).unwrap();
    assert_eq!(store.list(&org("before")).await.unwrap().len(), 1);
    assert_sound(&path);
}

#[tokio::test]
async fn case_44_a_change_reported_as_unavailable_is_not_there_after_a_crash() {
    let folder = tempfile::tempdir().unwrap();
    let mut peer = peer(&folder);
    let flag = folder.path().join("failing-once");
    File::create(&flag).unwrap();
    peer.order("unavailable");
    let answer = peer.says();
    assert!(answer.starts_with("Err(Unavailable("), "{answer}");
    assert!(!fs::exists(&flag).unwrap(), "nothing was synced");
    drop(peer);
    let path = folder.path().join("keys.db");
    let store = SqliteStore::open(&path).unwrap();
    assert_eq!(store.list(&org("before")).await.unwrap().len(), 1);
    assert_eq!(store.list(&org("unavailable")).await.unwrap(), []);
    assert_sound(&path);
}
