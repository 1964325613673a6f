//! Finds keys that were issued before keygate, and gives them the digest of every other key.

use std::sync::Arc;

use crate::key::digest::KeyDigest;
use crate::key::existing::{Further, of_reference};
use crate::manager::Inner;
use crate::manager::asking::FoundKey;
use crate::manager::verify::VerifyError;
use crate::record::{ApiKey, SecretUsed};
use crate::store::key_store::StoreError;
use crate::text::with_causes;

/// How often a digest is replaced when other changes of the key come first.
const ATTEMPTS: usize = 20;

impl Inner {
    /// Finds a key under one of the digests of a credential, or by asking the host. If it
    /// has another one, that of the whole credential replaces it.
    pub(super) async fn find_existing(
        &self,
        digest: &KeyDigest,
        further: &Further,
    ) -> Result<(Arc<ApiKey>, SecretUsed, Option<Arc<str>>), VerifyError> {
        let only = further.only.as_ref();
        let (key, secret) = match self.find(digest).await? {
            Some(found) => found,
            None if further.is_empty() => return Err(VerifyError::Unknown),
            None => match self.find_further(digest, further).await? {
                Some((key, secret)) => {
                    self.environment(&key, only)?;
                    self.take_over(key, secret, digest).await?
                }
                // Another request with the same credential may have come first.
                None => self.find(digest).await?.ok_or(VerifyError::Unknown)?,
            },
        };
        let environment = self.environment(&key, only)?;
        Ok((key, secret, environment))
    }

    async fn find_further(
        &self,
        digest: &KeyDigest,
        further: &Further,
    ) -> Result<Option<(Arc<ApiKey>, SecretUsed)>, VerifyError> {
        for other in &further.digests {
            if let Some(found) = self.find(other).await? {
                return Ok(Some(found));
            }
        }
        let (Some(asking), Some(credential)) = (&self.existing_keys, &further.credential) else {
            return Ok(None);
        };
        let answer = asking.ask(&*self.runtime, self.store_deadline, digest, credential).await;
        let answer = answer.map_err(|e| VerifyError::Unavailable(StoreError::unavailable(e)))?;
        let Some(FoundKey { org, reference }) = answer else { return Ok(None) };
        let found = self.find(&of_reference(&org, &reference)).await?;
        Ok(found.filter(|(key, _)| key.org == org))
    }

    /// The environment of the key. A key of another service, or of another environment than
    /// the only one, counts as unknown.
    fn environment(
        &self,
        key: &ApiKey,
        only: Option<&Arc<str>>,
    ) -> Result<Option<Arc<str>>, VerifyError> {
        let environment = self.formats.name_of_shown(key.format_prefix());
        let environment = environment.map_err(|_| VerifyError::Unknown)?;
        if only.is_some_and(|only| environment.as_ref() != Some(only)) {
            return Err(VerifyError::Unknown);
        }
        Ok(environment)
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
            match self.confirmed("replace", self.store.replace(&changed, key.revision)).await {
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
            let current = self.bounded("get", self.store.get(&key.org, &key.id)).await;
            let current = current.map_err(VerifyError::Unavailable)?.ok_or(VerifyError::Unknown)?;
            match current.secret_with(&digest).or_else(|| current.secret_with(&found_by)) {
                Some(SecretUsed::Current) if current.digest == found_by => key = current,
                // Another request was first, or a rotation with an overlap.
                Some(secret) => return Ok((current, secret)),
                // It was rotated.
                None => return Err(VerifyError::Unknown),
            }
        }
        Err(VerifyError::Unavailable(StoreError::unavailable(StoreError::Conflict)))
    }
}
