//! What the types are read with.
//!
//! Errors of serde, and of the formats, repeat what they found: `invalid type: string
//! "vsp_sk_…"`. So everything is read by `deserialize_any`, with which the visitor makes the
//! error, and by a visitor that takes every type. This excludes formats that do not
//! describe themselves.

use std::convert::Infallible;
use std::fmt;
use std::marker::PhantomData;

use serde::de::value::{MapAccessDeserializer, SeqAccessDeserializer};
use serde::de::{Error as _, MapAccess, SeqAccess, Unexpected, Visitor};
use serde::{Deserialize, Deserializer};

/// For what cannot fail.
pub(super) fn known<T>(name: T) -> Result<T, Infallible> {
    Ok(name)
}

pub(super) fn text<'de, D: Deserializer<'de>, T, E: fmt::Display>(
    deserializer: D,
    expected: &'static str,
    parse: fn(&str) -> Result<T, E>,
) -> Result<T, D::Error> {
    deserializer.deserialize_any(TextVisitor { expected, parse })
}

struct TextVisitor<T, P> {
    expected: &'static str,
    parse: fn(&str) -> Result<T, P>,
}

/// A visitor's methods for values of these types: errors that do not repeat the value.
macro_rules! refuse {
    ($($visit:ident: $type:ty, $found:literal;)+) => {$(
        fn $visit<E: serde::de::Error>(self, _: $type) -> Result<Self::Value, E> {
            Err(E::invalid_type(Unexpected::Other($found), &self))
        }
    )+};
    (numbers) => {
        refuse! {
            visit_bool: bool, "a boolean";
            visit_i64: i64, "a number";
            visit_i128: i128, "a number";
            visit_u64: u64, "a number";
            visit_u128: u128, "a number";
            visit_f64: f64, "a number";
        }
    };
    (numbers and texts) => {
        refuse!(numbers);
        refuse! { visit_str: &str, "a text"; }
    };
}

impl<T, P: fmt::Display> Visitor<'_> for TextVisitor<T, P> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.expected)
    }

    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<T, E> {
        (self.parse)(text).map_err(E::custom)
    }

    refuse!(numbers);
}

/// A text that may be anything.
pub(super) fn any_text<'de, D: Deserializer<'de>, T: From<String>>(
    deserializer: D,
) -> Result<T, D::Error> {
    text(deserializer, "a text", |text| known(text.to_owned())).map(T::from)
}

/// See [`any_text`].
#[derive(PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct AnyText(pub(super) String);

impl<'de> Deserialize<'de> for AnyText {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        any_text(deserializer).map(Self)
    }
}

/// A number of any type.
pub(super) fn number<'de, D: Deserializer<'de>, T: Deserialize<'de>>(
    deserializer: D,
) -> Result<T, D::Error> {
    T::deserialize(deserializer)
        .map_err(|_| D::Error::custom("must be a whole number within its range"))
}

/// The entries of an allowlist, as texts.
pub(super) fn entries<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    struct EntriesVisitor;

    impl<'de> Visitor<'de> for EntriesVisitor {
        type Value = Vec<String>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a list of IP addresses and CIDR ranges")
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Vec<String>, A::Error> {
            let mut entries = Vec::new();
            while let Some(AnyText(entry)) = list.next_element()? {
                entries.push(entry);
            }
            Ok(entries)
        }

        refuse!(numbers and texts);
    }

    deserializer.deserialize_any(EntriesVisitor)
}

/// A struct, or what is written like one.
pub(super) trait Fields: Sized {
    const EXPECTED: &'static str;

    /// Reads it from a map or a sequence.
    fn read<'de, D: Deserializer<'de>>(fields: D) -> Result<Self, D::Error>;
}

/// Types that are read by their fields.
macro_rules! read_by_fields {
    ($($type:ty: $expected:literal, $read:expr;)+) => {$(
        impl $crate::serialize::read::Fields for $type {
            const EXPECTED: &'static str = $expected;

            fn read<'de, D: ::serde::Deserializer<'de>>(fields: D) -> Result<Self, D::Error> {
                $read(fields)
            }
        }

        impl<'de> ::serde::Deserialize<'de> for $type {
            fn deserialize<D: ::serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
                $crate::serialize::read::fields(from)
            }
        }
    )+};
}
pub(super) use read_by_fields;

/// A struct by its fields.
pub(super) fn fields<'de, D: Deserializer<'de>, T: Fields>(deserializer: D) -> Result<T, D::Error> {
    deserializer.deserialize_any(FieldsVisitor(PhantomData))
}

struct FieldsVisitor<T>(PhantomData<T>);

impl<'de, T: Fields> Visitor<'de> for FieldsVisitor<T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(T::EXPECTED)
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<T, A::Error> {
        T::read(MapAccessDeserializer::new(map))
    }

    /// Some formats leave the names of fields out.
    fn visit_seq<A: SeqAccess<'de>>(self, list: A) -> Result<T, A::Error> {
        T::read(SeqAccessDeserializer::new(list))
    }

    refuse!(numbers and texts);
}
