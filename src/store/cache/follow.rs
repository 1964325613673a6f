//! The task that listens to the feed.

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::Poll;
use std::time::Duration;

use event_listener::Event;

use super::entries::Entries;
use crate::runtime::{Panicked, Runtime, caught, within};
use crate::store::feed::{ChangeFeed, News};
use crate::throttle::Throttle;

/// Ends the task when it is dropped.
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
            // Entries are not served after their time whether or not this task runs;
            // here they are dropped, and the log told.
            let news = or_end(&self.end, caught(self.feed.next()));
            match within(&*self.runtime, self.max_staleness, news).await {
                Ok(None) => return,
                Ok(Some(Ok(news))) => self.hear(news),
                Ok(Some(Err(Panicked))) => {
                    self.entries.drop_all();
                    tracing::error!(
                        "the feed of changes panicked: the cache of keys is bypassed from now on"
                    );
                    return;
                }
                Err(_silent) => {}
            }
            let bypassed = self.entries.is_bypassed();
            if following && bypassed {
                self.entries.drop_all();
                if let Some(left_out) = lost.pass() {
                    tracing::warn!(left_out, "no word of changes: the cache of keys is bypassed");
                }
            } else if !following
                && !bypassed
                && let Some(left_out) = found.pass()
            {
                tracing::info!(left_out, "the cache of keys follows the changes");
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

/// What the work comes to; nothing once the end is reached.
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
