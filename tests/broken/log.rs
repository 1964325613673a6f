//! An audit log behind a mutex, with one fault.

use std::borrow::Cow;
use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::{IpAddr, Ipv4Addr};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use keygate::audit::{
    AuditCursor, AuditEvent, AuditFilter, AuditId, AuditPage, AuditQuery, AuditRecord, AuditScope,
    ChangePhase, ChangedField, FieldValue, Outcome, Position, SecretUsed, UsageBucket, UsageCounts,
    UsageQuery,
};
use keygate::{AuditError, AuditLog, AuditSink, KeyId, OrgId, Timestamp};

use super::fault::LogFault;
use super::{gap, later};

/// See [`LogFault`].
#[derive(Clone, Debug)]
pub(crate) struct BrokenLog {
    pub(super) fault: LogFault,
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Default)]
pub(super) struct State {
    pub(super) records: Vec<AuditRecord>,
    /// How many records precede the one that each cursor points to.
    counts: HashMap<AuditId, usize>,
    purged_before: Option<Timestamp>,
    pub(super) purged: Vec<AuditRecord>,
    counted: HashSet<AuditId>,
    pub(super) usage: Usage,
    pub(super) is_open: bool,
    pub(super) is_reopened: bool,
    /// How many records there were when the log was opened.
    pub(super) known_from: usize,
}

/// The counts of each hour of a key.
type Usage = BTreeMap<(Timestamp, OrgId, KeyId), UsageCounts>;

impl BrokenLog {
    pub(crate) fn new(fault: LogFault) -> Self {
        Self { fault, state: Arc::default() }
    }

    fn is(&self, fault: LogFault) -> bool {
        self.fault == fault
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// The record as the faulty columns store it.
    fn stored(&self, record: &AuditRecord) -> AuditRecord {
        let mut record = record.clone();
        let micros = record.at.unix_micros();
        match self.fault {
            LogFault::Milliseconds => {
                record.at = Timestamp::from_unix_micros(micros.div_euclid(1_000) * 1_000).unwrap();
            }
            LogFault::TimesFrom1970 => {
                record.at = Timestamp::from_unix_micros(micros.max(0)).unwrap();
            }
            _ => {}
        }
        match (&mut record.event, self.fault) {
            (AuditEvent::Request(request), LogFault::MethodsInUpperCase) => {
                request.method = Cow::Owned(request.method.to_uppercase());
            }
            (AuditEvent::Request(request), LogFault::EndpointsAreCutOff) => {
                request.endpoint = request.endpoint.chars().take(255).collect();
            }
            (AuditEvent::Request(request), LogFault::UnknownAddressIsZero) => {
                request.ip = request.ip.or(Some(IpAddr::from(Ipv4Addr::UNSPECIFIED)));
            }
            (AuditEvent::Request(request), LogFault::CountryIsForgotten) => request.country = None,
            (AuditEvent::Request(request), LogFault::NoStatusIsZero) => {
                request.status = request.status.or(Some(0));
            }
            (AuditEvent::Request(request), LogFault::AbortedIsAllowed)
                if request.outcome == Outcome::Aborted =>
            {
                request.outcome = Outcome::Allowed;
            }
            (AuditEvent::Request(request), LogFault::CountIsOne) => request.count = 1,
            (AuditEvent::Request(request), LogFault::SecretIsCurrent) => {
                request.secret = SecretUsed::Current;
            }
            (AuditEvent::Change(change), LogFault::AbandonedIsBegun) => {
                change.phase = ChangePhase::Begun;
            }
            (AuditEvent::Change(change), LogFault::ActorsAreTrimmed) => {
                change.actor = change.actor.chars().take(64).collect::<String>().into();
            }
            (AuditEvent::Change(change), LogFault::FieldsAreTexts) => {
                let text = |value: &FieldValue| match value {
                    FieldValue::List(list) => FieldValue::Text(list.join(", ")),
                    other => other.clone(),
                };
                let fields = change.fields.iter().map(|field| ChangedField {
                    before: text(&field.before),
                    after: text(&field.after),
                    ..field.clone()
                });
                change.fields = fields.collect();
            }
            _ => {}
        }
        record
    }

    fn write(&self, batch: &[AuditRecord]) -> Result<(), AuditError> {
        let mut state = self.lock();
        let known: HashSet<AuditId> = state.records.iter().map(|record| record.id).collect();
        if batch.iter().any(|record| known.contains(&record.id)) {
            match self.fault {
                LogFault::RepeatsFail => return Err(AuditError::rejected("duplicate id")),
                LogFault::KnownRecordDropsBatch => return Ok(()),
                _ => {}
            }
        }
        for (n, record) in batch.iter().enumerate() {
            let repeated = match self.fault {
                LogFault::RepeatsAreStored | LogFault::CheckThenWrite => false,
                LogFault::RepeatsWithinABatch => known.contains(&record.id),
                LogFault::ReopenedWithoutIds => {
                    state.records.iter().skip(state.known_from).any(|other| other.id == record.id)
                }
                LogFault::SameInstantIsSame => {
                    let same =
                        |other: &AuditRecord| (other.at, other.key) == (record.at, record.key);
                    state.records.iter().any(same)
                }
                _ => state.records.iter().any(|other| other.id == record.id),
            };
            let late = self.is(LogFault::BatchStopsAtFiveHundred) && n >= 500;
            let forbidden = self.is(LogFault::PurgeForbidsOldRecords)
                && state.purged_before.is_some_and(|instant| record.at < instant);
            if !repeated && !late && !forbidden {
                let stored = self.stored(record);
                state.records.push(stored);
            }
        }
        self.count(&mut state, batch);
        Ok(())
    }

    /// Counts the records that are not counted yet.
    fn count(&self, state: &mut State, batch: &[AuditRecord]) {
        for record in batch {
            let is_new = state.counted.insert(record.id);
            let counts = match (UsageCounts::of(record), &record.event, self.fault) {
                (None, AuditEvent::Change(_), LogFault::ChangesAreCounted) => Some(one()),
                (Some(_), AuditEvent::Request(_), LogFault::CountsRecordsNotRequests) => {
                    let mut single = record.clone();
                    if let AuditEvent::Request(request) = &mut single.event {
                        request.count = 1;
                    }
                    UsageCounts::of(&single)
                }
                (counts, _, _) => counts,
            };
            let at = match self.fault {
                LogFault::HoursAreRounded => record.at.saturating_add(Duration::from_secs(1_800)),
                _ => record.at,
            };
            if let Some(counts) = counts
                && (is_new || self.is(LogFault::RepeatsAreCounted))
            {
                let of = (UsageBucket::hour_of(at), record.org.clone(), record.key);
                state.usage.entry(of).or_default().add(counts);
            }
        }
    }

    fn is_in_scope(&self, record: &AuditRecord, query: &AuditQuery) -> bool {
        let same_org = match self.fault {
            LogFault::OrgIsIgnored => true,
            LogFault::OrgsIgnoreCase => {
                record.org.as_str().eq_ignore_ascii_case(query.org.as_str())
            }
            _ => record.org == query.org,
        };
        let any_key = self.is(LogFault::KeyIsIgnored);
        let (same_key, same_kind) = match query.scope {
            AuditScope::KeyRequests(key) => (key == record.key, is_request(record)),
            AuditScope::KeyChanges(key) => (key == record.key, !is_request(record)),
            AuditScope::OrgChanges => (true, !is_request(record)),
        };
        same_org && (same_key || any_key) && (same_kind || self.is(LogFault::KindIsIgnored))
    }
}

fn is_request(record: &AuditRecord) -> bool {
    matches!(record.event, AuditEvent::Request(_))
}

#[async_trait::async_trait]
impl AuditSink for BrokenLog {
    async fn record(&self, batch: &[AuditRecord]) -> Result<(), AuditError> {
        match self.fault {
            LogFault::AnswersTooSoon => {
                let (log, batch) = (self.clone(), batch.to_vec());
                later(5, async move { log.write(&batch) });
                Ok(())
            }
            LogFault::EmptyBatchFails if batch.is_empty() => {
                Err(AuditError::unavailable("syntax error: VALUES without a row"))
            }
            LogFault::CheckThenWrite => {
                let known: HashSet<AuditId> = self.lock().records.iter().map(|r| r.id).collect();
                let mut seen = HashSet::new();
                let new = batch.iter().filter(|r| !known.contains(&r.id) && seen.insert(r.id));
                let new: Vec<AuditRecord> = new.cloned().collect();
                gap().await;
                self.write(&new)
            }
            LogFault::CountsAreReadAndWritten => {
                let before = self.lock().usage.clone();
                self.write(batch)?;
                let after = std::mem::replace(&mut self.lock().usage, before);
                gap().await;
                self.lock().usage = after;
                Ok(())
            }
            _ => self.write(batch),
        }
    }
}

#[async_trait::async_trait]
impl AuditLog for BrokenLog {
    async fn page(&self, query: &AuditQuery) -> Result<AuditPage, AuditError> {
        let mut query = query.clone();
        if self.is(LogFault::PagesOfAHundred) {
            query = query.clone().limit(query.limit.min(100));
        }
        let filter = query.filter.clone();
        match self.fault {
            LogFault::FilterIsIgnored | LogFault::FilterAfterThePage => {
                query.filter = AuditFilter::default();
            }
            LogFault::UntilIsIncluded => {
                let next = |until: Timestamp| until.saturating_add(Duration::from_micros(1));
                query.filter.until = query.filter.until.map(next);
            }
            _ => {}
        }
        let mut state = self.lock();
        let in_scope = |record: &&AuditRecord| match self.fault {
            // The kind is checked only after the page is cut.
            LogFault::KindIsFilteredAfterwards => {
                record.org == query.org && Some(record.key) == key_of(query.scope)
            }
            _ => self.is_in_scope(record, &query),
        };
        let mut records: Vec<AuditRecord> =
            state.records.iter().filter(in_scope).cloned().collect();
        let signed = |record: &AuditRecord| i128::from_be_bytes(record.id.to_bytes());
        records.sort_by_key(|record| Reverse(AuditCursor::of(record)));
        match self.fault {
            LogFault::TiesAreSigned => records.sort_by_key(|r| Reverse((r.at, signed(r)))),
            LogFault::OldestFirst => records.reverse(),
            LogFault::ReopenedOldestFirst if state.is_reopened => records.reverse(),
            LogFault::EmptyLogIsAnError if records.is_empty() => {
                return Err(AuditError::unavailable("no rows"));
            }
            LogFault::OrgChangesOfOneKey if query.scope == AuditScope::OrgChanges => {
                let first = records.first().map(|record| record.key);
                records.retain(|record| Some(record.key) == first);
            }
            _ => {}
        }
        let is_known = |c: AuditCursor| state.records.iter().any(|record| record.id == c.id());
        match query.position {
            Position::Before(c) | Position::After(c)
                if self.is(LogFault::CursorNeedsItsRecord) && !is_known(c) =>
            {
                return Err(AuditError::unavailable("no such record"));
            }
            _ => {}
        }
        let all = records.clone();
        let time_only = self.is(LogFault::CursorIsATime);
        match query.position {
            Position::Newest => {}
            Position::Before(c) if self.is(LogFault::CursorIsACount) => {
                let count = state.counts.get(&c.id()).copied().unwrap_or(0);
                records = records.split_off(count.min(records.len()));
            }
            Position::Before(c) => records.retain(|record| match time_only {
                true => record.at < c.at(),
                false => AuditCursor::of(record) < c,
            }),
            Position::After(c) => {
                records.retain(|record| match time_only {
                    true => record.at > c.at(),
                    false => AuditCursor::of(record) > c,
                });
                if !self.is(LogFault::AfterGivesTheNewest) {
                    records.reverse();
                }
            }
        }
        if let Some(since) = query.filter.since {
            records.retain(|record| since <= record.at);
        }
        if let Some(until) = query.filter.until {
            records.retain(|record| record.at < until);
        }
        let more = records.len() > query.limit;
        records.truncate(query.to_fetch());
        let is_empty = records.is_empty();
        if self.is(LogFault::AfterGivesTheNewest) && matches!(query.position, Position::After(_)) {
            records.reverse();
        }
        let mut page = AuditPage::assemble(&query, records);
        match self.fault {
            LogFault::FullPagesLeadOn if !more && page.records.len() == query.limit => {
                page.older = page.records.last().map(AuditCursor::of);
            }
            LogFault::FilterAfterThePage => {
                page.records.retain(|record| filter.matches(record));
                if page.records.len() < query.limit {
                    page.older = None;
                }
            }
            LogFault::ShortPagesAreTheLast if page.records.len() < query.limit => page.older = None,
            LogFault::EmptyPageLeadsNowhere if is_empty => page = AuditPage::default(),
            LogFault::KindIsFilteredAfterwards => {
                page.records.retain(|record| self.is_in_scope(record, &query));
            }
            LogFault::CursorIsACount => {
                if let Some(older) = page.older {
                    let count = all.iter().position(|record| record.id == older.id());
                    state.counts.insert(older.id(), count.unwrap_or(0) + 1);
                }
            }
            _ => {}
        }
        Ok(page)
    }

    async fn usage(&self, query: &UsageQuery) -> Result<Vec<UsageBucket>, AuditError> {
        let state = self.lock();
        let asked = state.usage.iter().filter(|((hour, org, key), _)| {
            let same_org = *org == query.org || self.is(LogFault::UsageIgnoresOrg);
            let is_end = *hour == query.until && self.is(LogFault::UntilIsCounted);
            let in_time = query.from <= *hour && (*hour < query.until || is_end);
            same_org && *key == query.key && in_time
        });
        Ok(asked
            .map(|((hour, ..), counts)| UsageBucket { start: *hour, counts: *counts })
            .collect())
    }

    async fn purge_before(&self, instant: Timestamp) -> Result<u64, AuditError> {
        let mut state = self.lock();
        if self.is(LogFault::PurgeTakesAllCounts) {
            state.usage.clear();
        }
        let before = state.records.len();
        let old = state.records.iter().filter(|record| record.at < instant).cloned();
        let old: Vec<AuditRecord> = old.collect();
        state.purged.extend(old);
        state.records.retain(|record| match self.fault {
            LogFault::PurgeTakesTheInstant => record.at > instant,
            LogFault::PurgeKeepsChanges => record.at >= instant || !is_request(record),
            _ => record.at >= instant,
        });
        state.purged_before = state.purged_before.max(Some(instant));
        let left = state.records.len();
        Ok(match self.fault {
            LogFault::PurgeTellsWhatIsLeft => left as u64,
            _ => (before - left) as u64,
        })
    }
}

/// One request that was allowed.
fn one() -> UsageCounts {
    let mut counts = UsageCounts::default();
    counts.allowed = 1;
    counts
}

fn key_of(scope: AuditScope) -> Option<KeyId> {
    match scope {
        AuditScope::KeyRequests(key) | AuditScope::KeyChanges(key) => Some(key),
        AuditScope::OrgChanges => None,
    }
}
