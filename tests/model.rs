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

use std::sync::atomic::{AtomicU64, Ordering};

use keygate::store::{KeyDigest, KeyUse, OrgLimit, PreviousSecret, Revision};
use keygate::{
    Allowlist, ApiKey, KeyId, KeyName, KeyStore, MemoryStore, OrgId, Status, StoreError, Timestamp,
};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use tokio::runtime::{Handle, Runtime};

const CASES: u32 = 250;
const STEPS: usize = 50;
const ORGS: u8 = 3;
const IDS: u8 = 6;
const DIGESTS: u8 = 6;

/// One call. The numbers select ids, digests and organisations of the case.
#[derive(Clone, Debug)]
enum Step {
    Insert {
        key: Fields,
        limit: Option<u32>,
    },
    Replace {
        key: Fields,
        expected: u32,
    },
    /// A replace with the stored revision, if the key exists.
    Change {
        key: Fields,
    },
    Delete {
        org: u8,
        id: u8,
    },
    RecordUses(Vec<(u8, i64)>),
    Get {
        org: u8,
        id: u8,
    },
    List {
        org: u8,
    },
    Find {
        digest: u8,
    },
}

#[derive(Clone, Debug)]
struct Fields {
    id: u8,
    org: u8,
    digest: u8,
    previous: Option<(u8, i64)>,
    name: String,
    revoked: bool,
    allowlist: Vec<String>,
    created_at: i64,
    expires_at: Option<i64>,
    rotated_at: Option<i64>,
    last_used_at: Option<i64>,
    revision: u32,
}

fn micros() -> impl Strategy<Value = i64> {
    prop_oneof![
        8 => 0..5i64,
        2 => Timestamp::MIN.unix_micros()..=Timestamp::MAX.unix_micros(),
        1 => Just(Timestamp::MIN.unix_micros()),
        1 => Just(Timestamp::MAX.unix_micros()),
    ]
}

fn fields() -> impl Strategy<Value = Fields> {
    let entry = prop_oneof![
        Just("10.0.0.0/8".to_owned()),
        Just("2001:db8::/32".to_owned()),
        Just("192.0.2.1".to_owned()),
        "[a-z0-9./\\\\\n ]{0,8}", // unreadable lists round-trip too
    ];
    (
        (0..IDS, 0..ORGS, 0..DIGESTS, proptest::option::of((0..DIGESTS, micros()))),
        "[a-zé鍵👩'%]{1,8}",
        any::<bool>(),
        proptest::collection::vec(entry, 0..3),
        micros(),
        proptest::option::of(micros()),
        proptest::option::of(micros()),
        proptest::option::of(micros()),
        prop_oneof![8 => 1..5u32, 1 => Just(0), 1 => Just(u32::MAX)],
    )
        .prop_map(
            |(
                (id, org, digest, previous),
                name,
                revoked,
                allowlist,
                at,
                expires,
                rotated,
                used,
                rev,
            )| {
                Fields {
                    id,
                    org,
                    digest,
                    previous,
                    name,
                    revoked,
                    allowlist,
                    created_at: at,
                    expires_at: expires,
                    rotated_at: rotated,
                    last_used_at: used,
                    revision: rev,
                }
            },
        )
}

/// A batch of uses at about the same time. Uses of one key that are further apart than a store
/// considers plausible may count in any order.
fn uses() -> impl Strategy<Value = Vec<(u8, i64)>> {
    (micros(), proptest::collection::vec((0..IDS, 0..5i64), 0..5)).prop_map(|(at, uses)| {
        let last = Timestamp::MAX.unix_micros();
        uses.into_iter().map(|(id, after)| (id, (at + after).min(last))).collect()
    })
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (fields(), proptest::option::of(0..5u32))
            .prop_map(|(key, limit)| Step::Insert { key, limit }),
        1 => (fields(), 1..5u32).prop_map(|(key, expected)| Step::Replace { key, expected }),
        3 => fields().prop_map(|key| Step::Change { key }),
        2 => (0..ORGS, 0..IDS).prop_map(|(org, id)| Step::Delete { org, id }),
        2 => uses().prop_map(Step::RecordUses),
        1 => (0..ORGS, 0..IDS).prop_map(|(org, id)| Step::Get { org, id }),
        1 => (0..ORGS).prop_map(|org| Step::List { org }),
        1 => (0..DIGESTS).prop_map(|digest| Step::Find { digest }),
    ]
}

/// Ids, digests and organisations that are new in each case.
struct Names([u8; 16]);

impl Names {
    fn new() -> Self {
        let mut seed = [0; 16];
        getrandom::fill(&mut seed).unwrap();
        Self(seed)
    }

    fn digest(&self, number: u8) -> KeyDigest {
        KeyDigest::of([&self.0[..], b"digest", &[number]].concat())
    }

    fn id(&self, number: u8) -> KeyId {
        let digest = KeyDigest::of([&self.0[..], b"id", &[number]].concat());
        KeyId::from_bytes(*digest.as_bytes().first_chunk().unwrap())
    }

    fn org(&self, number: u8) -> OrgId {
        OrgId::new(format!("model-{:032x}-{number}", u128::from_be_bytes(self.0))).unwrap()
    }

    fn key(&self, fields: &Fields) -> ApiKey {
        ApiKey {
            id: self.id(fields.id),
            org: self.org(fields.org),
            name: KeyName::new(&fields.name).unwrap(),
            digest: self.digest(fields.digest),
            status: if fields.revoked { Status::Revoked } else { Status::Active },
            allowlist: Allowlist::restore(&fields.allowlist),
            created_at: at(fields.created_at),
            expires_at: fields.expires_at.map(at),
            rotated_at: fields.rotated_at.map(at),
            previous: fields.previous.map(|(digest, until)| PreviousSecret {
                digest: self.digest(digest),
                until: at(until),
            }),
            last_used_at: fields.last_used_at.map(at),
            revision: Revision::new(fields.revision),
            ..ApiKey::sample(0)
        }
    }
}

fn at(micros: i64) -> Timestamp {
    Timestamp::from_unix_micros(micros).unwrap()
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

/// The digests of a key.
fn secrets(key: &ApiKey) -> [Option<KeyDigest>; 2] {
    [Some(key.digest), key.previous.map(|previous| previous.digest)]
}

/// Whether two keys have a digest in common.
fn share(a: &ApiKey, b: &ApiKey) -> bool {
    secrets(a).iter().flatten().any(|digest| secrets(b).contains(&Some(*digest)))
}

/// All keys, in no order.
#[derive(Default)]
struct Model(Vec<ApiKey>);

impl Model {
    fn find(&self, org: &OrgId, id: &KeyId) -> Option<usize> {
        self.0.iter().position(|key| key.org == *org && key.id == *id)
    }

    fn select(&self, which: impl Fn(&&ApiKey) -> bool) -> Reply {
        let mut keys: Vec<_> = self.0.iter().filter(which).cloned().collect();
        keys.sort_by_key(|key| (key.created_at, key.id));
        Reply::Keys(keys)
    }

    /// The allowed results of the call. If two things are wrong with it, a store may report
    /// either.
    fn apply(&mut self, step: &Step, names: &Names) -> Vec<Reply> {
        match step {
            Step::Insert { key, limit } => {
                let key = names.key(key);
                let taken = self.0.iter().any(|k| k.id == key.id || share(k, &key));
                let present = self.0.iter().filter(|k| k.org == key.org).count();
                let full = limit.is_some_and(|max| present >= max as usize);
                match (taken, full) {
                    (false, false) => {
                        self.0.push(key);
                        vec![Reply::Done]
                    }
                    (true, false) => vec![Reply::Conflict],
                    (false, true) => vec![Reply::LimitReached],
                    (true, true) => vec![Reply::Conflict, Reply::LimitReached],
                }
            }
            Step::Replace { key, expected } => {
                vec![self.replace(names.key(key), Revision::new(*expected))]
            }
            Step::Change { key } => {
                let key = names.key(key);
                let expected = self.expected(&key);
                vec![self.replace(key, expected)]
            }
            Step::Delete { org, id } => match self.find(&names.org(*org), &names.id(*id)) {
                Some(found) => {
                    self.0.remove(found);
                    vec![Reply::Done]
                }
                None => vec![Reply::NotFound],
            },
            Step::RecordUses(uses) => {
                for (id, time) in uses {
                    for key in self.0.iter_mut().filter(|key| key.id == names.id(*id)) {
                        let stored = key.last_used_at.map(Timestamp::unix_micros);
                        if stored.is_none_or(|t| t < *time || t > *time + 86_400_000_000) {
                            key.last_used_at = Some(at(*time));
                        }
                    }
                }
                vec![Reply::Done]
            }
            Step::Get { org, id } => {
                vec![self.select(|k| k.org == names.org(*org) && k.id == names.id(*id))]
            }
            Step::List { org } => vec![self.select(|k| k.org == names.org(*org))],
            Step::Find { digest } => {
                vec![self.select(|k| secrets(k).contains(&Some(names.digest(*digest))))]
            }
        }
    }

    fn expected(&self, key: &ApiKey) -> Revision {
        self.find(&key.org, &key.id).map_or(Revision::FIRST, |found| self.0[found].revision)
    }

    fn replace(&mut self, key: ApiKey, expected: Revision) -> Reply {
        let Some(found) = self.find(&key.org, &key.id) else {
            return Reply::NotFound;
        };
        let digest_taken = self.0.iter().any(|k| k.id != key.id && share(k, &key));
        let stored = &mut self.0[found];
        if digest_taken || stored.revision != expected {
            return Reply::Conflict;
        }
        let (created_at, last_used_at) = (stored.created_at, stored.last_used_at);
        *stored = ApiKey { created_at, last_used_at, ..key };
        Reply::Done
    }
}

async fn call(store: &dyn KeyStore, step: &Step, names: &Names, model: &Model) -> Reply {
    let done = |result: Result<(), StoreError>| result.map_or_else(Reply::from, |()| Reply::Done);
    let keys = |result: Result<Vec<_>, StoreError>| {
        result.map_or_else(Reply::from, |keys: Vec<std::sync::Arc<ApiKey>>| {
            Reply::Keys(keys.iter().map(|key| ApiKey::clone(key)).collect())
        })
    };
    match step {
        Step::Insert { key, limit } => {
            let limit = limit.map_or(OrgLimit::NONE, OrgLimit::at_most);
            done(store.insert(&names.key(key), limit).await)
        }
        Step::Replace { key, expected } => {
            done(store.replace(&names.key(key), Revision::new(*expected)).await)
        }
        Step::Change { key } => {
            let key = names.key(key);
            let expected = model.expected(&key);
            done(store.replace(&key, expected).await)
        }
        Step::Delete { org, id } => {
            done(store.delete(&names.org(*org), &names.id(*id), None).await)
        }
        Step::RecordUses(uses) => {
            let uses = uses.iter().map(|(id, time)| KeyUse { id: names.id(*id), at: at(*time) });
            done(store.record_uses(&uses.collect::<Vec<_>>()).await)
        }
        Step::Get { org, id } => {
            let found = store.get(&names.org(*org), &names.id(*id)).await;
            keys(found.map(|key| key.into_iter().collect()))
        }
        Step::List { org } => keys(store.list(&names.org(*org)).await),
        Step::Find { digest } => {
            let found = store.find_by_digest(&names.digest(*digest)).await;
            keys(found.map(|key| key.into_iter().collect()))
        }
    }
}

/// Runs the steps on the store and on the model, and then compares everything.
async fn agrees(store: &dyn KeyStore, steps: &[Step]) -> Result<(), TestCaseError> {
    let names = Names::new();
    let mut model = Model::default();
    let orgs = (0..ORGS).map(|org| Step::List { org });
    let ids = (0..ORGS).flat_map(|org| (0..IDS).map(move |id| Step::Get { org, id }));
    let digests = (0..DIGESTS).map(|digest| Step::Find { digest });
    let look: Vec<_> = orgs.chain(ids).chain(digests).collect();
    for (number, step) in steps.iter().chain(&look).enumerate() {
        let reply = call(store, step, &names, &model).await;
        let right = model.apply(step, &names);
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

/// The test of one store.
fn check(runtime: &Handle, store: impl KeyStore) {
    let (steps, done) = (AtomicU64::new(0), AtomicU64::new(0));
    let config = Config { cases: CASES, failure_persistence: None, ..Config::default() };
    let result = TestRunner::new(config).run(
        &proptest::collection::vec(step(), STEPS),
        |case: Vec<Step>| {
            steps.fetch_add(case.len() as u64, Ordering::Relaxed);
            done.fetch_add(1, Ordering::Relaxed);
            runtime.block_on(agrees(&store, &case))
        },
    );
    if let Err(failure) = result {
        panic!("{failure}");
    }
    assert!(steps.into_inner() >= 10_000, "too few steps in {} cases", done.into_inner());
}

fn runtime() -> Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}

#[test]
fn the_memory_store_agrees_with_the_model() {
    check(runtime().handle(), MemoryStore::new());
}

#[cfg(feature = "sqlite")]
#[test]
fn the_sqlite_store_agrees_with_the_model() {
    let folder = tempfile::tempdir().unwrap();
    let store = keygate::SqliteStore::open(folder.path().join("keys.db")).unwrap();
    check(runtime().handle(), store);
}

#[cfg(feature = "postgres")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs PostgreSQL"]
async fn the_postgres_store_agrees_with_the_model() {
    postgres_support::in_schema(|options| async move {
        let (runtime, store) = (Handle::current(), options.connect().await.unwrap());
        tokio::task::spawn_blocking(move || check(&runtime, store)).await.unwrap();
    })
    .await;
}
