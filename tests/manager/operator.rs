//! Operators: what is found and changed across organisations, and its records.

use std::future::ready;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use keygate::audit::ChangeAction::Updated;
use keygate::audit::{AuditEvent, AuditQuery, AuditScope};
use keygate::existing::{AdoptedKey, DigestKind, ExistingFormat};
use keygate::manager::{IssuedKey, Operator};
use keygate::runtime::{Clock, ManualClock};
use keygate::store::{KeyUse, Search};
use keygate::*;

use crate::support::{Call, eventually, org, soon, unknown_key};
use crate::{assert_gone, assert_unavailable, bench, interfere, new_key, rename};

const DAY: Duration = Duration::from_secs(24 * 60 * 60);

struct Office {
    keys: KeyManager,
    clock: Arc<ManualClock>,
    operator: Operator,
}

impl Office {
    fn new() -> Self {
        let store = Arc::new(MemoryStore::new());
        let clock =
            Arc::new(ManualClock::new("2027-01-31T10:00:00Z".parse::<Timestamp>().unwrap()));
        let builder = KeyManager::builder(store.clone()).audit(MemoryAuditLog::new());
        let format = ExistingFormat::new("acme_live_", 16..=16).unwrap();
        let builder = builder.existing(format).max_overlap(DAY).clock(clock.clone());
        let keys = builder.build().unwrap();
        let operator = keys.operator("support: grace", store);
        Self { keys, clock, operator }
    }

    async fn create(&self, org_name: &str) -> IssuedKey {
        self.keys.create(&Actor::new(org(org_name), "ada"), new_key()).await.unwrap()
    }

    async fn works(&self, issued: &IssuedKey) -> bool {
        self.keys.verify(issued.secret.expose_secret(), None).await.is_ok()
    }

    /// Who made the last change of an organisation's keys, and of which fields.
    async fn last_change(&self, org_name: &str) -> (String, Vec<String>) {
        let query = AuditQuery::new(org(org_name), AuditScope::OrgChanges).limit(1);
        let page = self.keys.audit_page(&query).await.unwrap().unwrap();
        let AuditEvent::Change(change) = &page.records[0].event else { panic!("{page:?}") };
        assert_eq!(change.action, Updated);
        let names = change.fields.iter().map(|field| field.name.to_string()).collect();
        (change.actor.to_string(), names)
    }
}

#[tokio::test]
async fn a_leaked_key_is_found_by_its_secret_its_prefix_and_its_id() {
    let office = Office::new();
    let (leaked, other) = (office.create("acme").await, office.create("globex").await);
    let operator = &office.operator;
    let secret = leaked.secret.expose_secret();
    let found = operator.find_by_secret(secret).await.unwrap().unwrap();
    assert_eq!(found, leaked.key);
    let search = Search::KeyPrefix(secret[..12].to_owned());
    assert_eq!(
        operator.search(&search, None, 10).await.unwrap().keys,
        std::slice::from_ref(&leaked.key)
    );
    assert_eq!(operator.get(&leaked.key.id).await.unwrap(), leaked.key);
    assert_eq!(operator.list(&org("globex")).await.unwrap(), [other.key]);

    for unknown in [&*unknown_key(), "", "vsp_sk_", &secret[..30], &"x".repeat(1_000)] {
        assert_eq!(operator.find_by_secret(unknown).await.unwrap(), None);
    }
    assert_gone(operator.get(&KeyId::from_bytes([9; 16])).await);
    assert_gone(operator.revoke(&KeyId::from_bytes([9; 16])).await);
    let none = operator.search(&Search::KeyPrefix("vsp_sk_".into()), None, 10).await.unwrap();
    assert!(none.keys.is_empty() && none.next.is_none());
}

#[tokio::test]
async fn an_adopted_key_and_an_old_secret_are_found_by_the_secret() {
    let office = Office::new();
    let secret = "acme_live_0123456789abcdef";
    let digest = DigestKind::sha256().read(&sha256_hex(secret)).unwrap();
    let name = KeyName::new("old").unwrap();
    let key = AdoptedKey::new(org("acme"), name, "acme_live_01", digest);
    let adopted = office.keys.adopt(key, "import").await.unwrap().key;
    let found = office.operator.find_by_secret(secret).await.unwrap().unwrap();
    assert_eq!(found.id, adopted.id);

    let issued = office.create("acme").await;
    let actor = Actor::new(org("acme"), "ada");
    office.keys.rotate_with_overlap(&actor, &issued.key.id, DAY, None).await.unwrap();
    let found = office.operator.find_by_secret(issued.secret.expose_secret()).await.unwrap();
    assert_eq!(found.unwrap().id, issued.key.id, "by the secret before the current one");
}

/// The SHA-256 of a text, as a customer's table may have it.
fn sha256_hex(text: &str) -> String {
    let digest = keygate::store::KeyDigest::of(text);
    digest.as_bytes().iter().map(|byte| format!("{byte:02x}")).collect()
}

#[tokio::test]
async fn what_an_operator_changes_is_on_record_with_the_operators_name() {
    let office = Office::new();
    let issued = office.create("acme").await;
    let id = issued.key.id;
    office.operator.revoke(&id).await.unwrap();
    assert!(!office.works(&issued).await);
    let told = office.last_change("acme").await;
    assert_eq!(told, ("support: grace".into(), vec!["status".to_owned()]));
    assert_eq!(office.operator.revoke(&id).await.unwrap().revision.get(), 2, "nothing changes");

    let issued = office.create("acme").await;
    let end = office.clock.now().saturating_add(DAY);
    let changed = office.operator.set_expiry(&issued.key.id, Some(end)).await.unwrap();
    assert_eq!(changed.expires_at, Some(end));
    let told = office.last_change("acme").await;
    assert_eq!(told, ("support: grace".into(), vec!["expires_at".to_owned()]));
    assert!(office.works(&issued).await);
    office.clock.set(end);
    assert!(!office.works(&issued).await);
    office.operator.set_expiry(&issued.key.id, None).await.unwrap();
    assert!(office.works(&issued).await);
}

#[tokio::test]
async fn an_old_secret_does_not_outlive_the_expiry_that_an_operator_sets() {
    let office = Office::new();
    let issued = office.create("acme").await;
    let (actor, id) = (Actor::new(org("acme"), "ada"), issued.key.id);
    office.keys.rotate_with_overlap(&actor, &id, DAY, None).await.unwrap();
    let end = office.clock.now().saturating_add(DAY / 2);
    office.operator.set_expiry(&id, Some(end)).await.unwrap();
    office.operator.set_expiry(&id, None).await.unwrap();
    assert!(office.works(&issued).await);
    office.clock.set(end);
    assert!(!office.works(&issued).await, "an end that was brought forward stays");
}

#[tokio::test]
async fn all_keys_of_one_organisation_are_revoked() {
    let office = Office::new();
    let mut acme = Vec::new();
    for _ in 0..3 {
        acme.push(office.create("acme").await);
    }
    let other = office.create("globex").await;
    office.operator.revoke(&acme[0].key.id).await.unwrap();
    assert_eq!(office.operator.revoke_all(&org("acme")).await.unwrap(), 2);
    assert_eq!(office.operator.revoke_all(&org("acme")).await.unwrap(), 0);
    for key in &acme {
        assert!(!office.works(key).await);
    }
    assert!(office.works(&other).await);
    assert_eq!(office.operator.revoke_all(&org("nobody")).await.unwrap(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn all_keys_are_revoked_while_somebody_keeps_changing_them() {
    let office = Office::new();
    let issued = office.create("acme").await;
    let mut renaming = tokio::task::JoinSet::new();
    for task in 0..8 {
        let (keys, id) = (office.keys.clone(), issued.key.id);
        renaming.spawn(async move {
            for round in 0_u64.. {
                let actor = Actor::new(org("acme"), "mallory");
                let _ = keys.update(&actor, &id, rename(&format!("{task} {round}"))).await;
            }
        });
    }
    assert_eq!(soon(office.operator.revoke_all(&org("acme"))).await.unwrap(), 1);
    renaming.shutdown().await;
    assert!(!office.works(&issued).await);
}

#[tokio::test]
async fn what_expires_and_what_is_unused_is_listed_and_unused_keys_are_revoked() {
    let office = Office::new();
    let begin = office.clock.now();
    let unused = office.create("acme").await;
    let in_use = office.create("globex").await;
    let new = new_key().expires(Expiration::OneWeek);
    let actor = Actor::new(org("initech"), "ada");
    let expiring = office.keys.create(&actor, new).await.unwrap();
    let week = Search::Expiring { from: begin, until: begin.saturating_add(8 * DAY) };
    let page = office.operator.search(&week, None, 10).await.unwrap();
    assert_eq!(page.keys, std::slice::from_ref(&expiring.key));

    office.clock.advance(3 * DAY);
    assert!(office.works(&in_use).await);
    assert!(office.keys.shutdown(Duration::from_secs(20)).await.is_complete());
    let since = begin.saturating_add(DAY);
    let page = office.operator.search(&Search::UnusedSince(since), None, 10).await.unwrap();
    let mut ids: Vec<_> = page.keys.iter().map(|key| key.id).collect();
    ids.sort();
    let mut expected = [unused.key.id, expiring.key.id];
    expected.sort();
    assert_eq!(ids, expected);
}

#[tokio::test]
async fn a_manager_revokes_unused_keys_by_itself_if_the_host_wants_that() {
    let (store, log) = (Arc::new(MemoryStore::new()), Arc::new(MemoryAuditLog::new()));
    let clock = Arc::new(ManualClock::new("2027-01-31T10:00:00Z".parse::<Timestamp>().unwrap()));
    let builder = || KeyManager::builder(store.clone()).audit(log.clone()).clock(clock.clone());
    let keys = builder().build().unwrap();
    let actor = Actor::new(org("acme"), "ada");
    let issued = keys.create(&actor, new_key()).await.unwrap();
    clock.advance(2 * DAY);
    let young = keys.create(&actor, new_key()).await.unwrap();

    let watching = builder().revoke_unused_after(DAY, store.clone()).build().unwrap();
    let status = async |id| keys.get(&org("acme"), id).await.unwrap().status;
    eventually("the unused key is revoked", async || {
        status(&issued.key.id).await == Status::Revoked
    })
    .await;
    assert_eq!(status(&young.key.id).await, Status::Active);
    let query = AuditQuery::new(org("acme"), AuditScope::KeyChanges(issued.key.id)).limit(1);
    let page = watching.audit_page(&query).await.unwrap().unwrap();
    let AuditEvent::Change(change) = &page.records[0].event else { panic!("{page:?}") };
    assert_eq!(&*change.actor, "keygate: unused");
}

#[tokio::test]
async fn a_key_that_was_enabled_or_rotated_since_is_not_unused() {
    let office = Office::new();
    let actor = Actor::new(org("acme"), "ada");
    let [enabled, rotated, unused] =
        [office.create("acme").await, office.create("acme").await, office.create("acme").await];
    office.operator.revoke(&enabled.key.id).await.unwrap();
    office.clock.advance(3 * DAY);
    office.keys.enable(&actor, &enabled.key.id).await.unwrap();
    office.keys.rotate(&actor, &rotated.key.id).await.unwrap();
    let since = office.clock.now().saturating_sub(DAY);
    let found = office.operator.search(&Search::UnusedSince(since), None, 10).await.unwrap();
    let ids: Vec<_> = found.keys.iter().map(|key| key.id).collect();
    assert_eq!(ids, [unused.key.id]);
    assert_eq!(office.operator.revoke_unused_since(since).await.unwrap(), 1);
    office.clock.advance(3 * DAY);
    let since = office.clock.now().saturating_sub(DAY);
    assert_eq!(office.operator.revoke_unused_since(since).await.unwrap(), 2);
}

#[tokio::test]
async fn a_key_that_is_used_after_the_search_is_not_revoked() {
    let b = bench();
    let key = b.create().await.key;
    let id = key.id;
    let (since, used) =
        (key.created_at.saturating_add(DAY), key.created_at.saturating_add(2 * DAY));
    // Between the search and the revocation, which reads the key again.
    interfere(&b.store, Call::Get, move |store| async move {
        store.inner.record_uses(&[KeyUse { id, at: used }]).await.unwrap();
    });
    let operator = b.keys.operator("support: grace", b.store.clone());
    assert_eq!(operator.revoke_unused_since(since).await.unwrap(), 0);
    assert_eq!(operator.get(&id).await.unwrap().status, Status::Active);
}

#[tokio::test]
async fn a_key_that_cannot_be_revoked_does_not_save_the_others() {
    let b = bench();
    for _ in 0..3 {
        b.create().await;
    }
    let failures = Mutex::new(1);
    b.store.before(move |call| {
        let mut left = failures.lock().unwrap();
        let fails = call == Call::Replace && *left > 0;
        *left -= i32::from(fails);
        ready(if fails { Err(StoreError::unavailable("locked")) } else { Ok(()) })
    });
    let operator = b.keys.operator("support: grace", b.store.clone());
    assert_unavailable(operator.revoke_all(&org("acme")).await);
    let active = async || {
        let keys = b.snapshot().await;
        keys.iter().filter(|key| key.status == Status::Active).count()
    };
    assert_eq!(active().await, 1);
    assert_eq!(operator.revoke_all(&org("acme")).await.unwrap(), 1);
    assert_eq!(active().await, 0);
}

#[tokio::test]
async fn only_keys_that_are_still_unused_are_revoked() {
    let office = Office::new();
    let mut unused = Vec::new();
    for number in 0..30 {
        unused.push(office.create(&format!("org-{number}")).await);
    }
    office.clock.advance(3 * DAY);
    let young = office.create("acme").await;
    let since = office.clock.now().saturating_sub(DAY);
    assert_eq!(office.operator.revoke_unused_since(since).await.unwrap(), 30);
    assert_eq!(office.operator.revoke_unused_since(since).await.unwrap(), 0);
    for key in &unused {
        assert!(!office.works(key).await);
    }
    assert!(office.works(&young).await);
    assert_eq!(office.last_change("org-7").await.0, "support: grace");
}
