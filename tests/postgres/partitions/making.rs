//! Partitions are made ahead, and for records that have none.

use keygate::{AuditSink, Timestamp};
use tokio::task::JoinSet;

use crate::partitions::{
    HOUR, WEEK, YEAR, counted, hourly, hours_ago, now, partitions, read, request,
};
use crate::postgres_support::{Schema, count};

#[tokio::test]
#[ignore = "needs PostgreSQL"]
async fn partitions_are_made_ahead_when_a_store_opens_and_when_records_come_near_their_end() {
    let schema = Schema::new();
    let store = schema.store().await;
    let db = schema.db().await;
    let end = async || partitions(&db).await.last().unwrap().2.unwrap();
    let made = partitions(&db).await;
    assert_eq!((&*made[0].0, made[0].1), ("requests_before", None), "{made:?}");
    assert!(made.windows(2).all(|pair| pair[0].2 == pair[1].1), "without gaps: {made:?}");
    assert!(end().await > now().saturating_add(WEEK * 4).unix_micros(), "{made:?}");
    // As if time had passed.
    let (last, start, _) = made.last().unwrap();
    let drop_last = format!("DROP TABLE {last}");
    db.batch_execute(&drop_last).await.unwrap();
    drop(schema.store().await);
    assert_eq!(partitions(&db).await, made);
    db.batch_execute(&drop_last).await.unwrap();
    store.record(&[request(1, now())]).await.unwrap();
    assert_ne!(partitions(&db).await, made, "those ahead are enough");
    let near = Timestamp::from_unix_micros(start.unwrap() - 1).unwrap();
    store.record(&[request(2, near)]).await.unwrap();
    assert_eq!(partitions(&db).await, made);
    // A store of narrower partitions leaves those that are there.
    drop(schema.options().partition_width(HOUR).connect().await.unwrap());
    assert_eq!(partitions(&db).await, made);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
#[ignore = "needs PostgreSQL"]
async fn records_of_any_time_are_written_and_counted_once() {
    let schema = Schema::new();
    let store = schema.options().partition_width(HOUR).connect().await.unwrap();
    let db = schema.db().await;
    db.batch_execute("DROP TABLE requests_before").await.unwrap();
    let times = [
        Timestamp::MIN,
        Timestamp::from_unix_micros(-1).unwrap(),
        now().saturating_sub(YEAR * 20),
        now().saturating_sub(HOUR * 30),
        now(),
        now().saturating_add(HOUR * 20),
        now().saturating_add(YEAR),
        now().saturating_add(YEAR * 73),
        Timestamp::MAX,
    ];
    let batch: Vec<_> = (1..).zip(times).map(|(number, at)| request(number, at)).collect();
    for _ in 0..2 {
        store.record(&batch).await.unwrap();
    }
    // One of them is new.
    let new = [batch[0].clone(), request(99, now()), batch[3].clone(), batch[3].clone()];
    store.record(&new).await.unwrap();
    let mut expected = [&batch[..], &new[1..2]].concat();
    expected.sort_by_key(|record| std::cmp::Reverse((record.at, record.id)));
    assert_eq!(read(&store).await, expected);
    assert_eq!(counted(&store).await, 10);
    let made = partitions(&db).await;
    assert!(made.len() <= 14, "{made:?}");
    // Those far ahead are wide.
    let (_, start, end) = made.last().unwrap();
    assert_eq!(end.unwrap() - start.unwrap(), 64 * 3_600_000_000);
}

#[tokio::test]
#[ignore = "needs PostgreSQL"]
async fn many_partitions_make_new_ones_wider() {
    let schema = Schema::new();
    let (store, db) = hourly(&schema).await;
    // A clock that jumps ahead week by week.
    for week in 1..=400 {
        store.record(&[request(week.into(), now().saturating_add(WEEK * week))]).await.unwrap();
    }
    let made = partitions(&db).await.len();
    assert!((60..260).contains(&made), "{made}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
#[ignore = "needs PostgreSQL"]
async fn two_stores_make_the_same_partitions_at_once() {
    for _ in 0..5 {
        let schema = Schema::new();
        let (store, db) = hourly(&schema).await;
        let stores = [store, schema.options().partition_width(HOUR).connect().await.unwrap()];
        let write = |number: u64| {
            let store = stores[number as usize % 2].clone();
            let times = [3, 5, 9].map(|hours| hours_ago(hours).saturating_add(HOUR / 2));
            let batch: Vec<_> = times.map(|at| request(number / 2, at)).to_vec();
            async move { store.record(&batch).await }
        };
        let writes = (0..8).map(write).collect::<JoinSet<_>>().join_all().await;
        assert!(writes.iter().all(Result::is_ok), "{writes:?}");
        assert_eq!(read(&stores[0]).await.len(), 12);
        let made = partitions(&db).await;
        assert!(made.windows(2).all(|pair| pair[0].2 <= pair[1].1), "{made:?}");
    }
}

#[tokio::test]
#[ignore = "needs PostgreSQL"]
async fn a_partition_of_any_width_asked_for_lasts_an_hour_to_a_year() {
    for width in [i64::MIN, -1, 0, 1, 300 * 365 * 24 * 3_600_000_000, i64::MAX] {
        let schema = Schema::new();
        let (_store, db) = hourly(&schema).await;
        let add = format!("SELECT make_partitions('{}', '{{}}', {width}, false)", schema.name);
        count(&db, &add).await;
        let made = partitions(&db).await;
        for (name, start, end) in &made[1..] {
            let hours = (end.unwrap() - start.unwrap()) / 3_600_000_000;
            assert!((1..=365 * 24).contains(&hours), "{width}: {name} {hours}");
        }
        assert!(made.len() >= 5, "{width}: {made:?}");
    }
}
