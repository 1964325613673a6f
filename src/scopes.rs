//! What a key may be used for: scopes, and the catalogue that they are chosen from.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::Value;
use thiserror::Error;

/// The name of a scope: 1 to 64 of `a-z`, `0-9`, `:`, `.`, `_`, `/` and `-`, beginning with
/// a letter or digit. Names are compared as a whole; there are no wildcards.
///
/// ```
/// use keygate::Scope;
///
/// assert_eq!(Scope::new("reports:read")?.as_str(), "reports:read");
/// assert!(Scope::new("Reports").is_err());
/// # Ok::<(), keygate::error::ScopeError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Scope(Arc<str>);

impl Scope {
    /// The longest name, in bytes.
    pub const MAX_LEN: usize = 64;

    /// Takes a name exactly as it is written.
    pub fn new(name: impl AsRef<str>) -> Result<Self, ScopeError> {
        let name = name.as_ref();
        let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
        let begins = name.bytes().next().is_some_and(plain);
        let allowed = name.bytes().all(|b| plain(b) || b":._/-".contains(&b));
        if begins && allowed && name.len() <= Self::MAX_LEN {
            Ok(Self(name.into()))
        } else {
            Err(ScopeError)
        }
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl FromStr for Scope {
    type Err = ScopeError;

    fn from_str(name: &str) -> Result<Self, ScopeError> {
        Self::new(name)
    }
}

/// A text is not the name of a scope. The error does not contain the text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error(
    "a scope has 1 to {} of a-z, 0-9 and :._/- and begins with a letter or digit",
    Scope::MAX_LEN
)]
pub struct ScopeError;

/// What a key may be used for: everything ([`Scopes::ALL`]), or 1 to 50 scopes by name.
///
/// There is no empty list, which could be mistaken for full access, and no default.
///
/// ```
/// use keygate::Scopes;
///
/// let scopes = Scopes::only(["reports:read"])?;
/// assert!(scopes.has("reports:read") && !scopes.has("reports:write"));
/// assert!(Scopes::ALL.has("reports:write"));
/// # Ok::<(), keygate::error::ScopesError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Scopes(Kind);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Kind {
    All,
    Only(Box<[Scope]>),
    /// A stored value that could not be read. It has no scope.
    Unreadable(Box<Value>),
}

impl Scopes {
    /// Full access.
    pub const ALL: Self = Self(Kind::All);

    /// The largest number of scopes that a key can have by name.
    pub const MAX: usize = 50;

    /// Only these scopes.
    ///
    /// # Errors
    ///
    /// If there is none, there are more than [`Scopes::MAX`], or one is not a name or is a
    /// duplicate.
    pub fn only<T: AsRef<str>>(names: impl IntoIterator<Item = T>) -> Result<Self, ScopesError> {
        let mut scopes = Vec::new();
        for name in names {
            if scopes.len() >= Self::MAX {
                return Err(ScopesError::TooMany);
            }
            scopes.push(entry(name, scopes.iter())?);
        }
        if scopes.is_empty() {
            return Err(ScopesError::Empty);
        }
        Ok(Self(Kind::Only(scopes.into())))
    }

    /// Whether the key may be used for what needs this scope.
    pub fn has(&self, scope: &str) -> bool {
        self.named().is_none_or(|scopes| scopes.iter().any(|one| one.as_str() == scope))
    }

    /// Whether this is full access.
    pub fn is_all(&self) -> bool {
        self.named().is_none()
    }

    /// The scopes by name, in the order in which they were given; `None` for full access.
    /// Empty only if the stored scopes could not be read: then the key has no scope.
    pub fn named(&self) -> Option<&[Scope]> {
        match &self.0 {
            Kind::All => None,
            Kind::Only(scopes) => Some(scopes),
            Kind::Unreadable(_) => Some(&[]),
        }
    }

    /// The first of these scopes that is missing.
    pub(crate) fn missing<'a>(&self, needed: &'a [Scope]) -> Option<&'a Scope> {
        needed.iter().find(|scope| !self.has(scope.as_str()))
    }
}

/// Reads an entry of a list, after the others.
fn entry<'a>(
    name: impl AsRef<str>,
    mut others: impl ExactSizeIterator<Item = &'a Scope>,
) -> Result<Scope, ScopesError> {
    let position = others.len().saturating_add(1);
    let scope = Scope::new(name).map_err(|problem| ScopesError::Invalid { position, problem })?;
    if others.any(|other| *other == scope) {
        return Err(ScopesError::Duplicate { position });
    }
    Ok(scope)
}

const ALL: &str = "all";

/// As `"all"`, or as a list of names.
impl Serialize for Scopes {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match &self.0 {
            Kind::All => serializer.serialize_str(ALL),
            Kind::Only(scopes) => serializer.collect_seq(scopes.iter().map(Scope::as_str)),
            Kind::Unreadable(value) => value.serialize(serializer),
        }
    }
}

/// Never fails on a JSON value: one that is neither `"all"` nor a valid list is kept
/// unchanged and has *no scope*.
impl<'de> Deserialize<'de> for Scopes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let value = Value::deserialize(deserializer)?;
        let read = match &value {
            Value::String(text) if text == ALL => Some(Self::ALL),
            // An entry that is not a text is as invalid as an empty name.
            Value::Array(list) => {
                Self::only(list.iter().map(|name| name.as_str().unwrap_or_default())).ok()
            }
            _ => None,
        };
        Ok(read.unwrap_or_else(|| Self(Kind::Unreadable(value.into()))))
    }
}

/// Why texts cannot be the scopes of a key or of a catalogue. Entries are given by position,
/// from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum ScopesError {
    /// The list is empty. Full access is [`Scopes::ALL`], and a service without scopes has no
    /// catalogue.
    #[error("must name at least one scope")]
    Empty,
    /// The list is too long.
    #[error("must name at most {} scopes", Scopes::MAX)]
    TooMany,
    /// An entry is not the name of a scope.
    #[error("entry {position}: {problem}")]
    Invalid {
        /// The entry's position.
        position: usize,
        /// What is wrong with it.
        problem: ScopeError,
    },
    /// An entry is a duplicate.
    #[error("entry {position}: already on the list")]
    Duplicate {
        /// The entry's position.
        position: usize,
    },
}

/// The scopes that a service offers, each with a description for the people who choose, in
/// the order in which they are shown.
///
/// ```
/// use keygate::{KeyManager, MemoryStore, NewKey, ScopeCatalog, Scopes};
///
/// # #[tokio::main]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let catalog = ScopeCatalog::new([
///     ("reports:read", "Read reports"),
///     ("reports:write", "Change reports"),
/// ])?;
/// let keys = KeyManager::builder(MemoryStore::new()).scopes(catalog).build()?;
/// # let actor = keygate::Actor::new(keygate::OrgId::new("acme")?, "ada");
/// let new = NewKey::named("CI deploy")?.scopes(Scopes::only(["reports:read"])?);
/// let issued = keys.create(&actor, new).await?;
///
/// let key = keys.verify(issued.secret.expose_secret(), None).await?;
/// assert!(key.has_scope("reports:read") && !key.has_scope("reports:write"));
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ScopeCatalog(Vec<(Scope, String)>);

impl ScopeCatalog {
    /// A catalogue of these names and descriptions.
    ///
    /// # Errors
    ///
    /// If there is none, or one is not a name or is a duplicate.
    pub fn new<N: AsRef<str>, D: Into<String>>(
        scopes: impl IntoIterator<Item = (N, D)>,
    ) -> Result<Self, ScopesError> {
        let mut catalog = Self(Vec::new());
        for (name, description) in scopes {
            let scope = entry(name, catalog.0.iter().map(|(scope, _)| scope))?;
            catalog.0.push((scope, description.into()));
        }
        if catalog.0.is_empty() { Err(ScopesError::Empty) } else { Ok(catalog) }
    }

    /// The scopes with their descriptions.
    pub fn iter(&self) -> impl Iterator<Item = (&Scope, &str)> {
        self.0.iter().map(|(scope, description)| (scope, description.as_str()))
    }

    /// Whether the scope can be given to keys.
    pub fn offers(&self, scope: &Scope) -> bool {
        self.0.iter().any(|(offered, _)| offered == scope)
    }
}

/// A key lacks a scope that a request needs. It comes from
/// [`VerifiedKey::require_scope`](crate::VerifiedKey::require_scope).
///
/// With feature `axum` a handler can return it: as 403 with `insufficient_scope`
/// (RFC 6750 § 3.1). With it in the extensions of a response,
/// [`ApiKeyLayer`](crate::ApiKeyLayer) records the request as
/// [`Outcome::InsufficientScope`](crate::audit::Outcome::InsufficientScope).
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("the key lacks a scope that the request needs")]
pub struct MissingScope {
    scope: Option<Scope>,
}

impl MissingScope {
    pub(crate) fn named(scope: Option<Scope>) -> Self {
        Self { scope }
    }

    /// The scope; `None` if a text was required that is not the name of a scope.
    pub fn scope(&self) -> Option<&Scope> {
        self.scope.as_ref()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_name_has_1_to_64_allowed_characters_and_begins_with_a_letter_or_digit() {
        for name in ["a", "0", "reports:read", "a:._/-", &"a".repeat(64)] {
            assert_eq!(Scope::new(name).unwrap().as_str(), name);
        }
        for name in
            ["", ":a", "-a", " a", "a ", "A", "a b", "a\"", "a\\", "a\n", "é", "*", &"a".repeat(65)]
        {
            assert_eq!(Scope::new(name), Err(ScopeError), "{name:?}");
        }
    }

    #[test]
    fn a_list_has_1_to_50_different_names() {
        let names = |count: usize| (0..count).map(|n| n.to_string());
        assert_eq!(Scopes::only(names(0)), Err(ScopesError::Empty));
        assert_eq!(Scopes::only(names(50)).unwrap().named().unwrap().len(), 50);
        assert_eq!(Scopes::only(names(51)), Err(ScopesError::TooMany));
        assert_eq!(Scopes::only(["a", "b", "a"]), Err(ScopesError::Duplicate { position: 3 }));
        let secret = Scopes::only(["a", "vsp_sk_A"]).unwrap_err().to_string();
        assert!(secret.starts_with("entry 2: a scope has 1 to 64") && !secret.contains("vsp"));
    }

    #[test]
    fn a_catalogue_is_not_empty_and_has_no_duplicates() {
        let catalog = |names: &[&'static str]| ScopeCatalog::new(names.iter().map(|n| (n, "")));
        assert_eq!(catalog(&[]), Err(ScopesError::Empty));
        assert_eq!(catalog(&["a", "a"]), Err(ScopesError::Duplicate { position: 2 }));
        let invalid = ScopesError::Invalid { position: 2, problem: ScopeError };
        assert_eq!(catalog(&["a", "B"]), Err(invalid));
        assert!(
            catalog(&["b", "a"]).unwrap().iter().map(|(scope, _)| scope.as_str()).eq(["b", "a"])
        );
    }

    #[test]
    fn a_stored_value_that_is_neither_all_nor_a_list_has_no_scope_and_is_kept() {
        for stored in [
            "null",
            "[]",
            r#""""#,
            r#""ALL""#,
            r#""a""#,
            "true",
            "{}",
            r#"["a","a"]"#,
            r#"["a",7]"#,
            r#"["a",""]"#,
            r#"["A"]"#,
            r#"["a",["all"]]"#,
        ] {
            let scopes: Scopes = serde_json::from_str(stored).unwrap();
            assert_eq!(scopes.named(), Some(&[][..]), "{stored}");
            assert!(!scopes.is_all() && !scopes.has("a") && !scopes.has("all"), "{stored}");
            assert_eq!(serde_json::to_string(&scopes).unwrap(), stored);
        }
    }

    proptest! {
        #[test]
        fn any_stored_json_gives_a_scope_only_if_it_is_all_or_names_it(
            text in r#"(null|true|7|"all"|"a"|\[("a"|"b"|"A"|null|,){0,4}\]|\{("a":"all")?\})"#,
            scope in "[abA]",
        ) {
            let Ok(value) = serde_json::from_str::<Value>(&text) else { return Ok(()) };
            let scopes: Scopes = serde_json::from_str(&text).unwrap();
            let listed = value.as_array().is_some_and(|list| list.contains(&scope.clone().into()));
            prop_assert!(!scopes.has(&scope) || value == ALL || listed);
        }

        #[test]
        fn scopes_survive_being_stored(names in proptest::collection::btree_set("[a-z0-9][a-z0-9:._/-]{0,63}", 1..=50)) {
            let scopes = Scopes::only(&names).unwrap();
            let restored: Scopes =
                serde_json::from_str(&serde_json::to_string(&scopes).unwrap()).unwrap();
            prop_assert_eq!(&restored, &scopes);
            prop_assert!(names.iter().all(|name| restored.has(name)));
        }

        #[test]
        fn a_name_is_accepted_exactly_by_the_rule(text in "\\PC{0,3}|[a-z0-9:._/-]{0,70}|[ -~]{0,4}") {
            let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
            let valid = (1..=64).contains(&text.len())
                && text.starts_with(plain)
                && text.chars().all(|c| plain(c) || ":._/-".contains(c));
            prop_assert_eq!(Scope::new(&text).is_ok(), valid);
        }
    }
}
