//! Keys that were issued before keygate go on working.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "tests"
)]
#![cfg(feature = "tokio")]

mod adopting;
mod asked;
#[cfg(feature = "tower")]
mod layer;
mod looked_up;
#[cfg(all(feature = "postgres", feature = "sqlite"))]
#[path = "../postgres_support/mod.rs"]
#[allow(dead_code, reason = "each test crate uses its part")]
mod postgres_support;
#[cfg(all(feature = "postgres", feature = "sqlite"))]
mod story;
#[path = "../support/mod.rs"]
mod support;

use std::sync::Arc;

use keygate::existing::{AdoptedKey, DigestKind, ExistingDigest, ExistingFormat};
use keygate::manager::KeyManagerBuilder;
use keygate::{KeyManager, KeyName, VerifyError};
use sha2::{Digest, Sha256};
use support::{SpyStore, org};

/// 16 random characters behind a prefix.
const KEY: &str = "acme_live_5fKq2Lx8RwZt0aYb";

fn format() -> ExistingFormat {
    ExistingFormat::new("acme_live_", 16..=16).unwrap()
}

fn builder() -> (Arc<SpyStore>, KeyManagerBuilder) {
    let store = Arc::new(SpyStore::default());
    (Arc::clone(&store), KeyManager::builder(store))
}

fn sha256(text: impl AsRef<[u8]>) -> ExistingDigest {
    DigestKind::sha256().read_bytes(&Sha256::digest(text)).unwrap()
}

fn key(of: &str, digest: ExistingDigest) -> AdoptedKey {
    AdoptedKey::new(org(of), KeyName::new("CI").unwrap(), "acme_live_5f", digest)
}

async fn assert_unknown(keys: &KeyManager, credential: &str) {
    let refused = keys.verify(credential, None).await.unwrap_err();
    let is_refused = matches!(refused, VerifyError::Unknown | VerifyError::Malformed(_));
    assert!(is_refused, "{credential}: {refused:?}");
}

async fn assert_allowed(keys: &KeyManager, credential: &str) {
    if let Err(error) = keys.verify(credential, None).await {
        panic!("{credential}: {error:?}");
    }
}
