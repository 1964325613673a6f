//! Properties of `search`.

use std::sync::Arc;
use std::time::Duration;

use crate::key::id::KeyId;
use crate::record::{ApiKey, KeyUse};
use crate::runtime::clock::Timestamp;
use crate::store::conformance::expect;
use crate::store::conformance::fixtures::{TestOrg, revoked, used};
use crate::store::conformance::handles::StoreAndSearch;
use crate::store::conformance::violation::Violation;
use crate::store::key_store::KeyStore;
use crate::store::search::Search;

const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// A key of any organisation is found by its id, as it is stored, because an operator knows
/// no more of it.
pub(super) async fn a_key_is_found_by_its_id(
    store: Arc<dyn StoreAndSearch>,
) -> Result<(), Violation> {
    let test = Test::new(&store)?;
    let mut keys = Vec::new();
    for org in [&test.org, &test.other] {
        let key = org.add(org.key()).await?;
        let key = org.change(&key, revoked(&key)).await?;
        org.record_uses(&[KeyUse { id: key.id, at: key.created_at }]).await?;
        keys.push(used(&key, key.created_at));
    }
    for key in &keys {
        let found = expect::done("find_by_id", store.find_by_id(&key.id).await)?;
        expect::same_key("find_by_id", found.as_deref(), key)?;
    }
    for key in &keys {
        test.org.delete(key).await?;
        let found = expect::done("find_by_id", store.find_by_id(&key.id).await)?;
        expect::no_key("find_by_id of a deleted key", found.as_deref())?;
    }
    Ok(())
}

/// A prefix is compared as a whole, in keys of every organisation, because it is all that
/// somebody may know of a leaked key.
pub(super) async fn a_prefix_is_compared_as_a_whole(
    store: Arc<dyn StoreAndSearch>,
) -> Result<(), Violation> {
    let test = Test::new(&store)?;
    let prefix = format!("acme_{:016x}", test.org.fresh.number());
    let with = |org: &TestOrg, key_prefix: String| ApiKey { key_prefix, ..org.key() };
    let others = ["x", "%", "_", " "].map(|end| format!("{prefix}{end}"));
    let others = others.into_iter().chain([prefix.to_uppercase(), prefix.replace('_', "%")]);
    for other in others {
        test.org.add(with(&test.org, other)).await?;
    }
    let mut keys = Vec::new();
    for org in [&test.org, &test.other, &test.org, &test.other, &test.org] {
        keys.push(org.add(with(org, prefix.clone())).await?);
    }
    keys.sort_by_key(|key| key.id);
    test.finds(&Search::KeyPrefix(prefix), &keys).await
}

/// `from` includes its instant and `until` does not, and keys are ordered by expiry and id,
/// because reminders of two days must not repeat a key.
pub(super) async fn expiries_are_found_in_order(
    store: Arc<dyn StoreAndSearch>,
) -> Result<(), Violation> {
    let test = Test::new(&store)?;
    let start = test.own_time(5_000);
    let at = |micros| start.saturating_add(Duration::from_micros(micros));
    let mut keys = Vec::new();
    for micros in [3, 1, 4, 1, 5, 0, 2, 6, 5, 3] {
        let org = if micros % 2 == 0 { &test.org } else { &test.other };
        keys.push(org.add(ApiKey { expires_at: Some(at(micros)), ..org.key() }).await?);
    }
    test.org.add(test.org.key()).await?;
    keys.sort_by_key(|key| (key.expires_at, key.id));
    for (from, until) in [(0, 7), (1, 5), (5, 6), (3, 3)] {
        let search = Search::Expiring { from: at(from), until: at(until) };
        let within = keys.iter().filter(|key| search.matches(key));
        test.finds(&search, &within.cloned().collect::<Vec<_>>()).await?;
    }
    Ok(())
}

/// A key counts as unused by its last use, or its creation if it was never used, and by its
/// last rotation, because a job may revoke what is not used.
pub(super) async fn unused_keys_are_found(store: Arc<dyn StoreAndSearch>) -> Result<(), Violation> {
    let test = Test::new(&store)?;
    let start = test.own_time(0);
    let at = |hours: u32| start.saturating_add(Duration::from_secs(3_600) * hours);
    let mut keys = Vec::new();
    for hours in [0, 30, 60, 90, 10] {
        keys.push(test.org.add(ApiKey { created_at: at(hours), ..test.org.key() }).await?);
    }
    for (key, hours) in keys.iter_mut().zip([70_u32, 40]) {
        test.org.record_uses(&[KeyUse { id: key.id, at: at(hours) }]).await?;
        *key = used(key, at(hours));
    }
    let rotated = ApiKey { created_at: at(5), rotated_at: Some(at(80)), ..test.org.key() };
    keys.push(test.org.add(rotated).await?);
    for hours in [0, 1, 10, 11, 40, 41, 60, 70, 71, 80, 81, 91] {
        let search = Search::UnusedSince(at(hours));
        let mut unused: Vec<_> = keys.iter().filter(|key| search.matches(key)).cloned().collect();
        unused.sort_by_key(|key| search.place(key));
        test.finds(&search, &unused).await?;
    }
    // A use takes a key out at once, whatever day it was in.
    if let Some(key) = keys.last() {
        test.org.record_uses(&[KeyUse { id: key.id, at: at(1_000) }]).await?;
        let search = Search::UnusedSince(at(999));
        let found = test.found(&search, 10).await?;
        expect::holds(!found.iter().any(|found| found.id == key.id), "no key that was used", {
            format!("{}", key.id)
        })?;
    }
    Ok(())
}

/// Many keys of one place are met once each on pages of any size, because an index by time
/// alone cannot tell them apart.
pub(super) async fn every_key_is_met_once(store: Arc<dyn StoreAndSearch>) -> Result<(), Violation> {
    let test = Test::new(&store)?;
    let (expires, created) = (test.own_time(6_000), test.own_time(200));
    let prefix = format!("many_{:016x}", test.org.fresh.number());
    let mut keys = Vec::new();
    for _ in 0..23 {
        let key = ApiKey {
            key_prefix: prefix.clone(),
            expires_at: Some(expires),
            created_at: created,
            ..test.org.key()
        };
        keys.push(test.org.add(key).await?);
    }
    keys.sort_by_key(|key| key.id);
    let ids: Vec<KeyId> = keys.iter().map(|key| key.id).collect();
    let later = |at: Timestamp| at.saturating_add(Duration::from_micros(1));
    for search in [
        Search::KeyPrefix(prefix),
        Search::Expiring { from: expires, until: later(expires) },
        Search::UnusedSince(later(created)),
    ] {
        for limit in [1, 2, 7, 23, 24, 100] {
            let found: Vec<KeyId> =
                test.found(&search, limit).await?.iter().map(|key| key.id).collect();
            expect::equal(&format!("the ids on pages of {limit}"), &found, &ids)?;
        }
    }
    Ok(())
}

struct Test {
    store: Arc<dyn StoreAndSearch>,
    org: TestOrg,
    other: TestOrg,
}

impl Test {
    fn new(store: &Arc<dyn StoreAndSearch>) -> Result<Self, Violation> {
        let keys: Arc<dyn KeyStore> = Arc::new(Arc::clone(store));
        let org = TestOrg::new(&keys)?;
        let other = org.with_id(org.fresh.org()?);
        Ok(Self { store: Arc::clone(store), org, other })
    }

    /// The beginning of a day near this year, so that few other keys match.
    fn own_time(&self, year: u64) -> Timestamp {
        let days = year * 365 + self.org.fresh.number() % 30_000;
        Timestamp::MIN.saturating_add(DAY * u32::try_from(days).unwrap_or_default())
    }

    /// All keys of this test that are found, on pages of this size.
    async fn found(&self, search: &Search, limit: usize) -> Result<Vec<Arc<ApiKey>>, Violation> {
        /// Others may have keys that match.
        const MOST_PAGES: usize = 100_000;
        let (mut found, mut after) = (Vec::new(), None);
        for _ in 0..MOST_PAGES {
            let page = self.store.search(search, after.as_ref(), limit).await;
            let page = expect::done("search", page)?;
            expect::holds(
                page.keys.len() <= limit,
                format!("at most {limit} keys on a page"),
                format!("{}", page.keys.len()),
            )?;
            let ours = [&self.org.id, &self.other.id];
            found.extend(page.keys.into_iter().filter(|key| ours.contains(&&key.org)));
            after = page.next;
            if after.is_none() {
                return Ok(found);
            }
        }
        Err(Violation::new("the search to come to an end", format!("more than {MOST_PAGES} pages")))
    }

    /// Checks that the search finds exactly these keys of this test, in this order.
    async fn finds(&self, search: &Search, keys: &[ApiKey]) -> Result<(), Violation> {
        for limit in [2, 100] {
            let found = self.found(search, limit).await?;
            let found_ids: Vec<KeyId> = found.iter().map(|key| key.id).collect();
            let expected: Vec<KeyId> = keys.iter().map(|key| key.id).collect();
            expect::equal(&format!("what {search:?} finds"), &found_ids, &expected)?;
            for (found, key) in found.iter().zip(keys) {
                expect::same_key("search", Some(found), key)?;
            }
        }
        Ok(())
    }
}
