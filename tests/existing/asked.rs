//! Tests of `ExistingKeys`, the check by the service itself.

use std::collections::HashMap;
use std::error::Error;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use keygate::existing::{ExistingDigest, ExistingKeys, FoundKey};
use keygate::{KeyManager, NewKey, PlaintextKey, VerifyError};
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;

use crate::support::{Call, SpyStore, eventually, org, soon};
use crate::{KEY, ada, adopt, assert_allowed, assert_unknown, builder, format, key, sha256};

#[derive(Clone, Copy, Debug, Default)]
enum Check {
    #[default]
    Works,
    Fails,
    Panics,
    Hangs,
}

/// The keys of the old product: each with its organisation and reference.
#[derive(Debug)]
struct Old {
    keys: Mutex<HashMap<String, FoundKey>>,
    check: Mutex<Check>,
    asked: AtomicUsize,
    at_once: AtomicUsize,
    most_at_once: AtomicUsize,
    /// Each check waits for a permit.
    permits: Semaphore,
}

impl Old {
    fn knows(&self, text: &str, of: &str, reference: &str) {
        self.keys.lock().unwrap().insert(text.to_owned(), FoundKey::new(org(of), reference));
    }

    fn check(&self, check: Check) {
        *self.check.lock().unwrap() = check;
    }

    fn hold(&self) {
        self.permits.forget_permits(usize::MAX);
    }

    fn release(&self) {
        self.permits.add_permits(1_000);
    }

    fn asked(&self) -> usize {
        self.asked.load(Ordering::SeqCst)
    }
}

#[derive(Debug)]
struct Table(Arc<Old>);

#[async_trait]
impl ExistingKeys for Table {
    async fn find(
        &self,
        presented: &PlaintextKey,
    ) -> Result<Option<FoundKey>, Box<dyn Error + Send + Sync>> {
        assert_eq!(format!("{presented} {presented:?}"), "[REDACTED] [REDACTED]");
        self.0.asked.fetch_add(1, Ordering::SeqCst);
        let now = self.0.at_once.fetch_add(1, Ordering::SeqCst) + 1;
        self.0.most_at_once.fetch_max(now, Ordering::SeqCst);
        let check = *self.0.check.lock().unwrap();
        match check {
            Check::Works => {}
            Check::Fails => return Err("the old database is away".into()),
            Check::Panics => panic!("a bug"),
            Check::Hangs => std::future::pending().await,
        }
        drop(self.0.permits.acquire().await?);
        self.0.at_once.fetch_sub(1, Ordering::SeqCst);
        Ok(self.0.keys.lock().unwrap().get(presented.expose_secret()).cloned())
    }
}

fn world(deadline: Duration) -> (Arc<SpyStore>, Arc<Old>, KeyManager) {
    let (store, builder) = builder();
    let old = Arc::new(Old {
        keys: Mutex::default(),
        check: Mutex::default(),
        asked: AtomicUsize::default(),
        at_once: AtomicUsize::default(),
        most_at_once: AtomicUsize::default(),
        permits: Semaphore::new(Semaphore::MAX_PERMITS),
    });
    let builder = builder.existing(format()).existing_keys(Table(Arc::clone(&old)));
    let keys = builder.existing_keys_at_once(2).store_deadline(deadline).build().unwrap();
    (store, old, keys)
}

/// Adopts a key of which keygate knows only the reference.
async fn adopt_reference(keys: &KeyManager, of: &str, reference: &str) {
    adopt(keys, key(of, ExistingDigest::asked(reference))).await;
}

/// Adopts [`KEY`] in this way.
async fn adopt_key(keys: &KeyManager, old: &Old) {
    adopt_reference(keys, "acme", "7").await;
    old.knows(KEY, "acme", "7");
}

fn verify(keys: &KeyManager, text: String) -> JoinHandle<Result<(), VerifyError>> {
    let keys = keys.clone();
    tokio::spawn(async move { keys.verify(&text, None).await.map(drop) })
}

const LONG: Duration = Duration::from_secs(20);

#[tokio::test]
async fn the_service_is_asked_once_and_later_requests_cost_one_look_up() {
    let (store, old, keys) = world(LONG);
    adopt_key(&keys, &old).await;
    assert_allowed(&keys, KEY).await;
    store.take_calls();
    assert_allowed(&keys, KEY).await;
    assert_eq!((store.take_calls(), old.asked()), (vec![Call::Find], 1));
    // Later answers of the service do not matter.
    old.knows("acme_live_another_text_0", "acme", "7");
    assert_unknown(&keys, "acme_live_another_text_0").await;
    assert_allowed(&keys, KEY).await;
    // A second adoption changes nothing.
    let again = keys.adopt(key("acme", ExistingDigest::asked("7")), "import").await;
    assert!(!again.unwrap().is_new);
    assert_allowed(&keys, KEY).await;
}

#[tokio::test]
async fn the_service_is_not_asked_for_a_known_key_or_an_undeclared_format() {
    let (_, old, keys) = world(LONG);
    adopt(&keys, key("acme", sha256(KEY))).await;
    let issued = keys.create(&ada(), NewKey::named("new").unwrap()).await.unwrap();
    assert_allowed(&keys, KEY).await;
    assert_allowed(&keys, issued.secret.expose_secret()).await;
    keys.delete(&ada(), &issued.key.id).await.unwrap();
    assert_unknown(&keys, issued.secret.expose_secret()).await;
    assert_unknown(&keys, "acme_test_5fKq2Lx8RwZt0aYb").await;
    assert_eq!(old.asked(), 0);
    assert_unknown(&keys, "acme_live_5fKq2Lx8RwZt0aYc").await;
    assert_eq!(old.asked(), 1);
}

#[tokio::test]
async fn case_60_a_check_that_fails_panics_or_hangs_accepts_no_key() {
    let (store, old, keys) = world(Duration::from_millis(20));
    adopt_key(&keys, &old).await;
    let before = store.snapshot(&org("acme")).await;
    for check in [Check::Fails, Check::Panics, Check::Hangs] {
        old.check(check);
        let refused = soon(keys.verify(KEY, None)).await.unwrap_err();
        assert_eq!(refused.http_status(), 503, "{check:?}: {refused:?}");
        assert!(!format!("{refused:?}").contains(KEY));
        assert_eq!(store.snapshot(&org("acme")).await, before);
    }
    // A failed check gives its place back.
    let (_, old, keys) = world(LONG);
    adopt_key(&keys, &old).await;
    old.check(Check::Panics);
    for _ in 0..4 {
        assert!(keys.verify(KEY, None).await.unwrap_err().is_unavailable());
    }
    old.check(Check::Works);
    soon(assert_allowed(&keys, KEY)).await;
}

#[tokio::test]
async fn case_60_the_organisation_and_the_reference_must_be_those_of_an_adopted_key() {
    let (store, old, keys) = world(LONG);
    let ordinary = adopt(&keys, key("acme", sha256("ordinary"))).await;
    adopt_reference(&keys, "evil", "7").await;
    for (of, reference) in [
        ("acme", "7"),
        ("evil", "8"),
        ("evil", ""),
        ("evil7", ""),
        ("acme", &ordinary.id.to_string()),
        ("acme", &ordinary.key_prefix),
        ("acme", "ordinary"),
    ] {
        old.knows(KEY, of, reference);
        let refused = keys.verify(KEY, None).await;
        assert!(matches!(refused, Err(VerifyError::Unknown)), "{of} {reference}: {refused:?}");
    }
    assert_eq!(store.snapshot(&org("acme")).await, [keygate::ApiKey::clone(&ordinary)]);
    assert_eq!(keys.verify(KEY, None).await.unwrap_err().http_status(), 401);
    old.knows(KEY, "evil", "7");
    assert_eq!(keys.verify(KEY, None).await.unwrap().org(), &org("evil"));
}

#[tokio::test]
async fn the_service_is_asked_once_for_each_credential_and_for_two_at_a_time() {
    let (_, old, keys) = world(LONG);
    old.hold();
    let text = |n: usize| format!("acme_live_{:016}", n % 5);
    for n in 0..5 {
        adopt_reference(&keys, "acme", &n.to_string()).await;
        old.knows(&text(n), "acme", &n.to_string());
    }
    let requests: Vec<_> = (0..50).map(|n| verify(&keys, text(n))).collect();
    eventually("two are asked", async || old.asked() == 2).await;
    // The other requests continue until they wait.
    for _ in 0..1_000 {
        tokio::task::yield_now().await;
    }
    assert_eq!(old.asked(), 2);
    old.release();
    for request in requests {
        soon(request).await.unwrap().unwrap();
    }
    assert_eq!((old.asked(), old.most_at_once.load(Ordering::SeqCst)), (5, 2));
}

#[tokio::test]
async fn case_60_a_bounded_number_of_unknown_credentials_waits() {
    let (_, old, keys) = world(LONG);
    old.hold();
    let requests: Vec<_> = (0..300).map(|n| verify(&keys, format!("acme_live_{n:016}"))).collect();
    // Further requests are refused at once.
    let refused = eventually("44 are refused", async || {
        let ended: Vec<_> = requests.iter().filter(|request| request.is_finished()).collect();
        (ended.len() >= 44).then_some(ended.len())
    });
    assert_eq!(refused.await, 44);
    old.release();
    let mut unavailable = 0;
    for request in requests {
        let refused = soon(request).await.unwrap().unwrap_err();
        unavailable += usize::from(refused.is_unavailable());
    }
    assert_eq!((unavailable, old.asked()), (44, 256));
}

#[tokio::test]
async fn after_a_request_was_dropped_the_next_one_asks() {
    let (_, old, keys) = world(LONG);
    old.hold();
    adopt_key(&keys, &old).await;
    let first = verify(&keys, KEY.to_owned());
    eventually("it is asked", async || old.asked() == 1).await;
    let second = verify(&keys, KEY.to_owned());
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
    assert_eq!(old.asked(), 1);
    first.abort();
    eventually("the second one asks", async || old.asked() == 2).await;
    old.release();
    soon(second).await.unwrap().unwrap();
}
