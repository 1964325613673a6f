//! An organisation's part of an audit log, for one property.

use std::borrow::Cow;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use crate::audit::changed::{ChangedField, FieldValue};
use crate::audit::country::CountryCode;
use crate::audit::log::{AuditCursor, AuditPage, AuditQuery, AuditScope, Position};
use crate::audit::record::{
    AuditEvent, AuditRecord, ChangeAction, ChangeEvent, ChangePhase, Outcome, RequestEvent,
};
use crate::key::id::KeyId;
use crate::org::OrgId;
use crate::record::SecretUsed;
use crate::runtime::clock::Timestamp;
use crate::store::conformance::expect;
use crate::store::conformance::fresh::Fresh;
use crate::store::conformance::handles::SinkAndLog;
use crate::store::conformance::property::Opener;
use crate::store::conformance::violation::Violation;

/// A new organisation with one key. Its methods expect every call to succeed.
#[derive(Clone, Debug)]
pub(super) struct TestLog {
    pub(super) log: Arc<dyn SinkAndLog>,
    pub(super) org: OrgId,
    pub(super) key: KeyId,
    pub(super) fresh: Arc<Fresh>,
    start: Timestamp,
}

impl TestLog {
    pub(super) fn new(log: &Arc<dyn SinkAndLog>) -> Result<Self, Violation> {
        let fresh = Fresh::new()?;
        Ok(Self {
            log: Arc::clone(log),
            org: fresh.org()?,
            key: fresh.key_id(),
            fresh: Arc::new(fresh),
            start: an_hour_ago(),
        })
    }

    /// Closes the log and opens it again.
    pub(super) async fn reopened(self, opener: &Opener<dyn SinkAndLog>) -> Result<Self, Violation> {
        let Self { log, org, key, fresh, start } = self;
        // The log is closed first, since a file may allow only one handle.
        drop(log);
        Ok(Self { log: opener.open().await?, org, key, fresh, start })
    }

    pub(super) fn with_org(&self, org: OrgId) -> Self {
        Self { org, ..self.clone() }
    }

    pub(super) fn with_key(&self, key: KeyId) -> Self {
        Self { key, ..self.clone() }
    }

    /// A time so recent that no host purges its records yet.
    pub(super) fn at(&self, micros: u64) -> Timestamp {
        self.start.saturating_add(Duration::from_micros(micros))
    }

    pub(super) fn record(&self, at: Timestamp, event: AuditEvent) -> AuditRecord {
        let (id, org) = (self.fresh.audit_id(), self.org.clone());
        AuditRecord { id, at, org, key: self.key, event }
    }

    pub(super) fn request(&self, at: Timestamp) -> AuditRecord {
        self.record(at, AuditEvent::Request(a_request()))
    }

    pub(super) fn change(&self, at: Timestamp) -> AuditRecord {
        self.record(at, AuditEvent::Change(a_change()))
    }

    /// Requests a microsecond apart, oldest first.
    pub(super) fn requests(&self, count: u64) -> Vec<AuditRecord> {
        (0..count).map(|n| self.request(self.at(n))).collect()
    }

    pub(super) async fn write(&self, batch: &[AuditRecord]) -> Result<(), Violation> {
        expect::done("record", self.log.record(batch).await)
    }

    pub(super) fn query(&self) -> AuditQuery {
        AuditQuery::new(self.org.clone(), AuditScope::KeyRequests(self.key))
    }

    pub(super) async fn page(&self, query: &AuditQuery) -> Result<AuditPage, Violation> {
        let page = expect::done("page", self.log.page(query).await)?;
        expect::holds(
            page.records.len() <= query.limit,
            format!("at most {} records in a page", query.limit),
            format!("{}", page.records.len()),
        )?;
        Ok(page)
    }

    /// All records in the scope, newest first.
    pub(super) async fn all(&self, scope: AuditScope) -> Result<Vec<AuditRecord>, Violation> {
        let query = AuditQuery::new(self.org.clone(), scope).limit(AuditQuery::MAX_LIMIT);
        let newest = self.page(&query).await?;
        Ok(self.back_from(&query, newest).await?.into_iter().flatten().collect())
    }

    /// This page and all older ones.
    pub(super) async fn back_from(
        &self,
        query: &AuditQuery,
        page: AuditPage,
    ) -> Result<Vec<Vec<AuditRecord>>, Violation> {
        self.follow(query, page, |page| page.older, Position::Before).await
    }

    /// This page and all newer ones.
    pub(super) async fn on_from(
        &self,
        query: &AuditQuery,
        page: AuditPage,
    ) -> Result<Vec<Vec<AuditRecord>>, Violation> {
        self.follow(query, page, |page| page.newer, Position::After).await
    }

    async fn follow(
        &self,
        query: &AuditQuery,
        mut page: AuditPage,
        next: fn(&AuditPage) -> Option<AuditCursor>,
        position: fn(AuditCursor) -> Position,
    ) -> Result<Vec<Vec<AuditRecord>>, Violation> {
        /// No property writes more records than this.
        const MOST_PAGES: usize = 2_000;
        let mut pages = Vec::new();
        while pages.len() < MOST_PAGES {
            let cursor = next(&page);
            pages.push(page.records);
            let Some(cursor) = cursor else { return Ok(pages) };
            page = self.page(&query.clone().at(position(cursor))).await?;
        }
        Err(Violation::new("the pages to come to an end", format!("more than {MOST_PAGES}")))
    }

    /// Checks that the key has exactly these requests, newest first.
    pub(super) async fn has_requests(&self, records: &[AuditRecord]) -> Result<(), Violation> {
        let found = self.all(AuditScope::KeyRequests(self.key)).await?;
        same_records("the requests of the key", &found, &newest_first(records))
    }

    /// Checks that the key has exactly these changes, newest first.
    pub(super) async fn has_changes(&self, records: &[AuditRecord]) -> Result<(), Violation> {
        let found = self.all(AuditScope::KeyChanges(self.key)).await?;
        same_records("the changes of the key", &found, &newest_first(records))
    }
}

pub(super) fn a_request() -> RequestEvent {
    RequestEvent {
        method: Cow::Borrowed("GET"),
        endpoint: "/v1/items".into(),
        ip: Some(IpAddr::from(Ipv4Addr::new(192, 0, 2, 1))),
        country: CountryCode::new("DE"),
        status: Some(200),
        outcome: Outcome::Allowed,
        count: 1,
        secret: SecretUsed::Current,
    }
}

pub(super) fn a_change() -> ChangeEvent {
    ChangeEvent {
        actor: "ada@acme.example".into(),
        action: ChangeAction::Updated,
        phase: ChangePhase::Begun,
        fields: [a_field(FieldValue::Text("active".to_owned()))].into_iter().collect(),
    }
}

/// A field that had this value, and has none after the change.
pub(super) fn a_field(before: FieldValue) -> ChangedField {
    ChangedField { name: Cow::Borrowed("status"), before, after: FieldValue::Absent }
}

pub(super) fn newest_first(records: &[AuditRecord]) -> Vec<AuditRecord> {
    let mut records = records.to_vec();
    records.sort_by_key(|record| std::cmp::Reverse(AuditCursor::of(record)));
    records
}

/// Checks that the records and their order are the same. The violation shows how the first
/// pair differs.
pub(super) fn same_records(
    what: &str,
    found: &[AuditRecord],
    expected: &[AuditRecord],
) -> Result<(), Violation> {
    let mut pairs = (1..).zip(found.iter().zip(expected));
    if let Some((n, (found, expected))) = pairs.find(|(_, (found, expected))| found != expected) {
        let call = format!("number {n} of {what}");
        return Err(expect::differing(&call, fields(found), fields(expected)));
    }
    expect::equal(&format!("the number of {what}"), &found.len(), &expected.len())
}

fn fields(record: &AuditRecord) -> [String; 5] {
    [
        format!("{:?}", record.id),
        format!("at {}", record.at),
        format!("org {:?}", record.org.as_str()),
        format!("key {}", record.key),
        format!("{:?}", record.event),
    ]
}

/// A time that is one microsecond after a whole second.
fn an_hour_ago() -> Timestamp {
    let now = Timestamp::from(SystemTime::now()).saturating_sub(Duration::from_secs(3_600));
    let part = now.unix_micros().rem_euclid(1_000_000).unsigned_abs();
    now.saturating_sub(Duration::from_micros(part)).saturating_add(Duration::from_micros(1))
}
