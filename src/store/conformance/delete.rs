//! Properties of `delete`.

use std::sync::Arc;

use crate::record::{ApiKey, KeyUse, OrgLimit, Revision};
use crate::store::conformance::expect;
use crate::store::conformance::fixtures::TestOrg;
use crate::store::conformance::fresh::instant;
use crate::store::conformance::violation::Violation;
use crate::store::key_store::KeyStore;

/// Once `delete` has returned, `find_by_digest`, `get` and `list` no longer give the key,
/// because the next request with it must be refused.
pub(super) async fn a_deleted_key_is_gone(store: Arc<dyn KeyStore>) -> Result<(), Violation> {
    let org = TestOrg::new(&store)?;
    let key = org.add(org.key()).await?;
    // A store with a cache has the key in it now.
    org.has_exactly(&[&key]).await?;
    org.delete(&key).await?;
    org.has_lost(&key).await?;
    org.has_exactly(&[]).await
}

/// With a revision other than the stored one `delete` is a `Conflict` and keeps the key,
/// because the caller has not seen its latest change.
pub(super) async fn another_revision_is_a_conflict(
    store: Arc<dyn KeyStore>,
) -> Result<(), Violation> {
    let org = TestOrg::new(&store)?;
    let key = org.add(ApiKey { revision: Revision::new(5), ..org.key() }).await?;
    let key = org.change(&key, ApiKey { revision: Revision::new(6), ..org.rotated(&key) }).await?;
    for expected in [0, 1, 5, 7, u32::MAX] {
        let result = store.delete(&org.id, &key.id, Some(Revision::new(expected))).await;
        expect::conflict(&format!("delete of revision 6, expecting {expected}"), result)?;
        org.has_exactly(&[&key]).await?;
    }
    let unknown = store.delete(&org.id, &org.fresh.key_id(), Some(key.revision)).await;
    expect::not_found("delete of an unknown key at a revision", unknown)?;
    let result = store.delete(&org.id, &key.id, Some(key.revision)).await;
    expect::done("delete at the stored revision", result)?;
    org.has_lost(&key).await
}

/// An unknown key is `NotFound`, because `Ok` means that this call deleted a key.
pub(super) async fn an_unknown_key_is_not_found(store: Arc<dyn KeyStore>) -> Result<(), Violation> {
    let org = TestOrg::new(&store)?;
    let key = org.add(org.key()).await?;
    let result = store.delete(&org.id, &org.fresh.key_id(), None).await;
    expect::not_found("delete of an unknown key", result)?;
    org.has_exactly(&[&key]).await
}

/// A key that is already deleted is `NotFound`, because a key is deleted only once.
pub(super) async fn a_deleted_key_is_not_found(store: Arc<dyn KeyStore>) -> Result<(), Violation> {
    let org = TestOrg::new(&store)?;
    let key = org.add(org.key()).await?;
    org.delete(&key).await?;
    expect::not_found("a second delete", store.delete(&org.id, &key.id, None).await)
}

/// Deleting a rotated key removes all its digests, earlier ones included, because none of
/// its secrets may work.
pub(super) async fn a_deleted_key_loses_all_its_digests(
    store: Arc<dyn KeyStore>,
) -> Result<(), Violation> {
    let org = TestOrg::new(&store)?;
    // A store with a cache has had each digest in it.
    let first = org.add(org.key()).await?;
    org.has_exactly(&[&first]).await?;
    let second = org.change(&first, org.rotated(&first)).await?;
    org.has_exactly(&[&second]).await?;
    let third = org.change(&second, org.overlapping(&second)).await?;
    org.has_exactly(&[&third]).await?;
    org.delete(&third).await?;
    for key in [&first, &second, &third] {
        org.has_lost(key).await?;
    }
    Ok(())
}

/// The id and the digest of a deleted key can be inserted again, because a backup may be
/// restored.
pub(super) async fn the_id_and_the_digest_are_free(
    store: Arc<dyn KeyStore>,
) -> Result<(), Violation> {
    let org = TestOrg::new(&store)?;
    let key = org.add(org.key()).await?;
    org.delete(&key).await?;
    let result = store.insert(&key, OrgLimit::at_most(1)).await;
    expect::done("insert of a key that was deleted", result)?;
    org.has_exactly(&[&key]).await?;
    org.delete(&key).await?;
    let (same_id, same_digest) =
        (ApiKey { id: key.id, ..org.key() }, ApiKey { digest: key.digest, ..org.key() });
    org.add(same_id.clone()).await?;
    org.add(same_digest.clone()).await?;
    org.has_exactly(&[&same_id, &same_digest]).await
}

/// A key that is inserted with the id of a deleted one has neither its last use nor its
/// revision, because it is another key.
pub(super) async fn a_reused_id_inherits_nothing(
    store: Arc<dyn KeyStore>,
) -> Result<(), Violation> {
    let org = TestOrg::new(&store)?;
    let first = org.add(org.key()).await?;
    org.record_uses(&[KeyUse { id: first.id, at: instant(7) }]).await?;
    let changed = ApiKey { revision: Revision::new(9), ..org.rotated(&first) };
    let changed = org.change(&first, changed).await?;
    org.delete(&changed).await?;
    let heir = org.add(ApiKey { id: first.id, ..org.key() }).await?;
    org.has_exactly(&[&heir]).await?;
    let heir = org.change(&heir, org.rotated(&heir)).await?;
    org.has_exactly(&[&heir]).await
}

/// Deleting a key leaves all other keys as they are, because they belong to other clients.
pub(super) async fn other_keys_stay(store: Arc<dyn KeyStore>) -> Result<(), Violation> {
    let (org, other) = (TestOrg::new(&store)?, TestOrg::new(&store)?);
    let (a, b, c) =
        (org.add(org.key()).await?, org.add(org.key()).await?, org.add(org.key()).await?);
    let theirs = other.add(other.key()).await?;
    org.delete(&b).await?;
    org.has_exactly(&[&a, &c]).await?;
    other.has_exactly(&[&theirs]).await
}
