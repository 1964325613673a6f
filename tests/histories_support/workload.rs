//! Many threads that use and change a few keys, and write down what came of it.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Barrier, Mutex};
use std::time::{Duration, Instant};

use getrandom::SysRng;
use keygate::runtime::Clock;
use keygate::store::KeyDigest;
use keygate::{
    Actor, Allowlist, ApiKey, Denial, Expiration, KeyId, KeyManager, KeyName, KeyPatch, KeyStore,
    Limits, ManageError, NewKey, OrgId, ScopeCatalog, Scopes, Status, Timestamp, VerifyError,
};
use tokio::runtime::Handle;

use super::checker::{Demand, Violation, check};
use super::event::{Attempt, Deed, Event, Patch, Span, State, Version};

/// A busy machine is slow; the checker knows no store that is.
pub(crate) const PATIENT: Duration = Duration::from_secs(20);

const HOME: &str = "10.0.0.1";
const ABROAD: &str = "192.0.2.1";

/// The scope that every request needs, and another one.
const READ: &str = "read";
const WRITE: &str = "write";

/// Where the clock of the managers begins, in microseconds since 1970.
const BEGINNING: i64 = 1_800_000_000_000_000;

#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(crate) operations: u64,
    pub(crate) threads: u64,
    /// Keys at a time. Few of them, so that the threads meet.
    pub(crate) keys: usize,
    /// Changes among a hundred operations.
    pub(crate) changes: u64,
    /// How long a key that expires is valid.
    pub(crate) lifetime: Duration,
}

/// The clock of spans and of the manager: one that nobody corrects.
#[derive(Clone, Copy, Debug)]
struct Ours(Instant);

impl Ours {
    fn nanos(self) -> u64 {
        u64::try_from(self.0.elapsed().as_nanos()).unwrap()
    }
}

impl Clock for Ours {
    fn now(&self) -> Timestamp {
        let micros = i64::try_from(self.nanos() / 1_000).unwrap();
        Timestamp::from_unix_micros(BEGINNING + micros).unwrap()
    }
}

/// What was seen of all keys.
#[derive(Default)]
pub(crate) struct History {
    keys: HashMap<u32, OfKey>,
    pub(crate) operations: usize,
    pub(crate) took: Duration,
}

#[derive(Default)]
struct OfKey {
    expires: Option<u64>,
    events: Vec<Event>,
}

impl History {
    pub(crate) fn violations(&self, demand: Demand) -> Vec<Violation> {
        let all = self.keys.values();
        all.flat_map(|key| check(&key.events, key.expires, demand)).collect()
    }

    /// How many operations ended like that.
    pub(crate) fn count(&self, is_it: impl Fn(&Deed) -> bool) -> usize {
        let events = self.keys.values().flat_map(|key| &key.events);
        events.filter(|event| is_it(&event.deed)).count()
    }

    /// How many verifications were under way while the key was changed.
    pub(crate) fn races(&self) -> usize {
        let mut races = 0;
        for key in self.keys.values() {
            let is_change = |event: &&Event| {
                matches!(event.deed, Deed::Updated(..) | Deed::Rotated(_) | Deed::Deleted)
            };
            let mut changes: Vec<_> = key.events.iter().filter(is_change).map(|e| e.span).collect();
            changes.sort_by_key(|span| span.call);
            for event in &key.events {
                let seen = matches!(
                    event.deed,
                    Deed::Accepted { .. } | Deed::Denied { .. } | Deed::Unknown { .. }
                );
                let before = changes.partition_point(|change| change.call <= event.span.back);
                // One of the last few that had begun by then may still be under way.
                let few = &changes[before.saturating_sub(8)..before];
                races += usize::from(seen && few.iter().any(|c| c.back >= event.span.call));
            }
        }
        races
    }
}

/// Runs the plan, each thread with a manager of its own over that store: within one manager
/// changes of a key wait for each other. Not to be called on the runtime.
pub(crate) fn run(runtime: &Handle, store: impl KeyStore, plan: &Plan) -> History {
    let (clock, store) = (Ours(Instant::now()), Arc::new(store));
    let manager = |_| {
        let _runtime = runtime.enter();
        let limits = Limits::default().max_keys(1_000_000);
        let builder = KeyManager::builder(Arc::clone(&store)).clock(clock).limits(limits);
        let scopes = ScopeCatalog::new([(READ, ""), (WRITE, "")]).unwrap();
        let builder = builder.store_deadline(PATIENT).scopes(scopes);
        builder.max_overlap(plan.lifetime).build().unwrap()
    };
    let bench = Bench {
        managers: (0..=plan.threads).map(manager).collect(),
        clock,
        plan: plan.clone(),
        slots: (0..plan.keys).map(|_| Mutex::default()).collect(),
        count: AtomicU32::new(0),
    };
    let start = Barrier::new(usize::try_from(plan.threads).unwrap());
    let begun = Instant::now();
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
    let took = begun.elapsed();
    let (mut log, mut secrets, mut expiries) = (Vec::new(), Vec::new(), Vec::new());
    for worker in workers {
        log.extend(worker.log);
        secrets.extend(worker.issued);
        expiries.extend(worker.expiries);
    }
    // When all is quiet, every secret that there ever was.
    let mut last = Worker::new(&bench, plan.threads);
    runtime.block_on(async {
        for secret in &secrets {
            last.verify(secret, true).await;
        }
    });
    log.extend(last.log);
    let mut history = History { operations: log.len(), took, ..History::default() };
    for (key, event) in log {
        history.keys.entry(key).or_default().events.push(event);
    }
    for (key, expires) in expiries {
        history.keys.entry(key).or_default().expires = Some(expires);
    }
    history
}

struct Bench {
    managers: Vec<KeyManager>,
    clock: Ours,
    plan: Plan,
    slots: Vec<Mutex<Slot>>,
    /// How many keys there were so far.
    count: AtomicU32,
}

/// What the threads know of one key.
#[derive(Default)]
struct Slot {
    key: Option<(u32, KeyId)>,
    /// Somebody is making the next key.
    making: bool,
    /// Oldest first.
    secrets: Vec<Secret>,
    /// Of keys that are gone.
    dead: Vec<Secret>,
}

#[derive(Clone)]
struct Secret {
    key: u32,
    mark: u64,
    text: Arc<str>,
}

struct Worker<'a> {
    bench: &'a Bench,
    manager: &'a KeyManager,
    random: u64,
    log: Vec<(u32, Event)>,
    issued: Vec<Secret>,
    expiries: Vec<(u32, u64)>,
    home: IpAddr,
    abroad: IpAddr,
}

fn actor(slot: usize) -> Actor {
    Actor::new(OrgId::new(format!("org-{slot}")).unwrap(), "tester")
}

fn home_only() -> Allowlist {
    Allowlist::parse(["10.0.0.0/8"]).unwrap()
}

fn scopes(reads: bool) -> Scopes {
    Scopes::only([if reads { READ } else { WRITE }]).unwrap()
}

/// Tells secrets apart.
fn mark(digest: &KeyDigest) -> u64 {
    u64::from_be_bytes(*digest.as_bytes().first_chunk().unwrap())
}

fn version(key: &ApiKey) -> Version {
    Version {
        revision: key.revision.get(),
        state: State {
            secret: mark(&key.digest),
            previous: key.previous.map(|previous| {
                let until = previous.until.unix_micros() - BEGINNING;
                (mark(&previous.digest), u64::try_from(until).unwrap())
            }),
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
            expiries: Vec::new(),
            home: HOME.parse().unwrap(),
            abroad: ABROAD.parse().unwrap(),
        }
    }

    /// Below `limit`.
    fn roll(&mut self, limit: u64) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        (self.random >> 16) % limit
    }

    fn roll_index(&mut self, length: usize) -> usize {
        usize::try_from(self.roll(length as u64)).unwrap()
    }

    async fn work(&mut self) {
        let plan = &self.bench.plan;
        let share = plan.operations.div_ceil(plan.threads);
        while (self.log.len() as u64) < share {
            let slot = self.roll_index(plan.keys);
            if self.roll(100) < plan.changes {
                self.change(slot).await;
            } else {
                self.look(slot).await;
            }
        }
    }

    async fn look(&mut self, number: usize) {
        let (which, any) = (self.roll(100), self.roll(1 << 40));
        let pick = |secrets: &[Secret]| {
            let length = secrets.len() as u64;
            (length > 0).then(|| secrets[usize::try_from(any % length).unwrap()].clone())
        };
        // Where the key is gone, another one: its successor may be long in the making.
        let order = (number..number + self.bench.slots.len()).map(|n| n % self.bench.slots.len());
        let secret =
            order.map(|n| self.bench.slots[n].lock().unwrap()).find_map(|slot| match which {
                0..12 => pick(&slot.dead),
                _ if slot.key.is_none() => None,
                12..25 => pick(&slot.secrets),
                _ => slot.secrets.last().cloned(),
            });
        if which == 99 {
            self.look_with_a_key_that_nobody_issued().await;
        }
        let home = self.roll(5) > 0;
        match secret {
            Some(secret) => self.verify(&secret, home).await,
            // There is no key yet.
            None => {
                self.change(number).await;
                tokio::task::yield_now().await;
            }
        }
    }

    async fn verify(&mut self, secret: &Secret, home: bool) {
        let ip = Some(if home { self.home } else { self.abroad });
        let call = self.bench.clock.nanos();
        let outcome = self.manager.verify(&secret.text, ip).await;
        let span = Span { call, back: self.bench.clock.nanos() };
        let mark = secret.mark;
        let deed = match outcome {
            Ok(key) => {
                let seen = version(key.record());
                match key.require_scope(READ) {
                    Ok(()) => Deed::Accepted { secret: mark, home, seen },
                    Err(_) => {
                        let denial = Denial::InsufficientScope;
                        Deed::Denied { secret: mark, home, seen, denial }
                    }
                }
            }
            Err(VerifyError::Denied { denial, key, .. }) => {
                Deed::Denied { secret: mark, home, seen: version(&key), denial }
            }
            Err(VerifyError::Unknown) => Deed::Unknown { secret: mark },
            Err(other) => panic!("the store is not well: {other:?}"),
        };
        self.log.push((secret.key, Event { span, deed }));
    }

    async fn look_with_a_key_that_nobody_issued(&self) {
        let key = self.manager.format().generate(&mut SysRng).unwrap();
        let outcome = self.manager.verify(key.expose_secret(), None).await;
        assert!(matches!(outcome, Err(VerifyError::Unknown)), "{outcome:?}");
    }

    async fn change(&mut self, number: usize) {
        let key = {
            let mut slot = self.bench.slots[number].lock().unwrap();
            if slot.key.is_none() && !std::mem::replace(&mut slot.making, true) {
                None
            } else if let Some(key) = slot.key {
                Some(key)
            } else {
                // Made by somebody else at this moment.
                return;
            }
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
        let mut new = NewKey::named(key.to_string()).unwrap().scopes(scopes(self.roll(4) > 0));
        if self.roll(4) == 0 {
            new = new.allowlist(home_only());
        }
        if self.roll(4) == 0 {
            let ahead = self.bench.clock.now().saturating_add(self.bench.plan.lifetime);
            new = new.expires(Expiration::At(ahead));
        }
        let call = self.bench.clock.nanos();
        let issued = self.manager.create(&actor(number), new).await;
        let span = Span { call, back: self.bench.clock.nanos() };
        let issued = match issued {
            Ok(issued) => issued,
            // The machine was busy for so long.
            Err(ManageError::ExpirationInThePast) => {
                self.bench.slots[number].lock().unwrap().making = false;
                return;
            }
            Err(other) => panic!("the store is not well: {other:?}"),
        };
        let deed = Deed::Created(version(&issued.key));
        self.log.push((key, Event { span, deed }));
        if let Some(expires) = issued.key.expires_at {
            let micros = u64::try_from(expires.unix_micros() - BEGINNING).unwrap();
            self.expiries.push((key, micros));
        }
        let secret = self.secret(key, &issued);
        let mut slot = self.bench.slots[number].lock().unwrap();
        let dead = std::mem::take(&mut slot.secrets);
        slot.dead.extend(dead);
        let surplus = slot.dead.len().saturating_sub(16);
        slot.dead.drain(..surplus);
        slot.secrets.push(secret);
        (slot.key, slot.making) = (Some((key, issued.key.id)), false);
    }

    async fn rotate(&mut self, number: usize, key: u32, id: KeyId) {
        // Half of the old secrets work for a while.
        let overlap = self.bench.plan.lifetime * u32::try_from(self.roll(2)).unwrap();
        let call = self.bench.clock.nanos();
        let issued = self.manager.rotate_with_overlap(&actor(number), &id, overlap, None).await;
        let span = Span { call, back: self.bench.clock.nanos() };
        let deed = match &issued {
            Ok(issued) => Deed::Rotated(version(&issued.key)),
            Err(error) => refused(Attempt::Rotate, error),
        };
        self.log.push((key, Event { span, deed }));
        let Ok(issued) = issued else { return };
        let secret = self.secret(key, &issued);
        let mut slot = self.bench.slots[number].lock().unwrap();
        if slot.key == Some((key, id)) {
            slot.secrets.push(secret);
        } else {
            slot.dead.push(secret);
        }
    }

    fn secret(&mut self, key: u32, issued: &keygate::manager::IssuedKey) -> Secret {
        let text = issued.secret.expose_secret().into();
        let secret = Secret { key, mark: mark(&issued.secret.digest()), text };
        self.issued.push(secret.clone());
        secret
    }

    async fn delete(&mut self, number: usize, key: u32, id: KeyId) {
        let call = self.bench.clock.nanos();
        let deleted = self.manager.delete(&actor(number), &id).await;
        let span = Span { call, back: self.bench.clock.nanos() };
        let deed = match &deleted {
            Ok(()) => Deed::Deleted,
            Err(error) => refused(Attempt::Delete, error),
        };
        self.log.push((key, Event { span, deed }));
        let mut slot = self.bench.slots[number].lock().unwrap();
        if slot.key == Some((key, id)) {
            slot.key = None;
        }
    }

    async fn update(&mut self, number: usize, key: u32, id: KeyId) {
        let name = (self.roll(3) == 0).then(|| u32::try_from(self.roll(1 << 31)).unwrap());
        let mut patch = Patch { name, ..Patch::default() };
        match self.roll(11) {
            10 => patch.end = true,
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
        asked.allowlist =
            patch.home_only.map(|is| if is { home_only() } else { Allowlist::default() });
        asked.end_previous_secret = patch.end;
        let call = self.bench.clock.nanos();
        let updated = self.manager.update(&actor(number), &id, asked).await;
        let span = Span { call, back: self.bench.clock.nanos() };
        let deed = match &updated {
            Ok(updated) => Deed::Updated(patch, version(updated)),
            Err(error) => refused(Attempt::Update, error),
        };
        self.log.push((key, Event { span, deed }));
    }
}

fn refused(attempt: Attempt, error: &ManageError) -> Deed {
    match error {
        ManageError::Conflict => Deed::Conflict(attempt),
        ManageError::NotFound => Deed::NotFound(attempt),
        other => panic!("the store is not well: {other:?}"),
    }
}
