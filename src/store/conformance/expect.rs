//! Checks of what a store returned, which give a violation where it is not as expected.

use std::error::Error;
use std::fmt::Debug;

use crate::key::digest::KeyDigest;
use crate::key::id::KeyId;
use crate::record::ApiKey;
use crate::store::conformance::violation::Violation;
use crate::store::key_store::StoreError;

/// The call must succeed.
pub(super) fn done<T, E: Error>(call: &str, result: Result<T, E>) -> Result<T, Violation> {
    result.map_err(|error| Violation::new(format!("{call} to succeed"), error_text(&error)))
}

/// A value that the suite itself needs must be valid.
pub(super) fn made<T, E: Error>(result: Result<T, E>) -> Result<T, Violation> {
    result.map_err(|error| Violation::new("what the suite needs to be there", error_text(&error)))
}

fn error_text(error: &impl Error) -> String {
    format!("Err({error:?}): {error}")
}

/// The call must be refused with `Conflict`.
pub(super) fn conflict<T: Debug>(
    call: &str,
    result: Result<T, StoreError>,
) -> Result<(), Violation> {
    refused(call, "Conflict", result, |error| matches!(error, StoreError::Conflict))
}

/// The call must be refused with `NotFound`.
pub(super) fn not_found<T: Debug>(
    call: &str,
    result: Result<T, StoreError>,
) -> Result<(), Violation> {
    refused(call, "NotFound", result, |error| matches!(error, StoreError::NotFound))
}

/// The call must be refused with `LimitReached`.
pub(super) fn limit_reached<T: Debug>(
    call: &str,
    result: Result<T, StoreError>,
) -> Result<(), Violation> {
    refused(call, "LimitReached", result, |error| matches!(error, StoreError::LimitReached))
}

fn refused<T: Debug>(
    call: &str,
    name: &str,
    result: Result<T, StoreError>,
    is_expected: impl FnOnce(&StoreError) -> bool,
) -> Result<(), Violation> {
    match result {
        Err(error) if is_expected(&error) => Ok(()),
        other => {
            Err(Violation::new(format!("{call} to be refused with {name}"), format!("{other:?}")))
        }
    }
}

/// One of several calls must succeed, and `loser` must accept the results of all others.
pub(super) fn one_winner<T: Debug>(
    calls: &str,
    results: Vec<Result<T, StoreError>>,
    loser: fn(&str, Result<T, StoreError>) -> Result<(), Violation>,
) -> Result<usize, Violation> {
    let mut winners = Vec::new();
    for (n, result) in results.into_iter().enumerate() {
        match result {
            Ok(_) => winners.push(n),
            lost => loser(&format!("all but one of {calls}"), lost)?,
        }
    }
    match winners.as_slice() {
        [winner] => Ok(*winner),
        _ => Err(Violation::new(
            format!("exactly one of {calls} to succeed"),
            format!("{} that did", winners.len()),
        )),
    }
}

/// The two values must be equal.
pub(super) fn equal<T: PartialEq + Debug>(
    what: &str,
    found: &T,
    expected: &T,
) -> Result<(), Violation> {
    if found == expected {
        return Ok(());
    }
    Err(Violation::new(format!("{what} to be {expected:?}"), format!("{found:?}")))
}

/// `list` must give these ids in this order.
pub(super) fn ids_in_order(found: &[KeyId], expected: &[KeyId]) -> Result<(), Violation> {
    let lacking = expected.iter().find(|id| !found.contains(id));
    let foreign = found.iter().find(|id| !expected.contains(id));
    if lacking.is_some() || foreign.is_some() || found.len() != expected.len() {
        let lacking = lacking.map(|id| format!(", without {id}")).unwrap_or_default();
        let foreign = foreign.map(|id| format!(", with {id}")).unwrap_or_default();
        let expected = format!("list to give the organisation's {} keys", expected.len());
        return Err(Violation::new(expected, format!("{} keys{lacking}{foreign}", found.len())));
    }
    match expected.iter().zip(found).zip(1..).find(|((expected, found), _)| expected != found) {
        None => Ok(()),
        Some(((expected, found), position)) => Err(Violation::new(
            "list to be ordered by (created_at, id)",
            format!("position {position} should be {expected} and is {found}"),
        )),
    }
}

/// The condition must hold.
pub(super) fn holds(
    condition: bool,
    expected: impl Into<String>,
    found: impl Into<String>,
) -> Result<(), Violation> {
    if condition { Ok(()) } else { Err(Violation::new(expected, found)) }
}

/// There must be no key.
pub(super) fn no_key(call: &str, found: Option<&ApiKey>) -> Result<(), Violation> {
    match found {
        None => Ok(()),
        Some(key) => Err(Violation::new(
            format!("{call} to give None"),
            format!("key {} of {:?}, {:?}, at {:?}", key.id, key.org, key.status, key.revision),
        )),
    }
}

/// The key must be found and equal in every field. The violation names the fields that differ.
pub(super) fn same_key(
    call: &str,
    found: Option<&ApiKey>,
    expected: &ApiKey,
) -> Result<(), Violation> {
    let Some(found) = found else {
        return Err(Violation::new(format!("{call} to give key {}", expected.id), "None"));
    };
    if found == expected {
        return Ok(());
    }
    Err(differing(call, fields(found), fields(expected)))
}

/// The key must be found as `find_by_digest` may give it: with an earlier last use at most.
pub(super) fn found_key(
    call: &str,
    found: Option<&ApiKey>,
    expected: &ApiKey,
) -> Result<(), Violation> {
    let last_used_at = found.and_then(|found| found.last_used_at).min(expected.last_used_at);
    same_key(call, found, &ApiKey { last_used_at, ..expected.clone() })
}

/// A violation that names only the fields that differ.
pub(super) fn differing<const N: usize>(
    call: &str,
    found: [String; N],
    expected: [String; N],
) -> Violation {
    let pairs = expected.into_iter().zip(found).filter(|(expected, found)| expected != found);
    let (expected, found): (Vec<String>, Vec<String>) = pairs.unzip();
    Violation::new(format!("{call} to give {}", expected.join(", ")), found.join(", "))
}

fn fields(key: &ApiKey) -> [String; 14] {
    let hex = |digest: &KeyDigest| -> String {
        digest.as_bytes().iter().map(|byte| format!("{byte:02x}")).collect()
    };
    let digest = hex(&key.digest);
    let readable = if key.allowlist.is_readable() { "readable" } else { "unreadable" };
    [
        format!("id {}", key.id),
        format!("org {:?}", key.org.as_str()),
        format!("name {:?}", key.name.as_str()),
        format!("key_prefix {:?}", key.key_prefix),
        format!("digest {digest}"),
        format!("status {:?}", key.status),
        format!("{readable} allowlist {:?}", key.allowlist.entries()),
        format!("created_at {}", key.created_at),
        format!("expires_at {:?}", key.expires_at),
        format!("rotated_at {:?}", key.rotated_at),
        format!("previous {:?}", key.previous.map(|old| (hex(&old.digest), old.until))),
        format!("last_used_at {:?}", key.last_used_at),
        format!("revision {}", key.revision.get()),
        format!("attributes {}", key.attributes),
    ]
}
