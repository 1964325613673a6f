//! Properties of `record_uses`.

use std::sync::Arc;

use crate::key::id::KeyId;
use crate::record::{ApiKey, KeyUse};
use crate::runtime::clock::Timestamp;
use crate::store::conformance::expect;
use crate::store::conformance::fixtures::{TestOrg, revoked, used};
use crate::store::conformance::fresh::instant;
use crate::store::conformance::violation::Violation;
use crate::store::key_store::KeyStore;

const DAY: u64 = 86_400_000_000;
const YEAR: u64 = 365 * DAY;

/// A use shows in `get` and `list` once `record_uses` has returned, because people look
/// there for keys that are no longer used.
pub(super) async fn a_use_shows(store: Arc<dyn KeyStore>) -> Result<(), Violation> {
    let org = TestOrg::new(&store)?;
    let (key, other) = (org.add(org.key()).await?, org.add(org.key()).await?);
    org.has_exactly(&[&key, &other]).await?;
    org.record_uses(&[use_of(&key, 3)]).await?;
    org.has_exactly(&[&used(&key, instant(3)), &other]).await
}

/// The time moves forward, even by a microsecond, and does not move back by up to a day,
/// because batches of several processes arrive in any order.
pub(super) async fn the_time_does_not_move_back(store: Arc<dyn KeyStore>) -> Result<(), Violation> {
    let org = TestOrg::new(&store)?;
    let key = org.add(org.key()).await?;
    let steps = [(5, 5), (6, 6), (5, 6), (6, 6), (0, 6), (YEAR, YEAR), (YEAR - 1, YEAR)];
    for (at, last) in steps.into_iter().chain([(YEAR - DAY, YEAR)]) {
        org.record_uses(&[use_of(&key, at)]).await?;
        org.has_exactly(&[&used(&key, instant(last))]).await?;
    }
    Ok(())
}

/// A use replaces a stored time that is more than a day later, also within a batch, because
/// a process with a wrong clock wrote that time.
pub(super) async fn a_time_far_in_the_future_does_not_stay(
    store: Arc<dyn KeyStore>,
) -> Result<(), Violation> {
    let org = TestOrg::new(&store)?;
    for future in [DAY + 9, YEAR * 73] {
        let key = org.add(org.key()).await?;
        for (at, last) in [(future, future), (5, 5), (6, 6), (5, 6)] {
            org.record_uses(&[use_of(&key, at)]).await?;
            expect::same_key(
                "get",
                org.get(&key.id).await?.as_deref(),
                &used(&key, instant(last)),
            )?;
        }
        org.record_uses(&[use_of(&key, future), use_of(&key, 7)]).await?;
        expect::same_key("get", org.get(&key.id).await?.as_deref(), &used(&key, instant(7)))?;
    }
    let key = org.add(org.key()).await?;
    for at in [Timestamp::MAX, instant(5)] {
        org.record_uses(&[KeyUse { id: key.id, at }]).await?;
        expect::same_key("get", org.get(&key.id).await?.as_deref(), &used(&key, at))?;
    }
    Ok(())
}

/// The first use is stored whatever its time, also before 1970, because a key that was
/// never used has no time to compare with.
pub(super) async fn the_first_use_counts_whenever_it_was(
    store: Arc<dyn KeyStore>,
) -> Result<(), Violation> {
    let org = TestOrg::new(&store)?;
    let before_1970 = Timestamp::from_unix_micros(-1).unwrap_or(Timestamp::MIN);
    for at in [Timestamp::MIN, before_1970, Timestamp::MAX] {
        let key = org.add(org.key()).await?;
        org.record_uses(&[KeyUse { id: key.id, at }]).await?;
        expect::same_key("get", org.get(&key.id).await?.as_deref(), &used(&key, at))?;
    }
    Ok(())
}

/// If a batch has several uses of a key, the latest is stored, because a batch is in no
/// particular order.
pub(super) async fn the_latest_use_in_a_batch_counts(
    store: Arc<dyn KeyStore>,
) -> Result<(), Violation> {
    let org = TestOrg::new(&store)?;
    for times in [[1, 2, 9], [9, 2, 1], [1, 9, 2], [9, 9, 9]] {
        let (key, other) = (org.add(org.key()).await?, org.add(org.key()).await?);
        let mut batch: Vec<KeyUse> = times.iter().map(|at| use_of(&key, *at)).collect();
        batch.insert(1, use_of(&other, 4));
        org.record_uses(&batch).await?;
        for key in [used(&key, instant(9)), used(&other, instant(4))] {
            expect::same_key("get", org.get(&key.id).await?.as_deref(), &key)?;
        }
    }
    Ok(())
}

/// Unknown and deleted keys are skipped and the other uses of the batch are recorded,
/// because a key may be deleted between its use and the batch.
pub(super) async fn keys_that_are_gone_are_skipped(
    store: Arc<dyn KeyStore>,
) -> Result<(), Violation> {
    let org = TestOrg::new(&store)?;
    let (a, b) = (org.add(org.key()).await?, org.add(org.key()).await?);
    let deleted = org.add(org.key()).await?;
    org.delete(&deleted).await?;
    let unknown = org.key();
    let batch = [&unknown, &a, &deleted, &b, &unknown].map(|key| use_of(key, 8));
    org.record_uses(&batch).await?;
    org.has_exactly(&[&used(&a, instant(8)), &used(&b, instant(8))]).await?;
    org.has_lost(&deleted).await?;
    org.has_lost(&unknown).await
}

/// An empty batch, and one with only unknown keys, is no error, because all its keys may
/// have been deleted.
pub(super) async fn a_batch_without_stored_keys_is_no_error(
    store: Arc<dyn KeyStore>,
) -> Result<(), Violation> {
    let org = TestOrg::new(&store)?;
    let key = org.add(org.key()).await?;
    org.record_uses(&[]).await?;
    org.record_uses(&[use_of(&org.key(), 1)]).await?;
    org.has_exactly(&[&key]).await
}

/// A use changes no other field, not even the revision, because an edit that began before
/// it must still succeed.
pub(super) async fn nothing_but_the_time_changes(
    store: Arc<dyn KeyStore>,
) -> Result<(), Violation> {
    let org = TestOrg::new(&store)?;
    let key = org.key();
    let key = ApiKey { expires_at: Some(key.created_at), rotated_at: Some(instant(1)), ..key };
    let key = org.add(key).await?;
    org.record_uses(&[use_of(&key, 2)]).await?;
    org.has_exactly(&[&used(&key, instant(2))]).await?;
    let edited = org.change(&key, revoked(&key)).await?;
    org.has_exactly(&[&used(&edited, instant(2))]).await
}

/// Uses of revoked and expired keys are recorded, because the key was valid when it was
/// used.
pub(super) async fn revoked_and_expired_keys_are_recorded(
    store: Arc<dyn KeyStore>,
) -> Result<(), Violation> {
    let org = TestOrg::new(&store)?;
    let key = org.key();
    let expired = org.add(ApiKey { expires_at: Some(key.created_at), ..key }).await?;
    let off = org.add(revoked(&org.key())).await?;
    org.record_uses(&[use_of(&expired, 3), use_of(&off, 3)]).await?;
    org.has_exactly(&[&used(&expired, instant(3)), &used(&off, instant(3))]).await
}

/// One batch may have keys of several organisations, because the manager collects the uses
/// of all of them.
pub(super) async fn a_batch_crosses_organisations(
    store: Arc<dyn KeyStore>,
) -> Result<(), Violation> {
    let (ours, theirs) = (TestOrg::new(&store)?, TestOrg::new(&store)?);
    let (a, b) = (ours.add(ours.key()).await?, theirs.add(theirs.key()).await?);
    ours.record_uses(&[use_of(&a, 1), use_of(&b, 2)]).await?;
    ours.has_exactly(&[&used(&a, instant(1))]).await?;
    theirs.has_exactly(&[&used(&b, instant(2))]).await
}

/// A batch of a thousand uses is recorded completely, because the manager sends that many
/// and databases limit the parameters of a statement.
pub(super) async fn a_thousand_uses_fit_into_a_batch(
    store: Arc<dyn KeyStore>,
) -> Result<(), Violation> {
    let org = TestOrg::new(&store)?;
    let keys = org.add_keys(50).await?;
    let unknown: Vec<KeyId> = (0..450).map(|_| org.fresh.key_id()).collect();
    let ids = keys.iter().map(|key| key.id).chain(unknown).cycle().take(1_000);
    let batch: Vec<KeyUse> = (0..).zip(ids).map(|(n, id)| KeyUse { id, at: instant(n) }).collect();
    org.record_uses(&batch).await?;
    // The second 500 uses have the later times.
    let expected: Vec<ApiKey> = (500..).zip(&keys).map(|(n, key)| used(key, instant(n))).collect();
    org.has_exactly(&expected.iter().collect::<Vec<_>>()).await
}

fn use_of(key: &ApiKey, at: u64) -> KeyUse {
    KeyUse { id: key.id, at: instant(at) }
}
