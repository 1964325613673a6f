//! `KeyManager::verify` through a warm `CachedStore<PostgresStore>` that follows the
//! changes, against `MemoryStore`: `cargo bench -p keygate-benches --bench cache`.
//!
//! Both have the same 1,000 keys and take turns on them in random order. What a cold
//! cache costs is in the bench of the stores. With `KEYGATE_TEST_POSTGRES` another
//! PostgreSQL server than the local one is used.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::print_stdout,
    reason = "a bench"
)]

mod support;

use std::env;
use std::hint::black_box;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use keygate::store::{CacheState, PostgresOptions, import};
use keygate::{Actor, CachedStore, KeyManager, MemoryStore, NewKey, OrgId, PostgresStore};
use tokio::runtime::Runtime;

use crate::support::Spread;

const ORGS: usize = 50;
const KEYS_PER_ORG: usize = 20;
const ROUNDS: usize = 201;
const TURN: usize = 20_000;
const TARGET: f64 = 2.0;

fn main() {
    let runtime = Runtime::new().unwrap();
    let url = env::var("KEYGATE_TEST_POSTGRES")
        .unwrap_or_else(|_| "postgres://postgres@127.0.0.1:5432/test".to_owned());
    let schema = format!("keygate_bench_{:x}", std::process::id());
    runtime.block_on(compare(&url, &schema));
    runtime.block_on(async {
        let (client, connection) =
            tokio_postgres::connect(&url, tokio_postgres::NoTls).await.unwrap();
        tokio::spawn(connection);
        client.batch_execute(&format!("DROP SCHEMA IF EXISTS {schema} CASCADE")).await.unwrap();
    });
}

async fn compare(url: &str, schema: &str) {
    let memory = std::sync::Arc::new(MemoryStore::new());
    let in_memory = KeyManager::builder(memory.clone()).build().unwrap();
    let mut secrets = Vec::new();
    for org in 0..ORGS {
        let actor = Actor::new(OrgId::new(format!("org-{org}")).unwrap(), "bench");
        for _ in 0..KEYS_PER_ORG {
            let entries = ["10.0.0.0/8", "192.0.2.0/24", "2001:db8::/32", "203.0.113.0/24"];
            let new = NewKey::named("CI deploy").unwrap().allow(entries).unwrap();
            let issued = in_memory.create(&actor, new).await.unwrap();
            secrets.push(issued.secret.expose_secret().to_owned());
        }
    }
    // An order that has nothing to do with that of their making.
    secrets.sort_unstable();
    let postgres: PostgresStore =
        PostgresOptions::from_url(url).unwrap().schema(schema).unwrap().connect().await.unwrap();
    import(&memory, &postgres).await.unwrap();
    let cached = CachedStore::builder(postgres.clone(), Duration::from_secs(5))
        .feed(postgres.changes())
        .build()
        .unwrap();
    let through_cache = KeyManager::builder(cached.clone()).build().unwrap();
    while cached.health().state != CacheState::Following {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }

    let ip = Some(IpAddr::from([203, 0, 113, 7]));
    // The time of one call, in nanoseconds.
    let turn = async |keys: &KeyManager| {
        let started = Instant::now();
        for secret in secrets.iter().cycle().take(TURN) {
            black_box(keys.verify(secret, ip).await.unwrap());
        }
        started.elapsed().as_secs_f64() * 1e9 / TURN as f64
    };
    let (mut by_memory, mut by_cache, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..=ROUNDS {
        let (memory, cache) = (turn(&in_memory).await, turn(&through_cache).await);
        // The first one fills the cache.
        if round > 0 {
            by_memory.push(memory);
            by_cache.push(cache);
            ratios.push(cache / memory);
        }
    }
    assert_eq!(cached.health().state, CacheState::Following);
    println!("nanoseconds a call: median (middle half) of {ROUNDS} rounds");
    println!("MemoryStore                     {}", Spread::of(by_memory).show(1));
    println!("warm CachedStore<PostgresStore> {}", Spread::of(by_cache).show(1));
    let ratio = Spread::of(ratios).show(2);
    println!("warm cache: {ratio} times the MemoryStore figure (target {TARGET})");
}
