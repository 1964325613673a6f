//! Tells when a key ends, for a connection that is held open.

use std::sync::Arc;
use std::time::Duration;

use crate::key::digest::KeyDigest;
use crate::manager::KeyManager;
use crate::manager::verify::VerifiedKey;
use crate::record::{ApiKey, SecretUsed, Status};
use crate::runtime::spawn::timeout;

/// How often a key is looked up.
const PAUSE: Duration = Duration::from_millis(500);

impl KeyManager {
    /// Completes once the key would no longer be let in with the secret of its request: it
    /// was revoked, deleted or rotated, or is expired. Use it to close a WebSocket or a
    /// stream, which would otherwise outlive its key.
    ///
    /// After a change by this process, it completes at once; after one by another process,
    /// or an expiry, within half a second of the moment from which look-ups are refused: with
    /// a [`CachedStore`](crate::store), that is at most `max_staleness` after the change. The
    /// addresses and scopes of the key are not checked again. While the store is unavailable,
    /// it waits.
    ///
    /// It costs a look-up every half second for as long as it is awaited.
    ///
    /// ```
    /// # #[tokio::main]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # use keygate::{Actor, KeyManager, MemoryStore, NewKey, OrgId};
    /// # let keys = KeyManager::builder(MemoryStore::new()).build()?;
    /// # let actor = Actor::new(OrgId::new("acme")?, "ada");
    /// # let issued = keys.create(&actor, NewKey::named("CI")?).await?;
    /// let key = keys.verify(issued.secret.expose_secret(), None).await?;
    /// # let open = async { std::future::pending::<()>().await };
    /// # let (watching, watched) = (keys.clone(), key.clone());
    /// # let revoke = tokio::spawn(async move { keys.revoke(&actor, &watched.id()).await });
    /// # let keys = watching;
    /// tokio::select! {
    ///     () = open => println!("the connection was closed"),
    ///     () = keys.ended(&key) => println!("close the connection: its key has ended"),
    /// }
    /// # revoke.await??;
    /// # Ok(())
    /// # }
    /// ```
    pub async fn ended(&self, key: &VerifiedKey) {
        let inner = &*self.inner;
        let Some(mut digest) = digest_of(key) else { return };
        loop {
            // Before the look-up, so that no change in between is missed.
            let changed = inner.key_changed.listen();
            match inner.find(&digest).await {
                Ok(Some((current, secret))) if self.works(&current, secret) => {}
                Ok(Some(_)) => return,
                Ok(None) => match self.with_another_digest(key).await {
                    Ok(Some(other)) if other != digest => digest = other,
                    Ok(_) => return,
                    Err(_) => {}
                },
                Err(_) => {}
            }
            let _ = timeout(&*inner.runtime, PAUSE, changed).await;
        }
    }

    fn works(&self, key: &ApiKey, secret: SecretUsed) -> bool {
        let now = self.now();
        match secret {
            SecretUsed::Current => key.status == Status::Active && !key.is_expired(now),
            SecretUsed::Previous => key.previous_until(now).is_some(),
        }
    }

    /// The digest of a key that was issued before keygate changes with its first use, though
    /// its secret does not.
    async fn with_another_digest(&self, key: &VerifiedKey) -> Result<Option<KeyDigest>, ()> {
        let store = &self.inner.store;
        let found = self.inner.bounded(store.get(key.org(), &key.id())).await.map_err(drop)?;
        let same_secret = |current: &Arc<ApiKey>| {
            key.secret_used() == SecretUsed::Current && current.has_secret_of(key.record())
        };
        Ok(found.filter(same_secret).map(|current| current.digest))
    }
}

fn digest_of(key: &VerifiedKey) -> Option<KeyDigest> {
    match key.secret_used() {
        SecretUsed::Current => Some(key.record().digest),
        SecretUsed::Previous => key.record().previous.map(|previous| previous.digest),
    }
}
