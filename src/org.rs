//! Organisations and actors.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use thiserror::Error;

use crate::text::truncate;

/// The host's identifier of an organisation: 1 to 255 bytes, without control
/// characters, kept exactly as given. Cheap to clone.
///
/// ```
/// use keygate::OrgId;
///
/// assert_eq!(OrgId::new("acme").unwrap().as_str(), "acme");
/// assert!(OrgId::new("").is_err());
/// ```
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct OrgId(Arc<str>);

impl OrgId {
    /// The longest identifier, in bytes.
    pub const MAX_LEN: usize = 255;

    /// Takes the host's identifier; refuses an empty, too long or unprintable one.
    pub fn new(id: impl AsRef<str>) -> Result<Self, OrgIdError> {
        let id = id.as_ref();
        if id.is_empty() {
            Err(OrgIdError::Empty)
        } else if id.len() > Self::MAX_LEN {
            Err(OrgIdError::TooLong)
        } else if id.chars().any(char::is_control) {
            Err(OrgIdError::ControlCharacter)
        } else {
            Ok(Self(id.into()))
        }
    }

    /// For sample records.
    pub(crate) fn sample() -> Self {
        Self("acme".into())
    }

    /// The identifier as the host gave it.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for OrgId {
    type Err = OrgIdError;

    fn from_str(id: &str) -> Result<Self, OrgIdError> {
        Self::new(id)
    }
}

impl fmt::Display for OrgId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for OrgId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "OrgId({:?})", self.as_str())
    }
}

/// Why a text is not an organisation identifier.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum OrgIdError {
    /// The text is empty. An empty identifier could be mistaken for a wildcard.
    #[error("an organisation id must not be empty")]
    Empty,
    /// The text is longer than [`OrgId::MAX_LEN`] bytes.
    #[error("an organisation id has at most {} bytes", OrgId::MAX_LEN)]
    TooLong,
    /// The text contains a control character, such as NUL.
    #[error("an organisation id must not contain control characters")]
    ControlCharacter,
}

/// Who manages keys, and for which organisation.
///
/// The host creates one from its own login. Every change is made in the name of an actor,
/// is recorded in the audit log under that name, and affects only keys of the actor's
/// organisation.
///
/// ```
/// use keygate::{Actor, OrgId};
///
/// let actor = Actor::new(OrgId::new("acme")?, "ada@acme.example");
/// assert_eq!(actor.name(), "ada@acme.example");
/// # Ok::<(), keygate::error::OrgIdError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Actor {
    org: OrgId,
    name: Arc<str>,
}

impl Actor {
    /// The longest name, in bytes; a longer one is truncated.
    pub const MAX_NAME_LEN: usize = 255;

    /// An actor of this organisation. The name is for the audit log: a login, an email
    /// address, a service's name. Control characters are replaced by spaces.
    pub fn new(org: OrgId, name: impl AsRef<str>) -> Self {
        let mut name: String =
            name.as_ref().chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
        truncate(&mut name, Self::MAX_NAME_LEN);
        Self { org, name: name.into() }
    }

    /// The organisation whose keys the actor may manage.
    pub fn org(&self) -> &OrgId {
        &self.org
    }

    /// The name shown in the audit log.
    pub fn name(&self) -> &str {
        &self.name
    }

    pub(crate) fn shared_name(&self) -> Arc<str> {
        Arc::clone(&self.name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn case_20_an_empty_organisation_is_refused_at_construction() {
        assert_eq!(OrgId::new(""), Err(OrgIdError::Empty));
        assert_eq!(OrgId::new("a\0b"), Err(OrgIdError::ControlCharacter));
        assert_eq!(OrgId::new("é".repeat(128)), Err(OrgIdError::TooLong));
        assert!(OrgId::new("*").is_ok_and(|org| org.as_str() == "*"));
    }

    #[test]
    fn an_actors_name_is_one_printable_line_of_bounded_length() -> Result<(), OrgIdError> {
        let actor = Actor::new(OrgId::new("acme")?, format!("a\r\nb{}", "é".repeat(400)));
        assert!(actor.name().starts_with("a  b"));
        assert!(actor.name().len() <= Actor::MAX_NAME_LEN);
        Ok(())
    }
}
