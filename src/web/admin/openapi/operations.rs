//! The operations: one function per route, for its parameters and responses.

use serde_json::json;
use utoipa::openapi::header::Header;
use utoipa::openapi::link::Link;
use utoipa::openapi::path::{
    Operation, OperationBuilder, Parameter, ParameterBuilder, ParameterIn,
};
use utoipa::openapi::request_body::RequestBody;
use utoipa::openapi::response::{Response, ResponseBuilder};
use utoipa::openapi::schema::{SchemaFormat, Type};
use utoipa::openapi::{Content, Object, Ref, RefOr, Required, Schema};

use crate::audit::filter::OutcomeFilter;
use crate::key::idempotency::IdempotencyKey;
use crate::web::admin::csv::MAX_ROWS;
use crate::web::admin::input::{IDEMPOTENCY_KEY, MAX_BODY};
use crate::web::admin::offer::Offer;
use crate::web::admin::openapi::problems::{Problems, refs};
use crate::web::admin::openapi::schemas::{named, string};
use crate::web::admin::problem::Code;
use crate::web::admin::requests::{Days, MAX_PAGE};

const JSON: &str = "application/json";

/// The errors of a request without a body.
const READ: Problems =
    &[Code::Unauthenticated, Code::CrossSite, Code::ValidationFailed, Code::Unavailable];

/// The errors of a request with a body.
const BODY: Problems = &[
    Code::MalformedBody,
    Code::Unauthenticated,
    Code::CrossSite,
    Code::PayloadTooLarge,
    Code::UnsupportedMediaType,
    Code::ValidationFailed,
    Code::Unavailable,
];

pub(in crate::web::admin) fn list(_: &Offer) -> Operation {
    operation("list_keys", "All keys, oldest first", &[READ])
        .description(Some("Includes revoked and expired keys, and the limits that apply."))
        .response("200", json("The keys.", "Keys"))
        .build()
}

pub(in crate::web::admin) fn create(offer: &Offer) -> Operation {
    let max = offer.limits.max_keys;
    let path = string().format(Some(SchemaFormat::Custom("uri-reference".into())));
    let created = with_links(issued("The key and its secret, which is shown only here."), "/key");
    let once = string()
        .pattern(Some(format!("^[!-~]{{1,{}}}$", IdempotencyKey::MAX_LEN)))
        .examples(["8e03978e-40d5-43e8-bc93-6894a57f9324"]);
    let problems = &[Code::KeyLimitReached, Code::AlreadyCreated];
    operation("create_key", "Create a key", &[BODY, problems])
        .description(Some(format!(
            "An organisation has at most {max} keys; revoked and expired ones count. The secret \
             is only in this response. If the response is lost, check whether the key was created, \
             and rotate it."
        )))
        .parameter(in_header(
            IDEMPOTENCY_KEY,
            "The caller's name for this creation, such as a random UUID. Sent again within 24 \
             hours it creates no second key: the response is 409 (`already_created`), and \
             `Location` names the key. A key that was deleted may be made again.",
            once,
        ))
        .request_body(Some(body("NewKey")))
        .response("201", created.header("Location", header("The key's path.", path)))
        .build()
}

pub(in crate::web::admin) fn show(_: &Offer) -> Operation {
    of_key("get_key", "One key", &[READ])
        .response("200", with_links(tagged(json("The key.", "Key")), ""))
        .build()
}

pub(in crate::web::admin) fn edit(_: &Offer) -> Operation {
    let problems = &[BODY, &[Code::StaleRevision, Code::Conflict]];
    of_key("update_key", "Rename, revoke, re-enable or restrict a key", problems)
        .description(Some("Fields that are not given stay unchanged."))
        .parameter(if_match())
        .request_body(Some(body("KeyPatch")))
        .response("200", tagged(json("The key after the change.", "Key")))
        .build()
}

pub(in crate::web::admin) fn rotate(_: &Offer) -> Operation {
    let problems = &[Code::StaleRevision, Code::Conflict, Code::ConfirmationMismatch];
    of_key("rotate_key", "Give a key a new secret", &[BODY, problems])
        .description(Some(
            "The old secret fails at once, or after `overlap_seconds`, but no later than the key \
             expires or its secret is replaced again; everything else stays. If the response is \
             lost, so is the new secret: rotate again, or, to keep the old secret working during \
             an overlap, read the key first. A change to the key between its confirmation and the \
             rotation is 409 (`conflict`), or 412 with `If-Match`.",
        ))
        .parameter(if_match())
        .request_body(Some(body("Rotation")))
        .response("200", issued("The key and its new secret, which is shown only here."))
        .build()
}

pub(in crate::web::admin) fn end_previous_secret(_: &Offer) -> Operation {
    // The body is not used, but must be JSON if there is one.
    let problems = &[Code::StaleRevision, Code::Conflict, Code::UnsupportedMediaType];
    of_key("end_previous_secret", "End the overlap after a rotation", &[READ, problems])
        .description(Some(
            "Only the current secret works then. Changes nothing if the key has no other.",
        ))
        .parameter(if_match())
        .response("200", tagged(json("The key after the change.", "Key")))
        .build()
}

pub(in crate::web::admin) fn delete(_: &Offer) -> Operation {
    let problems = &[
        Code::StaleRevision,
        Code::Conflict,
        // The body is not used, but must be JSON if there is one.
        Code::UnsupportedMediaType,
        Code::ConfirmationMismatch,
    ];
    let name = "The key's name, as a confirmation.";
    of_key("delete_key", "Delete a key permanently", &[READ, problems])
        .parameter(query("confirm_name", name, string()).required(Required::True))
        .parameter(if_match())
        .response("204", Response::new("The key was deleted."))
        .build()
}

pub(in crate::web::admin) fn audit(_: &Offer) -> Operation {
    let operation =
        of_key("list_key_requests", "The requests made with a key, newest first", &[READ]);
    filtered(paged(operation, "AuditPage"))
        .description(Some(
            "With a filter, a page may be short although older records match: `older` leads on \
             from there. Also 404 if the service has no readable audit log.",
        ))
        .build()
}

pub(in crate::web::admin) fn audit_file(_: &Offer) -> Operation {
    let summary = "The requests made with a key as a file (RFC 4180), newest first";
    let text = "At most {MAX_ROWS} rows below a header. A value that a spreadsheet would run as a \
        formula begins with an apostrophe. The connection breaks if a part cannot be read. Also \
        404 if the service has no readable audit log.";
    let rows = Response::builder()
        .description("The requests.")
        .content("text/csv", Content::new(Some(string())));
    let operation = of_key("export_key_requests", summary, &[READ])
        .description(Some(text.replace("{MAX_ROWS}", &MAX_ROWS.to_string())))
        .response("200", rows);
    filtered(operation).build()
}

/// The filters of the requests of a key.
fn filtered(operation: OperationBuilder) -> OperationBuilder {
    let outcomes = OutcomeFilter::ALL.iter().map(|outcome| outcome.as_str());
    let status = string().pattern(Some("^([1-5]xx|[1-9][0-9]{2})$")).examples(["404", "4xx"]);
    let time = || string().format(Some(SchemaFormat::Custom("date-time".into())));
    let method = string().pattern(Some("^[!#$%&'*+.^_`|~0-9A-Za-z-]{1,64}$"));
    let refused = "`refused` is every outcome but `allowed` and `aborted`.";
    operation
        .parameter(query("outcome", refused, string().enum_values(Some(outcomes))))
        .parameter(query("status", "A status, or a class of them.", status))
        .parameter(query("method", "A method, in its case.", method))
        .parameter(query("ip", "An address or a CIDR range.", named("Network")))
        .parameter(query("since", "Only requests from then on.", time()))
        .parameter(query("until", "Only requests from before then.", time()))
}

pub(in crate::web::admin) fn usage(_: &Offer) -> Operation {
    let days = Object::builder()
        .schema_type(Type::Integer)
        .minimum(Some(1_u32))
        .maximum(Some(Days::MAX))
        .default(Some(Days::DEFAULT.into()));
    of_key("get_key_usage", "How often a key was used", &[READ])
        .description(Some(
            "By the hour for up to 2 days, otherwise by the day, in UTC. Every hour or day is there, \
             and the last one is in progress. Counts are kept longer than the requests themselves. \
             Also 404 if the service has no readable audit log.",
        ))
        .parameter(query("days", "How many days, up to now.", days))
        .response("200", json("The counts, oldest first.", "Usage"))
        .build()
}

pub(in crate::web::admin) fn key_changes(_: &Offer) -> Operation {
    let operation = of_key("list_key_changes", "The changes of a key, newest first", &[READ]);
    paged(operation, "ChangePage").build()
}

pub(in crate::web::admin) fn changes(_: &Offer) -> Operation {
    let summary = "The changes of all keys, newest first";
    let operation = operation("list_changes", summary, &[READ, &[Code::NotFound]]);
    paged(operation, "ChangePage").build()
}

/// A page of the audit log.
fn paged(operation: OperationBuilder, page: &str) -> OperationBuilder {
    // The same default as in `AuditQuery::new`.
    let page_size = Object::builder()
        .schema_type(Type::Integer)
        .minimum(Some(1_u32))
        .maximum(u32::try_from(MAX_PAGE).ok())
        .default(Some(25.into()));
    // A cursor begins with a time; this covers the next six thousand years.
    let cursor = || string().pattern(Some("^0[0-2][0-9a-f]{46}$"));
    let before = "The `older` cursor of a page, to continue from there. Not together with `after`.";
    let after = "The `newer` cursor of a page, to continue from there. Not together with `before`.";
    operation
        .description(Some("Also 404 if the service has no readable audit log."))
        .parameter(query("limit", "The size of the page.", page_size))
        .parameter(query("before", before, cursor()))
        .parameter(query("after", after, cursor()))
        .response("200", json("A page of the log.", page))
}

pub(in crate::web::admin) fn openapi(_: &Offer) -> Operation {
    let problems = &[Code::Unauthenticated, Code::CrossSite, Code::ValidationFailed];
    operation("get_openapi", "This document", &[problems])
        .response("200", json("An OpenAPI 3.1 document.", "OpenApi"))
        .build()
}

fn operation(id: &str, summary: &str, problems: &[Problems]) -> OperationBuilder {
    let operation = Operation::builder().operation_id(Some(id)).summary(Some(summary));
    refs(&problems.concat()).into_iter().fold(operation, |operation, (status, problem)| {
        operation.response(status.as_str(), RefOr::Ref(problem))
    })
}

/// An operation on one key.
fn of_key(id: &str, summary: &str, problems: &[Problems]) -> OperationBuilder {
    let uuid = string().format(Some(SchemaFormat::Custom("uuid".into())));
    let description = "The key's id, in upper or lower case. A malformed id is treated as unknown.";
    let id_in_path = parameter(ParameterIn::Path, "id", description, uuid);
    let problems = [problems, &[&[Code::NotFound]]].concat();
    operation(id, summary, &problems).parameter(id_in_path.required(Required::True))
}

fn query(name: &str, description: &str, schema: impl Into<RefOr<Schema>>) -> ParameterBuilder {
    parameter(ParameterIn::Query, name, description, schema)
}

fn if_match() -> ParameterBuilder {
    let description = "Entity tags, as returned in `ETag`, or `*`. \
        The change happens only if the key's present one is among them. A weak tag (`W/`) never \
        matches.";
    in_header("If-Match", description, string().examples(["\"1\""]))
}

fn in_header(name: &str, description: &str, schema: impl Into<RefOr<Schema>>) -> ParameterBuilder {
    parameter(ParameterIn::Header, name, description, schema)
}

fn parameter(
    place: ParameterIn,
    name: &str,
    description: &str,
    schema: impl Into<RefOr<Schema>>,
) -> ParameterBuilder {
    Parameter::builder()
        .name(name)
        .parameter_in(place)
        .required(Required::False)
        .description(Some(description))
        .schema(Some(schema))
}

fn body(schema: &str) -> RequestBody {
    RequestBody::builder()
        .description(Some(format!("At most {MAX_BODY} bytes.")))
        .content(JSON, Content::new(Some(Ref::from_schema_name(schema))))
        .required(Some(Required::True))
        .build()
}

fn json(description: &str, schema: &str) -> ResponseBuilder {
    Response::builder()
        .description(description)
        .content(JSON, Content::new(Some(Ref::from_schema_name(schema))))
}

/// A response with one key also has its revision in the header.
fn tagged(response: ResponseBuilder) -> ResponseBuilder {
    let tag = string().pattern(Some("^\"[1-9][0-9]*\"$"));
    response.header("ETag", header("The key's revision, for `If-Match`.", tag))
}

fn issued(description: &str) -> ResponseBuilder {
    let no_store = string().enum_values(Some(["no-store"]));
    tagged(json(description, "IssuedKey"))
        .header("Cache-Control", header("Keeps the secret out of caches.", no_store))
}

fn header(description: &str, schema: impl Into<RefOr<Schema>>) -> Header {
    Header::builder().schema(Some(schema)).description(Some(description)).build()
}

/// Links to the operations on the key in this response.
fn with_links(response: ResponseBuilder, key: &str) -> ResponseBuilder {
    let (id, name) = (format!("$response.body#{key}/id"), format!("$response.body#{key}/name"));
    let link = |operation: &str| Link::builder().operation_id(operation).parameter("id", &*id);
    let confirmation = json!({"confirm_name": &name});
    response
        .link("get", link("get_key").build())
        .link("update", link("update_key").build())
        .link("rotate", link("rotate_key").request_body(Some(confirmation)).build())
        .link("delete", link("delete_key").parameter("confirm_name", &*name).build())
        .link("requests", link("list_key_requests").build())
        .link("changes", link("list_key_changes").build())
        .link("usage", link("get_key_usage").build())
}
