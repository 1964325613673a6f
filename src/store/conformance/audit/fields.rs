//! Properties of the fields of a record: what comes back is what went in.

use std::borrow::Cow;
use std::net::IpAddr;
use std::sync::Arc;

use crate::audit::country::CountryCode;
use crate::audit::record::{
    AuditEvent, AuditId, AuditRecord, ChangeAction, ChangeEvent, ChangePhase, Outcome, RequestEvent,
};
use crate::clock::Timestamp;
use crate::store::conformance::audit::fixtures::{TestLog, a_change, a_request};
use crate::store::conformance::audit::purge::undisturbed;
use crate::store::conformance::handles::SinkAndLog;
use crate::store::conformance::violation::Violation;

/// Texts that a database, a log line or a page might take for something else.
const TEXTS: [&str; 12] = [
    "",
    "/",
    "/v1/items/%2e%2e/%00?",
    "/straße/鍵/👩‍💻/cafe\u{301}",
    "/'; DROP TABLE audit; --",
    "\"quoted\" `back` \\slash\\",
    "%_*?[a-z]",
    "$1 :name @p ?1 {}",
    "NULL",
    "0012",
    "/two\r\nlines\tand a tab",
    "<img src=x onerror=alert(1)>",
];

/// Methods are kept, those included that no standard names, and so is their case.
pub async fn methods_are_kept(log: Arc<dyn SinkAndLog>) -> Result<(), Violation> {
    let methods =
        ["GET", "get", "PATCH", "PROPFIND", "M-SEARCH", "X!#$%&'*+.^_`|~", &"A".repeat(64)]
            .map(|method| RequestEvent { method: Cow::Owned(method.to_owned()), ..a_request() });
    requests_come_back(&log, methods).await
}

/// Endpoints are kept to the letter, up to the longest.
pub async fn endpoints_are_kept(log: Arc<dyn SinkAndLog>) -> Result<(), Violation> {
    let longest = format!("/{}…", "é".repeat((RequestEvent::MAX_ENDPOINT_LEN - 4) / 2));
    let texts = TEXTS.into_iter().chain([longest.as_str()]);
    let events = texts.map(|text| RequestEvent { endpoint: text.into(), ..a_request() });
    requests_come_back(&log, events).await
}

/// Addresses of both families are kept, and an unknown one stays unknown.
pub async fn addresses_are_kept(log: Arc<dyn SinkAndLog>) -> Result<(), Violation> {
    let texts = ["192.0.2.1", "0.0.0.0", "255.255.255.255", "::", "::1", "2001:db8::ff00:42:8329"];
    let known = texts.into_iter().map(|text| text.parse::<IpAddr>().ok());
    let events = known.chain([None]).map(|ip| RequestEvent { ip, ..a_request() });
    requests_come_back(&log, events).await
}

/// Countries are kept, and an unknown one stays unknown.
pub async fn countries_are_kept(log: Arc<dyn SinkAndLog>) -> Result<(), Violation> {
    let codes = ["DE", "AA", "ZZ", "NO"].map(CountryCode::new);
    let codes = codes.into_iter().chain([None]);
    requests_come_back(&log, codes.map(|country| RequestEvent { country, ..a_request() })).await
}

/// Every HTTP status is kept; a request without an answer has none, which is not
/// zero.
pub async fn statuses_are_kept(log: Arc<dyn SinkAndLog>) -> Result<(), Violation> {
    let codes = [100, 200, 204, 301, 404, 499, 503, 599, 999].map(Some);
    let codes = codes.into_iter().chain([None]);
    requests_come_back(&log, codes.map(|status| RequestEvent { status, ..a_request() })).await
}

/// Every outcome is kept.
pub async fn outcomes_are_kept(log: Arc<dyn SinkAndLog>) -> Result<(), Violation> {
    let outcomes = [
        Outcome::Allowed,
        Outcome::Revoked,
        Outcome::Expired,
        Outcome::IpNotAllowed,
        Outcome::Aborted,
    ];
    requests_come_back(&log, outcomes.map(|outcome| RequestEvent { outcome, ..a_request() })).await
}

/// The number of requests that a record stands for is kept.
pub async fn counts_are_kept(log: Arc<dyn SinkAndLog>) -> Result<(), Violation> {
    let counts = [1, 2, 256_000, u32::MAX];
    requests_come_back(&log, counts.map(|count| RequestEvent { count, ..a_request() })).await
}

/// Every action is kept in either phase.
pub async fn actions_and_phases_are_kept(log: Arc<dyn SinkAndLog>) -> Result<(), Violation> {
    let actions = [
        ChangeAction::Created,
        ChangeAction::Updated,
        ChangeAction::Rotated,
        ChangeAction::Deleted,
    ];
    let events = actions.into_iter().flat_map(|action| {
        [ChangePhase::Begun, ChangePhase::Abandoned].map(|phase| ChangeEvent {
            action,
            phase,
            ..a_change()
        })
    });
    changes_come_back(&log, events).await
}

/// The names of actors are kept to the letter, up to the longest.
pub async fn actors_are_kept(log: Arc<dyn SinkAndLog>) -> Result<(), Violation> {
    let longest = "x".repeat(crate::org::Actor::MAX_NAME_LEN);
    let texts = TEXTS.into_iter().chain(["Ada Lovelace", longest.as_str()]);
    changes_come_back(&log, texts.map(|text| ChangeEvent { actor: text.into(), ..a_change() }))
        .await
}

/// Times keep their microseconds, and ids all their bytes.
pub async fn times_and_ids_are_kept(log: Arc<dyn SinkAndLog>) -> Result<(), Violation> {
    let test = TestLog::new(&log)?;
    let times = [0, 1, 498, 499, 998, 999_998].map(|micros| test.request(test.at(micros)));
    let mut id = test.fresh.audit_id().to_bytes();
    for byte in id.iter_mut().skip(8).step_by(2) {
        *byte = 0;
    }
    let with_zero_bytes = AuditRecord { id: AuditId::from_bytes(id), ..test.request(test.at(7)) };
    let records: Vec<AuditRecord> = times.into_iter().chain([with_zero_bytes]).collect();
    test.write(&records).await?;
    test.has_requests(&records).await
}

/// The earliest and the latest time are kept, and ordered among the others.
pub async fn every_time_is_kept(log: Arc<dyn SinkAndLog>) -> Result<(), Violation> {
    undisturbed(&log, |test| async move {
        let micros = [-1, 0, 1, 2_147_483_648_000_000, 9_223_372_037_000_001];
        let times = micros.into_iter().filter_map(Timestamp::from_unix_micros);
        let times = times.chain([Timestamp::MIN, Timestamp::MAX]);
        let records: Vec<AuditRecord> = times.map(|at| test.request(at)).collect();
        test.write(&records).await?;
        test.has_requests(&records).await
    })
    .await
}

async fn requests_come_back(
    log: &Arc<dyn SinkAndLog>,
    events: impl IntoIterator<Item = RequestEvent> + Send,
) -> Result<(), Violation> {
    let test = TestLog::new(log)?;
    let events = (0..).zip(events);
    let records: Vec<AuditRecord> =
        events.map(|(n, event)| test.record(test.at(n), AuditEvent::Request(event))).collect();
    test.write(&records).await?;
    test.has_requests(&records).await
}

async fn changes_come_back(
    log: &Arc<dyn SinkAndLog>,
    events: impl IntoIterator<Item = ChangeEvent> + Send,
) -> Result<(), Violation> {
    let test = TestLog::new(log)?;
    let events = (0..).zip(events);
    let records: Vec<AuditRecord> =
        events.map(|(n, event)| test.record(test.at(n), AuditEvent::Change(event))).collect();
    test.write(&records).await?;
    test.has_changes(&records).await
}
