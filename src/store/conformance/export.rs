//! Properties of `export`.

use std::sync::Arc;

use crate::allowlist::Allowlist;
use crate::key::id::KeyId;
use crate::record::{ApiKey, KeyUse};
use crate::store::conformance::expect;
use crate::store::conformance::fixtures::{TestOrg, renamed, revoked, used};
use crate::store::conformance::fresh::instant;
use crate::store::conformance::handles::StoreAndExport;
use crate::store::conformance::violation::Violation;
use crate::store::key_store::KeyStore;

/// On pages of any size each key is given once, in the order of the unsigned bytes of its
/// id, because an import continues after the last id of a page.
pub(super) async fn every_key_is_exported_once(
    store: Arc<dyn StoreAndExport>,
) -> Result<(), Violation> {
    let block = Block::new(store)?;
    let mut ids = Vec::new();
    for end in [0x80, 0x7f, 0xfe, 0x01, 0x61, 0x5a, 0x00] {
        ids.push(block.add(&block.org, end).await?.id);
    }
    ids.sort();
    for limit in 1..=8 {
        let mut found = Vec::new();
        let mut after = block.begin();
        while let Some(page) = block.page_within(&after, limit).await? {
            found.extend(page.iter().map(|key| key.id));
            after = found.last().copied().unwrap_or(after);
        }
        expect::equal(&format!("the ids on pages of {limit}"), &found, &ids)?;
    }
    Ok(())
}

/// A page has as many keys as the limit allows if that many are left, because a short page
/// would cost more calls.
pub(super) async fn a_page_holds_its_limit(
    store: Arc<dyn StoreAndExport>,
) -> Result<(), Violation> {
    let block = Block::new(store)?;
    for end in 0..150 {
        block.add(&block.org, end).await?;
    }
    for limit in [1, 2, 99, 149, 150] {
        let page = block.page(Some(&block.begin()), limit).await?;
        expect::equal(&format!("the keys on a page of {limit}"), &page.len(), &limit)?;
    }
    Ok(())
}

/// Without `after`, the page begins with the lowest id, because an import must not miss a
/// key.
pub(super) async fn the_first_page_begins_with_the_first(
    store: Arc<dyn StoreAndExport>,
) -> Result<(), Violation> {
    let block = Block::new(store)?;
    let key = block.add(&block.org, 0).await?;
    let page = block.page(None, 1).await?;
    let first = page.first().map(|key| key.id);
    expect::holds(first.is_some_and(|id| id <= key.id), "the key with the lowest id", {
        format!("{first:?}, and there is {}", key.id)
    })
}

/// Keys of all organisations are given, because an import moves the whole store.
pub(super) async fn keys_of_every_organisation_are_exported(
    store: Arc<dyn StoreAndExport>,
) -> Result<(), Violation> {
    let block = Block::new(store)?;
    let mut ids = Vec::new();
    for end in 0..4 {
        ids.push(block.add(&block.org.with_id(block.org.fresh.org()?), end).await?.id);
    }
    block.has_exactly(&ids).await
}

/// Revoked, expired, changed and used keys are given with every field as it is stored,
/// because they must work in the new store as they did in the old one.
pub(super) async fn every_field_is_exported(
    store: Arc<dyn StoreAndExport>,
) -> Result<(), Violation> {
    let block = Block::new(store)?;
    let org = &block.org;
    let new = block.add(org, 0).await?;
    let off = block.add(org, 1).await?;
    let off = org.change(&off, revoked(&off)).await?;
    let rotated = block.add(org, 2).await?;
    let rotated = org.change(&rotated, org.rotated(&rotated)).await?;
    let rotated = org.change(&rotated, renamed(&rotated, "Ж 🔑")?).await?;
    let in_use = block.add(org, 3).await?;
    org.record_uses(&[KeyUse { id: in_use.id, at: instant(7) }]).await?;
    let in_use = used(&in_use, instant(7));
    let key = ApiKey { id: block.id(4), expires_at: Some(instant(0)), ..org.key() };
    let unreadable = ApiKey { allowlist: Allowlist::restore(["10.0.0.0/8", "no list"]), ..key };
    let unreadable = org.add(unreadable).await?;
    let page = block.page(Some(&block.begin()), 5).await?;
    for (n, key) in [new, off, rotated, in_use, unreadable].iter().enumerate() {
        expect::same_key("export", page.get(n).map(AsRef::as_ref), key)?;
    }
    Ok(())
}

/// A deleted key is not given, but its id can still be `after`, because keys may be deleted
/// during an import.
pub(super) async fn deleted_keys_are_not_exported(
    store: Arc<dyn StoreAndExport>,
) -> Result<(), Violation> {
    let block = Block::new(store)?;
    let first = block.add(&block.org, 0).await?;
    let gone = block.add(&block.org, 1).await?;
    let last = block.add(&block.org, 2).await?;
    block.org.delete(&gone).await?;
    block.has_exactly(&[first.id, last.id]).await?;
    // A page may begin after a key that does not exist.
    let page = block.page(Some(&gone.id), 1).await?;
    expect::equal("the id after it", &page.first().map(|key| key.id), &Some(last.id))
}

/// Keys that are added or deleted between two pages neither hide nor repeat others, because
/// the store may be in use during an import.
pub(super) async fn keys_may_be_added_and_deleted_between_pages(
    store: Arc<dyn StoreAndExport>,
) -> Result<(), Violation> {
    let block = Block::new(store)?;
    let (mut stays, mut goes) = (Vec::new(), Vec::new());
    for end in [0x10, 0x20, 0x30, 0x40] {
        goes.push(block.add(&block.org, end).await?);
        stays.push(block.add(&block.org, end + 8).await?.id);
    }
    let (mut found, mut after) = (Vec::new(), block.begin());
    let mut new = 0;
    while let Some(page) = block.page_within(&after, 1).await? {
        found.extend(page.iter().map(|key| key.id).filter(|id| stays.contains(id)));
        after = page.last().map_or(after, |key| key.id);
        // The last key of the page is deleted, and a key with a lower id is added.
        if let Some(key) = goes.iter().find(|key| key.id == after) {
            block.org.delete(key).await?;
            block.add(&block.org, new).await?;
            new += 1;
        }
    }
    expect::equal("the ids that were there all the time", &found, &stays)
}

/// After the highest id the page is empty and no error, because an import ends there.
pub(super) async fn the_end_is_an_empty_page(
    store: Arc<dyn StoreAndExport>,
) -> Result<(), Violation> {
    let block = Block::new(store)?;
    block.add(&block.org, 0).await?;
    let page = block.page(Some(&KeyId::from_bytes([0xff; 16])), 10).await?;
    expect::equal("the keys after the highest id", &page.len(), &0)
}

/// Ids that differ only in their last byte, so that no other key is between them.
struct Block {
    store: Arc<dyn StoreAndExport>,
    org: TestOrg,
    beginning: [u8; 15],
}

impl Block {
    fn new(store: Arc<dyn StoreAndExport>) -> Result<Self, Violation> {
        let org = TestOrg::new(&(Arc::clone(&store) as Arc<dyn KeyStore>))?;
        let id = org.fresh.key_id().to_bytes();
        let mut beginning = id.first_chunk().copied().unwrap_or_default();
        // The first bytes distinguish blocks. The last of them is odd, so that the id before
        // the block belongs to no other block.
        beginning[14] |= 1;
        Ok(Self { store, org, beginning })
    }

    fn id(&self, end: u8) -> KeyId {
        let mut bytes = [end; 16];
        for (byte, of_block) in bytes.iter_mut().zip(self.beginning) {
            *byte = of_block;
        }
        KeyId::from_bytes(bytes)
    }

    /// An id that is lower than all ids of the block.
    fn begin(&self) -> KeyId {
        let first = u128::from_be_bytes(self.id(0).to_bytes());
        KeyId::from_bytes(first.wrapping_sub(1).to_be_bytes())
    }

    async fn add(&self, org: &TestOrg, end: u8) -> Result<ApiKey, Violation> {
        org.add(ApiKey { id: self.id(end), ..org.key() }).await
    }

    async fn page(
        &self,
        after: Option<&KeyId>,
        limit: usize,
    ) -> Result<Vec<Arc<ApiKey>>, Violation> {
        expect::done("export", self.store.export(after, limit).await)
    }

    /// The keys of a page that are in the block, or `None` if there are none.
    async fn page_within(
        &self,
        after: &KeyId,
        limit: usize,
    ) -> Result<Option<Vec<Arc<ApiKey>>>, Violation> {
        let mut page = self.page(Some(after), limit).await?;
        let end = self.id(0xff);
        let repeated = page.iter().any(|key| key.id <= *after);
        expect::holds(!repeated, format!("ids after {after} only"), "an earlier one")?;
        page.retain(|key| key.id <= end);
        Ok((!page.is_empty()).then_some(page))
    }

    async fn has_exactly(&self, ids: &[KeyId]) -> Result<(), Violation> {
        let page = self.page_within(&self.begin(), 256).await?.unwrap_or_default();
        let found: Vec<KeyId> = page.iter().map(|key| key.id).collect();
        expect::equal("the exported ids", &found, &ids.to_vec())
    }
}
