//! The whole story of an old product's keys: before, during and after the switch to keygate.

use std::collections::HashMap;
use std::error::Error;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use hmac::{Hmac, KeyInit, Mac};
use keygate::existing::{
    AdoptedKey, DigestKind, ExistingDigest, ExistingFormat, ExistingKeys, FoundKey,
};
use keygate::store::{KeyDigest, KeyExport, KeyImport, OrgLimit, PreviousSecret};
use keygate::{
    Actor, Allowlist, ApiKey, AuditLog, AuditSink, Denial, KeyManager, KeyName, KeyStore,
    MemoryStore, Metadata, PlaintextKey, SqliteStore, Status, StoreError, Timestamp, VerifyError,
};
use sha2::{Digest, Sha256};

use crate::postgres_support::in_schema;
use crate::support::org;
use crate::{assert_allowed, assert_unknown};

const CUSTOMERS: usize = 60;

/// One row of the old product's table.
#[derive(Debug)]
struct Row {
    number: usize,
    customer: String,
    /// Of the whole key, keyed, or slow and salted, as the product changed over the years.
    digest: Vec<u8>,
    is_active: bool,
}

#[derive(Debug)]
struct OldProduct(Vec<Row>);

fn text(number: usize) -> String {
    format!("acme_live_{}", &hex(&Sha256::digest(number.to_string()))[..32])
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

fn keyed(text: &str) -> Vec<u8> {
    let mut mac = Hmac::<Sha256>::new_from_slice(b"old secret").unwrap();
    mac.update(text.as_bytes());
    mac.finalize().into_bytes().to_vec()
}

/// Stands for bcrypt.
fn slow(salt: usize, text: &str) -> Vec<u8> {
    Sha256::digest(format!("{salt}${text}")).to_vec()
}

impl OldProduct {
    fn new() -> Arc<Self> {
        let row = |number: usize| Row {
            number,
            customer: format!("customer-{}", number % 7),
            digest: match number % 3 {
                0 => Sha256::digest(text(number)).to_vec(),
                1 => keyed(&text(number)),
                _ => slow(number, &text(number)),
            },
            is_active: number % 10 != 9,
        };
        Arc::new(Self((0..CUSTOMERS).map(row).collect()))
    }

    fn find(&self, presented: &str) -> Option<&Row> {
        let of_all = [Sha256::digest(presented).to_vec(), keyed(presented)];
        self.0.iter().find(|row| match row.number % 3 {
            kind @ (0 | 1) => row.digest == of_all[kind],
            _ => row.digest == slow(row.number, presented),
        })
    }

    fn admits(&self, presented: &str) -> Option<&str> {
        Some(self.find(presented).filter(|row| row.is_active)?.customer.as_str())
    }

    fn entries(&self) -> Vec<AdoptedKey> {
        let entry = |row: &Row| {
            let digest = match row.number % 3 {
                0 => DigestKind::sha256().read(&hex(&row.digest)).unwrap(),
                1 => DigestKind::hmac_sha256("").read_bytes(&row.digest).unwrap(),
                _ => ExistingDigest::asked(row.number.to_string()),
            };
            let name = KeyName::new(format!("Key {}", row.number)).unwrap();
            let status = if row.is_active { Status::Active } else { Status::Revoked };
            AdoptedKey::new(org(&row.customer), name, &text(row.number)[..14], digest)
                .status(status)
                .metadata(Metadata::new().with("plan", "pro").unwrap())
        };
        self.0.iter().map(entry).collect()
    }
}

#[derive(Debug)]
struct Table(Arc<OldProduct>, Arc<AtomicUsize>);

#[async_trait]
impl ExistingKeys for Table {
    async fn find(
        &self,
        presented: &PlaintextKey,
    ) -> Result<Option<FoundKey>, Box<dyn Error + Send + Sync>> {
        self.1.fetch_add(1, Ordering::SeqCst);
        let row = self.0.find(presented.expose_secret()).filter(|row| row.number % 3 == 2);
        Ok(row.map(|row| FoundKey::new(org(&row.customer), row.number.to_string())))
    }
}

fn manager<S>(store: S, old: &Arc<OldProduct>, asked: &Arc<AtomicUsize>) -> KeyManager
where
    S: KeyStore + AuditSink + AuditLog + Clone,
{
    let format = ExistingFormat::new("acme_live_", 32..=32).unwrap();
    KeyManager::builder(store.clone())
        .audit(store)
        .existing(format.digests(DigestKind::hmac_sha256("old secret")))
        .existing_keys(Table(Arc::clone(old), Arc::clone(asked)))
        .store_deadline(Duration::from_secs(20))
        .build()
        .unwrap()
}

/// Whose request it is, by keygate.
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

async fn story<S, F: Future<Output = S>>(open: impl Fn() -> F)
where
    S: KeyStore + KeyExport + KeyImport + AuditSink + AuditLog + Clone,
{
    let (old, asked) = (OldProduct::new(), Arc::new(AtomicUsize::new(0)));
    let store = open().await;
    // Two processes behind one load balancer.
    let processes = [0, 1].map(|_| manager(store.clone(), &old, &asked));
    let (is_switched, is_over) =
        (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
    let clients: Vec<_> = (0..8)
        .map(|client| {
            let (old, processes) = (Arc::clone(&old), processes.clone());
            let (is_switched, is_over) = (Arc::clone(&is_switched), Arc::clone(&is_over));
            tokio::spawn(async move {
                let mut requests = 0;
                // Once through all after the switch, at least.
                let mut after = 0;
                while !is_over.load(Ordering::SeqCst) || after < CUSTOMERS {
                    let presented = text((requests * 5 + client) % CUSTOMERS);
                    let expected = old.admits(&presented).map(str::to_owned);
                    let switched = is_switched.load(Ordering::SeqCst);
                    let process = &processes[(requests + client) % 2];
                    // Until the switch, the old check has the last word.
                    let known = by_keygate(process, &presented).await;
                    let answer = if switched { known } else { known.or(expected.clone()) };
                    assert_eq!(answer, expected, "request {requests}, switched: {switched}");
                    requests += 1;
                    after += usize::from(switched);
                    // A look-up in SQLite never waits, so other tasks would not get a turn.
                    tokio::task::yield_now().await;
                }
            })
        })
        .collect();
    let report = processes[0].adopt_all(store.clone(), old.entries(), "import").await;
    assert_eq!((report.adopted, report.refused.len()), (CUSTOMERS as u64, 0), "{report:?}");
    assert!(report.stopped.is_none());
    is_switched.store(true, Ordering::SeqCst);
    // Again, under load: nothing changes.
    let report = processes[1].adopt_all(store.clone(), old.entries(), "import").await;
    assert_eq!((report.adopted, report.already_there), (0, CUSTOMERS as u64));
    is_over.store(true, Ordering::SeqCst);
    for client in clients {
        client.await.unwrap();
    }

    // From now on, nobody needs the old product: each key is stored by the SHA-256 of it.
    let exported = store.export(None, 1_000).await.unwrap();
    let by_digest: HashMap<_, _> = exported.iter().map(|key| (key.digest, key)).collect();
    for number in 0..CUSTOMERS {
        assert!(by_digest.contains_key(&KeyDigest::of(text(number))), "key {number}");
    }
    assert_unknown(&processes[0], "acme_live_00000000000000000000000000000000").await;

    let [revoked, rotated, kept] = [4, 5, 6].map(|number| {
        let key = by_digest[&KeyDigest::of(text(number))];
        (key.id, Actor::new(key.org.clone(), "ada"), text(number))
    });
    processes[0].revoke(&revoked.1, &revoked.0).await.unwrap();
    let issued = processes[0].rotate(&rotated.1, &rotated.0).await.unwrap();
    assert!(issued.secret.expose_secret().starts_with("vsp_sk_"));
    for process in processes {
        assert!(process.shutdown(Duration::from_secs(20)).await.is_complete());
    }
    drop(store);

    // After a restart, with another run for good measure.
    let store = open().await;
    let asked_before = asked.load(Ordering::SeqCst);
    let keys = manager(store.clone(), &old, &asked);
    let report = keys.adopt_all(store, old.entries(), "import").await;
    assert_eq!((report.adopted, report.already_there), (0, CUSTOMERS as u64));
    let refused = keys.verify(&revoked.2, None).await;
    assert!(matches!(refused, Err(VerifyError::Denied { denial: Denial::Revoked, .. })));
    assert_allowed(&keys, issued.secret.expose_secret()).await;
    assert_allowed(&keys, &kept.2).await;
    assert_eq!(asked.load(Ordering::SeqCst), asked_before);
    // The old table still knows it, keygate does not.
    assert_unknown(&keys, &rotated.2).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn the_story_on_sqlite() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("keygate.db");
    story(|| std::future::ready(SqliteStore::open(&path).unwrap())).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
#[ignore = "needs PostgreSQL"]
async fn the_story_on_postgres() {
    in_schema(|options| async move {
        let open = || {
            let options = options.clone();
            async move { options.connect().await.unwrap() }
        };
        story(open).await;
    })
    .await;
}

/// Many keys at once are stored like single ones, and only where nothing is taken.
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
    // The organisation's limit counts them.
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
