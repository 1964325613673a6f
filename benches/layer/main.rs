//! What authentication adds to a request: `cargo bench -p keygate-benches --bench layer`.
//!
//! An axum router without authentication, the same behind layers written by hand, and
//! the same behind `ApiKeyLayer`, all called in process. They take turns; what counts
//! is the time that each adds to the router without. Records of the audit log go
//! through the buffered queue to a sink that counts them. With `-- <row> <number>`, so
//! many requests of one row and nothing else, for a profiler.
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

use std::env;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use crate::rows::{
    BY_HAND, COMPARE, KEYGATE, NO_AUTH, Row, WAITED, manager, one_thread, rows, with_all,
    with_limit, without_audit,
};
use crate::support::Spread;

/// Many short turns: what disturbs one disturbs its neighbours as well.
const ROUNDS: usize = 1_001;
const TURN: u32 = 500;
const TARGET: f64 = 2.5;
/// The row with everything on.
const ALL_ON: usize = KEYGATE + 2;

/// Nanoseconds a request.
fn turn(row: &mut Row) -> f64 {
    let started = Instant::now();
    for _ in 0..TURN {
        row.ask();
    }
    started.elapsed().as_secs_f64() * 1e9 / f64::from(TURN)
}

fn main() {
    let runtime = one_thread();
    let keys = manager(&runtime);
    let (silent, all, limited) =
        (without_audit(&runtime), with_all(&runtime), with_limit(&runtime));
    let mut rows = rows(&keys, &silent, &all, &limited);
    let arguments: Vec<_> = env::args().skip(1).filter(|argument| argument != "--bench").collect();
    if let [name, number] = arguments.as_slice() {
        let row = rows.iter_mut().find(|row| row.name == name).expect("a row of the table");
        return (0..number.parse::<u64>().unwrap()).for_each(|_| row.ask());
    }

    let mut times = vec![Vec::new(); rows.len()];
    for round in 0..=ROUNDS {
        for (row, times) in rows.iter_mut().zip(&mut times) {
            let time = turn(row);
            // The first one warms up.
            if round > 0 {
                times.push(time);
            }
        }
    }
    // What comes of the times of two rows, round by round.
    let pairs = |one: usize, other: usize, of: fn(f64, f64) -> f64| -> Vec<f64> {
        times[one].iter().zip(&times[other]).map(|(one, other)| of(*one, *other)).collect()
    };
    let added = |row| pairs(row, NO_AUTH, |row, no_auth| row - no_auth);

    println!("nanoseconds a request: median (middle half) of {ROUNDS} rounds");
    println!("{:<25}{:<26}added to no auth", "", "whole");
    for (at, row) in rows.iter().enumerate() {
        let whole = Spread::of(times[at].clone()).show(0);
        println!("{:<25}{whole:<26}{}", row.name, Spread::of(added(at)).show(0));
    }
    let report = runtime.block_on(keys.shutdown(Duration::from_secs(10)));
    assert!(report.is_complete(), "{report:?}");
    let (written, waited) = (keys.audit_stats().written, WAITED.load(Relaxed));
    println!("audit records: {written} written; {waited} requests waited for room in the queue");
    let to_keygate = |at| Spread::of(pairs(at, KEYGATE, |row, admitted| row / admitted));
    println!("with everything on, {} of an admission", to_keygate(ALL_ON).show(2));
    for (at, row) in rows.iter().enumerate().skip(ALL_ON + 1) {
        let ratio = to_keygate(at);
        println!("{}: {} of an admission (target below 1)", row.name, ratio.show(2));
    }
    let ratio = |one: usize, other: usize| {
        let ratios = added(one).iter().zip(added(other)).map(|(one, other)| one / other).collect();
        Spread::of(ratios).show(2)
    };
    let by_hand = ratio(BY_HAND, COMPARE);
    println!("verify by hand adds {by_hand} times what the static compare adds");
    let ratio = ratio(KEYGATE, COMPARE);
    println!("keygate adds {ratio} times what the static compare adds (target {TARGET})");
}
