//! The result of a check: the properties that hold, or those that do not.

use std::error::Error;
use std::fmt;
use std::time::Duration;

use thiserror::Error;

/// How a store violates a property.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("expected {expected}, found {found}")]
pub struct Violation {
    expected: String,
    found: String,
}

impl Violation {
    pub(super) fn new(expected: impl Into<String>, found: impl Into<String>) -> Self {
        Self { expected: expected.into(), found: found.into() }
    }

    /// What the property requires.
    pub fn expected(&self) -> &str {
        &self.expected
    }

    /// What the store did instead.
    pub fn found(&self) -> &str {
        &self.found
    }
}

/// The properties that do not hold. `Debug` prints the same list as `Display`, so that
/// `unwrap` in a test shows it.
#[derive(Clone, PartialEq, Eq)]
pub struct Violations {
    checked: usize,
    list: Vec<(&'static str, Violation)>,
}

impl Violations {
    pub(super) fn new(checked: usize, list: Vec<(&'static str, Violation)>) -> Self {
        Self { checked, list }
    }

    /// The name of each property that does not hold, and its violation.
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, &Violation)> {
        self.list.iter().map(|(property, violation)| (*property, violation))
    }
}

impl fmt::Display for Violations {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (failed, properties) = (self.list.len(), counted(self.checked));
        let verb = if failed == 1 { "does" } else { "do" };
        writeln!(f, "{failed} of {properties} {verb} not hold:")?;
        for (property, violation) in &self.list {
            writeln!(f, "\n{property}")?;
            writeln!(f, "    expected: {}", violation.expected)?;
            writeln!(f, "    found:    {}", violation.found)?;
        }
        Ok(())
    }
}

impl fmt::Debug for Violations {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Error for Violations {}

fn counted(properties: usize) -> String {
    format!("{properties} {}", if properties == 1 { "property" } else { "properties" })
}

/// The properties that were checked, all of which hold. `Display` lists their names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    passed: Vec<(&'static str, Duration)>,
}

impl Report {
    pub(super) fn new(passed: Vec<(&'static str, Duration)>) -> Self {
        Self { passed }
    }

    /// The name of each property, and how long it took to check.
    pub fn passed(&self) -> impl ExactSizeIterator<Item = (&'static str, Duration)> {
        self.passed.iter().copied()
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let total: Duration = self.passed.iter().map(|(_, time)| *time).sum();
        let verb = if self.passed.len() == 1 { "holds" } else { "hold" };
        write!(f, "{} {verb}, checked in {total:.1?}", counted(self.passed.len()))?;
        self.passed.iter().try_for_each(|(name, _)| write!(f, "\n{name}"))
    }
}
