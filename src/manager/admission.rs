//! Admission of a request: verification with its audit record.

use std::borrow::Cow;
use std::fmt;
use std::future::{Future, ready};
use std::net::IpAddr;
use std::sync::Arc;

use thiserror::Error;

use crate::audit::delivery::DeliveryError;
use crate::audit::queue::{Draft, Permit};
use crate::audit::record::{AuditEvent, AuditIds, AuditRecord, Outcome, RequestEvent};
use crate::audit::sums::{Refusal, Sum};
use crate::audit::writer::AuditWriter;
use crate::key::existing::Lookup;
use crate::key::formats::Formats;
use crate::key::id::KeyId;
use crate::manager::KeyManager;
use crate::manager::endpoint::{endpoint, kept, method};
use crate::manager::rate::{RateLimiter, RateStatus};
use crate::manager::verify::{VerifiedKey, VerifyError};
use crate::meters::Timer;
use crate::org::OrgId;
use crate::policy::Denial;
use crate::record::{ApiKey, SecretUsed};
use crate::runtime::clock::Timestamp;
use crate::runtime::spawn::BoxFuture;
use crate::scopes::Scope;
use crate::text::with_causes;

/// What the audit log says about a request.
///
/// ```
/// use keygate::manager::RequestInfo;
///
/// let client = "192.0.2.1".parse::<std::net::IpAddr>()?;
/// let request = RequestInfo::new("GET", "/v1/reports").from_ip(client);
/// # Ok::<(), std::net::AddrParseError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct RequestInfo {
    /// The HTTP method.
    pub method: Cow<'static, str>,
    /// The path, without the query.
    pub path: Box<str>,
    /// The client's address, if known.
    pub ip: Option<IpAddr>,
}

impl RequestInfo {
    /// A request from an unknown address, which no allowlist lets in.
    pub fn new(method: impl Into<Cow<'static, str>>, path: impl Into<Box<str>>) -> Self {
        Self { method: method.into(), path: path.into(), ip: None }
    }

    /// Sets the client's address.
    pub fn from_ip(self, ip: impl Into<Option<IpAddr>>) -> Self {
        Self { ip: ip.into(), ..self }
    }
}

impl KeyManager {
    /// Admits a request, or refuses it. Either way, a request with a known key appears in
    /// the audit log: in a separate record, or in one that sums up many refusals (see
    /// [`Delivery`](crate::Delivery)). The only exception is a request that is refused
    /// because there is no room for its record. The tower layer is built on this;
    /// middleware for other frameworks can be, too.
    ///
    /// ```
    /// # #[tokio::main]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # use keygate::manager::RequestInfo;
    /// # use keygate::{Actor, KeyManager, MemoryStore, NewKey, OrgId};
    /// # let keys = KeyManager::builder(MemoryStore::new()).build()?;
    /// # let actor = Actor::new(OrgId::new("acme")?, "ada");
    /// # let issued = keys.create(&actor, NewKey::named("CI")?).await?;
    /// # let credential = issued.secret.expose_secret();
    /// let client = "192.0.2.1".parse::<std::net::IpAddr>()?;
    /// let request = RequestInfo::new("GET", "/v1/things").from_ip(client);
    /// let admission = keys.admit(credential, request).await?;
    /// println!("handle the request for {}", admission.key().org());
    /// // Dropped before this, the admission leaves a record marked `aborted`.
    /// admission.finish(200).await?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn admit(
        &self,
        credential: &str,
        request: RequestInfo,
    ) -> impl Future<Output = Result<Admission, AdmitError>> + Send + use<'_> {
        let lookup = self.inner.lookup(credential.as_bytes());
        async move {
            match lookup {
                Ok(lookup) => {
                    let admitted = self.admit_lookup(&lookup, request, &[]).await;
                    admitted.map_err(|NotAdmitted { error, .. }| error)
                }
                Err(malformed) => {
                    Err(self.refuse(VerifyError::Malformed(malformed), request).await)
                }
            }
        }
    }

    /// As [`KeyManager::admit`], for a credential that is well formed and a request that
    /// needs scopes.
    pub(crate) async fn admit_lookup(
        &self,
        lookup: &Lookup,
        request: RequestInfo,
        scopes: &[Scope],
    ) -> Result<Admission, NotAdmitted> {
        let timer = Timer::start();
        let (key, at) = match self.inner.check(lookup, request.ip.as_ref()).await {
            Ok(allowed) => allowed,
            Err(error) => {
                self.inner.count(Some(&error), timer);
                return Err(self.refuse(error, request).await.into());
            }
        };
        let (rate, request) = match &self.inner.limiter {
            None => (None, request),
            // Boxed, so that requests without a limit do not pay for its size.
            Some(limiter) => Box::pin(self.within_rate(limiter, &key, at, request, timer)).await?,
        };
        if key.scopes().missing(scopes).is_some() {
            let error = key.lacks_scope();
            self.inner.count(Some(&error), timer);
            return Err(NotAdmitted { error: self.refuse(error, request).await, rate });
        }
        self.inner.count(None, timer);
        let mut admission = Admission { key, rate, unrecorded: None };
        if let Some(audit) = &self.inner.audit {
            // If the caller gives up while waiting for room, the record is still queued if
            // there is room by then.
            let keys = self.clone();
            let unrecorded = Unrecorded { keys, at, request, status: None, permit: None };
            let unrecorded = admission.unrecorded.insert(unrecorded);
            match audit.reserve().await {
                Ok(permit) => unrecorded.permit = permit,
                Err(error) => {
                    admission.unrecorded = None;
                    let error = self.not_recorded(admission.key.id(), error);
                    return Err(NotAdmitted { error, rate: admission.rate.take() });
                }
            }
        }
        self.inner.uses.record(admission.key.id(), at);
        Ok(admission)
    }

    /// Whether there is an audit log.
    #[cfg(feature = "tower")]
    pub(crate) fn is_audited(&self) -> bool {
        self.inner.audit.is_some()
    }

    /// Counts a credential that the layer refuses, since it cannot be a key.
    #[cfg(feature = "tower")]
    pub(crate) fn count_malformed(&self) {
        self.inner.count_malformed();
    }

    fn not_recorded(&self, key: KeyId, error: DeliveryError) -> AdmitError {
        if let Some(left_out) = self.inner.unrecorded.pass() {
            tracing::warn!(%key, %error, left_out, "a request was refused");
        }
        error.into()
    }

    /// Records a refusal. Returns its error, or that of the record.
    fn refuse(
        &self,
        error: VerifyError,
        request: RequestInfo,
    ) -> impl Future<Output = AdmitError> + Send + use<> {
        let recorded = self.log_refusal(&error, request);
        once_recorded(recorded, error)
    }

    fn log_refusal(&self, error: &VerifyError, request: RequestInfo) -> Recording {
        match error {
            VerifyError::Denied { denial, key, secret } => {
                if *denial == Denial::IpNotAllowed && request.ip.is_none() {
                    let reason = "the client's address is not known";
                    tracing::debug!(key = %key.id, org = %key.org, reason, "refused");
                    if let Some(left_out) = self.inner.no_address.pass() {
                        tracing::warn!(key = %key.id, left_out, "a key with an allowlist was refused, since the client's address is not known: does the server supply `PeerAddr` or `ConnectInfo`, and the proxy its header?");
                    }
                } else {
                    tracing::debug!(key = %key.id, org = %key.org, reason = %denial, "refused");
                }
                let of = (&**key, *secret);
                let told = ((*denial).into(), error.http_status());
                return self.record_refusal(of, self.now(), told, request);
            }
            VerifyError::Unavailable(source) => {
                if let Some(left_out) = self.inner.unverified.pass() {
                    tracing::warn!(reason = with_causes(source), left_out, "could not verify");
                }
            }
            other => tracing::debug!(reason = %other, "refused"),
        }
        Ok(None)
    }
}

impl KeyManager {
    /// Counts a request for its rate limit, and refuses it if it is one too many.
    async fn within_rate(
        &self,
        limiter: &Arc<dyn RateLimiter>,
        key: &VerifiedKey,
        at: Timestamp,
        request: RequestInfo,
        timer: Timer,
    ) -> Result<(Option<Box<RateStatus>>, RequestInfo), NotAdmitted> {
        match self.count_rate(limiter, key).await {
            Some(rate) if rate.retry_after.is_some() => {
                self.inner.count_rate_limited(timer);
                let reason = "rate limit";
                tracing::debug!(key = %key.id(), org = %key.org(), reason, "refused");
                let of = (key.record(), key.secret_used());
                let recorded = self.record_refusal(of, at, (Outcome::RateLimited, 429), request);
                let limited = AdmitError::RateLimited(rate.clone());
                let error = once_recorded(recorded, limited).await;
                Err(NotAdmitted { error, rate: Some(Box::new(rate)) })
            }
            rate => Ok((rate.map(Box::new), request)),
        }
    }

    /// Records a refusal of a known key, in a record of its own or in a sum.
    fn record_refusal(
        &self,
        (key, secret): (&ApiKey, SecretUsed),
        at: Timestamp,
        (outcome, status): (Outcome, u16),
        request: RequestInfo,
    ) -> Recording {
        let Some(audit) = &self.inner.audit else { return Ok(None) };
        let refusal = refusal(key, secret, at, (outcome, status), request);
        audit.refuse(refusal).map_err(|error| self.not_recorded(key.id, error))
    }
}

/// The record of a refusal: a future in strict delivery.
type Recording = Result<Option<BoxFuture<'static, Result<(), DeliveryError>>>, AdmitError>;

/// Waits for the record of a refusal. Returns the error of the refusal, or that of the record.
async fn once_recorded(recording: Recording, refused: impl Into<AdmitError>) -> AdmitError {
    match recording {
        Ok(None) => refused.into(),
        Ok(Some(recorded)) => recorded.await.err().map_or_else(|| refused.into(), Into::into),
        Err(not_recorded) => not_recorded,
    }
}

fn refusal(
    key: &ApiKey,
    secret: SecretUsed,
    at: Timestamp,
    (outcome, status): (Outcome, u16),
    request: RequestInfo,
) -> Refusal {
    Refusal {
        at,
        org: key.org.clone(),
        key: key.id,
        outcome,
        status,
        method: match request.method {
            Cow::Owned(unknown) => kept(unknown).into(),
            known => known,
        },
        path: kept(request.path.into_string()).into_boxed_str(),
        ip: request.ip,
        secret,
    }
}

/// Builds the records of refusals.
pub(super) fn refusal_records(formats: Formats, ids: Arc<AuditIds>) -> Draft {
    Arc::new(move |Sum { last, count }| {
        let event = RequestEvent {
            method: last.method,
            endpoint: last.path,
            ip: last.ip,
            country: None,
            status: Some(last.status),
            outcome: last.outcome,
            count,
            secret: last.secret,
        };
        request_record(&formats, &ids, (last.at, last.org, last.key), event)
    })
}

/// The record of a request whose method and path are still as the client sent them.
fn request_record(
    formats: &Formats,
    ids: &AuditIds,
    (at, org, key): (Timestamp, OrgId, KeyId),
    sent: RequestEvent,
) -> AuditRecord {
    let event = RequestEvent {
        method: method(sent.method, formats),
        endpoint: endpoint(sent.endpoint, formats),
        ..sent
    };
    AuditRecord { id: ids.next(), at, org, key, event: AuditEvent::Request(event) }
}

/// A request that was admitted. Report its outcome with [`Admission::finish`]; if dropped
/// instead, it leaves an audit record marked as aborted.
#[must_use = "an admission that is dropped is recorded as aborted"]
pub struct Admission {
    key: VerifiedKey,
    /// Boxed, since every request moves the admission about, and few have a limit.
    rate: Option<Box<RateStatus>>,
    /// `None` without an audit log, and once the record is queued.
    unrecorded: Option<Unrecorded>,
}

/// What the record of an admitted request is made of when the request ends: smaller than the
/// record, since every request moves it about.
struct Unrecorded {
    keys: KeyManager,
    at: Timestamp,
    request: RequestInfo,
    /// That of the response, once there is one.
    status: Option<u16>,
    permit: Option<Permit>,
}

impl Unrecorded {
    /// The audit log, the place in its queue, and the record.
    fn record(self, key: &VerifiedKey) -> Option<(Arc<AuditWriter>, Option<Permit>, AuditRecord)> {
        let Self { keys: KeyManager { inner }, at, request, status, permit } = self;
        let event = RequestEvent {
            method: request.method,
            endpoint: request.path,
            ip: request.ip,
            country: None,
            status,
            outcome: if status.is_some() { Outcome::Allowed } else { Outcome::Aborted },
            count: 1,
            secret: key.secret_used(),
        };
        let of = (at, key.org().clone(), key.id());
        let record = request_record(&inner.formats, &inner.audit_ids, of, event);
        Some((Arc::clone(inner.audit.as_ref()?), permit, record))
    }
}

/// Shows no path: it may contain a key.
impl fmt::Debug for Admission {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Admission").field("key", &self.key).finish_non_exhaustive()
    }
}

impl Admission {
    /// The key that the request was made with.
    pub fn key(&self) -> &VerifiedKey {
        &self.key
    }

    /// How much of its rate limit the key has left; `None` if it has none.
    pub fn rate(&self) -> Option<&RateStatus> {
        self.rate.as_deref()
    }

    #[cfg(feature = "tower")]
    pub(crate) fn take_rate(&mut self) -> Option<Box<RateStatus>> {
        self.rate.take()
    }

    /// Records the status of the response, which is about to be sent.
    ///
    /// # Errors
    ///
    /// In strict delivery, if the record is not durable within the deadline. Answer with
    /// 503 then.
    pub async fn finish(self, status: u16) -> Result<(), DeliveryError> {
        match self.close(status) {
            Some(recorded) => recorded.await,
            None => Ok(()),
        }
    }

    /// Records that the request is refused, with this status, because the key lacks a scope.
    /// [`VerifiedKey::require_scope`] says whether it does.
    ///
    /// # Errors
    ///
    /// If the record cannot be queued or, in strict delivery, is not durable within the
    /// deadline. Answer with 503 then.
    pub async fn finish_without_scope(self, status: u16) -> Result<(), DeliveryError> {
        match self.close_without_scope(status) {
            Some(recorded) => recorded.await,
            None => Ok(()),
        }
    }

    /// As [`Admission::close`], for a request that an inner layer or a handler refused.
    pub(crate) fn close_without_scope(
        mut self,
        status: u16,
    ) -> Option<BoxFuture<'static, Result<(), DeliveryError>>> {
        tracing::debug!(key = %self.key.id(), org = %self.key.org(), reason = %Denial::InsufficientScope, "refused");
        // Counted with the other refusals of the key, so that a flood of them is summed.
        let Unrecorded { keys, at, request, .. } = self.unrecorded.take()?;
        let audit = keys.inner.audit.as_ref()?;
        let told = (Outcome::InsufficientScope, status);
        let refused =
            audit.refuse(refusal(self.key.record(), self.key.secret_used(), at, told, request));
        refused.unwrap_or_else(|error| Some(Box::pin(ready(Err(error)))))
    }

    /// Records the status. Returns a future if delivery has to be waited for.
    pub(crate) fn close(
        mut self,
        status: u16,
    ) -> Option<BoxFuture<'static, Result<(), DeliveryError>>> {
        let unrecorded = self.unrecorded.as_mut()?;
        unrecorded.status = Some(status);
        if !unrecorded.keys.inner.audit.as_ref()?.is_strict() {
            return None;
        }
        Some(Box::pin(async move {
            // Taken only when polled: if dropped earlier, the record is still queued.
            match self.take_record() {
                Some((audit, permit, record)) => audit.deliver(permit, record).await,
                None => Ok(()),
            }
        }))
    }

    fn take_record(&mut self) -> Option<(Arc<AuditWriter>, Option<Permit>, AuditRecord)> {
        self.unrecorded.take()?.record(&self.key)
    }
}

impl Drop for Admission {
    fn drop(&mut self) {
        if let Some((audit, permit, record)) = self.take_record() {
            audit.enqueue(permit, record);
        }
    }
}

/// A request that was not admitted, and what is left of its key's rate limit if it was counted.
pub(crate) struct NotAdmitted {
    pub(crate) error: AdmitError,
    #[cfg_attr(not(feature = "tower"), allow(dead_code, reason = "the layer tells it"))]
    pub(crate) rate: Option<Box<RateStatus>>,
}

impl From<AdmitError> for NotAdmitted {
    fn from(error: AdmitError) -> Self {
        Self { error, rate: None }
    }
}

/// Why a request was not admitted.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum AdmitError {
    /// The credential does not authenticate.
    #[error(transparent)]
    Refused(#[from] VerifyError),
    /// The credential may be valid, but its use could not be recorded.
    #[error("the request could not be recorded")]
    NotRecorded(#[from] DeliveryError),
    /// The key is valid, but has reached its rate limit.
    #[error("the key has reached its rate limit")]
    RateLimited(RateStatus),
}

impl AdmitError {
    /// The HTTP status of the refusal: that of the [`VerifyError`], 429 or 503.
    pub fn http_status(&self) -> u16 {
        match self {
            Self::Refused(error) => error.http_status(),
            Self::NotRecorded(_) => 503,
            Self::RateLimited(_) => 429,
        }
    }
}
