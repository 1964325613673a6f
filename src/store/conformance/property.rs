//! A property and the way it is checked.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, oneshot};

use crate::runtime::spawn::BoxFuture;
use crate::store::conformance::race::{Task, need_parallel_runtime};
use crate::store::conformance::violation::{Report, Violation, Violations};

/// A property that takes longer than this hangs. It is far more than any property
/// needs, even over a network.
const DEADLINE: Duration = Duration::from_secs(60);

tokio::task_local! {
    static ONLY: Vec<&'static str>;
}

/// Makes the checks within `check` run the named properties only.
#[doc(hidden)]
pub async fn only<T>(names: Vec<&'static str>, check: impl Future<Output = T>) -> T {
    ONLY.scope(names, check).await
}

/// One property of a store or of an audit log.
pub(super) struct Property<S: ?Sized> {
    pub(super) name: &'static str,
    pub(super) check: fn(Opener<S>) -> BoxFuture<'static, Result<(), Violation>>,
}

/// Opens the store or the log that a property is checked on, by the caller's factory.
pub(super) struct Opener<S: ?Sized>(mpsc::UnboundedSender<oneshot::Sender<Arc<S>>>);

impl<S: ?Sized> Opener<S> {
    pub(super) async fn open(&self) -> Result<Arc<S>, Violation> {
        let (reply, opened) = oneshot::channel();
        let gone = || Violation::new("the factory to be called", "the check ended early");
        self.0.send(reply).map_err(|_| gone())?;
        opened.await.map_err(|_| gone())
    }
}

/// Lists properties by the names of their functions. The text before each module is the
/// path that its name is reported under.
///
/// A function listed under `open` takes one store; one listed under `reopen` takes the
/// [`Opener`].
macro_rules! properties {
    ($how:ident: $parent:literal $($module:ident { $($name:ident,)+ })+) => {
        &[$($($crate::store::conformance::property::Property {
            name: concat!($parent, stringify!($module), "::", stringify!($name)),
            check: $crate::store::conformance::property::properties!(@$how $module::$name),
        },)+)+]
    };
    (@open $property:path) => {
        |opener| Box::pin(async move { $property(opener.open().await?).await })
    };
    (@reopen $property:path) => {
        |opener| Box::pin(async move { $property(&opener).await })
    };
}
pub(super) use properties;

/// Checks the properties one after the other, so that races do not compete with those
/// of another property. Each property opens a store of its own.
pub(super) async fn check_all<S, F>(
    properties: &[Property<S>],
    factory: impl Fn() -> F,
) -> Result<Report, Violations>
where
    S: ?Sized + Send + Sync + 'static,
    F: Future<Output = Arc<S>>,
{
    need_parallel_runtime()
        .map_err(|violation| Violations::new(1, vec![("runtime", violation)]))?;
    let is_wanted = |name: &str| ONLY.try_with(|only| only.contains(&name)).unwrap_or(true);
    let (mut passed, mut failed) = (Vec::new(), Vec::new());
    for property in properties.iter().filter(|property| is_wanted(property.name)) {
        let begun = Instant::now();
        match check(property, &factory).await {
            Ok(()) => passed.push((property.name, begun.elapsed())),
            Err(violation) => failed.push((property.name, violation)),
        }
    }
    if failed.is_empty() {
        Ok(Report::new(passed))
    } else {
        Err(Violations::new(passed.len() + failed.len(), failed))
    }
}

/// Turns a panic and a call that never returns into violations.
async fn check<S, F>(property: &Property<S>, factory: impl Fn() -> F) -> Result<(), Violation>
where
    S: ?Sized + Send + Sync + 'static,
    F: Future<Output = Arc<S>>,
{
    let (sender, mut requests) = mpsc::unbounded_channel();
    let checked = async {
        // A task, since only a task turns a panic into an error. The factory may borrow
        // from the caller, so it is called here and not in the task.
        let task = Task::spawn((property.check)(Opener(sender)));
        while let Some(reply) = requests.recv().await {
            // A property that has ended needs no store.
            let _ = reply.send(factory().await);
        }
        task.join().await?
    };
    let hangs = |_| {
        let expected = format!("every call to return, within {DEADLINE:?} in all");
        Err(Violation::new(expected, "a call that hangs"))
    };
    tokio::time::timeout(DEADLINE, checked).await.unwrap_or_else(hangs)
}
