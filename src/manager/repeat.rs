//! Repeats work in the background.

use std::sync::Arc;
use std::time::Duration;

use crate::manager::KeyManager;

impl KeyManager {
    /// Does this work now, and again after each pause, until the manager is dropped.
    pub(super) fn repeat<W: Future<Output = ()> + Send>(
        &self,
        pause: Duration,
        mut work: impl FnMut(Self) -> W + Send + 'static,
    ) {
        let (inner, runtime) = (Arc::downgrade(&self.inner), Arc::clone(&self.inner.runtime));
        self.inner.runtime.spawn(Box::pin(async move {
            while let Some(inner) = inner.upgrade() {
                work(Self { inner }).await;
                runtime.sleep(pause).await;
            }
        }));
    }
}
