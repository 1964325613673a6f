//! Asks the host for keys whose digest cannot be computed: a few at a time, and once for each.

use std::collections::HashMap;
use std::error::Error as StdError;
use std::fmt;
use std::mem;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_lock::{OnceCell, Semaphore};
use async_trait::async_trait;
use thiserror::Error;

use crate::key::digest::KeyDigest;
use crate::key::secret::PlaintextKey;
use crate::org::OrgId;
use crate::runtime::spawn::{Runtime, caught, timeout};

/// Credentials beyond these are refused until there is room: each waits for a few others.
const MOST_WAITING: usize = 256;

/// Checks keys whose digest cannot be computed from their text, such as those stored by
/// bcrypt, argon2 or PBKDF2, which have a salt for each key.
///
/// It is asked for a credential of a [declared format](crate::existing::ExistingFormat) with
/// an unknown digest, once at a time for each credential, and for a few credentials at a
/// time ([`existing_keys_at_once`](crate::manager::KeyManagerBuilder::existing_keys_at_once)). Once it
/// has named a key, that key is found by the SHA-256 of its text, and this is not asked
/// again. Answer as your own product would, from your own table: the key's status and expiry
/// are those that it was adopted with.
///
/// Two different texts must not pass for the same key. bcrypt reads only 72 bytes, so check
/// the length there.
///
/// An error, a panic, or an answer that takes longer than the manager's
/// [`store_deadline`](crate::manager::KeyManagerBuilder::store_deadline) refuses the request as
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
    pub(super) org: OrgId,
    pub(super) reference: Box<str>,
}

impl FoundKey {
    /// The key of this organisation with this reference.
    pub fn new(org: OrgId, reference: impl Into<Box<str>>) -> Self {
        Self { org, reference: reference.into() }
    }
}

pub(super) type Answer = Result<Option<FoundKey>, NotAnswered>;
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

    /// The host's answer within this time, which all requests with this credential share.
    pub(super) async fn ask(
        &self,
        runtime: &dyn Runtime,
        deadline: Duration,
        digest: &KeyDigest,
        presented: &PlaintextKey,
    ) -> Answer {
        let question = self.join(digest).ok_or(NotAnswered::Busy)?;
        let ask = || async {
            let call = async {
                let _permit = self.permits.acquire().await;
                caught(async { self.keys.find(presented).await }).await
            };
            match timeout(runtime, deadline, call).await {
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
pub(super) enum NotAnswered {
    #[error("the check of existing keys failed")]
    Failed(#[source] Arc<dyn StdError + Send + Sync>),
    #[error("the check of existing keys panicked")]
    Panicked,
    #[error("the check of existing keys exceeded its deadline")]
    TooLate,
    #[error("too many existing keys are waiting for their check")]
    Busy,
}
