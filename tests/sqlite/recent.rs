//! Recent requests are read like all others, whatever has been merged so far.

use std::path::{Path, PathBuf};
use std::time::Duration;

use keygate::audit::{
    AuditEvent, AuditFilter, AuditId, AuditQuery, AuditRecord, AuditScope, Outcome, OutcomeFilter,
    Position, RequestEvent, UsageQuery,
};
use keygate::conformance;
use keygate::store::SqliteOptions;
use keygate::{AuditLog, AuditSink, KeyId, KeyStore, MemoryAuditLog, SqliteStore, Timestamp};
use proptest::prelude::*;
use tempfile::TempDir;

use crate::files::{assert_sound, at, new_path, org, raw};

const KEYS: u8 = 3;
/// Times and keys repeat, so that records of a key arrive in any order.
const NUMBERS: u64 = 120;

fn key(number: u8) -> KeyId {
    KeyId::from_bytes([number; 16])
}

/// The same number is the same record.
fn record(number: u64) -> AuditRecord {
    let outcomes = [Outcome::Allowed, Outcome::Revoked, Outcome::Aborted];
    let outcome = outcomes[number as usize / 5 % outcomes.len()];
    let mut event = RequestEvent::new("GET", format!("/{number}"), outcome);
    event.status = [Some(200), Some(404), Some(500), None][number as usize / 3 % 4];
    event.count = 1 + number as u32 % 3;
    AuditRecord {
        id: AuditId::from_bytes(u128::from(number).to_be_bytes()),
        at: when(number * 37 % 50),
        org: org("acme"),
        key: key((number % u64::from(KEYS)) as u8),
        event: AuditEvent::Request(event),
    }
}

/// Twenty minutes apart.
pub(crate) fn when(number: u64) -> Timestamp {
    at(number.cast_signed() * 1_200_000_000)
}

/// One file with two handles, and a log in memory that was given the same.
pub(crate) struct Logs {
    _folder: TempDir,
    pub(crate) path: PathBuf,
    merge_at: u32,
    pub(crate) handles: [Option<SqliteStore>; 2],
    pub(crate) model: MemoryAuditLog,
}

impl Logs {
    pub(crate) fn new(merge_at: u32) -> Self {
        let (folder, path) = new_path();
        let handles = [(); 2].map(|()| Some(open(&path, merge_at)));
        Self { _folder: folder, path, merge_at, handles, model: MemoryAuditLog::new() }
    }

    pub(crate) fn handle(&self, which: bool) -> &SqliteStore {
        self.handles[usize::from(which)].as_ref().unwrap()
    }

    pub(crate) async fn record(&self, which: bool, numbers: impl IntoIterator<Item = u64>) {
        let batch: Vec<_> = numbers.into_iter().map(record).collect();
        self.handle(which).record(&batch).await.unwrap();
        self.model.record(&batch).await.unwrap();
    }

    pub(crate) fn reopen(&mut self) {
        self.handles = [None, None];
        self.handles = [(); 2].map(|()| Some(open(&self.path, self.merge_at)));
    }

    /// Both say the same of each key, page by page in both directions, and of its usage.
    pub(crate) async fn assert_equal(&self) {
        let mut refused = AuditFilter::default();
        refused.outcome = Some(OutcomeFilter::Refused);
        let mut some_hours = AuditFilter::default();
        (some_hours.since, some_hours.until) = (Some(when(11)), Some(when(31)));
        for key in (0..KEYS).map(key) {
            for filter in [&AuditFilter::default(), &refused, &some_hours] {
                let query = AuditQuery::new(org("acme"), AuditScope::KeyRequests(key)).limit(4);
                let mut query = query.filter(filter.clone());
                let mut back = None;
                loop {
                    let page = self.page(&query).await;
                    back = page.newer.or(back);
                    let Some(older) = page.older else { break };
                    query = query.at(Position::Before(older));
                }
                while let Some(newer) = back {
                    back = self.page(&query.clone().at(Position::After(newer))).await.newer;
                }
            }
            for (from, until) in [(Timestamp::MIN, Timestamp::MAX), (when(9), when(30))] {
                let query = UsageQuery::new(org("acme"), key, from, until);
                let found = self.handle(true).usage(&query).await.unwrap();
                assert_eq!(found, self.model.usage(&query).await.unwrap());
            }
        }
        let sql = "SELECT count(*) FROM all_requests";
        let rows: i64 = raw(&self.path).query_row(sql, [], |row| row.get(0)).unwrap();
        assert_eq!(rows as usize, self.model.len());
    }

    async fn page(&self, query: &AuditQuery) -> keygate::audit::AuditPage {
        let found = self.handle(false).page(query).await.unwrap();
        assert_eq!(found, self.model.page(query).await.unwrap(), "{query:?}");
        found
    }

    /// Where the rows are: `requests`, `sorted`, the two tables of recent ones, and how many slices
    /// are left to merge.
    pub(crate) fn places(&self) -> [i64; 5] {
        places_in(&self.path)
    }
}

fn places_in(path: &Path) -> [i64; 5] {
    let db = raw(path);
    ["requests", "sorted", "recent_0", "recent_1", "recent_slices"].map(|table| {
        db.query_row(&format!("SELECT count(*) FROM {table}"), [], |row| row.get(0)).unwrap()
    })
}

fn open(path: &Path, merge_at: u32) -> SqliteStore {
    SqliteOptions::new().merge_at(merge_at).open(path).unwrap()
}

#[derive(Clone, Debug)]
enum Step {
    Record(bool, Vec<u64>),
    /// So many of each key that they are not recent ones.
    RecordMany(bool, u64),
    Purge(u64),
    Reopen,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => (any::<bool>(), proptest::collection::vec(0..NUMBERS, 1..8))
            .prop_map(|(which, numbers)| Step::Record(which, numbers)),
        1 => (any::<bool>(), 0..NUMBERS / 2).prop_map(|(which, n)| Step::RecordMany(which, n)),
        1 => (0..50_u64).prop_map(Step::Purge),
        1 => Just(Step::Reopen),
    ]
}

fn block_on(future: impl Future<Output = ()>) {
    tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(future);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn a_log_that_is_being_merged_reads_like_one_in_memory(
        merge_at in 1..20_u32,
        steps in proptest::collection::vec(step(), 1..16),
    ) {
        block_on(async {
            let mut logs = Logs::new(merge_at);
            let mut purged = Timestamp::MIN;
            // What was purged is not given again.
            let kept = |purged, numbers: Vec<u64>| {
                numbers.into_iter().filter(move |n| record(*n).at >= purged)
            };
            for step in steps {
                match step {
                    Step::Record(which, numbers) => logs.record(which, kept(purged, numbers)).await,
                    Step::RecordMany(which, first) => {
                        logs.record(which, kept(purged, (first..first + 60).collect())).await;
                    }
                    Step::Purge(before) => {
                        purged = purged.max(when(before));
                        let deleted = logs.handle(true).purge_before(purged).await.unwrap();
                        assert_eq!(deleted, logs.model.purge_before(purged).await.unwrap());
                    }
                    Step::Reopen => logs.reopen(),
                }
                logs.assert_equal().await;
            }
            assert_sound(&logs.path);
        });
    }
}

#[tokio::test]
async fn merging_goes_on_wherever_it_was_interrupted() {
    let mut logs = Logs::new(9);
    let mut seen = Vec::new();
    for number in 0..60 {
        logs.record(number % 2 == 0, [number]).await;
        // The step after this record was the last one.
        logs.reopen();
        logs.assert_equal().await;
        seen.push(logs.places());
    }
    let slices: Vec<_> = seen.iter().map(|[.., slices]| *slices).collect();
    assert!((1..=3).all(|left| slices.contains(&left)), "{slices:?}");
    assert!(seen.iter().any(|[_, _, a, b, _]| *a > 0 && *b > 0), "{seen:?}");
    assert!(seen.last().unwrap()[1] > 40, "{seen:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_handles_that_merge_at_once_lose_and_repeat_nothing() {
    let logs = Logs::new(7);
    for start in (0..NUMBERS).step_by(12) {
        let (ours, theirs) = (start..start + 8, start + 4..start + 12);
        // Some records are given to both.
        tokio::join!(logs.record(false, ours), logs.record(true, theirs));
        logs.assert_equal().await;
    }
    assert_sound(&logs.path);
}

#[tokio::test]
async fn a_purge_deletes_recent_requests_and_keeps_their_counts() {
    let logs = Logs::new(10);
    for number in 0..35 {
        logs.record(false, [number]).await;
    }
    let [_, sorted, a, b, _] = logs.places();
    assert!(sorted > 0 && (a > 0 || b > 0), "{:?}", logs.places());
    for before in [when(20), when(50)] {
        let purged = logs.handle(true).purge_before(before).await.unwrap();
        assert_eq!(purged, logs.model.purge_before(before).await.unwrap());
        logs.assert_equal().await;
    }
    assert_eq!(logs.places(), [0; 5]);
}

#[tokio::test]
async fn a_purge_deletes_what_it_can_before_it_merges() {
    let logs = Logs::new(1_000);
    // The second ones are older than some of the first, and are recent.
    logs.record(false, 0..60).await;
    logs.record(false, [87, 101]).await;
    assert_eq!(logs.places(), [60, 0, 2, 0, 0]);
    assert_eq!([record(87).at, record(101).at], [when(19), when(37)]);

    // Nothing recent is to be deleted, so nothing is merged.
    let purged = logs.handle(true).purge_before(when(10)).await.unwrap();
    assert_eq!(purged, logs.model.purge_before(when(10)).await.unwrap());
    assert_eq!(logs.places(), [60 - purged as i64, 0, 2, 0, 0]);
    logs.assert_equal().await;

    // The disk has no space for more rows in `requests`.
    let db = raw(&logs.path);
    db.execute_batch(
        "CREATE TRIGGER full BEFORE INSERT ON requests BEGIN SELECT RAISE(ABORT, 'full'); END",
    )
    .unwrap();
    logs.handle(true).purge_before(when(30)).await.unwrap_err();
    let older = |db: &rusqlite::Connection| -> i64 {
        let sql = "SELECT count(*) FROM requests WHERE at < ?1";
        db.query_row(sql, [when(19).unix_micros()], |row| row.get(0)).unwrap()
    };
    assert_eq!(older(&db), 0);
    db.execute_batch("DROP TRIGGER full").unwrap();
    logs.handle(true).purge_before(when(30)).await.unwrap();
    logs.model.purge_before(when(30)).await.unwrap();
    logs.assert_equal().await;
}

#[tokio::test]
async fn what_was_merged_and_then_purged_is_not_counted_again() {
    let logs = Logs::new(9);
    for number in 0..NUMBERS {
        logs.record(false, [number]).await;
        // The merging after a change ends before the next one.
        logs.handle(false).record_uses(&[]).await.unwrap();
        let [_, sorted, .., slices] = logs.places();
        if sorted > 0 && slices == 2 {
            break;
        }
    }
    let [.., slices] = logs.places();
    assert_eq!(slices, 2, "no table is half merged");
    raw(&logs.path).execute("DELETE FROM sorted", []).unwrap();
    for key in (0..KEYS).map(key) {
        let query = UsageQuery::new(org("acme"), key, Timestamp::MIN, Timestamp::MAX);
        let found = logs.handle(true).usage(&query).await.unwrap();
        assert_eq!(found, logs.model.usage(&query).await.unwrap());
    }
}

#[tokio::test]
async fn few_recent_requests_are_merged_when_they_are_old() {
    for (age, places) in [(Duration::MAX, [0, 0, 3, 0, 0]), (Duration::ZERO, [3, 0, 0, 0, 0])] {
        let (_folder, path) = new_path();
        let store = SqliteOptions::new().merge_after(age).open(&path).unwrap();
        store.record(&[0, 1, 2].map(record)).await.unwrap();
        // The merging after a change ends before the next one.
        store.record_uses(&[]).await.unwrap();
        assert_eq!(places_in(&path), places);
    }
}

#[tokio::test]
async fn many_old_requests_are_merged_in_single_steps() {
    let (_folder, path) = new_path();
    let store = SqliteOptions::new().merge_at(12).merge_after(Duration::MAX).open(&path).unwrap();
    for number in 0..12 {
        store.record(&[record(number)]).await.unwrap();
    }
    store.record_uses(&[]).await.unwrap();
    drop(store);
    let before = places_in(&path);
    assert!(before[4] > 2, "{before:?}");
    let store = SqliteOptions::new().merge_at(12).merge_after(Duration::ZERO).open(&path).unwrap();
    let mut changes = 0;
    while places_in(&path)[4] > 0 {
        assert!(changes < 20, "{:?}", places_in(&path));
        store.record_uses(&[]).await.unwrap();
        changes += 1;
    }
    assert!(changes >= before[4], "{changes} changes, {before:?}");
    assert_eq!(places_in(&path), [0, 12, 0, 0, 0]);
}

/// Whichever way it is written the second time: among many of its key, in a full table, or in
/// one that is merged for its age.
#[tokio::test]
async fn a_record_that_is_given_again_after_it_was_sorted_is_stored_and_counted_once() {
    let logs = Logs::new(4);
    for number in 0..12 {
        logs.record(false, [number]).await;
    }
    logs.handle(false).record_uses(&[]).await.unwrap();
    let [requests, sorted, ..] = logs.places();
    assert!(requests == 0 && sorted >= 8, "{:?}", logs.places());

    logs.record(true, (0..48).map(|number| number * 3 % 48)).await;
    logs.assert_equal().await;
    for number in [4, 1, 7, 5, 2] {
        logs.record(true, [number]).await;
        logs.assert_equal().await;
    }
    let old = SqliteOptions::new().merge_after(Duration::ZERO).open(&logs.path).unwrap();
    old.record(&[8, 10].map(record)).await.unwrap();
    for _ in 0..20 {
        old.record_uses(&[]).await.unwrap();
    }
    assert_eq!(logs.places()[2..], [0; 3]);
    logs.assert_equal().await;
    let stored = logs.places()[..2].iter().sum::<i64>();
    assert_eq!(stored as usize, logs.model.len());
}

#[tokio::test]
async fn a_run_is_purged_in_part_and_then_forgotten() {
    let logs = Logs::new(20);
    for number in 0..60 {
        logs.record(false, [number]).await;
    }
    let runs = || {
        let sql = "SELECT count(*) FROM sorted_runs";
        raw(&logs.path).query_row(sql, [], |row| row.get::<_, i64>(0)).unwrap()
    };
    assert!(runs() > 1, "{:?}", logs.places());
    for before in [15, 15, 40] {
        let purged = logs.handle(true).purge_before(when(before)).await.unwrap();
        assert_eq!(purged, logs.model.purge_before(when(before)).await.unwrap());
        logs.assert_equal().await;
        assert!(runs() > 0);
    }
    logs.handle(true).purge_before(when(50)).await.unwrap();
    assert_eq!((runs(), logs.places()), (0, [0; 5]));
}

#[tokio::test]
async fn a_damaged_recent_row_keeps_no_other_from_being_merged() {
    let logs = Logs::new(6);
    logs.record(false, [0, 1, 2]).await;
    raw(&logs.path)
        .execute("UPDATE recent_0 SET count = -1, at = ?1 WHERE key = ?2", (i64::MIN, [1_u8; 16]))
        .unwrap();
    for number in 3..30 {
        logs.record(false, [number]).await;
    }
    let [_, sorted, ..] = logs.places();
    assert!(sorted > 15, "{:?}", logs.places());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn the_audit_log_conforms_while_it_is_merged() {
    for merge_at in [1, 3, 50] {
        let (_folder, path) = new_path();
        let store = open(&path, merge_at);
        conformance::check_audit_log(|| async { store.clone() }).await.unwrap();
    }
}
