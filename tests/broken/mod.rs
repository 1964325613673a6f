//! Stores and logs that are right but for one fault of choice.

mod checks;
mod export;
pub(crate) mod fault;
pub(crate) mod log;
pub(crate) mod store;

/// Between a check and what was checked for: long enough for others to pass.
async fn gap() {
    for _ in 0..3 {
        tokio::task::yield_now().await;
    }
}
