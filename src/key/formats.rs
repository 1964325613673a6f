//! The formats of a service's keys: one for each environment.

use std::sync::Arc;

use thiserror::Error;

use crate::key::digest::KeyDigest;
use crate::key::existing::{ExistingFormat, ExistingFormatError, ExistingFormats, Lookup, Of};
use crate::key::format::{KeyFormat, MalformedKey};

/// A named prefix, such as `live` with `vsp_sk_` or `test` with `vsp_sk_test_`. Each key
/// belongs to one for good.
///
/// ```
/// # #[tokio::main]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use keygate::{Actor, KeyFormat, KeyManager, MemoryStore, NewKey, OrgId};
///
/// let keys = KeyManager::builder(MemoryStore::new())
///     .environment("live", KeyFormat::default())
///     .environment("test", KeyFormat::new("vsp_sk_test_")?)
///     .build()?;
/// let actor = Actor::new(OrgId::new("acme")?, "ada@acme.example");
/// let issued = keys.create(&actor, NewKey::named("CI")?.environment("test")).await?;
///
/// let verified = keys.verify(issued.secret.expose_secret(), None).await?;
/// assert_eq!(verified.environment(), Some("test"));
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Environment {
    name: Arc<str>,
    format: KeyFormat,
}

impl Environment {
    /// The longest name, in bytes.
    pub const MAX_NAME_LEN: usize = 40;

    pub(crate) fn new(name: &str, format: KeyFormat) -> Self {
        Self { name: name.into(), format }
    }

    /// The name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The format of its keys.
    pub fn format(&self) -> &KeyFormat {
        &self.format
    }
}

/// All formats of a service.
#[derive(Clone, Debug)]
pub(crate) struct Formats {
    all: Arc<[Environment]>,
    /// The format of the first one.
    default: KeyFormat,
    are_named: bool,
    existing: ExistingFormats,
}

impl Formats {
    /// One format, without a name.
    pub(crate) fn single(format: KeyFormat) -> Self {
        let all = Arc::new([Environment::new("", format.clone())]);
        Self { all, default: format, are_named: false, existing: ExistingFormats::default() }
    }

    /// Named environments; the first is the default.
    pub(crate) fn named(environments: Vec<Environment>) -> Result<Self, EnvironmentError> {
        let known =
            |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'_' | b'-');
        for (at, Environment { name, format }) in environments.iter().enumerate() {
            if !(1..=Environment::MAX_NAME_LEN).contains(&name.len()) || !name.bytes().all(known) {
                return Err(EnvironmentError::Name);
            }
            let mut earlier = environments.iter().take(at);
            if earlier.any(|one| one.name == *name || one.format == *format) {
                return Err(EnvironmentError::Twice { name: name.as_ref().into() });
            }
        }
        let default = environments.first().ok_or(EnvironmentError::Name)?.format.clone();
        let existing = ExistingFormats::default();
        Ok(Self { all: environments.into(), default, are_named: true, existing })
    }

    /// Adds the formats of keys that were issued before keygate. With `are_asked`, the host
    /// is asked for those that are not found.
    pub(crate) fn with_existing(
        self,
        formats: Vec<ExistingFormat>,
        are_asked: bool,
    ) -> Result<Self, ExistingFormatError> {
        for format in &formats {
            format.check()?;
            if let Some(own) = self.all.iter().find(|own| format.overlaps(&own.format)) {
                return Err(format.overlap(&own.format));
            }
        }
        Ok(Self { existing: ExistingFormats::new(formats, are_asked), ..self })
    }

    /// The format of keys that are created without an environment.
    pub(crate) fn default_format(&self) -> &KeyFormat {
        &self.default
    }

    /// The environments, if they have names.
    pub(crate) fn environments(&self) -> impl Iterator<Item = &Environment> {
        self.all.iter().filter(|_| self.are_named)
    }

    /// The environment with this name; the default one for `None`.
    pub(crate) fn find(&self, name: Option<&str>) -> Option<&Environment> {
        match name {
            None => self.all.first(),
            Some(name) => self.environments().find(|one| &*one.name == name),
        }
    }

    /// The environment of a key that is shown by this prefix.
    pub(crate) fn of_shown(&self, key_prefix: &str) -> Option<&Environment> {
        self.all.iter().find(|one| one.format.is_of(key_prefix))
    }

    /// The name of that environment, if it has one. Fails for a key of another service.
    pub(crate) fn name_of_shown(&self, key_prefix: &str) -> Result<Option<Arc<str>>, MalformedKey> {
        let environment = self.of_shown(key_prefix).ok_or(MalformedKey)?;
        Ok(self.are_named.then(|| Arc::clone(&environment.name)))
    }

    /// What to look up for a credential of any format, or of one environment's.
    pub(crate) fn lookup(
        &self,
        credential: &[u8],
        environment: Option<&str>,
    ) -> Result<Lookup, MalformedKey> {
        let environment = match environment {
            None => None,
            // A name that is not configured admits nothing.
            name => Some(self.find(name).ok_or(MalformedKey)?),
        };
        if let Some(own) = self.own(credential, environment) {
            return Ok(own);
        }
        let only = environment.map(|one| Arc::clone(&one.name));
        let further = self.existing.further(credential, only).ok_or(MalformedKey)?;
        Ok(Lookup { digest: KeyDigest::of(credential), of: Of::Existing(further) })
    }

    /// What to look up for a key of any environment, or of this one.
    fn own(&self, credential: &[u8], only: Option<&Environment>) -> Option<Lookup> {
        let mut all = self.all.iter().enumerate();
        all.find_map(|(at, one)| {
            if only.is_some_and(|only| only != one) {
                return None;
            }
            let digest = one.format.digest(credential).ok()?;
            Some(Lookup { digest, of: Of::Own(at) })
        })
    }

    /// The name of the environment at this position, if it has one.
    pub(crate) fn name_at(&self, position: usize) -> Option<Arc<str>> {
        self.environments().nth(position).map(|one| Arc::clone(&one.name))
    }

    /// The shortest text that may contain what is taken for an existing key.
    pub(crate) fn shortest_existing(&self) -> Option<usize> {
        self.existing.shortest_leak
    }

    /// Whether a credential begins like a key of any environment, or an existing one.
    #[cfg(feature = "tower")]
    pub(crate) fn begins(&self, credential: &[u8]) -> bool {
        self.all.iter().any(|one| credential.starts_with(one.format.prefix().as_bytes()))
            || self.existing.iter().any(|one| one.begins(credential))
    }

    /// Like [`KeyFormat::occurs_in`], for a key of any environment, or an existing one.
    pub(crate) fn occur_in(&self, text: &[u8]) -> bool {
        self.all.iter().any(|one| one.format.occurs_in(text))
            || self.existing.iter().any(|one| one.occurs_in(text))
    }
}

/// The environments of a service are not valid.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum EnvironmentError {
    /// A name is not 1 to 40 of `[a-z0-9_-]`.
    #[error("an environment's name is 1 to 40 of a-z, 0-9, _ and -")]
    Name,
    /// Two environments have the same name or the same prefix.
    #[error("the environment `{name}` has the name or the prefix of an earlier one")]
    Twice {
        /// The later one.
        name: Box<str>,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    fn formats(all: &[(&str, &str)]) -> Result<Formats, EnvironmentError> {
        let environment =
            |(name, prefix): &(&str, &str)| Environment::new(name, KeyFormat::new(prefix).unwrap());
        Formats::named(all.iter().map(environment).collect())
    }

    #[test]
    fn names_and_prefixes_are_unique_and_names_are_short() {
        let twice = |name: &str| EnvironmentError::Twice { name: name.into() };
        assert!(formats(&[("live", "vsp_sk_"), ("test-1", "vsp_sk_test_")]).is_ok());
        for (all, error) in [
            (&[("live", "a_"), ("live", "b_")][..], twice("live")),
            (&[("live", "a_"), ("test", "a_")], twice("test")),
            (&[("Live", "a_")], EnvironmentError::Name),
            (&[("", "a_")], EnvironmentError::Name),
            (&[], EnvironmentError::Name),
        ] {
            assert_eq!(formats(all).unwrap_err(), error);
        }
        assert!(formats(&[(&"a".repeat(40), "a_")]).is_ok());
        assert_eq!(formats(&[(&"a".repeat(41), "a_")]).unwrap_err(), EnvironmentError::Name);
    }

    #[test]
    fn case_58_a_key_belongs_to_the_environment_of_its_own_prefix() {
        let formats = formats(&[("live", "vsp_sk_"), ("test", "vsp_sk_test_")]).unwrap();
        for name in ["live", "test"] {
            let format = formats.find(Some(name)).unwrap().format();
            let key = format.generate(&mut getrandom::SysRng).unwrap();
            let shown = format.display_prefix(&key);
            assert_eq!(formats.of_shown(&shown).unwrap().name(), name);
        }
        assert_eq!(formats.of_shown("vsp_sk_dev_Ab3x9"), None);
        assert_eq!(formats.of_shown("acme_live_42"), None);
    }
}
