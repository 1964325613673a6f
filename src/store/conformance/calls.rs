//! Properties of every call: once it has returned, every task sees its effect; if it is
//! dropped before that, it takes place completely or not at all.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::record::{ApiKey, KeyUse, OrgLimit};
use crate::store::conformance::expect;
use crate::store::conformance::fixtures::{TestOrg, used};
use crate::store::conformance::fresh::instant;
use crate::store::conformance::race::{dropped_at, rounds, together};
use crate::store::conformance::violation::Violation;
use crate::store::key_store::{KeyStore, StoreError};

/// Once a call has returned, every task sees its effect on any connection, because the next
/// request may arrive anywhere.
pub(super) async fn a_finished_call_is_visible_to_every_task(
    store: Arc<dyn KeyStore>,
) -> Result<(), Violation> {
    let org = TestOrg::new(&store)?;
    for _ in rounds(10) {
        let key = org.add(org.key()).await?;
        all_tasks_have_exactly(&org, Some(key.clone())).await?;
        let rotated = org.change(&key, org.rotated(&key)).await?;
        all_tasks_have_exactly(&org, Some(rotated.clone())).await?;
        org.record_uses(&[KeyUse { id: key.id, at: instant(1) }]).await?;
        all_tasks_have_exactly(&org, Some(used(&rotated, instant(1)))).await?;
        org.delete(&rotated).await?;
        all_tasks_have_exactly(&org, None).await?;
    }
    Ok(())
}

/// An `insert` that is dropped takes place completely or not at all and the store keeps
/// working, because callers have deadlines.
pub(super) async fn a_dropped_insert_does_no_harm(
    store: Arc<dyn KeyStore>,
) -> Result<(), Violation> {
    for waits in 1..=MOST_WAITS {
        let org = TestOrg::new(&store)?;
        let key = org.key();
        if cut_off(waits, store.insert(&key, OrgLimit::at_most(2))).await?.is_some() {
            break;
        }
        let mut present = settled(&org, &[&[], &[&key]]).await?;
        let other = org.key();
        let result = store.insert(&other, OrgLimit::at_most(2)).await;
        expect::done("insert after one that was dropped", result)?;
        present.push(&other);
        settled(&org, &[&present, &[&key, &other]]).await?;
    }
    Ok(())
}

/// A `replace` that is dropped takes place completely or not at all, because callers have
/// deadlines.
pub(super) async fn a_dropped_replace_does_no_harm(
    store: Arc<dyn KeyStore>,
) -> Result<(), Violation> {
    for waits in 1..=MOST_WAITS {
        let org = TestOrg::new(&store)?;
        let key = org.add(org.key()).await?;
        let edit = org.rotated(&key);
        if cut_off(waits, store.replace(&edit, key.revision)).await?.is_some() {
            break;
        }
        for stored in settled(&org, &[&[&key], &[&edit]]).await? {
            let next = match org.change(stored, org.rotated(stored)).await {
                Err(_) if stored == &key => {
                    settled(&org, &[&[&edit]]).await?;
                    org.change(&edit, org.rotated(&edit)).await?
                }
                changed => changed?,
            };
            for earlier in [&key, &edit] {
                org.has_lost_digest_of(earlier).await?;
            }
            org.has_exactly(&[&next]).await?;
        }
    }
    Ok(())
}

/// A `delete` that is dropped takes place completely or not at all, because callers have
/// deadlines.
pub(super) async fn a_dropped_delete_does_no_harm(
    store: Arc<dyn KeyStore>,
) -> Result<(), Violation> {
    for waits in 1..=MOST_WAITS {
        let org = TestOrg::new(&store)?;
        let key = org.add(org.key()).await?;
        if cut_off(waits, store.delete(&org.id, &key.id, None)).await?.is_some() {
            break;
        }
        for stored in settled(&org, &[&[&key], &[]]).await? {
            if let Err(violation) = org.delete(stored).await {
                settled(&org, &[&[]]).await.map_err(|_| violation)?;
            }
        }
        org.has_lost(&key).await?;
        org.has_exactly(&[&org.add(org.key()).await?]).await?;
    }
    Ok(())
}

/// A call is dropped at one of its first waits only.
const MOST_WAITS: u32 = 12;
/// A database may finish a call after it was dropped, usually within this time but perhaps
/// only after the next call.
const TIME_TO_FINISH: Duration = Duration::from_millis(25);
const TIME_TO_SETTLE: Duration = Duration::from_secs(2);

/// Drops the call at the given wait. `Some` means that the call was done before.
async fn cut_off(
    waits: u32,
    call: impl Future<Output = Result<(), StoreError>>,
) -> Result<Option<()>, Violation> {
    let result = dropped_at(waits, call).await;
    if result.is_none() {
        tokio::time::sleep(TIME_TO_FINISH).await;
    }
    result.map(|result| expect::done("a call that was not dropped", result)).transpose()
}

/// Waits until the organisation has exactly one of these lists of keys by every method, and
/// gives that list.
async fn settled<'a>(
    org: &TestOrg,
    possible: &[&[&'a ApiKey]],
) -> Result<Vec<&'a ApiKey>, Violation> {
    let begun = Instant::now();
    loop {
        let mut last = Ok(Vec::new());
        for keys in possible {
            match whole(org, keys, possible).await {
                Ok(()) => return Ok(keys.to_vec()),
                Err(violation) => last = Err(violation),
            }
        }
        if begun.elapsed() > TIME_TO_SETTLE {
            return last;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

async fn whole(org: &TestOrg, keys: &[&ApiKey], possible: &[&[&ApiKey]]) -> Result<(), Violation> {
    org.has_exactly(keys).await?;
    for others in possible {
        for other in *others {
            if !keys.contains(other) {
                org.has_lost_digest_of(other).await?;
            }
        }
    }
    Ok(())
}

async fn all_tasks_have_exactly(org: &TestOrg, key: Option<ApiKey>) -> Result<(), Violation> {
    let readers = (0..4).map(|_| {
        let (org, key) = (org.clone(), key.clone());
        async move { org.has_exactly(&key.iter().collect::<Vec<_>>()).await }
    });
    together(readers).await?.into_iter().collect()
}
