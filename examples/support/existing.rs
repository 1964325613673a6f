//! Keys that were issued before keygate, from a CSV file (RFC 4180) with the columns
//! `org,name,key_prefix,sha256_hex`. A first line with just these names is skipped.
#![cfg(feature = "sqlite")]

use std::error::Error;
use std::path::Path;

use keygate::existing::{AdoptReport, AdoptedKey, DigestKind, ExistingFormat};
use keygate::store::KeyImport;
use keygate::{KeyManager, KeyName, OrgId, Scopes};

type Failure = Box<dyn Error>;

const COLUMNS: [&str; 4] = ["org", "name", "key_prefix", "sha256_hex"];

/// Reads a format such as `acme_live_:32`: the prefix, and the length of what follows.
pub fn format(text: &str) -> Result<ExistingFormat, Failure> {
    let (prefix, len) = text.rsplit_once(':').ok_or("a format is PREFIX:LENGTH")?;
    let len = len.parse().map_err(|_| "the length after the last colon is not a number")?;
    Ok(ExistingFormat::new(prefix, len..=len)?)
}

/// What became of the keys of a file.
#[derive(Debug)]
pub struct Report {
    /// How many were adopted now.
    pub adopted: u64,
    /// How many were there before.
    pub already_there: u64,
    /// How many were deleted since, and stay so.
    pub deleted: u64,
    /// Lines of which nothing was stored, and why.
    pub refused: Vec<String>,
    /// Where the run stopped, and why, if the store failed.
    pub stopped: Option<String>,
}

/// Adopts the keys of a file. It can be run again.
pub async fn adopt(
    keys: &KeyManager,
    store: impl KeyImport,
    file: &Path,
) -> Result<Report, Failure> {
    let bytes = std::fs::read(file)?;
    // The reader's own count is too low after blank lines and with CRLF.
    let (mut counted, mut newlines) = (0, 0);
    let mut line_at = |position: Option<&csv::Position>| {
        let start = position.map_or(0, |at| usize::try_from(at.byte()).unwrap_or_default());
        let blank = bytes.iter().skip(start).take_while(|b| matches!(b, b'\r' | b'\n')).count();
        let passed = bytes.iter().take(start + blank).skip(counted);
        newlines += passed.filter(|b| **b == b'\n').count();
        counted = start + blank;
        1 + newlines
    };
    let mut reader =
        csv::ReaderBuilder::new().has_headers(false).flexible(true).from_reader(&*bytes);
    let (mut entries, mut lines, mut refused) = (Vec::new(), Vec::new(), Vec::new());
    for record in reader.records() {
        let record = match record {
            Ok(record) => record,
            // A file that cannot be read on ends here; the next line may be good text.
            Err(error) if error.is_io_error() => return Err(error.into()),
            Err(error) => {
                let line = line_at(error.position());
                refused.push((line, "not UTF-8".to_owned()));
                continue;
            }
        };
        let line = line_at(record.position());
        if line == 1 && record.iter().eq(COLUMNS) {
            continue;
        }
        match entry(&record) {
            Ok(entry) => {
                entries.push(entry);
                lines.push(line);
            }
            Err(why) => refused.push((line, why)),
        }
    }
    let line_of = |at: usize| lines.get(at).copied().unwrap_or_default();
    let AdoptReport { adopted, already_there, deleted, refused: more, stopped, .. } =
        keys.adopt_all(store, entries, "import of existing keys").await;
    refused.extend(more.into_iter().map(|(at, error)| (line_of(at), with_causes(&error))));
    refused.sort();
    let refused = refused.into_iter().map(|(line, why)| format!("line {line}: {why}")).collect();
    let stopped = stopped
        .map(|(at, error)| format!("stopped at line {}: {}", line_of(at), with_causes(&error)));
    Ok(Report { adopted, already_there, deleted, refused, stopped })
}

/// The errors name the field and do not contain it, since a file may hold whole keys by
/// mistake.
fn entry(record: &csv::StringRecord) -> Result<AdoptedKey, String> {
    let fields: Vec<&str> = record.iter().collect();
    let [org, name, key_prefix, sha256_hex] = fields.as_slice() else {
        return Err(format!("{} fields instead of 4", fields.len()));
    };
    let org = OrgId::new(org).map_err(|e| format!("org: {e}"))?;
    let name = KeyName::new(name).map_err(|e| format!("name: {e}"))?;
    // Other encodings would be read as well, and a whole key could be taken for one.
    if sha256_hex.len() != 64 {
        return Err("sha256_hex: 64 hexadecimal digits".to_owned());
    }
    let digest = DigestKind::sha256().read(sha256_hex).map_err(|e| format!("sha256_hex: {e}"))?;
    // The old product had no scopes: its keys could be used for everything.
    Ok(AdoptedKey::new(org, name, *key_prefix, digest).scopes(Scopes::ALL))
}

fn with_causes(error: &dyn Error) -> String {
    error.source().map_or(error.to_string(), |source| format!("{error}: {}", with_causes(source)))
}
