//! The handlers of all routes, and of unknown paths and methods.

use axum::extract::{OriginalUri, State};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use http::StatusCode;
use http::header::{HeaderValue, LOCATION};

use crate::audit::filter::AuditFilter;
use crate::audit::log::{AuditPage, AuditQuery, AuditScope};
use crate::key::id::KeyId;
use crate::manager::KeyManager;
use crate::manager::error::ManageError;
use crate::org::Actor;
use crate::record::Revision;
use crate::record::change::{KeyPatch, NewKey};
use crate::web::admin::csv;
use crate::web::admin::input::{Id, Idempotency, IgnoredBody, InBody, InQuery};
use crate::web::admin::precondition::IfMatch;
use crate::web::admin::problem::{Code, Problem};
use crate::web::admin::requests::{Confirmation, Days, Page, Rotation};
use crate::web::admin::view::{KeysView, PageView, UsageView, issued_answer, key_answer};

type Answer = Result<Response, Problem>;

pub(super) async fn list(
    State(keys): State<KeyManager>,
    Extension(actor): Extension<Actor>,
    InQuery(()): InQuery<()>,
) -> Answer {
    let list = keys.list(actor.org()).await.map_err(Problem::reading)?;
    Ok(Json(KeysView::new(&keys, actor.org(), &list)).into_response())
}

pub(super) async fn create(
    State(keys): State<KeyManager>,
    Extension(actor): Extension<Actor>,
    OriginalUri(uri): OriginalUri,
    InQuery(()): InQuery<()>,
    Idempotency(once): Idempotency,
    InBody(new): InBody<NewKey>,
) -> Answer {
    let location = |id: &KeyId| HeaderValue::try_from(format!("{}/{id}", uri.path())).ok();
    let new = match once {
        Some(once) => new.idempotent(once),
        None => new,
    };
    let issued = match keys.create(&actor, new).await {
        Err(error @ ManageError::AlreadyCreated { id }) => {
            return Err(Problem::from(error).at(location(&id)));
        }
        created => created?,
    };
    let mut answer = issued_answer(StatusCode::CREATED, &keys, &issued);
    if let Some(location) = location(&issued.key.id) {
        answer.headers_mut().insert(LOCATION, location);
    }
    Ok(answer)
}

pub(super) async fn show(
    State(keys): State<KeyManager>,
    Extension(actor): Extension<Actor>,
    Id(id): Id,
    InQuery(()): InQuery<()>,
) -> Answer {
    let key = keys.get(actor.org(), &id).await.map_err(Problem::reading)?;
    Ok(key_answer(&keys, &key))
}

pub(super) async fn edit(
    State(keys): State<KeyManager>,
    Extension(actor): Extension<Actor>,
    Id(id): Id,
    InQuery(()): InQuery<()>,
    if_match: IfMatch,
    InBody(patch): InBody<KeyPatch>,
) -> Answer {
    change(&keys, &actor, &id, &if_match, patch).await
}

async fn change(
    keys: &KeyManager,
    actor: &Actor,
    id: &KeyId,
    if_match: &IfMatch,
    patch: KeyPatch,
) -> Answer {
    let key = match if_match {
        IfMatch::Any => keys.update(actor, id, patch).await?,
        IfMatch::OneOf(_) => {
            let current = keys.get(actor.org(), id).await?;
            if_match.check(&current)?;
            keys.update_if(actor, id, patch, current.revision).await?
        }
    };
    Ok(key_answer(keys, &key))
}

pub(super) async fn rotate(
    State(keys): State<KeyManager>,
    Extension(actor): Extension<Actor>,
    Id(id): Id,
    InQuery(()): InQuery<()>,
    if_match: IfMatch,
    InBody(Rotation { confirmation, overlap }): InBody<Rotation>,
) -> Answer {
    let revision = confirm(&keys, &actor, &id, &if_match, &confirmation).await?;
    let rotated = keys.rotate_with_overlap(&actor, &id, overlap, Some(revision)).await;
    let issued = rotated.map_err(|error| if_match.overtaken(error))?;
    Ok(issued_answer(StatusCode::OK, &keys, &issued))
}

pub(super) async fn end_previous_secret(
    State(keys): State<KeyManager>,
    Extension(actor): Extension<Actor>,
    Id(id): Id,
    InQuery(()): InQuery<()>,
    if_match: IfMatch,
    _: IgnoredBody,
) -> Answer {
    change(&keys, &actor, &id, &if_match, KeyPatch::end_previous_secret()).await
}

pub(super) async fn delete(
    State(keys): State<KeyManager>,
    Extension(actor): Extension<Actor>,
    Id(id): Id,
    InQuery(confirmation): InQuery<Confirmation>,
    if_match: IfMatch,
    _: IgnoredBody,
) -> Answer {
    let revision = confirm(&keys, &actor, &id, &if_match, &confirmation).await?;
    let deleted = keys.delete_if(&actor, &id, revision).await;
    deleted.map_err(|error| if_match.overtaken(error))?;
    Ok(StatusCode::NO_CONTENT.into_response())
}

/// Checks that the caller confirmed the key's name. Returns the revision of the key with
/// this name, to which the change must be limited.
async fn confirm(
    keys: &KeyManager,
    actor: &Actor,
    id: &KeyId,
    if_match: &IfMatch,
    Confirmation(typed): &Confirmation,
) -> Result<Revision, Problem> {
    let key = keys.get(actor.org(), id).await?;
    if_match.check(&key)?;
    // Compared without white space at the ends, and with any amount between words, since it
    // cannot be seen.
    if !typed.split_whitespace().eq(key.name.as_str().split_whitespace()) {
        let detail = "`confirm_name` is not the key's name. Nothing was changed.";
        return Err(Problem::new(Code::ConfirmationMismatch, detail));
    }
    Ok(key.revision)
}

pub(super) async fn audit(
    State(keys): State<KeyManager>,
    Extension(actor): Extension<Actor>,
    Id(id): Id,
    InQuery((page, filter)): InQuery<(Page, AuditFilter)>,
) -> Answer {
    let query = page.of(requests(&keys, &actor, id).await?.filter(filter));
    let page = read(&keys, &query).await?;
    Ok(Json(PageView::of_requests(&page)).into_response())
}

pub(super) async fn audit_file(
    State(keys): State<KeyManager>,
    Extension(actor): Extension<Actor>,
    Id(id): Id,
    InQuery(filter): InQuery<AuditFilter>,
) -> Answer {
    let query = requests(&keys, &actor, id).await?.filter(filter).limit(AuditQuery::MAX_LIMIT);
    let first = read(&keys, &query).await?;
    Ok(csv::file(keys, id, query, first))
}

/// The requests of a key, if it is there.
async fn requests(keys: &KeyManager, actor: &Actor, id: KeyId) -> Result<AuditQuery, Problem> {
    keys.get(actor.org(), &id).await.map_err(Problem::reading)?;
    Ok(AuditQuery::new(actor.org().clone(), AuditScope::KeyRequests(id)))
}

pub(super) async fn usage(
    State(keys): State<KeyManager>,
    Extension(actor): Extension<Actor>,
    Id(id): Id,
    InQuery(Days(days)): InQuery<Days>,
) -> Answer {
    keys.get(actor.org(), &id).await.map_err(Problem::reading)?;
    let usage = keys.usage(actor.org(), &id, days).await.ok_or_else(no_log)?;
    let usage = usage.map_err(Problem::reading)?;
    Ok(Json(UsageView::from(&usage)).into_response())
}

pub(super) async fn key_changes(
    State(keys): State<KeyManager>,
    Extension(actor): Extension<Actor>,
    Id(id): Id,
    InQuery(page): InQuery<Page>,
) -> Answer {
    let org = actor.org();
    keys.get(org, &id).await.map_err(Problem::reading)?;
    let query = page.of(AuditQuery::new(org.clone(), AuditScope::KeyChanges(id)));
    let page = read(&keys, &query).await?;
    Ok(Json(PageView::of_changes(&keys, &page)).into_response())
}

pub(super) async fn changes(
    State(keys): State<KeyManager>,
    Extension(actor): Extension<Actor>,
    InQuery(page): InQuery<Page>,
) -> Answer {
    let query = page.of(AuditQuery::new(actor.org().clone(), AuditScope::OrgChanges));
    let page = read(&keys, &query).await?;
    Ok(Json(PageView::of_changes(&keys, &page)).into_response())
}

async fn read(keys: &KeyManager, query: &AuditQuery) -> Result<AuditPage, Problem> {
    let page = keys.audit_page(query).await.ok_or_else(no_log)?;
    page.map_err(Problem::reading)
}

fn no_log() -> Problem {
    Problem::new(Code::NotFound, "This service has no readable audit log.")
}

pub(super) async fn unknown_path() -> Problem {
    Problem::new(Code::NotFound, "There is no resource at this path.")
}

/// The router adds `Allow`.
pub(super) async fn wrong_method() -> Problem {
    Problem::new(
        Code::MethodNotAllowed,
        "The path does not support this method; see the `Allow` header.",
    )
}
