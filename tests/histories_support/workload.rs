//! Threads that use and change a few keys and record every call with its outcome.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Barrier, Mutex, MutexGuard};
use std::time::Duration;

use getrandom::SysRng;
use keygate::manager::IssuedKey;
use keygate::runtime::Clock;
use keygate::store::KeyDigest;
use keygate::{
    Actor, Allowlist, ApiKey, Denial, Expiration, KeyId, KeyManager, KeyName, KeyPatch, KeyStore,
    Limits, ManageError, NewKey, OrgId, ScopeCatalog, Scopes, Status, Timestamp, VerifyError,
};
use rustix::time::{ClockId, clock_gettime};
use tokio::runtime::Handle;

use super::event::{Change, Event, Outcome, Patch, Span, State, Version};
use super::history::{History, Log};
use super::processes::{Message, Other};
use super::slots::{News, Secret, Slot};

/// A store on a busy machine is slow, and the checker knows no timeouts.
const STORE_DEADLINE: Duration = Duration::from_secs(20);

/// An address in the restricted network, and another one.
const HOME: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1));
const ABROAD: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));

/// The scope that every request needs, and another one.
const READ: &str = "read";
const WRITE: &str = "write";

/// The time at which the clock of the managers begins, in microseconds since 1970.
const BEGINNING: i64 = 1_800_000_000_000_000;

#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(crate) operations: u64,
    pub(crate) threads: u64,
    /// The number of keys at a time. With few keys, the calls of the threads collide.
    pub(crate) keys: usize,
    /// The percentage of changes.
    pub(crate) changes: u64,
    /// How long an expiring key is valid.
    pub(crate) lifetime: Duration,
    /// How long a thread rests after a change at most.
    pub(crate) pause: Duration,
}

/// The clock of the spans and of the managers. All processes of a machine share it.
#[derive(Clone, Copy, Debug)]
struct Monotonic;

impl Monotonic {
    fn nanos() -> u64 {
        let time = clock_gettime(ClockId::Monotonic);
        u64::try_from(time.tv_sec * 1_000_000_000 + time.tv_nsec).unwrap()
    }
}

impl Clock for Monotonic {
    fn now(&self) -> Timestamp {
        let micros = i64::try_from(Self::nanos() / 1_000).unwrap();
        Timestamp::from_unix_micros(BEGINNING + micros).unwrap()
    }
}

/// The microsecond on the clock.
fn micros(time: Timestamp) -> u64 {
    u64::try_from(time.unix_micros() - BEGINNING).unwrap()
}

/// Runs the plan, or half of it if another process runs the other half. Each thread has its own
/// manager, because a manager makes the changes of a key one after the other. Must not be called
/// on a thread of the runtime.
pub(crate) fn run(
    runtime: &Handle,
    store: impl KeyStore,
    plan: &Plan,
    other: Option<Other>,
) -> History {
    let store = Arc::new(store);
    let (process, processes) = other.as_ref().map_or((0, 1), |other| (other.own_number, 2));
    let threads = plan.threads / u64::from(processes);
    let manager = |_| {
        let _runtime = runtime.enter();
        KeyManager::builder(Arc::clone(&store))
            .clock(Monotonic)
            .limits(Limits::default().max_keys(1_000_000))
            .store_deadline(STORE_DEADLINE)
            .scopes(ScopeCatalog::new([(READ, ""), (WRITE, "")]).unwrap())
            .max_overlap(plan.lifetime)
            .build()
            .unwrap()
    };
    let bench = Bench {
        managers: (0..=threads).map(manager).collect(),
        plan: plan.clone(),
        slots: (0..plan.keys).map(|_| Mutex::default()).collect(),
        count: AtomicU32::new(0),
        issued: Mutex::default(),
        process,
        processes,
        other,
    };
    let start = Barrier::new(usize::try_from(threads).unwrap());
    let [mut log, heard]: [Log; 2] = std::thread::scope(|scope| {
        let heard = bench.other.as_ref().map(|other| scope.spawn(|| bench.hear(other)));
        let spawn = |number| {
            let (bench, start) = (&bench, &start);
            scope.spawn(move || {
                let mut worker = Worker::new(bench, number);
                start.wait();
                runtime.block_on(worker.work());
                worker.log
            })
        };
        let workers: Vec<_> = (0..threads).map(spawn).collect();
        let log: Log = workers.into_iter().flat_map(|worker| worker.join().unwrap()).collect();
        if let Some(other) = &bench.other {
            log.iter().for_each(|(key, event)| other.tell(&Message::Event(*key, *event)));
            other.end();
        }
        [log, heard.map(|heard| heard.join().unwrap()).unwrap_or_default()]
    });
    // At the end, every secret is presented once more.
    let mut last = Worker::new(&bench, threads);
    for secret in bench.issued.lock().unwrap().iter() {
        runtime.block_on(last.verify(secret, true));
    }
    log.append(&mut last.log);
    let mut history = History::default();
    history.add(log);
    history.add(heard);
    history
}

struct Bench {
    managers: Vec<KeyManager>,
    plan: Plan,
    slots: Vec<Mutex<Slot>>,
    /// The number of keys that this process has created.
    count: AtomicU32,
    /// All secrets of all keys.
    issued: Mutex<Vec<Secret>>,
    /// The number of this process, and how many there are.
    process: u32,
    processes: u32,
    other: Option<Other>,
}

impl Bench {
    /// Whether this process creates the keys of the slot; otherwise the other one does.
    fn creates(&self, slot: usize) -> bool {
        slot % self.processes as usize == self.process as usize
    }

    fn learn(&self, slot: usize, news: News) {
        if let News::Created(_, secret) | News::Rotated(secret) = &news {
            self.issued.lock().unwrap().push(secret.clone());
        }
        self.slots[slot].lock().unwrap().learn(news);
    }

    /// Learns what the other process tells, until it has ended its work. Returns its events.
    fn hear(&self, other: &Other) -> Log {
        let mut log = Log::new();
        for message in other.messages() {
            match message {
                Message::News(slot, news) => self.learn(slot, news),
                Message::Event(key, event) => log.push((key, event)),
            }
        }
        log
    }
}

struct Worker<'a> {
    bench: &'a Bench,
    manager: &'a KeyManager,
    random: u64,
    log: Log,
    /// How many changes the other process has kept from being made.
    locked_out: u32,
}

fn actor(slot: usize) -> Actor {
    Actor::new(OrgId::new(format!("org-{slot}")).unwrap(), "tester")
}

fn allowlist(home_only: bool) -> Allowlist {
    if home_only { Allowlist::parse(["10.0.0.0/8"]).unwrap() } else { Allowlist::default() }
}

fn scopes(reads: bool) -> Scopes {
    Scopes::only([if reads { READ } else { WRITE }]).unwrap()
}

/// A number that identifies the secret.
fn number(digest: &KeyDigest) -> u64 {
    u64::from_be_bytes(*digest.as_bytes().first_chunk().unwrap())
}

fn secret(key: u32, issued: &IssuedKey) -> Secret {
    let text = issued.secret.expose_secret().into();
    Secret { key, number: number(&issued.secret.digest()), text }
}

fn version(key: &ApiKey) -> Version {
    Version {
        revision: key.revision.get(),
        state: State {
            secret: number(&key.digest),
            previous: key.previous.map(|old| (number(&old.digest), micros(old.until))),
            revoked: key.status == Status::Revoked,
            home_only: !key.allowlist.is_empty(),
            reads: key.attributes.scopes.has(READ),
            name: key.name.as_str().parse().unwrap(),
        },
    }
}

impl<'a> Worker<'a> {
    fn new(bench: &'a Bench, number: u64) -> Self {
        Self {
            bench,
            manager: &bench.managers[usize::try_from(number).unwrap()],
            random: (number * 2 + u64::from(bench.process) + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15),
            log: Vec::new(),
            locked_out: 0,
        }
    }

    /// A random number below `limit`.
    fn roll(&mut self, limit: u64) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        (self.random >> 16) % limit
    }

    fn slot(&self, number: usize) -> MutexGuard<'a, Slot> {
        self.bench.slots[number].lock().unwrap()
    }

    /// Waits for the result of the call, and measures the time.
    async fn timed<T>(&self, call: impl Future<Output = T>) -> (T, Span) {
        let start = Monotonic::nanos();
        let result = call.await;
        (result, Span { start, end: Monotonic::nanos() })
    }

    fn record(&mut self, key: u32, span: Span, outcome: Outcome) {
        self.log.push((key, Event { span, outcome }));
    }

    /// Lets all threads know, those of the other process too.
    fn share(&self, slot: usize, news: News) {
        if let Some(other) = &self.bench.other {
            other.tell(&Message::News(slot, news.clone()));
        }
        self.bench.learn(slot, news);
    }

    async fn work(&mut self) {
        let plan = &self.bench.plan;
        let share = plan.operations.div_ceil(plan.threads);
        while (self.log.len() as u64) < share {
            let slot = usize::try_from(self.roll(plan.keys as u64)).unwrap();
            if self.roll(100) < plan.changes {
                self.change(slot).await;
                std::thread::sleep(plan.pause.mul_f64(self.roll(100) as f64 / 100.0));
            } else {
                self.present_a_secret(slot).await;
            }
        }
    }

    async fn present_a_secret(&mut self, number: usize) {
        let (which, any) = (self.roll(100), self.roll(1 << 40));
        let pick = |secrets: &[Secret]| {
            let index = any.checked_rem(secrets.len() as u64)?;
            Some(secrets[usize::try_from(index).unwrap()].clone())
        };
        // If the slot has no key, the next slot that has one.
        let slots = self.bench.slots.iter().cycle().skip(number).take(self.bench.slots.len());
        let secret = slots.map(|slot| slot.lock().unwrap()).find_map(|slot| match which {
            0..12 => pick(&slot.dead),
            _ if slot.key.is_none() => None,
            12..25 => pick(&slot.secrets),
            _ => slot.secrets.last().cloned(),
        });
        if which == 99 {
            let key = self.manager.format().generate(&mut SysRng).unwrap();
            let refused = self.manager.verify(key.expose_secret(), None).await;
            assert!(matches!(refused, Err(VerifyError::Unknown)), "never issued: {refused:?}");
        }
        let home = self.roll(5) > 0;
        match secret {
            Some(secret) => self.verify(&secret, home).await,
            None => {
                self.change(number).await;
                tokio::task::yield_now().await;
            }
        }
    }

    async fn verify(&mut self, secret: &Secret, home: bool) {
        let ip = Some(if home { HOME } else { ABROAD });
        let (result, span) = self.timed(self.manager.verify(&secret.text, ip)).await;
        let verified = |key: &ApiKey, denial| Outcome::Verified {
            secret: secret.number,
            home,
            seen: version(key),
            denial,
        };
        let outcome = match result {
            Ok(key) => {
                let lacks_scope = key.require_scope(READ).is_err();
                verified(key.record(), lacks_scope.then_some(Denial::InsufficientScope))
            }
            Err(VerifyError::Denied { denial, key, .. }) => verified(&key, Some(denial)),
            Err(VerifyError::Unknown) => Outcome::Unknown(secret.number),
            Err(other) => panic!("the store failed: {other:?}"),
        };
        self.record(secret.key, span, outcome);
    }

    async fn change(&mut self, number: usize) {
        let key = {
            let mut slot = self.slot(number);
            let may_create = self.bench.creates(number);
            if slot.key.is_none() && (!may_create || std::mem::replace(&mut slot.is_creating, true))
            {
                return;
            }
            slot.key
        };
        let Some((key, id)) = key else { return self.create(number).await };
        match self.roll(100) {
            0..18 => self.rotate(number, key, id).await,
            18..25 => self.delete(number, key, id).await,
            _ => self.update(number, key, id).await,
        }
    }

    async fn create(&mut self, number: usize) {
        let count = self.bench.count.fetch_add(1, Ordering::Relaxed);
        let key = count * self.bench.processes + self.bench.process;
        let mut new = NewKey::named(key.to_string())
            .unwrap()
            .scopes(scopes(self.roll(4) > 0))
            .allowlist(allowlist(self.roll(4) == 0));
        if self.roll(4) == 0 {
            let end = Monotonic.now().saturating_add(self.bench.plan.lifetime);
            new = new.expires(Expiration::At(end));
        }
        let (issued, span) = self.timed(self.manager.create(&actor(number), new)).await;
        let issued = match issued {
            Ok(issued) => issued,
            Err(error) => {
                // A busy machine takes longer than the key would be valid.
                if !matches!(error, ManageError::ExpirationInThePast) {
                    self.allow_lock(&error);
                }
                self.slot(number).is_creating = false;
                return;
            }
        };
        let expires = issued.key.expires_at.map(micros);
        self.record(key, span, Outcome::Created(version(&issued.key), expires));
        self.share(number, News::Created(issued.key.id.to_bytes(), secret(key, &issued)));
    }

    async fn rotate(&mut self, number: usize, key: u32, id: KeyId) {
        // Half of the old secrets work for a while.
        let overlap = self.bench.plan.lifetime * u32::try_from(self.roll(2)).unwrap();
        let actor = actor(number);
        let rotation = self.manager.rotate_with_overlap(&actor, &id, overlap, None);
        let (issued, span) = self.timed(rotation).await;
        let rotated = issued.as_ref().map(|issued| Outcome::Rotated(version(&issued.key)));
        self.record_change(key, span, Change::Rotate, rotated);
        let Ok(issued) = issued else { return };
        self.share(number, News::Rotated(secret(key, &issued)));
    }

    async fn delete(&mut self, number: usize, key: u32, id: KeyId) {
        let (deleted, span) = self.timed(self.manager.delete(&actor(number), &id)).await;
        let outcome = deleted.as_ref().map(|()| Outcome::Deleted);
        self.record_change(key, span, Change::Delete, outcome);
        if matches!(deleted, Ok(()) | Err(ManageError::NotFound)) {
            self.share(number, News::Deleted(key));
        }
    }

    async fn update(&mut self, number: usize, key: u32, id: KeyId) {
        let name = (self.roll(3) == 0).then(|| u32::try_from(self.roll(1 << 31)).unwrap());
        let mut patch = Patch { name, ..Patch::default() };
        match self.roll(11) {
            10 => patch.ends_previous = true,
            0..3 => patch.revoked = Some(true),
            3..7 => patch.revoked = Some(false),
            7 => patch.home_only = Some(true),
            _ => patch.home_only = Some(false),
        }
        if self.roll(4) == 0 {
            patch.reads = Some(self.roll(4) > 0);
        }
        let mut asked = KeyPatch::default();
        asked.scopes = patch.reads.map(scopes);
        asked.name = name.map(|name| KeyName::new(name.to_string()).unwrap());
        asked.status = patch.revoked.map(|is| if is { Status::Revoked } else { Status::Active });
        asked.allowlist = patch.home_only.map(allowlist);
        asked.end_previous_secret = patch.ends_previous;
        let (updated, span) = self.timed(self.manager.update(&actor(number), &id, asked)).await;
        let outcome = updated.as_ref().map(|updated| Outcome::Updated(patch, version(updated)));
        self.record_change(key, span, Change::Update, outcome);
    }

    fn record_change(
        &mut self,
        key: u32,
        span: Span,
        change: Change,
        outcome: Result<Outcome, &ManageError>,
    ) {
        match outcome {
            Ok(outcome) => self.record(key, span, outcome),
            Err(ManageError::Conflict) => self.record(key, span, Outcome::Conflict(change)),
            Err(ManageError::NotFound) => self.record(key, span, Outcome::NotFound),
            Err(other) => self.allow_lock(other),
        }
    }

    /// On a busy machine, the other process may hold the lock of a file for so long that a change
    /// fails. The store promises that it will not be made later, so the history goes on without
    /// it. No other failure is allowed.
    fn allow_lock(&mut self, failure: &ManageError) {
        let is_lock = matches!(failure, ManageError::Unavailable(_))
            && format!("{failure:?}").contains("database is locked");
        self.locked_out += 1;
        let is_allowed = self.bench.other.is_some() && is_lock && self.locked_out < 10;
        assert!(is_allowed, "the store failed: {failure:?}");
    }
}
