//! Purges drop old partitions, beside others who use the log.

use std::time::Duration;

use keygate::{AuditLog, AuditSink, Timestamp};

use crate::partitions::{
    HOUR, Partition, YEAR, hourly, hours_ago, left_over, now, older, partitions, read,
    record_hours, request,
};
use crate::postgres_support::{Schema, count};

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
#[ignore = "needs PostgreSQL"]
async fn a_purge_drops_old_partitions_beside_a_writer() {
    let schema = Schema::new();
    let (store, db) = hourly(&schema).await;
    record_hours(&store, 30).await;
    let instant = hours_ago(10).saturating_add(HOUR / 2);
    // One of the same partition, on each side.
    let near =
        [request(100, instant.saturating_sub(Duration::from_micros(1))), request(101, instant)];
    store.record(&near).await.unwrap();
    assert_eq!(older(&db, instant).await.len(), 20);
    let write = async {
        for number in 1_000.. {
            store.record(&[request(number, now())]).await.unwrap();
        }
    };
    let purged = tokio::select! {
        purged = store.purge_before(instant) => purged.unwrap(),
        () = write => unreachable!("it writes until dropped"),
    };
    // The record of that half hour is from the instant, and is kept.
    assert_eq!(purged, 21);
    assert_eq!((older(&db, instant).await, left_over(&db).await), (vec![], 0));
    let old = format!("SELECT count(*) FROM requests WHERE at < {}", instant.unix_micros());
    assert_eq!(count(&db, &old).await, 0);
    let recent = format!(
        "SELECT count(*) FROM requests WHERE at >= {} AND at < {}",
        instant.unix_micros(),
        hours_ago(0).unix_micros()
    );
    assert_eq!(count(&db, &recent).await, 11);
    assert_eq!(store.purge_before(instant).await.unwrap(), 0);
    // What is delivered late is written.
    store.record(&[request(102, hours_ago(20))]).await.unwrap();
    assert_eq!(store.purge_before(instant).await.unwrap(), 1);
    // Partitions of the present and of the future stay.
    let left = partitions(&db).await;
    store.purge_before(Timestamp::MAX).await.unwrap();
    let present = |(_, _, end): &Partition| *end > Some(now().unix_micros());
    let stay: Vec<_> = left.into_iter().filter(present).collect();
    assert!(stay.len() >= 5 && partitions(&db).await == stay, "{stay:?}");
}

#[tokio::test]
#[ignore = "needs PostgreSQL"]
async fn the_records_of_a_large_partition_are_counted_approximately() {
    let schema = Schema::new();
    let (store, db) = hourly(&schema).await;
    store.record(&[request(0, hours_ago(3))]).await.unwrap();
    let fill = format!(
        "INSERT INTO requests (key, at, id, org, method, endpoint, status, outcome) \
         SELECT lpad(to_hex(n % 999), 32, '0')::uuid, {} + n, lpad(to_hex(n), 32, '0')::uuid, \
         'acme', 'GET', '/v1/things/' || n, 200, 'allowed' FROM generate_series(1, 300000) AS n",
        hours_ago(3).unix_micros()
    );
    db.batch_execute(&fill).await.unwrap();
    // Half of its pages are empty when it is dropped.
    let middle = hours_ago(3).saturating_add(Duration::from_micros(150_000));
    assert_eq!(store.purge_before(middle).await.unwrap(), 150_000);
    let rest = store.purge_before(hours_ago(1)).await.unwrap();
    assert!((145_500..154_500).contains(&rest), "{rest}");
}

#[tokio::test]
#[ignore = "needs PostgreSQL"]
async fn a_purge_that_died_half_way_is_finished_by_the_next() {
    let schema = Schema::new();
    let (store, db) = hourly(&schema).await;
    record_hours(&store, 5).await;
    let detach =
        format!("SELECT detach_partitions('{}', {})", schema.name, hours_ago(2).unix_micros());
    assert_eq!(count(&db, &detach).await, 3);
    assert_eq!((left_over(&db).await, read(&store).await.len()), (3, 2));
    // Whatever that one purges.
    assert_eq!(store.purge_before(Timestamp::MIN).await.unwrap(), 3);
    assert_eq!((left_over(&db).await, read(&store).await.len()), (0, 2));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
#[ignore = "needs PostgreSQL"]
async fn requests_of_a_partition_that_stays_in_use_are_purged_and_others_are_written() {
    let schema = Schema::new();
    let (store, db) = hourly(&schema).await;
    record_hours(&store, 5).await;
    // As a backup does.
    let backup = schema.lock("SELECT count(*) FROM requests").await;
    let mut written = 0;
    let write = async {
        for number in 1_000.. {
            store.record(&[request(number, now())]).await.unwrap();
            written += 1;
        }
    };
    let purged = tokio::select! {
        purged = store.purge_before(hours_ago(2)) => purged.unwrap(),
        () = write => unreachable!("it writes until dropped"),
    };
    assert_eq!(purged, 3);
    assert!(written > 0, "writes wait for attempts to detach, and not for the backup");
    assert_eq!(older(&db, hours_ago(2)).await.len(), 3);
    backup.batch_execute("COMMIT").await.unwrap();
    assert_eq!(store.purge_before(hours_ago(2)).await.unwrap(), 0);
    assert_eq!((older(&db, hours_ago(2)).await, left_over(&db).await), (vec![], 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
#[ignore = "needs PostgreSQL"]
async fn partitions_are_made_and_dropped_while_another_one_is_vacuumed() {
    let schema = Schema::new();
    let (store, db) = hourly(&schema).await;
    record_hours(&store, 5).await;
    let (newest, ..) = older(&db, hours_ago(0)).await.pop().unwrap();
    // The lock of VACUUM.
    let lock = format!("LOCK TABLE {newest} IN SHARE UPDATE EXCLUSIVE MODE");
    let vacuum = schema.lock(&lock).await;
    store.record(&[request(9, now().saturating_add(YEAR))]).await.unwrap();
    assert_eq!(store.purge_before(hours_ago(2)).await.unwrap(), 3);
    assert_eq!((older(&db, hours_ago(2)).await, left_over(&db).await), (vec![], 0));
    vacuum.batch_execute("COMMIT").await.unwrap();
}
