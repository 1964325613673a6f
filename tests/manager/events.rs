//! What a host is told: changes that took place, copies of the audit log, and the end of a key.

use std::future::pending;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use keygate::audit::ChangeAction::{Created, Deleted, Rotated, Updated};
use keygate::error::BuildError;
use keygate::manager::{ChangeListener, KeyChange, KeyManagerBuilder, RequestInfo};
use keygate::runtime::{BoxFuture, Runtime, SystemClock};
use keygate::*;
use tokio::time::timeout;

use crate::support::{Call, Find, PATIENCE, Sink, SpySink, eventually, org, soon};
use crate::{Bench, ada, assert_unavailable, bench_with, fail, new_key, rename};

/// The pause between two look-ups of a key that is watched.
const PAUSE: Duration = Duration::from_millis(500);
/// How long one call of a listener or a further sink may take.
const DEADLINE: Duration = Duration::from_secs(10);

/// Tokio, but with another length of those two times; `None` is for ever.
#[derive(Debug)]
struct Timers {
    pause: Option<Duration>,
    deadline: Duration,
}

impl Runtime for Timers {
    fn spawn(&self, task: BoxFuture<'static, ()>) {
        tokio::spawn(task);
    }

    fn sleep(&self, time: Duration) -> BoxFuture<'static, ()> {
        match (time, self.pause) {
            (PAUSE, None) => Box::pin(pending()),
            (PAUSE, Some(pause)) => Box::pin(tokio::time::sleep(pause)),
            (DEADLINE, _) => Box::pin(tokio::time::sleep(self.deadline)),
            (time, _) => Box::pin(tokio::time::sleep(time)),
        }
    }
}

/// Does not wait for long.
fn hasty(builder: KeyManagerBuilder) -> KeyManagerBuilder {
    let millis = Duration::from_millis;
    builder.runtime(Timers { pause: Some(millis(1)), deadline: millis(50) })
}

type Failure = Box<dyn std::error::Error + Send + Sync>;

/// Remembers what it was told, and fails for each change to a name that says how.
#[derive(Clone, Debug, Default)]
struct Listener(Arc<Mutex<Vec<KeyChange>>>);

#[async_trait]
impl ChangeListener for Listener {
    async fn changed(&self, change: &KeyChange) -> Result<(), Failure> {
        self.0.lock().unwrap().push(change.clone());
        match change.fields.first().map(|field| field.after.to_string()).as_deref() {
            Some("fails") => Err("no mail server".into()),
            Some("panics") => panic!("the listener of a test panics"),
            Some("hangs") => pending().await,
            _ => Ok(()),
        }
    }
}

impl Listener {
    async fn told(&self, count: usize) -> Vec<KeyChange> {
        let told = || self.0.lock().unwrap().clone();
        eventually("the listener is told", async || told().len() >= count).await;
        told()
    }
}

fn with_listener() -> (Bench, Listener) {
    let listener = Listener::default();
    let told = listener.clone();
    (bench_with(|builder| hasty(builder).change_listener(told)), listener)
}

/// Does not look a key up again without a reason, nor give up on a call.
const PATIENT: Timers = Timers { pause: None, deadline: PATIENCE };

#[tokio::test]
async fn a_listener_is_told_of_each_change_that_took_place() {
    let (b, listener) = with_listener();
    let id = b.create().await.key.id;
    b.keys.update(&ada(), &id, rename("b")).await.unwrap();
    b.keys.rotate(&ada(), &id).await.unwrap();
    // Nothing changes.
    b.keys.update(&ada(), &id, rename("b")).await.unwrap();
    fail(&b.store, &[Call::Replace], || StoreError::unavailable("the disk is full"));
    assert_unavailable(b.keys.revoke(&ada(), &id).await);
    b.store.heal();
    b.keys.delete(&ada(), &id).await.unwrap();
    let told = listener.told(4).await;
    let actions: Vec<_> = told.iter().map(|change| change.action).collect();
    assert_eq!(actions, [Created, Updated, Rotated, Deleted]);
    for change in &told {
        assert_eq!((&change.org, change.key, &*change.actor), (&org("acme"), id, ada().name()));
    }
    let renamed = &told[1].fields[0];
    let texts = [&renamed.before, &renamed.after].map(ToString::to_string);
    assert_eq!((&*renamed.name, texts), ("name", ["CI".to_owned(), "b".to_owned()]));
}

#[tokio::test]
async fn a_listener_that_fails_costs_nothing_but_its_own_call() {
    let (b, listener) = with_listener();
    let id = b.create().await.key.id;
    for name in ["fails", "panics", "hangs", "works"] {
        soon(b.keys.update(&ada(), &id, rename(name))).await.unwrap();
    }
    assert_eq!(listener.told(5).await.len(), 5);
    assert!(b.keys.shutdown(Duration::from_secs(20)).await.is_complete());
}

#[tokio::test]
async fn changes_from_before_a_shutdown_are_told() {
    let (b, listener) = with_listener();
    for _ in 0..10 {
        b.create().await;
    }
    assert!(b.keys.shutdown(Duration::from_secs(20)).await.is_complete());
    assert_eq!(listener.0.lock().unwrap().len(), 10);
}

#[tokio::test]
async fn a_shutdown_says_what_was_not_passed_on() {
    let copy = SpySink::default();
    copy.sink(Sink::Hangs);
    let b = bench_with(|builder| {
        let builder = builder.runtime(PATIENT).delivery(Delivery::strict());
        builder.change_listener(Listener::default()).audit_copy(copy)
    });
    let id = b.create().await.key.id;
    for name in ["hangs", "b", "c"] {
        soon(b.keys.update(&ada(), &id, rename(name))).await.unwrap();
    }
    let report = b.keys.shutdown(Duration::from_millis(200)).await;
    // The creation was told; the four changes were batches of one.
    assert_eq!((report.untold_changes, report.uncopied_batches), (3, 4));
    assert!(!report.is_complete());
}

#[tokio::test]
async fn a_further_sink_gets_a_copy_of_every_record_and_may_fail() {
    let copies: [_; 4] = std::array::from_fn(|_| Arc::new(SpySink::default()));
    copies[1].sink(Sink::Fails);
    copies[2].sink(Sink::Hangs);
    copies[3].sink(Sink::Panics);
    let b = bench_with(|builder| {
        let all = copies.iter().cloned();
        let builder = hasty(builder).delivery(Delivery::strict());
        all.fold(builder, |builder, copy| builder.audit_copy(copy))
    });
    let issued = soon(b.create()).await;
    for _ in 0..5 {
        let secret = issued.secret.expose_secret();
        let admission = soon(b.keys.admit(secret, RequestInfo::new("GET", "/"))).await.unwrap();
        soon(admission.finish(200)).await.unwrap();
    }
    assert_eq!(b.log.len(), 6);
    for copy in &copies {
        eventually("a copy is passed on", async || copy.batches() > 0).await;
    }
    eventually("all records are copied", async || copies[0].len() == 6).await;
    assert!(b.keys.health().await.audit_log.works());
    assert_eq!(b.keys.audit_stats().failed, 0);
}

#[tokio::test]
async fn a_further_sink_gets_only_what_the_first_has() {
    let copy = Arc::new(SpySink::default());
    let b = bench_with(|builder| {
        let first = SpySink::default();
        first.sink(Sink::Rejects);
        builder.audit_sink(first).audit_copy(copy.clone())
    });
    assert_unavailable(b.keys.create(&ada(), new_key()).await);
    let _ = b.keys.shutdown(Duration::from_secs(20)).await;
    assert_eq!(copy.batches(), 0);
}

#[tokio::test]
async fn a_copy_without_an_audit_log_is_refused() {
    let builder = KeyManager::builder(MemoryStore::new()).audit_copy(SpySink::default());
    assert!(matches!(builder.build(), Err(BuildError::CopyWithoutSink)));
}

/// Whether the key has ended, and not only after a look-up that fails.
async fn has_ended(keys: &KeyManager, key: &VerifiedKey) -> bool {
    timeout(PATIENCE, keys.ended(key)).await.is_ok()
}

/// Waits until the key was looked up several times and has not ended.
async fn goes_on(b: &Bench, key: &VerifiedKey) {
    b.store.take_calls();
    let mut look_ups = 0;
    let asked = eventually("look-ups", async || {
        look_ups += b.store.take_calls().into_iter().filter(|call| *call == Call::Find).count();
        look_ups >= 5
    });
    tokio::select! {
        () = b.keys.ended(key) => panic!("the key has ended"),
        () = asked => {}
    }
}

#[tokio::test]
async fn a_key_ends_at_once_with_its_revocation_rotation_or_deletion() {
    for way in ["revoke", "rotate", "delete"] {
        // Without another look-up unless there is a change.
        let b = bench_with(|builder| builder.runtime(PATIENT));
        let issued = b.create().await;
        let id = issued.key.id;
        let key = b.verify(&issued).await.unwrap();
        b.store.take_calls();
        let (keys, watched) = (b.keys.clone(), key.clone());
        let watching = tokio::spawn(async move { has_ended(&keys, &watched).await });
        eventually("a look-up", async || b.store.take_calls().contains(&Call::Find)).await;
        match way {
            "revoke" => drop(b.keys.revoke(&ada(), &id).await.unwrap()),
            "rotate" => drop(b.keys.rotate(&ada(), &id).await.unwrap()),
            _ => b.keys.delete(&ada(), &id).await.unwrap(),
        }
        assert!(watching.await.unwrap(), "{way}");
        assert!(has_ended(&b.keys, &key).await, "{way}: and stays so");
    }
}

#[tokio::test]
async fn only_changes_of_the_key_itself_are_looked_at() {
    let b = bench_with(|builder| builder.runtime(PATIENT));
    let (watched, other) = (b.create().await, b.create().await);
    let key = b.verify(&watched).await.unwrap();
    let mut watching = tokio::task::JoinSet::new();
    for _ in 0..10 {
        let (keys, key) = (b.keys.clone(), key.clone());
        watching.spawn(async move { has_ended(&keys, &key).await });
    }
    let before = b.store.finds();
    eventually("each looks it up once", async || b.store.finds() == before + 10).await;
    for name in ["b", "c", "d"] {
        b.keys.update(&ada(), &other.key.id, rename(name)).await.unwrap();
    }
    b.keys.revoke(&ada(), &watched.key.id).await.unwrap();
    assert!(watching.join_all().await.into_iter().all(|has_ended| has_ended));
    assert_eq!(b.store.finds(), before + 20);
}

#[tokio::test]
async fn a_key_ends_at_its_expiry_without_another_look_up() {
    let b = bench_with(|builder| builder.runtime(PATIENT).clock(SystemClock));
    let issued = b.create().await;
    let end = b.keys.now().saturating_add(Duration::from_millis(100));
    let operator = b.keys.operator("support: grace", b.store.clone());
    operator.set_expiry(&issued.key.id, Some(end)).await.unwrap();
    let key = b.verify(&issued).await.unwrap();
    assert!(has_ended(&b.keys, &key).await);
    assert!(b.keys.now() >= end);
}

#[tokio::test]
async fn a_key_that_is_edited_goes_on_and_an_old_secret_ends_with_its_overlap() {
    let minute = Duration::from_secs(60);
    let b = bench_with(|builder| hasty(builder).max_overlap(minute));
    let issued = b.create().await;
    let id = issued.key.id;
    let key = b.verify(&issued).await.unwrap();
    b.keys.update(&ada(), &id, rename("b")).await.unwrap();
    b.keys.delete(&ada(), &b.create().await.key.id).await.unwrap();
    goes_on(&b, &key).await;
    b.keys.rotate_with_overlap(&ada(), &id, minute, None).await.unwrap();
    goes_on(&b, &key).await;
    b.clock.advance(minute);
    assert!(has_ended(&b.keys, &key).await);
}

#[tokio::test]
async fn a_key_ends_with_its_expiry_and_with_a_change_by_another_process() {
    let b = bench_with(hasty);
    let new = new_key().expires(Expiration::OneDay);
    let issued = b.keys.create(&ada(), new).await.unwrap();
    let key = b.verify(&issued).await.unwrap();
    goes_on(&b, &key).await;
    b.clock.advance(Duration::from_secs(24 * 60 * 60));
    assert!(has_ended(&b.keys, &key).await);

    let issued = b.create().await;
    let key = b.verify(&issued).await.unwrap();
    goes_on(&b, &key).await;
    b.another().revoke(&ada(), &issued.key.id).await.unwrap();
    assert!(has_ended(&b.keys, &key).await);
}

#[tokio::test]
async fn while_the_store_is_unavailable_a_key_does_not_end() {
    let b = bench_with(hasty);
    let issued = b.create().await;
    let key = b.verify(&issued).await.unwrap();
    b.store.find(Find::Fails);
    goes_on(&b, &key).await;
    b.another().revoke(&ada(), &issued.key.id).await.unwrap();
    goes_on(&b, &key).await;
    b.store.find(Find::Honest);
    assert!(has_ended(&b.keys, &key).await);
}
