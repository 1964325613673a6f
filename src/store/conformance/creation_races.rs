//! Races of `insert`, with itself and with `delete`.

use std::sync::Arc;

use crate::record::{ApiKey, OrgLimit};
use crate::store::conformance::expect;
use crate::store::conformance::fixtures::TestOrg;
use crate::store::conformance::race::{both, rounds, together};
use crate::store::conformance::violation::Violation;
use crate::store::key_store::{KeyStore, StoreError};

/// With 19 keys of 20, one of 64 simultaneous inserts succeeds and the others are
/// `LimitReached`, because counting and inserting must be one atomic step.
pub(super) async fn one_of_64_creators_gets_the_last_place(
    store: Arc<dyn KeyStore>,
) -> Result<(), Violation> {
    let org = TestOrg::new(&store)?;
    org.add_keys(19).await?;
    for _ in rounds(20) {
        let keys: Vec<ApiKey> = (0..64).map(|_| org.key()).collect();
        let results = together(keys.iter().map(|key| insert(&store, key, 20))).await?;
        let winner = expect::one_winner("64 inserts at 19 of 20", results, expect::limit_reached)?;
        expect::equal("the number of keys", &org.list().await?.len(), &20)?;
        // The next round needs a free place.
        if let Some(key) = keys.get(winner) {
            org.delete(key).await?;
        }
    }
    Ok(())
}

/// Simultaneous inserts keep to the limit of a new organisation too, because it has no row
/// yet that they could lock.
pub(super) async fn the_first_places_are_counted_too(
    store: Arc<dyn KeyStore>,
) -> Result<(), Violation> {
    for _ in rounds(20) {
        let org = TestOrg::new(&store)?;
        let keys: Vec<ApiKey> = (0..16).map(|_| org.key()).collect();
        let results = together(keys.iter().map(|key| insert(&store, key, 3))).await?;
        let mut winners = 0;
        for result in results {
            match result {
                Ok(()) => winners += 1,
                refused => expect::limit_reached("all but three of 16 inserts", refused)?,
            }
        }
        expect::equal("the number of inserts that succeeded", &winners, &3)?;
        expect::equal("the number of keys", &org.list().await?.len(), &3)?;
    }
    Ok(())
}

/// Simultaneous inserts of different organisations neither take each other's places nor
/// fail, because each organisation has its own limit.
pub(super) async fn organisations_fill_up_independently(
    store: Arc<dyn KeyStore>,
) -> Result<(), Violation> {
    for _ in rounds(10) {
        let orgs = [(); 16].map(|()| TestOrg::new(&store)).into_iter();
        let orgs = orgs.collect::<Result<Vec<_>, _>>()?;
        let keys: Vec<ApiKey> =
            orgs.iter().flat_map(|org| [org.key(), org.key(), org.key()]).collect();
        let results = together(keys.iter().map(|key| insert(&store, key, 1))).await?;
        let mut results = results.into_iter();
        for org in &orgs {
            let own = results.by_ref().take(3).collect();
            expect::one_winner("3 inserts under a limit of 1", own, expect::limit_reached)?;
            expect::equal("the number of keys", &org.list().await?.len(), &1)?;
        }
    }
    Ok(())
}

/// Of simultaneous inserts of one digest for different organisations one succeeds, because
/// a lock on the organisation alone does not protect the digest.
pub(super) async fn one_of_several_inserts_of_a_digest_wins(
    store: Arc<dyn KeyStore>,
) -> Result<(), Violation> {
    for _ in rounds(30) {
        let orgs = [TestOrg::new(&store)?, TestOrg::new(&store)?];
        let [first, _] = &orgs;
        let digest = first.fresh.digest();
        let keys: Vec<ApiKey> =
            orgs.iter().cycle().take(8).map(|org| ApiKey { digest, ..org.key() }).collect();
        one_insert_wins(&store, &orgs, &keys).await?;
    }
    Ok(())
}

/// Of simultaneous inserts of one id for different organisations one succeeds, because a
/// lock on the organisation alone does not protect the id.
pub(super) async fn one_of_several_inserts_of_an_id_wins(
    store: Arc<dyn KeyStore>,
) -> Result<(), Violation> {
    for _ in rounds(30) {
        let orgs = [TestOrg::new(&store)?, TestOrg::new(&store)?];
        let [first, _] = &orgs;
        let id = first.fresh.key_id();
        let keys: Vec<ApiKey> =
            orgs.iter().cycle().take(8).map(|org| ApiKey { id, ..org.key() }).collect();
        one_insert_wins(&store, &orgs, &keys).await?;
    }
    Ok(())
}

/// Inserts and simultaneous deletes neither exceed the limit nor lose a place, because the
/// limit counts the keys that are stored.
pub(super) async fn inserts_beside_deletes_keep_to_the_limit(
    store: Arc<dyn KeyStore>,
) -> Result<(), Violation> {
    let org = TestOrg::new(&store)?;
    for _ in rounds(30) {
        let present = org.list().await?;
        let places = 4_usize.saturating_sub(present.len());
        let keys: Vec<ApiKey> = (0..8).map(|_| org.key()).collect();
        let inserts: Vec<_> = keys.iter().map(|key| insert(&store, key, 4)).collect();
        let deletes = present.into_iter().map(|key| {
            let store = Arc::clone(&store);
            async move { store.delete(&key.org, &key.id, None).await }
        });
        let deletes: Vec<_> = deletes.collect();
        let (inserted, deleted) = both(together(inserts), together(deletes)).await?;
        let (inserted, deleted) = (inserted?, deleted?);
        for result in deleted {
            expect::done("delete beside inserts", result)?;
        }
        let mut winners = 0;
        for result in inserted {
            match result {
                Ok(()) => winners += 1,
                refused => expect::limit_reached("an insert beside deletes", refused)?,
            }
        }
        expect::holds(
            winners >= places && winners <= 4,
            match places {
                4 => "exactly 4 of 8 inserts under a limit of 4 to succeed".to_owned(),
                _ => format!("{places} to 4 of 8 inserts under a limit of 4 to succeed"),
            },
            format!("{winners} that did"),
        )?;
        expect::equal("the number of keys", &org.list().await?.len(), &winners)?;
    }
    Ok(())
}

async fn one_insert_wins(
    store: &Arc<dyn KeyStore>,
    orgs: &[TestOrg],
    keys: &[ApiKey],
) -> Result<(), Violation> {
    let results = together(keys.iter().map(|key| insert(store, key, 20))).await?;
    let winner = expect::one_winner("8 inserts of one id or digest", results, expect::conflict)?;
    let winner = keys.get(winner);
    for org in orgs {
        let own: Vec<&ApiKey> = winner.into_iter().filter(|key| key.org == org.id).collect();
        org.has_exactly(&own).await?;
    }
    Ok(())
}

fn insert(
    store: &Arc<dyn KeyStore>,
    key: &ApiKey,
    limit: u32,
) -> impl Future<Output = Result<(), StoreError>> + Send + 'static {
    let (store, key) = (Arc::clone(store), key.clone());
    async move { store.insert(&key, OrgLimit::at_most(limit)).await }
}
