//! The keys of an old product during the switch to keygate, and imports into each store.

use std::collections::HashSet;
use std::error::Error;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use async_trait::async_trait;
use keygate::existing::{
    AdoptedKey, DigestKind, ExistingDigest, ExistingFormat, ExistingKeys, FoundKey,
};
use keygate::store::{KeyDigest, KeyExport, KeyImport, OrgLimit, PreviousSecret};
use keygate::{
    Allowlist, ApiKey, AuditLog, AuditSink, KeyManager, KeyName, KeyStore, MemoryStore, Metadata,
    PlaintextKey, SqliteStore, Status, StoreError, Timestamp,
};
use sha2::{Digest, Sha256};
use tokio::task::JoinSet;

use crate::postgres_support::in_schema;
use crate::support::{PATIENCE, org};
use crate::{assert_unknown, hex, hmac, sha256};

const CUSTOMERS: usize = 60;

fn text(number: usize) -> String {
    format!("acme_live_{}", &hex(Sha256::digest(number.to_string()))[..32])
}

fn customer(number: usize) -> String {
    format!("customer-{}", number % 7)
}

fn is_active(number: usize) -> bool {
    number % 10 != 9
}

/// The keys of the old product, which changed its digests over the years.
fn entries() -> impl Iterator<Item = AdoptedKey> {
    (0..CUSTOMERS).map(|number| {
        let text = text(number);
        let digest = match number % 3 {
            0 => sha256(&text),
            1 => DigestKind::hmac_sha256("").read_bytes(&hmac("old secret", &text)).unwrap(),
            _ => ExistingDigest::asked(number.to_string()),
        };
        let name = KeyName::new(format!("Key {number}")).unwrap();
        let status = if is_active(number) { Status::Active } else { Status::Revoked };
        AdoptedKey::new(org(&customer(number)), name, &text[..14], digest)
            .status(status)
            .metadata(Metadata::new().with("plan", "pro").unwrap())
    })
}

/// Checks the keys that have a slow hash.
#[derive(Debug)]
struct SlowHashes;

#[async_trait]
impl ExistingKeys for SlowHashes {
    async fn find(
        &self,
        presented: &PlaintextKey,
    ) -> Result<Option<FoundKey>, Box<dyn Error + Send + Sync>> {
        let mut numbers = (0..CUSTOMERS).filter(|number| number % 3 == 2);
        let found = numbers.find(|number| text(*number) == presented.expose_secret());
        Ok(found.map(|number| FoundKey::new(org(&customer(number)), number.to_string())))
    }
}

fn manager<S>(store: S) -> KeyManager
where
    S: KeyStore + AuditSink + AuditLog + Clone,
{
    let format = ExistingFormat::new("acme_live_", 32..=32).unwrap();
    KeyManager::builder(store.clone())
        .audit(store)
        .existing(format.digests(DigestKind::hmac_sha256("old secret")))
        .existing_keys(SlowHashes)
        .store_deadline(PATIENCE)
        .build()
        .unwrap()
}

/// The organisation of the request, according to keygate.
async fn by_keygate(keys: &KeyManager, presented: &str) -> Option<String> {
    match keys.verify(presented, None).await {
        Ok(key) => {
            assert_eq!(key.metadata().get("plan"), Some("pro"));
            Some(key.org().to_string())
        }
        Err(error) => {
            assert_eq!(error.http_status(), 401, "{error:?}");
            None
        }
    }
}

/// Two processes adopt all keys while clients use them.
async fn switch<S>(store: S)
where
    S: KeyStore + KeyExport + KeyImport + AuditSink + AuditLog + Clone,
{
    let processes = [0, 1].map(|_| manager(store.clone()));
    let (is_switched, is_over) =
        (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
    let client = |client: usize| {
        let processes = processes.clone();
        let (is_switched, is_over) = (Arc::clone(&is_switched), Arc::clone(&is_over));
        async move {
            let (mut requests, mut after) = (0, 0);
            // After the switch, each client presents every key.
            while !is_over.load(Ordering::SeqCst) || after < CUSTOMERS {
                let number = (requests * 5 + client) % CUSTOMERS;
                let expected = is_active(number).then(|| customer(number));
                let switched = is_switched.load(Ordering::SeqCst);
                let process = &processes[(requests + client) % 2];
                let known = by_keygate(process, &text(number)).await;
                // Before the switch, the old check may admit what keygate does not know.
                if switched || known.is_some() {
                    assert_eq!(known, expected, "request {requests}, switched: {switched}");
                }
                requests += 1;
                after += usize::from(switched);
                // A look-up in SQLite never waits, so other tasks would not get a turn.
                tokio::task::yield_now().await;
            }
        }
    };
    let clients: JoinSet<()> = (0..8).map(client).collect();
    let report = processes[0].adopt_all(store.clone(), entries(), "import").await;
    assert_eq!((report.adopted, report.refused.len()), (CUSTOMERS as u64, 0), "{report:?}");
    assert!(report.stopped.is_none());
    is_switched.store(true, Ordering::SeqCst);
    // A second run under load changes nothing.
    let report = processes[1].adopt_all(store.clone(), entries(), "import").await;
    assert_eq!((report.adopted, report.already_there), (0, CUSTOMERS as u64));
    is_over.store(true, Ordering::SeqCst);
    clients.join_all().await;

    // The old product is no longer needed: each key is stored by its SHA-256.
    let exported = store.export(None, 1_000).await.unwrap();
    let digests: HashSet<_> = exported.iter().map(|key| key.digest).collect();
    for number in 0..CUSTOMERS {
        assert!(digests.contains(&KeyDigest::of(text(number))), "key {number}");
    }
    assert_unknown(&processes[0], "acme_live_00000000000000000000000000000000").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn keys_keep_working_during_the_switch_on_sqlite() {
    let folder = tempfile::tempdir().unwrap();
    switch(SqliteStore::open(folder.path().join("keygate.db")).unwrap()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
#[ignore = "needs PostgreSQL"]
async fn keys_keep_working_during_the_switch_on_postgres() {
    in_schema(|options| async move { switch(options.connect().await.unwrap()).await }).await;
}

/// Many keys at once are stored like single keys, except those whose id or digest is taken.
async fn stored_exactly(store: impl KeyStore + KeyExport + KeyImport) {
    let key = |n: u64| {
        let damaged = Allowlist::restore(["192.0.2.0/24", "", "a\"b\\c,{}'", "NULL", "ключ"]);
        let lists =
            [Allowlist::default(), Allowlist::parse(["::1", "10.0.0.0/8"]).unwrap(), damaged];
        ApiKey {
            org: org(&format!("org-{}", n % 3)),
            allowlist: lists[(n % 3) as usize].clone(),
            expires_at: n.is_multiple_of(2).then(|| ApiKey::sample(n + 7).created_at),
            ..ApiKey::sample(n)
        }
    };
    assert!(store.insert_all(&[]).await.unwrap().is_empty());
    store.insert(&key(3), OrgLimit::NONE).await.unwrap();
    let (mut same_id, mut same_digest) = (key(2), key(50));
    same_id.digest = KeyDigest::of("another");
    same_digest.digest = key(3).digest;
    let keys: Vec<_> = (0..9).map(key).chain([same_id, same_digest]).collect();
    let inserted = store.insert_all(&keys).await.unwrap();
    let expected: Vec<_> = (0..11).map(|n| n != 3 && n < 9).collect();
    assert_eq!(inserted, expected);
    let stored = store.export(None, 100).await.unwrap();
    let stored: Vec<_> = stored.iter().map(|key| ApiKey::clone(key)).collect();
    assert_eq!(stored, (0..9).map(key).collect::<Vec<_>>());
    // A digest can also be taken by a previous secret.
    let previous = KeyDigest::of("previous");
    let until = Timestamp::MAX;
    let rotated = ApiKey {
        previous: Some(PreviousSecret { digest: previous, until }),
        revision: key(0).revision.next(),
        ..key(0)
    };
    store.replace(&rotated, key(0).revision).await.unwrap();
    let taken = ApiKey { digest: previous, ..key(20) };
    assert_eq!(store.insert_all(&[taken, key(21)]).await.unwrap(), [false, true]);
    store.delete(&key(21).org, &key(21).id, None).await.unwrap();
    // They count towards the limit of the organisation.
    let full = store.insert(&key(12), OrgLimit::at_most(3)).await;
    assert!(matches!(full, Err(StoreError::LimitReached)), "{full:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn many_keys_are_stored_exactly_in_memory_and_sqlite() {
    stored_exactly(MemoryStore::new()).await;
    let folder = tempfile::tempdir().unwrap();
    stored_exactly(SqliteStore::open(folder.path().join("keygate.db")).unwrap()).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs PostgreSQL"]
async fn many_keys_are_stored_exactly_in_postgres() {
    in_schema(|options| async move { stored_exactly(options.connect().await.unwrap()).await })
        .await;
}
