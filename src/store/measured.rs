//! A store whose calls are measured.

use std::sync::Arc;

use async_trait::async_trait;

use crate::key::digest::KeyDigest;
use crate::key::id::KeyId;
use crate::meters::Timer;
use crate::meters::recorded::StoreMeter;
use crate::org::OrgId;
use crate::record::{ApiKey, KeyUse, OrgLimit, Revision};
use crate::store::key_store::{KeyStore, StoreError};

#[derive(Debug)]
pub(crate) struct Measured {
    store: Arc<dyn KeyStore>,
    meter: StoreMeter,
}

impl Measured {
    pub(crate) fn new(store: Arc<dyn KeyStore>) -> Self {
        Self { store, meter: StoreMeter::new() }
    }

    async fn measured<T>(
        &self,
        operation: &'static str,
        call: impl Future<Output = Result<T, StoreError>>,
    ) -> Result<T, StoreError> {
        let timer = Timer::start();
        let result = call.await;
        self.meter.measure(operation, timer, &result);
        result
    }
}

#[async_trait]
impl KeyStore for Measured {
    async fn insert(&self, key: &ApiKey, limit: OrgLimit) -> Result<(), StoreError> {
        self.measured("insert", self.store.insert(key, limit)).await
    }

    async fn find_by_digest(&self, digest: &KeyDigest) -> Result<Option<Arc<ApiKey>>, StoreError> {
        self.measured("find_by_digest", self.store.find_by_digest(digest)).await
    }

    async fn get(&self, org: &OrgId, id: &KeyId) -> Result<Option<Arc<ApiKey>>, StoreError> {
        self.measured("get", self.store.get(org, id)).await
    }

    async fn list(&self, org: &OrgId) -> Result<Vec<Arc<ApiKey>>, StoreError> {
        self.measured("list", self.store.list(org)).await
    }

    async fn replace(&self, key: &ApiKey, expected: Revision) -> Result<(), StoreError> {
        self.measured("replace", self.store.replace(key, expected)).await
    }

    async fn delete(
        &self,
        org: &OrgId,
        id: &KeyId,
        expected: Option<Revision>,
    ) -> Result<(), StoreError> {
        self.measured("delete", self.store.delete(org, id, expected)).await
    }

    async fn record_uses(&self, uses: &[KeyUse]) -> Result<(), StoreError> {
        self.measured("record_uses", self.store.record_uses(uses)).await
    }
}
