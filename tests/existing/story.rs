//! The keys of an old product before, during and after the switch to keygate.

use std::collections::HashMap;
use std::error::Error;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use async_trait::async_trait;
use keygate::existing::{
    AdoptedKey, DigestKind, ExistingDigest, ExistingFormat, ExistingKeys, FoundKey,
};
use keygate::store::{KeyDigest, KeyExport, KeyImport};
use keygate::{
    Actor, ApiKey, AuditLog, AuditSink, Denial, KeyManager, KeyName, KeyStore, Metadata,
    PlaintextKey, SqliteStore, Status, VerifyError,
};
use sha2::{Digest, Sha256};
use tokio::task::JoinSet;

use crate::postgres_support::in_schema;
use crate::support::{PATIENCE, org};
use crate::{assert_allowed, assert_unknown, hex, hmac, sha256};

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

/// Two processes adopt all keys while clients use them. Then keys are revoked and rotated, and
/// the service restarts.
async fn story<S, F: Future<Output = S>>(open: impl Fn() -> F)
where
    S: KeyStore + KeyExport + KeyImport + AuditSink + AuditLog + Clone,
{
    let store = open().await;
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
    let by_digest: HashMap<_, _> = exported.iter().map(|key| (key.digest, key)).collect();
    for number in 0..CUSTOMERS {
        assert!(by_digest.contains_key(&KeyDigest::of(text(number))), "key {number}");
    }
    assert_unknown(&processes[0], "acme_live_00000000000000000000000000000000").await;

    let key = |number| by_digest[&KeyDigest::of(text(number))];
    let ada = |key: &ApiKey| Actor::new(key.org.clone(), "ada");
    let (revoked, rotated, kept) = (4, 5, 6);
    processes[0].revoke(&ada(key(revoked)), &key(revoked).id).await.unwrap();
    let issued = processes[0].rotate(&ada(key(rotated)), &key(rotated).id).await.unwrap();
    assert!(issued.secret.expose_secret().starts_with("vsp_sk_"));
    for process in processes {
        assert!(process.shutdown(PATIENCE).await.is_complete());
    }
    drop(store);

    let store = open().await;
    let keys = manager(store.clone());
    let report = keys.adopt_all(store, entries(), "import").await;
    assert_eq!((report.adopted, report.already_there), (0, CUSTOMERS as u64));
    let refused = keys.verify(&text(revoked), None).await;
    assert!(matches!(refused, Err(VerifyError::Denied { denial: Denial::Revoked, .. })));
    assert_allowed(&keys, issued.secret.expose_secret()).await;
    assert_allowed(&keys, &text(kept)).await;
    // The old table still has it.
    assert_unknown(&keys, &text(rotated)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn keys_keep_working_before_during_and_after_the_switch_on_sqlite() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("keygate.db");
    story(|| std::future::ready(SqliteStore::open(&path).unwrap())).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
#[ignore = "needs PostgreSQL"]
async fn keys_keep_working_before_during_and_after_the_switch_on_postgres() {
    in_schema(|options| async move {
        story(|| {
            let options = options.clone();
            async move { options.connect().await.unwrap() }
        })
        .await;
    })
    .await;
}
