//! Adopts keys that were issued before keygate, from a CSV file with the columns
//! `org,name,key_prefix,sha256_hex`, where the last is the SHA-256 of the whole key:
//!
//! ```sh
//! cargo run --release --example adopt --all-features -- sqlite:keygate.db old.csv acme_live_:32
//! ```
//!
//! The last argument is their format: the prefix, and the length of what follows. It can be
//! run again: keys that are in the database stay as they are. `KEYGATE_KEY_PREFIX` is the
//! prefix of new keys, by default `vsp_sk_`.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "an example prints")]

use std::env;
use std::error::Error;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use existing::Report;
use keygate::manager::KeyManagerBuilder;
use keygate::store::KeyImport;
use keygate::{KeyFormat, KeyManager, PostgresStore, SqliteStore};

async fn open(url: &str) -> Result<(KeyManagerBuilder, Arc<dyn KeyImport>), Box<dyn Error>> {
    match url.split_once(':') {
        Some(("sqlite", _)) => {
            let store = SqliteStore::open(url)?;
            Ok((KeyManager::builder(store.clone()).audit(store.clone()), Arc::new(store)))
        }
        Some(("postgres" | "postgresql", _)) => {
            let store = PostgresStore::connect(url).await?;
            Ok((KeyManager::builder(store.clone()).audit(store.clone()), Arc::new(store)))
        }
        _ => Err("a database is sqlite:FILE or postgres://USER@HOST/DATABASE".into()),
    }
}

async fn adopt(store: &str, file: &str, format: &str) -> Result<Report, Box<dyn Error>> {
    let format = existing::format(format)?;
    let prefix = env::var("KEYGATE_KEY_PREFIX").unwrap_or(KeyFormat::DEFAULT_PREFIX.to_owned());
    let (builder, store) = open(store).await?;
    let keys = builder.format(KeyFormat::new(&prefix)?).existing(format).build()?;
    let report = existing::adopt(&keys, store, Path::new(file)).await;
    let shut_down = keys.shutdown(Duration::from_secs(5)).await;
    if !shut_down.is_complete() {
        return Err(format!("the audit log is not complete: {shut_down:?}").into());
    }
    report
}

#[tokio::main]
async fn main() -> ExitCode {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let [store, file, format] = arguments.as_slice() else {
        eprintln!(
            "usage: adopt STORE FILE FORMAT, such as sqlite:keygate.db old.csv acme_live_:32"
        );
        return ExitCode::from(2);
    };
    let begun = Instant::now();
    let report = match adopt(store, file, format).await {
        Ok(report) => report,
        Err(error) => {
            eprintln!("{error}");
            return ExitCode::FAILURE;
        }
    };
    report.refused.iter().for_each(|line| eprintln!("{line}"));
    println!(
        "{} keys adopted, {} were there already, {} deleted since, {} lines refused, in {:.1} s",
        report.adopted,
        report.already_there,
        report.deleted,
        report.refused.len(),
        begun.elapsed().as_secs_f64()
    );
    if let Some(stopped) = &report.stopped {
        eprintln!("{stopped}; run it again");
    }
    if report.refused.is_empty() && report.stopped.is_none() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}
