//! Properties of isolation: to an organisation, the keys of another do not exist.

use std::sync::Arc;

use crate::record::ApiKey;
use crate::store::conformance::expect;
use crate::store::conformance::fixtures::{TestOrg, renamed, revoked};
use crate::store::conformance::violation::Violation;
use crate::store::key_store::KeyStore;

/// `get` with the id of another organisation's key gives `None`, because organisations must
/// not see each other's keys.
pub(super) async fn get_gives_no_key_of_another(store: Arc<dyn KeyStore>) -> Result<(), Violation> {
    let (ours, theirs) = (TestOrg::new(&store)?, TestOrg::new(&store)?);
    let (own, key) = (ours.add(ours.key()).await?, theirs.add(theirs.key()).await?);
    let found = ours.get(&key.id).await?;
    expect::no_key("get of another organisation's key", found.as_deref())?;
    ours.has_exactly(&[&own]).await
}

/// `list` gives only the organisation's own keys, because organisations must not see each
/// other's keys.
pub(super) async fn list_gives_no_key_of_another(
    store: Arc<dyn KeyStore>,
) -> Result<(), Violation> {
    let (ours, theirs) = (TestOrg::new(&store)?, TestOrg::new(&store)?);
    let key = theirs.add(theirs.key()).await?;
    ours.has_exactly(&[]).await?;
    let own = ours.add(ours.key()).await?;
    ours.has_exactly(&[&own]).await?;
    theirs.has_exactly(&[&key]).await
}

/// `replace` of another organisation's key is `NotFound` and does not change or move it,
/// because organisations must not change each other's keys.
pub(super) async fn replace_touches_no_key_of_another(
    store: Arc<dyn KeyStore>,
) -> Result<(), Violation> {
    let (ours, theirs) = (TestOrg::new(&store)?, TestOrg::new(&store)?);
    let (own, key) = (ours.add(ours.key()).await?, theirs.add(theirs.key()).await?);
    for edit in [revoked(&key), theirs.rotated(&key), renamed(&key, "Ours")?] {
        let edit = ApiKey { org: ours.id.clone(), ..edit };
        let result = store.replace(&edit, key.revision).await;
        expect::not_found("replace of another organisation's key", result)?;
        ours.has_exactly(&[&own]).await?;
        theirs.has_exactly(&[&key]).await?;
    }
    Ok(())
}

/// `delete` of another organisation's key is `NotFound` and keeps it, because organisations
/// must not delete each other's keys.
pub(super) async fn delete_touches_no_key_of_another(
    store: Arc<dyn KeyStore>,
) -> Result<(), Violation> {
    let (ours, theirs) = (TestOrg::new(&store)?, TestOrg::new(&store)?);
    let (own, key) = (ours.add(ours.key()).await?, theirs.add(theirs.key()).await?);
    let result = store.delete(&ours.id, &key.id, None).await;
    expect::not_found("delete of another organisation's key", result)?;
    ours.has_exactly(&[&own]).await?;
    theirs.has_exactly(&[&key]).await
}

/// `get` and `list` compare every byte of an organisation's id, because databases may
/// ignore case, accents, trailing spaces or the end of a long text.
pub(super) async fn similar_organisations_are_separate_in_reads(
    store: Arc<dyn KeyStore>,
) -> Result<(), Violation> {
    for_each_similar_pair(&store, async |ours: &TestOrg, theirs: &ApiKey| {
        let found = ours.get(&theirs.id).await?;
        let call = format!("get in {:?} of a key of {:?}", ours.id, theirs.org);
        expect::no_key(&call, found.as_deref())
    })
    .await
}

/// `replace` and `delete` compare every byte of an organisation's id, because databases may
/// ignore case, accents, trailing spaces or the end of a long text.
pub(super) async fn similar_organisations_are_separate_in_writes(
    store: Arc<dyn KeyStore>,
) -> Result<(), Violation> {
    for_each_similar_pair(&store, async |ours: &TestOrg, theirs: &ApiKey| {
        let call = |name| format!("{name} in {:?} of a key of {:?}", ours.id, theirs.org);
        let edit = ApiKey { org: ours.id.clone(), ..revoked(theirs) };
        let result = ours.store.replace(&edit, theirs.revision).await;
        expect::not_found(&call("replace"), result)?;
        expect::not_found(&call("delete"), ours.store.delete(&ours.id, &theirs.id, None).await)
    })
    .await
}

/// Calls `check` with each organisation and the key of each other organisation of its
/// family. The calls must change nothing.
async fn for_each_similar_pair(
    store: &Arc<dyn KeyStore>,
    check: impl AsyncFn(&TestOrg, &ApiKey) -> Result<(), Violation>,
) -> Result<(), Violation> {
    let org = TestOrg::new(store)?;
    for family in org.fresh.similar_orgs()? {
        let mut members = Vec::new();
        for id in family {
            let org = org.with_id(id);
            members.push((org.add(org.key()).await?, org));
        }
        for (_, ours) in &members {
            for (theirs, _) in members.iter().filter(|(_, org)| org.id != ours.id) {
                check(ours, theirs).await?;
            }
        }
        for (key, org) in &members {
            org.has_exactly(&[key]).await?;
        }
    }
    Ok(())
}
