//! Properties of a store that is opened again: it reads back what it wrote.

use crate::allowlist::Allowlist;
use crate::record::{ApiKey, KeyUse, OrgLimit};
use crate::store::conformance::expect;
use crate::store::conformance::fields::unusual_keys;
use crate::store::conformance::fixtures::{TestOrg, renamed, revoked, used};
use crate::store::conformance::fresh::instant;
use crate::store::conformance::property::Opener;
use crate::store::conformance::violation::Violation;
use crate::store::key_store::KeyStore;

/// Every field of a key is read back as it was written, because a field that is lost can
/// let in a client that was kept out.
pub(super) async fn every_field_comes_back(opener: &Opener<dyn KeyStore>) -> Result<(), Violation> {
    let org = TestOrg::new(&opener.open().await?)?;
    let mut keys = Vec::new();
    for key in unusual_keys(&org)? {
        keys.push(org.add(key).await?);
    }
    let org = org.reopened(opener).await?;
    org.has_exactly(&keys.iter().collect::<Vec<_>>()).await
}

/// Changes and their revisions are read back, because a revocation must hold after a
/// restart and an edit begun before it must not undo a later one.
pub(super) async fn changes_come_back(opener: &Opener<dyn KeyStore>) -> Result<(), Violation> {
    let org = TestOrg::new(&opener.open().await?)?;
    let (first, second) = (org.add(org.key()).await?, org.add(org.key()).await?);
    let off = org.change(&first, revoked(&first)).await?;
    let revision = second.revision.next().next();
    let changed = ApiKey { revision, ..org.edited(&second)? };
    let changed = org.change(&second, changed).await?;
    let org = org.reopened(opener).await?;
    org.has_exactly(&[&off, &changed]).await?;
    let late = org.store.replace(&renamed(&first, "Late")?, first.revision).await;
    expect::conflict("replace at a revision from before a change", late)?;
    let cleared = ApiKey {
        allowlist: Allowlist::default(),
        expires_at: None,
        rotated_at: None,
        previous: None,
        revision: changed.revision.next(),
        ..changed.clone()
    };
    let cleared = org.change(&changed, cleared).await?;
    org.reopened(opener).await?.has_exactly(&[&off, &cleared]).await
}

/// Last-used times are read back and still do not move back, because keys that seem to be
/// unused are deleted.
pub(super) async fn last_uses_come_back(opener: &Opener<dyn KeyStore>) -> Result<(), Violation> {
    let org = TestOrg::new(&opener.open().await?)?;
    let (unused, key) = (org.add(org.key()).await?, org.add(org.key()).await?);
    let changed = org.add(org.key()).await?;
    let use_of = |key: &ApiKey, at| KeyUse { id: key.id, at: instant(at) };
    org.record_uses(&[use_of(&key, 5), use_of(&changed, 6)]).await?;
    let changed = org.change(&changed, org.rotated(&changed)).await?;
    let expected = [unused, used(&key, instant(5)), used(&changed, instant(6))];
    let org = org.reopened(opener).await?;
    org.has_exactly(&expected.each_ref()).await?;
    org.record_uses(&[use_of(&key, 4)]).await?;
    org.has_exactly(&expected.each_ref()).await
}

/// A deleted key is not read back, because its owner deleted it to end its use.
pub(super) async fn a_deleted_key_stays_gone(
    opener: &Opener<dyn KeyStore>,
) -> Result<(), Violation> {
    let org = TestOrg::new(&opener.open().await?)?;
    let (key, rotated) = (org.add(org.key()).await?, org.add(org.key()).await?);
    let stays = org.add(org.key()).await?;
    let rotated = org.change(&rotated, org.rotated(&rotated)).await?;
    org.delete(&key).await?;
    org.delete(&rotated).await?;
    let org = org.reopened(opener).await?;
    org.has_lost(&key).await?;
    org.has_lost(&rotated).await?;
    org.has_exactly(&[&stays]).await
}

/// The digest that a rotation replaced is not read back, because the old secret may have
/// been stolen.
pub(super) async fn an_old_digest_stays_gone(
    opener: &Opener<dyn KeyStore>,
) -> Result<(), Violation> {
    let org = TestOrg::new(&opener.open().await?)?;
    let first = org.add(org.key()).await?;
    let second = org.change(&first, org.rotated(&first)).await?;
    let third = org.change(&second, org.rotated(&second)).await?;
    let org = org.reopened(opener).await?;
    org.has_lost_digest_of(&first).await?;
    org.has_lost_digest_of(&second).await?;
    org.has_exactly(&[&third]).await
}

/// Keys from before count towards the limit, and their ids and digests are taken, because
/// a restart must not lift the limit or let two keys share a secret.
pub(super) async fn earlier_keys_are_counted_and_unique(
    opener: &Opener<dyn KeyStore>,
) -> Result<(), Violation> {
    let org = TestOrg::new(&opener.open().await?)?;
    let (first, second) = (org.add(org.key()).await?, org.add(org.key()).await?);
    let org = org.reopened(opener).await?;
    let same_digest = ApiKey { digest: first.digest, ..org.key() };
    let same_id = ApiKey { id: first.id, ..org.key() };
    for taken in [same_digest, same_id] {
        let result = org.store.insert(&taken, OrgLimit::NONE).await;
        expect::conflict("insert with an id or digest that is taken", result)?;
    }
    let third = org.key();
    let result = org.store.insert(&third, OrgLimit::at_most(2)).await;
    expect::limit_reached("insert under a limit of 2 with 2 keys present", result)?;
    let result = org.store.insert(&third, OrgLimit::at_most(3)).await;
    expect::done("insert under a limit of 3 with 2 keys present", result)?;
    org.has_exactly(&[&first, &second, &third]).await
}

/// What is written after reopening is read back too, and so is what was written before,
/// because a service restarts many times.
pub(super) async fn a_store_can_be_reopened_again(
    opener: &Opener<dyn KeyStore>,
) -> Result<(), Violation> {
    let mut org = TestOrg::new(&opener.open().await?)?;
    let mut keys = Vec::new();
    for _ in 0..3 {
        let (stays, changes) = (org.add(org.key()).await?, org.add(org.key()).await?);
        let goes = org.add(org.key()).await?;
        org = org.reopened(opener).await?;
        let changed = org.change(&changes, org.rotated(&changes)).await?;
        org.delete(&goes).await?;
        keys.extend([stays, changed]);
        org = org.reopened(opener).await?;
        org.has_lost(&goes).await?;
        org.has_lost_digest_of(&changes).await?;
        org.has_exactly(&keys.iter().collect::<Vec<_>>()).await?;
    }
    Ok(())
}
