//! Properties of `insert_all`.

use std::sync::Arc;

use crate::record::{ApiKey, OrgLimit, PreviousSecret};
use crate::store::conformance::expect;
use crate::store::conformance::fields::unusual_keys;
use crate::store::conformance::fixtures::{TestOrg, revoked};
use crate::store::conformance::fresh::instant;
use crate::store::conformance::handles::StoreAndImport;
use crate::store::conformance::race::{rounds, together};
use crate::store::conformance::violation::Violation;
use crate::store::key_store::KeyStore;

/// An organisation may be given more keys than it may create, because it has them already.
pub(super) async fn no_limit_applies(store: Arc<dyn StoreAndImport>) -> Result<(), Violation> {
    let import = Import::new(store)?;
    let keys: Vec<ApiKey> = (0..150).map(|_| import.org.key()).collect();
    import.answers(&keys, &[true; 150]).await?;
    import.org.has_exactly(&keys.iter().collect::<Vec<_>>()).await
}

/// Imported keys count towards the limit of a later insert, because the limit counts every
/// key.
pub(super) async fn imported_keys_count(store: Arc<dyn StoreAndImport>) -> Result<(), Violation> {
    let import = Import::new(store)?;
    let (first, second) = (import.org.key(), import.org.key());
    import.answers(&[first.clone(), second.clone()], &[true, true]).await?;
    let third = import.org.key();
    let result = import.store.insert(&third, OrgLimit::at_most(2)).await;
    expect::limit_reached("insert under a limit of 2 with 2 imported keys", result)?;
    import.org.has_exactly(&[&first, &second]).await
}

/// Every field is stored as it is given, attributes that this version does not know
/// included, because customers use the keys already.
pub(super) async fn every_field_is_kept(store: Arc<dyn StoreAndImport>) -> Result<(), Violation> {
    let import = Import::new(store)?;
    let keys = unusual_keys(&import.org)?;
    import.answers(&keys, &vec![true; keys.len()]).await?;
    import.org.has_exactly(&keys.iter().collect::<Vec<_>>()).await
}

/// A key whose id is taken, in any organisation, is not inserted, because the key that has
/// it must not be overwritten.
pub(super) async fn a_taken_id_is_left_out(
    store: Arc<dyn StoreAndImport>,
) -> Result<(), Violation> {
    let import = Import::new(store)?;
    let theirs = import.org.with_id(import.org.fresh.org()?);
    let (first, other) = (import.org.add(import.org.key()).await?, theirs.add(theirs.key()).await?);
    for taken in [first.id, other.id] {
        let key = ApiKey { id: taken, ..import.org.key() };
        import.answers(std::slice::from_ref(&key), &[false]).await?;
        import.org.has_lost_digest_of(&key).await?;
    }
    import.org.has_exactly(&[&first]).await?;
    theirs.has_exactly(&[&other]).await
}

/// A key whose digest is the current one of another key, in any organisation, is not
/// inserted, because one secret must not belong to two keys.
pub(super) async fn a_taken_digest_is_left_out(
    store: Arc<dyn StoreAndImport>,
) -> Result<(), Violation> {
    let import = Import::new(store)?;
    let theirs = import.org.with_id(import.org.fresh.org()?);
    let (first, other) = (import.org.add(import.org.key()).await?, theirs.add(theirs.key()).await?);
    for taken in [first.digest, other.digest] {
        import.answers(&[ApiKey { digest: taken, ..import.org.key() }], &[false]).await?;
    }
    import.org.has_exactly(&[&first]).await?;
    theirs.has_exactly(&[&other]).await
}

/// A previous digest is taken too, and so is a digest that would become a previous one,
/// because one secret must not belong to two keys.
pub(super) async fn a_taken_previous_digest_is_left_out(
    store: Arc<dyn StoreAndImport>,
) -> Result<(), Violation> {
    let import = Import::new(store)?;
    let org = &import.org;
    let previous = org.previous(instant(0));
    let first = org.add(ApiKey { previous: Some(previous), ..org.key() }).await?;
    let with_previous =
        |digest| ApiKey { previous: Some(PreviousSecret { digest, ..previous }), ..org.key() };
    let current = ApiKey { digest: previous.digest, ..org.key() };
    for taken in [current, with_previous(first.digest), with_previous(previous.digest)] {
        import.answers(&[taken], &[false]).await?;
    }
    org.has_exactly(&[&first]).await
}

/// Of a batch in which some keys are taken, the others are inserted, and the answer says
/// which, because the caller reports the keys that were left out.
pub(super) async fn the_others_of_a_batch_are_inserted(
    store: Arc<dyn StoreAndImport>,
) -> Result<(), Violation> {
    let import = Import::new(store)?;
    let org = &import.org;
    let previous = org.previous(instant(0));
    let first = org.add(ApiKey { previous: Some(previous), ..org.key() }).await?;
    let taken = [
        ApiKey { digest: first.digest, ..org.key() },
        ApiKey { digest: previous.digest, ..org.key() },
    ];
    let mut stored = vec![first];
    for taken in taken {
        let (before, after) = (org.key(), org.key());
        import.answers(&[before.clone(), taken, after.clone()], &[true, false, true]).await?;
        stored.extend([before, after]);
    }
    org.has_exactly(&stored.iter().collect::<Vec<_>>()).await
}

/// Of two keys of a batch that share an id or a digest, the first is inserted, because a
/// list of keys may name a key twice.
pub(super) async fn the_first_of_two_alike_is_inserted(
    store: Arc<dyn StoreAndImport>,
) -> Result<(), Violation> {
    let import = Import::new(store)?;
    let org = &import.org;
    let (first, last) = (org.key(), org.key());
    let same_id = ApiKey { id: first.id, ..org.key() };
    let same_digest = ApiKey { digest: first.digest, ..org.key() };
    let batch = [first.clone(), same_id.clone(), same_digest, first.clone(), last.clone()];
    import.answers(&batch, &[true, false, false, false, true]).await?;
    org.has_lost_digest_of(&same_id).await?;
    org.has_exactly(&[&first, &last]).await
}

/// An import that is repeated inserts nothing and undoes no change, because it is repeated
/// after an interruption.
pub(super) async fn an_import_can_be_repeated(
    store: Arc<dyn StoreAndImport>,
) -> Result<(), Violation> {
    let import = Import::new(store)?;
    let keys = [import.org.key(), import.org.key()];
    import.answers(&keys, &[true, true]).await?;
    let [first, second] = &keys;
    let first = import.org.change(first, revoked(first)).await?;
    import.answers(&keys, &[false, false]).await?;
    import.org.has_exactly(&[&first, second]).await
}

/// An empty batch is no error, because all keys of a batch may be there already.
pub(super) async fn an_empty_batch_is_no_error(
    store: Arc<dyn StoreAndImport>,
) -> Result<(), Violation> {
    Import::new(store)?.answers(&[], &[]).await
}

/// Of simultaneous imports of the same keys, each key is inserted by exactly one, because
/// an import may be started in two processes.
pub(super) async fn one_of_several_imports_inserts_a_key(
    store: Arc<dyn StoreAndImport>,
) -> Result<(), Violation> {
    let import = Import::new(store)?;
    for _ in rounds(20) {
        let org = import.org.with_id(import.org.fresh.org()?);
        let keys: Vec<ApiKey> = (0..4).map(|_| org.key()).collect();
        let calls = (0..4).map(|_| {
            let (store, keys) = (Arc::clone(&import.store), keys.clone());
            async move { store.insert_all(&keys).await }
        });
        let mut times = vec![0; keys.len()];
        for answer in together(calls).await? {
            let answer = expect::done("insert_all beside others", answer)?;
            for (times, inserted) in times.iter_mut().zip(answer) {
                *times += u32::from(inserted);
            }
        }
        expect::equal("how many imports inserted each key", &times, &vec![1; keys.len()])?;
        org.has_exactly(&keys.iter().collect::<Vec<_>>()).await?;
    }
    Ok(())
}

struct Import {
    store: Arc<dyn StoreAndImport>,
    org: TestOrg,
}

impl Import {
    fn new(store: Arc<dyn StoreAndImport>) -> Result<Self, Violation> {
        let org = TestOrg::new(&(Arc::clone(&store) as Arc<dyn KeyStore>))?;
        Ok(Self { store, org })
    }

    /// Inserts the keys and checks the answer.
    async fn answers(&self, keys: &[ApiKey], expected: &[bool]) -> Result<(), Violation> {
        let inserted = expect::done("insert_all", self.store.insert_all(keys).await)?;
        expect::equal("the answer of insert_all", &inserted, &expected.to_vec())
    }
}
