//! Copies all keys from one database to another, where they keep working:
//!
//! ```sh
//! cargo run --example migrate --all-features -- sqlite:keygate.db postgres://app@localhost/app
//! ```
//!
//! Stop changing keys first: changes made to a key after it was copied are not copied.

use std::error::Error;
use std::path::Path;
use std::process::ExitCode;

use keygate::store::{KeyExport, import};
use keygate::{KeyStore, PostgresStore, SqliteStore};

/// A store that keys can be copied to and from.
trait Database: KeyStore + KeyExport {}

impl<S: KeyStore + KeyExport> Database for S {}

async fn open(url: &str) -> Result<Box<dyn Database>, Box<dyn Error>> {
    match url.split_once(':') {
        Some(("sqlite", _)) => Ok(Box::new(SqliteStore::open(url)?)),
        Some(("postgres" | "postgresql", _)) => Ok(Box::new(PostgresStore::connect(url).await?)),
        _ => Err("a database is sqlite:FILE or postgres://USER@HOST/DATABASE".into()),
    }
}

async fn migrate(from: &str, into: &str) -> Result<String, Box<dyn Error>> {
    // A missing file would be created.
    if let Some(path) = from.strip_prefix("sqlite:")
        && !Path::new(path.strip_prefix("//").unwrap_or(path)).exists()
    {
        return Err(format!("the file {path} does not exist").into());
    }
    let (from, into) = (open(from).await?, open(into).await?);
    let imported = import(&*from, &*into).await?;
    if imported.added + imported.present == 0 {
        return Err("it has no keys; is it the right one?".into());
    }
    Ok(format!("{} keys copied, {} were there already", imported.added, imported.present))
}

/// An error with its causes, in one line.
fn told(error: &dyn Error) -> String {
    error.source().map_or(error.to_string(), |source| format!("{error}: {}", told(source)))
}

#[tokio::main]
#[allow(clippy::print_stdout, clippy::print_stderr, reason = "an example prints")]
async fn main() -> ExitCode {
    let urls: Vec<String> = std::env::args().skip(1).collect();
    let [from, into] = urls.as_slice() else {
        eprintln!("usage: migrate FROM INTO, each sqlite:FILE or postgres://USER@HOST/DATABASE");
        return ExitCode::from(2);
    };
    match migrate(from, into).await {
        Ok(done) => {
            println!("{done}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("{}", told(&*error));
            ExitCode::FAILURE
        }
    }
}
