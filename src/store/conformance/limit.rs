//! Properties of the limit in `insert`. Its races are in
//! [`creation_races`](super::creation_races).

use std::sync::Arc;

use crate::record::{ApiKey, OrgLimit};
use crate::store::conformance::expect;
use crate::store::conformance::fixtures::{TestOrg, revoked};
use crate::store::conformance::fresh::instant;
use crate::store::conformance::violation::Violation;
use crate::store::key_store::KeyStore;

/// Under a limit of twenty, twenty keys fit and the next one is `LimitReached` and not
/// stored, because customers are promised exactly that many.
pub(super) async fn the_limit_is_reached_exactly(
    store: Arc<dyn KeyStore>,
) -> Result<(), Violation> {
    let org = TestOrg::new(&store)?;
    let mut keys = Vec::new();
    for _ in 0..20 {
        let key = org.key();
        admit(&org, &key, OrgLimit::at_most(20)).await?;
        keys.push(key);
    }
    let next = org.key();
    refuse(&org, &next, OrgLimit::at_most(20)).await?;
    org.has_lost(&next).await?;
    org.has_exactly(&keys.iter().collect::<Vec<_>>()).await
}

/// A limit of zero admits no key, because hosts use it to close an organisation.
pub(super) async fn a_limit_of_zero_admits_no_key(
    store: Arc<dyn KeyStore>,
) -> Result<(), Violation> {
    let org = TestOrg::new(&store)?;
    refuse(&org, &org.key(), OrgLimit::at_most(0)).await?;
    org.has_exactly(&[]).await
}

/// `OrgLimit::NONE` always admits a key, because imports must store every key.
pub(super) async fn without_a_limit_every_key_is_admitted(
    store: Arc<dyn KeyStore>,
) -> Result<(), Violation> {
    let org = TestOrg::new(&store)?;
    org.add_keys(21).await?;
    let count = org.list().await?.len();
    expect::equal("the number of keys inserted without a limit", &count, &21)
}

/// The largest limit admits keys, because it is not a negative number.
pub(super) async fn the_largest_limit_admits(store: Arc<dyn KeyStore>) -> Result<(), Violation> {
    let org = TestOrg::new(&store)?;
    admit(&org, &org.key(), OrgLimit::at_most(u32::MAX)).await?;
    admit(&org, &org.key(), OrgLimit::at_most(u32::MAX)).await
}

/// A limit below the number of existing keys refuses a new one, because a host may lower
/// the limit.
pub(super) async fn a_lowered_limit_refuses(store: Arc<dyn KeyStore>) -> Result<(), Violation> {
    let org = TestOrg::new(&store)?;
    org.add_keys(5).await?;
    refuse(&org, &org.key(), OrgLimit::at_most(3)).await?;
    admit(&org, &org.key(), OrgLimit::at_most(6)).await
}

/// Revoked keys count, because otherwise revoking and re-enabling would exceed the limit.
pub(super) async fn revoked_keys_count(store: Arc<dyn KeyStore>) -> Result<(), Violation> {
    let org = TestOrg::new(&store)?;
    let key = org.add(org.key()).await?;
    org.change(&key, revoked(&key)).await?;
    refuse(&org, &org.key(), OrgLimit::at_most(1)).await
}

/// Expired keys count, because they stay in the list until they are deleted.
pub(super) async fn expired_keys_count(store: Arc<dyn KeyStore>) -> Result<(), Violation> {
    let org = TestOrg::new(&store)?;
    let key = org.key();
    org.add(ApiKey { expires_at: Some(key.created_at), ..key }).await?;
    refuse(&org, &org.key(), OrgLimit::at_most(1)).await
}

/// A key counts once however often it is changed or used, because the limit applies to keys
/// and not to writes.
pub(super) async fn a_changed_key_counts_once(store: Arc<dyn KeyStore>) -> Result<(), Violation> {
    let org = TestOrg::new(&store)?;
    let mut key = org.add(org.key()).await?;
    for _ in 0..3 {
        key = org.change(&key, org.rotated(&key)).await?;
        org.record_uses(&[crate::record::KeyUse { id: key.id, at: instant(0) }]).await?;
    }
    admit(&org, &org.key(), OrgLimit::at_most(2)).await?;
    refuse(&org, &org.key(), OrgLimit::at_most(2)).await
}

/// Keys of other organisations do not count, even if their ids are similar, because each
/// organisation has its own limit.
pub(super) async fn other_organisations_do_not_count(
    store: Arc<dyn KeyStore>,
) -> Result<(), Violation> {
    let org = TestOrg::new(&store)?;
    for id in org.fresh.similar_orgs()?.into_iter().flatten() {
        let org = org.with_id(id);
        admit(&org, &org.key(), OrgLimit::at_most(1)).await?;
        refuse(&org, &org.key(), OrgLimit::at_most(1)).await?;
    }
    Ok(())
}

/// Deleting a key makes room for exactly one, and a `delete` that fails makes none, because
/// the limit counts the stored keys.
pub(super) async fn a_deleted_key_makes_room_for_one(
    store: Arc<dyn KeyStore>,
) -> Result<(), Violation> {
    let limit = OrgLimit::at_most(2);
    let (org, other) = (TestOrg::new(&store)?, TestOrg::new(&store)?);
    let keys = org.add_keys(2).await?;
    let refused = org.key();
    refuse(&org, &refused, limit).await?;
    // A delete that fails makes no room.
    let gone = org.key();
    expect::not_found("delete of an unknown key", store.delete(&org.id, &gone.id, None).await)?;
    for key in &keys {
        let result = store.delete(&other.id, &key.id, None).await;
        expect::not_found("delete by another organisation", result)?;
    }
    refuse(&org, &refused, limit).await?;
    if let Some(key) = keys.first() {
        org.delete(key).await?;
    }
    admit(&org, &refused, limit).await?;
    refuse(&org, &org.key(), limit).await
}

/// An insert that is a `Conflict` takes no place, because it stored no key.
pub(super) async fn a_conflict_takes_no_place(store: Arc<dyn KeyStore>) -> Result<(), Violation> {
    let limit = OrgLimit::at_most(2);
    let org = TestOrg::new(&store)?;
    let first = org.add(org.key()).await?;
    for _ in 0..3 {
        let taken = ApiKey { digest: first.digest, ..org.key() };
        expect::conflict("insert of a taken digest", store.insert(&taken, limit).await)?;
    }
    admit(&org, &org.key(), limit).await
}

async fn admit(org: &TestOrg, key: &ApiKey, limit: OrgLimit) -> Result<(), Violation> {
    let count = org.list().await?.len();
    let call = format!("insert under {limit:?} with {count} keys present");
    expect::done(&call, org.store.insert(key, limit).await)
}

async fn refuse(org: &TestOrg, key: &ApiKey, limit: OrgLimit) -> Result<(), Violation> {
    let count = org.list().await?.len();
    let call = format!("insert under {limit:?} with {count} keys present");
    expect::limit_reached(&call, org.store.insert(key, limit).await)
}
