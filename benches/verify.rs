//! `KeyManager::verify` against its floor: `cargo bench -p keygate-benches --bench verify`.
//!
//! The floor is SHA-256 of 55 bytes, one look-up in a hash map of digests, a comparison in
//! constant time, one reading of the clock. A verification cannot do with that, since it
//! returns a record and evaluates it; so there is a second reference, composed by hand of the
//! same parts: the digest, one map of records, the comparison, the clock, and the policy,
//! without a trait object. All sides take turns on the same keys in random order; the median
//! of the rounds' ratios counts.
//! For the reader, two other crates take turns with them: `prefixed-api-key`, which
//! parses and compares and has no store, and `jsonwebtoken`, with HS256.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::print_stdout,
    reason = "a bench"
)]

mod support;

use std::collections::HashMap;
use std::future::Future;
use std::hash::{BuildHasherDefault, Hasher};
use std::hint::black_box;
use std::net::IpAddr;
use std::pin::pin;
use std::slice;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use getrandom::SysRng;
use jsonwebtoken::{DecodingKey, EncodingKey, Header, Validation};
use keygate::manager::KeyManagerBuilder;
use keygate::store::{KeyDigest, OrgLimit};
use keygate::{
    Allowlist, ApiKey, KeyFormat, KeyId, KeyManager, KeyName, KeyStore, MemoryStore, OrgId, Status,
    Timestamp,
};
use prefixed_api_key::{PakControllerOsSha256, PrefixedApiKey};
use serde::{Deserialize, Serialize};
use subtle::ConstantTimeEq;

use crate::support::{Spread, all_on};

const SIZES: [usize; 3] = [1_000, 100_000, 1_000_000];
const TARGET: f64 = 1.5;
const TARGET_BY_HAND: f64 = 1.3;
const TARGET_THREADS: f64 = 1.7;
const ROUNDS: usize = 45;
const TURN: Duration = Duration::from_millis(40);

/// Digests are random: their first bytes are hash enough.
#[derive(Default)]
struct FirstBytes(u64);

impl Hasher for FirstBytes {
    fn write(&mut self, bytes: &[u8]) {
        if let Some(first) = bytes.first_chunk() {
            self.0 = u64::from_le_bytes(*first);
        }
    }
    // The length of a slice comes first.
    fn write_usize(&mut self, _: usize) {}
    fn finish(&self) -> u64 {
        self.0
    }
}

type Map<T> = HashMap<[u8; 32], T, BuildHasherDefault<FirstBytes>>;

struct Keys {
    manager: KeyManager,
    floor: Map<[u8; 32]>,
    by_hand: Map<Arc<ApiKey>>,
    /// In the order in which they are presented.
    texts: Vec<String>,
    ip: Option<IpAddr>,
}

/// Work that never has to wait.
fn ready<T>(future: impl Future<Output = T>) -> T {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(done) => done,
        Poll::Pending => panic!("it has to wait"),
    }
}

fn keys(count: usize, configure: fn(KeyManagerBuilder) -> KeyManagerBuilder) -> Keys {
    let store = Arc::new(MemoryStore::new());
    let format = KeyFormat::default();
    let entries = ["10.0.0.0/8", "192.0.2.0/24", "2001:db8::/32", "203.0.113.0/24"];
    let name = KeyName::new("CI deploy").unwrap();
    let (mut floor, mut by_hand) = (Map::default(), Map::default());
    let mut texts = Vec::with_capacity(count);
    for n in 0..count {
        let key = format.generate(&mut SysRng).unwrap();
        let digest = KeyDigest::of(key.expose_secret());
        let record = ApiKey {
            id: KeyId::random(&mut SysRng).unwrap(),
            org: OrgId::new(format!("org-{}", n / 20)).unwrap(),
            name: name.clone(),
            digest,
            allowlist: Allowlist::parse(entries).unwrap(),
            created_at: Timestamp::from_unix_micros(0).unwrap(),
            expires_at: Some(Timestamp::MAX),
            ..ApiKey::sample(0)
        };
        ready(store.insert(&record, OrgLimit::NONE)).unwrap();
        floor.insert(*digest.as_bytes(), *digest.as_bytes());
        by_hand.insert(*digest.as_bytes(), Arc::new(record));
        texts.push(key.expose_secret().to_owned());
    }
    // An order that has nothing to do with that of their making or their digests;
    // copied, so that the texts themselves lie in it.
    texts.sort_unstable();
    let texts = texts.iter().map(String::clone).collect();
    let manager = configure(KeyManager::builder(store)).build().unwrap();
    Keys { manager, floor, by_hand, texts, ip: Some("203.0.113.7".parse().unwrap()) }
}

fn at_the_floor(keys: &Keys, text: &str) -> SystemTime {
    let digest = KeyDigest::of(text);
    let found = keys.floor.get(digest.as_bytes()).unwrap();
    let equal = KeyDigest::from_slice(found).unwrap().ct_eq(&digest);
    assert!(bool::from(equal));
    SystemTime::now()
}

fn verified_by_hand(keys: &Keys, text: &str) -> (Arc<ApiKey>, Timestamp) {
    let digest = KeyDigest::of(text);
    let key = keys.by_hand.get(digest.as_bytes()).unwrap();
    assert!(bool::from(key.digest.ct_eq(&digest)));
    let now = Timestamp::from(SystemTime::now());
    assert!(key.status == Status::Active && !key.is_expired(now));
    assert!(key.allowlist.allows(keys.ip));
    (Arc::clone(key), now)
}

/// The time of one call, over a turn that begins at that place.
fn turn<T>(items: &[T], begin: &mut usize, call: impl Fn(&T)) -> f64 {
    let started = Instant::now();
    let mut calls = 0;
    while started.elapsed() < TURN {
        for _ in 0..500 {
            call(&items[*begin % items.len()]);
            *begin += 1;
        }
        calls += 500;
    }
    started.elapsed().as_secs_f64() * 1e9 / f64::from(calls)
}

impl Keys {
    fn verify(&self, text: &str) {
        black_box(ready(self.manager.verify(text, self.ip)).unwrap());
    }
}

/// The median ratios of `verify` to its floor and to the composition by hand.
fn compare(keys: &Keys, what: &str) -> [f64; 2] {
    let count = keys.texts.len();
    let mut begins = [0; 3];
    let mut times = [const { Vec::new() }; 3];
    for round in 0..=ROUNDS {
        let [floor, by_hand, verify] = &mut begins;
        let took = [
            turn(&keys.texts, floor, |text| {
                black_box(at_the_floor(keys, text));
            }),
            turn(&keys.texts, by_hand, |text| {
                black_box(verified_by_hand(keys, text));
            }),
            turn(&keys.texts, verify, |text| keys.verify(text)),
        ];
        // The first one warms up.
        for (times, took) in times.iter_mut().zip(took).filter(|_| round > 0) {
            times.push(took);
        }
    }
    let [floors, by_hand, verifies] = &times;
    let [of_floor, of_hand] = [floors, by_hand].map(|reference| {
        Spread::of(verifies.iter().zip(reference).map(|(own, other)| own / other).collect())
    });
    let [floors, by_hand, verifies] = times.map(|times| Spread::of(times).show(1));
    println!(
        "{count:>9} {what:<8} {floors:<28} {by_hand:<28} {verifies:<28} {:<22} {}",
        of_floor.show(2),
        of_hand.show(2)
    );
    [of_floor.median, of_hand.median]
}

#[derive(Serialize, Deserialize)]
struct Claims {
    sub: String,
    exp: u64,
}

/// The floor, `verify` and two other crates in turns, on as many keys or tokens.
fn peers(keys: &Keys) {
    let controller = PakControllerOsSha256::configure()
        .prefix("company".to_owned())
        .seam_defaults()
        .finalize()
        .unwrap();
    let prefixed: Vec<_> = (0..keys.texts.len())
        .map(|_| controller.generate_key_and_hash())
        .map(|(key, hash)| (key.to_string(), hash))
        .collect();
    let check = |(text, hash): &(String, String)| {
        let key = PrefixedApiKey::from_string(text).unwrap();
        assert!(controller.check_hash(&key, hash));
        black_box(key);
    };

    let secret = [7; 32];
    let (signing, decoding) =
        (EncodingKey::from_secret(&secret), DecodingKey::from_secret(&secret));
    let exp = jsonwebtoken::get_current_timestamp() + 86_400;
    let token = |n| {
        let claims = Claims { sub: format!("org-{n}"), exp };
        jsonwebtoken::encode(&Header::default(), &claims, &signing).unwrap()
    };
    let tokens: Vec<_> = (0..keys.texts.len()).map(token).collect();
    let validation = Validation::default();
    let decode = |token: &String| {
        black_box(jsonwebtoken::decode::<Claims>(token, &decoding, &validation).unwrap());
    };

    let mut begins = [0; 4];
    let mut times = [const { Vec::new() }; 4];
    for round in 0..=ROUNDS {
        let [floor, verify, pak, jwt] = &mut begins;
        let took = [
            turn(&keys.texts, floor, |text| {
                black_box(at_the_floor(keys, text));
            }),
            turn(&keys.texts, verify, |text| keys.verify(text)),
            turn(&prefixed, pak, check),
            turn(&tokens, jwt, decode),
        ];
        for (times, took) in times.iter_mut().zip(took).filter(|_| round > 0) {
            times.push(took);
        }
    }
    println!("{} keys, for the reader", keys.texts.len());
    for (name, own) in ["floor", "verify", "prefixed-api-key", "jsonwebtoken"].iter().zip(&times) {
        let ratios = own.iter().zip(&times[0]).map(|(own, floor)| own / floor).collect();
        let (own, ratio) = (Spread::of(own.clone()).show(1), Spread::of(ratios).show(2));
        println!("{name:>16}  {own:<26}  {ratio} times the floor");
    }
}

/// How much more two threads do than one, with these two keys: at the floor, for what
/// the machine can give, and in `verify`.
fn two_threads(keys: &Keys, what: &str, one: &String, other: &String) -> f64 {
    let (mut floors, mut verifies) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        floors.push(scaling(one, other, |text| {
            black_box(at_the_floor(keys, text));
        }));
        verifies.push(scaling(one, other, |text| keys.verify(text)));
    }
    let (floor, verify) = (Spread::of(floors), Spread::of(verifies));
    println!(
        "two threads, {what}: {} times one thread, the floor {}",
        verify.show(2),
        floor.show(2)
    );
    verify.median
}

fn scaling(one: &String, other: &String, call: impl Fn(&String) + Sync) -> f64 {
    let (one, other) = (slice::from_ref(one), slice::from_ref(other));
    let alone = turn(one, &mut 0, &call);
    let (a, b) = thread::scope(|scope| {
        let second = scope.spawn(|| turn(other, &mut 0, &call));
        (turn(one, &mut 0, &call), second.join().unwrap())
    });
    alone / a + alone / b
}

fn main() {
    // The manager's own tasks run here.
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let _entered = runtime.enter();
    println!("nanoseconds a call: median (middle half) of {ROUNDS} rounds");
    println!(
        "{:>18} {:<28} {:<28} {:<28} {:<22} to by hand",
        "", "floor", "by hand", "verify", "to the floor"
    );
    let ratios = SIZES.map(|count| compare(&keys(count, |builder| builder), "keys"));
    compare(&keys(1_000, all_on), "all on");
    let few = keys(1_000, |builder| builder);
    peers(&few);
    let [one, other, ..] = few.texts.as_slice() else { panic!("there are 1,000") };
    two_threads(&few, "a key each", one, other);
    let threads = two_threads(&few, "one hot key", one, one);
    for (count, [floor, by_hand]) in SIZES.into_iter().zip(ratios) {
        println!(
            "{count} keys: {floor:.2} times the floor (target {TARGET}), \
             {by_hand:.2} times by hand (target {TARGET_BY_HAND})"
        );
    }
    println!("two threads: {threads:.2} times one (target {TARGET_THREADS})");
}
