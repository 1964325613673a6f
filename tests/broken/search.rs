//! The search of a broken store.

use std::sync::Arc;

use keygate::store::{KeySearch, Search, SearchCursor, SearchPage};
use keygate::{ApiKey, KeyId, StoreError, Timestamp};

use super::fault::Fault;
use super::store::BrokenStore;

#[async_trait::async_trait]
impl KeySearch for BrokenStore {
    async fn find_by_id(&self, id: &KeyId) -> Result<Option<Arc<ApiKey>>, StoreError> {
        let state = self.lock();
        let of_one_org = self.is(Fault::SearchFindsIdsOfOneOrg);
        let first = state.keys.values().next().map(|key| &key.org);
        let found = state.keys.get(id).filter(|key| !of_one_org || Some(&key.org) == first);
        Ok(found.cloned().map(Arc::new))
    }

    async fn search(
        &self,
        search: &Search,
        after: Option<&SearchCursor>,
        limit: usize,
    ) -> Result<SearchPage, StoreError> {
        let state = self.lock();
        let all = || state.keys.values().cloned();
        let mut found: Vec<(SearchCursor, Arc<ApiKey>)> = all()
            .filter(|key| self.is_found(search, key))
            .map(|key| (search.place(&key), Arc::new(key)))
            .filter(|(place, _)| match (after, self.fault) {
                (None, _) => true,
                (Some(after), Fault::SearchCursorIsATime) => place.at() > after.at(),
                (Some(after), _) => place > after,
            })
            .collect();
        found.sort_by_key(|(place, _)| *place);
        found.truncate(limit);
        let next = found.last().map(|(place, _)| *place).filter(|_| found.len() >= limit);
        let mut page = SearchPage::default();
        page.keys = found.into_iter().map(|(_, key)| key).collect();
        page.next = next;
        Ok(page)
    }
}

impl BrokenStore {
    fn is_found(&self, search: &Search, key: &ApiKey) -> bool {
        match (search, self.fault) {
            (Search::KeyPrefix(prefix), Fault::SearchPrefixIsABeginning) => {
                key.key_prefix.starts_with(prefix)
            }
            (Search::Expiring { until, .. }, Fault::SearchIncludesUntil)
                if key.expires_at == Some(*until) =>
            {
                true
            }
            (Search::UnusedSince(since), Fault::SearchIgnoresUses) => {
                let created: Timestamp = key.created_at;
                created < *since
            }
            _ => search.matches(key),
        }
    }
}
