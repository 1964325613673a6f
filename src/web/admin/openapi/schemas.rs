//! The schemas of responses.

use utoipa::openapi::schema::{
    AdditionalProperties, AnyOf, Schema, SchemaFormat, SchemaType, Type,
};
use utoipa::openapi::schema::{ArrayBuilder, ObjectBuilder};
use utoipa::openapi::{Array, Object, Ref, RefOr};

use crate::audit::record::{ChangeAction, ChangePhase, Outcome};
use crate::audit::usage::UsageUnit;
use crate::key::name::KeyName;
use crate::record::{SecretUsed, Status};
use crate::web::admin::offer::Offer;

pub(super) type Property = (&'static str, RefOr<Schema>);
pub(super) type Named = (&'static str, RefOr<Schema>);

pub(super) fn all(offer: &Offer) -> Vec<Named> {
    let mut key = key();
    let mut keys = keys();
    let mut environments = None;
    if let Some(name) = environment(offer) {
        key = key.property("environment", name).required("environment");
        keys = keys.property("environments", list("Environment")).required("environments");
        let of = object([("name", string().into()), ("prefix", string().into())]);
        environments = Some(("Environment", of.into()));
    }
    let mut scope = None;
    if offer.scopes.is_some() {
        let entries = Array::builder().items(scope_name());
        let scopes = all_or(entries.into(), "Full access, or the key's only scopes.");
        key = key.property("scopes", scopes).required("scopes");
        keys = keys.property("scopes", list("Scope")).required("scopes");
        let description = ("description", string().into());
        scope = Some(("Scope", object([("name", scope_name().into()), description]).into()));
    }
    let always = [
        ("Key", key.into()),
        ("Keys", keys.into()),
        ("Limits", object([("max_keys", count()), ("max_ips_per_key", count())]).into()),
        ("IssuedKey", object([("key", named("Key")), ("secret", secret())]).into()),
        ("AuditRecord", record()),
        ("AuditPage", page("AuditRecord")),
        ("Usage", usage()),
        ("UsageBucket", bucket()),
        ("ChangeRecord", change()),
        ("ChangedField", changed_field()),
        ("ChangePage", page("ChangeRecord")),
        ("OpenApi", Object::builder().schema_type(Type::Object).required("openapi").into()),
    ];
    always.into_iter().chain(environments).chain(scope).collect()
}

/// The name of an environment, if there are any.
pub(super) fn environment(offer: &Offer) -> Option<ObjectBuilder> {
    let names: Vec<_> = offer.environments.iter().map(|one| one.name().to_owned()).collect();
    (!names.is_empty()).then(|| string().enum_values(Some(names)))
}

fn key() -> ObjectBuilder {
    let entries =
        "The addresses and CIDR ranges from which the key may be used; any address if empty.";
    object([
        ("id", format("uuid").into()),
        ("name", string().min_length(Some(1)).max_length(Some(KeyName::MAX_CHARS)).into()),
        ("key_prefix", string().description(Some("The key's first characters.")).into()),
        ("status", status().into()),
        ("expired", Object::builder().schema_type(Type::Boolean).into()),
        ("expires_at", nullable_time("Null if it never expires.")),
        ("last_used_at", nullable_time("When it last authenticated a request.")),
        ("created_at", format("date-time").into()),
        ("rotated_at", nullable_time("When its current secret replaced an earlier one.")),
        ("ip_allowlist", Array::builder().items(string()).description(Some(entries)).into()),
        ("revision", revision()),
        ("created_by", nullable_text("Who created it; null if not recorded.")),
        (
            "previous_secret_until",
            nullable_time(
                "Until when the secret before the current one works; null if it does not.",
            ),
        ),
    ])
}

fn keys() -> ObjectBuilder {
    let overlap = Object::builder()
        .schema_type(Type::Integer)
        .minimum(Some(0_u32))
        .description(Some("The most that `overlap_seconds` of a rotation may be."));
    object([
        ("keys", list("Key")),
        ("limits", named("Limits")),
        ("max_overlap_seconds", overlap.into()),
    ])
}

fn record() -> RefOr<Schema> {
    let address = AnyOf::builder()
        .item(format("ipv4"))
        .item(format("ipv6"))
        .item(Object::with_type(Type::Null));
    let country = Object::builder().schema_type(or_null(Type::String)).pattern(Some("^[A-Z]{2}$"));
    let status = Object::builder()
        .schema_type(or_null(Type::Integer))
        .minimum(Some(0_u16))
        .maximum(Some(u16::MAX))
        .description(Some("The status of the response; null if there was none."));
    let outcomes = Outcome::ALL.iter().map(|outcome| outcome.as_str());
    let secrets = SecretUsed::ALL.iter().map(|secret| secret.as_str());
    let requests = Object::builder()
        .schema_type(Type::Integer)
        .minimum(Some(1_u32))
        .maximum(Some(u32::MAX))
        .description(Some(
            "The number of requests that the record stands for; repeated refusals are summed.",
        ));
    object([
        ("timestamp", format("date-time").into()),
        ("method", string().into()),
        ("endpoint", string().description(Some("The path, without the query.")).into()),
        ("ip", address.into()),
        ("country", country.into()),
        ("status", status.into()),
        ("outcome", string().enum_values(Some(outcomes)).into()),
        ("count", requests.into()),
        ("secret", string().enum_values(Some(secrets)).into()),
    ])
    .into()
}

fn usage() -> RefOr<Schema> {
    let units = UsageUnit::ALL.iter().map(|unit| unit.as_str());
    object([("unit", string().enum_values(Some(units)).into()), ("buckets", list("UsageBucket"))])
        .into()
}

fn bucket() -> RefOr<Schema> {
    let count = |description: &str| {
        Object::builder()
            .schema_type(Type::Integer)
            .minimum(Some(0_u32))
            .description(Some(description))
    };
    object([
        ("start", format("date-time").into()),
        ("allowed", count("Let in, and answered with a status below 400.").into()),
        ("errors", count("Let in, and answered with 400 or more or not at all.").into()),
        ("refused", count("Refused because of the key.").into()),
    ])
    .into()
}

fn change() -> RefOr<Schema> {
    let actions = ChangeAction::ALL.iter().map(|action| action.as_str());
    let phases = ChangePhase::ALL.iter().map(|phase| phase.as_str());
    let phase = "Whether the change was begun, or did not take place and was `abandoned`: that is \
        a second record.";
    object([
        ("timestamp", format("date-time").into()),
        ("key_id", format("uuid").into()),
        ("actor", string().description(Some("Who made the change.")).into()),
        ("action", string().enum_values(Some(actions)).into()),
        ("phase", string().enum_values(Some(phases)).description(Some(phase)).into()),
        ("fields", list("ChangedField")),
    ])
    .into()
}

fn changed_field() -> RefOr<Schema> {
    let value = |description: &str| {
        AnyOf::builder()
            .item(string())
            .item(Array::builder().items(string()))
            .item(Object::with_type(Type::Null))
            .description(Some(description))
    };
    object([
        ("name", string().description(Some("As in `Key`.")).into()),
        ("before", value("The value before the change; null if there was none.").into()),
        ("after", value("The value after it; null if there is none.").into()),
    ])
    .into()
}

fn page(record: &str) -> RefOr<Schema> {
    let cursor = |description: &str| {
        Object::builder().schema_type(or_null(Type::String)).description(Some(description))
    };
    object([
        ("records", list(record)),
        ("older", cursor("`before` of the next page; null on the last.").into()),
        ("newer", cursor("`after` of the previous page; null on the first.").into()),
    ])
    .into()
}

fn secret() -> RefOr<Schema> {
    string().description(Some("The full key. It cannot be read again.")).into()
}

fn revision() -> RefOr<Schema> {
    Object::builder().schema_type(Type::Integer).minimum(Some(1_u32)).maximum(Some(u32::MAX)).into()
}

fn count() -> RefOr<Schema> {
    Object::builder().schema_type(Type::Integer).minimum(Some(0_u32)).maximum(Some(u32::MAX)).into()
}

fn nullable_time(description: &str) -> RefOr<Schema> {
    format("date-time").schema_type(or_null(Type::String)).description(Some(description)).into()
}

fn nullable_text(description: &str) -> RefOr<Schema> {
    string().schema_type(or_null(Type::String)).description(Some(description)).into()
}

fn or_null(other: Type) -> SchemaType {
    [other, Type::Null].into_iter().collect()
}

pub(super) fn status() -> ObjectBuilder {
    string().enum_values(Some(Status::ALL.iter().map(|status| status.as_str())))
}

/// An object that has all of these properties and no others.
pub(super) fn object<const N: usize>(properties: [Property; N]) -> ObjectBuilder {
    properties
        .into_iter()
        .fold(optional([]), |object, (name, schema)| object.property(name, schema).required(name))
}

/// An object that may have these properties and no others.
pub(super) fn optional<const N: usize>(properties: [Property; N]) -> ObjectBuilder {
    let closed = Object::builder()
        .schema_type(Type::Object)
        .additional_properties(Some(AdditionalProperties::FreeForm(false)));
    properties.into_iter().fold(closed, |object, (name, schema)| object.property(name, schema))
}

pub(super) fn string() -> ObjectBuilder {
    Object::builder().schema_type(Type::String)
}

pub(super) fn format(name: &str) -> ObjectBuilder {
    string().format(Some(SchemaFormat::Custom(name.to_owned())))
}

pub(super) fn named(schema: &str) -> RefOr<Schema> {
    Ref::from_schema_name(schema).into()
}

/// The word `all`, or a list.
pub(super) fn all_or(list: RefOr<Schema>, description: &str) -> RefOr<Schema> {
    AnyOf::builder()
        .item(string().enum_values(Some(["all"])))
        .item(list)
        .description(Some(description))
        .into()
}

pub(super) fn scope_name() -> ObjectBuilder {
    string().pattern(Some("^[a-z0-9][a-z0-9:._/-]{0,63}$"))
}

fn list(of: &str) -> RefOr<Schema> {
    ArrayBuilder::new().items(named(of)).into()
}
