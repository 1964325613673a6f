//! Tells when a key ends, for a connection that is held open.

use std::sync::Arc;
use std::time::Duration;

use event_listener::Event;

use crate::key::digest::KeyDigest;
use crate::key::id::KeyId;
use crate::manager::KeyManager;
use crate::manager::in_use::InUse;
use crate::manager::verify::VerifiedKey;
use crate::record::{ApiKey, SecretUsed, Status};
use crate::runtime::clock::Timestamp;
use crate::runtime::spawn::timeout;

/// How often a key is looked up.
const PAUSE: Duration = Duration::from_millis(500);

/// The keys whose end somebody waits for, with an event for changes of each.
pub(super) type Watched = InUse<KeyId, Event>;

impl Watched {
    /// The key was changed by this process.
    pub(super) fn notify(&self, key: &KeyId) {
        if let Some(changed) = self.get(key) {
            changed.notify(usize::MAX);
        }
    }
}

impl KeyManager {
    /// Completes once the key would no longer be let in with the secret of its request: it
    /// was revoked, deleted or rotated, or is expired. Use it to close a WebSocket or a
    /// stream, which would otherwise outlive its key.
    ///
    /// After a change by this process, and at the key's expiry, it completes at once. After a
    /// change by another process, it completes within half a second of the moment from which
    /// requests with the key are refused; with a
    #[cfg_attr(feature = "cache", doc = "[`CachedStore`](crate::CachedStore),")]
    #[cfg_attr(not(feature = "cache"), doc = "`CachedStore`,")]
    /// that moment comes as soon as its feed delivers the change, and at most `max_staleness`
    /// after it. The addresses and scopes of the key are not checked again. While the store is
    /// unavailable, it waits. It does not complete when the manager is shut down.
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
        let changes = inner.watched.of(key.id());
        loop {
            // Before the look-up, so that no change in between is missed.
            let changed = changes.listen();
            let mut pause = PAUSE;
            match inner.find(&digest).await {
                Ok(Some((current, secret))) => match self.time_left(&current, secret) {
                    Some(left) => pause = pause.min(left),
                    None => return,
                },
                Ok(None) => match self.with_another_digest(key).await {
                    Ok(Some(other)) if other != digest => digest = other,
                    Ok(_) => return,
                    Err(_) => {}
                },
                Err(_) => {}
            }
            let _ = timeout(&*inner.runtime, pause, changed).await;
        }
    }

    /// How long the secret works unless the key is changed; `None` if it has ended.
    fn time_left(&self, key: &ApiKey, secret: SecretUsed) -> Option<Duration> {
        let now = self.now();
        let end = match secret {
            SecretUsed::Current if key.status != Status::Active || key.is_expired(now) => None,
            SecretUsed::Current => Some(key.expires_at.unwrap_or(Timestamp::MAX)),
            SecretUsed::Previous => key.previous_until(now),
        };
        let micros = end?.unix_micros().saturating_sub(now.unix_micros());
        Some(Duration::from_micros(u64::try_from(micros).unwrap_or_default()))
    }

    /// The digest of a key that was issued before keygate changes with its first use, though
    /// its secret does not.
    async fn with_another_digest(&self, key: &VerifiedKey) -> Result<Option<KeyDigest>, ()> {
        let store = &self.inner.store;
        let found =
            self.inner.bounded("get", store.get(key.org(), &key.id())).await.map_err(drop)?;
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
