//! A store whose calls are measured.

use std::sync::Arc;

use async_trait::async_trait;

use crate::key::digest::KeyDigest;
use crate::key::id::KeyId;
use crate::meters::Timer;
use crate::meters::recorded::measure_call;
use crate::org::OrgId;
use crate::record::{ApiKey, KeyUse, OrgLimit, Revision};
use crate::runtime::BoxFuture;
use crate::store::key_store::{KeyStore, StoreError};

#[derive(Debug)]
pub(crate) struct Measured {
    store: Arc<dyn KeyStore>,
}

impl Measured {
    pub(crate) fn new(store: Arc<dyn KeyStore>) -> Self {
        Self { store }
    }

    async fn measured<T>(
        operation: &'static str,
        call: impl Future<Output = Result<T, StoreError>>,
    ) -> Result<T, StoreError> {
        let timer = Timer::start();
        let result = call.await;
        measure_call(operation, timer, &result);
        result
    }
}

#[async_trait]
impl KeyStore for Measured {
    async fn insert(&self, key: &ApiKey, limit: OrgLimit) -> Result<(), StoreError> {
        Self::measured("insert", self.store.insert(key, limit)).await
    }

    // Measured by the manager: another boxed future would be an allocation for each request.
    fn find_by_digest<'life0, 'life1, 'async_trait>(
        &'life0 self,
        digest: &'life1 KeyDigest,
    ) -> BoxFuture<'async_trait, Result<Option<Arc<ApiKey>>, StoreError>>
    where
        'life0: 'async_trait,
        'life1: 'async_trait,
        Self: 'async_trait,
    {
        self.store.find_by_digest(digest)
    }

    async fn get(&self, org: &OrgId, id: &KeyId) -> Result<Option<Arc<ApiKey>>, StoreError> {
        Self::measured("get", self.store.get(org, id)).await
    }

    async fn list(&self, org: &OrgId) -> Result<Vec<Arc<ApiKey>>, StoreError> {
        Self::measured("list", self.store.list(org)).await
    }

    async fn replace(&self, key: &ApiKey, expected: Revision) -> Result<(), StoreError> {
        Self::measured("replace", self.store.replace(key, expected)).await
    }

    async fn delete(
        &self,
        org: &OrgId,
        id: &KeyId,
        expected: Option<Revision>,
    ) -> Result<(), StoreError> {
        Self::measured("delete", self.store.delete(org, id, expected)).await
    }

    async fn record_uses(&self, uses: &[KeyUse]) -> Result<(), StoreError> {
        Self::measured("record_uses", self.store.record_uses(uses)).await
    }
}
