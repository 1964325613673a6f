//! Races of `find_by_digest` with changes.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::task::yield_now;

use crate::record::{ApiKey, KeyUse};
use crate::runtime::spawn::BoxFuture;
use crate::store::conformance::expect;
use crate::store::conformance::fixtures::{TestOrg, renamed, used};
use crate::store::conformance::fresh::instant;
use crate::store::conformance::race::{rounds, together};
use crate::store::conformance::violation::Violation;
use crate::store::key_store::KeyStore;

const ROUNDS: u32 = 80;

/// A look-up that begins after a rotation returned finds the new digest and not the old
/// one, even if a slower look-up was under way, because the old secret may have been
/// stolen.
pub(super) async fn an_old_digest_is_gone_at_once(
    store: Arc<dyn KeyStore>,
) -> Result<(), Violation> {
    let org = TestOrg::new(&store)?;
    let mut key = org.add(org.key()).await?;
    let mut old = Vec::new();
    for _ in rounds(ROUNDS) {
        // A store with a cache no longer has the key in it.
        let first = org.change(&key, org.rotated(&key)).await?;
        key = org.rotated(&first);
        race(&org, &first, Some(&key)).await?;
        old.push(first);
    }
    for old in &old {
        org.has_lost_digest_of(old).await?;
    }
    org.has_exactly(&[&key]).await
}

/// During a rotation with an overlap the old digest is always found, because a client that
/// still has the old secret must not be refused for a moment.
pub(super) async fn an_overlap_has_no_gap(store: Arc<dyn KeyStore>) -> Result<(), Violation> {
    let org = TestOrg::new(&store)?;
    let mut key = org.add(org.key()).await?;
    for _ in rounds(ROUNDS) {
        // A store with a cache no longer has the key in it.
        let first = org.change(&key, org.rotated(&key)).await?;
        key = org.overlapping(&first);
        race(&org, &first, Some(&key)).await?;
    }
    org.has_exactly(&[&key]).await
}

/// A look-up that begins after an edit returned gives that edit, even if a slower look-up
/// was under way, because a revocation must stop the next request.
pub(super) async fn a_finished_edit_is_seen_by_every_find(
    store: Arc<dyn KeyStore>,
) -> Result<(), Violation> {
    let org = TestOrg::new(&store)?;
    let mut key = org.add(org.key()).await?;
    for n in rounds(ROUNDS) {
        // A store with a cache no longer has the key in it.
        let first = org.change(&key, renamed(&key, &format!("First edit {n}"))?).await?;
        key = renamed(&first, &format!("Second edit {n}"))?;
        race(&org, &first, Some(&key)).await?;
    }
    org.has_exactly(&[&key]).await
}

/// A look-up finds the key while its use is recorded and sees no other change, because a
/// use must not interrupt service.
pub(super) async fn a_key_is_found_while_its_use_is_recorded(
    store: Arc<dyn KeyStore>,
) -> Result<(), Violation> {
    let org = TestOrg::new(&store)?;
    let mut key = org.add(org.key()).await?;
    for n in rounds(ROUNDS).map(u64::from) {
        let at = instant(2 * n);
        org.record_uses(&[KeyUse { id: key.id, at }]).await?;
        let first = used(&key, at);
        key = used(&key, instant(2 * n + 1));
        race(&org, &first, Some(&key)).await?;
    }
    org.has_exactly(&[&key]).await
}

/// A look-up that begins after a deletion returned does not find the key, even if a slower
/// look-up was under way, because the next request must be refused.
pub(super) async fn a_deleted_key_is_gone_at_once(
    store: Arc<dyn KeyStore>,
) -> Result<(), Violation> {
    let org = TestOrg::new(&store)?;
    for _ in rounds(ROUNDS) {
        let key = org.add(org.key()).await?;
        race(&org, &key, None).await?;
        org.has_lost(&key).await?;
    }
    org.has_exactly(&[]).await
}

/// Writes `after` over `before`, or deletes `before`, during look-ups of the key.
async fn race(org: &TestOrg, before: &ApiKey, after: Option<&ApiKey>) -> Result<(), Violation> {
    let race = Race {
        org: org.clone(),
        before: before.clone(),
        after: after.cloned(),
        finished: Arc::default(),
    };
    let readers = [race.clone(), race.clone(), race.clone()]
        .map(|race| Box::pin(race.read()) as BoxFuture<'static, Result<(), Violation>>);
    let writer = Box::pin(race.clone().write()) as BoxFuture<'static, Result<(), Violation>>;
    // The error of the writer comes first, since it may be the cause of the others.
    for result in together([writer].into_iter().chain(readers)).await? {
        result?;
    }
    // A late answer to a reader must not restore the old state.
    race.is_finished().await
}

#[derive(Clone)]
struct Race {
    org: TestOrg,
    before: ApiKey,
    after: Option<ApiKey>,
    finished: Arc<AtomicBool>,
}

impl Race {
    async fn write(self) -> Result<(), Violation> {
        let result = match &self.after {
            None => self.org.delete(&self.before).await,
            // A use does not change the revision.
            Some(after) if after.revision == self.before.revision => {
                let uses = after.last_used_at.map(|at| KeyUse { id: after.id, at });
                self.org.record_uses(uses.as_slice()).await
            }
            Some(after) => self.org.change(&self.before, after.clone()).await.map(drop),
        };
        self.finished.store(true, Ordering::SeqCst);
        result
    }

    async fn read(self) -> Result<(), Violation> {
        let call = "find_by_digest during a write";
        while !self.finished.load(Ordering::SeqCst) {
            let found = self.org.find(&self.before.digest).await?;
            let found = found.as_deref();
            let is_after = match &self.after {
                Some(after) if after.shares_digest(&self.before) => {
                    expect::found_key(call, found, after).is_ok()
                }
                _ => found.is_none(),
            };
            if !is_after {
                expect::found_key(call, found, &self.before)?;
            }
            yield_now().await;
        }
        self.is_finished().await
    }

    /// Checks the state after the write.
    async fn is_finished(&self) -> Result<(), Violation> {
        if !self.after.as_ref().is_some_and(|after| after.shares_digest(&self.before)) {
            self.org.has_lost_digest_of(&self.before).await?;
        }
        if let Some(after) = &self.after {
            for digest in after.digests() {
                let found = self.org.find(&digest).await?;
                expect::found_key("find_by_digest after a write", found.as_deref(), after)?;
            }
        }
        Ok(())
    }
}
