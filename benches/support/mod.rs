//! What the benches share: the spread of their rounds, a look at their own memory, and
//! a server of their own with a client for it.
#![allow(dead_code, reason = "each bench uses its part")]

pub(crate) mod client;
pub(crate) mod server;

use std::fs;
use std::time::Duration;

use keygate::existing::{DigestKind, ExistingFormat};
use keygate::manager::KeyManagerBuilder;
use keygate::{KeyFormat, Limits, ScopeCatalog};

/// Adds what an existing product needs: environments, scopes, a format of keys from before,
/// limits by organisation.
pub(crate) fn all_on(builder: KeyManagerBuilder) -> KeyManagerBuilder {
    let existing = ExistingFormat::new("acme_live_", 32..=32).unwrap();
    let catalog = [("reports:read", "Read reports"), ("reports:write", "Change reports")];
    builder
        .environment("live", KeyFormat::default())
        .environment("test", KeyFormat::new("vsp_sk_test_").unwrap())
        .existing(existing.digests(DigestKind::sha256()))
        .scopes(ScopeCatalog::new(catalog).unwrap())
        .limits_for(|_| Limits::default())
}

/// The median of some rounds, and between what the middle half of them lies: a few
/// rounds that were disturbed say nothing.
#[derive(Clone, Copy)]
pub(crate) struct Spread {
    pub(crate) median: f64,
    low: f64,
    high: f64,
}

impl Spread {
    pub(crate) fn of(mut values: Vec<f64>) -> Self {
        values.sort_by(f64::total_cmp);
        let quarter = values.len() / 4;
        let (low, high) = (values[quarter], values[values.len() - 1 - quarter]);
        Self { median: values[values.len() / 2], low, high }
    }

    /// With so many decimals.
    pub(crate) fn show(self, decimals: usize) -> String {
        let Self { median, low, high } = self;
        format!("{median:.decimals$} ({low:.decimals$}..{high:.decimals$})")
    }
}

/// The most memory that this process has had since [`forget_peak`], in MiB.
pub(crate) fn peak_memory() -> f64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<f64>().unwrap() / 1024.0
}

/// From here on, the peak is counted anew.
pub(crate) fn forget_peak() {
    fs::write("/proc/self/clear_refs", "5").unwrap();
}

/// The processor time that this process has used, to 10 ms.
pub(crate) fn processor_time() -> Duration {
    let stat = fs::read_to_string("/proc/self/stat").unwrap();
    let (_, fields) = stat.rsplit_once(") ").unwrap();
    let ticks = |n| fields.split(' ').nth(n).unwrap().parse::<u64>().unwrap();
    Duration::from_millis((ticks(11) + ticks(12)) * 10)
}
