//! Batches of requests of which some are stored already, and those of many partitions.

use std::time::Duration;

use keygate::AuditSink;
use keygate::audit::AuditRecord;

use crate::partitions::{WEEK, counted, hourly, hours_ago, now, read, request};
use crate::postgres_support::{Schema, count};
use crate::support::eventually;

#[tokio::test]
#[ignore = "needs PostgreSQL"]
async fn records_with_one_id_and_different_times_are_all_written() {
    let schema = Schema::new();
    let store = schema.store().await;
    let first = request(1, hours_ago(1));
    let second = request(1, hours_ago(0));
    store.record(std::slice::from_ref(&first)).await.unwrap();
    store.record(&[first.clone(), second.clone()]).await.unwrap();
    assert_eq!(read(&store).await, [second, first]);
    assert_eq!(counted(&store).await, 2);
}

/// Each time that the batch is written, one more of its records is.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
#[ignore = "needs PostgreSQL"]
async fn a_batch_is_written_while_its_records_are_written_one_by_one() {
    const RECORDS: u64 = 8;
    let schema = Schema::new();
    let store = schema.store().await;
    let at = hours_ago(0);
    let batch: Vec<_> = (1..=RECORDS)
        .map(|number| request(number, at.saturating_add(Duration::from_micros(number))))
        .collect();
    let insert = async |record: &AuditRecord| {
        let insert = format!(
            "INSERT INTO requests (key, at, id, org, method, endpoint, status, outcome) \
             VALUES ('{}', {}, '{}', 'acme', 'GET', '/', 200, 'allowed')",
            record.key,
            record.at.unix_micros(),
            record.id
        );
        schema.lock(&insert).await
    };
    let mut other = insert(&batch[0]).await;
    let write = tokio::spawn({
        let batch = batch.clone();
        async move { store.record(&batch).await }
    });
    let mut waited = schema.until_lock_wait().await;
    for record in &batch[1..] {
        let next = insert(record).await;
        other.batch_execute("COMMIT").await.unwrap();
        waited = eventually("it waits for the next record", async || {
            let waits = schema.lock_waits().await;
            (!waits.is_empty() && waits != waited).then_some(waits)
        })
        .await;
        other = next;
    }
    other.batch_execute("COMMIT").await.unwrap();
    let written = write.await.unwrap();
    assert!(written.is_ok(), "{written:?}");
    let db = schema.db().await;
    assert_eq!(count(&db, "SELECT count(*) FROM requests").await, RECORDS.cast_signed());
}

#[tokio::test]
#[ignore = "needs PostgreSQL"]
async fn the_partitions_of_a_batch_are_made_in_small_transactions() {
    let schema = Schema::new();
    let (store, db) = hourly(&schema).await;
    let batch: Vec<_> =
        (1..=100_u32).map(|week| request(week.into(), now().saturating_add(WEEK * week))).collect();
    store.record(&batch).await.unwrap();
    assert_eq!(read(&store).await.len(), 100);
    let made = "SELECT max(count) FROM (SELECT count(*) FROM pg_class JOIN pg_inherits \
                ON inhrelid = oid WHERE inhparent = 'requests'::regclass \
                GROUP BY pg_class.xmin::text) AS transactions";
    let made = count(&db, made).await;
    assert!(made <= 10, "{made}");
}
