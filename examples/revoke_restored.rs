//! Use this after restoring a backup. It revokes every key whose secret was issued before
//! an instant, such as the time of the restore:
//!
//! ```sh
//! cargo run --example revoke_restored --all-features -- sqlite:keygate.db 2027-05-03T12:00:00Z
//! ```
//!
//! Run it before you accept requests. Until then, keys that were revoked, rotated or
//! deleted since the backup work again.

use std::error::Error;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use keygate::{KeyManager, PostgresStore, SqliteStore, Timestamp};

async fn revoke(url: &str, instant: &str) -> Result<u64, Box<dyn Error>> {
    let instant: Timestamp = instant.parse().map_err(|error| format!("the instant: {error}"))?;
    let by = "revoke_restored";
    // A missing file would be created.
    if let Some(path) = url.strip_prefix("sqlite:")
        && !Path::new(path.strip_prefix("//").unwrap_or(path)).exists()
    {
        return Err(format!("the file {path} does not exist").into());
    }
    let (keys, revoked) = match url.split_once(':') {
        Some(("sqlite", _)) => {
            let store = Arc::new(SqliteStore::open(url)?);
            let keys = KeyManager::builder(store.clone()).audit(store.clone()).build()?;
            (keys.clone(), keys.revoke_issued_before(&*store, instant, by).await)
        }
        Some(("postgres" | "postgresql", _)) => {
            let store = Arc::new(PostgresStore::connect(url).await?);
            let keys = KeyManager::builder(store.clone()).audit(store.clone()).build()?;
            (keys.clone(), keys.revoke_issued_before(&*store, instant, by).await)
        }
        _ => return Err("a database is sqlite:FILE or postgres://USER@HOST/DATABASE".into()),
    };
    let report = keys.shutdown(Duration::from_secs(5)).await;
    if !report.is_complete() {
        return Err(format!("not everything was written: {report:?}").into());
    }
    Ok(revoked?)
}

/// An error with its causes, in one line.
fn told(error: &dyn Error) -> String {
    error.source().map_or(error.to_string(), |source| format!("{error}: {}", told(source)))
}

#[tokio::main]
#[allow(clippy::print_stdout, clippy::print_stderr, reason = "an example prints")]
async fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [url, instant] = arguments.as_slice() else {
        eprintln!("usage: revoke_restored DATABASE INSTANT");
        return ExitCode::from(2);
    };
    match revoke(url, instant).await {
        Ok(revoked) => {
            println!("{revoked} keys revoked");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("{}", told(&*error));
            ExitCode::FAILURE
        }
    }
}
