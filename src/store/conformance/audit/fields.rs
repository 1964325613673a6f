//! Properties of the fields of a record: they come back as they were written.

use std::borrow::Cow;
use std::net::IpAddr;
use std::sync::Arc;

use crate::audit::changed::{ChangedField, ChangedFields, FieldValue};
use crate::audit::country::CountryCode;
use crate::audit::record::{
    AuditEvent, AuditId, AuditRecord, ChangeAction, ChangeEvent, ChangePhase, Outcome, RequestEvent,
};
use crate::record::SecretUsed;
use crate::runtime::clock::Timestamp;
use crate::store::conformance::audit::fixtures::{TestLog, a_change, a_field, a_request};
use crate::store::conformance::audit::purge::undisturbed;
use crate::store::conformance::handles::SinkAndLog;
use crate::store::conformance::violation::Violation;

/// Texts that a database, a log or a page might misinterpret.
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

/// Which secret was used is kept, because it tells whether clients still have the old one
/// after a rotation with an overlap.
pub(super) async fn secrets_are_kept(log: Arc<dyn SinkAndLog>) -> Result<(), Violation> {
    requests_come_back(&log, with_secrets()).await
}

/// Methods are kept exactly, non-standard ones and their case included, because they say
/// what a client did.
pub(super) async fn methods_are_kept(log: Arc<dyn SinkAndLog>) -> Result<(), Violation> {
    requests_come_back(&log, with_methods()).await
}

/// Endpoints are kept exactly, up to the longest, because they say what a client did.
pub(super) async fn endpoints_are_kept(log: Arc<dyn SinkAndLog>) -> Result<(), Violation> {
    requests_come_back(&log, with_endpoints()).await
}

/// Addresses of both families are kept and an unknown one stays unknown, because they say
/// where a client was.
pub(super) async fn addresses_are_kept(log: Arc<dyn SinkAndLog>) -> Result<(), Violation> {
    requests_come_back(&log, with_addresses()).await
}

/// Countries are kept and an unknown one stays unknown, because they say where a client
/// was.
pub(super) async fn countries_are_kept(log: Arc<dyn SinkAndLog>) -> Result<(), Violation> {
    requests_come_back(&log, with_countries()).await
}

/// Every HTTP status is kept and a missing one stays missing, because a request without an
/// answer must not look like one that was answered.
pub(super) async fn statuses_are_kept(log: Arc<dyn SinkAndLog>) -> Result<(), Violation> {
    requests_come_back(&log, with_statuses()).await
}

/// Every outcome is kept, because it says why a request was refused.
pub(super) async fn outcomes_are_kept(log: Arc<dyn SinkAndLog>) -> Result<(), Violation> {
    requests_come_back(&log, with_outcomes()).await
}

/// The number of requests that a record stands for is kept, because refusals may be
/// summed.
pub(super) async fn counts_are_kept(log: Arc<dyn SinkAndLog>) -> Result<(), Violation> {
    requests_come_back(&log, with_counts()).await
}

/// Every action is kept in both phases, because an abandoned change did not take place.
pub(super) async fn actions_and_phases_are_kept(log: Arc<dyn SinkAndLog>) -> Result<(), Violation> {
    changes_come_back(&log, with_actions()).await
}

/// The names of actors are kept exactly, up to the longest, because they say who changed
/// a key.
pub(super) async fn actors_are_kept(log: Arc<dyn SinkAndLog>) -> Result<(), Violation> {
    changes_come_back(&log, with_actors()).await
}

/// The fields of a change are kept exactly, with their values, because they tell a
/// revocation from a rename.
pub(super) async fn changed_fields_are_kept(log: Arc<dyn SinkAndLog>) -> Result<(), Violation> {
    changes_come_back(&log, with_fields()).await
}

/// Times keep their microseconds and ids all their bytes, because both decide the order of
/// the records.
pub(super) async fn times_and_ids_are_kept(log: Arc<dyn SinkAndLog>) -> Result<(), Violation> {
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

/// The earliest and the latest time are kept and ordered among the others, because a host
/// chooses its clock.
pub(super) async fn every_time_is_kept(log: Arc<dyn SinkAndLog>) -> Result<(), Violation> {
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

/// Requests with all the values that the properties of this module try.
pub(super) fn unusual_requests() -> Vec<RequestEvent> {
    let events = [
        with_methods(),
        with_endpoints(),
        with_addresses(),
        with_countries(),
        with_statuses(),
        with_outcomes(),
        with_counts(),
        with_secrets(),
    ];
    events.concat()
}

/// Changes with all the values that the properties of this module try.
pub(super) fn unusual_changes() -> Vec<ChangeEvent> {
    [with_actions(), with_actors(), with_fields()].concat()
}

fn with_methods() -> Vec<RequestEvent> {
    let longest = "A".repeat(64);
    let methods = ["GET", "get", "PATCH", "PROPFIND", "M-SEARCH", "X!#$%&'*+.^_`|~", &longest];
    methods
        .map(|method| RequestEvent { method: Cow::Owned(method.to_owned()), ..a_request() })
        .to_vec()
}

fn with_endpoints() -> Vec<RequestEvent> {
    let longest = format!("/{}…", "é".repeat((RequestEvent::MAX_ENDPOINT_LEN - 4) / 2));
    let texts = TEXTS.into_iter().chain([longest.as_str()]);
    texts.map(|text| RequestEvent { endpoint: text.into(), ..a_request() }).collect()
}

fn with_addresses() -> Vec<RequestEvent> {
    let texts = ["192.0.2.1", "0.0.0.0", "255.255.255.255", "::", "::1", "2001:db8::ff00:42:8329"];
    let known = texts.into_iter().map(|text| text.parse::<IpAddr>().ok());
    known.chain([None]).map(|ip| RequestEvent { ip, ..a_request() }).collect()
}

fn with_countries() -> Vec<RequestEvent> {
    let codes = ["DE", "AA", "ZZ", "NO"].map(CountryCode::new).into_iter().chain([None]);
    codes.map(|country| RequestEvent { country, ..a_request() }).collect()
}

fn with_statuses() -> Vec<RequestEvent> {
    let codes = [100, 200, 204, 301, 404, 499, 503, 599, 999].map(Some).into_iter().chain([None]);
    codes.map(|status| RequestEvent { status, ..a_request() }).collect()
}

fn with_outcomes() -> Vec<RequestEvent> {
    let outcomes = [
        Outcome::Allowed,
        Outcome::Revoked,
        Outcome::Expired,
        Outcome::IpNotAllowed,
        Outcome::InsufficientScope,
        Outcome::RateLimited,
        Outcome::Aborted,
    ];
    outcomes.map(|outcome| RequestEvent { outcome, ..a_request() }).to_vec()
}

fn with_counts() -> Vec<RequestEvent> {
    [1, 2, 256_000, u32::MAX].map(|count| RequestEvent { count, ..a_request() }).to_vec()
}

fn with_secrets() -> Vec<RequestEvent> {
    SecretUsed::ALL.iter().map(|secret| RequestEvent { secret: *secret, ..a_request() }).collect()
}

fn with_actions() -> Vec<ChangeEvent> {
    let actions = [
        ChangeAction::Created,
        ChangeAction::Updated,
        ChangeAction::Rotated,
        ChangeAction::Deleted,
    ];
    let phases = |action| {
        [ChangePhase::Begun, ChangePhase::Abandoned].map(|phase| ChangeEvent {
            action,
            phase,
            ..a_change()
        })
    };
    actions.into_iter().flat_map(phases).collect()
}

fn with_actors() -> Vec<ChangeEvent> {
    let longest = "x".repeat(crate::org::Actor::MAX_NAME_LEN);
    let texts = TEXTS.into_iter().chain(["Ada Lovelace", longest.as_str()]);
    texts.map(|text| ChangeEvent { actor: text.into(), ..a_change() }).collect()
}

fn with_fields() -> Vec<ChangeEvent> {
    let list = FieldValue::List(TEXTS.map(str::to_owned).to_vec());
    let texts = TEXTS.map(|text| FieldValue::Text(text.to_owned())).into_iter();
    let values = texts.chain([FieldValue::Absent, FieldValue::List(Vec::new()), list]);
    let fields: ChangedFields = values
        .flat_map(|value| {
            let name = Cow::Owned(format!("{value:?}"));
            [
                a_field(value.clone()),
                ChangedField { name, after: value, ..a_field(FieldValue::Absent) },
            ]
        })
        .collect();
    [ChangedFields::default(), fields].map(|fields| ChangeEvent { fields, ..a_change() }).to_vec()
}

async fn requests_come_back(
    log: &Arc<dyn SinkAndLog>,
    events: Vec<RequestEvent>,
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
    events: Vec<ChangeEvent>,
) -> Result<(), Violation> {
    let test = TestLog::new(log)?;
    let events = (0..).zip(events);
    let records: Vec<AuditRecord> =
        events.map(|(n, event)| test.record(test.at(n), AuditEvent::Change(event))).collect();
    test.write(&records).await?;
    test.has_changes(&records).await
}
