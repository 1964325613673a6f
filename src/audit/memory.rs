//! An audit log in memory.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;

use crate::audit::log::{AuditCursor, AuditLog, AuditPage, AuditQuery, AuditScope, Position};
use crate::audit::record::{AuditEvent, AuditRecord};
use crate::audit::sink::{AuditError, AuditSink};
use crate::audit::usage::{UsageBucket, UsageCounts, UsageQuery};
use crate::key::id::KeyId;
use crate::org::OrgId;
use crate::runtime::clock::Timestamp;

/// An audit log in memory, for tests and for services that do not need the log after a
/// restart. When it is full, the oldest records are dropped; [`MemoryAuditLog::dropped`]
/// counts them. The counts of [`usage`](AuditLog::usage) stay.
pub struct MemoryAuditLog {
    capacity: usize,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    records: BTreeMap<AuditCursor, AuditRecord>,
    indexes: HashMap<Index, BTreeSet<AuditCursor>>,
    usage: HashMap<(OrgId, KeyId), BTreeMap<Timestamp, UsageCounts>>,
    dropped: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Index {
    KeyRequests(OrgId, KeyId),
    KeyChanges(OrgId, KeyId),
    OrgChanges(OrgId),
}

impl MemoryAuditLog {
    /// A log that keeps a million records, some 200 MB.
    pub fn new() -> Self {
        Self::with_capacity(1_000_000)
    }

    /// A log that keeps at most `capacity` records.
    pub fn with_capacity(records: usize) -> Self {
        Self { capacity: records, state: Mutex::default() }
    }

    /// The number of records.
    pub fn len(&self) -> usize {
        self.lock().records.len()
    }

    /// Whether there is no record.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The number of records dropped for newer ones.
    pub fn dropped(&self) -> u64 {
        self.lock().dropped
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Default for MemoryAuditLog {
    fn default() -> Self {
        Self::new()
    }
}

/// Shows only the number of records: they belong to many organisations.
impl fmt::Debug for MemoryAuditLog {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryAuditLog").field("records", &self.len()).finish_non_exhaustive()
    }
}

impl State {
    fn insert(&mut self, record: &AuditRecord) {
        let cursor = AuditCursor::of(record);
        if self.records.contains_key(&cursor) {
            return;
        }
        if let Some(counts) = UsageCounts::of(record) {
            let hours = self.usage.entry((record.org.clone(), record.key)).or_default();
            hours.entry(UsageBucket::hour_of(record.at)).or_default().add(counts);
        }
        for index in indexes_of(record) {
            self.indexes.entry(index).or_default().insert(cursor);
        }
        self.records.insert(cursor, record.clone());
    }

    fn remove_oldest(&mut self) {
        let Some((cursor, record)) = self.records.pop_first() else { return };
        for index in indexes_of(&record) {
            if let Some(cursors) = self.indexes.get_mut(&index) {
                cursors.remove(&cursor);
                if cursors.is_empty() {
                    self.indexes.remove(&index);
                }
            }
        }
    }
}

fn indexes_of(record: &AuditRecord) -> Vec<Index> {
    let (org, key) = (record.org.clone(), record.key);
    match record.event {
        AuditEvent::Request(_) => vec![Index::KeyRequests(org, key)],
        AuditEvent::Change(_) => vec![Index::KeyChanges(org.clone(), key), Index::OrgChanges(org)],
    }
}

#[async_trait]
impl AuditSink for MemoryAuditLog {
    async fn record(&self, batch: &[AuditRecord]) -> Result<(), AuditError> {
        let mut state = self.lock();
        for record in batch {
            state.insert(record);
            if state.records.len() > self.capacity {
                state.remove_oldest();
                state.dropped += 1;
            }
        }
        Ok(())
    }
}

#[async_trait]
impl AuditLog for MemoryAuditLog {
    async fn page(&self, query: &AuditQuery) -> Result<AuditPage, AuditError> {
        let org = query.org.clone();
        let index = match query.scope {
            AuditScope::KeyRequests(key) => Index::KeyRequests(org, key),
            AuditScope::KeyChanges(key) => Index::KeyChanges(org, key),
            AuditScope::OrgChanges => Index::OrgChanges(org),
        };
        let state = self.lock();
        let none = BTreeSet::new();
        let cursors = state.indexes.get(&index).unwrap_or(&none);
        let (in_range, fetch) = (cursors.range(query.range()), query.to_fetch());
        let found: Vec<&AuditCursor> = match query.position {
            Position::After(_) => in_range.take(fetch).collect(),
            Position::Newest | Position::Before(_) => in_range.rev().take(fetch).collect(),
        };
        let records = found.into_iter().filter_map(|c| state.records.get(c).cloned()).collect();
        Ok(AuditPage::assemble(query, records))
    }

    async fn usage(&self, query: &UsageQuery) -> Result<Vec<UsageBucket>, AuditError> {
        let state = self.lock();
        let hours = state.usage.get(&(query.org.clone(), query.key));
        let asked = hours.into_iter().flatten().filter(|(hour, _)| query.takes(**hour));
        Ok(asked.map(|(hour, counts)| UsageBucket { start: *hour, counts: *counts }).collect())
    }

    async fn purge_before(&self, instant: Timestamp) -> Result<u64, AuditError> {
        let mut state = self.lock();
        let kept_from = UsageCounts::kept_from(instant);
        state.usage.retain(|_, hours| {
            *hours = hours.split_off(&kept_from);
            !hours.is_empty()
        });
        let mut purged = 0;
        while state.records.first_key_value().is_some_and(|(c, _)| c.at() < instant) {
            state.remove_oldest();
            purged += 1;
        }
        Ok(purged)
    }
}
