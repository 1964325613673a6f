//! Enums with a fixed set of names, each defined once with its texts and its parser.

use thiserror::Error;

/// A text is not one of the names that this version knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("must be {expected}")]
pub struct UnknownName {
    expected: &'static str,
}

impl UnknownName {
    pub(crate) const fn new(expected: &'static str) -> Self {
        Self { expected }
    }
}

/// Defines an enum by the texts of its variants.
macro_rules! names {
    (
        $(#[$attribute:meta])*
        pub enum $name:ident: $expected:literal {
            $($(#[$doc:meta])* $member:ident = $text:literal,)+
        }
    ) => {
        $(#[$attribute])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum $name {
            $($(#[$doc])* $member,)+
        }

        impl $name {
            /// All variants.
            pub const ALL: &'static [Self] = &[$(Self::$member),+];

            /// The name in snake case, which [`str::parse`] reads.
            pub const fn as_str(self) -> &'static str {
                match self {
                    $(Self::$member => $text,)+
                }
            }
        }

        impl ::std::fmt::Display for $name {
            fn fmt(&self, f: &mut ::std::fmt::Formatter<'_>) -> ::std::fmt::Result {
                f.pad(self.as_str())
            }
        }

        impl ::std::str::FromStr for $name {
            type Err = $crate::names::UnknownName;

            fn from_str(text: &str) -> Result<Self, $crate::names::UnknownName> {
                match text {
                    $($text => Ok(Self::$member),)+
                    _ => Err($crate::names::UnknownName::new($expected)),
                }
            }
        }
    };
}

/// Defines how a log reads names that a later version may have written.
macro_rules! restored {
    ($($name:ident),+) => {
        $(impl $name {
            /// Reads a stored name. A name that this version does not know, written by a
            /// later version, becomes `Unknown`, so that the rest of the page can still be
            /// shown.
            pub fn restore(text: &str) -> Self {
                text.parse().unwrap_or(Self::Unknown)
            }
        })+
    };
}

pub(crate) use {names, restored};
