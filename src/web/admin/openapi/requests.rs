//! The schemas of request bodies.

use std::time::Duration;

use utoipa::openapi::schema::{ObjectBuilder, Schema, Type};
use utoipa::openapi::{Array, Object, RefOr};

use crate::key::expiration::Expiration;
use crate::key::name::KeyName;
use crate::record::Limits;
use crate::web::admin::openapi::schemas::{Named, format, named, object, optional, status, string};

pub(super) fn all(limits: Limits, max_overlap: Duration) -> [Named; 5] {
    let name = || named("KeyName");
    let expiration = string().enum_values(Some(Expiration::CHOICES));
    let list = || allowlist(limits);
    let typed = string().description(Some(
        "The key's name. White space at the ends is ignored, and so is the amount between words.",
    ));
    let overlap = Object::builder()
        .schema_type(Type::Integer)
        .minimum(Some(0_u32))
        .maximum(Some(max_overlap.as_secs()))
        .default(Some(0.into()))
        .description(Some("How long the old secret works after the rotation."));
    let rotation = object([("confirm_name", typed.into())]);
    let rotation = rotation.property("overlap_seconds", overlap);
    let new = object([("name", name()), ("expiration", expiration.into())]);
    let patch = [("name", name()), ("status", status().into()), ("ip_allowlist", list())];
    [
        ("NewKey", new.property("ip_allowlist", list()).into()),
        ("KeyPatch", optional(patch).into()),
        ("Rotation", rotation.into()),
        ("KeyName", key_name().into()),
        ("Network", network()),
    ]
}

/// For the brackets of a regular expression: invisible characters that no name may contain.
/// Joiners and selectors are not included, since they are valid within a visible character;
/// only the service checks where they are.
const HIDDEN: &str = r"\x00-\x1f\x7f-\x9f\xad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\u2800\u3164\ufeff\uffa0\ufff0-\ufffb";

fn key_name() -> ObjectBuilder {
    string()
        .min_length(Some(1))
        .max_length(Some(KeyName::MAX_CHARS))
        .pattern(Some(std::format!("^[^{HIDDEN}]*[^{HIDDEN}\\s][^{HIDDEN}]*$")))
        .description(Some(
            "White space at the ends is dropped, and the rest must not be empty. No \
             invisible characters, such as controls and bidirectional overrides.",
        ))
}

fn allowlist(limits: Limits) -> RefOr<Schema> {
    Array::builder()
        .items(named("Network"))
        .max_items(usize::try_from(limits.max_ips_per_key).ok())
        .unique_items(true)
        .description(Some("Every address is allowed if it is empty or, in a new key, missing."))
        .into()
}

fn network() -> RefOr<Schema> {
    format("ip-network")
        .pattern(Some(r"^\s*[0-9A-Fa-f:.]+(/[0-9]+)?\s*$"))
        .description(Some(
            "An address or a CIDR range without host bits; no zone ids, and no numbers that \
             begin with 0.",
        ))
        .examples(["192.0.2.1", "10.0.0.0/8", "2001:db8::/32"])
        .into()
}
