//! The error responses of the operations.

use std::collections::{BTreeMap, BTreeSet};

use utoipa::openapi::header::Header;
use utoipa::openapi::response::Response;
use utoipa::openapi::schema::{AllOf, ObjectBuilder, OneOf, Schema, Type};
use utoipa::openapi::{Array, Content, Object, Ref, RefOr};

use crate::web::admin::openapi::schemas::{Named, named, object, string};
use crate::web::admin::problem::Code;

pub(super) type Problems = &'static [Code];

/// The statuses of these codes, each with the response that describes it.
pub(super) fn refs(codes: &[Code]) -> Vec<(String, Ref)> {
    let mut by_status: BTreeMap<u16, Vec<Code>> = BTreeMap::new();
    for code in codes {
        by_status.entry(code.status().as_u16()).or_default().push(*code);
    }
    by_status
        .into_iter()
        .map(|(status, codes)| (status.to_string(), Ref::from_response_name(name(&codes))))
        .collect()
}

/// All error responses by name: one for each code, and one for each set of codes that share
/// a status.
pub(super) fn responses() -> Vec<(String, Response)> {
    let alone = Code::ALL.iter().map(|code| vec![*code]);
    let together = [
        vec![Code::ValidationFailed, Code::ConfirmationMismatch],
        vec![Code::KeyLimitReached, Code::AlreadyCreated],
    ];
    alone.chain(together).map(|codes| (name(&codes), response(&codes))).collect()
}

fn name(codes: &[Code]) -> String {
    codes.iter().map(|code| code.name()).collect::<Vec<_>>().join("_or_")
}

fn response(codes: &[Code]) -> Response {
    let description = codes.iter().map(|code| meaning(*code)).collect::<Vec<_>>().join(" ");
    let schema = match codes {
        [code] => schema(*code),
        several => {
            let any = several.iter().fold(OneOf::builder(), |any, code| any.item(schema(*code)));
            any.into()
        }
    };
    let response = Response::builder()
        .description(description)
        .content("application/problem+json", Content::new(Some(schema)));
    match codes {
        [Code::MethodNotAllowed] => response.header("Allow", header("The methods of this path.")),
        [.., Code::AlreadyCreated] => {
            response.header("Location", header("With `already_created`: the key's path."))
        }
        [Code::Unavailable] => {
            response.header("Retry-After", header("The number of seconds to wait."))
        }
        _ => response,
    }
    .build()
}

fn header(description: &str) -> Header {
    Header::builder().schema(Some(string())).description(Some(description)).build()
}

fn meaning(code: Code) -> &'static str {
    match code {
        Code::MalformedBody => "The body is not JSON or is incomplete.",
        Code::Unauthenticated => "The request has no login.",
        Code::CrossSite => {
            "A browser sent the request for another site, or the host is not one of the service's."
        }
        Code::NotFound => "The organisation has no such key.",
        Code::MethodNotAllowed => "The path does not support this method.",
        Code::KeyLimitReached => "The organisation has reached its limit of keys.",
        Code::Conflict => "Another change came first.",
        Code::AlreadyCreated => {
            "The `Idempotency-Key` has created a key in the last 24 hours; see `Location`."
        }
        Code::StaleRevision => {
            "The key's revision is not in `If-Match`. If a tag is malformed or weak, `detail` says so."
        }
        Code::PayloadTooLarge => "The body is too large.",
        Code::UnsupportedMediaType => {
            "The body is not sent as `application/json`, or has a `Content-Encoding`."
        }
        Code::ValidationFailed => "The request is invalid; see `errors`.",
        Code::ConfirmationMismatch => "`confirm_name` is not the key's name.",
        Code::Unavailable => {
            "Try again shortly. A change did not take place unless `detail` says that it may have."
        }
    }
}

fn schema(code: Code) -> RefOr<Schema> {
    if code == Code::ValidationFailed {
        return named("ValidationProblem");
    }
    let this = Object::builder()
        .schema_type(Type::Object)
        .property("status", status([code]))
        .property("code", codes([code]));
    AllOf::builder().item(named("Problem")).item(this).into()
}

pub(super) fn schemas() -> [Named; 3] {
    let others = || Code::ALL.iter().copied().filter(|code| *code != Code::ValidationFailed);
    let invalid = [Code::ValidationFailed];
    let errors = Array::builder().items(named("FieldError")).min_items(Some(1));
    let of_fields = problem(invalid).property("errors", errors).required("errors");
    let field = "A field of the body, a parameter of the query, a header, `body` for the whole body, \
        or `?` for a name that is not shown.";
    let field = string().description(Some(field));
    [
        ("Problem", problem(others()).into()),
        ("ValidationProblem", of_fields.into()),
        ("FieldError", object([("field", field.into()), ("message", string().into())]).into()),
    ]
}

/// RFC 9457, with a `code` for programs.
fn problem(of: impl IntoIterator<Item = Code> + Clone) -> ObjectBuilder {
    object([
        ("type", string().enum_values(Some(["about:blank"])).into()),
        ("title", string().into()),
        ("status", status(of.clone()).into()),
        ("code", codes(of).into()),
        ("detail", string().into()),
    ])
}

fn codes(of: impl IntoIterator<Item = Code>) -> ObjectBuilder {
    string().enum_values(Some(of.into_iter().map(Code::name)))
}

fn status(of: impl IntoIterator<Item = Code>) -> ObjectBuilder {
    let statuses: BTreeSet<u16> = of.into_iter().map(|code| code.status().as_u16()).collect();
    Object::builder().schema_type(Type::Integer).enum_values(Some(statuses))
}
