//! The schemas of request bodies.

use utoipa::openapi::schema::{ObjectBuilder, Schema, Type};
use utoipa::openapi::{Array, Object, RefOr};

use crate::key::expiration::Expiration;
use crate::key::name::KeyName;
use crate::scopes::Scopes;
use crate::web::admin::offer::Offer;
use crate::web::admin::openapi::schemas::{
    Named, all_or, environment, format, named, object, optional, scope_name, status, string,
};

pub(super) fn all(offer: &Offer) -> [Named; 5] {
    let name = || named("KeyName");
    let expiration = string().enum_values(Some(Expiration::CHOICES));
    let list = || allowlist(offer);
    let typed = string().description(Some(
        "The key's name. White space at the ends is ignored, and so is the amount between words.",
    ));
    let overlap = Object::builder()
        .schema_type(Type::Integer)
        .minimum(Some(0_u32))
        .maximum(Some(offer.max_overlap.as_secs()))
        .default(Some(0.into()))
        .description(Some("How long the old secret works after the rotation."));
    let rotation = object([("confirm_name", typed.into())]);
    let rotation = rotation.property("overlap_seconds", overlap);
    let new = object([("name", name()), ("expiration", expiration.into())]);
    let new = match environment(offer) {
        None => new,
        Some(environment) => new.property(
            "environment",
            environment.description(Some("The first one if it is missing.")),
        ),
    };
    let patch = [("name", name()), ("status", status().into()), ("ip_allowlist", list())];
    let mut new = new.property("ip_allowlist", list());
    let mut patch = optional(patch);
    if let Some(catalog) = &offer.scopes {
        let offered =
            || string().enum_values(Some(catalog.iter().map(|(scope, _)| scope.as_str())));
        // A patch may keep scopes that have left the catalogue.
        new = new.property("scopes", scopes(offered())).required("scopes");
        patch = patch.property("scopes", scopes(scope_name()));
    }
    [
        ("NewKey", new.into()),
        ("KeyPatch", patch.into()),
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

fn allowlist(offer: &Offer) -> RefOr<Schema> {
    Array::builder()
        .items(named("Network"))
        .max_items(usize::try_from(offer.limits.max_ips_per_key).ok())
        .unique_items(true)
        .description(Some("Every address is allowed if it is empty or, in a new key, missing."))
        .into()
}

fn scopes(entry: ObjectBuilder) -> RefOr<Schema> {
    let list = Array::builder()
        .items(entry)
        .min_items(Some(1))
        .max_items(Some(Scopes::MAX))
        .unique_items(true);
    all_or(
        list.into(),
        "Full access, or scopes that `GET /keys` lists. A key keeps a scope that is no longer \
         listed, but no other key can be given it.",
    )
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
