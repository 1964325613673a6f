//! Races of `replace` and `delete`, with themselves and with each other.

use std::net::IpAddr;
use std::sync::Arc;

use crate::key::digest::KeyDigest;
use crate::network::Network;
use crate::record::{ApiKey, OrgLimit, PreviousSecret, Revision, Status};
use crate::runtime::spawn::BoxFuture;
use crate::store::conformance::expect;
use crate::store::conformance::fixtures::{TestOrg, name, renamed, revoked};
use crate::store::conformance::fresh::instant;
use crate::store::conformance::race::{both, rounds, together};
use crate::store::conformance::violation::Violation;
use crate::store::key_store::{KeyStore, StoreError};

/// Of simultaneous changes that expect one revision, one succeeds and the others are
/// `Conflict`, because no change may be lost and no digest of a refused change may be
/// found.
pub(super) async fn one_of_several_replaces_wins(
    store: Arc<dyn KeyStore>,
) -> Result<(), Violation> {
    let org = TestOrg::new(&store)?;
    let mut key = org.add(org.key()).await?;
    for _ in rounds(40) {
        let edits: Vec<ApiKey> = (0..8).map(|_| org.rotated(&key)).collect();
        let calls = edits.iter().map(|edit| replace(&store, edit, &key));
        let results = together(calls).await?;
        let winner = expect::one_winner("8 replaces of one revision", results, expect::conflict)?;
        org.has_lost_digest_of(&key).await?;
        for (n, edit) in edits.into_iter().enumerate() {
            if n == winner {
                key = edit;
            } else {
                org.has_lost_digest_of(&edit).await?;
            }
        }
        org.has_exactly(&[&key]).await?;
    }
    Ok(())
}

/// Of two keys that are rotated to one digest simultaneously, one gets it and the other
/// stays as it was, because one secret must not belong to two keys.
pub(super) async fn one_of_two_keys_gets_a_digest(
    store: Arc<dyn KeyStore>,
) -> Result<(), Violation> {
    one_of_two_replaces_wins(store, takes_as_current).await
}

/// Of an insert and a rotation to one digest, one succeeds, because one secret must not
/// belong to two keys.
pub(super) async fn an_insert_or_a_replace_gets_a_digest(
    store: Arc<dyn KeyStore>,
) -> Result<(), Violation> {
    an_insert_or_a_replace_wins(store, takes_as_current).await
}

/// Of two keys that take one digest simultaneously, one as its current and the other as its
/// previous one, one gets it, because one secret must not belong to two keys.
pub(super) async fn a_digest_becomes_current_or_previous(
    store: Arc<dyn KeyStore>,
) -> Result<(), Violation> {
    one_of_two_replaces_wins(store, takes_as_previous).await
}

/// Of an insert and a rotation with an overlap that take one digest, one succeeds, because
/// an import may insert what another key has as its previous digest.
pub(super) async fn an_insert_or_an_overlap_gets_a_digest(
    store: Arc<dyn KeyStore>,
) -> Result<(), Violation> {
    an_insert_or_a_replace_wins(store, takes_as_previous).await
}

/// A change that gives a key a digest.
type Take = fn(&TestOrg, &ApiKey, KeyDigest) -> ApiKey;

fn takes_as_current(org: &TestOrg, key: &ApiKey, digest: KeyDigest) -> ApiKey {
    ApiKey { digest, ..org.rotated(key) }
}

fn takes_as_previous(org: &TestOrg, key: &ApiKey, digest: KeyDigest) -> ApiKey {
    let previous = Some(PreviousSecret { digest, until: instant(0) });
    ApiKey { previous, ..org.rotated(key) }
}

/// One key takes a digest as its current one while another takes it as `take` says.
async fn one_of_two_replaces_wins(store: Arc<dyn KeyStore>, take: Take) -> Result<(), Violation> {
    let org = TestOrg::new(&store)?;
    for _ in rounds(40) {
        let (a, b) = (org.add(org.key()).await?, org.add(org.key()).await?);
        let digest = org.fresh.digest();
        let (new_a, new_b) = (takes_as_current(&org, &a, digest), take(&org, &b, digest));
        let (ra, rb) = both(replace(&store, &new_a, &a), replace(&store, &new_b, &b)).await?;
        let winner =
            expect::one_winner("2 replaces to one digest", vec![ra, rb], expect::conflict)?;
        let (a, b) = if winner == 0 { (new_a, b) } else { (a, new_b) };
        org.has_exactly(&[&a, &b]).await?;
        org.delete(&a).await?;
        org.delete(&b).await?;
    }
    Ok(())
}

/// A key with a digest is inserted while another key takes the digest as `take` says.
async fn an_insert_or_a_replace_wins(
    store: Arc<dyn KeyStore>,
    take: Take,
) -> Result<(), Violation> {
    let org = TestOrg::new(&store)?;
    for _ in rounds(40) {
        let key = org.add(org.key()).await?;
        let new = org.key();
        let edit = take(&org, &key, new.digest);
        let insert = {
            let (store, new) = (Arc::clone(&store), new.clone());
            async move { store.insert(&new, OrgLimit::NONE).await }
        };
        let (inserted, replaced) = both(insert, replace(&store, &edit, &key)).await?;
        let results = vec![inserted, replaced];
        let winner = expect::one_winner("insert and replace", results, expect::conflict)?;
        let left = if winner == 0 { vec![&key, &new] } else { vec![&edit] };
        org.has_exactly(&left).await?;
        for key in left {
            org.delete(key).await?;
        }
    }
    Ok(())
}

/// A rename and a simultaneous revocation, each repeated after a `Conflict`, are both
/// stored, because neither may overwrite the other.
pub(super) async fn a_rename_and_a_revocation_are_both_kept(
    store: Arc<dyn KeyStore>,
) -> Result<(), Violation> {
    for _ in rounds(60) {
        let org = TestOrg::new(&store)?;
        let key = org.add(org.key()).await?;
        let new_name = name("Renamed")?;
        let rename = move |key: &ApiKey| ApiKey { name: new_name.clone(), ..key.clone() };
        let revoke = |key: &ApiKey| ApiKey { status: Status::Revoked, ..key.clone() };
        let both_edits = revoke(&rename(&key));
        let revision = key.revision.next().next();
        let edits = both(edit(&org, &key, rename), edit(&org, &key, revoke)).await?;
        edits.0.and(edits.1)?;
        org.has_exactly(&[&ApiKey { revision, ..both_edits }]).await?;
    }
    Ok(())
}

/// If eight editors repeat their edits after a `Conflict`, every edit is stored, because
/// `Ok` means that an edit is written.
pub(super) async fn no_edit_is_lost(store: Arc<dyn KeyStore>) -> Result<(), Violation> {
    let org = TestOrg::new(&store)?;
    for _ in rounds(5) {
        let key = org.add(org.key()).await?;
        let editors = (0..8).map(|editor| add_networks(org.clone(), key.clone(), editor));
        together(editors).await?.into_iter().collect::<Result<(), _>>()?;
        let found = org.get(&key.id).await?;
        let found = found.map(|found| (found.revision.get(), found.allowlist.len()));
        let expected = (key.revision.get() + 40, key.allowlist.len() + 40);
        expect::equal("revision and networks after 40 edits", &found, &Some(expected))?;
        org.delete(&key).await?;
    }
    Ok(())
}

async fn add_networks(org: TestOrg, key: ApiKey, editor: u8) -> Result<(), Violation> {
    for n in 0..5 {
        let added = Network::from(IpAddr::from([198, 51, 100, editor * 5 + n]));
        let add = move |key: &ApiKey| {
            let old = key.allowlist.entries().into_iter().filter_map(|entry| entry.parse().ok());
            ApiKey { allowlist: old.chain([added]).collect(), ..key.clone() }
        };
        edit(&org, &key, add).await?;
    }
    Ok(())
}

/// A key stays deleted although an edit or a rotation ran at the same time, because its
/// owner deleted it.
pub(super) async fn a_replace_does_not_undo_a_deletion(
    store: Arc<dyn KeyStore>,
) -> Result<(), Violation> {
    let org = TestOrg::new(&store)?;
    for round in rounds(100) {
        let key = org.add(org.key()).await?;
        let edit = if round % 2 == 0 { org.rotated(&key) } else { renamed(&key, "Renamed")? };
        let (replaced, deleted) =
            both(replace(&store, &edit, &key), delete(&store, &key, None)).await?;
        expect::done("delete beside a replace", deleted)?;
        if replaced.is_err() {
            expect::not_found("replace beside a delete", replaced)?;
        }
        org.has_lost(&key).await?;
        org.has_lost(&edit).await?;
    }
    org.has_exactly(&[]).await
}

/// Of a change and a deletion that expect one revision, one takes place, because the caller
/// of the other has not seen it.
pub(super) async fn one_of_a_replace_and_a_delete_wins(
    store: Arc<dyn KeyStore>,
) -> Result<(), Violation> {
    let org = TestOrg::new(&store)?;
    for round in rounds(100) {
        let key = org.add(org.key()).await?;
        let edit = if round % 2 == 0 { org.rotated(&key) } else { renamed(&key, "Renamed")? };
        let delete = delete(&store, &key, Some(key.revision));
        let (replaced, deleted) = both(replace(&store, &edit, &key), delete).await?;
        if deleted.is_ok() {
            expect::not_found("replace beside a delete of its revision", replaced)?;
            org.has_exactly(&[]).await?;
        } else {
            expect::conflict("delete beside a replace of its revision", deleted)?;
            expect::done("replace beside a delete that failed", replaced)?;
            org.has_exactly(&[&edit]).await?;
            org.delete(&edit).await?;
        }
    }
    Ok(())
}

/// Of simultaneous deletions of one key, one succeeds and the others are `NotFound`,
/// because `Ok` means that this call deleted the key.
pub(super) async fn one_of_several_deletions_wins(
    store: Arc<dyn KeyStore>,
) -> Result<(), Violation> {
    let org = TestOrg::new(&store)?;
    for _ in rounds(40) {
        let key = org.add(org.key()).await?;
        let results = together((0..4).map(|_| delete(&store, &key, None))).await?;
        expect::one_winner("4 deletes of one key", results, expect::not_found)?;
        org.has_lost(&key).await?;
    }
    Ok(())
}

/// Simultaneous edits of different keys all succeed, because a `Conflict` makes the caller
/// read the key again for nothing.
pub(super) async fn edits_of_different_keys_do_not_collide(
    store: Arc<dyn KeyStore>,
) -> Result<(), Violation> {
    let (ours, theirs) = (TestOrg::new(&store)?, TestOrg::new(&store)?);
    for _ in rounds(20) {
        let mut calls: Vec<BoxFuture<'static, Result<(), StoreError>>> = Vec::new();
        let mut edits = Vec::new();
        for org in [&ours, &ours, &theirs, &theirs] {
            let key = org.add(org.key()).await?;
            let edit = revoked(&org.rotated(&key));
            calls.push(Box::pin(replace(&store, &edit, &key)));
            edits.push((org, edit));
        }
        for result in together(calls).await? {
            expect::done("replace beside replaces of other keys", result)?;
        }
        for (org, edit) in edits {
            expect::same_key("get", org.get(&edit.id).await?.as_deref(), &edit)?;
            org.delete(&edit).await?;
        }
    }
    Ok(())
}

/// Reads, changes and writes the key, again after each `Conflict`.
fn edit(
    org: &TestOrg,
    key: &ApiKey,
    change: impl Fn(&ApiKey) -> ApiKey + Send + 'static,
) -> impl Future<Output = Result<(), Violation>> + Send + 'static {
    /// More than enough: of 40 simultaneous edits, each fails at most 39 times.
    const ATTEMPTS: usize = 1_000;
    let (org, id) = (org.clone(), key.id);
    async move {
        for _ in 0..ATTEMPTS {
            let Some(stored) = org.get(&id).await? else {
                return Err(Violation::new("get to give a stored key", "None"));
            };
            let changed = change(&ApiKey { revision: stored.revision.next(), ..(*stored).clone() });
            match org.store.replace(&changed, stored.revision).await {
                Err(StoreError::Conflict) => tokio::task::yield_now().await,
                other => return expect::done("replace at the revision just read", other),
            }
        }
        Err(Violation::new("replace at the revision just read to succeed", "Conflict every time"))
    }
}

fn replace(
    store: &Arc<dyn KeyStore>,
    to: &ApiKey,
    from: &ApiKey,
) -> impl Future<Output = Result<(), StoreError>> + Send + 'static {
    let (store, to, expected) = (Arc::clone(store), to.clone(), from.revision);
    async move { store.replace(&to, expected).await }
}

fn delete(
    store: &Arc<dyn KeyStore>,
    key: &ApiKey,
    expected: Option<Revision>,
) -> impl Future<Output = Result<(), StoreError>> + Send + 'static {
    let (store, key) = (Arc::clone(store), key.clone());
    async move { store.delete(&key.org, &key.id, expected).await }
}
