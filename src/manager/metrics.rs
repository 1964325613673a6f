//! Reports to the recorder of the `metrics` facade what a manager counts anyway.

use std::sync::{Arc, Weak};
use std::time::Duration;

use crate::manager::Inner;
use crate::meters::recorded::Reporter;

/// How often the counts are reported.
const INTERVAL: Duration = Duration::from_secs(1);

impl Inner {
    /// Reports until the manager is dropped.
    pub(super) fn report_metrics(self: &Arc<Self>) {
        let (inner, runtime) = (Arc::downgrade(self), Arc::clone(&self.runtime));
        let mut reporter = Reporter::new();
        self.runtime.spawn(Box::pin(async move {
            while let Some(manager) = Weak::upgrade(&inner) {
                let audit = manager.audit.as_ref();
                let stats = audit.map(|audit| audit.stats()).unwrap_or_default();
                let queued = audit.map_or(0, |audit| audit.health().queued);
                reporter.report(stats, queued, manager.cache.health().map(|cache| cache.works()));
                drop(manager);
                runtime.sleep(INTERVAL).await;
            }
        }));
    }
}
