//! The stores against the same work written by hand: `cargo bench -p keygate-benches --bench stores`.
//!
//! Both sides take turns, round by round, and what counts is the median of the
//! rounds' ratios: a machine that is busy with something else slows both. With
//! `KEYGATE_TEST_POSTGRES` another PostgreSQL server than the local one is used.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::print_stdout,
    reason = "a bench"
)]

mod data;
mod measure;
mod postgres;
mod sqlite;

use crate::data::Data;
use crate::measure::{Bench, Comparison};

fn main() {
    let bench = Bench::new();
    let data = Data::new();
    println!(
        "{} keys, {} threads; per second: median (min..max)\n",
        data.keys.len(),
        bench.threads
    );
    println!("{}", Comparison::heading());
    let mut comparisons = sqlite::compare(&bench, &data);
    comparisons.extend(postgres::compare(&bench, &data));
    println!();
    for comparison in comparisons {
        println!("{}", comparison.verdict());
    }
}
