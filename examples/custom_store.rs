//! A custom store: keys in a JSON-lines journal on disk, checked by the conformance suite:
//! `cargo run --example custom_store --features conformance`.
//!
//! Every change appends the whole record to the journal and syncs it before it is
//! acknowledged. Opening the journal reads the records back. It is short rather than fast,
//! and only for a single process.
#![allow(clippy::expect_used, clippy::print_stdout, reason = "an example prints and may fail")]

use std::collections::BTreeMap;
use std::error::Error;
use std::fs::File;
use std::io::{self, Read, Write};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use keygate::conformance::{check_reopened_store, check_store};
use keygate::store::{KeyDigest, KeyUse, OrgLimit, PreviousSecret, Revision};
use keygate::{Allowlist, ApiKey, KeyId, KeyName, KeyStore, OrgId, StoreError, Timestamp};
use serde_json::{Value, json};

#[derive(Debug)]
struct JournalStore {
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    keys: BTreeMap<KeyId, ApiKey>,
    journal: File,
    /// How many bytes of the journal are acknowledged.
    length: u64,
}

impl JournalStore {
    /// Opens the journal, or creates it. The last line about a key is its current record.
    fn open(path: &Path) -> io::Result<Self> {
        let mut journal = File::options().read(true).append(true).create(true).open(path)?;
        let mut text = Vec::new();
        journal.read_to_end(&mut text)?;
        // An unterminated last line was being written when the process was killed. It was
        // not acknowledged, and `append` removes it.
        text.truncate(text.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1));
        let length = text.len() as u64;
        let text = String::from_utf8(text).map_err(io::Error::other)?;
        let mut keys = BTreeMap::new();
        for (number, line) in (1..).zip(text.lines()) {
            let damaged = || io::Error::other(format!("line {number} of the journal is damaged"));
            let line: Value = serde_json::from_str(line).map_err(|_| damaged())?;
            if line.get("deleted").is_some() {
                let id = line.get("id").and_then(Value::as_str);
                let id = id.and_then(|id| id.parse().ok());
                keys.remove(&id.ok_or_else(damaged)?);
            } else {
                let key = read(&line).ok_or_else(damaged)?;
                keys.insert(key.id, key);
            }
        }
        Ok(Self { state: Mutex::new(State { keys, journal, length }) })
    }

    /// Every method holds the lock until it returns, which makes it one atomic step.
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

    /// Written to the journal before the map, so that a failed write changes nothing.
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
            "attributes": key.attributes.to_string(),
            "previous_digest": key.previous.map(|previous| *previous.digest.as_bytes()),
            "previous_until": micros(key.previous.map(|previous| previous.until)),
        });
        self.append(&line)?;
        self.keys.insert(key.id, key);
        Ok(())
    }

    fn append(&mut self, line: &Value) -> Result<(), StoreError> {
        let line = format!("{line}\n");
        let written = || {
            // Removes what a failed write left, which would corrupt this line.
            self.journal.set_len(self.length)?;
            (&self.journal).write_all(line.as_bytes())?;
            self.journal.sync_data()
        };
        written().map_err(StoreError::unavailable)?;
        self.length += line.len() as u64;
        Ok(())
    }
}

/// Reads a line of [`State::save`]. A damaged line is an error: without its expiry, for
/// example, a key would never expire.
fn read(line: &Value) -> Option<ApiKey> {
    let text = |field: &str| line.get(field)?.as_str();
    let list = |field: &str| line.get(field)?.as_array();
    let time = |field: &str| Timestamp::from_unix_micros(line.get(field)?.as_i64()?);
    let optional_time = |field: &str| match line.get(field)? {
        Value::Null => Some(None),
        _ => time(field).map(Some),
    };
    let digest = |field: &str| {
        let bytes = list(field)?.iter().map(|byte| u8::try_from(byte.as_u64()?).ok());
        KeyDigest::from_slice(&bytes.collect::<Option<Vec<u8>>>()?).ok()
    };
    let previous = match optional_time("previous_until")? {
        Some(until) => Some(PreviousSecret { digest: digest("previous_digest")?, until }),
        None => None,
    };
    Some(ApiKey {
        id: text("id")?.parse().ok()?,
        org: OrgId::new(text("org")?).ok()?,
        name: KeyName::restore(text("name")?).ok()?,
        key_prefix: text("key_prefix")?.to_owned(),
        digest: digest("digest")?,
        status: text("status")?.parse().ok()?,
        // Entries that are not strings become empty, so that the list allows no address.
        allowlist: Allowlist::restore(
            list("allowlist")?.iter().map(|entry| entry.as_str().unwrap_or_default()),
        ),
        created_at: time("created_at")?,
        expires_at: optional_time("expires_at")?,
        rotated_at: optional_time("rotated_at")?,
        previous,
        last_used_at: optional_time("last_used_at")?,
        revision: Revision::new(line.get("revision")?.as_u64()?.try_into().ok()?),
        attributes: text("attributes")?.parse().ok()?,
    })
}

#[async_trait::async_trait]
impl KeyStore for JournalStore {
    async fn insert(&self, key: &ApiKey, limit: OrgLimit) -> Result<(), StoreError> {
        let mut state = self.lock();
        if state.keys.values().any(|k| k.id == key.id || k.shares_digest(key)) {
            return Err(StoreError::Conflict);
        }
        if !limit.admits_one_more(state.of_org(&key.org).count()) {
            return Err(StoreError::LimitReached);
        }
        state.save(key.clone())
    }

    async fn find_by_digest(&self, digest: &KeyDigest) -> Result<Option<Arc<ApiKey>>, StoreError> {
        let state = self.lock();
        let found = state.keys.values().find(|key| key.digests().any(|own| own == *digest));
        Ok(found.cloned().map(Arc::new))
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
        let taken = state.keys.values().any(|k| k.id != key.id && k.shares_digest(key));
        if stored.revision != expected || taken {
            return Err(StoreError::Conflict);
        }
        let (created_at, last_used_at) = (stored.created_at, stored.last_used_at);
        state.save(ApiKey { created_at, last_used_at, ..key.clone() })
    }

    async fn delete(
        &self,
        org: &OrgId,
        id: &KeyId,
        expected: Option<Revision>,
    ) -> Result<(), StoreError> {
        let mut state = self.lock();
        let stored = state.get(org, id).ok_or(StoreError::NotFound)?;
        if expected.is_some_and(|expected| expected != stored.revision) {
            return Err(StoreError::Conflict);
        }
        state.append(&json!({ "id": id.to_string(), "deleted": true }))?;
        state.keys.remove(id);
        Ok(())
    }

    async fn record_uses(&self, uses: &[KeyUse]) -> Result<(), StoreError> {
        let mut state = self.lock();
        for used in uses {
            let Some(key) = state.keys.get(&used.id).cloned() else { continue };
            if used.replaces(key.last_used_at) {
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
    let path = folder.join("keys.jsonl");

    // One store for all properties, since each uses its own organisations.
    let store = Arc::new(JournalStore::open(&path)?);
    println!("{}", check_store(|| async { Arc::clone(&store) }).await?);
    drop(store);

    // The journal is opened several times for each property.
    let path = folder.join("reopened.jsonl");
    let open = || async { JournalStore::open(&path).expect("the journal opens") };
    println!("{}", check_reopened_store(open).await?);

    std::fs::remove_dir_all(&folder)?;
    Ok(())
}
