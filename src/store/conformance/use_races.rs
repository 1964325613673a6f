//! Races of `record_uses`.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::sleep;

use crate::record::{ApiKey, KeyUse};
use crate::store::conformance::expect;
use crate::store::conformance::fixtures::{TestOrg, revoked, used};
use crate::store::conformance::fresh::instant;
use crate::store::conformance::race::{both, rounds, together};
use crate::store::conformance::violation::Violation;
use crate::store::key_store::{KeyStore, StoreError};

/// A use and a simultaneous revocation are both stored, and the revocation succeeds the
/// first time, because a use is not a change.
pub(super) async fn a_use_does_not_undo_a_revocation(
    store: Arc<dyn KeyStore>,
) -> Result<(), Violation> {
    let org = TestOrg::new(&store)?;
    for n in rounds(100) {
        let key = org.add(org.key()).await?;
        use_beside(&org, &key, &revoked(&key), n.into()).await?;
    }
    Ok(())
}

/// A use and a simultaneous rotation are both stored and only the new digest is found,
/// because the old secret may have been stolen.
pub(super) async fn a_use_does_not_undo_a_rotation(
    store: Arc<dyn KeyStore>,
) -> Result<(), Violation> {
    let org = TestOrg::new(&store)?;
    for n in rounds(100) {
        let key = org.add(org.key()).await?;
        let rotated = org.rotated(&key);
        use_beside(&org, &key, &rotated, n.into()).await?;
        org.has_lost_digest_of(&key).await?;
    }
    Ok(())
}

/// A key stays deleted although a use was recorded at the same time, because its owner
/// deleted it.
pub(super) async fn a_use_does_not_undo_a_deletion(
    store: Arc<dyn KeyStore>,
) -> Result<(), Violation> {
    let org = TestOrg::new(&store)?;
    for n in rounds(100) {
        let key = org.add(org.key()).await?;
        let delete = {
            let (store, key) = (Arc::clone(&store), key.clone());
            async move { store.delete(&key.org, &key.id, None).await }
        };
        let uses = [KeyUse { id: key.id, at: instant(n.into()) }];
        let (recorded, deleted) = both(record(&store, uses.into()), delete).await?;
        expect::done("record_uses beside a delete", recorded)?;
        expect::done("delete beside record_uses", deleted)?;
        org.has_lost(&key).await?;
    }
    org.has_exactly(&[]).await
}

/// Of simultaneous uses the latest is stored, because several processes record the uses of
/// one key.
pub(super) async fn the_latest_of_several_uses_stays(
    store: Arc<dyn KeyStore>,
) -> Result<(), Violation> {
    let org = TestOrg::new(&store)?;
    for round in rounds(60) {
        let key = org.add(org.key()).await?;
        let times = (0..6).map(|n| (n + u64::from(round)) % 6);
        let calls = times.map(|n| record(&store, vec![KeyUse { id: key.id, at: instant(n) }]));
        for result in together(calls).await? {
            expect::done("record_uses beside others", result)?;
        }
        let stored = org.get(&key.id).await?;
        expect::same_key("get", stored.as_deref(), &used(&key, instant(5)))?;
        org.delete(&key).await?;
    }
    Ok(())
}

/// Simultaneous batches with the same keys in opposite orders succeed, all but a few at the
/// first attempt, because processes that lock rows in the order of the batch would deadlock.
pub(super) async fn batches_in_opposite_orders_do_not_deadlock(
    store: Arc<dyn KeyStore>,
) -> Result<(), Violation> {
    let org = TestOrg::new(&store)?;
    let keys = org.add_keys(20).await?;
    let (mut last, mut unavailable) = (0, 0);
    for round in rounds(40) {
        last = u64::from(round) * 10 + 3;
        let batches = (0..4).map(|n| {
            let at = instant(last - n);
            let mut uses: Vec<KeyUse> = keys.iter().map(|key| KeyUse { id: key.id, at }).collect();
            if n % 2 == 1 {
                uses.reverse();
            }
            let store = Arc::clone(&store);
            async move {
                let first = store.record_uses(&uses).await;
                let again = if first.is_err() { Some(record(&store, uses).await) } else { None };
                (first, again)
            }
        });
        for (first, again) in together(batches).await? {
            expect::done("record_uses again", again.unwrap_or(Ok(())))?;
            unavailable += u32::from(first.is_err());
            // A busy database may leave out a key whose row is locked, but not every time.
            if unavailable > 5 {
                expect::done("record_uses beside a batch in the opposite order", first)?;
            }
        }
    }
    let expected: Vec<ApiKey> = keys.iter().map(|key| used(key, instant(last))).collect();
    org.has_exactly(&expected.iter().collect::<Vec<_>>()).await
}

/// Records a use while the key is replaced, and checks that both are stored.
async fn use_beside(org: &TestOrg, from: &ApiKey, to: &ApiKey, at: u64) -> Result<(), Violation> {
    let uses = vec![KeyUse { id: from.id, at: instant(at) }];
    let replace = {
        let (store, to, expected) = (Arc::clone(&org.store), to.clone(), from.revision);
        async move { store.replace(&to, expected).await }
    };
    let (recorded, replaced) = both(record(&org.store, uses), replace).await?;
    expect::done("record_uses beside a replace", recorded)?;
    expect::done("replace beside record_uses", replaced)?;
    let expected = used(to, instant(at));
    expect::same_key("get", org.get(&to.id).await?.as_deref(), &expected)?;
    expect::found_key("find_by_digest", org.find(&to.digest).await?.as_deref(), &expected)
}

/// Records the uses, and again if the store was unavailable, as a manager does: a store may
/// leave out a key whose row is locked at that moment.
fn record(
    store: &Arc<dyn KeyStore>,
    uses: Vec<KeyUse>,
) -> impl Future<Output = Result<(), StoreError>> + Send + 'static {
    const ATTEMPTS: u32 = 100;
    let store = Arc::clone(store);
    async move {
        for _ in 1..ATTEMPTS {
            match store.record_uses(&uses).await {
                Err(StoreError::Unavailable(_)) => sleep(Duration::from_millis(10)).await,
                recorded => return recorded,
            }
        }
        store.record_uses(&uses).await
    }
}
