//! Properties of the scope of a query.

use std::sync::Arc;

use crate::audit::log::{AuditCursor, AuditQuery, AuditScope, Position};
use crate::store::conformance::audit::fixtures::{TestLog, newest_first, same_records};
use crate::store::conformance::handles::SinkAndLog;
use crate::store::conformance::violation::Violation;

/// No scope gives a record of another organisation, even with its key or its cursor,
/// because audit records are confidential.
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

/// Every byte of an organisation's id is compared, because databases may ignore case,
/// accents, trailing spaces or the end of a long text.
pub(super) async fn similar_organisations_are_separate(
    log: Arc<dyn SinkAndLog>,
) -> Result<(), Violation> {
    let test = TestLog::new(&log)?;
    let mut members = Vec::new();
    for org in test.fresh.similar_orgs()?.into_iter().flatten() {
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

/// The scopes of a key give its own records only, because an auditor asks what one key did.
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

/// `OrgChanges` gives the changes of all keys of the organisation in one order and on
/// pages, because an auditor asks what happened in the organisation.
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

/// The scopes of requests give no changes and those of changes give no requests, and pages
/// are full although both are stored, because they are shown in separate lists.
pub(super) async fn requests_and_changes_are_separate(
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
