//! Admission of a request: verification with its audit record.

use std::borrow::Cow;
use std::future::Future;
use std::net::IpAddr;

use thiserror::Error;

use crate::audit::delivery::DeliveryError;
use crate::audit::record::{AuditEvent, AuditRecord, Outcome, RequestEvent};
use crate::audit::writer::Reserved;
use crate::clock::Timestamp;
use crate::manager::KeyManager;
use crate::manager::verify::{VerifiedKey, VerifyError};
use crate::record::ApiKey;
use crate::text::truncate;

/// What the audit log is to say about a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RequestInfo {
    /// The HTTP method.
    pub method: Cow<'static, str>,
    /// The path, without the query.
    pub path: Box<str>,
    /// The client's address, where it is known.
    pub ip: Option<IpAddr>,
}

impl KeyManager {
    /// Admits a request, or refuses it; either way, a request with a known key
    /// leaves one audit record. The tower layer is built on this, and so can be
    /// the middleware of another framework.
    ///
    /// ```
    /// # #[tokio::main]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # use keygate::{Actor, KeyManager, MemoryStore, NewKey, OrgId, RequestInfo};
    /// # let keys = KeyManager::builder(MemoryStore::new()).build()?;
    /// # let actor = Actor::new(OrgId::new("acme")?, "ada");
    /// # let issued = keys.create(&actor, NewKey::named("CI")?).await?;
    /// # let credential = issued.secret.expose_secret();
    /// let request = RequestInfo {
    ///     method: "GET".into(),
    ///     path: "/v1/things".into(),
    ///     ip: Some("192.0.2.1".parse()?),
    /// };
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
        let digest = self.inner.digest(credential);
        async move {
            let ip = request.ip;
            let checked = match digest {
                Ok(digest) => self.inner.check(digest, ip).await,
                Err(malformed) => Err(malformed),
            };
            self.open(checked, || request).await
        }
    }

    /// Turns the outcome of a check into an admission, and records a refusal.
    /// `request` is asked for only where there is a record to be made of it.
    pub(crate) async fn open(
        &self,
        checked: Result<(VerifiedKey, Timestamp), VerifyError>,
        request: impl FnOnce() -> RequestInfo,
    ) -> Result<Admission, AdmitError> {
        match checked {
            Ok((key, now)) => {
                let entry = self.reserve(key.record(), now, request).await?;
                self.inner.uses.record(key.id(), now);
                Ok(Admission { key, entry })
            }
            Err(error) => {
                if let VerifyError::Denied { denial, key } = &error {
                    tracing::debug!(key = %key.id, org = %key.org, reason = %denial, "refused");
                    let now = self.now();
                    if let Some(entry) = self.reserve(key, now, request).await? {
                        entry.close(Some(error.http_status()), (*denial).into()).await?;
                    }
                } else {
                    tracing::debug!(reason = %error, "refused");
                }
                Err(AdmitError::Refused(error))
            }
        }
    }

    async fn reserve(
        &self,
        key: &ApiKey,
        at: Timestamp,
        request: impl FnOnce() -> RequestInfo,
    ) -> Result<Option<Entry>, DeliveryError> {
        let Some(audit) = &self.inner.audit else { return Ok(None) };
        // Made before the wait, so that it borrows nothing across it.
        let request = request();
        let event = RequestEvent {
            method: request.method,
            endpoint: endpoint(&request.path, self.format().prefix()),
            ip: request.ip,
            country: None,
            status: None,
            outcome: Outcome::Aborted,
        };
        let record = AuditRecord {
            id: self.inner.audit_ids.next(),
            at,
            org: key.org.clone(),
            key: key.id,
            event: AuditEvent::Request(event),
        };
        let reserved = audit.reserve().await?;
        Ok(Some(Entry { keys: self.clone(), pending: Some((reserved, record)) }))
    }
}

/// The path as the log shows it: cut off at a bounded length, and with whatever
/// looks like a key of this service blotted out.
fn endpoint(path: &str, prefix: &str) -> Box<str> {
    /// Fewer alphanumeric characters behind a prefix are a word, not a key.
    const SHORTEST_LEAK: usize = 24;
    const CUT: &str = "…";
    let mut shown = String::with_capacity(path.len().min(RequestEvent::MAX_ENDPOINT_LEN));
    let mut rest = path;
    while let Some((before, after)) = rest.split_once(prefix) {
        let run = after.bytes().take_while(u8::is_ascii_alphanumeric).count();
        let (word, tail) = after.split_at(run);
        shown.push_str(before);
        if run >= SHORTEST_LEAK {
            shown.push_str("[REDACTED]");
        } else {
            shown.push_str(prefix);
            shown.push_str(word);
        }
        rest = tail;
    }
    shown.push_str(rest);
    if shown.len() > RequestEvent::MAX_ENDPOINT_LEN {
        truncate(&mut shown, RequestEvent::MAX_ENDPOINT_LEN - CUT.len());
        shown.push_str(CUT);
    }
    shown.into_boxed_str()
}

/// A request that was let in. Say how it ended with [`Admission::finish`]; one
/// that is dropped leaves an audit record marked as aborted.
#[derive(Debug)]
#[must_use = "dropped at once, the request is recorded as aborted"]
pub struct Admission {
    key: VerifiedKey,
    entry: Option<Entry>,
}

impl Admission {
    /// The key that the request was made with.
    pub fn key(&self) -> &VerifiedKey {
        &self.key
    }

    /// Records the status of the answer that is about to leave.
    ///
    /// # Errors
    ///
    /// In strict delivery, where the record is not durable within the deadline:
    /// answer with 503 then.
    pub async fn finish(self, status: u16) -> Result<(), DeliveryError> {
        match self.entry {
            Some(entry) => entry.close(Some(status), Outcome::Allowed).await,
            None => Ok(()),
        }
    }
}

/// The audit record of a request, made out and not yet sent.
#[derive(Debug)]
struct Entry {
    keys: KeyManager,
    pending: Option<(Reserved, AuditRecord)>,
}

impl Entry {
    async fn close(mut self, ended: Option<u16>, how: Outcome) -> Result<(), DeliveryError> {
        let (Some((reserved, mut record)), Some(audit)) =
            (self.pending.take(), &self.keys.inner.audit)
        else {
            return Ok(());
        };
        if let AuditEvent::Request(request) = &mut record.event {
            request.status = ended;
            request.outcome = how;
        }
        audit.deliver(reserved, record).await
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        if let (Some((reserved, record)), Some(audit)) =
            (self.pending.take(), &self.keys.inner.audit)
        {
            audit.enqueue(reserved, record);
        }
    }
}

/// Why a request was not admitted.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum AdmitError {
    /// The credential does not authenticate.
    #[error(transparent)]
    Refused(#[from] VerifyError),
    /// The credential may be good, but its use could not be recorded.
    #[error("the request could not be recorded")]
    NotRecorded(#[from] DeliveryError),
}

impl AdmitError {
    /// The HTTP status to refuse with: that of the [`VerifyError`], or 503.
    pub fn http_status(&self) -> u16 {
        match self {
            Self::Refused(error) => error.http_status(),
            Self::NotRecorded(_) => 503,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn case_39_a_key_in_the_path_is_blotted_out() {
        let key = format!("vsp_sk_{}", "a1".repeat(24));
        let shown = endpoint(&format!("/v1/{key}/x/{key}"), "vsp_sk_");
        assert_eq!(&*shown, "/v1/[REDACTED]/x/[REDACTED]");
        assert_eq!(&*endpoint("/docs/vsp_sk_example", "vsp_sk_"), "/docs/vsp_sk_example");
        assert_eq!(&*endpoint("/data_export", "a_"), "/data_export");
    }

    #[test]
    fn a_long_path_is_cut_off_at_a_character() {
        let shown = endpoint(&"é".repeat(4_000), "vsp_sk_");
        assert!(shown.len() <= RequestEvent::MAX_ENDPOINT_LEN && shown.ends_with("é…"));
    }
}
