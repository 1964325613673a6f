//! Countries from a MaxMind DB file, which may be replaced while it is in use.

use std::error::Error as StdError;
use std::fmt;
use std::fs::{self, Metadata};
use std::io;
use std::net::IpAddr;
use std::panic::catch_unwind;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::sync::{Arc, PoisonError, RwLock};
use std::thread;
use std::time::{Duration, SystemTime};

use maxminddb::{LookupResult, PathElement, Reader, WithinOptions};
use thiserror::Error;

use crate::audit::country::{CountryCode, CountryLookup};

/// How often the file is checked for changes.
const INTERVAL: Duration = Duration::from_secs(5);
/// A larger file is not a database of countries.
const MAX_BYTES: u64 = 1 << 30;

/// A [`CountryLookup`] over a MaxMind DB file (`.mmdb`).
///
/// ```no_run
/// use keygate::audit::MaxMindCountries;
/// use keygate::{KeyManager, MemoryAuditLog, MemoryStore};
///
/// # #[tokio::main]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let keys = KeyManager::builder(MemoryStore::new())
///     .audit(MemoryAuditLog::new())
///     .countries(MaxMindCountries::open("/var/lib/geoip/country.mmdb")?)
///     .build()?;
/// # Ok(())
/// # }
/// ```
///
/// # Files
///
/// | field of a record | used by |
/// |---|---|
/// | `country.iso_code` | MaxMind's GeoIP2 and GeoLite2 (Country, City), DB-IP |
/// | `country_code` | ip-location-db, IPinfo Lite |
/// | `country`, if it is a text of two letters | older IPinfo files |
///
/// The first of these that is a [`CountryCode`] is used. `registered_country` is not: it
/// says where a network is registered, not where the address is used, and no country is
/// better than a wrong one. An IPv4-mapped IPv6 address is looked up as the IPv4 address.
/// Private addresses are looked up like any other; some files of poor quality list a
/// country for them.
///
/// # Replacing the file
///
/// A thread checks the file every 5 seconds. It reads a new file once two checks in a row
/// find it unchanged, so that a new file is in use within about 10 seconds. The file may be
/// renamed into place or overwritten. While it is missing, broken or without countries, the
/// previous one stays in use, which is logged once. [`reload`](Self::reload) reads the file
/// at once.
///
/// # Costs
///
/// The file is held in memory (twice for a moment when it is replaced). It is not mapped,
/// since overwriting a mapped file would crash the process. Look-ups are made by the task
/// that writes the audit records, never on a request's path; each takes about a microsecond
/// and never waits for the file. The thread ends when the last clone of the value is
/// dropped.
#[derive(Clone)]
pub struct MaxMindCountries {
    database: Arc<Database>,
    /// The thread ends when the last of these is dropped.
    _alive: Sender<()>,
}

impl MaxMindCountries {
    /// Reads a file and starts to watch it.
    ///
    /// This blocks while it reads: some 0.1 seconds for 10 MB.
    ///
    /// # Errors
    ///
    /// See [`GeoIpError`]; each message says what to do.
    pub fn open(path: impl Into<PathBuf>) -> Result<Self, GeoIpError> {
        Self::open_watched(path.into(), INTERVAL)
    }

    fn open_watched(path: PathBuf, interval: Duration) -> Result<Self, GeoIpError> {
        // Taken before reading, so that a write during the read is noticed.
        let stamp = Stamp::of(&path);
        let reader = RwLock::new(Arc::new(read(&path)?));
        let database = Arc::new(Database { path, reader });
        let mut watch =
            Watch { database: Arc::clone(&database), seen: stamp.clone(), judged: stamp };
        let (alive, ended) = mpsc::channel();
        thread::Builder::new()
            .name("keygate-geoip".into())
            .spawn(move || watch.run(&ended, interval))
            .map_err(|source| GeoIpError::NoThread { source })?;
        Ok(Self { database, _alive: alive })
    }

    /// Reads the file again now, without waiting for the next check. This blocks, like
    /// [`open`](Self::open).
    ///
    /// # Errors
    ///
    /// Those of [`open`](Self::open). On an error, the previous file stays in use.
    pub fn reload(&self) -> Result<(), GeoIpError> {
        self.database.reload()
    }
}

impl CountryLookup for MaxMindCountries {
    fn country(&self, ip: IpAddr) -> Option<CountryCode> {
        let reader = self.database.reader();
        // Fails for IPv6 addresses in an IPv4 file, and in damaged files.
        country(&reader.lookup(ip.to_canonical()).ok()?)
    }
}

impl fmt::Debug for MaxMindCountries {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MaxMindCountries")
            .field("path", &self.database.path)
            .finish_non_exhaustive()
    }
}

/// Why a file cannot be used for countries.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum GeoIpError {
    /// The file is missing, not a regular file, not permitted, or larger than 1 GiB.
    #[error("{path} cannot be read; check its path and permissions")]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// The underlying error.
        source: io::Error,
    },
    /// The file is of another format, incomplete, or damaged.
    #[error(
        "{path} is not a MaxMind DB file or is damaged; use an unpacked .mmdb file, or download it again"
    )]
    NotMaxMindDb {
        /// The file.
        path: PathBuf,
        /// The underlying error.
        source: Box<dyn StdError + Send + Sync>,
    },
    /// No record of the file has a country, as in databases of networks (ASN).
    #[error("{path} contains no countries (type {database_type:?}); use a Country or City file")]
    NoCountries {
        /// The file.
        path: PathBuf,
        /// The database type that the file states, truncated to 64 characters.
        database_type: String,
    },
    /// The thread that watches the file could not be started.
    #[error("cannot start the thread that watches the country file")]
    NoThread {
        /// The underlying error.
        source: io::Error,
    },
}

type Bytes = Reader<Vec<u8>>;

struct Database {
    path: PathBuf,
    reader: RwLock<Arc<Bytes>>,
}

impl Database {
    fn reader(&self) -> Arc<Bytes> {
        Arc::clone(&self.reader.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn reload(&self) -> Result<(), GeoIpError> {
        let new = Arc::new(read(&self.path)?);
        let mut reader = self.reader.write().unwrap_or_else(PoisonError::into_inner);
        let old = std::mem::replace(&mut *reader, new);
        // Freed after the lock is released, so that look-ups do not wait.
        drop(reader);
        drop(old);
        Ok(())
    }
}

/// Checks the file periodically.
struct Watch {
    database: Arc<Database>,
    /// The file at the last check; `None` if there was none,
    seen: Option<Stamp>,
    /// and when it was last read, successfully or not.
    judged: Option<Stamp>,
}

impl Watch {
    fn run(&mut self, ended: &Receiver<()>, interval: Duration) {
        while ended.recv_timeout(interval) == Err(RecvTimeoutError::Timeout) {
            self.look();
        }
    }

    fn look(&mut self) {
        let stamp = Stamp::of(&self.database.path);
        // A file that changed since the last check may be half-written.
        let rests = stamp == self.seen;
        self.seen.clone_from(&stamp);
        if !rests || stamp == self.judged {
            return;
        }
        self.judged = stamp;
        match self.database.reload() {
            Ok(()) => {
                tracing::info!(path = %self.database.path.display(), "the country file was reloaded");
            }
            Err(error) => {
                let source = error.source().map(ToString::to_string).unwrap_or_default();
                tracing::warn!(%error, source, "the country file could not be reloaded, the previous one stays in use");
            }
        }
    }
}

/// Distinguishes versions of a file.
#[derive(Clone, PartialEq, Eq)]
struct Stamp {
    bytes: u64,
    modified: Option<SystemTime>,
    /// A file renamed into place may have the time and size of the old one.
    identity: [i64; 3],
}

impl Stamp {
    fn of(path: &Path) -> Option<Self> {
        let file = fs::metadata(path).ok()?;
        let (bytes, modified) = (file.len(), file.modified().ok());
        Some(Self { bytes, modified, identity: identity(&file) })
    }
}

#[cfg(unix)]
fn identity(file: &Metadata) -> [i64; 3] {
    use std::os::unix::fs::MetadataExt;
    [file.ino().cast_signed(), file.ctime(), file.ctime_nsec()]
}

#[cfg(not(unix))]
fn identity(_: &Metadata) -> [i64; 3] {
    [0; 3]
}

/// Reads a file and checks that it has countries.
fn read(path: &Path) -> Result<Bytes, GeoIpError> {
    let unreadable = |source| GeoIpError::Unreadable { path: path.to_owned(), source };
    let damaged = |source| GeoIpError::NotMaxMindDb { path: path.to_owned(), source };
    let file = fs::metadata(path).map_err(unreadable)?;
    // Reading a pipe may never end.
    if !file.is_file() {
        return Err(unreadable(io::Error::other("not a regular file")));
    }
    if file.len() > MAX_BYTES {
        return Err(unreadable(io::Error::other("larger than 1 GiB")));
    }
    let bytes = fs::read(path).map_err(unreadable)?;
    // No damaged file is known to cause a panic, but a panic would end the thread.
    let parsed = catch_unwind(|| {
        let reader = Reader::from_source(bytes)?;
        let found = has_countries(&reader)?;
        Ok::<_, maxminddb::MaxMindDbError>((reader, found))
    });
    match parsed {
        Ok(Ok((reader, true))) => Ok(reader),
        Ok(Ok((reader, false))) => Err(GeoIpError::NoCountries {
            path: path.to_owned(),
            database_type: reader.metadata().database_type.chars().take(64).collect(),
        }),
        Ok(Err(error)) => Err(damaged(error.into())),
        Err(_) => Err(damaged("its reader panicked".into())),
    }
}

/// Whether any record has a country. In a database of countries one of the first does; only
/// a database without them is read to the end.
fn has_countries(reader: &Bytes) -> Result<bool, maxminddb::MaxMindDbError> {
    // A tree of n nodes has n + 1 leaves, and the IPv4 part may be reached by several
    // paths. A damaged tree may be endless.
    let leaves = (reader.metadata().node_count as usize).saturating_add(1).saturating_mul(8);
    // Counts all of them: the iterator may skip others endlessly, too.
    let all = WithinOptions::default().include_aliased_networks().include_networks_without_data();
    let mut last = None;
    for leaf in reader.networks(all)?.take(leaves) {
        let leaf = leaf?;
        // Neighbours often share a record.
        if leaf.offset() != last && country(&leaf).is_some() {
            return Ok(true);
        }
        last = leaf.offset();
    }
    Ok(false)
}

fn country(found: &LookupResult<'_, Vec<u8>>) -> Option<CountryCode> {
    use PathElement::Key;
    let paths: [&[_]; 3] =
        [&[Key("country"), Key("iso_code")], &[Key("country_code")], &[Key("country")]];
    // Decoding fails if the value is not a text.
    paths.iter().find_map(|path| CountryCode::new(found.decode_path::<&str>(path).ok().flatten()?))
}

#[cfg(test)]
#[path = "../../tests/geoip_support/mod.rs"]
mod mmdb;

#[cfg(test)]
mod tests {
    use super::mmdb::{file, iso};
    use super::*;
    use std::io::Write;
    use std::sync::Mutex;
    use std::time::Instant;
    use tempfile::TempDir;

    const IP: &str = "192.0.2.1";

    fn of(code: &'static str) -> Vec<u8> {
        file(4, &[("192.0.2.0/24", iso(code))])
    }

    /// A folder with a database of one country.
    fn folder() -> (TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("country.mmdb");
        fs::write(&path, of("DE")).unwrap();
        (folder, path)
    }

    fn rename(new: &[u8], path: &Path) {
        let beside = path.with_extension("new");
        fs::write(&beside, new).unwrap();
        fs::rename(beside, path).unwrap();
    }

    fn says(countries: &MaxMindCountries) -> String {
        let code = countries.country(IP.parse().unwrap());
        code.map_or_else(String::new, |code| code.to_string())
    }

    fn eventually(what: &str, condition: impl Fn() -> bool) {
        let deadline = Instant::now() + Duration::from_secs(10);
        while !condition() {
            assert!(Instant::now() < deadline, "never: {what}");
            thread::sleep(Duration::from_millis(2));
        }
    }

    /// A database and its watch, both controlled by the test.
    fn watched(path: &Path) -> (MaxMindCountries, Watch) {
        let countries = MaxMindCountries::open(path).unwrap();
        let stamp = Stamp::of(path);
        let database = Arc::clone(&countries.database);
        (countries, Watch { database, seen: stamp.clone(), judged: stamp })
    }

    /// The log lines of the test.
    fn logged(work: impl FnOnce()) -> Vec<String> {
        #[derive(Clone, Default)]
        struct Log(Arc<Mutex<Vec<u8>>>);
        impl Write for Log {
            fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
                self.0.lock().unwrap().extend(bytes);
                Ok(bytes.len())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let log = Log::default();
        let writer = log.clone();
        let subscriber =
            tracing_subscriber::fmt().with_ansi(false).with_writer(move || writer.clone()).finish();
        tracing::subscriber::with_default(subscriber, work);
        let text = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
        text.lines().map(str::to_owned).collect()
    }

    #[test]
    fn a_replaced_file_is_read_after_it_stops_changing() {
        let (_folder, path) = folder();
        let (countries, mut watch) = watched(&path);
        let log = logged(|| {
            for _ in 0..3 {
                watch.look();
            }
            // The file is still being written.
            let whole = of("FR");
            for bytes in [0, 10, whole.len() - 5] {
                fs::write(&path, &whole[..bytes]).unwrap();
                watch.look();
            }
            fs::write(&path, &whole).unwrap();
            watch.look();
            assert_eq!(says(&countries), "DE");
            watch.look();
            assert_eq!(says(&countries), "FR");
            watch.look();
        });
        assert_eq!(log.len(), 1, "{log:?}");
        assert!(log[0].contains("was reloaded"), "{log:?}");
    }

    #[test]
    fn a_replacement_with_the_same_size_and_time_is_noticed() {
        let (_folder, path) = folder();
        let (countries, mut watch) = watched(&path);
        let time = fs::metadata(&path).unwrap().modified().unwrap();
        let beside = path.with_extension("new");
        fs::write(&beside, of("FR")).unwrap();
        fs::File::options().write(true).open(&beside).unwrap().set_modified(time).unwrap();
        fs::rename(beside, &path).unwrap();
        watch.look();
        watch.look();
        assert_eq!(says(&countries), "FR");
    }

    #[test]
    fn a_broken_or_missing_file_changes_nothing_and_is_logged_once() {
        let (_folder, path) = folder();
        let (countries, mut watch) = watched(&path);
        let mut look = |change: &dyn Fn(), country: &str, expected: &[&str]| {
            let log = logged(|| {
                change();
                for _ in 0..5 {
                    watch.look();
                }
            });
            assert_eq!(log.len(), expected.len(), "{log:?}");
            for (line, expected) in log.iter().zip(expected) {
                assert!(line.contains(expected), "{line}");
            }
            assert_eq!(says(&countries), country);
        };
        let aside = path.with_extension("aside");
        let stays = ["stays in use"];
        look(&|| fs::write(&path, "<html>404</html>").unwrap(), "DE", &stays);
        look(&|| rename(&file(4, &[]), &path), "DE", &["contains no countries"]);
        look(&|| rename(&of("FR"), &path), "FR", &["was reloaded"]);
        look(&|| fs::rename(&path, &aside).unwrap(), "FR", &["No such file"]);
        look(&|| fs::create_dir(&path).unwrap(), "FR", &["not a regular file"]);
        look(&|| fs::remove_dir(&path).unwrap(), "FR", &stays);
        look(&|| fs::rename(&aside, &path).unwrap(), "FR", &["was reloaded"]);
        look(&|| rename(&of("IT"), &path), "IT", &["was reloaded"]);
        look(&|| (), "IT", &[]);
    }

    #[test]
    fn a_thread_watches_until_the_last_clone_is_dropped() {
        let (_folder, path) = folder();
        let countries = MaxMindCountries::open_watched(path.clone(), Duration::from_millis(1));
        let countries = countries.unwrap();
        drop(countries.clone());
        rename(&of("FR"), &path);
        eventually("the new file is used", || says(&countries) == "FR");
        let database = Arc::downgrade(&countries.database);
        drop(countries);
        eventually("the thread ends", || database.upgrade().is_none());
    }

    #[test]
    fn a_dropped_value_does_not_wait_for_the_next_look() {
        let (_folder, path) = folder();
        let countries = MaxMindCountries::open_watched(path, Duration::from_secs(3600)).unwrap();
        let database = Arc::downgrade(&countries.database);
        drop(countries);
        eventually("the thread ends", || database.upgrade().is_none());
    }
}
