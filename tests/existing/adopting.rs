//! Tests of `adopt` and `adopt_all`.

use std::future::ready;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use keygate::audit::{AuditEvent, AuditQuery, AuditScope, ChangeAction};
use keygate::existing::{AdoptError, AdoptedKey, DigestKind};
use keygate::{
    Actor, Allowlist, Denial, KeyFormat, KeyManager, KeyName, KeyStore, ManageError,
    MemoryAuditLog, MemoryStore, Metadata, NewKey, Status, StoreError, Timestamp, VerifyError,
};

use crate::support::{Call, org};
use crate::{
    KEY, ada, adopt, assert_allowed, assert_denied, assert_unknown, builder, format, key, manager,
    rename, sha256, sha512,
};

fn at(text: &str) -> Timestamp {
    text.parse::<Timestamp>().unwrap()
}

fn text(n: usize) -> String {
    format!("acme_live_{n:016}")
}

fn many(count: usize) -> Vec<AdoptedKey> {
    (0..count).map(|n| key(&format!("org-{}", n % 40), sha256(text(n)))).collect()
}

#[tokio::test]
async fn an_adopted_key_has_the_times_and_properties_that_it_was_given() {
    let (_, keys) = manager(format());
    let adopted = key("acme", sha256(KEY))
        .created_at(at("2021-03-04T05:06:07Z"))
        .created_by("bob")
        .last_used_at(at("2025-01-01T00:00:00Z"))
        .metadata(Metadata::new().with("plan", "pro").unwrap())
        .allowlist(Allowlist::parse(["192.0.2.0/24"]).unwrap());
    let stored = keys.adopt(adopted.clone(), "import").await.unwrap();
    assert!(stored.is_new);
    let stored = stored.key;
    assert_eq!(keys.get(&org("acme"), &stored.id).await.unwrap(), stored);
    assert_eq!(stored.created_at, at("2021-03-04T05:06:07Z"));
    assert_eq!(stored.last_used_at, Some(at("2025-01-01T00:00:00Z")));
    assert_eq!(stored.attributes.created_by.as_deref(), Some("bob"));
    assert_eq!((stored.key_prefix.as_str(), stored.rotated_at), ("acme_live_5f", None));
    let verified = keys.verify(KEY, Some("192.0.2.7".parse().unwrap())).await.unwrap();
    assert_eq!(verified.metadata().get("plan"), Some("pro"));
    let refused = keys.verify(KEY, Some("198.51.100.1".parse().unwrap())).await;
    assert!(matches!(refused, Err(VerifyError::Denied { denial: Denial::IpNotAllowed, .. })));

    let revoked = key("acme", sha256(text(1))).status(Status::Revoked);
    let expired = key("acme", sha256(text(2))).expires_at(at("2021-03-04T05:06:07Z"));
    for (adopted, text, reason) in
        [(revoked, text(1), Denial::Revoked), (expired, text(2), Denial::Expired)]
    {
        adopt(&keys, adopted).await;
        assert_denied(&keys, &text, reason).await;
    }
}

#[tokio::test]
async fn many_keys_are_adopted_beyond_the_limit_and_again_without_a_change() {
    let (store, keys) = manager(format());
    let report = keys.adopt_all(store.clone(), many(1_000), "import").await;
    assert_eq!((report.adopted, report.already_there, report.refused.len()), (1_000, 0, 0));
    assert!(report.stopped.is_none());
    assert_eq!(store.snapshot(&org("org-0")).await.len(), 25);
    for n in [0, 999] {
        assert_allowed(&keys, &text(n)).await;
    }
    store.take_calls();
    let report = keys.adopt_all(store.clone(), many(1_000), "import").await;
    assert_eq!((report.adopted, report.already_there, report.refused.len()), (0, 1_000, 0));
    assert!(!store.take_calls().contains(&Call::Insert));
    let actor = Actor::new(org("org-0"), "ada");
    let full = keys.create(&actor, NewKey::named("26th").unwrap()).await;
    assert!(matches!(full, Err(ManageError::LimitReached { max: 20 })));
}

#[tokio::test]
async fn another_run_does_not_undo_changes_of_adopted_keys() {
    let (store, keys) = manager(format().digests(DigestKind::sha512()));
    let adopted = || (1..4).map(|n| key("acme", sha512(&text(n))));
    assert_eq!(keys.adopt_all(store.clone(), adopted(), "import").await.adopted, 3);
    let [renamed, revoked, rotated] = store.snapshot(&org("acme")).await.try_into().unwrap();
    keys.update(&ada(), &renamed.id, rename("new")).await.unwrap();
    keys.revoke(&ada(), &revoked.id).await.unwrap();
    let issued = keys.rotate(&ada(), &rotated.id).await.unwrap();
    let before = store.snapshot(&org("acme")).await;
    assert_eq!(keys.adopt_all(store.clone(), adopted(), "import").await.already_there, 3);
    assert_eq!(store.snapshot(&org("acme")).await, before);
    assert_allowed(&keys, issued.secret.expose_secret()).await;
}

#[tokio::test]
async fn a_rotated_key_has_the_format_of_its_environment_and_the_old_text_fails() {
    let keys = KeyManager::builder(MemoryStore::new())
        .environment("live", KeyFormat::default())
        .environment("test", KeyFormat::new("vsp_sk_test_").unwrap())
        .existing(format())
        .build()
        .unwrap();
    let stored = adopt(&keys, key("acme", sha256(KEY)).environment("test")).await;
    assert_eq!(keys.environment_of(&stored), Some("test"));
    assert_eq!(keys.verify(KEY, None).await.unwrap().environment(), Some("test"));
    assert_eq!(keys.list(&org("acme")).await.unwrap().len(), 1);
    let issued = keys.rotate(&ada(), &stored.id).await.unwrap();
    assert!(issued.secret.expose_secret().starts_with("vsp_sk_test_"));
    assert!(issued.key.key_prefix.starts_with("vsp_sk_test_"));
    assert_eq!(issued.key.attributes, keygate::store::Attributes::default());
    assert_unknown(&keys, KEY).await;
    let verified = keys.verify(issued.secret.expose_secret(), None).await.unwrap();
    assert_eq!((verified.environment(), verified.id()), (Some("test"), stored.id));
}

#[tokio::test]
async fn case_60_each_wrong_entry_is_refused_with_its_reason() {
    let (store, keys) = manager(format());
    let issued = keys.create(&ada(), NewKey::named("new").unwrap()).await.unwrap();
    let named = |name: &str| {
        AdoptedKey::new(org("acme"), KeyName::new(name).unwrap(), "acme_live_5f", sha256(name))
    };
    let shown = |shown: &str| {
        AdoptedKey::new(org("acme"), KeyName::new("CI").unwrap(), shown, sha256(shown))
    };
    let part = DigestKind::sha256().behind('|').read_bytes(&[1; 32]).unwrap();
    let whole = DigestKind::sha512().read_bytes(&[1; 64]).unwrap();
    let wide = (0..51).map(|n| format!("192.0.2.{n}"));
    let entries = vec![
        key("acme", sha256("first")),
        key("acme", sha256("first")),
        key("globex", sha256("first")),
        key("acme", sha256(issued.secret.expose_secret())),
        key("acme", part),
        key("acme", whole.after("12|")),
        shown(""),
        shown("two words"),
        shown(KEY),
        shown(&"a".repeat(41)),
        named(KEY),
        key("acme", sha256("environment")).environment("live"),
        key("acme", sha256("list")).allowlist(Allowlist::parse(wide).unwrap()),
        key("acme", sha256("last")),
    ];
    let report = keys.adopt_all(store.clone(), entries, "import").await;
    assert_eq!((report.adopted, report.already_there), (2, 0));
    use AdoptError::{Digest, DigestTaken, DigestTwice, KeyPrefix, KeyPrefixHoldsKey, Manage};
    for (at, error) in &report.refused {
        let is_right = match at {
            1 | 2 => matches!(error, DigestTwice),
            3 => matches!(error, DigestTaken),
            4 | 5 => matches!(error, Digest(_)),
            6 | 7 | 9 => matches!(error, KeyPrefix),
            8 => matches!(error, KeyPrefixHoldsKey),
            10 => matches!(error, Manage(ManageError::NameHoldsKey)),
            11 => matches!(error, Manage(ManageError::UnknownEnvironment)),
            12 => matches!(error, Manage(ManageError::AllowlistTooLong { max: 50 })),
            _ => false,
        };
        assert!(is_right, "{at}: {error:?}");
        assert!(!error.to_string().contains(KEY), "{error}");
    }
    assert!(report.refused.iter().map(|(at, _)| *at).eq(1..=12), "{report:?}");
    assert_eq!(store.snapshot(&org("acme")).await.len(), 3);
    let taken = keys.adopt(key("globex", sha256("first")), "import").await;
    assert!(matches!(taken, Err(DigestTaken)));
    assert!(store.snapshot(&org("globex")).await.is_empty());
}

#[tokio::test]
async fn a_run_stops_when_the_store_fails_and_can_be_run_again() {
    let (store, keys) = manager(format());
    let inserts = Arc::new(AtomicUsize::new(0));
    store.before(move |call| {
        let fails = call == Call::Insert && inserts.fetch_add(1, Ordering::SeqCst) == 2;
        async move { if fails { Err(StoreError::unavailable("no connection")) } else { Ok(()) } }
    });
    let report = keys.adopt_all(store.clone(), many(5_000), "import").await;
    assert_eq!((report.adopted, report.refused.len()), (500, 0));
    let (at, error) = report.stopped.unwrap();
    assert_eq!(at, 500);
    assert!(matches!(error, ManageError::Unavailable(_)));
    let report = keys.adopt_all(store, many(5_000), "import").await;
    assert_eq!((report.adopted, report.already_there), (4_500, 500));
    assert!(report.stopped.is_none());
}

#[tokio::test]
async fn an_adoption_is_in_the_audit_log_once_and_as_abandoned_if_it_failed() {
    let (store, builder) = builder();
    let keys = builder.audit(MemoryAuditLog::new()).existing(format()).build().unwrap();
    adopt(&keys, key("globex", sha256("taken"))).await;
    let entries = || [key("acme", sha256("taken")), key("acme", sha256(KEY))];
    for adopted in [1, 0] {
        let report = keys.adopt_all(store.clone(), entries(), "import of 3 May").await;
        assert_eq!(report.adopted, adopted);
        assert!(matches!(report.refused[..], [(0, AdoptError::DigestTaken)]), "{report:?}");
    }
    let stored = store.snapshot(&org("acme")).await.remove(0).id;
    let query = AuditQuery::new(org("acme"), AuditScope::OrgChanges);
    let page = keys.audit_page(&query).await.unwrap().unwrap();
    let mut phases = Vec::new();
    for record in page.records {
        let AuditEvent::Change(change) = record.event else { panic!("a request") };
        let expected = (ChangeAction::Created, "import of 3 May");
        assert_eq!((change.action, &*change.actor), expected);
        phases.push((record.key == stored, change.phase.as_str()));
    }
    phases.sort_unstable();
    let [abandoned, begun] = ["abandoned", "begun"].map(|phase| (false, phase));
    assert_eq!(phases, [abandoned, abandoned, begun, begun, (true, "begun")]);
}

#[tokio::test]
async fn case_60_a_deleted_key_is_not_adopted_again() {
    let (store, builder) = builder();
    let keys = builder.existing(format()).audit(MemoryAuditLog::new()).build().unwrap();
    let adopted = |text: &str| key("acme", sha256(text));
    let other = "acme_live_fedcba9876543210";
    let deleted = adopt(&keys, adopted(KEY)).await;
    let stays = adopt(&keys, adopted(other)).await;
    keys.delete(&ada(), &deleted.id).await.unwrap();
    // More changes than fit into a page.
    for n in 0..250 {
        keys.update(&ada(), &stays.id, rename(&n.to_string())).await.unwrap();
    }
    let refused = keys.adopt(adopted(KEY), "import").await;
    assert!(matches!(refused, Err(AdoptError::Deleted)), "{refused:?}");
    let both = [adopted(other), adopted(KEY)];
    let report = keys.adopt_all(store.clone(), both, "import").await;
    assert_eq!((report.adopted, report.already_there, report.deleted), (0, 1, 1));
    assert_unknown(&keys, KEY).await;
}

#[tokio::test]
async fn a_key_whose_deletion_was_abandoned_counts_as_not_deleted() {
    let (store, builder) = builder();
    let keys = builder.existing(format()).audit(MemoryAuditLog::new()).build().unwrap();
    let stored = adopt(&keys, key("acme", sha256(KEY))).await;
    store.before(|call| {
        ready(if call == Call::Delete { Err(StoreError::NotFound) } else { Ok(()) })
    });
    keys.delete(&ada(), &stored.id).await.unwrap_err();
    store.heal();
    // As if a backup without the key was restored.
    store.inner.delete(&stored.org, &stored.id, None).await.unwrap();
    assert!(keys.adopt(key("acme", sha256(KEY)), "import").await.unwrap().is_new);
}

#[tokio::test]
async fn case_58_a_manager_with_another_prefix_neither_accepts_nor_changes_an_adopted_key() {
    let store = Arc::new(MemoryStore::new());
    let manager = |prefix: &str| {
        let builder = KeyManager::builder(store.clone()).format(KeyFormat::new(prefix).unwrap());
        builder.existing(format().digests(DigestKind::sha512())).build().unwrap()
    };
    let (ours, other) = (manager("aa_"), manager("bb_"));
    let adopted = adopt(&ours, key("acme", sha512(KEY))).await;
    assert_unknown(&other, KEY).await;
    assert_eq!(ours.get(&org("acme"), &adopted.id).await.unwrap(), adopted, "not changed");
    assert_allowed(&ours, KEY).await;
    assert_unknown(&other, KEY).await;
}
