//! Properties of `page`: the order of the records, and paging.

use std::sync::Arc;

use crate::audit::log::{AuditCursor, AuditQuery, Position};
use crate::audit::record::{AuditId, AuditRecord};
use crate::store::conformance::audit::fixtures::{TestLog, newest_first, same_records};
use crate::store::conformance::expect;
use crate::store::conformance::handles::SinkAndLog;
use crate::store::conformance::violation::Violation;

/// The newest record is first whatever the order of writing, because records of several
/// processes arrive late.
pub(super) async fn the_newest_comes_first(log: Arc<dyn SinkAndLog>) -> Result<(), Violation> {
    let test = TestLog::new(&log)?;
    let times = [5, 1, 1_000, 4, 0, 1_000_000, 2];
    let records = times.map(|micros| test.request(test.at(micros)));
    test.write(&records).await?;
    test.has_requests(&records).await
}

/// Records of one instant are ordered by the unsigned bytes of their ids, because a cursor
/// needs one position in the order.
pub(super) async fn records_of_one_instant_are_ordered_by_id(
    log: Arc<dyn SinkAndLog>,
) -> Result<(), Violation> {
    let test = TestLog::new(&log)?;
    let at = test.at(0);
    let records = [0x7f, 0x80, 0x00, 0xff, 0x61, 0x5a].map(|first_byte| {
        let mut id = test.fresh.audit_id().to_bytes();
        if let Some(byte) = id.first_mut() {
            *byte = first_byte;
        }
        AuditRecord { id: AuditId::from_bytes(id), ..test.request(at) }
    });
    test.write(&records).await?;
    test.has_requests(&records).await?;
    // Cursors within the instant follow the same order.
    let expected = newest_first(&records);
    for (n, record) in expected.iter().enumerate() {
        let cursor = AuditCursor::of(record);
        let (newer, older) = expected.split_at(n);
        let before = test.page(&test.query().at(Position::Before(cursor))).await?;
        same_records("those before the cursor", &before.records, older.get(1..).unwrap_or(&[]))?;
        let after = test.page(&test.query().at(Position::After(cursor))).await?;
        same_records("those after the cursor", &after.records, newer)?;
    }
    Ok(())
}

/// Paging back from the newest record gives every record once, on full pages except the
/// last, because an auditor must see every record.
pub(super) async fn paging_back_meets_every_record_once(
    log: Arc<dyn SinkAndLog>,
) -> Result<(), Violation> {
    let (test, records) = with_ties(&log).await?;
    for size in [1, 2, 3, 5, 20, 200] {
        let query = test.query().limit(size);
        let newest = test.page(&query).await?;
        let pages = test.back_from(&query, newest).await?;
        same_records("the records paged back", &pages.concat(), &newest_first(&records))?;
        let full = pages.iter().rev().skip(1).all(|page| page.len() == size);
        expect::holds(full, format!("full pages of {size} but for the last"), "a shorter one")?;
        let last_is_needed = pages.len() == 1 || pages.last().is_some_and(|page| !page.is_empty());
        expect::holds(last_is_needed, "no page beyond the oldest record", "an empty one")?;
    }
    Ok(())
}

/// Paging forward from the oldest record gives every record once, newest first on each
/// page, because an auditor must see every record.
pub(super) async fn paging_forward_meets_every_record_once(
    log: Arc<dyn SinkAndLog>,
) -> Result<(), Violation> {
    let (test, records) = with_ties(&log).await?;
    let expected = newest_first(&records);
    let Some((oldest, others)) = expected.split_last() else { return Ok(()) };
    for size in [1, 2, 3, 5, 20, 200] {
        let query = test.query().limit(size);
        let position = Position::After(AuditCursor::of(oldest));
        let first = test.page(&query.clone().at(position)).await?;
        let mut pages = test.on_from(&query, first).await?;
        let full = pages.iter().rev().skip(1).all(|page| page.len() == size);
        expect::holds(full, format!("full pages of {size} but for the last"), "a shorter one")?;
        pages.reverse();
        same_records("the records paged forward", &pages.concat(), others)?;
    }
    Ok(())
}

/// Records that are written during paging back neither repeat nor hide others, because the
/// log is in use.
pub(super) async fn new_records_do_not_disturb_paging(
    log: Arc<dyn SinkAndLog>,
) -> Result<(), Violation> {
    let test = TestLog::new(&log)?;
    let records = test.requests(20);
    test.write(&records).await?;
    let query = test.query().limit(3);
    let mut page = test.page(&query).await?;
    let mut found = page.records;
    let mut late = 1_000;
    while let Some(cursor) = page.older {
        late += 1;
        test.write(&[test.request(test.at(late)), test.request(test.at(late))]).await?;
        page = test.page(&query.clone().at(Position::Before(cursor))).await?;
        found.append(&mut page.records);
        if found.len() > records.len() {
            break;
        }
    }
    same_records("the records there at the start", &found, &newest_first(&records))
}

/// The newest page has no `newer` cursor and the oldest page has no `older` cursor, because
/// the settings page shows by them whether there are
/// more records.
pub(super) async fn the_ends_have_no_further_page(
    log: Arc<dyn SinkAndLog>,
) -> Result<(), Violation> {
    let test = TestLog::new(&log)?;
    let records = test.requests(6);
    test.write(&records).await?;
    let query = test.query().limit(3);
    let newest = test.page(&query).await?;
    expect::equal("`newer` of the newest page", &newest.newer, &None)?;
    let Some(cursor) = newest.older else {
        return Err(Violation::new("`older` of the first of two pages to be there", "None"));
    };
    let oldest = test.page(&query.clone().at(Position::Before(cursor))).await?;
    expect::equal("`older` of the oldest page, though it is full", &oldest.older, &None)?;
    let Some(cursor) = oldest.newer else {
        return Err(Violation::new("`newer` of the second of two pages to be there", "None"));
    };
    let back = test.page(&query.clone().at(Position::After(cursor))).await?;
    expect::equal("`newer` of a page that ends in the newest", &back.newer, &None)?;
    let whole = test.page(&query.limit(6)).await?;
    expect::equal("`older` of a page that holds all", &whole.older, &None)?;
    expect::equal("`newer` of a page that holds all", &whole.newer, &None)
}

/// Paging back and then forward gives the same page, because people return to what they
/// saw.
pub(super) async fn paging_back_and_forth_gives_the_same_page(
    log: Arc<dyn SinkAndLog>,
) -> Result<(), Violation> {
    let (test, _) = with_ties(&log).await?;
    let query = test.query().limit(4);
    let mut page = test.page(&query).await?;
    for _ in 0..3 {
        let Some(older) = page.older else {
            return Err(Violation::new("an older page of a log of five", "None"));
        };
        let back = test.page(&query.clone().at(Position::Before(older))).await?;
        let Some(newer) = back.newer else {
            return Err(Violation::new("`newer` of a page found by `older`", "None"));
        };
        let forth = test.page(&query.clone().at(Position::After(newer))).await?;
        same_records("the page after going back and forth", &forth.records, &page.records)?;
        page = back;
    }
    Ok(())
}

/// A key without records has an empty page without cursors, because a new key has no
/// records.
pub(super) async fn a_log_without_records_is_an_empty_page(
    log: Arc<dyn SinkAndLog>,
) -> Result<(), Violation> {
    let test = TestLog::new(&log)?;
    let page = test.page(&test.query()).await?;
    expect::equal("the number of records", &page.records.len(), &0)?;
    expect::equal("`older`", &page.older, &None)?;
    expect::equal("`newer`", &page.newer, &None)
}

/// An empty page beyond either end has a cursor back to all records, because a reader may
/// be on a page whose records were purged.
pub(super) async fn an_empty_page_leads_back(log: Arc<dyn SinkAndLog>) -> Result<(), Violation> {
    let test = TestLog::new(&log)?;
    let records = newest_first(&test.requests(3));
    test.write(&records).await?;
    let (Some(newest), Some(oldest)) = (records.first(), records.last()) else { return Ok(()) };
    let query = test.query();
    let past = test.page(&query.clone().at(Position::Before(AuditCursor::of(oldest)))).await?;
    expect::equal("the records before the oldest", &past.records, &Vec::new())?;
    expect::equal("`older` of a page beyond the oldest", &past.older, &None)?;
    let back = past.newer.map(Position::After).unwrap_or(Position::Newest);
    let page = test.page(&query.clone().at(back)).await?;
    expect::holds(past.newer.is_some(), "`newer` of a page beyond the oldest", "None")?;
    same_records("the records that it leads back to", &page.records, &records)?;
    let past = test.page(&query.clone().at(Position::After(AuditCursor::of(newest)))).await?;
    expect::equal("the records after the newest", &past.records, &Vec::new())?;
    expect::equal("`newer` of a page beyond the newest", &past.newer, &None)?;
    let Some(older) = past.older else {
        return Err(Violation::new("`older` of a page beyond the newest", "None"));
    };
    let page = test.page(&query.at(Position::Before(older))).await?;
    same_records("the records that it leads back to", &page.records, &records)
}

/// A cursor keeps its position if its record does not exist, because that record may have
/// been purged.
pub(super) async fn a_cursor_needs_no_record(log: Arc<dyn SinkAndLog>) -> Result<(), Violation> {
    let test = TestLog::new(&log)?;
    let stored = [0, 1, 3, 4].map(|micros| test.request(test.at(micros)));
    test.write(&stored).await?;
    let cursor = AuditCursor::of(&test.request(test.at(2)));
    let (older, newer) = stored.split_at(2);
    let page = test.page(&test.query().at(Position::Before(cursor))).await?;
    same_records("the records before a place between", &page.records, &newest_first(older))?;
    let page = test.page(&test.query().at(Position::After(cursor))).await?;
    same_records("the records after a place between", &page.records, &newest_first(newer))
}

/// A page has as many records as the query allows, up to the largest limit, because a short
/// page looks like the last one.
pub(super) async fn a_page_holds_its_limit(log: Arc<dyn SinkAndLog>) -> Result<(), Violation> {
    let test = TestLog::new(&log)?;
    let records = test.requests(AuditQuery::MAX_LIMIT as u64 + 1);
    test.write(&records).await?;
    let expected = newest_first(&records);
    for size in [1, 25, AuditQuery::MAX_LIMIT] {
        let page = test.page(&test.query().limit(size)).await?;
        let newest = expected.get(..size).unwrap_or(&expected);
        same_records("the newest records", &page.records, newest)?;
    }
    Ok(())
}

/// Twenty requests, up to four of them in one instant.
pub(super) async fn with_ties(
    log: &Arc<dyn SinkAndLog>,
) -> Result<(TestLog, Vec<AuditRecord>), Violation> {
    let test = TestLog::new(log)?;
    let times = (0..20).map(|n| test.at(n * n / 20));
    let records: Vec<AuditRecord> = times.map(|at| test.request(at)).collect();
    test.write(&records).await?;
    Ok((test, records))
}
