//! Properties of a log that is opened again: it reads back what it wrote.

use crate::audit::log::{AuditCursor, AuditScope, Position};
use crate::audit::record::{AuditEvent, AuditRecord};
use crate::store::conformance::audit::fields::{unusual_changes, unusual_requests};
use crate::store::conformance::audit::fixtures::{TestLog, newest_first, same_records};
use crate::store::conformance::audit::pages::with_ties;
use crate::store::conformance::audit::purge::{before, in_1971, purge, retried};
use crate::store::conformance::audit::usage::{has_usage, kinds};
use crate::store::conformance::expect;
use crate::store::conformance::handles::SinkAndLog;
use crate::store::conformance::property::Opener;
use crate::store::conformance::violation::Violation;

/// Every field of a record is read back as it was written, because an auditor cannot tell
/// a lost field from one that was never there.
pub(super) async fn every_field_comes_back(
    opener: &Opener<dyn SinkAndLog>,
) -> Result<(), Violation> {
    let test = TestLog::new(&opener.open().await?)?;
    let record = |(n, event)| test.record(test.at(n), event);
    let events = unusual_requests().into_iter().map(AuditEvent::Request);
    let requests: Vec<AuditRecord> = (0..).zip(events).map(record).collect();
    let events = unusual_changes().into_iter().map(AuditEvent::Change);
    let changes: Vec<AuditRecord> = (0..).zip(events).map(record).collect();
    test.write(&requests).await?;
    test.write(&changes).await?;
    let test = test.reopened(opener).await?;
    test.has_requests(&requests).await?;
    test.has_changes(&changes).await
}

/// The order is read back and a cursor from before keeps its place, because a reader must
/// be able to go on paging after a restart.
pub(super) async fn the_order_comes_back(opener: &Opener<dyn SinkAndLog>) -> Result<(), Violation> {
    let (test, records) = with_ties(&opener.open().await?).await?;
    let query = test.query().limit(4);
    let newest = test.page(&query).await?;
    let test = test.reopened(opener).await?;
    test.has_requests(&records).await?;
    let pages = test.back_from(&query, newest).await?;
    same_records("the records paged back", &pages.concat(), &newest_first(&records))?;
    let late = test.request(test.at(1_000));
    test.write(std::slice::from_ref(&late)).await?;
    let expected = newest_first(&records);
    let Some(newest) = expected.first() else { return Ok(()) };
    let position = Position::After(AuditCursor::of(newest));
    let page = test.page(&query.at(position)).await?;
    same_records("the records after the newest from before", &page.records, &[late])
}

/// A purged record is not read back, because a host may have to delete records after a
/// certain time; younger records are.
pub(super) async fn a_purged_record_stays_gone(
    opener: &Opener<dyn SinkAndLog>,
) -> Result<(), Violation> {
    retried(|| async {
        let test = TestLog::new(&opener.open().await?)?;
        let instant = in_1971(&test);
        let old = [test.request(before(instant, 2)), test.request(before(instant, 1))];
        let younger = [test.request(instant), test.request(test.at(0))];
        test.write(&old).await?;
        test.write(&younger).await?;
        purge(&test, instant).await?;
        let test = test.reopened(opener).await?;
        test.has_requests(&younger).await?;
        let removed = purge(&test, instant).await?;
        expect::equal("the number that a purge after reopening reports", &removed, &0)
    })
    .await
}

/// A batch that is repeated after reopening is stored once, because a writer repeats what
/// was not acknowledged before a restart.
pub(super) async fn a_repeated_batch_is_stored_once(
    opener: &Opener<dyn SinkAndLog>,
) -> Result<(), Violation> {
    let test = TestLog::new(&opener.open().await?)?;
    let mut records = test.requests(5);
    test.write(&records).await?;
    let test = test.reopened(opener).await?;
    records.push(test.request(test.at(5)));
    test.write(&records).await?;
    test.has_requests(&records).await?;
    let changes = test.all(AuditScope::OrgChanges).await?;
    expect::equal("the number of changes", &changes.len(), &0)
}

/// Counts are read back, and go on from there, because a chart of a year spans many
/// restarts.
pub(super) async fn counts_come_back(opener: &Opener<dyn SinkAndLog>) -> Result<(), Violation> {
    let test = TestLog::new(&opener.open().await?)?;
    let mut records: Vec<_> = (0..)
        .zip(kinds())
        .map(|(n, kind)| test.record(test.at(n), AuditEvent::Request(kind)))
        .collect();
    test.write(&records).await?;
    let test = test.reopened(opener).await?;
    has_usage(&test, &records).await?;
    records.extend(test.requests(3));
    test.write(&records).await?;
    has_usage(&test, &records).await
}
