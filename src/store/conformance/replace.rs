//! Properties of `replace`.

use std::sync::Arc;

use crate::allowlist::Allowlist;
use crate::record::{ApiKey, OrgLimit, PreviousSecret, Revision, Status};
use crate::store::conformance::expect;
use crate::store::conformance::fixtures::{TestOrg, renamed, revoked, used};
use crate::store::conformance::fresh::instant;
use crate::store::conformance::violation::Violation;
use crate::store::key_store::KeyStore;

/// Every field that an edit or a rotation may change is written by one call, because a
/// change that is half written may be unsafe.
pub(super) async fn every_changeable_field_is_written(
    store: Arc<dyn KeyStore>,
) -> Result<(), Violation> {
    let org = TestOrg::new(&store)?;
    let (key, other) = (org.add(org.key()).await?, org.add(org.key()).await?);
    let changed = ApiKey { revision: Revision::new(7), ..org.edited(&key)? };
    let changed = org.change(&key, changed).await?;
    org.has_exactly(&[&changed, &other]).await?;
    let cleared = ApiKey {
        allowlist: Allowlist::default(),
        expires_at: None,
        rotated_at: None,
        previous: None,
        revision: Revision::new(8),
        ..changed.clone()
    };
    let cleared = org.change(&changed, cleared).await?;
    org.has_exactly(&[&cleared, &other]).await
}

/// The stored time of creation stays, because the list is ordered by it.
pub(super) async fn the_time_of_creation_stays(store: Arc<dyn KeyStore>) -> Result<(), Violation> {
    let org = TestOrg::new(&store)?;
    let key = org.add(org.key()).await?;
    for created_at in [instant(0), instant(u64::MAX)] {
        let stored = reread(&org, &key).await?;
        let renamed = renamed(&stored, "Renamed")?;
        org.change(&stored, ApiKey { created_at, ..renamed.clone() }).await?;
        org.has_exactly(&[&ApiKey { created_at: key.created_at, ..renamed }]).await?;
    }
    Ok(())
}

/// The stored time of the last use stays, because the editor may have read the key before
/// that use.
pub(super) async fn the_last_use_stays(store: Arc<dyn KeyStore>) -> Result<(), Violation> {
    let org = TestOrg::new(&store)?;
    let key = org.add(ApiKey { last_used_at: Some(instant(5)), ..org.key() }).await?;
    for last_used_at in [None, Some(instant(4)), Some(instant(6))] {
        let stored = reread(&org, &key).await?;
        let renamed = renamed(&stored, "Renamed")?;
        org.change(&stored, ApiKey { last_used_at, ..renamed.clone() }).await?;
        org.has_exactly(&[&used(&renamed, instant(5))]).await?;
    }
    let unused = org.add(org.key()).await?;
    let renamed = renamed(&unused, "Renamed")?;
    org.change(&unused, used(&renamed, instant(6))).await?;
    let found = org.get(&unused.id).await?;
    expect::same_key("get of a key never used", found.as_deref(), &renamed)
}

/// With a revision other than the stored one `replace` is a `Conflict` and writes nothing,
/// because an edit must not undo a revocation that its author has not seen.
pub(super) async fn another_revision_is_a_conflict(
    store: Arc<dyn KeyStore>,
) -> Result<(), Violation> {
    let org = TestOrg::new(&store)?;
    let key = org.add(ApiKey { revision: Revision::new(5), ..org.key() }).await?;
    let key = org.change(&key, revoked(&key)).await?;
    for expected in [0, 1, 4, 5, 7, u32::MAX] {
        let edit = ApiKey { status: Status::Active, ..org.rotated(&key) };
        let result = store.replace(&edit, Revision::new(expected)).await;
        expect::conflict(&format!("replace of revision 6, expecting {expected}"), result)?;
        org.has_lost_digest_of(&edit).await?;
    }
    org.has_exactly(&[&key]).await
}

/// An unknown key is `NotFound` and is not inserted, because `replace` does not check the
/// limit.
pub(super) async fn an_unknown_key_is_not_found(store: Arc<dyn KeyStore>) -> Result<(), Violation> {
    let org = TestOrg::new(&store)?;
    let key = org.key();
    expect::not_found("replace of an unknown key", store.replace(&key, key.revision).await)?;
    org.has_lost(&key).await
}

/// A deleted key is `NotFound` and stays deleted, because a late edit must not restore it.
pub(super) async fn a_deleted_key_is_not_found(store: Arc<dyn KeyStore>) -> Result<(), Violation> {
    let org = TestOrg::new(&store)?;
    let key = org.add(org.key()).await?;
    org.delete(&key).await?;
    for edit in [renamed(&key, "Renamed")?, org.rotated(&key)] {
        let result = store.replace(&edit, key.revision).await;
        expect::not_found("replace of a deleted key", result)?;
        org.has_lost(&edit).await?;
    }
    org.has_lost(&key).await
}

/// Once a rotation has returned, only the new digest is found, because the old secret may
/// have been stolen.
pub(super) async fn the_old_digest_is_gone(store: Arc<dyn KeyStore>) -> Result<(), Violation> {
    let org = TestOrg::new(&store)?;
    let mut key = org.add(org.key()).await?;
    for _ in 0..3 {
        // A store with a cache has the old digest in it now.
        org.has_exactly(&[&key]).await?;
        let old = key.clone();
        key = org.change(&old, org.rotated(&old)).await?;
        org.has_lost_digest_of(&old).await?;
        org.has_exactly(&[&key]).await?;
    }
    Ok(())
}

/// After a rotation with an overlap the key is found by both digests, and by each only as
/// long as it has it, because three secrets must never work.
pub(super) async fn the_previous_digest_is_found_until_it_is_replaced(
    store: Arc<dyn KeyStore>,
) -> Result<(), Violation> {
    let org = TestOrg::new(&store)?;
    let mut key = org.add(org.key()).await?;
    for _ in 0..3 {
        let first = key;
        let second = org.change(&first, org.overlapping(&first)).await?;
        // A store with a cache has both digests in it now.
        org.has_exactly(&[&second]).await?;
        let third = org.change(&second, org.overlapping(&second)).await?;
        org.has_exactly(&[&third]).await?;
        org.has_lost_digest_of(&first).await?;
        let ended = ApiKey { previous: None, revision: third.revision.next(), ..third.clone() };
        key = org.change(&third, ended).await?;
        org.has_exactly(&[&key]).await?;
        org.has_lost_digest_of(&ApiKey { previous: None, ..second }).await?;
    }
    Ok(())
}

/// Once `replace` has returned, `find_by_digest` gives the changed key, because a
/// revocation must stop the next request.
pub(super) async fn a_change_shows_in_find_at_once(
    store: Arc<dyn KeyStore>,
) -> Result<(), Violation> {
    let org = TestOrg::new(&store)?;
    let mut key = org.add(org.key()).await?;
    for status in [Status::Revoked, Status::Active, Status::Revoked] {
        let switched = ApiKey { status, ..renamed(&key, status.as_str())? };
        key = org.change(&key, switched).await?;
        org.has_exactly(&[&key]).await?;
    }
    Ok(())
}

/// A digest of another key in any organisation is a `Conflict` and both keys stay as they
/// are, because one secret must not belong to two keys.
pub(super) async fn a_taken_digest_is_a_conflict(
    store: Arc<dyn KeyStore>,
) -> Result<(), Violation> {
    let (org, other) = (TestOrg::new(&store)?, TestOrg::new(&store)?);
    let (key, neighbour) = (org.add(org.key()).await?, org.add(org.key()).await?);
    let stranger = other.add(other.key()).await?;
    for digest in [neighbour.digest, stranger.digest] {
        let edit = ApiKey { digest, ..org.rotated(&key) };
        let result = store.replace(&edit, key.revision).await;
        expect::conflict("replace with a digest that is taken", result)?;
        org.has_exactly(&[&key, &neighbour]).await?;
        other.has_exactly(&[&stranger]).await?;
    }
    Ok(())
}

/// A digest that another key has as its current or previous one is a `Conflict`, wherever
/// the changed key would have it, because one secret must not belong to two keys.
pub(super) async fn a_taken_previous_digest_is_a_conflict(
    store: Arc<dyn KeyStore>,
) -> Result<(), Violation> {
    let (org, other) = (TestOrg::new(&store)?, TestOrg::new(&store)?);
    let key = org.add(org.key()).await?;
    let previous = other.previous(instant(0));
    let stranger = other.add(ApiKey { previous: Some(previous), ..other.key() }).await?;
    let with_previous = |digest| {
        let previous = Some(PreviousSecret { digest, ..previous });
        ApiKey { previous, ..org.rotated(&key) }
    };
    for edit in [
        ApiKey { digest: previous.digest, ..org.rotated(&key) },
        with_previous(stranger.digest),
        with_previous(previous.digest),
    ] {
        let result = store.replace(&edit, key.revision).await;
        expect::conflict("replace with a digest that is taken", result)?;
        org.has_exactly(&[&key]).await?;
        other.has_exactly(&[&stranger]).await?;
    }
    Ok(())
}

/// A digest that a rotation replaced can be inserted again, because it belongs to no key.
pub(super) async fn the_old_digest_is_free(store: Arc<dyn KeyStore>) -> Result<(), Violation> {
    let org = TestOrg::new(&store)?;
    let old = org.add(org.key()).await?;
    let key = org.change(&old, org.rotated(&old)).await?;
    let heir = ApiKey { digest: old.digest, ..org.key() };
    let result = store.insert(&heir, OrgLimit::NONE).await;
    expect::done("insert of a digest that a rotation gave up", result)?;
    org.has_exactly(&[&key, &heir]).await?;
    let second = org.change(&key, org.overlapping(&key)).await?;
    let third = org.change(&second, org.rotated(&second)).await?;
    let result = store.insert(&ApiKey { digest: key.digest, ..org.key() }, OrgLimit::NONE).await;
    expect::done("insert of a previous digest that a rotation gave up", result)?;
    org.has_lost_digest_of(&ApiKey { previous: None, ..second }).await?;
    expect::same_key("get", org.get(&third.id).await?.as_deref(), &third)
}

/// A change of one key leaves the other keys as they are, because each key is edited on its
/// own.
pub(super) async fn other_keys_stay(store: Arc<dyn KeyStore>) -> Result<(), Violation> {
    let org = TestOrg::new(&store)?;
    let (a, b, c) =
        (org.add(org.key()).await?, org.add(org.key()).await?, org.add(org.key()).await?);
    let b = org.change(&b, revoked(&b)).await?;
    let b = org.change(&b, org.rotated(&b)).await?;
    org.has_exactly(&[&a, &b, &c]).await
}

async fn reread(org: &TestOrg, key: &ApiKey) -> Result<ApiKey, Violation> {
    let stored = org.get(&key.id).await?.as_deref().cloned();
    stored.ok_or_else(|| Violation::new("get to give a stored key", "None"))
}
