//! Properties of the limit in `insert`: it counts every key, and only this
//! organisation's. Its races are in [`creation_races`](super::creation_races).

use std::sync::Arc;

use crate::record::{ApiKey, OrgLimit};
use crate::store::conformance::expect;
use crate::store::conformance::fixtures::{TestOrg, revoked};
use crate::store::conformance::fresh::instant;
use crate::store::conformance::violation::Violation;
use crate::store::contract::KeyStore;

/// Twenty keys fit under a limit of twenty; the next one is `LimitReached`, and
/// leaves nothing behind.
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

/// A limit of zero admits no key: it is how a host closes an organisation.
pub(super) async fn a_limit_of_zero_admits_no_key(
    store: Arc<dyn KeyStore>,
) -> Result<(), Violation> {
    let org = TestOrg::new(&store)?;
    refuse(&org, &org.key(), OrgLimit::at_most(0)).await?;
    org.has_exactly(&[]).await
}

/// `OrgLimit::NONE` admits a key whatever is there; imports rely on it.
pub(super) async fn without_a_limit_every_key_is_admitted(
    store: Arc<dyn KeyStore>,
) -> Result<(), Violation> {
    let org = TestOrg::new(&store)?;
    org.add_keys(21).await?;
    let count = org.list().await?.len();
    expect::equal("the number of keys inserted without a limit", &count, &21)
}

/// The largest limit is a limit like any other, and no negative number.
pub(super) async fn the_largest_limit_admits(store: Arc<dyn KeyStore>) -> Result<(), Violation> {
    let org = TestOrg::new(&store)?;
    admit(&org, &org.key(), OrgLimit::at_most(u32::MAX)).await?;
    admit(&org, &org.key(), OrgLimit::at_most(u32::MAX)).await
}

/// Where there are more keys than a limit that was lowered, it is reached all
/// the same.
pub(super) async fn a_lowered_limit_refuses(store: Arc<dyn KeyStore>) -> Result<(), Violation> {
    let org = TestOrg::new(&store)?;
    org.add_keys(5).await?;
    refuse(&org, &org.key(), OrgLimit::at_most(3)).await?;
    admit(&org, &org.key(), OrgLimit::at_most(6)).await
}

/// Revoked keys count; else revoking and re-enabling would pass the limit.
pub(super) async fn revoked_keys_count(store: Arc<dyn KeyStore>) -> Result<(), Violation> {
    let org = TestOrg::new(&store)?;
    let key = org.add(org.key()).await?;
    org.change(&key, revoked(&key)).await?;
    refuse(&org, &org.key(), OrgLimit::at_most(1)).await
}

/// Expired keys count: they are listed until somebody deletes them.
pub(super) async fn expired_keys_count(store: Arc<dyn KeyStore>) -> Result<(), Violation> {
    let org = TestOrg::new(&store)?;
    let key = org.key();
    org.add(ApiKey { expires_at: Some(key.created_at), ..key }).await?;
    refuse(&org, &org.key(), OrgLimit::at_most(1)).await
}

/// A key counts once, however often it was changed, rotated or used.
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

/// Other organisations' keys do not count, those with an id much like it
/// included.
pub(super) async fn other_organisations_do_not_count(
    store: Arc<dyn KeyStore>,
) -> Result<(), Violation> {
    let org = TestOrg::new(&store)?;
    for id in org.fresh.orgs_alike()?.into_iter().flatten() {
        let org = org.with_id(id);
        admit(&org, &org.key(), OrgLimit::at_most(1)).await?;
        refuse(&org, &org.key(), OrgLimit::at_most(1)).await?;
    }
    Ok(())
}

/// A deleted key makes room for one, and only a deleted one does.
pub(super) async fn a_deleted_key_makes_room_for_one(
    store: Arc<dyn KeyStore>,
) -> Result<(), Violation> {
    let limit = OrgLimit::at_most(2);
    let (org, other) = (TestOrg::new(&store)?, TestOrg::new(&store)?);
    let keys = org.add_keys(2).await?;
    let refused = org.key();
    refuse(&org, &refused, limit).await?;
    // Deleting what is not there, or not theirs, makes no room.
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

/// An insert refused as a `Conflict` takes no place.
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
