//! Checks that the file on disk is still the one that is open, and is not damaged.

use std::ffi::OsString;
use std::fs::Metadata;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};
use std::{fs, io};

use crate::store::sqlite::error::{DbError, Result};
use crate::throttle::Throttle;

/// How often look-ups check which file is at the path. A check takes a fifth of the time of
/// a look-up.
const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// The database file and the two that SQLite keeps beside it.
#[derive(Debug)]
pub(super) struct DatabaseFile {
    parts: [Part; 3],
    opened: Instant,
    /// When look-ups check the file next, in milliseconds after `opened`.
    look_again: AtomicU64,
    replaced: AtomicBool,
    damaged: AtomicBool,
    gone_lines: Throttle,
    damage_lines: Throttle,
}

#[derive(Debug)]
struct Part {
    path: PathBuf,
    identity: Identity,
}

/// Device and inode. The inode of an open file is not reused.
#[cfg(unix)]
type Identity = (u64, u64);
/// On other systems an open file can be neither removed nor replaced.
#[cfg(not(unix))]
type Identity = ();

impl DatabaseFile {
    /// The file at this path, which a connection has open in WAL mode.
    pub(super) fn opened(path: &Path) -> io::Result<Self> {
        // SQLite follows links, and keeps its files next to the target.
        let [wal, shm] = beside(&fs::canonicalize(path)?);
        let part = |path: PathBuf| {
            let identity = identity(&fs::metadata(&path)?);
            Ok::<_, io::Error>(Part { path, identity })
        };
        Ok(Self {
            parts: [part(path.to_owned())?, part(wal)?, part(shm)?],
            opened: Instant::now(),
            look_again: AtomicU64::new(0),
            replaced: AtomicBool::new(false),
            damaged: AtomicBool::new(false),
            gone_lines: Throttle::default(),
            damage_lines: Throttle::default(),
        })
    }

    /// Fails if one of the files is gone or was replaced: changes written then would be
    /// lost at the next restart.
    pub(super) fn is_there(&self) -> Result<()> {
        let checked = self.parts.iter().try_for_each(Part::is_there);
        self.replaced.store(matches!(checked, Err(DbError::Replaced { .. })), Ordering::Relaxed);
        if let Err(fault) = &checked
            && let Some(left_out) = self.gone_lines.pass()
        {
            tracing::error!(
                left_out,
                "{fault}; changes and audit records are refused: stop the service, \
                 restore the right file, and start it again"
            );
        }
        checked
    }

    /// Fails if one of the files was replaced. Another process may open that file and
    /// change keys in it, so data read from this one may be out of date, or mixed with the
    /// other's. If a file is only missing, no process changes anything, and reading
    /// continues.
    pub(super) fn may_be_read(&self) -> Result<()> {
        let now = u64::try_from(self.opened.elapsed().as_millis()).unwrap_or(u64::MAX);
        let known = now < self.look_again.load(Ordering::Relaxed);
        if known && !self.replaced.load(Ordering::Relaxed) {
            return Ok(());
        }
        let next = now.saturating_add(LOOK_AGAIN.as_millis() as u64);
        self.look_again.store(next, Ordering::Relaxed);
        match self.is_there() {
            Err(fault @ DbError::Replaced { .. }) => Err(fault),
            _ => Ok(()),
        }
    }

    /// Whether the file at the path is the one that is open; fails if it was replaced. The
    /// version of an open database does not change when another file takes its place.
    pub(super) fn is_still_the_one(&self) -> Result<bool> {
        let [file, _, _] = &self.parts;
        match file.is_there() {
            Ok(()) => Ok(true),
            Err(_) => {
                self.look_again.store(0, Ordering::Relaxed);
                self.may_be_read().map(|()| false)
            }
        }
    }

    /// Fails once a damaged page has been found.
    pub(super) fn is_whole(&self) -> Result<()> {
        if self.damaged.load(Ordering::Relaxed) {
            return Err(DbError::Damaged { path: self.path().to_owned() });
        }
        Ok(())
    }

    /// Remembers the damage if a statement found a damaged page.
    pub(super) fn watch<T>(&self, outcome: Result<T>) -> Result<T> {
        if let Err(fault) = &outcome
            && fault.is_damage()
        {
            self.damaged.store(true, Ordering::Relaxed);
            if let Some(left_out) = self.damage_lines.pass() {
                let path = self.path().display();
                tracing::error!(
                    left_out,
                    "{path} is damaged: {fault}; stop the service and restore a backup"
                );
            }
        }
        outcome
    }

    /// Warns if other users of the machine can read the data.
    #[cfg(unix)]
    pub(super) fn warn_of_readers(&self) {
        use std::os::unix::fs::PermissionsExt;
        for Part { path, .. } in &self.parts {
            let mode = fs::metadata(path).map_or(0, |file| file.permissions().mode());
            if mode & 0o066 != 0 {
                tracing::warn!(
                    "{} can be read by other users of this machine (mode {:03o}): \
                     it contains digests and the audit log, so set mode 600",
                    path.display(),
                    mode & 0o777,
                );
            }
        }
    }

    #[cfg(not(unix))]
    pub(super) fn warn_of_readers(&self) {}

    fn path(&self) -> &Path {
        let [file, _, _] = &self.parts;
        &file.path
    }
}

impl Part {
    fn is_there(&self) -> Result<()> {
        let path = || self.path.clone();
        match fs::metadata(&self.path) {
            Ok(file) if identity(&file) == self.identity => Ok(()),
            Ok(_) => Err(DbError::Replaced { path: path() }),
            Err(source) => Err(DbError::Gone { path: path(), source }),
        }
    }
}

#[cfg(unix)]
fn identity(file: &Metadata) -> Identity {
    use std::os::unix::fs::MetadataExt;
    (file.dev(), file.ino())
}

#[cfg(not(unix))]
fn identity(_: &Metadata) -> Identity {}

/// The paths of the write-ahead log and of its index.
pub(super) fn beside(path: &Path) -> [PathBuf; 2] {
    ["-wal", "-shm"].map(|ending| {
        let mut name = OsString::from(path);
        name.push(ending);
        name.into()
    })
}
