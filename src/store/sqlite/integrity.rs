//! Checks a file for damage within a bounded time.

use std::path::Path;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::Duration;

use rusqlite::{Connection, ErrorCode};

use crate::store::sqlite::open_error::SqliteOpenError;

/// First the keys with their indexes, since a key missing from an index would be refused or
/// not listed. Then the pages of the whole file.
const CHECKS: [&str; 2] = ["PRAGMA integrity_check(keys)", "PRAGMA quick_check(1)"];

const AGAIN: Duration = Duration::from_millis(10);

/// Fails if the file is damaged. What cannot be read within this time is not checked; with
/// a time of zero, nothing is.
pub(super) fn check(
    connection: &Connection,
    path: &Path,
    within: Duration,
) -> Result<(), SqliteOpenError> {
    if within.is_zero() { Ok(()) } else { run(connection, path, within, &CHECKS) }
}

fn run(
    connection: &Connection,
    path: &Path,
    within: Duration,
    checks: &[&str],
) -> Result<(), SqliteOpenError> {
    match bounded(connection, within, || checks.iter().try_for_each(|sql| sound(connection, sql))) {
        Ok(()) => Ok(()),
        Err(Finding::Damage(found)) => {
            Err(SqliteOpenError::Damaged { path: path.to_owned(), found })
        }
        Err(Finding::Failed(error)) => match error.sqlite_error_code() {
            Some(ErrorCode::OperationInterrupted) => {
                let path = path.display();
                tracing::info!(
                    "{path} is large: only part of it was checked for damage within {within:?}"
                );
                Ok(())
            }
            _ => Err(SqliteOpenError::from_sqlite(path, error)),
        },
    }
}

enum Finding {
    Damage(String),
    Failed(rusqlite::Error),
}

fn sound(connection: &Connection, sql: &str) -> Result<(), Finding> {
    let first_line = |row: &rusqlite::Row<'_>| row.get::<_, String>(0);
    match connection.query_row(sql, [], first_line) {
        Ok(text) if text == "ok" => Ok(()),
        Ok(text) => {
            let found = text.lines().find(|line| !line.starts_with("***"));
            Err(Finding::Damage(found.unwrap_or(&text).to_owned()))
        }
        Err(error) => Err(Finding::Failed(error)),
    }
}

/// Does the work, and interrupts it after this time.
fn bounded<T>(connection: &Connection, within: Duration, work: impl FnOnce() -> T) -> T {
    let interrupt = connection.get_interrupt_handle();
    let (done, wait) = mpsc::channel::<()>();
    thread::scope(|scope| {
        scope.spawn(move || {
            // Repeated, since only a running statement is interrupted.
            let mut left = within;
            while wait.recv_timeout(left) == Err(RecvTimeoutError::Timeout) {
                interrupt.interrupt();
                left = AGAIN;
            }
        });
        let answer = work();
        drop(done);
        answer
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_integrity_check_that_times_out_does_not_block_the_file() {
        const ENDLESS: &str = "WITH RECURSIVE numbers(n) AS (SELECT 1 UNION ALL \
                               SELECT n + 1 FROM numbers) SELECT max(n) FROM numbers";
        let connection = Connection::open_in_memory().unwrap();
        let checked = |checks: &[&str]| {
            run(&connection, Path::new("keys.db"), Duration::from_millis(20), checks)
        };
        checked(&["PRAGMA quick_check(1)", ENDLESS]).unwrap();
        let damaged = checked(&["SELECT 'row 3 missing from index keys_by_org'", ENDLESS]);
        assert!(matches!(damaged, Err(SqliteOpenError::Damaged { .. })), "{damaged:?}");
    }
}
