//! Properties of filters.

use std::borrow::Cow;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use crate::audit::filter::{AuditFilter, OutcomeFilter, StatusFilter};
use crate::audit::log::{AuditCursor, AuditQuery, AuditScope, Position};
use crate::audit::record::{AuditEvent, AuditRecord, Outcome, RequestEvent};
use crate::network::Network;
use crate::store::conformance::audit::fixtures::{TestLog, a_request, newest_first, same_records};
use crate::store::conformance::expect;
use crate::store::conformance::handles::SinkAndLog;
use crate::store::conformance::violation::Violation;

/// A filter finds exactly the requests that match, because an export by filter is taken as
/// complete.
pub(super) async fn a_filter_finds_what_matches(log: Arc<dyn SinkAndLog>) -> Result<(), Violation> {
    let test = TestLog::new(&log)?;
    let records = varied(&test, 240);
    test.write(&records).await?;
    let client: StatusFilter = expect::made("4xx".parse())?;
    let network: Network = expect::made("192.0.2.0/30".parse())?;
    let refused = Some(OutcomeFilter::Refused);
    let outcome = AuditFilter { outcome: refused, ..AuditFilter::default() };
    let is_refused = |request: &RequestEvent| request.outcome == Outcome::Revoked;
    check(&test, &records, outcome, is_refused).await?;
    let status = AuditFilter { status: Some(client), ..AuditFilter::default() };
    let is_client = |request: &RequestEvent| request.status.is_some_and(|s| s / 100 == 4);
    check(&test, &records, status, is_client).await?;
    let method = AuditFilter { method: Some("PUT".to_owned()), ..AuditFilter::default() };
    check(&test, &records, method, |request| request.method == "PUT").await?;
    let ip = AuditFilter { ip: Some(network), ..AuditFilter::default() };
    let is_near = |request: &RequestEvent| request.ip.is_some_and(|ip| network.contains(ip));
    check(&test, &records, ip, is_near).await?;
    let all = AuditFilter {
        outcome: refused,
        method: Some("PUT".to_owned()),
        ip: Some(network),
        ..AuditFilter::default()
    };
    let all_match =
        |request: &RequestEvent| is_refused(request) && request.method == "PUT" && is_near(request);
    check(&test, &records, all, all_match).await
}

/// A request far back is found by following `older`, even past pages that are empty,
/// because a rare refusal is what people search for.
pub(super) async fn a_rare_match_is_found(log: Arc<dyn SinkAndLog>) -> Result<(), Violation> {
    let test = TestLog::new(&log)?;
    let rare = RequestEvent { outcome: Outcome::Expired, ..a_request() };
    let rare = [0, 2_500].map(|n| test.record(test.at(n), AuditEvent::Request(rare.clone())));
    let others: Vec<_> = (1..2_500).map(|n| test.request(test.at(n))).collect();
    for part in others.chunks(1_000) {
        test.write(part).await?;
    }
    test.write(&rare).await?;
    let filter = AuditFilter { outcome: Some(OutcomeFilter::Refused), ..AuditFilter::default() };
    let found = found(&test, &test.query().filter(filter)).await?;
    same_records("the rare requests", &found, &newest_first(&rare))
}

/// `since` includes its instant and `until` does not, for requests and for changes, because
/// two periods that touch must not share a record.
pub(super) async fn times_limit_what_is_found(log: Arc<dyn SinkAndLog>) -> Result<(), Violation> {
    let test = TestLog::new(&log)?;
    let requests: Vec<_> = (0..40).map(|n| test.request(test.at(n / 4))).collect();
    let changes: Vec<_> = (0..40).map(|n| test.change(test.at(n / 4))).collect();
    test.write(&requests).await?;
    test.write(&changes).await?;
    let (since, until) = (test.at(3), test.at(7));
    let filters = [(Some(since), None), (None, Some(until)), (Some(since), Some(until))];
    for (since, until) in filters {
        let filter = AuditFilter { since, until, ..AuditFilter::default() };
        for (scope, records) in [
            (AuditScope::KeyRequests(test.key), &requests),
            (AuditScope::KeyChanges(test.key), &changes),
            (AuditScope::OrgChanges, &changes),
        ] {
            let in_time = records.iter().filter(|record| {
                since.is_none_or(|since| record.at >= since)
                    && until.is_none_or(|until| record.at < until)
            });
            let expected = newest_first(&in_time.cloned().collect::<Vec<_>>());
            let query = AuditQuery::new(test.org.clone(), scope).filter(filter.clone()).limit(3);
            let found = found(&test, &query).await?;
            same_records("the records of the time", &found, &expected)?;
        }
    }
    Ok(())
}

/// Requests that differ in what filters look at.
fn varied(test: &TestLog, count: u64) -> Vec<AuditRecord> {
    let request = |n: u64| {
        let (outcome, status) = match n % 3 {
            0 => (Outcome::Allowed, Some(404)),
            1 => (Outcome::Revoked, Some(401)),
            _ => (Outcome::Aborted, None),
        };
        let last = u8::try_from(n % 7).unwrap_or_default();
        RequestEvent {
            method: Cow::Borrowed(if n.is_multiple_of(5) { "PUT" } else { "GET" }),
            ip: (!n.is_multiple_of(4)).then(|| IpAddr::from(Ipv4Addr::new(192, 0, 2, last))),
            outcome,
            // Other classes, too.
            status: status.map(|status| if n.is_multiple_of(2) { status } else { status - 200 }),
            ..a_request()
        }
    };
    (0..count).map(|n| test.record(test.at(n), AuditEvent::Request(request(n)))).collect()
}

/// Checks what a filter finds in both directions.
async fn check(
    test: &TestLog,
    records: &[AuditRecord],
    filter: AuditFilter,
    matches: impl Fn(&RequestEvent) -> bool,
) -> Result<(), Violation> {
    let expected = records.iter().filter(|record| match &record.event {
        AuditEvent::Request(request) => matches(request),
        AuditEvent::Change(_) => false,
    });
    let expected = newest_first(&expected.cloned().collect::<Vec<_>>());
    expect::holds(!expected.is_empty(), "a filter that some requests meet", "none")?;
    let query = test.query().filter(filter).limit(5);
    let found = found(test, &query).await?;
    same_records("the requests that match", &found, &expected)
}

/// All that a query finds, from its newest page to the oldest, and the same back again.
async fn found(test: &TestLog, query: &AuditQuery) -> Result<Vec<AuditRecord>, Violation> {
    let newest = test.page(query).await?;
    let back: Vec<_> = test.back_from(query, newest).await?.concat();
    if let Some(oldest) = back.last() {
        let from = Position::After(AuditCursor::of(oldest));
        let page = test.page(&query.clone().at(from)).await?;
        let mut on = test.on_from(query, page).await?;
        on.reverse();
        let newer = back.get(..back.len().saturating_sub(1)).unwrap_or_default();
        same_records("the records found forward", &on.concat(), newer)?;
    }
    Ok(back)
}
