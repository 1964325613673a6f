//! Properties of `purge_before`. They purge in 1971, when no host has records of its own.

use std::sync::Arc;
use std::time::Duration;

use crate::audit::log::AuditScope;
use crate::runtime::clock::Timestamp;
use crate::store::conformance::audit::fixtures::{TestLog, same_records};
use crate::store::conformance::expect;
use crate::store::conformance::handles::SinkAndLog;
use crate::store::conformance::violation::Violation;

/// Exactly the records from before the instant are removed, because a host keeps records
/// for a fixed time.
pub(super) async fn the_older_records_are_removed(
    log: Arc<dyn SinkAndLog>,
) -> Result<(), Violation> {
    undisturbed(&log, |test| async move {
        let instant = in_1971(&test);
        let older = [1, 1_000, 1_000_000].map(|micros| test.request(before(instant, micros)));
        let younger = [0, 1, 1_000].map(|micros| test.request(after(instant, micros)));
        test.write(&older).await?;
        test.write(&younger).await?;
        purge(&test, instant).await?;
        test.has_requests(&younger).await?;
        // A second purge removes nothing.
        purge(&test, instant).await?;
        test.has_requests(&younger).await
    })
    .await
}

/// Requests and changes of all organisations and keys are removed, because retention
/// applies to the whole log.
pub(super) async fn every_organisation_is_purged(
    log: Arc<dyn SinkAndLog>,
) -> Result<(), Violation> {
    undisturbed(&log, |one| async move {
        let other = TestLog::new(&one.log)?;
        let instant = in_1971(&one);
        let second_key = one.with_key(one.fresh.key_id());
        let tests = [&one, &second_key, &other];
        for test in tests {
            let old = before(instant, 5);
            test.write(&[test.request(old), test.change(old)]).await?;
            test.write(&[test.request(instant), test.change(instant)]).await?;
        }
        purge(&one, instant).await?;
        for test in tests {
            for scope in [AuditScope::KeyRequests(test.key), AuditScope::KeyChanges(test.key)] {
                let times: Vec<Timestamp> =
                    test.all(scope).await?.iter().map(|record| record.at).collect();
                expect::equal(&format!("the times left in {scope:?}"), &times, &vec![instant])?;
            }
        }
        let changes = one.all(AuditScope::OrgChanges).await?;
        expect::equal("the number of changes left", &changes.len(), &2)
    })
    .await
}

/// The number of removed records is returned, because an operator checks by it that
/// retention works.
pub(super) async fn the_number_of_removed_records_is_returned(
    log: Arc<dyn SinkAndLog>,
) -> Result<(), Violation> {
    undisturbed(&log, |test| async move {
        let instant = in_1971(&test);
        // Records that others left must not be counted below.
        purge(&test, instant).await?;
        let old: Vec<_> = (1..=7).map(|micros| test.request(before(instant, micros))).collect();
        test.write(&old).await?;
        test.write(&[test.request(instant), test.change(before(instant, 1))]).await?;
        let removed = purge(&test, instant).await?;
        expect::equal("the number that the first purge tells", &removed, &8)?;
        let removed = purge(&test, instant).await?;
        expect::equal("the number that the next purge tells", &removed, &0)
    })
    .await
}

/// Records from before the instant can be written after a purge, because a writer may
/// deliver them late.
pub(super) async fn old_records_may_be_written_after_a_purge(
    log: Arc<dyn SinkAndLog>,
) -> Result<(), Violation> {
    undisturbed(&log, |test| async move {
        let instant = in_1971(&test);
        let old = [test.request(before(instant, 9)), test.request(before(instant, 8))];
        test.write(&old).await?;
        purge(&test, instant).await?;
        same_records("purged requests", &test.all(AuditScope::KeyRequests(test.key)).await?, &[])?;
        let late = [test.request(before(instant, 7))];
        test.write(&late).await?;
        test.has_requests(&late).await
    })
    .await
}

/// Checks a property that another purge may disturb. Each try gets its own part of the log.
pub(super) async fn undisturbed<F>(
    log: &Arc<dyn SinkAndLog>,
    property: impl Fn(TestLog) -> F + Send + Sync,
) -> Result<(), Violation>
where
    F: Future<Output = Result<(), Violation>> + Send,
{
    retried(|| async { property(TestLog::new(log)?).await }).await
}

/// Tries again where a property does not hold, since another run of the suite on the same
/// database may have purged its records. A log that has a fault fails every time.
pub(super) async fn retried<F>(attempt: impl Fn() -> F + Send) -> Result<(), Violation>
where
    F: Future<Output = Result<(), Violation>> + Send,
{
    const TRIES: usize = 4;
    for _ in 1..TRIES {
        if attempt().await.is_ok() {
            return Ok(());
        }
    }
    attempt().await
}

pub(super) async fn purge(test: &TestLog, instant: Timestamp) -> Result<u64, Violation> {
    expect::done("purge_before", test.log.purge_before(instant).await)
}

/// A random instant, so that simultaneous runs rarely disturb each other.
pub(super) fn in_1971(test: &TestLog) -> Timestamp {
    let year = Duration::from_secs(365 * 24 * 3_600);
    let start = Timestamp::MIN.max(Timestamp::from_unix_micros(0).unwrap_or(Timestamp::MIN));
    let within = test.fresh.number() % (year.as_secs() * 1_000_000 - 1);
    start.saturating_add(year).saturating_add(Duration::from_micros(within))
}

pub(super) fn before(instant: Timestamp, micros: u64) -> Timestamp {
    instant.saturating_sub(Duration::from_micros(micros))
}

fn after(instant: Timestamp, micros: u64) -> Timestamp {
    instant.saturating_add(Duration::from_micros(micros))
}
