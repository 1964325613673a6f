//! Properties of `record`.

use std::sync::Arc;

use crate::audit::log::AuditScope;
use crate::audit::record::AuditRecord;
use crate::store::conformance::audit::fixtures::TestLog;
use crate::store::conformance::expect;
use crate::store::conformance::handles::SinkAndLog;
use crate::store::conformance::race::{rounds, together};
use crate::store::conformance::violation::Violation;

/// Every task can read a whole batch once `record` has returned, because strict delivery
/// answers a request only after its record is stored.
pub(super) async fn a_batch_can_be_read_at_once(log: Arc<dyn SinkAndLog>) -> Result<(), Violation> {
    let test = TestLog::new(&log)?;
    let mut records = Vec::new();
    for n in 0..5 {
        let batch = [test.request(test.at(2 * n)), test.request(test.at(2 * n + 1))];
        test.write(&batch).await?;
        records.extend(batch);
        let readers = (0..4).map(|_| {
            let (test, records) = (test.clone(), records.clone());
            async move { test.has_requests(&records).await }
        });
        for result in together(readers).await? {
            result?;
        }
    }
    Ok(())
}

/// An empty batch is no error, because it asks for nothing.
pub(super) async fn an_empty_batch_is_no_error(log: Arc<dyn SinkAndLog>) -> Result<(), Violation> {
    let test = TestLog::new(&log)?;
    test.write(&[]).await?;
    test.has_requests(&[]).await
}

/// A batch of a thousand records of several keys and organisations is stored completely,
/// because databases limit the parameters of a statement.
pub(super) async fn a_batch_of_a_thousand_is_kept(
    log: Arc<dyn SinkAndLog>,
) -> Result<(), Violation> {
    let tests = [(); 4].map(|()| TestLog::new(&log)).into_iter();
    let tests = tests.collect::<Result<Vec<_>, _>>()?;
    let mut batch = Vec::new();
    for n in 0..125 {
        for test in &tests {
            batch.extend([test.request(test.at(n)), test.change(test.at(n))]);
        }
    }
    expect::equal("the size of the batch of the suite", &batch.len(), &1_000)?;
    if let Some(test) = tests.first() {
        test.write(&batch).await?;
    }
    for test in &tests {
        let own = batch.iter().filter(|record| record.org == test.org).cloned();
        let (requests, changes): (Vec<_>, Vec<_>) = own.partition(is_request);
        test.has_requests(&requests).await?;
        test.has_changes(&changes).await?;
    }
    Ok(())
}

/// A batch that is repeated is stored once, because the writer repeats a batch whose
/// deadline passed before the answer.
pub(super) async fn a_repeated_batch_is_stored_once(
    log: Arc<dyn SinkAndLog>,
) -> Result<(), Violation> {
    let test = TestLog::new(&log)?;
    let mut batch = test.requests(5);
    batch.extend((0..5).map(|n| test.change(test.at(n))));
    for _ in 0..3 {
        test.write(&batch).await?;
    }
    let (requests, changes): (Vec<_>, Vec<_>) = batch.into_iter().partition(is_request);
    test.has_requests(&requests).await?;
    test.has_changes(&changes).await
}

/// The new records of a batch are stored although others are known, because a part of the
/// batch may have been stored before.
pub(super) async fn the_new_part_of_a_batch_is_stored(
    log: Arc<dyn SinkAndLog>,
) -> Result<(), Violation> {
    let test = TestLog::new(&log)?;
    let records = test.requests(9);
    let known: Vec<AuditRecord> = records.iter().step_by(2).cloned().collect();
    test.write(&known).await?;
    test.write(&records).await?;
    test.has_requests(&records).await
}

/// A record that is in a batch twice is stored once, because records are identified by
/// their ids.
pub(super) async fn a_record_twice_in_a_batch_is_stored_once(
    log: Arc<dyn SinkAndLog>,
) -> Result<(), Violation> {
    let test = TestLog::new(&log)?;
    let records = test.requests(3);
    let twice: Vec<AuditRecord> = records.iter().chain(&records).cloned().collect();
    test.write(&twice).await?;
    test.has_requests(&records).await
}

/// Records that differ in their ids alone are all stored, because a client may send the
/// same request several times in an instant.
pub(super) async fn equal_records_with_different_ids_are_kept(
    log: Arc<dyn SinkAndLog>,
) -> Result<(), Violation> {
    let test = TestLog::new(&log)?;
    let records: Vec<AuditRecord> = (0..10).map(|_| test.request(test.at(0))).collect();
    let (some, others) = records.split_at(6);
    test.write(some).await?;
    test.write(others).await?;
    test.has_requests(&records).await
}

/// Simultaneous batches are all stored, and records that are in several of them are stored
/// once, because several processes write to one log.
pub(super) async fn simultaneous_batches_are_all_kept(
    log: Arc<dyn SinkAndLog>,
) -> Result<(), Violation> {
    for _ in rounds(10) {
        let test = TestLog::new(&log)?;
        let records = test.requests(80);
        let writers = (0..16).map(|n| {
            // Two writers write each batch, in opposite orders.
            let mut batch: Vec<_> = records.iter().skip(n / 2 * 10).take(10).cloned().collect();
            if n % 2 == 1 {
                batch.reverse();
            }
            let test = test.clone();
            async move { test.write(&batch).await }
        });
        for result in together(writers).await? {
            result?;
        }
        test.has_requests(&records).await?;
        let found = test.all(AuditScope::OrgChanges).await?;
        expect::equal("the number of changes", &found.len(), &0)?;
    }
    Ok(())
}

fn is_request(record: &AuditRecord) -> bool {
    matches!(record.event, crate::audit::record::AuditEvent::Request(_))
}
