//! A property as a value: its name, and how it is checked.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::runtime::BoxFuture;
use crate::store::conformance::race::{Task, need_parallel_runtime};
use crate::store::conformance::violation::{Report, Violation, Violations};

/// Far more than any property needs, over a network as well: what takes
/// longer hangs.
const DEADLINE: Duration = Duration::from_secs(60);

/// One property of a store or of an audit log. It can be checked by itself,
/// for one test a property or to leave some out.
pub struct Property<S: ?Sized> {
    name: &'static str,
    check: fn(Arc<S>) -> BoxFuture<'static, Result<(), Violation>>,
}

impl<S: ?Sized + Send + Sync + 'static> Property<S> {
    pub(super) const fn new(
        name: &'static str,
        check: fn(Arc<S>) -> BoxFuture<'static, Result<(), Violation>>,
    ) -> Self {
        Self { name, check }
    }

    /// The path of its function in [`conformance`](crate::conformance), such
    /// as `insert::a_taken_digest_is_a_conflict`.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// Checks the property. Other than its bare function does, this turns a
    /// panic and a call that never ends into violations.
    pub async fn check(&self, subject: Arc<S>) -> Result<(), Violation> {
        need_parallel_runtime()?;
        let task = Task::spawn((self.check)(subject));
        match tokio::time::timeout(DEADLINE, task.join()).await {
            Ok(joined) => joined?,
            Err(_) => Err(Violation::new(
                format!("every call to return, within {DEADLINE:?} in all"),
                "one that hangs",
            )),
        }
    }
}

impl<S: ?Sized> fmt::Debug for Property<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Property").field(&self.name).finish()
    }
}

/// Checks one property after the other, each on a subject of its own, so that
/// the races have the machine to themselves.
pub(super) async fn check_all<S, F>(
    properties: &[Property<S>],
    factory: impl Fn() -> F,
) -> Result<Report, Violations>
where
    S: ?Sized + Send + Sync + 'static,
    F: Future<Output = Arc<S>>,
{
    // Said once, and not by every property.
    need_parallel_runtime()
        .map_err(|violation| Violations::new(1, vec![("runtime", violation)]))?;
    let (mut passed, mut failed) = (Vec::new(), Vec::new());
    for property in properties {
        let subject = factory().await;
        let begun = Instant::now();
        match property.check(subject).await {
            Ok(()) => passed.push((property.name, begun.elapsed())),
            Err(violation) => failed.push((property.name, violation)),
        }
    }
    if failed.is_empty() {
        Ok(Report::new(passed))
    } else {
        Err(Violations::new(properties.len(), failed))
    }
}
