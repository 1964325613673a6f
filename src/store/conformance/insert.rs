//! Properties of `insert`: ids and digests are unique, and no other field is.

use std::sync::Arc;

use crate::record::{ApiKey, OrgLimit, PreviousSecret};
use crate::store::conformance::expect;
use crate::store::conformance::fixtures::TestOrg;
use crate::store::conformance::fresh::instant;
use crate::store::conformance::violation::Violation;
use crate::store::key_store::KeyStore;

/// A key is found by digest, by id and in the list once `insert` has returned, because its
/// owner may use it immediately.
pub(super) async fn a_new_key_is_there_at_once(store: Arc<dyn KeyStore>) -> Result<(), Violation> {
    let org = TestOrg::new(&store)?;
    let first = org.add(org.key()).await?;
    org.has_exactly(&[&first]).await?;
    let second = org.add(org.key()).await?;
    org.has_exactly(&[&first, &second]).await
}

/// A digest that is taken is a `Conflict`, because one secret must not belong to two keys.
pub(super) async fn a_taken_digest_is_a_conflict(
    store: Arc<dyn KeyStore>,
) -> Result<(), Violation> {
    let org = TestOrg::new(&store)?;
    let first = org.add(org.key()).await?;
    let second = ApiKey { digest: first.digest, ..org.key() };
    refuse(&org, &second).await?;
    org.has_exactly(&[&first]).await
}

/// A previous digest is taken too, and so is a digest that would become a previous one, in
/// any organisation, because one secret must not belong to two keys.
pub(super) async fn a_taken_previous_digest_is_a_conflict(
    store: Arc<dyn KeyStore>,
) -> Result<(), Violation> {
    let (theirs, ours) = (TestOrg::new(&store)?, TestOrg::new(&store)?);
    let previous = theirs.previous(instant(0));
    let first = theirs.add(ApiKey { previous: Some(previous), ..theirs.key() }).await?;
    let with_previous = |digest| {
        let previous = Some(PreviousSecret { digest, ..previous });
        ApiKey { previous, ..ours.key() }
    };
    refuse(&ours, &ApiKey { digest: previous.digest, ..ours.key() }).await?;
    refuse(&ours, &with_previous(first.digest)).await?;
    refuse(&ours, &with_previous(previous.digest)).await?;
    ours.has_exactly(&[]).await?;
    theirs.has_exactly(&[&first]).await
}

/// An id that is taken is a `Conflict`, because the key that has it must not be
/// overwritten.
pub(super) async fn a_taken_id_is_a_conflict(store: Arc<dyn KeyStore>) -> Result<(), Violation> {
    let org = TestOrg::new(&store)?;
    let first = org.add(org.key()).await?;
    let second = ApiKey { id: first.id, ..org.key() };
    refuse(&org, &second).await?;
    org.has_lost_digest_of(&second).await?;
    org.has_exactly(&[&first]).await
}

/// Digests are unique across organisations, because a request is looked up by its digest
/// alone.
pub(super) async fn a_digest_of_another_organisation_is_a_conflict(
    store: Arc<dyn KeyStore>,
) -> Result<(), Violation> {
    let (theirs, ours) = (TestOrg::new(&store)?, TestOrg::new(&store)?);
    let first = theirs.add(theirs.key()).await?;
    refuse(&ours, &ApiKey { digest: first.digest, ..ours.key() }).await?;
    ours.has_exactly(&[]).await?;
    theirs.has_exactly(&[&first]).await
}

/// Ids are unique across organisations, because `record_uses` and the audit log identify a
/// key by its id alone.
pub(super) async fn an_id_of_another_organisation_is_a_conflict(
    store: Arc<dyn KeyStore>,
) -> Result<(), Violation> {
    let (theirs, ours) = (TestOrg::new(&store)?, TestOrg::new(&store)?);
    let first = theirs.add(theirs.key()).await?;
    let second = ApiKey { id: first.id, ..ours.key() };
    refuse(&ours, &second).await?;
    ours.has_lost(&second).await?;
    theirs.has_exactly(&[&first]).await
}

/// Inserting the same record again is a `Conflict` too, because the caller must be able to
/// rely on an `Ok` meaning that this call inserted the key.
pub(super) async fn the_same_key_again_is_a_conflict(
    store: Arc<dyn KeyStore>,
) -> Result<(), Violation> {
    let org = TestOrg::new(&store)?;
    let key = org.add(org.key()).await?;
    refuse(&org, &key).await?;
    org.has_exactly(&[&key]).await
}

/// A refused insert uses up neither the id nor the digest, because a later insert may need
/// them.
pub(super) async fn a_refused_insert_leaves_nothing_behind(
    store: Arc<dyn KeyStore>,
) -> Result<(), Violation> {
    let org = TestOrg::new(&store)?;
    let first = org.add(org.key()).await?;
    let (taken_digest, taken_id) = (org.key(), org.key());
    refuse(&org, &ApiKey { digest: first.digest, ..taken_digest.clone() }).await?;
    refuse(&org, &ApiKey { id: first.id, ..taken_id.clone() }).await?;
    org.add(taken_digest.clone()).await?;
    org.add(taken_id.clone()).await?;
    org.has_exactly(&[&first, &taken_digest, &taken_id]).await
}

/// Keys may share every field other than id and digest, because customers choose names
/// freely and create keys at the same instant.
pub(super) async fn all_but_id_and_digest_may_repeat(
    store: Arc<dyn KeyStore>,
) -> Result<(), Violation> {
    let org = TestOrg::new(&store)?;
    let first = org.add(org.key()).await?;
    let twin = ApiKey { id: org.fresh.key_id(), digest: org.fresh.digest(), ..first.clone() };
    org.add(twin.clone()).await?;
    org.has_exactly(&[&first, &twin]).await
}

async fn refuse(org: &TestOrg, key: &ApiKey) -> Result<(), Violation> {
    let result = org.store.insert(key, OrgLimit::NONE).await;
    expect::conflict("insert with an id or digest that is taken", result)
}
