//! `PostgresStore` on servers of the test's own, which refuse, are silent, or stand behind
//! others: `cargo test --all-features --test postgres_cluster -- --ignored`.
//!
//! Needs PostgreSQL's server binaries, `openssl` and `pgbouncer`; as root also
//! `setpriv` and a user `postgres`, since the server does not run as root.
#![cfg(all(target_os = "linux", feature = "postgres-tls", feature = "conformance"))]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "tests"
)]
#![allow(dead_code, reason = "other tests use the rest of what is shared")]

#[path = "../cluster_support/mod.rs"]
mod cluster_support;
mod errors;
mod hosts;
mod pgbouncer;
#[path = "../support/mod.rs"]
mod support;
mod tls;

use std::time::Duration;

use keygate::manager::IssuedKey;
use keygate::store::PostgresOptions;
use keygate::{Actor, KeyManager, ManageError, NewKey, OrgId, PostgresStore};

const DEADLINE: Duration = Duration::from_secs(1);
/// Concurrent suites on a small machine are slow.
const PATIENT: Duration = Duration::from_secs(20);

fn options(url: &str) -> PostgresOptions {
    PostgresOptions::from_url(url).unwrap()
}

fn actor(org: &str) -> Actor {
    Actor::new(OrgId::new(org).unwrap(), "tester")
}

async fn create(keys: &KeyManager, org: &str) -> Result<IssuedKey, ManageError> {
    keys.create(&actor(org), NewKey::named("CI deploy").unwrap()).await
}

/// Checks that the store really works.
async fn use_once(store: &PostgresStore) {
    let keys = KeyManager::builder(store.clone()).store_deadline(PATIENT).build().unwrap();
    let made = create(&keys, "acme").await.unwrap();
    keys.verify(made.secret.expose_secret(), None).await.unwrap();
    keys.delete(&actor("acme"), &made.key.id).await.unwrap();
}
