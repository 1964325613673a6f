//! `KeyManager::verify` against its floor: `cargo bench --bench verify`.
//!
//! The floor is what no verification can do without: SHA-256 of 55 bytes, one look-up
//! in a hash map, a comparison in constant time, one reading of the clock. Both sides
//! take turns on the same keys in random order; the median of the rounds' ratios counts.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::print_stdout,
    reason = "a bench"
)]

use std::collections::HashMap;
use std::future::Future;
use std::hash::{BuildHasherDefault, Hasher};
use std::hint::black_box;
use std::net::IpAddr;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use allocation_counter::measure;
use keygate::{
    Allowlist, ApiKey, KeyDigest, KeyFormat, KeyId, KeyManager, KeyName, KeyPatch, KeyStore,
    MemoryStore, OrgId, OrgLimit, Revision, Status, SystemRandom, Timestamp,
};
use subtle::ConstantTimeEq;

const SIZES: [usize; 3] = [1_000, 100_000, 1_000_000];
const TARGET: f64 = 1.5;
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

type Floor = HashMap<[u8; 32], [u8; 32], BuildHasherDefault<FirstBytes>>;

struct Keys {
    manager: KeyManager,
    floor: Floor,
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

fn keys(count: usize) -> Keys {
    let store = Arc::new(MemoryStore::new());
    let format = KeyFormat::default();
    let entries = ["10.0.0.0/8", "192.0.2.0/24", "2001:db8::/32", "203.0.113.0/24"];
    let name = KeyName::new("CI deploy").unwrap();
    let (mut floor, mut texts) = (Floor::default(), Vec::with_capacity(count));
    for n in 0..count {
        let key = format.generate(&SystemRandom).unwrap();
        let digest = KeyDigest::of(key.expose_secret());
        let record = ApiKey {
            id: KeyId::random(&SystemRandom).unwrap(),
            org: OrgId::new(format!("org-{}", n / 20)).unwrap(),
            name: name.clone(),
            key_prefix: key.expose_secret()[..12].to_owned(),
            digest,
            status: Status::Active,
            allowlist: Allowlist::parse(entries).unwrap(),
            created_at: Timestamp::from_unix_micros(0).unwrap(),
            expires_at: Some(Timestamp::MAX),
            rotated_at: None,
            last_used_at: None,
            revision: Revision::FIRST,
        };
        ready(store.insert(&record, OrgLimit::NONE)).unwrap();
        floor.insert(*digest.as_bytes(), *digest.as_bytes());
        texts.push(key.expose_secret().to_owned());
    }
    // An order that has nothing to do with that of their making or their digests;
    // copied, so that the texts themselves lie in it.
    texts.sort_unstable();
    let texts = texts.iter().map(String::clone).collect();
    let manager = KeyManager::builder(store).build().unwrap();
    Keys { manager, floor, texts, ip: Some("203.0.113.7".parse().unwrap()) }
}

fn at_the_floor(keys: &Keys, text: &str) -> SystemTime {
    let digest = KeyDigest::of(text);
    let found = keys.floor.get(digest.as_bytes()).unwrap();
    let equal = KeyDigest::from_slice(found).unwrap().ct_eq(&digest);
    assert!(bool::from(equal));
    SystemTime::now()
}

/// The time of one call, over a turn that begins at that place.
fn turn(keys: &Keys, begin: &mut usize, call: impl Fn(&str)) -> f64 {
    let started = Instant::now();
    let mut calls = 0;
    while started.elapsed() < TURN {
        for _ in 0..500 {
            call(&keys.texts[*begin % keys.texts.len()]);
            *begin += 1;
        }
        calls += 500;
    }
    started.elapsed().as_secs_f64() * 1e9 / f64::from(calls)
}

fn median(mut values: Vec<f64>) -> (f64, f64, f64) {
    values.sort_by(f64::total_cmp);
    (values[values.len() / 2], values[0], values[values.len() - 1])
}

fn told((median, least, most): (f64, f64, f64)) -> String {
    format!("{median:8.1} ({least:.1}..{most:.1})")
}

/// The median ratio of `verify` to its floor, and what `verify` takes.
fn compare(count: usize) -> f64 {
    let keys = keys(count);
    let verify = |text: &str| {
        black_box(ready(keys.manager.verify(text, keys.ip)).unwrap());
    };
    let floor = |text: &str| {
        black_box(at_the_floor(&keys, text));
    };
    let (mut at_floor, mut at_verify) = (0, 0);
    let (mut floors, mut verifies, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..=ROUNDS {
        let by_floor = turn(&keys, &mut at_floor, floor);
        let by_verify = turn(&keys, &mut at_verify, verify);
        // The first one warms up.
        if round > 0 {
            floors.push(by_floor);
            verifies.push(by_verify);
            ratios.push(by_verify / by_floor);
        }
    }
    let (ratio, least, most) = median(ratios);
    println!(
        "{count:>9} keys   {:<28} {:<28} {ratio:.2} ({least:.2}..{most:.2})",
        told(median(floors)),
        told(median(verifies))
    );
    ratio
}

/// How much more two threads do than one, with these two keys.
fn two_threads(keys: &Keys, what: &str, one: &str, other: &str) -> f64 {
    let verify = |text: &str| {
        black_box(ready(keys.manager.verify(text, keys.ip)).unwrap());
    };
    let mut ratios = Vec::new();
    for _ in 0..ROUNDS {
        let alone = turn(keys, &mut 0, |_| verify(one));
        let (a, b) = thread::scope(|scope| {
            let second = scope.spawn(|| turn(keys, &mut 0, |_| verify(other)));
            (turn(keys, &mut 0, |_| verify(one)), second.join().unwrap())
        });
        ratios.push(alone / a + alone / b);
    }
    let (ratio, least, most) = median(ratios);
    println!("two threads, {what}: {ratio:.2} times one thread ({least:.2}..{most:.2})");
    ratio
}

fn allocations() {
    let keys = keys(1_000);
    let hot = keys.texts[0].clone();
    let key = ready(keys.manager.verify(&hot, keys.ip)).unwrap();
    let unknown = KeyFormat::default().generate(&SystemRandom).unwrap();
    let count = |credential: &str| {
        measure(|| drop(black_box(ready(keys.manager.verify(credential, keys.ip))))).count_total
    };
    print!("allocations: allowed {}, unknown {}", count(&hot), count(unknown.expose_secret()));
    print!(", malformed {}", count("vsp_sk_typo"));
    let actor = keygate::Actor::new(key.org().clone(), "bench");
    ready(keys.manager.update(&actor, &key.id(), KeyPatch::revoke())).unwrap();
    println!(", revoked {}", count(&hot));
}

fn main() {
    // The manager's own tasks run here.
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let _entered = runtime.enter();
    println!("nanoseconds a call: median (least..most) of {ROUNDS} rounds");
    println!("{:>14}   {:<28} {:<28} ratio", "", "floor", "verify");
    let ratios = SIZES.map(compare);
    let few = keys(1_000);
    let [one, other, ..] = few.texts.as_slice() else { panic!("there are 1,000") };
    two_threads(&few, "a key each", one, other);
    let threads = two_threads(&few, "one hot key", one, one);
    allocations();
    for (count, ratio) in SIZES.into_iter().zip(ratios) {
        println!("{count} keys: {ratio:.2} times the floor (target {TARGET})");
    }
    println!("two threads: {threads:.2} times one (target {TARGET_THREADS})");
}
