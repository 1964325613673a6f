//! Stores and logs with exactly one fault, which the test chooses.

mod checks;
mod export;
pub(crate) mod fault;
mod import;
pub(crate) mod log;
mod reopening;
mod search;
pub(crate) mod store;

use std::time::Duration;

use tokio::task::JoinHandle;

/// Makes the change some time later, even if the caller has dropped its call.
fn later<T: Send + 'static>(
    milliseconds: u64,
    change: impl Future<Output = T> + Send + 'static,
) -> JoinHandle<T> {
    tokio::spawn(async move {
        tokio::time::sleep(Duration::from_millis(milliseconds)).await;
        change.await
    })
}

/// Lets other tasks run between a check and what depends on it.
async fn gap() {
    for _ in 0..3 {
        tokio::task::yield_now().await;
    }
}
