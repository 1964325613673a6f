//! The task that listens to the feed.

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::Poll;
use std::time::Duration;

use event_listener::Event;

use super::entries::Entries;
use crate::runtime::spawn::{Panicked, Runtime, caught, timeout};
use crate::store::feed::{ChangeFeed, News};
use crate::throttle::Throttle;

/// Stops the task when dropped.
#[derive(Debug, Default)]
pub(super) struct Listening(Arc<End>);

#[derive(Debug, Default)]
struct End {
    reached: AtomicBool,
    event: Event,
}

impl Listening {
    pub(super) fn start(
        feed: Box<dyn ChangeFeed>,
        entries: Arc<Entries>,
        max_staleness: Duration,
        runtime: Arc<dyn Runtime>,
    ) -> Self {
        let end = Arc::new(End::default());
        let timer = Arc::clone(&runtime);
        let follower =
            Follower { feed, entries, max_staleness, runtime: timer, end: Arc::clone(&end) };
        runtime.spawn(Box::pin(follower.run()));
        Self(end)
    }
}

impl Drop for Listening {
    fn drop(&mut self) {
        self.0.reached.store(true, Ordering::Release);
        self.0.event.notify(usize::MAX);
    }
}

struct Follower {
    feed: Box<dyn ChangeFeed>,
    entries: Arc<Entries>,
    max_staleness: Duration,
    runtime: Arc<dyn Runtime>,
    end: Arc<End>,
}

impl Follower {
    async fn run(mut self) {
        let mut following = false;
        let (lost, found) = (Throttle::default(), Throttle::default());
        loop {
            // Expired entries are never served, even if this task does not run. Here they
            // are freed, and the log is informed.
            let news = or_end(&self.end, caught(self.feed.next()));
            match timeout(&*self.runtime, self.max_staleness, news).await {
                Ok(None) => return,
                Ok(Some(Ok(news))) => self.hear(news),
                Ok(Some(Err(Panicked))) => {
                    self.entries.drop_all();
                    tracing::error!(
                        "the change feed panicked: the key cache is bypassed until a restart"
                    );
                    return;
                }
                Err(_silent) => {}
            }
            let bypassed = self.entries.is_bypassed();
            if following && bypassed {
                self.entries.drop_all();
                if let Some(left_out) = lost.pass() {
                    tracing::warn!(
                        left_out,
                        "the change feed is silent: the key cache is bypassed"
                    );
                }
            } else if !following
                && !bypassed
                && let Some(left_out) = found.pass()
            {
                tracing::info!(left_out, "the change feed works: the key cache is in use");
            }
            following = !bypassed;
        }
    }

    fn hear(&self, news: News) {
        match news {
            News::Changed(id) => self.entries.changed(id),
            News::UpToDate { as_of } => self.entries.up_to_date(as_of),
            News::Missed => self.entries.drop_all(),
        }
    }
}

/// The output of the future, or `None` once the end is reached.
async fn or_end<T>(end: &End, work: impl Future<Output = T>) -> Option<T> {
    let mut ended = pin!(end.event.listen());
    if end.reached.load(Ordering::Acquire) {
        return None;
    }
    let mut work = pin!(work);
    poll_fn(|cx| match ended.as_mut().poll(cx) {
        Poll::Ready(()) => Poll::Ready(None),
        Poll::Pending => work.as_mut().poll(cx).map(Some),
    })
    .await
}
