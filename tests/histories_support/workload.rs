//! Threads that use and change a few keys and record every call with its outcome.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Barrier, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use getrandom::SysRng;
use keygate::manager::IssuedKey;
use keygate::runtime::Clock;
use keygate::store::KeyDigest;
use keygate::{
    Actor, Allowlist, ApiKey, Denial, Expiration, KeyId, KeyManager, KeyName, KeyPatch, KeyStore,
    Limits, ManageError, NewKey, OrgId, ScopeCatalog, Scopes, Status, Timestamp, VerifyError,
};
use tokio::runtime::Handle;

use super::checker::{Demand, Violation, check};
use super::event::{Change, Event, Outcome, Patch, Span, State, Version};

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
}

/// The monotonic clock of the spans and of the managers.
#[derive(Clone, Copy, Debug)]
struct Monotonic(Instant);

impl Monotonic {
    fn nanos(self) -> u64 {
        u64::try_from(self.0.elapsed().as_nanos()).unwrap()
    }
}

impl Clock for Monotonic {
    fn now(&self) -> Timestamp {
        let micros = i64::try_from(self.nanos() / 1_000).unwrap();
        Timestamp::from_unix_micros(BEGINNING + micros).unwrap()
    }
}

/// The microsecond on the clock.
fn micros(time: Timestamp) -> u64 {
    u64::try_from(time.unix_micros() - BEGINNING).unwrap()
}

/// The events of each key.
pub(crate) struct History(HashMap<u32, Vec<Event>>);

impl History {
    pub(crate) fn violations(&self, demand: Demand) -> Vec<Violation> {
        self.0.values().flat_map(|events| check(events, demand)).collect()
    }

    /// The number of operations with such an outcome.
    pub(crate) fn count(&self, is_counted: impl Fn(Outcome) -> bool) -> usize {
        self.0.values().flatten().filter(|event| is_counted(event.outcome)).count()
    }

    /// The number of verifications during a change of their key.
    pub(crate) fn races(&self) -> usize {
        let races_of_key = |events: &Vec<Event>| {
            let is_change = |event: &&Event| {
                matches!(
                    event.outcome,
                    Outcome::Updated(..) | Outcome::Rotated(_) | Outcome::Deleted
                )
            };
            let changes: Vec<Span> =
                events.iter().filter(is_change).map(|event| event.span).collect();
            let races = |event: &&Event| {
                let overlaps = |change: &Span| {
                    change.start <= event.span.end && event.span.start <= change.end
                };
                matches!(event.outcome, Outcome::Verified { .. } | Outcome::Unknown(_))
                    && changes.iter().any(overlaps)
            };
            events.iter().filter(races).count()
        };
        self.0.values().map(races_of_key).sum()
    }
}

/// Runs the plan. Each thread has its own manager, because a manager makes the changes of a key
/// one after the other. Must not be called on a thread of the runtime.
pub(crate) fn run(runtime: &Handle, store: impl KeyStore, plan: &Plan) -> History {
    let (clock, store) = (Monotonic(Instant::now()), Arc::new(store));
    let manager = |_| {
        let _runtime = runtime.enter();
        KeyManager::builder(Arc::clone(&store))
            .clock(clock)
            .limits(Limits::default().max_keys(1_000_000))
            .store_deadline(STORE_DEADLINE)
            .scopes(ScopeCatalog::new([(READ, ""), (WRITE, "")]).unwrap())
            .max_overlap(plan.lifetime)
            .build()
            .unwrap()
    };
    let bench = Bench {
        managers: (0..=plan.threads).map(manager).collect(),
        clock,
        plan: plan.clone(),
        slots: (0..plan.keys).map(|_| Mutex::default()).collect(),
        count: AtomicU32::new(0),
    };
    let start = Barrier::new(usize::try_from(plan.threads).unwrap());
    let workers: Vec<Worker<'_>> = std::thread::scope(|scope| {
        let spawn = |number| {
            let (bench, start) = (&bench, &start);
            scope.spawn(move || {
                let mut worker = Worker::new(bench, number);
                start.wait();
                runtime.block_on(worker.work());
                worker
            })
        };
        let threads: Vec<_> = (0..plan.threads).map(spawn).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    // At the end, every secret is presented once more.
    let mut last = Worker::new(&bench, plan.threads);
    for secret in workers.iter().flat_map(|worker| &worker.issued) {
        runtime.block_on(last.verify(secret, true));
    }
    let mut keys = HashMap::<u32, Vec<Event>>::new();
    for (key, event) in workers.into_iter().chain([last]).flat_map(|worker| worker.log) {
        keys.entry(key).or_default().push(event);
    }
    History(keys)
}

struct Bench {
    managers: Vec<KeyManager>,
    clock: Monotonic,
    plan: Plan,
    slots: Vec<Mutex<Slot>>,
    /// The number of keys so far.
    count: AtomicU32,
}

/// A place for one key after another, with what the threads know of it.
#[derive(Default)]
struct Slot {
    key: Option<(u32, KeyId)>,
    /// Whether a thread is creating the next key.
    is_creating: bool,
    /// The secrets of the key, oldest first.
    secrets: Vec<Secret>,
    /// Secrets of deleted keys.
    dead: Vec<Secret>,
}

#[derive(Clone)]
struct Secret {
    key: u32,
    number: u64,
    text: Arc<str>,
}

struct Worker<'a> {
    bench: &'a Bench,
    manager: &'a KeyManager,
    random: u64,
    log: Vec<(u32, Event)>,
    issued: Vec<Secret>,
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
            random: (number + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15),
            log: Vec::new(),
            issued: Vec::new(),
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
        let start = self.bench.clock.nanos();
        let result = call.await;
        (result, Span { start, end: self.bench.clock.nanos() })
    }

    fn record(&mut self, key: u32, span: Span, outcome: Outcome) {
        self.log.push((key, Event { span, outcome }));
    }

    async fn work(&mut self) {
        let plan = &self.bench.plan;
        let share = plan.operations.div_ceil(plan.threads);
        while (self.log.len() as u64) < share {
            let slot = usize::try_from(self.roll(plan.keys as u64)).unwrap();
            if self.roll(100) < plan.changes {
                self.change(slot).await;
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
            if slot.key.is_none() && std::mem::replace(&mut slot.is_creating, true) {
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
        let key = self.bench.count.fetch_add(1, Ordering::Relaxed);
        let mut new = NewKey::named(key.to_string())
            .unwrap()
            .scopes(scopes(self.roll(4) > 0))
            .allowlist(allowlist(self.roll(4) == 0));
        if self.roll(4) == 0 {
            let end = self.bench.clock.now().saturating_add(self.bench.plan.lifetime);
            new = new.expires(Expiration::At(end));
        }
        let (issued, span) = self.timed(self.manager.create(&actor(number), new)).await;
        let issued = match issued {
            Ok(issued) => issued,
            // A busy machine took longer than the key would have been valid.
            Err(ManageError::ExpirationInThePast) => {
                self.slot(number).is_creating = false;
                return;
            }
            Err(other) => panic!("the store failed: {other:?}"),
        };
        let expires = issued.key.expires_at.map(micros);
        self.record(key, span, Outcome::Created(version(&issued.key), expires));
        let secret = self.secret(key, &issued);
        let mut slot = self.slot(number);
        let dead = std::mem::replace(&mut slot.secrets, vec![secret]);
        slot.dead.extend(dead);
        let surplus = slot.dead.len().saturating_sub(16);
        slot.dead.drain(..surplus);
        (slot.key, slot.is_creating) = (Some((key, issued.key.id)), false);
    }

    async fn rotate(&mut self, number: usize, key: u32, id: KeyId) {
        // Half of the old secrets work for a while.
        let overlap = self.bench.plan.lifetime * u32::try_from(self.roll(2)).unwrap();
        let actor = actor(number);
        let rotation = self.manager.rotate_with_overlap(&actor, &id, overlap, None);
        let (issued, span) = self.timed(rotation).await;
        let rotated = issued.as_ref().map(|issued| Outcome::Rotated(version(&issued.key)));
        self.record(key, span, rotated.unwrap_or_else(|error| refused(Change::Rotate, error)));
        let Ok(issued) = issued else { return };
        let secret = self.secret(key, &issued);
        let mut slot = self.slot(number);
        let is_current = slot.key == Some((key, id));
        if is_current { slot.secrets.push(secret) } else { slot.dead.push(secret) }
    }

    fn secret(&mut self, key: u32, issued: &IssuedKey) -> Secret {
        let text = issued.secret.expose_secret().into();
        let secret = Secret { key, number: number(&issued.secret.digest()), text };
        self.issued.push(secret.clone());
        secret
    }

    async fn delete(&mut self, number: usize, key: u32, id: KeyId) {
        let (deleted, span) = self.timed(self.manager.delete(&actor(number), &id)).await;
        let deleted = deleted.map(|()| Outcome::Deleted);
        self.record(key, span, deleted.unwrap_or_else(|error| refused(Change::Delete, &error)));
        let mut slot = self.slot(number);
        slot.key = slot.key.filter(|current| *current != (key, id));
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
        let updated = updated.map(|updated| Outcome::Updated(patch, version(&updated)));
        self.record(key, span, updated.unwrap_or_else(|error| refused(Change::Update, &error)));
    }
}

fn refused(change: Change, error: &ManageError) -> Outcome {
    match error {
        ManageError::Conflict => Outcome::Conflict(change),
        ManageError::NotFound => Outcome::NotFound,
        other => panic!("the store failed: {other:?}"),
    }
}
