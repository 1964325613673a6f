//! Properties of the scope of a query: nobody reads what is not theirs or not
//! asked for.

use std::sync::Arc;

use crate::audit::log::{AuditCursor, AuditQuery, AuditScope, Position};
use crate::store::conformance::audit::fixtures::{TestLog, newest_first, same_records};
use crate::store::conformance::handles::SinkAndLog;
use crate::store::conformance::violation::Violation;

/// No scope gives a record of another organisation, not even with that
/// organisation's key or cursor in hand.
pub(super) async fn organisations_do_not_see_each_other(
    log: Arc<dyn SinkAndLog>,
) -> Result<(), Violation> {
    let (ours, theirs) = (TestLog::new(&log)?, TestLog::new(&log)?);
    let secret = [theirs.request(theirs.at(0)), theirs.change(theirs.at(1))];
    theirs.write(&secret).await?;
    let scopes = [
        AuditScope::KeyRequests(theirs.key),
        AuditScope::KeyChanges(theirs.key),
        AuditScope::OrgChanges,
    ];
    for scope in scopes {
        same_records("another organisation's records", &ours.all(scope).await?, &[])?;
        for record in &secret {
            let cursor = AuditCursor::of(record);
            for position in [Position::Before(cursor), Position::After(cursor)] {
                let query = AuditQuery::new(ours.org.clone(), scope).at(position);
                let page = ours.page(&query).await?;
                same_records("records beside another's cursor", &page.records, &[])?;
            }
        }
    }
    Ok(())
}

/// Organisations are told apart by every byte of their ids, even where their
/// keys had the same id.
pub(super) async fn organisations_much_alike_are_apart(
    log: Arc<dyn SinkAndLog>,
) -> Result<(), Violation> {
    let test = TestLog::new(&log)?;
    let mut members = Vec::new();
    for org in test.fresh.orgs_alike()?.into_iter().flatten() {
        let test = test.with_org(org);
        let records = [test.request(test.at(0)), test.change(test.at(0))];
        test.write(&records).await?;
        members.push((test, records));
    }
    for (test, [request, change]) in &members {
        test.has_requests(std::slice::from_ref(request)).await?;
        test.has_changes(std::slice::from_ref(change)).await?;
        let found = test.all(AuditScope::OrgChanges).await?;
        same_records("the changes of the organisation", &found, std::slice::from_ref(change))?;
    }
    Ok(())
}

/// The scopes of a key hold its own records, and not those of the
/// organisation's other keys.
pub(super) async fn a_key_has_its_own_records(log: Arc<dyn SinkAndLog>) -> Result<(), Violation> {
    let one = TestLog::new(&log)?;
    let other = one.with_key(one.fresh.key_id());
    let requests = [one.request(one.at(0)), other.request(other.at(1)), one.request(one.at(2))];
    let changes = [one.change(one.at(0)), other.change(other.at(1)), one.change(one.at(2))];
    one.write(&requests).await?;
    one.write(&changes).await?;
    for test in [&one, &other] {
        let own = |record: &&crate::audit::record::AuditRecord| record.key == test.key;
        test.has_requests(&requests.iter().filter(own).cloned().collect::<Vec<_>>()).await?;
        test.has_changes(&changes.iter().filter(own).cloned().collect::<Vec<_>>()).await?;
    }
    Ok(())
}

/// `OrgChanges` holds the changes of all the organisation's keys, in one order,
/// and pages like any other scope.
pub(super) async fn org_changes_spans_all_keys(log: Arc<dyn SinkAndLog>) -> Result<(), Violation> {
    let test = TestLog::new(&log)?;
    let mut changes = Vec::new();
    for n in 0..12 {
        let key = test.with_key(test.fresh.key_id());
        changes.push(key.change(key.at(n / 2)));
        changes.push(key.change(key.at(n)));
        test.write(&[key.request(key.at(n))]).await?;
    }
    test.write(&changes).await?;
    let expected = newest_first(&changes);
    let found = test.all(AuditScope::OrgChanges).await?;
    same_records("the changes of the organisation", &found, &expected)?;
    let query = AuditQuery::new(test.org.clone(), AuditScope::OrgChanges).limit(5);
    let newest = test.page(&query).await?;
    let pages = test.back_from(&query, newest).await?;
    same_records("the changes paged back", &pages.concat(), &expected)
}

/// Requests are no changes and changes no requests, though they belong to one
/// key and one instant.
pub(super) async fn requests_and_changes_are_apart(
    log: Arc<dyn SinkAndLog>,
) -> Result<(), Violation> {
    let test = TestLog::new(&log)?;
    let requests: Vec<_> = (0..8).map(|n| test.request(test.at(n))).collect();
    let changes: Vec<_> = (0..8).map(|n| test.change(test.at(n))).collect();
    for (request, change) in requests.iter().zip(&changes) {
        test.write(&[request.clone(), change.clone()]).await?;
    }
    test.has_requests(&requests).await?;
    test.has_changes(&changes).await?;
    // Pages are full although every other record is of the other kind.
    let query = test.query().limit(3);
    let newest = test.page(&query).await?;
    let pages = test.back_from(&query, newest).await?;
    same_records("the requests paged back", &pages.concat(), &newest_first(&requests))?;
    let sizes: Vec<usize> = pages.iter().map(Vec::len).collect();
    crate::store::conformance::expect::equal("the sizes of the pages", &sizes, &vec![3, 3, 2])
}
