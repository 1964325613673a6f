//! Parses paths and URLs of files, and explains why a file cannot be opened.

use std::path::{Path, PathBuf};
use std::{fs, io, path};

use crate::store::sqlite::open_error::SqliteOpenError;

/// The file that a path or a `sqlite:` URL names.
pub(super) fn file_path(path: &Path) -> Result<PathBuf, SqliteOpenError> {
    let bad_url = |reason| SqliteOpenError::BadUrl { url: path.display().to_string(), reason };
    let file = match path.to_str() {
        None => path,
        Some(text) => {
            let url = text.strip_prefix("sqlite:");
            let file = url.map_or(text, |rest| rest.strip_prefix("//").unwrap_or(rest));
            if file.is_empty() {
                return Err(bad_url("it does not name a file"));
            } else if file == ":memory:" || text.starts_with("file:") {
                return Err(bad_url(
                    "it does not name a file; for keys in memory, use MemoryStore",
                ));
            } else if url.is_some() && file.contains('?') {
                return Err(bad_url("parameters are not supported; end the URL after the path"));
            } else if url.is_none() && text.contains("://") {
                return Err(bad_url("it is not a `sqlite:` URL"));
            }
            Path::new(file)
        }
    };
    // The process may change its working directory later.
    path::absolute(file).map_err(|source| SqliteOpenError::cannot_open(file, source))
}

/// The place on the path that prevents opening the file, and what is wrong with it, if that
/// can be determined.
pub(super) fn obstacle(file: &Path) -> Option<(PathBuf, &'static str)> {
    let named = |place: &Path, what| Some((place.to_owned(), what));
    match fs::metadata(file) {
        Ok(found) if found.is_dir() => return named(file, "is a folder, not a file"),
        Ok(found) if !found.is_file() => return named(file, "is not a regular file"),
        Ok(_) => return None,
        Err(_) => {}
    }
    // The first wrong place, from the root on.
    let mut places: Vec<_> = file.ancestors().collect();
    places.reverse();
    let mut inside = None;
    for place in places {
        match fs::metadata(place) {
            Ok(found) if place != file && !found.is_dir() => {
                return named(place, "is a file, not a folder");
            }
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                return inside
                    .and_then(|folder| named(folder, "is a folder that cannot be entered"));
            }
            Err(_) if place.is_symlink() => {
                return named(place, "is a link whose target does not exist");
            }
            Err(_) if place != file => return named(place, "does not exist"),
            Err(_) => {}
        }
        inside = Some(place);
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_and_urls_name_files_or_are_refused() {
        let named = |text: &str| file_path(Path::new(text));
        for (text, file) in [
            ("keygate.db", "keygate.db"),
            ("sqlite:keygate.db", "keygate.db"),
            ("sqlite://keygate.db", "keygate.db"),
            ("sqlite:///var/lib/k.db", "/var/lib/k.db"),
            ("/odd?name.db", "/odd?name.db"),
        ] {
            assert_eq!(named(text).unwrap(), path::absolute(file).unwrap());
        }
        for text in [
            "",
            "sqlite:",
            "sqlite://",
            ":memory:",
            "sqlite::memory:",
            "sqlite:k.db?mode=ro",
            "postgres://x/y",
            "file:k.db",
        ] {
            assert!(matches!(named(text), Err(SqliteOpenError::BadUrl { .. })), "{text}");
        }
    }
}
