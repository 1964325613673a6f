//! Races of `find_by_digest` with changes: a look-up that begins after a change
//! has returned sees the change, whatever was read or cached before.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use tokio::task::yield_now;

use crate::key::digest::KeyDigest;
use crate::record::{ApiKey, KeyUse};
use crate::runtime::BoxFuture;
use crate::store::conformance::expect;
use crate::store::conformance::fixtures::{TestOrg, renamed};
use crate::store::conformance::fresh::instant;
use crate::store::conformance::race::{rounds, together};
use crate::store::conformance::violation::Violation;
use crate::store::contract::KeyStore;

type Part = BoxFuture<'static, Result<(), Violation>>;

/// Rotations race look-ups: one begun after `replace` returned never finds the
/// old digest, and always finds the new one.
pub async fn a_rotated_secret_is_dead_at_once(store: Arc<dyn KeyStore>) -> Result<(), Violation> {
    let org = TestOrg::new(&store)?;
    let first = org.add(org.key()).await?;
    let mut versions = vec![first];
    for n in 0..200 {
        let next = versions.get(n).map(|key| org.rotated(key));
        versions.extend(next);
    }
    let history = Arc::new(History::new(versions));
    let readers = (0..3).map(|_| Box::pin(watch(org.clone(), Arc::clone(&history))) as Part);
    let writer = Box::pin(write(org.clone(), Arc::clone(&history))) as Part;
    for result in together(readers.chain([writer])).await? {
        result?;
    }
    // Nor does a late answer to a reader bring one back afterwards.
    let done = history.done.load(Ordering::SeqCst);
    for old in history.versions.iter().take(done) {
        org.has_lost_digest_of(old).await?;
    }
    let live: Vec<&ApiKey> = history.versions.get(done).into_iter().collect();
    org.has_exactly(&live).await
}

/// Edits race look-ups: one begun after `replace` returned sees that revision or
/// a later one, so that a revocation stops the very next request.
pub async fn a_finished_edit_is_seen_by_every_find(
    store: Arc<dyn KeyStore>,
) -> Result<(), Violation> {
    let org = TestOrg::new(&store)?;
    let first = org.add(org.key()).await?;
    let mut versions = vec![first];
    for n in 0..200 {
        let next = versions.get(n).map(|key| renamed(key, &format!("Edit {n}"))).transpose()?;
        versions.extend(next);
    }
    let history = Arc::new(History::new(versions));
    let readers = (0..3).map(|_| Box::pin(watch(org.clone(), Arc::clone(&history))) as Part);
    let writer = Box::pin(write(org.clone(), Arc::clone(&history))) as Part;
    for result in together(readers.chain([writer])).await? {
        result?;
    }
    let done = history.done.load(Ordering::SeqCst);
    let live: Vec<&ApiKey> = history.versions.get(done).into_iter().collect();
    org.has_exactly(&live).await
}

/// Deletions race look-ups: none begun after `delete` returned finds the key,
/// and none that was slow brings it back for the next.
pub async fn a_deleted_key_is_dead_at_once(store: Arc<dyn KeyStore>) -> Result<(), Violation> {
    for _ in rounds(60) {
        let org = TestOrg::new(&store)?;
        let key = org.add(org.key()).await?;
        let deleted = Arc::new(AtomicBool::new(false));
        let readers = (0..3).map(|_| {
            let (org, key, deleted) = (org.clone(), key.clone(), Arc::clone(&deleted));
            Box::pin(async move {
                loop {
                    if deleted.load(Ordering::SeqCst) {
                        return org.has_lost(&key).await;
                    }
                    org.find(&key.digest).await?;
                    org.get(&key.id).await?;
                    yield_now().await;
                }
            }) as Part
        });
        let writer = {
            let (org, key, deleted) = (org.clone(), key.clone(), Arc::clone(&deleted));
            Box::pin(async move {
                yield_now().await;
                let result = org.delete(&key).await;
                deleted.store(true, Ordering::SeqCst);
                result
            }) as Part
        };
        // The writer first: where it fails, the readers' complaints say less.
        for result in together([writer].into_iter().chain(readers)).await? {
            result?;
        }
        org.has_lost(&key).await?;
    }
    Ok(())
}

/// Uses race look-ups: one begun after `record_uses` returned has that time or a
/// later one, and nothing else is ever different.
pub async fn a_finished_use_is_seen_by_every_find(
    store: Arc<dyn KeyStore>,
) -> Result<(), Violation> {
    let org = TestOrg::new(&store)?;
    let key = org.add(ApiKey { last_used_at: Some(instant(0)), ..org.key() }).await?;
    let done = Arc::new(AtomicUsize::new(0));
    let over = Arc::new(AtomicBool::new(false));
    let readers = (0..3).map(|_| {
        let (org, key) = (org.clone(), key.clone());
        let (done, over) = (Arc::clone(&done), Arc::clone(&over));
        Box::pin(async move {
            while !over.load(Ordering::SeqCst) {
                let at_least = Some(instant(done.load(Ordering::SeqCst) as u64));
                let found = org.find(&key.digest).await?;
                let last_used_at = found.as_ref().and_then(|found| found.last_used_at);
                expect::holds(
                    last_used_at >= at_least,
                    format!("a last use at {at_least:?} or later, as recorded before the look-up"),
                    format!("{last_used_at:?}"),
                )?;
                let expected = ApiKey { last_used_at, ..key.clone() };
                expect::same_key("find_by_digest", found.as_deref(), &expected)?;
                yield_now().await;
            }
            Ok(())
        }) as Part
    });
    let writer = {
        let (org, id) = (org.clone(), key.id);
        let (done, over) = (Arc::clone(&done), Arc::clone(&over));
        Box::pin(async move {
            let mut result = Ok(());
            for n in rounds(200).map(|n| n as usize + 1) {
                result = org.record_uses(&[KeyUse { id, at: instant(n as u64) }]).await;
                if result.is_err() {
                    break;
                }
                done.store(n, Ordering::SeqCst);
                yield_now().await;
            }
            over.store(true, Ordering::SeqCst);
            result
        }) as Part
    };
    for result in together([writer].into_iter().chain(readers)).await? {
        result?;
    }
    Ok(())
}

/// The versions that one key goes through, and how far it has come.
struct History {
    versions: Vec<ApiKey>,
    /// The version whose write has begun.
    begun: AtomicUsize,
    /// The version whose write has returned.
    done: AtomicUsize,
    over: AtomicBool,
}

impl History {
    fn new(versions: Vec<ApiKey>) -> Self {
        Self {
            versions,
            begun: AtomicUsize::new(0),
            done: AtomicUsize::new(0),
            over: AtomicBool::new(false),
        }
    }
}

async fn write(org: TestOrg, history: Arc<History>) -> Result<(), Violation> {
    let mut result = Ok(());
    let pairs = history.versions.iter().zip(history.versions.iter().skip(1));
    for (round, (from, to)) in rounds(u32::MAX).zip(pairs) {
        let version = round as usize + 1;
        history.begun.store(version, Ordering::SeqCst);
        result = org.change(from, to.clone()).await.map(drop);
        if result.is_err() {
            break;
        }
        history.done.store(version, Ordering::SeqCst);
        yield_now().await;
    }
    history.over.store(true, Ordering::SeqCst);
    result
}

async fn watch(org: TestOrg, history: Arc<History>) -> Result<(), Violation> {
    while !history.over.load(Ordering::SeqCst) {
        let done = history.done.load(Ordering::SeqCst);
        let Some(current) = history.versions.get(done) else { return Ok(()) };
        let found = org.find(&current.digest).await?;
        let begun = history.begun.load(Ordering::SeqCst);
        match found.as_deref() {
            Some(found) => is_version(&history, found, &current.digest, done..=begun)?,
            // Only a rotation that is under way may have replaced it.
            None => expect::holds(
                begun > done,
                format!("the digest of revision {}, written before the look-up", done + 1),
                "None",
            )?,
        }
        let old = done.checked_sub(1).and_then(|old| history.versions.get(old));
        if let Some(old) = old.filter(|old| old.digest != current.digest) {
            let found = org.find(&old.digest).await?;
            expect::no_key("find of a digest replaced before the look-up", found.as_deref())?;
        }
        yield_now().await;
    }
    Ok(())
}

/// What was found is one of the versions that may be stored by now, whole.
fn is_version(
    history: &History,
    found: &ApiKey,
    digest: &KeyDigest,
    versions: std::ops::RangeInclusive<usize>,
) -> Result<(), Violation> {
    let (earliest, latest) = (*versions.start(), *versions.end());
    let mut possible = history.versions.iter().take(latest + 1).skip(earliest);
    expect::holds(
        possible.any(|key| key.digest == *digest && key == found),
        format!("a key written from revision {} to {}", earliest + 1, latest + 1),
        format!("{:?} named {:?}", found.revision, found.name.as_str()),
    )
}
