//! Revokes keys that work again after a backup was restored.

use crate::manager::KeyManager;
use crate::manager::error::ManageError;
use crate::manager::reading::Reach;
use crate::org::{Actor, OrgId};
use crate::record::change::KeyPatch;
use crate::record::{ApiKey, Status};
use crate::runtime::clock::Timestamp;
use crate::store::transfer::{KeyExport, next_page};

impl KeyManager {
    /// Revokes every active key, of all organisations, whose secret was issued before this
    /// instant: keys created before it and not rotated since. Use it after restoring a
    /// backup. Returns how many keys were revoked.
    ///
    /// After a restore, the database has lost all changes since the backup. Keys that were
    /// revoked or deleted since then are active again, and the old secrets of rotated keys
    /// work again. These keys cannot be told from unchanged ones. With the time of the
    /// restore, this revokes all of them; organisations can then enable or rotate the keys
    /// that they still need. Keys created or rotated after that time keep working;
    /// of a rotation with an overlap, only the new secret does.
    ///
    /// It does not recover changes that are missing from the backup: new keys, new secrets,
    /// edits of names and allowlists, and audit records. An earlier instant spares the keys
    /// issued between it and the backup, although they may have been revoked since.
    ///
    /// Keys of every prefix are revoked, also of those that this manager does not have.
    ///
    /// Each key is revoked as by [`update`](Self::update), with an audit record in the name
    /// of `by`. `keys` is the store of this manager, which has to implement [`KeyExport`].
    /// Keys are revoked one after the other, some hundreds a second in a database.
    ///
    /// ```
    /// use keygate::{Actor, KeyManager, MemoryStore, NewKey, OrgId, Timestamp};
    /// use std::sync::Arc;
    ///
    /// # #[tokio::main]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let store = Arc::new(MemoryStore::new());
    /// let keys = KeyManager::builder(store.clone()).build()?;
    /// # let actor = Actor::new(OrgId::new("acme")?, "ada@acme.example");
    /// # keys.create(&actor, NewKey::named("CI deploy")?).await?;
    /// # std::thread::sleep(std::time::Duration::from_millis(1));
    /// let revoked = keys.revoke_issued_before(&*store, keys.now(), "restore of 3 May").await?;
    /// println!("{revoked} keys revoked");
    /// # assert_eq!(revoked, 1);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// [`Unavailable`](ManageError::Unavailable) and [`InDoubt`](ManageError::InDoubt).
    /// Keys revoked before the error stay revoked; run it again.
    pub async fn revoke_issued_before(
        &self,
        keys: &dyn KeyExport,
        instant: Timestamp,
        by: &str,
    ) -> Result<u64, ManageError> {
        let mut revoked = 0;
        let mut after = None;
        loop {
            let page = next_page(keys, after.as_ref()).await?;
            let Some(last) = page.last() else { return Ok(revoked) };
            after = Some(last.id);
            for key in &page {
                revoked += u64::from(self.revoke_old(key, instant, by).await?);
            }
        }
    }

    /// Revokes the key if its secret is still older, despite concurrent changes, and
    /// otherwise ends its previous secret. Returns whether it was revoked.
    async fn revoke_old(
        &self,
        key: &ApiKey,
        instant: Timestamp,
        by: &str,
    ) -> Result<bool, ManageError> {
        let needed = |key: &ApiKey| match key.rotated_at.unwrap_or(key.created_at) {
            _ if key.status != Status::Active => None,
            issued_at if issued_at < instant => Some(KeyPatch::revoke()),
            // Issued before the rotation, and perhaps before the instant.
            _ => key.previous.map(|_| KeyPatch::end_previous_secret()),
        };
        if needed(key).is_none() {
            return Ok(false);
        }
        let actor = Actor::new(OrgId::clone(&key.org), by);
        loop {
            let current = match self.read(&key.org, &key.id, Reach::All).await {
                Ok(current) => current,
                Err(ManageError::NotFound) => return Ok(false),
                Err(error) => return Err(error),
            };
            let Some(patch) = needed(&current) else { return Ok(false) };
            let revokes = patch.status.is_some();
            let edited = self.edit(&actor, &key.id, patch, Some(current.revision), Reach::All);
            match edited.await {
                Ok(_) => return Ok(revokes),
                // It was changed or deleted in the meantime: read it again.
                Err(ManageError::StaleRevision { .. } | ManageError::NotFound) => {}
                Err(error) => return Err(error),
            }
        }
    }
}
