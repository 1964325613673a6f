//! Stores and logs with exactly one fault, which the test chooses.

mod checks;
mod export;
pub(crate) mod fault;
mod import;
pub(crate) mod log;
mod reopening;
pub(crate) mod store;

/// Lets other tasks run between a check and what depends on it.
async fn gap() {
    for _ in 0..3 {
        tokio::task::yield_now().await;
    }
}
