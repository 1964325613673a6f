//! Rounds in which the store and the hand-written code take turns.

use std::borrow::Borrow;
use std::cell::Cell;
use std::hint::black_box;
use std::sync::Arc;
use std::thread::available_parallelism;
use std::time::{Duration, Instant};

use keygate::audit::{AuditEvent, AuditQuery, AuditRecord, AuditScope};
use keygate::store::KeyDigest;
use keygate::{ApiKey, AuditLog, AuditSink, KeyStore};
use tokio::runtime::Runtime;

use crate::data::Data;

const ROUNDS: usize = 101;
/// A side's turn takes about as long as this, and never less than half of it.
const TURN: Duration = Duration::from_millis(50);
const TARGET: f64 = 0.9;

/// Finds keys, for any number of tasks at once.
pub(crate) trait Finder: Clone + Send + 'static {
    type Key: Borrow<ApiKey>;
    fn find(&self, digest: &KeyDigest) -> impl Future<Output = Self::Key> + Send;
}

/// Writes audit records, one batch after the other.
pub(crate) trait Recorder: Clone + Send + 'static {
    fn write(&self, batch: &[AuditRecord]) -> impl Future<Output = ()> + Send;
}

/// The side of the store.
#[derive(Clone)]
pub(crate) struct Store<S>(pub(crate) S);

impl<S: KeyStore + Clone> Finder for Store<S> {
    type Key = Arc<ApiKey>;

    async fn find(&self, digest: &KeyDigest) -> Arc<ApiKey> {
        self.0.find_by_digest(digest).await.unwrap().unwrap()
    }
}

impl<S: AuditSink + Clone> Recorder for Store<S> {
    async fn write(&self, batch: &[AuditRecord]) {
        self.0.record(batch).await.unwrap();
    }
}

pub(crate) struct Bench {
    pub(crate) runtime: Runtime,
    pub(crate) threads: usize,
}

impl Bench {
    pub(crate) fn new() -> Self {
        let threads = available_parallelism().map_or(2, |n| n.get().max(2));
        let mut runtime = tokio::runtime::Builder::new_multi_thread();
        let runtime = runtime.worker_threads(threads).enable_all().build().unwrap();
        Self { runtime, threads }
    }

    /// Compares look-ups by as many tasks at once.
    pub(crate) fn lookups(
        &self,
        database: &str,
        tasks: usize,
        data: &Data,
        hand: impl Finder,
        store: impl Finder,
    ) -> Comparison {
        let name = format!("{database} find_by_digest x{tasks}");
        let begin = Cell::new(0);
        let turn = |finder: &dyn Fn(usize, usize) -> Duration, ops: usize| {
            // Never the same keys twice in a row.
            begin.set(begin.get() + ops);
            finder(begin.get(), ops)
        };
        let by_hand = |begin, ops| self.look_up(hand.clone(), tasks, data, begin, ops);
        let by_store = |begin, ops| self.look_up(store.clone(), tasks, data, begin, ops);
        Comparison::run(name, tasks, |ops| turn(&by_hand, ops), |ops| turn(&by_store, ops))
    }

    /// Has every task look up its share of `ops` keys.
    fn look_up<F: Finder>(
        &self,
        finder: F,
        tasks: usize,
        data: &Data,
        begin: usize,
        ops: usize,
    ) -> Duration {
        let share = ops / tasks;
        let work = |task: usize| {
            let (finder, digests) = (finder.clone(), Arc::clone(&data.shuffled));
            let begin = begin + task * share;
            async move {
                for place in begin..begin + share {
                    let digest = &digests[place % digests.len()];
                    let key = black_box(finder.find(digest).await);
                    assert_eq!(key.borrow().digest, *digest);
                }
            }
        };
        let started = Instant::now();
        let tasks: Vec<_> = (0..tasks).map(|task| self.runtime.spawn(work(task))).collect();
        self.runtime.block_on(async {
            for task in tasks {
                task.await.unwrap();
            }
        });
        started.elapsed()
    }

    /// Compares the writing of audit records in batches of that size.
    pub(crate) fn ingestion(
        &self,
        database: &str,
        batch: usize,
        data: &Data,
        hand: impl Recorder,
        store: impl Recorder,
    ) -> Comparison {
        let name = format!("{database} audit rows by {batch}");
        let by_hand = |rows| self.ingest(hand.clone(), data.records(rows), batch);
        let by_store = |rows| self.ingest(store.clone(), data.records(rows), batch);
        Comparison::run(name, batch, by_hand, by_store)
    }

    fn ingest(&self, recorder: impl Recorder, records: Vec<AuditRecord>, batch: usize) -> Duration {
        let work = async move {
            let started = Instant::now();
            for batch in records.chunks(batch) {
                recorder.write(batch).await;
            }
            started.elapsed()
        };
        let task = self.runtime.spawn(work);
        self.runtime.block_on(task).unwrap()
    }

    /// Makes sure that both sides find the keys that were made.
    pub(crate) fn check_lookups(&self, data: &Data, hand: &impl Finder, store: &impl Finder) {
        self.runtime.block_on(async {
            for key in data.keys.iter().step_by(97) {
                assert_eq!(hand.find(&key.digest).await.borrow(), key);
                assert_eq!(store.find(&key.digest).await.borrow(), key);
            }
        });
    }

    /// Makes sure that what either side writes is read back as it was made.
    pub(crate) fn check_ingestion(
        &self,
        data: &Data,
        hand: &impl Recorder,
        store: &impl Recorder,
        log: &impl AuditLog,
    ) {
        self.runtime.block_on(async {
            let (by_hand, by_store) = (data.records(300), data.records(300));
            hand.write(&by_hand).await;
            store.write(&by_store).await;
            for record in by_hand.iter().chain(&by_store) {
                assert!(matches!(record.event, AuditEvent::Request(_)));
                let scope = AuditScope::KeyRequests(record.key);
                let query = AuditQuery::new(record.org.clone(), scope).limit(200);
                assert!(log.page(&query).await.unwrap().records.contains(record));
            }
        });
    }
}

/// How fast both sides did the same thing.
pub(crate) struct Comparison {
    name: String,
    ratio: f64,
}

impl Comparison {
    pub(crate) fn heading() -> String {
        format!("{:44}{:30}{:30}ratio", "", "written by hand", "the store")
    }

    /// Runs all rounds and prints a line. Each side does as many operations as it
    /// is told, a multiple of `step`, and says how long they took.
    fn run(
        name: String,
        step: usize,
        mut hand: impl FnMut(usize) -> Duration,
        mut store: impl FnMut(usize) -> Duration,
    ) -> Self {
        let ops = warm_up(step, &mut hand, &mut store);
        let rate = |took: Duration| ops as f64 / took.as_secs_f64();
        let (mut by_hand, mut by_store, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
        for round in 0..ROUNDS {
            // Neither side always comes first.
            let (hand, store) = if round % 2 == 0 {
                let hand = rate(hand(ops));
                (hand, rate(store(ops)))
            } else {
                let store = rate(store(ops));
                (rate(hand(ops)), store)
            };
            by_hand.push(hand);
            by_store.push(store);
            ratios.push(store / hand);
        }
        let (by_hand, by_store, ratios) =
            (Spread::of(by_hand), Spread::of(by_store), Spread::of(ratios));
        println!(
            "{name:<42}  {:<28}  {:<28}  {:.2} ({:.2}..{:.2})",
            by_hand.thousands(),
            by_store.thousands(),
            ratios.median,
            ratios.min,
            ratios.max
        );
        Self { name, ratio: ratios.median }
    }

    pub(crate) fn verdict(&self) -> String {
        let Self { name, ratio } = self;
        let missed = if *ratio < TARGET { ", missed" } else { "" };
        format!("{name}: {ratio:.2} of the hand-written figure (target {TARGET:.2}{missed})")
    }
}

/// Says how many operations make a turn.
fn warm_up(
    step: usize,
    hand: &mut impl FnMut(usize) -> Duration,
    store: &mut impl FnMut(usize) -> Duration,
) -> usize {
    let mut steps = 1;
    loop {
        let took = store(steps * step).min(hand(steps * step));
        if took >= TURN / 2 {
            return (steps as f64 * TURN.div_duration_f64(took)).ceil() as usize * step;
        }
        steps *= 2;
    }
}

struct Spread {
    min: f64,
    median: f64,
    max: f64,
}

impl Spread {
    fn of(mut values: Vec<f64>) -> Self {
        values.sort_by(f64::total_cmp);
        let (min, max) = (values[0], values[values.len() - 1]);
        Self { min, median: values[values.len() / 2], max }
    }

    fn thousands(&self) -> String {
        let [min, median, max] = [self.min, self.median, self.max].map(|rate| rate / 1_000.0);
        format!("{median:.1}k ({min:.1}..{max:.1})")
    }
}
