//! Finds keys that were issued before keygate, and gives them the digest of every other key.

use std::collections::HashMap;
use std::error::Error as StdError;
use std::fmt;
use std::mem;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_lock::{OnceCell, Semaphore};
use async_trait::async_trait;
use thiserror::Error;

use crate::key::digest::KeyDigest;
use crate::key::existing::{Further, of_reference};
use crate::key::secret::PlaintextKey;
use crate::manager::Inner;
use crate::manager::verify::VerifyError;
use crate::org::OrgId;
use crate::record::{ApiKey, SecretUsed};
use crate::runtime::spawn::{caught, timeout};
use crate::store::key_store::StoreError;
use crate::text::with_causes;

/// Credentials beyond these are refused until there is room: each waits for a few others.
const MOST_WAITING: usize = 256;
/// How often a digest is replaced when other changes of the key come first.
const ATTEMPTS: usize = 20;

/// Checks keys whose digest cannot be computed from their text, such as those stored by
/// bcrypt, argon2 or PBKDF2, which have a salt for each key.
///
/// It is asked for a credential of a [declared format](crate::existing::ExistingFormat) with
/// an unknown digest, once at a time for each credential, and for a few credentials at a
/// time ([`existing_keys_at_once`](crate::KeyManagerBuilder::existing_keys_at_once)). Once it
/// has named a key, that key is found by the SHA-256 of its text, and this is not asked
/// again. Answer as your own product would, from your own table: the key's status and expiry
/// are those that it was adopted with.
///
/// Two different texts must not pass for the same key. bcrypt reads only 72 bytes, so check
/// the length there.
///
/// An error, a panic, or an answer that takes longer than the manager's
/// [`store_deadline`](crate::KeyManagerBuilder::store_deadline) refuses the request as
/// unavailable. Errors are logged, so they must not contain the credential.
///
/// ```
/// use std::collections::HashMap;
/// use std::error::Error;
///
/// use keygate::existing::{ExistingKeys, FoundKey};
/// use keygate::{OrgId, PlaintextKey};
/// # fn bcrypt_verify(text: &str, hash: &str) -> bool { text.len() == hash.len() }
///
/// /// Hashes by the public first characters of a key.
/// #[derive(Debug)]
/// struct OldTable(HashMap<String, (OrgId, String)>);
///
/// #[async_trait::async_trait]
/// impl ExistingKeys for OldTable {
///     async fn find(
///         &self,
///         presented: &PlaintextKey,
///     ) -> Result<Option<FoundKey>, Box<dyn Error + Send + Sync>> {
///         let text = presented.expose_secret();
///         let Some(short) = text.get(..18) else { return Ok(None) };
///         let Some((org, hash)) = self.0.get(short) else { return Ok(None) };
///         // A real check takes long: run it by `tokio::task::spawn_blocking`.
///         Ok(bcrypt_verify(text, hash).then(|| FoundKey::new(org.clone(), short)))
///     }
/// }
/// ```
#[async_trait]
pub trait ExistingKeys: fmt::Debug + Send + Sync + 'static {
    /// The key with this text, as it was adopted with
    /// [`ExistingDigest::asked`](crate::existing::ExistingDigest::asked); `None` if there is
    /// none.
    async fn find(
        &self,
        presented: &PlaintextKey,
    ) -> Result<Option<FoundKey>, Box<dyn StdError + Send + Sync>>;
}

/// The name of an adopted key: its organisation, and the reference that it was adopted with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FoundKey {
    org: OrgId,
    reference: Box<str>,
}

impl FoundKey {
    /// The key of this organisation with this reference.
    pub fn new(org: OrgId, reference: impl Into<Box<str>>) -> Self {
        Self { org, reference: reference.into() }
    }
}

type Answer = Result<Option<FoundKey>, NotAnswered>;
type Asked = HashMap<KeyDigest, Arc<OnceCell<Answer>>>;

/// The host's check, with its bounds.
pub(super) struct Asking {
    keys: Arc<dyn ExistingKeys>,
    permits: Semaphore,
    asked: Mutex<Asked>,
}

impl Asking {
    pub(super) fn new(keys: Arc<dyn ExistingKeys>, at_once: usize) -> Self {
        Self { keys, permits: Semaphore::new(at_once.max(1)), asked: Mutex::default() }
    }

    /// The host's answer, which all requests with this credential share.
    async fn ask(&self, inner: &Inner, digest: &KeyDigest, presented: &PlaintextKey) -> Answer {
        let question = self.join(digest).ok_or(NotAnswered::Busy)?;
        let ask = || async {
            let call = async {
                let _permit = self.permits.acquire().await;
                caught(async { self.keys.find(presented).await }).await
            };
            match timeout(&*inner.runtime, inner.store_deadline, call).await {
                Ok(Ok(answer)) => answer.map_err(|error| NotAnswered::Failed(error.into())),
                Ok(Err(_)) => Err(NotAnswered::Panicked),
                Err(_) => Err(NotAnswered::TooLate),
            }
        };
        question.answer.get_or_init(ask).await.clone()
    }

    fn join(&self, digest: &KeyDigest) -> Option<Question<'_>> {
        let mut asked = self.lock();
        if asked.len() >= MOST_WAITING && !asked.contains_key(digest) {
            return None;
        }
        let answer = Arc::clone(asked.entry(*digest).or_default());
        Some(Question { asking: self, digest: *digest, answer })
    }

    fn lock(&self) -> MutexGuard<'_, Asked> {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Asking {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Asking").field(&self.keys).finish()
    }
}

/// One request that waits for an answer. The first to be dropped once there is one forgets
/// it, and so does the last.
struct Question<'a> {
    asking: &'a Asking,
    digest: KeyDigest,
    answer: Arc<OnceCell<Answer>>,
}

impl Drop for Question<'_> {
    fn drop(&mut self) {
        let mut asked = self.asking.lock();
        let answer = mem::take(&mut self.answer);
        let Some(shared) = asked.get(&self.digest).filter(|one| Arc::ptr_eq(one, &answer)) else {
            return;
        };
        // The map and this one hold a reference each.
        if answer.is_initialized() || Arc::strong_count(shared) == 2 {
            asked.remove(&self.digest);
        }
    }
}

/// Why the host's check did not answer.
#[derive(Clone, Debug, Error)]
enum NotAnswered {
    #[error("the check of existing keys failed")]
    Failed(#[source] Arc<dyn StdError + Send + Sync>),
    #[error("the check of existing keys panicked")]
    Panicked,
    #[error("the check of existing keys exceeded its deadline")]
    TooLate,
    #[error("too many existing keys are waiting for their check")]
    Busy,
}

impl Inner {
    /// Finds a key under the other digests of a credential, or by asking the host, and
    /// replaces its digest with that of the whole credential.
    pub(super) async fn find_existing(
        &self,
        digest: &KeyDigest,
        further: Further,
    ) -> Result<(Arc<ApiKey>, SecretUsed), VerifyError> {
        for other in &further.digests {
            if let Some((key, secret)) = self.find(other).await? {
                return self.take_over(key, secret, digest).await;
            }
        }
        if let (Some(asking), Some(credential)) = (&self.existing_keys, &further.credential) {
            let answer = asking.ask(self, digest, credential).await;
            let answer =
                answer.map_err(|e| VerifyError::Unavailable(StoreError::unavailable(e)))?;
            if let Some(FoundKey { org, reference }) = answer {
                let found = self.find(&of_reference(&org, &reference)).await?;
                if let Some((key, secret)) = found.filter(|(key, _)| key.org == org) {
                    return self.take_over(key, secret, digest).await;
                }
            }
        }
        // Another request with the same credential may have come first.
        self.find(digest).await?.ok_or(VerifyError::Unknown)
    }

    /// Replaces the digest under which a key was found, so that the next request needs one
    /// look-up. A previous secret soon ends, so its digest stays.
    async fn take_over(
        &self,
        mut key: Arc<ApiKey>,
        secret: SecretUsed,
        digest: &KeyDigest,
    ) -> Result<(Arc<ApiKey>, SecretUsed), VerifyError> {
        if secret == SecretUsed::Previous {
            return Ok((key, secret));
        }
        let found_by = key.digest;
        for _ in 0..ATTEMPTS {
            let (digest, revision) = (*digest, key.revision.next());
            let changed = ApiKey { digest, revision, ..ApiKey::clone(&key) };
            match self.confirmed(self.store.replace(&changed, key.revision)).await {
                Ok(()) => return Ok((Arc::new(changed), secret)),
                Err(StoreError::Conflict | StoreError::NotFound) => {}
                // The key was found all the same. The next request tries again.
                Err(error) => {
                    if let Some(left_out) = self.not_taken_over.pass() {
                        let reason = with_causes(&error);
                        tracing::warn!(key = %key.id, reason, left_out, "could not store the SHA-256 of an existing key");
                    }
                    return Ok((key, secret));
                }
            }
            // Not by its digest, which a cache may know from before the change.
            let current = self.bounded(self.store.get(&key.org, &key.id)).await;
            match current.map_err(VerifyError::Unavailable)? {
                Some(current) if current.digest == digest => return Ok((current, secret)),
                Some(current) if current.digest == found_by => key = current,
                // It was rotated or deleted.
                _ => return Err(VerifyError::Unknown),
            }
        }
        Err(VerifyError::Unavailable(StoreError::unavailable(StoreError::Conflict)))
    }
}
