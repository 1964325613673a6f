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
    /// Finds a key under the other digests of a credential, or by asking the host, and
    /// replaces its digest with that of the whole credential.
    pub(super) async fn find_existing(
        &self,
        digest: &KeyDigest,
        further: Further,
        only: Option<&Arc<str>>,
    ) -> Result<(Arc<ApiKey>, SecretUsed), VerifyError> {
        for other in &further.digests {
            if let Some((key, secret)) = self.find(other).await? {
                self.environment(&key, only)?;
                return self.take_over(key, secret, digest).await;
            }
        }
        if let (Some(asking), Some(credential)) = (&self.existing_keys, &further.credential) {
            let answer = asking.ask(&*self.runtime, self.store_deadline, digest, credential).await;
            let answer =
                answer.map_err(|e| VerifyError::Unavailable(StoreError::unavailable(e)))?;
            if let Some(FoundKey { org, reference }) = answer {
                let found = self.find(&of_reference(&org, &reference)).await?;
                if let Some((key, secret)) = found.filter(|(key, _)| key.org == org) {
                    self.environment(&key, only)?;
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
