//! What a service can replace: the clock, background tasks and timers.

pub(crate) mod clock;
pub(crate) mod relay;
pub(crate) mod spawn;

pub use crate::runtime::clock::{Clock, ManualClock, SystemClock};
#[cfg(feature = "tokio")]
#[cfg_attr(docsrs, doc(cfg(feature = "tokio")))]
pub use crate::runtime::spawn::TokioRuntime;
pub use crate::runtime::spawn::{BoxFuture, Runtime};
