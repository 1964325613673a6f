//! One handler over sockets, unguarded and guarded in several ways, in turns within one run:
//! `cargo bench -p keygate-benches --bench server`.
//!
//! Each server is this program once more, in a process of its own; the load is one thread with
//! 32 connections. An answer counts if its record is written by the end of the turn, so that no
//! queue hides work. The next turn waits for the other records, which the server's processor
//! time includes. With `KEYGATE_TEST_POSTGRES`, the rows on PostgreSQL as well.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::print_stdout,
    reason = "a bench"
)]

mod load;
mod serve;
#[path = "../support/mod.rs"]
mod support;

use std::env;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use tempfile::TempDir;
use tokio::runtime::{Builder, Runtime};

use crate::load::{CONNECTIONS, Load};
use crate::serve::{KINDS, Keys, Kind, Log, MEMORY, SQLITE_LOG, UNGUARDED};
use crate::support::Spread;
use crate::support::client::Client;
use crate::support::server::Server;

const ROUNDS: usize = 7;
const TURN: Duration = Duration::from_secs(1);
/// How many keys are used, in random order.
const KEYS_IN_USE: [usize; 2] = [1, 1_000];
const PATIENCE: Duration = Duration::from_secs(60);

/// A server, and what was measured of it with one number of keys.
struct Row {
    kind: &'static Kind,
    server: Server,
    load: Load,
    answers: u64,
    measured: [Measured; KEYS_IN_USE.len()],
}

#[derive(Default)]
struct Measured {
    /// Answers a second whose records were written, one figure for each round.
    rates: Vec<f64>,
    /// Milliseconds from the end of a turn until its last record was written.
    late: Vec<f64>,
    /// Microseconds of the server's processor time for each answer.
    times: Vec<f64>,
}

impl Row {
    fn start(kind: &'static Kind, place: &str) -> Self {
        let program = env::current_exe().unwrap();
        let server = Server::start(Command::new(program).args([kind.name, place]));
        let load = Load::new(server.address, &server.said);
        Self { kind, server, load, answers: 0, measured: Default::default() }
    }

    async fn turn(&mut self, keys: usize) {
        let before = processor_time(self.server.id());
        let started = Instant::now();
        let answers = self.load.run(KEYS_IN_USE[keys], started + TURN).await;
        let (took, ended) = (started.elapsed(), Instant::now());
        self.answers += answers;
        let unwritten = self.unwritten().await;
        while self.unwritten().await > 0 {
            assert!(ended.elapsed() < PATIENCE, "{}: records are missing", self.kind.name);
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let late = ended.elapsed();
        let time = processor_time(self.server.id()) - before;
        let measured = &mut self.measured[keys];
        measured.rates.push((answers - unwritten) as f64 / took.as_secs_f64());
        measured.late.push(late.as_secs_f64() * 1e3);
        measured.times.push(time * 1e6 / answers as f64);
    }

    /// How many answers have no record yet.
    async fn unwritten(&self) -> u64 {
        if self.kind.log == Log::Off { 0 } else { self.answers - self.ask("/written").await }
    }

    async fn ask(&self, path: &str) -> u64 {
        let answer = Client::new(self.server.address, 1).ask("GET", path, "", "").await.unwrap();
        str::from_utf8(&answer.body).unwrap().parse().unwrap()
    }
}

/// The processor time that a process has used, in seconds.
fn processor_time(process: u32) -> f64 {
    let threads = fs::read_dir(format!("/proc/{process}/task")).unwrap();
    let nanoseconds = threads.map(|thread| {
        let times = fs::read_to_string(thread.unwrap().path().join("schedstat")).unwrap();
        times.split(' ').next().unwrap().parse::<f64>().unwrap()
    });
    nanoseconds.sum::<f64>() / 1e9
}

async fn compare(folder: &Path, schemas: Option<&Schemas>) -> Vec<Row> {
    let mut rows = Vec::new();
    for (number, kind) in KINDS.iter().enumerate() {
        let place = match (kind.keys, schemas) {
            (Keys::Postgres, Some(schemas)) => schemas.name(number),
            (Keys::Postgres, None) => continue,
            _ => folder.join(format!("{number}.db")).display().to_string(),
        };
        rows.push(Row::start(kind, &place));
    }
    for round in 0..=ROUNDS {
        for keys in 0..KEYS_IN_USE.len() {
            for turn in 0..rows.len() {
                // Another comes first each time.
                let row = (round + turn) % rows.len();
                rows[row].turn(keys).await;
            }
        }
        if round == 0 {
            // The first one warms up.
            rows.iter_mut().for_each(|row| row.measured = Default::default());
        }
    }
    rows
}

/// Every record is where it can be read.
async fn check_records(rows: &[Row]) {
    for row in rows.iter().filter(|row| matches!(row.kind.log, Log::Buffered | Log::Strict)) {
        let (records, answers) = (row.ask("/records").await, row.answers);
        println!("{:<24}{records:>10} records of {answers} answers", row.kind.name);
        assert_eq!(records, answers);
    }
}

fn print(rows: &[Row], keys: usize) {
    let of = |one: usize, other: usize| {
        let [one, other] = [one, other].map(|row| &rows[row].measured[keys].rates);
        Spread::of(one.iter().zip(other).map(|(one, other)| one / other).collect())
    };
    println!("\nkeys in use: {}", KEYS_IN_USE[keys]);
    println!(
        "{:<24}{:<28}{:<20}{:<20}ms until written",
        "", "answers a second", "of unguarded", "processor µs"
    );
    for (at, row) in rows.iter().enumerate() {
        let Measured { rates, late, times } = &row.measured[keys];
        println!(
            "{:<24}{:<28}{:<20}{:<20}{}",
            row.kind.name,
            Spread::of(rates.clone()).show(0),
            of(at, UNGUARDED).show(2),
            Spread::of(times.clone()).show(1),
            Spread::of(late.clone()).show(0)
        );
    }
    println!(
        "SQLite with the log: {} of the guard in memory without one (target 0.85), {} of the \
         unguarded handler (target 0.7)",
        of(SQLITE_LOG, MEMORY).show(2),
        of(SQLITE_LOG, UNGUARDED).show(2)
    );
}

/// Schemas of this run's own, which are dropped in the end.
struct Schemas {
    url: String,
}

impl Schemas {
    fn name(&self, number: usize) -> String {
        format!("keygate_bench_{:x}_{number}", std::process::id())
    }
}

impl Drop for Schemas {
    fn drop(&mut self) {
        let names: Vec<_> = (0..KINDS.len()).map(|number| self.name(number)).collect();
        let drop = format!("DROP SCHEMA IF EXISTS {} CASCADE", names.join(", "));
        Runtime::new().unwrap().block_on(async {
            let connected = tokio_postgres::connect(&self.url, tokio_postgres::NoTls).await;
            let (client, connection) = connected.unwrap();
            tokio::spawn(connection);
            client.batch_execute(&drop).await.unwrap();
        });
    }
}

fn main() {
    let arguments: Vec<_> = env::args().skip(1).filter(|argument| argument != "--bench").collect();
    if let [name, place] = arguments.as_slice() {
        let kind = KINDS.iter().find(|kind| kind.name == name).expect("a row of the table");
        // As many threads as `#[tokio::main]` has.
        return Runtime::new().unwrap().block_on(serve::serve(kind, place));
    }
    let folder = TempDir::new().unwrap();
    let schemas = env::var("KEYGATE_TEST_POSTGRES").ok().map(|url| Schemas { url });
    if schemas.is_none() {
        println!("without PostgreSQL, which needs KEYGATE_TEST_POSTGRES");
    }
    println!(
        "{CONNECTIONS} connections, {ROUNDS} rounds of turns of {TURN:?}: median (middle half)"
    );
    Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
        let rows = compare(folder.path(), schemas.as_ref()).await;
        check_records(&rows).await;
        (0..KEYS_IN_USE.len()).for_each(|keys| print(&rows, keys));
    });
}
