//! Properties of `find_by_digest`, `get` and `list`.

use std::sync::Arc;

use crate::key::digest::KeyDigest;
use crate::key::id::KeyId;
use crate::record::{ApiKey, KeyUse};
use crate::runtime::clock::Timestamp;
use crate::store::conformance::expect;
use crate::store::conformance::fixtures::{TestOrg, renamed, revoked, used};
use crate::store::conformance::fresh::instant;
use crate::store::conformance::violation::Violation;
use crate::store::key_store::KeyStore;

/// An unknown digest, id or organisation gives an empty result and no error, because
/// requests with unknown keys are common.
pub(super) async fn an_unknown_key_is_not_found(store: Arc<dyn KeyStore>) -> Result<(), Violation> {
    let org = TestOrg::new(&store)?;
    org.has_lost(&org.key()).await?;
    org.has_exactly(&[]).await?;
    let key = org.add(org.key()).await?;
    org.has_lost(&org.key()).await?;
    org.has_exactly(&[&key]).await
}

/// A key is found by its previous digest as well, whenever its end is, because the manager
/// decides by its own clock whether that secret still works.
pub(super) async fn a_key_is_found_by_its_previous_digest(
    store: Arc<dyn KeyStore>,
) -> Result<(), Violation> {
    let org = TestOrg::new(&store)?;
    let mut keys = Vec::new();
    for until in [Timestamp::MIN, instant(0), Timestamp::MAX] {
        keys.push(org.add(ApiKey { previous: Some(org.previous(until)), ..org.key() }).await?);
    }
    org.has_exactly(&keys.iter().collect::<Vec<_>>()).await
}

/// All 32 bytes of a digest are compared, because a store that compares fewer, or stops at
/// a zero byte, accepts wrong secrets.
pub(super) async fn digests_are_compared_in_full(
    store: Arc<dyn KeyStore>,
) -> Result<(), Violation> {
    let org = TestOrg::new(&store)?;
    let stored = with_zero_bytes(&org.fresh.digest())?;
    let key = org.add(ApiKey { digest: stored, ..org.key() }).await?;
    for (byte, bit) in (0..32).flat_map(|byte| [(byte, 0x01), (byte, 0x20), (byte, 0x80)]) {
        let near = with_bit_flipped(&stored, byte, bit)?;
        let found = org.find(&near).await?;
        expect::no_key(&format!("a digest with byte {byte} changed"), found.as_deref())?;
    }
    // Another key may have the nearest digest.
    let near = with_bit_flipped(&stored, 31, 0x01)?;
    let neighbour = org.add(ApiKey { digest: near, ..org.key() }).await?;
    org.has_exactly(&[&key, &neighbour]).await
}

/// All 16 bytes of an id are compared, because otherwise the wrong key may be changed.
pub(super) async fn ids_are_compared_in_full(store: Arc<dyn KeyStore>) -> Result<(), Violation> {
    let org = TestOrg::new(&store)?;
    let key = org.add(org.key()).await?;
    for byte in 0..16 {
        let mut bytes = key.id.to_bytes();
        if let Some(byte) = bytes.get_mut(byte) {
            *byte ^= 0x01;
        }
        let found = org.get(&KeyId::from_bytes(bytes)).await?;
        expect::no_key(&format!("an id with byte {byte} changed"), found.as_deref())?;
    }
    org.has_exactly(&[&key]).await
}

/// Revoked and expired keys are found and listed, because the manager refuses them and
/// records the refusal.
pub(super) async fn revoked_and_expired_keys_are_found(
    store: Arc<dyn KeyStore>,
) -> Result<(), Violation> {
    let org = TestOrg::new(&store)?;
    let key = org.key();
    let expired = org.add(ApiKey { expires_at: Some(key.created_at), ..key }).await?;
    let off = org.add(revoked(&org.key())).await?;
    org.has_exactly(&[&expired, &off]).await
}

/// The list is ordered by the time of creation to the microsecond, oldest first, because
/// the order of the inserts may differ after an import.
pub(super) async fn the_list_begins_with_the_oldest(
    store: Arc<dyn KeyStore>,
) -> Result<(), Violation> {
    let org = TestOrg::new(&store)?;
    let mut keys = Vec::new();
    for micros in [5, 3, 1_000_000, 4, 0, 2_000, 1] {
        keys.push(org.add(ApiKey { created_at: instant(micros), ..org.key() }).await?);
    }
    org.has_exactly(&keys.iter().collect::<Vec<_>>()).await
}

/// Keys with the same time of creation are ordered by the unsigned bytes of their ids,
/// because the order must be the same on every call.
pub(super) async fn keys_of_one_instant_are_ordered_by_id(
    store: Arc<dyn KeyStore>,
) -> Result<(), Violation> {
    let org = TestOrg::new(&store)?;
    let mut keys = Vec::new();
    for first_byte in [0x7f, 0x80, 0x00, 0xff, 0x61, 0x5a] {
        let mut id = org.fresh.key_id().to_bytes();
        if let Some(byte) = id.first_mut() {
            *byte = first_byte;
        }
        let id = KeyId::from_bytes(id);
        keys.push(org.add(ApiKey { id, created_at: instant(0), ..org.key() }).await?);
    }
    org.has_exactly(&keys.iter().collect::<Vec<_>>()).await
}

/// The list keeps its order when keys are changed, rotated and used, because people look
/// for a key where they saw it last.
pub(super) async fn the_list_keeps_its_order(store: Arc<dyn KeyStore>) -> Result<(), Violation> {
    let org = TestOrg::new(&store)?;
    let (a, b, c) =
        (org.add(org.key()).await?, org.add(org.key()).await?, org.add(org.key()).await?);
    let a = org.change(&a, org.rotated(&a)).await?;
    let b = org.change(&b, renamed(&b, "A")?).await?;
    org.record_uses(&[KeyUse { id: c.id, at: instant(9) }]).await?;
    org.has_exactly(&[&a, &b, &used(&c, instant(9))]).await
}

/// The list has all keys, because an organisation without a limit may have more keys than
/// fit on one page of a database.
pub(super) async fn the_list_is_complete(store: Arc<dyn KeyStore>) -> Result<(), Violation> {
    let org = TestOrg::new(&store)?;
    let keys = org.add_keys(150).await?;
    org.has_exactly(&keys.iter().collect::<Vec<_>>()).await
}

fn with_zero_bytes(digest: &KeyDigest) -> Result<KeyDigest, Violation> {
    let mut bytes = *digest.as_bytes();
    for byte in bytes.iter_mut().skip(8).step_by(8) {
        *byte = 0;
    }
    expect::made(KeyDigest::from_slice(&bytes))
}

fn with_bit_flipped(digest: &KeyDigest, byte: usize, bit: u8) -> Result<KeyDigest, Violation> {
    let mut bytes = *digest.as_bytes();
    if let Some(byte) = bytes.get_mut(byte) {
        *byte ^= bit;
    }
    expect::made(KeyDigest::from_slice(&bytes))
}
