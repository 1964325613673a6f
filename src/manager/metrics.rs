//! Reports to the recorder of the `metrics` facade what a manager counts anyway.

use std::future::ready;
use std::time::Duration;

use crate::manager::KeyManager;
use crate::meters::recorded::Reporter;

/// How often the counts are reported.
const INTERVAL: Duration = Duration::from_secs(1);

impl KeyManager {
    /// Reports until the manager is dropped.
    pub(super) fn report_metrics(&self) {
        let mut reporter = Reporter::new();
        self.repeat(INTERVAL, move |Self { inner }| {
            let audit = inner.audit.as_ref();
            let stats = audit.map(|audit| audit.stats()).unwrap_or_default();
            let queued = audit.map_or(0, |audit| audit.health().queued);
            reporter.report(stats, queued, inner.cache.health().map(|cache| cache.works()));
            ready(())
        });
    }
}
