//! Properties of the counts of requests.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::audit::record::{AuditEvent, AuditRecord, Outcome, RequestEvent};
use crate::audit::usage::{UsageBucket, UsageCounts, UsageQuery};
use crate::runtime::clock::Timestamp;
use crate::store::conformance::audit::fixtures::{TestLog, a_request};
use crate::store::conformance::audit::purge::{before, in_1971, purge, undisturbed};
use crate::store::conformance::expect;
use crate::store::conformance::handles::SinkAndLog;
use crate::store::conformance::race::{rounds, together};
use crate::store::conformance::violation::Violation;

const HOUR: u64 = 3_600_000_000;

/// Every request is counted by how it ended and in the hour of its verification, a sum as
/// often as it says and a change not at all, because the counts are all that remains of
/// purged records.
pub(super) async fn every_request_is_counted(log: Arc<dyn SinkAndLog>) -> Result<(), Violation> {
    let test = TestLog::new(&log)?;
    let mut records = Vec::new();
    for (n, event) in (0..).zip(kinds()) {
        let at = test.at(n * HOUR / 7);
        records.extend([test.record(at, AuditEvent::Request(event)), test.change(at)]);
    }
    // The first and the last instant of an hour.
    let hour = UsageBucket::hour_of(test.at(3 * HOUR));
    records.extend([hour, before(hour, 1)].map(|at| test.request(at)));
    let (requests, changes): (Vec<_>, Vec<_>) =
        records.into_iter().partition(|record| matches!(record.event, AuditEvent::Request(_)));
    test.write(&requests).await?;
    test.write(&changes).await?;
    has_usage(&test, &requests).await
}

/// A record that is given again is not counted again, alone or beside new ones, because a
/// writer repeats what was not acknowledged.
pub(super) async fn a_repeated_record_is_counted_once(
    log: Arc<dyn SinkAndLog>,
) -> Result<(), Violation> {
    let test = TestLog::new(&log)?;
    let records = test.requests(6);
    let (first, _) = records.split_at(4);
    test.write(first).await?;
    test.write(first).await?;
    test.write(&records).await?;
    let twice: Vec<_> = records.iter().chain(&records).cloned().collect();
    test.write(&twice).await?;
    has_usage(&test, &records).await
}

/// Simultaneous batches are all counted, and those with the same records once, because
/// several processes write at the same time.
pub(super) async fn simultaneous_batches_are_counted(
    log: Arc<dyn SinkAndLog>,
) -> Result<(), Violation> {
    for _ in rounds(20) {
        let test = TestLog::new(&log)?;
        let shared = test.requests(5);
        let own: Vec<_> = (0..4).map(|_| test.requests(5)).collect();
        let batches = own.iter().map(|own| {
            let batch: Vec<_> = shared.iter().chain(own).cloned().collect();
            let log = Arc::clone(&log);
            async move { log.record(&batch).await }
        });
        for recorded in together(batches.collect::<Vec<_>>()).await? {
            expect::done("record beside others", recorded)?;
        }
        let all: Vec<_> = shared.into_iter().chain(own.into_iter().flatten()).collect();
        has_usage(&test, &all).await?;
    }
    Ok(())
}

/// Counts are those of one key of one organisation, because usage is confidential.
pub(super) async fn keys_are_counted_apart(log: Arc<dyn SinkAndLog>) -> Result<(), Violation> {
    let (ours, theirs) = (TestLog::new(&log)?, TestLog::new(&log)?);
    let second_key = ours.with_key(ours.fresh.key_id());
    let same_key = theirs.with_key(ours.key);
    // One batch with the requests of several organisations, as a writer makes them.
    let tests = [&ours, &second_key, &theirs, &same_key];
    let requests: Vec<_> =
        (2..).zip(tests).flat_map(|(count, test)| test.requests(count)).collect();
    ours.write(&requests).await?;
    for test in tests {
        let own = requests.iter().filter(|r| (&r.org, r.key) == (&test.org, test.key));
        has_usage(test, &own.cloned().collect::<Vec<_>>()).await?;
    }
    Ok(())
}

/// `from` includes its hour and `until` does not, because two charts that touch must not
/// share an hour.
pub(super) async fn hours_limit_what_is_counted(log: Arc<dyn SinkAndLog>) -> Result<(), Violation> {
    let test = TestLog::new(&log)?;
    let records: Vec<_> = (0..5).map(|n| test.request(test.at(n * HOUR))).collect();
    test.write(&records).await?;
    let hour = |n: u64| UsageBucket::hour_of(test.at(n * HOUR));
    for (from, until) in [(hour(1), hour(3)), (before(hour(2), 1), hour(9)), (hour(2), hour(2))] {
        let expected: Vec<_> = (0..5).map(hour).filter(|h| from <= *h && *h < until).collect();
        let query = UsageQuery::new(test.org.clone(), test.key, from, until);
        let found = expect::done("usage", log.usage(&query).await)?;
        let starts: Vec<_> = found.iter().map(|bucket| bucket.start).collect();
        expect::equal("the hours that are counted", &starts, &expected)?;
    }
    Ok(())
}

/// A purge leaves the counts of later hours, because they are used for longer than records.
pub(super) async fn later_counts_survive_a_purge(
    log: Arc<dyn SinkAndLog>,
) -> Result<(), Violation> {
    undisturbed(&log, |test| async move {
        let instant = UsageBucket::hour_of(in_1971(&test));
        let younger = [test.request(instant), test.request(test.at(0))];
        test.write(&[test.request(before(instant, 1))]).await?;
        test.write(&younger).await?;
        purge(&test, instant).await?;
        let kept = usage(&test, instant).await?;
        expect::equal("the counts after a purge", &kept, &counted(&younger))
    })
    .await
}

/// Requests that end in every way.
pub(super) fn kinds() -> Vec<RequestEvent> {
    let statuses = [None, Some(100), Some(399), Some(400), Some(499), Some(500), Some(999)];
    let outcomes = Outcome::ALL.iter().filter(|outcome| **outcome != Outcome::Unknown);
    let kinds = outcomes.flat_map(|outcome| statuses.map(|status| (*outcome, status)));
    (1..)
        .zip(kinds)
        .map(|(count, (outcome, status))| RequestEvent { outcome, status, count, ..a_request() })
        .collect()
}

/// What these records add up to, hour by hour.
fn counted(records: &[AuditRecord]) -> Vec<UsageBucket> {
    let mut hours = BTreeMap::<_, UsageCounts>::new();
    for record in records {
        if let Some(counts) = UsageCounts::of(record) {
            hours.entry(UsageBucket::hour_of(record.at)).or_default().add(counts);
        }
    }
    hours.into_iter().map(|(start, counts)| UsageBucket { start, counts }).collect()
}

async fn usage(test: &TestLog, from: Timestamp) -> Result<Vec<UsageBucket>, Violation> {
    let query = UsageQuery::new(test.org.clone(), test.key, from, Timestamp::MAX);
    expect::done("usage", test.log.usage(&query).await)
}

/// Checks that exactly these requests of the key are counted.
pub(super) async fn has_usage(test: &TestLog, requests: &[AuditRecord]) -> Result<(), Violation> {
    let found = usage(test, Timestamp::MIN).await?;
    expect::equal("the usage of the key", &found, &counted(requests))
}
