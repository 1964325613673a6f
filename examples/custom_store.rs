//! A store of one's own: keys in a JSON-lines journal on disk, checked by the
//! conformance suite: `cargo run --example custom_store --features conformance`.
//!
//! Every change appends the whole record to the journal and syncs it before it is
//! acknowledged. It is short rather than fast.
#![allow(clippy::print_stdout, reason = "an example prints")]

use std::collections::BTreeMap;
use std::error::Error;
use std::fs::File;
use std::io::{self, Write};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use keygate::{ApiKey, KeyDigest, KeyId, KeyStore, KeyUse, OrgId, OrgLimit, Revision, StoreError};
use serde_json::json;

#[derive(Debug)]
struct JournalStore {
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    keys: BTreeMap<KeyId, ApiKey>,
    journal: File,
}

impl JournalStore {
    fn create(path: &Path) -> io::Result<Self> {
        let state = State { keys: BTreeMap::new(), journal: File::create(path)? };
        Ok(Self { state: Mutex::new(state) })
    }

    /// Every method holds the lock to its end, which makes it one atomic step.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn of_org(&self, org: &OrgId) -> impl Iterator<Item = &ApiKey> {
        self.keys.values().filter(move |key| key.org == *org)
    }

    fn get(&self, org: &OrgId, id: &KeyId) -> Option<&ApiKey> {
        self.keys.get(id).filter(|key| key.org == *org)
    }

    /// First the journal, then the map: what cannot be written is not done.
    fn save(&mut self, key: ApiKey) -> Result<(), StoreError> {
        let micros = |t: Option<keygate::Timestamp>| t.map(|t| t.unix_micros());
        let line = json!({
            "id": key.id.to_string(),
            "org": key.org.as_str(),
            "name": key.name.as_str(),
            "key_prefix": key.key_prefix,
            "digest": key.digest.as_bytes(),
            "status": key.status.as_str(),
            "allowlist": key.allowlist.entries(),
            "created_at": key.created_at.unix_micros(),
            "expires_at": micros(key.expires_at),
            "rotated_at": micros(key.rotated_at),
            "last_used_at": micros(key.last_used_at),
            "revision": key.revision.get(),
        });
        self.append(&line)?;
        self.keys.insert(key.id, key);
        Ok(())
    }

    fn append(&mut self, line: &serde_json::Value) -> Result<(), StoreError> {
        writeln!(self.journal, "{line}").map_err(StoreError::unavailable)?;
        self.journal.sync_data().map_err(StoreError::unavailable)
    }
}

#[async_trait::async_trait]
impl KeyStore for JournalStore {
    async fn insert(&self, key: &ApiKey, limit: OrgLimit) -> Result<(), StoreError> {
        let mut state = self.lock();
        if state.keys.values().any(|k| k.id == key.id || k.digest == key.digest) {
            return Err(StoreError::Conflict);
        }
        if !limit.admits_one_more(state.of_org(&key.org).count()) {
            return Err(StoreError::LimitReached);
        }
        state.save(key.clone())
    }

    async fn find_by_digest(&self, digest: &KeyDigest) -> Result<Option<Arc<ApiKey>>, StoreError> {
        Ok(self.lock().keys.values().find(|key| key.digest == *digest).cloned().map(Arc::new))
    }

    async fn get(&self, org: &OrgId, id: &KeyId) -> Result<Option<Arc<ApiKey>>, StoreError> {
        Ok(self.lock().get(org, id).cloned().map(Arc::new))
    }

    async fn list(&self, org: &OrgId) -> Result<Vec<Arc<ApiKey>>, StoreError> {
        let mut keys: Vec<_> = self.lock().of_org(org).cloned().map(Arc::new).collect();
        keys.sort_by_key(|key| (key.created_at, key.id));
        Ok(keys)
    }

    async fn replace(&self, key: &ApiKey, expected: Revision) -> Result<(), StoreError> {
        let mut state = self.lock();
        let stored = state.get(&key.org, &key.id).ok_or(StoreError::NotFound)?;
        let taken = state.keys.values().any(|k| k.id != key.id && k.digest == key.digest);
        if stored.revision != expected || taken {
            return Err(StoreError::Conflict);
        }
        let (created_at, last_used_at) = (stored.created_at, stored.last_used_at);
        state.save(ApiKey { created_at, last_used_at, ..key.clone() })
    }

    async fn delete(&self, org: &OrgId, id: &KeyId) -> Result<(), StoreError> {
        let mut state = self.lock();
        state.get(org, id).ok_or(StoreError::NotFound)?;
        state.append(&json!({ "id": id.to_string(), "deleted": true }))?;
        state.keys.remove(id);
        Ok(())
    }

    async fn record_uses(&self, uses: &[KeyUse]) -> Result<(), StoreError> {
        let mut state = self.lock();
        for used in uses {
            let Some(key) = state.keys.get(&used.id).cloned() else { continue };
            if key.last_used_at < Some(used.at) {
                state.save(ApiKey { last_used_at: Some(used.at), ..key })?;
            }
        }
        Ok(())
    }
}

#[tokio::main(worker_threads = 4)]
async fn main() -> Result<(), Box<dyn Error>> {
    let folder = std::env::temp_dir().join(format!("keygate-custom-store-{}", std::process::id()));
    std::fs::create_dir_all(&folder)?;
    let store = Arc::new(JournalStore::create(&folder.join("keys.jsonl"))?);

    // One store for all properties: each works on organisations of its own.
    let report = keygate::conformance::check_store(|| {
        let store = Arc::clone(&store);
        async move { store as Arc<dyn KeyStore> }
    })
    .await?;
    println!("{report}");

    std::fs::remove_dir_all(&folder)?;
    Ok(())
}
