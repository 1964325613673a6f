//! Allocations of a verification and of a request, by the rows of the layer's bench:
//! `cargo bench -p keygate-benches --bench allocations`.
//!
//! Apart from the times, since the counter is an allocator of its own and takes time itself.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::print_stdout,
    reason = "a bench"
)]

mod by_hand;
mod rows;
#[path = "../support/mod.rs"]
mod support;

use std::time::Duration;

use allocation_counter::measure;
use getrandom::SysRng;
use keygate::{Actor, CachedStore, KeyFormat, KeyManager, KeyPatch, MemoryStore, NewKey, OrgId};
use tokio::runtime::Runtime;

use crate::rows::{
    BY_HAND, COMPARE, KEYGATE, NO_AUTH, manager, one_thread, rows, with_all, with_limit,
    without_audit,
};

const REQUESTS: u32 = 1_000;

fn main() {
    // What the manager's own tasks allocate on its thread is not counted.
    let runtime = one_thread();
    let keys = manager(&runtime);
    let mut counts = Vec::new();
    println!("{:<20}{:>12}{:>8}", "a request", "allocations", "bytes");
    let (silent, all, limited) =
        (without_audit(&runtime), with_all(&runtime), with_limit(&runtime));
    for row in &mut rows(&keys, &silent, &all, &limited) {
        row.ask();
        let counted = measure(|| (0..REQUESTS).for_each(|_| row.ask()));
        let [count, bytes] =
            [counted.count_total, counted.bytes_total].map(|n| n as f64 / f64::from(REQUESTS));
        println!("{:<20}{count:>12.2}{bytes:>8.0}", row.name);
        counts.push(count);
    }
    let added = |row: usize| counts[row] - counts[NO_AUTH];
    let [ours, by_hand, its] = [KEYGATE, BY_HAND, COMPARE].map(added);
    println!(
        "keygate adds {ours:.2} allocations, verify by hand {by_hand:.2}, the static compare {its:.2}"
    );
    println!();
    verifications(&runtime);
}

fn verifications(runtime: &Runtime) {
    let _entered = runtime.enter();
    let cached = CachedStore::builder(MemoryStore::new(), Duration::from_secs(5)).build().unwrap();
    let managers = [
        ("memory", KeyManager::builder(MemoryStore::new()).build().unwrap()),
        ("cached", KeyManager::builder(cached).build().unwrap()),
    ];
    let actor = Actor::new(OrgId::new("acme").unwrap(), "ada");
    println!("{:<20}{:>12}", "a verification", "allocations");
    for (store, keys) in managers {
        let create =
            || runtime.block_on(keys.create(&actor, NewKey::named("CI").unwrap())).unwrap();
        let (key, revoked) = (create(), create());
        runtime.block_on(keys.update(&actor, &revoked.key.id, KeyPatch::revoke())).unwrap();
        let unknown = KeyFormat::default().generate(&mut SysRng).unwrap();
        let rows = [
            ("allowed", key.secret.expose_secret()),
            ("revoked", revoked.secret.expose_secret()),
            ("unknown", unknown.expose_secret()),
            ("malformed", "vsp_sk_typo"),
        ];
        for (what, credential) in rows {
            let ask = || drop(runtime.block_on(keys.verify(credential, None)));
            ask();
            let counted = measure(|| (0..REQUESTS).for_each(|_| ask()));
            let count = counted.count_total as f64 / f64::from(REQUESTS);
            println!("{:<20}{count:>12.2}", format!("{store}: {what}"));
        }
    }
}
