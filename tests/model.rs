//! Random operations on every store, compared with a simple model.
#![cfg(feature = "tokio")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "tests"
)]

#[cfg(feature = "postgres")]
#[allow(dead_code, reason = "other tests use the rest")]
mod postgres_support;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use keygate::store::{KeyDigest, KeyUse, OrgLimit, PreviousSecret, Revision};
use keygate::{
    Allowlist, ApiKey, KeyId, KeyName, KeyStore, MemoryStore, OrgId, Status, StoreError, Timestamp,
};
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use tokio::runtime::Handle;

const CASES: u32 = 250;
const STEPS: usize = 50;
/// How many organisations, ids and digests there are.
const ORGS: u8 = 3;
const IDS: u8 = 6;
const DIGESTS: u8 = 6;

/// One call.
#[derive(Clone, Debug)]
enum Step {
    Insert(ApiKey, OrgLimit),
    Replace(ApiKey, Revision),
    /// A replace with the stored revision, if the key exists.
    Change(ApiKey),
    Delete(OrgId, KeyId),
    RecordUses(Vec<KeyUse>),
    Get(OrgId, KeyId),
    List(OrgId),
    Find(KeyDigest),
}

fn org(number: u8) -> OrgId {
    OrgId::new(format!("model-{number}")).unwrap()
}

fn id(number: u8) -> KeyId {
    // The order of the ids is not that of the numbers.
    KeyId::from_bytes(*digest(number).as_bytes().first_chunk().unwrap())
}

fn digest(number: u8) -> KeyDigest {
    KeyDigest::of([number])
}

fn at(micros: i64) -> Timestamp {
    Timestamp::from_unix_micros(micros).unwrap()
}

fn time() -> impl Strategy<Value = Timestamp> {
    let micros = prop_oneof![
        8 => 0..5i64,
        2 => Timestamp::MIN.unix_micros()..=Timestamp::MAX.unix_micros(),
        1 => Just(Timestamp::MIN.unix_micros()),
        1 => Just(Timestamp::MAX.unix_micros()),
    ];
    micros.prop_map(at)
}

fn key() -> impl Strategy<Value = ApiKey> {
    let entry = prop_oneof![
        Just("10.0.0.0/8".to_owned()),
        Just("2001:db8::/32".to_owned()),
        Just("192.0.2.1".to_owned()),
        "[a-z0-9./\\\\\n ]{0,8}", // unreadable lists round-trip too
    ];
    let revision = prop_oneof![8 => 1..5u32, 1 => Just(0), 1 => Just(u32::MAX)];
    let previous = (0..DIGESTS, time())
        .prop_map(|(number, until)| PreviousSecret { digest: digest(number), until });
    let times = (time(), option::of(time()), option::of(time()), option::of(time()));
    let rest = ("[a-zé鍵👩'%]{1,8}", any::<bool>(), vec(entry, 0..3), revision);
    ((0..IDS, 0..ORGS, 0..DIGESTS), option::of(previous), times, rest).prop_map(
        |(numbers, previous, times, (name, revoked, allowlist, revision))| ApiKey {
            id: id(numbers.0),
            org: org(numbers.1),
            digest: digest(numbers.2),
            previous,
            created_at: times.0,
            expires_at: times.1,
            rotated_at: times.2,
            last_used_at: times.3,
            name: KeyName::new(name).unwrap(),
            status: if revoked { Status::Revoked } else { Status::Active },
            allowlist: Allowlist::restore(allowlist),
            revision: Revision::new(revision),
            ..ApiKey::sample(0)
        },
    )
}

/// A batch of uses at about the same time. Uses of one key that are further apart than a store
/// considers plausible may count in any order.
fn uses() -> impl Strategy<Value = Vec<KeyUse>> {
    (time(), vec((0..IDS, 0..5i64), 0..5)).prop_map(|(start, uses)| {
        let last = Timestamp::MAX.unix_micros();
        let time = |after: i64| at((start.unix_micros() + after).min(last));
        uses.into_iter().map(|(number, after)| KeyUse { id: id(number), at: time(after) }).collect()
    })
}

fn step() -> impl Strategy<Value = Step> {
    let limit = prop_oneof![Just(OrgLimit::NONE), (0..5u32).prop_map(OrgLimit::at_most)];
    prop_oneof![
        4 => (key(), limit).prop_map(|(key, limit)| Step::Insert(key, limit)),
        1 => (key(), 1..5u32).prop_map(|(key, n)| Step::Replace(key, Revision::new(n))),
        3 => key().prop_map(Step::Change),
        2 => (0..ORGS, 0..IDS).prop_map(|(of, number)| Step::Delete(org(of), id(number))),
        2 => uses().prop_map(Step::RecordUses),
        1 => (0..ORGS, 0..IDS).prop_map(|(of, number)| Step::Get(org(of), id(number))),
        1 => (0..ORGS).prop_map(|number| Step::List(org(number))),
        1 => (0..DIGESTS).prop_map(|number| Step::Find(digest(number))),
    ]
}

/// The result of a call.
#[derive(Clone, Debug, PartialEq)]
enum Reply {
    Done,
    Keys(Vec<ApiKey>),
    LimitReached,
    NotFound,
    Conflict,
    Other(String),
}

impl From<Result<(), StoreError>> for Reply {
    fn from(result: Result<(), StoreError>) -> Self {
        result.map_or_else(Self::from, |()| Self::Done)
    }
}

impl From<StoreError> for Reply {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::LimitReached => Self::LimitReached,
            StoreError::NotFound => Self::NotFound,
            StoreError::Conflict => Self::Conflict,
            other => Self::Other(format!("{other:?}")),
        }
    }
}

/// Whether two keys have a digest in common.
fn share(a: &ApiKey, b: &ApiKey) -> bool {
    a.digests().any(|digest| b.digests().any(|other| other == digest))
}

/// All keys, in no order.
#[derive(Default)]
struct Model(Vec<ApiKey>);

impl Model {
    fn find(&mut self, org: &OrgId, id: &KeyId) -> Option<&mut ApiKey> {
        self.0.iter_mut().find(|key| key.org == *org && key.id == *id)
    }

    fn select(&self, which: impl Fn(&&ApiKey) -> bool) -> Reply {
        let mut keys: Vec<_> = self.0.iter().filter(which).cloned().collect();
        keys.sort_by_key(|key| (key.created_at, key.id));
        Reply::Keys(keys)
    }

    /// The allowed results of the call. If two things are wrong with it, a store may report
    /// either.
    fn apply(&mut self, step: &Step) -> Vec<Reply> {
        vec![match step {
            Step::Insert(key, limit) => {
                let taken = self.0.iter().any(|k| k.id == key.id || share(k, key));
                let present = self.0.iter().filter(|k| k.org == key.org).count();
                let full = limit.get().is_some_and(|max| present >= max as usize);
                match (taken, full) {
                    (false, false) => {
                        self.0.push(key.clone());
                        Reply::Done
                    }
                    (true, false) => Reply::Conflict,
                    (false, true) => Reply::LimitReached,
                    (true, true) => return vec![Reply::Conflict, Reply::LimitReached],
                }
            }
            Step::Replace(key, expected) => self.replace(key, *expected),
            Step::Change(key) => self.replace(key, self.expected(key)),
            Step::Delete(org, id) => {
                let before = self.0.len();
                self.0.retain(|key| (&key.org, &key.id) != (org, id));
                if self.0.len() < before { Reply::Done } else { Reply::NotFound }
            }
            Step::RecordUses(uses) => {
                for used in uses {
                    let time = used.at.unix_micros();
                    for key in self.0.iter_mut().filter(|key| key.id == used.id) {
                        let stored = key.last_used_at.map(Timestamp::unix_micros);
                        if stored.is_none_or(|t| t < time || t > time + 86_400_000_000) {
                            key.last_used_at = Some(used.at);
                        }
                    }
                }
                Reply::Done
            }
            Step::Get(org, id) => self.select(|key| key.org == *org && key.id == *id),
            Step::List(org) => self.select(|key| key.org == *org),
            Step::Find(digest) => self.select(|key| key.digests().any(|own| own == *digest)),
        }]
    }

    fn expected(&self, key: &ApiKey) -> Revision {
        let stored = self.0.iter().find(|k| k.org == key.org && k.id == key.id);
        stored.map_or(Revision::FIRST, |stored| stored.revision)
    }

    fn replace(&mut self, key: &ApiKey, expected: Revision) -> Reply {
        let digest_taken = self.0.iter().any(|k| k.id != key.id && share(k, key));
        let Some(stored) = self.find(&key.org, &key.id) else { return Reply::NotFound };
        if digest_taken || stored.revision != expected {
            return Reply::Conflict;
        }
        let (created_at, last_used_at) = (stored.created_at, stored.last_used_at);
        *stored = ApiKey { created_at, last_used_at, ..key.clone() };
        Reply::Done
    }
}

async fn call(store: &dyn KeyStore, step: &Step, model: &Model) -> Reply {
    let keys: Result<Vec<Arc<ApiKey>>, StoreError> = match step {
        Step::Insert(key, limit) => return store.insert(key, *limit).await.into(),
        Step::Replace(key, expected) => return store.replace(key, *expected).await.into(),
        Step::Change(key) => return store.replace(key, model.expected(key)).await.into(),
        Step::Delete(org, id) => return store.delete(org, id, None).await.into(),
        Step::RecordUses(uses) => return store.record_uses(uses).await.into(),
        Step::Get(org, id) => store.get(org, id).await.map(Vec::from_iter),
        Step::List(org) => store.list(org).await,
        Step::Find(digest) => store.find_by_digest(digest).await.map(Vec::from_iter),
    };
    keys.map_or_else(Reply::from, |keys| {
        Reply::Keys(keys.iter().map(|key| ApiKey::clone(key)).collect())
    })
}

/// Runs the steps on the empty store and on the model, and then compares everything.
async fn agrees(store: &dyn KeyStore, steps: &[Step]) -> Result<(), TestCaseError> {
    for number in 0..ORGS {
        for key in store.list(&org(number)).await.unwrap() {
            store.delete(&key.org, &key.id, None).await.unwrap();
        }
    }
    let mut model = Model::default();
    let lists = (0..ORGS).map(|number| Step::List(org(number)));
    let gets = (0..ORGS).flat_map(|of| (0..IDS).map(move |number| Step::Get(org(of), id(number))));
    let finds = (0..DIGESTS).map(|number| Step::Find(digest(number)));
    let reads: Vec<_> = lists.chain(gets).chain(finds).collect();
    for (number, step) in steps.iter().chain(&reads).enumerate() {
        let reply = call(store, step, &model).await;
        let right = model.apply(step);
        // The last use in a look-up by digest may be out of date.
        let is_found = matches!(step, Step::Find { .. });
        let is_right = |right: &Reply| match (&reply, right) {
            (Reply::Keys(found), Reply::Keys(keys)) if is_found && found.len() == keys.len() => {
                found.iter().zip(keys).all(|(found, key)| {
                    *found == ApiKey { last_used_at: found.last_used_at, ..key.clone() }
                })
            }
            (reply, right) => reply == right,
        };
        prop_assert!(
            right.iter().any(is_right),
            "step {number}, {step:?}:\n the store says {reply:?}\n the model    {right:?}"
        );
    }
    Ok(())
}

/// Runs random steps on that store.
fn assert_agrees(store: &dyn KeyStore) {
    let (steps, cases) = (AtomicU64::new(0), AtomicU64::new(0));
    let config = Config { cases: CASES, failure_persistence: None, ..Config::default() };
    let result = tokio::task::block_in_place(|| {
        TestRunner::new(config).run(&vec(step(), STEPS), |case| {
            steps.fetch_add(case.len() as u64, Ordering::Relaxed);
            cases.fetch_add(1, Ordering::Relaxed);
            Handle::current().block_on(agrees(store, &case))
        })
    });
    result.unwrap_or_else(|failure| panic!("{failure}"));
    assert!(steps.into_inner() >= 10_000, "too few steps in {} cases", cases.into_inner());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_memory_store_agrees_with_the_model() {
    assert_agrees(&MemoryStore::new());
}

#[cfg(feature = "sqlite")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_sqlite_store_agrees_with_the_model() {
    let folder = tempfile::tempdir().unwrap();
    assert_agrees(&keygate::SqliteStore::open(folder.path().join("keys.db")).unwrap());
}

#[cfg(feature = "postgres")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs PostgreSQL"]
async fn the_postgres_store_agrees_with_the_model() {
    postgres_support::in_schema(|options| async move {
        assert_agrees(&options.connect().await.unwrap());
    })
    .await;
}
