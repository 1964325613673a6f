//! `ExistingKeys`: what the host's check may do, and what it may not.

use std::collections::HashMap;
use std::error::Error;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use keygate::existing::{ExistingDigest, ExistingKeys, FoundKey};
use keygate::{Actor, KeyManager, NewKey, PlaintextKey, VerifyError};
use tokio::sync::Semaphore;

use crate::support::{Call, SpyStore, org, soon};
use crate::{KEY, assert_allowed, assert_unknown, builder, format, key, sha256};

#[derive(Clone, Copy, Debug, Default)]
enum Check {
    #[default]
    Works,
    Fails,
    Panics,
    Hangs,
}

/// The host's table of slow hashes: text, organisation and reference.
#[derive(Debug)]
struct Old {
    keys: Mutex<HashMap<String, FoundKey>>,
    check: Mutex<Check>,
    asked: AtomicUsize,
    at_once: AtomicUsize,
    most_at_once: AtomicUsize,
    /// Each check waits for a permit.
    doors: Semaphore,
}

impl Old {
    fn new() -> Arc<Self> {
        let count = AtomicUsize::default;
        Arc::new(Self {
            keys: Mutex::default(),
            check: Mutex::default(),
            asked: count(),
            at_once: count(),
            most_at_once: count(),
            doors: Semaphore::new(Semaphore::MAX_PERMITS),
        })
    }

    fn knows(&self, text: &str, of: &str, reference: &str) {
        self.keys.lock().unwrap().insert(text.to_owned(), FoundKey::new(org(of), reference));
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
        drop(self.0.doors.acquire().await?);
        self.0.at_once.fetch_sub(1, Ordering::SeqCst);
        Ok(self.0.keys.lock().unwrap().get(presented.expose_secret()).cloned())
    }
}

fn world(deadline: Duration) -> (Arc<SpyStore>, Arc<Old>, KeyManager) {
    let ((store, builder), old) = (builder(), Old::new());
    let builder = builder.existing(format()).existing_keys(Table(Arc::clone(&old)));
    let keys = builder.existing_keys_at_once(2).store_deadline(deadline).build().unwrap();
    (store, old, keys)
}

const LONG: Duration = Duration::from_secs(20);

#[tokio::test]
async fn the_host_is_asked_once_and_from_then_on_a_key_costs_one_look_up() {
    let (store, old, keys) = world(LONG);
    keys.adopt(key("acme", ExistingDigest::asked("row 7")), "import").await.unwrap();
    old.knows(KEY, "acme", "row 7");
    assert_allowed(&keys, KEY).await;
    store.take_calls();
    assert_allowed(&keys, KEY).await;
    assert_eq!((store.take_calls(), old.asked()), (vec![Call::Find], 1));
    // What the host says later does not matter.
    old.knows("acme_live_another_text_0", "acme", "row 7");
    assert_unknown(&keys, "acme_live_another_text_0").await;
    assert_allowed(&keys, KEY).await;
    // A second adoption changes nothing.
    let again = keys.adopt(key("acme", ExistingDigest::asked("row 7")), "import").await.unwrap();
    assert!(!again.is_new);
    assert_allowed(&keys, KEY).await;
}

#[tokio::test]
async fn the_host_is_not_asked_for_a_known_key_or_an_undeclared_format() {
    let (_, old, keys) = world(LONG);
    keys.adopt(key("acme", sha256(KEY)), "import").await.unwrap();
    let ada = Actor::new(org("acme"), "ada");
    let issued = keys.create(&ada, NewKey::named("new").unwrap()).await.unwrap();
    assert_allowed(&keys, KEY).await;
    assert_allowed(&keys, issued.secret.expose_secret()).await;
    keys.delete(&ada, &issued.key.id).await.unwrap();
    assert_unknown(&keys, issued.secret.expose_secret()).await;
    assert_unknown(&keys, "acme_test_5fKq2Lx8RwZt0aYb").await;
    assert_eq!(old.asked(), 0);
    assert_unknown(&keys, "acme_live_5fKq2Lx8RwZt0aYc").await;
    assert_eq!(old.asked(), 1);
}

#[tokio::test]
async fn case_60_a_check_that_fails_panics_or_hangs_lets_nobody_in() {
    let (store, old, keys) = world(Duration::from_millis(20));
    keys.adopt(key("acme", ExistingDigest::asked("7")), "import").await.unwrap();
    old.knows(KEY, "acme", "7");
    let before = store.snapshot(&org("acme")).await;
    for check in [Check::Fails, Check::Panics, Check::Hangs] {
        *old.check.lock().unwrap() = check;
        let refused = soon(keys.verify(KEY, None)).await.unwrap_err();
        assert_eq!(refused.http_status(), 503, "{check:?}: {refused:?}");
        assert!(!format!("{refused:?}").contains(KEY));
        assert_eq!(store.snapshot(&org("acme")).await, before);
    }
    // Nothing is left of it: all permits are back.
    let (_, old, keys) = world(LONG);
    *old.check.lock().unwrap() = Check::Panics;
    for _ in 0..4 {
        assert!(keys.verify(KEY, None).await.unwrap_err().is_unavailable());
    }
    *old.check.lock().unwrap() = Check::Works;
    keys.adopt(key("acme", ExistingDigest::asked("7")), "import").await.unwrap();
    old.knows(KEY, "acme", "7");
    soon(assert_allowed(&keys, KEY)).await;
}

#[tokio::test]
async fn case_60_only_a_key_of_the_named_organisation_that_waits_for_this_is_let_in() {
    let (store, old, keys) = world(LONG);
    let ordinary = keys.adopt(key("acme", sha256("ordinary")), "import").await.unwrap().key;
    keys.adopt(key("evil", ExistingDigest::asked("7")), "import").await.unwrap();
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
async fn the_host_is_asked_once_for_a_credential_and_for_a_few_at_a_time() {
    let (_, old, keys) = world(LONG);
    old.doors.forget_permits(usize::MAX);
    let text = |n: usize| format!("acme_live_{:016}", n % 5);
    for n in 0..5 {
        keys.adopt(key("acme", ExistingDigest::asked(n.to_string())), "import").await.unwrap();
        old.knows(&text(n), "acme", &n.to_string());
    }
    let requests: Vec<_> = (0..50)
        .map(|n| {
            let keys = keys.clone();
            tokio::spawn(async move { keys.verify(&text(n), None).await.map(drop) })
        })
        .collect();
    crate::support::eventually("two are asked", async || old.asked() == 2).await;
    // The others go on as far as they get.
    for _ in 0..1_000 {
        tokio::task::yield_now().await;
    }
    assert_eq!(old.asked(), 2);
    old.doors.add_permits(1_000);
    for request in requests {
        soon(request).await.unwrap().unwrap();
    }
    assert_eq!((old.asked(), old.most_at_once.load(Ordering::SeqCst)), (5, 2));
}

#[tokio::test]
async fn case_60_a_flood_of_unknown_credentials_waits_in_bounded_number() {
    let (_, old, keys) = world(LONG);
    old.doors.forget_permits(usize::MAX);
    let requests: Vec<_> = (0..300)
        .map(|n| {
            let keys = keys.clone();
            tokio::spawn(async move { keys.verify(&format!("acme_live_{n:016}"), None).await })
        })
        .collect();
    // Those beyond the bound are refused at once, while the rest wait.
    let refused = crate::support::eventually("44 are refused", async || {
        let ended: Vec<_> = requests.iter().filter(|request| request.is_finished()).collect();
        (ended.len() >= 44).then_some(ended.len())
    });
    assert_eq!(refused.await, 44);
    old.doors.add_permits(1_000);
    let mut unavailable = 0;
    for request in requests {
        let refused = soon(request).await.unwrap().unwrap_err();
        unavailable += usize::from(refused.is_unavailable());
    }
    assert_eq!((unavailable, old.asked()), (44, 256));
}

#[tokio::test]
async fn a_request_that_is_dropped_leaves_the_question_to_the_others() {
    let (_, old, keys) = world(LONG);
    old.doors.forget_permits(usize::MAX);
    keys.adopt(key("acme", ExistingDigest::asked("7")), "import").await.unwrap();
    old.knows(KEY, "acme", "7");
    let request = |keys: KeyManager| tokio::spawn(async move { keys.verify(KEY, None).await });
    let first = request(keys.clone());
    crate::support::eventually("it is asked", async || old.asked() == 1).await;
    let second = request(keys.clone());
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
    assert_eq!(old.asked(), 1);
    first.abort();
    crate::support::eventually("the second one asks", async || old.asked() == 2).await;
    old.doors.add_permits(10);
    soon(second).await.unwrap().unwrap();
}
