//! Whether a comparison of digests takes as long wherever they differ: `cargo bench -p keygate-benches --bench timing`.
//!
//! After dudect (Reparaz, Balasch, Verbauwhede: "Dude, is my code constant time?"): two
//! classes of inputs take turns at random, in the same memory, and Welch's t says whether
//! their times differ; over 4.5 they do. The longest times are disturbances and are cut
//! off at several places, of which the largest |t| counts. A difference that is there is
//! there again, so that a |t| over the target is measured once more. `KEYGATE_SAMPLES`
//! says how many samples each row takes, 10,000,000 otherwise.
//!
//! The classes are digests that differ in their first byte and in their last one: for a
//! comparison that stops at the first difference these are the two ends. It is made by
//! `KeyDigest::ct_eq` and `==`, and by `KeyManager::verify` over a store that finds the
//! wrong record. The control is a comparison that does stop, and must be told apart. A
//! plain `==` of two `[u8; 32]` would not be, on x86-64: what the compiler makes of it
//! there does not stop either, but nothing promises that.
//!
//! The last row has no target: known and revoked keys against unknown ones. These look-ups
//! differ, since one finds a record. It tells no secret: who knows a whole key of 250
//! random bits learns that it once existed. Nor does the look-up in a store's index, which
//! is not in constant time: it is by SHA-256 of what was sent, and nobody can choose a
//! text by its digest, byte by byte. Even the whole digest would open nothing.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::print_stdout,
    reason = "a bench"
)]

use std::env;
use std::future::Future;
use std::hash::{BuildHasher, RandomState};
use std::hint::black_box;
use std::pin::pin;
use std::process::ExitCode;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};
use std::time::Instant;

use async_trait::async_trait;
use getrandom::SysRng;
use keygate::store::{KeyDigest, KeyUse, OrgLimit, Revision};
use keygate::{
    ApiKey, KeyFormat, KeyId, KeyManager, KeyName, KeyStore, MemoryStore, OrgId, Status,
    StoreError, Timestamp, VerifyError,
};
use subtle::ConstantTimeEq;

const TARGET: f64 = 4.5;
const SAMPLES: u64 = 10_000_000;
/// So many samples say where to cut off; they count for nothing else.
const WARM_UP: usize = 50_000;
/// Comparisons a sample: one alone is shorter than the clock can tell.
const COMPARISONS: usize = 32;
/// Verifications a sample.
const VERIFICATIONS: usize = 4;
/// Which parts of the samples count, in turn: all of them, or all but the longest.
const KEPT: [f64; 8] = [1.0, 0.999, 0.99, 0.97, 0.9, 0.75, 0.5, 0.25];

/// xorshift64*, to choose classes and inputs by.
struct Dice(u64);

impl Dice {
    fn new() -> Self {
        Self(RandomState::new().hash_one(Instant::now()) | 1)
    }

    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }
}

/// Count, mean and sum of squared differences, of one class (Welford).
#[derive(Clone, Copy, Default)]
struct Moments {
    count: f64,
    mean: f64,
    squares: f64,
}

impl Moments {
    fn add(&mut self, value: f64) {
        self.count += 1.0;
        let difference = value - self.mean;
        self.mean += difference / self.count;
        self.squares += difference * (value - self.mean);
    }

    fn error(self) -> f64 {
        self.squares / (self.count - 1.0).max(1.0) / self.count.max(1.0)
    }
}

fn welch([a, b]: [Moments; 2]) -> f64 {
    let error = (a.error() + b.error()).sqrt();
    if error > 0.0 { (a.mean - b.mean).abs() / error } else { 0.0 }
}

/// What was measured of one pair of classes.
struct Row {
    name: &'static str,
    t: f64,
    /// Nanoseconds a call, of the shorter three quarters.
    means: [f64; 2],
}

/// Takes that many samples. `prepare` fills in the inputs of a class (0 or 1), with
/// the same instructions for both; `work` is what is timed.
fn measure<I>(
    (name, calls): (&'static str, usize),
    samples: u64,
    input: &mut I,
    prepare: impl Fn(&mut I, u64, &mut Dice),
    work: impl Fn(&I),
) -> Row {
    let mut dice = Dice::new();
    let mut sample = || {
        let class = dice.next() >> 63;
        prepare(input, class, &mut dice);
        let input = black_box(&*input);
        let started = Instant::now();
        work(input);
        (class as usize, started.elapsed().as_nanos() as f64)
    };
    let mut times: Vec<f64> = (0..WARM_UP).map(|_| sample().1).collect();
    times.sort_by(f64::total_cmp);
    let limits = KEPT.map(|kept| {
        let last = times.len() - 1;
        if kept < 1.0 { times[(last as f64 * kept) as usize] } else { f64::INFINITY }
    });
    let mut moments = [[Moments::default(); 2]; KEPT.len()];
    for _ in 0..samples {
        let (class, time) = sample();
        for (moments, limit) in moments.iter_mut().zip(limits) {
            if time <= limit {
                moments[class].add(time);
            }
        }
    }
    let t = moments.into_iter().map(welch).fold(0.0, f64::max);
    let means = moments[5].map(|class| class.mean / calls as f64);
    println!("{name:<44} {:>8.2} {:>8.2} {t:>10.2}", means[0], means[1]);
    Row { name, t, means }
}

/// Measures once more what is over the target, and takes the smaller.
fn at_most(target: f64, measure: impl Fn() -> Row) -> Row {
    let first = measure();
    if first.t < target {
        return first;
    }
    let again = measure();
    if again.t < first.t { again } else { first }
}

/// Digests in pairs, of which the second is made anew for each sample, in its place.
struct Pairs {
    stored: KeyDigest,
    pairs: [(KeyDigest, KeyDigest); COMPARISONS],
}

impl Pairs {
    fn new() -> Self {
        let stored = KeyDigest::of("stored");
        Self { stored, pairs: [(stored, stored); COMPARISONS] }
    }

    fn prepare(&mut self, class: u64, dice: &mut Dice) {
        for (a, b) in &mut self.pairs {
            (*a, *b) = (self.stored, differing(&self.stored, class, dice.next()));
        }
    }
}

/// The digest with another first byte (class 0), or another last one (class 1).
/// Without a branch, and written by whole words, for both alike.
fn differing(digest: &KeyDigest, class: u64, random: u64) -> KeyDigest {
    let difference = random % 255 + 1;
    let mut words = [0; 4];
    for (word, bytes) in words.iter_mut().zip(digest.as_bytes().chunks_exact(8)) {
        *word = u64::from_le_bytes(bytes.try_into().unwrap());
    }
    words[0] ^= difference * (1 - class);
    words[3] ^= (difference << 56) * class;
    let mut bytes = [0; 32];
    for (bytes, word) in bytes.chunks_exact_mut(8).zip(black_box(words)) {
        bytes.copy_from_slice(&word.to_le_bytes());
    }
    KeyDigest::from_slice(&bytes).unwrap()
}

fn compare(
    name: &'static str,
    samples: u64,
    equal: impl Fn(&KeyDigest, &KeyDigest) -> bool,
) -> Row {
    let work = |input: &Pairs| {
        for (a, b) in &input.pairs {
            black_box(equal(black_box(a), black_box(b)));
        }
    };
    measure((name, COMPARISONS), samples, &mut Pairs::new(), Pairs::prepare, work)
}

/// Stops at the first difference, as the comparison of a slice does in many languages.
fn stops_early(a: &KeyDigest, b: &KeyDigest) -> bool {
    for (a, b) in a.as_bytes().iter().zip(b.as_bytes()) {
        if black_box(a) != black_box(b) {
            return false;
        }
    }
    true
}

/// Finds one record, whatever is looked for.
#[derive(Debug)]
struct Wrong(Mutex<Arc<ApiKey>>);

#[async_trait]
impl KeyStore for Wrong {
    async fn find_by_digest(&self, _: &KeyDigest) -> Result<Option<Arc<ApiKey>>, StoreError> {
        Ok(Some(Arc::clone(&self.0.lock().unwrap())))
    }
    async fn insert(&self, _: &ApiKey, _: OrgLimit) -> Result<(), StoreError> {
        Err(StoreError::Conflict)
    }
    async fn get(&self, _: &OrgId, _: &KeyId) -> Result<Option<Arc<ApiKey>>, StoreError> {
        Ok(None)
    }
    async fn list(&self, _: &OrgId) -> Result<Vec<Arc<ApiKey>>, StoreError> {
        Ok(Vec::new())
    }
    async fn replace(&self, _: &ApiKey, _: Revision) -> Result<(), StoreError> {
        Err(StoreError::NotFound)
    }
    async fn delete(&self, _: &OrgId, _: &KeyId, _: Option<Revision>) -> Result<(), StoreError> {
        Err(StoreError::NotFound)
    }
    async fn record_uses(&self, _: &[KeyUse]) -> Result<(), StoreError> {
        Ok(())
    }
}

fn record(digest: KeyDigest, status: Status) -> ApiKey {
    ApiKey {
        id: KeyId::random(&mut SysRng).unwrap(),
        org: OrgId::new("acme").unwrap(),
        name: KeyName::new("CI deploy").unwrap(),
        digest,
        status,
        created_at: Timestamp::from_unix_micros(0).unwrap(),
        ..ApiKey::sample(0)
    }
}

fn key() -> String {
    KeyFormat::default().generate(&mut SysRng).unwrap().expose_secret().to_owned()
}

/// Work that never has to wait.
fn ready<T>(future: impl Future<Output = T>) -> T {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(done) => done,
        Poll::Pending => panic!("it has to wait"),
    }
}

/// The comparison in `verify`, on a record whose digest is almost that of the key.
fn verify_wrong(samples: u64) -> Row {
    let key = key();
    let digest = KeyDigest::of(&key);
    let store = Arc::new(Wrong(Mutex::new(Arc::new(record(digest, Status::Active)))));
    let manager = KeyManager::builder(Arc::clone(&store)).build().unwrap();
    // In its place, which is nobody else's between two samples.
    let prepare = |_: &mut (), class, dice: &mut Dice| {
        let mut found = store.0.lock().unwrap();
        Arc::get_mut(&mut found).unwrap().digest = differing(&digest, class, dice.next());
    };
    let work = |_: &()| {
        for _ in 0..VERIFICATIONS {
            let refused = ready(manager.verify(black_box(&key), None));
            assert!(matches!(black_box(refused), Err(VerifyError::Unknown)));
        }
    };
    measure(("verify: first byte, last byte", VERIFICATIONS), samples, &mut (), prepare, work)
}

/// Revoked keys (class 0) and unknown ones (class 1): not a secret, see above.
fn verify_known(samples: u64) -> Row {
    const KEYS: u64 = 1_000;
    let store = MemoryStore::new();
    let texts: [Vec<String>; 2] = [(); 2].map(|()| (0..KEYS).map(|_| key()).collect());
    for text in &texts[0] {
        let record = record(KeyDigest::of(text), Status::Revoked);
        ready(store.insert(&record, OrgLimit::NONE)).unwrap();
    }
    let manager = KeyManager::builder(store).build().unwrap();
    let mut presented: [String; VERIFICATIONS] = Default::default();
    let prepare = |presented: &mut [String; VERIFICATIONS], class, dice: &mut Dice| {
        for text in presented {
            text.clone_from(&texts[class as usize][(dice.next() % KEYS) as usize]);
        }
    };
    let work = |presented: &[String; VERIFICATIONS]| {
        for text in presented {
            assert!(black_box(ready(manager.verify(text, None))).is_err());
        }
    };
    let name = ("verify: revoked, unknown (no secret)", VERIFICATIONS);
    measure(name, samples, &mut presented, prepare, work)
}

fn main() -> ExitCode {
    let samples = env::var("KEYGATE_SAMPLES").map_or(SAMPLES, |n| n.parse().expect("a number"));
    // The manager's own tasks run here.
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let _entered = runtime.enter();
    println!("nanoseconds a call in both classes, and the largest |t|; {samples} samples");
    let rows = [
        at_most(TARGET, || {
            compare("ct_eq: first byte, last byte", samples, |a, b| a.ct_eq(b).into())
        }),
        at_most(TARGET, || compare("==: first byte, last byte", samples, |a, b| a == b)),
        at_most(TARGET, || verify_wrong(samples)),
    ];
    let control = compare("control, stops early: first byte, last byte", samples, stops_early);
    verify_known(samples);
    let worst = rows.iter().max_by(|a, b| a.t.total_cmp(&b.t)).unwrap();
    if worst.t >= TARGET {
        let [first, last] = worst.means;
        println!("{}: {first:.2} and {last:.2} ns can be told apart", worst.name);
    }
    println!(
        "|t| {:.2} (target under {TARGET}), control |t| {:.2} (must be above)",
        worst.t, control.t
    );
    if worst.t < TARGET && control.t > TARGET { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
