//! Keys that another product issued keep working after their adoption.
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

use hmac::{Hmac, KeyInit, Mac};
use keygate::existing::{AdoptedKey, DigestKind, ExistingDigest, ExistingFormat};
use keygate::manager::KeyManagerBuilder;
use keygate::{Actor, ApiKey, Denial, KeyManager, KeyName, KeyPatch, VerifyError};
use sha2::{Digest, Sha256, Sha512};
use support::{SpyStore, org};

/// 16 random characters after a prefix.
const KEY: &str = "acme_live_5fKq2Lx8RwZt0aYb";

fn format() -> ExistingFormat {
    ExistingFormat::new("acme_live_", 16..=16).unwrap()
}

fn ada() -> Actor {
    Actor::new(org("acme"), "ada")
}

fn builder() -> (Arc<SpyStore>, KeyManagerBuilder) {
    let store = Arc::new(SpyStore::default());
    (Arc::clone(&store), KeyManager::builder(store))
}

/// A manager whose existing keys have that format.
fn manager(format: ExistingFormat) -> (Arc<SpyStore>, KeyManager) {
    let (store, builder) = builder();
    (store, builder.existing(format).build().unwrap())
}

/// A manager with [`KEY`], stored by its SHA-512 digest. The first request replaces the digest.
async fn manager_with_key() -> (Arc<SpyStore>, KeyManager, Arc<ApiKey>) {
    let (store, keys) = manager(format().digests(DigestKind::sha512()));
    let adopted = adopt(&keys, key("acme", sha512(KEY))).await;
    (store, keys, adopted)
}

fn sha256(text: impl AsRef<[u8]>) -> ExistingDigest {
    DigestKind::sha256().read_bytes(&Sha256::digest(text)).unwrap()
}

fn sha512(text: &str) -> ExistingDigest {
    DigestKind::sha512().read_bytes(&Sha512::digest(text)).unwrap()
}

fn hex(bytes: impl AsRef<[u8]>) -> String {
    bytes.as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

fn hmac(key: &str, text: &str) -> Vec<u8> {
    let mut mac = Hmac::<Sha256>::new_from_slice(key.as_bytes()).unwrap();
    mac.update(text.as_bytes());
    mac.finalize().into_bytes().to_vec()
}

fn key(of: &str, digest: ExistingDigest) -> AdoptedKey {
    AdoptedKey::new(org(of), KeyName::new("CI").unwrap(), "acme_live_5f", digest)
}

async fn adopt(keys: &KeyManager, key: AdoptedKey) -> Arc<ApiKey> {
    keys.adopt(key, "import").await.unwrap().key
}

fn rename(name: &str) -> KeyPatch {
    KeyPatch::rename(KeyName::new(name).unwrap())
}

async fn assert_unknown(keys: &KeyManager, credential: &str) {
    let refused = keys.verify(credential, None).await.unwrap_err();
    let is_refused = matches!(refused, VerifyError::Unknown | VerifyError::Malformed(_));
    assert!(is_refused, "{credential}: {refused:?}");
}

async fn assert_denied(keys: &KeyManager, credential: &str, reason: Denial) {
    match keys.verify(credential, None).await {
        Err(VerifyError::Denied { denial, .. }) => assert_eq!(denial, reason, "{credential}"),
        other => panic!("{credential}: {other:?}"),
    }
}

async fn assert_allowed(keys: &KeyManager, credential: &str) {
    if let Err(error) = keys.verify(credential, None).await {
        panic!("{credential}: {error:?}");
    }
}
