//! Pages of a memory log.

use std::pin::pin;
use std::time::Duration;

use keygate::audit::{
    AuditEvent, AuditId, AuditPage, AuditQuery, AuditRecord, AuditScope, ChangeAction, ChangeEvent,
    ChangePhase, Outcome, Position, RequestEvent,
};
use keygate::*;
use proptest::prelude::*;

use crate::support::org;
use crate::{poll_once, request};

/// Records that often share their time.
fn records() -> impl Strategy<Value = Vec<AuditRecord>> {
    let record = (0i64..6, any::<u8>(), 0u8..2, any::<bool>());
    proptest::collection::vec(record, 0..40).prop_map(|all| {
        let made = all.into_iter().enumerate().map(|(at, (time, shuffle, key, change))| {
            let mut id = [0; 16];
            (id[14], id[15]) = (shuffle, u8::try_from(at).unwrap());
            let event = if change {
                AuditEvent::Change(ChangeEvent::new(
                    "ada",
                    ChangeAction::Updated,
                    ChangePhase::Begun,
                ))
            } else {
                AuditEvent::Request({
                    let mut event = RequestEvent::new("GET", "/", Outcome::Allowed);
                    event.status = Some(200);
                    event
                })
            };
            AuditRecord {
                id: AuditId::from_bytes(id),
                at: Timestamp::from_unix_micros(time).unwrap(),
                org: org("acme"),
                key: KeyId::from_bytes([key; 16]),
                event,
            }
        });
        made.collect()
    })
}

fn page(log: &MemoryAuditLog, scope: AuditScope, position: Position, limit: usize) -> AuditPage {
    let query = AuditQuery::new(org("acme"), scope).at(position).limit(limit);
    poll_once(pin!(log.page(&query))).unwrap().unwrap()
}

fn write(log: &MemoryAuditLog, records: &[AuditRecord]) {
    poll_once(pin!(log.record(records))).unwrap().unwrap();
}

proptest! {
    #[test]
    fn pages_contain_every_record_once_in_both_directions(
        records in records(),
        later in records(),
        limit in 1usize..7,
        which in 0u8..4,
    ) {
        let key = KeyId::from_bytes([which % 2; 16]);
        let scope = match which {
            0 => AuditScope::OrgChanges,
            1 => AuditScope::KeyChanges(key),
            _ => AuditScope::KeyRequests(key),
        };
        let in_scope = |record: &&AuditRecord| match scope {
            AuditScope::OrgChanges => request(record).is_none(),
            AuditScope::KeyChanges(key) => record.key == key && request(record).is_none(),
            AuditScope::KeyRequests(key) => record.key == key && request(record).is_some(),
        };
        let log = MemoryAuditLog::new();
        write(&log, &records);
        write(&log, &records); // written again, as after a batch that timed out
        let mut expected: Vec<_> = records.iter().filter(in_scope).cloned().collect();
        expected.sort_by_key(|record| std::cmp::Reverse((record.at, record.id)));

        let mut pages = vec![page(&log, scope, Position::Newest, limit)];
        prop_assert_eq!(pages[0].newer, None);
        while let Some(older) = pages.last().unwrap().older {
            // Newer records that arrive in the meantime move nothing.
            let later: Vec<_> = later.iter().map(|record| AuditRecord {
                at: record.at.saturating_add(Duration::from_secs(1)),
                ..record.clone()
            }).collect();
            write(&log, &later);
            let cursor = older.to_string().parse().unwrap();
            pages.push(page(&log, scope, Position::Before(cursor), limit));
            let last = pages.last().unwrap();
            prop_assert!(!last.records.is_empty() && last.newer.is_some());
            prop_assert!(pages.len() <= expected.len(), "the pages repeat");
        }
        let walked: Vec<_> = pages.iter().flat_map(|page| page.records.clone()).collect();
        prop_assert_eq!(&walked, &expected);
        let full = pages.iter().rev().skip(1).all(|page| page.records.len() == limit);
        prop_assert!(full, "only the last page may be short");

        // Then back over the same records to those that arrived in the meantime.
        let mut back = Vec::new();
        let mut newer = pages.last().unwrap().newer;
        while let Some(cursor) = newer {
            let page = page(&log, scope, Position::After(cursor), limit);
            prop_assert!(page.older.is_some());
            back.splice(0..0, page.records);
            prop_assert!(back.len() <= expected.len() + later.len(), "the pages repeat");
            newer = page.newer;
        }
        if pages.len() > 1 {
            back.retain(|record| record.at < Timestamp::from_unix_micros(1_000_000).unwrap());
            let on_last_page = pages.last().unwrap().records.len();
            prop_assert_eq!(&back[..], &expected[..expected.len() - on_last_page]);
        }
    }

    #[test]
    fn purging_removes_exactly_the_older_records(records in records(), before in 0i64..7) {
        let log = MemoryAuditLog::new();
        write(&log, &records);
        let instant = Timestamp::from_unix_micros(before).unwrap();
        let old = records.iter().filter(|record| record.at < instant).count();
        let purged = poll_once(pin!(log.purge_before(instant))).unwrap().unwrap();
        prop_assert_eq!((purged, log.len()), (old as u64, records.len() - old));
        for scope in [AuditScope::OrgChanges, AuditScope::KeyRequests(KeyId::from_bytes([0; 16]))] {
            let page = page(&log, scope, Position::Newest, 200);
            prop_assert!(page.records.iter().all(|record| record.at >= instant));
        }
    }
}

#[test]
fn a_full_memory_log_drops_its_oldest_records_and_counts_them() {
    let log = MemoryAuditLog::with_capacity(3);
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    let many = records().new_tree(&mut runner).unwrap();
    let mut records = proptest::strategy::ValueTree::current(&many);
    records.sort_by_key(|record| (record.at, record.id));
    assert!(records.len() > 3, "{}", records.len());
    write(&log, &records);
    assert_eq!((log.len(), log.dropped()), (3, records.len() as u64 - 3));
    let newest = page(&log, AuditScope::OrgChanges, Position::Newest, 200).records;
    assert!(newest.iter().all(|record| records[records.len() - 3..].contains(record)));
}
