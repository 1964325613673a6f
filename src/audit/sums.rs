//! Sums of refusals, so that a key that is refused repeatedly leaves few records.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use crate::audit::record::Outcome;
use crate::key::id::KeyId;
use crate::org::OrgId;
use crate::record::SecretUsed;
use crate::runtime::clock::Timestamp;

/// A refused request with a known key. Its path and method are unprocessed, since most
/// refusals are only counted.
pub(crate) struct Refusal {
    pub(crate) at: Timestamp,
    pub(crate) org: OrgId,
    pub(crate) key: KeyId,
    pub(crate) outcome: Outcome,
    pub(crate) status: u16,
    pub(crate) method: Cow<'static, str>,
    pub(crate) path: Box<str>,
    pub(crate) ip: Option<IpAddr>,
    pub(crate) secret: SecretUsed,
}

/// The refusals that one record stands for.
pub(crate) struct Sum {
    pub(crate) last: Refusal,
    pub(crate) count: u32,
}

impl Sum {
    fn of(refusal: Refusal) -> Self {
        Self { last: refusal, count: 1 }
    }
}

/// Counts the refusals of each key, outcome and secret in windows of time. The first ones of a
/// window get a record each, the others are summed.
///
/// A window begins with its first refusal. It ends when a refusal falls outside it by the
/// clock of the records, or when its time has passed by the clock of the process, whichever
/// comes first: this way a clock that is set back keeps no sum open. A sum for which there
/// is no room continues.
pub(crate) struct Sums {
    /// How many refusals of a window get a record each.
    alone: u32,
    window: Duration,
    /// How many windows may be open.
    most: usize,
    windows: HashMap<WindowId, Window>,
    /// The windows by number, so the oldest comes first.
    by_age: BTreeMap<u64, WindowId>,
    opened: u64,
    summed: u64,
    total_summed: u64,
    /// Accepts no more refusals.
    pub(crate) closed: bool,
}

type WindowId = (KeyId, Outcome, SecretUsed);

struct Window {
    number: u64,
    opened: Instant,
    since: Timestamp,
    alone: u32,
    sum: Option<Sum>,
}

/// The records to queue after a refusal, each with its place.
pub(crate) struct Added<P> {
    /// The refusal, if it gets a separate record.
    pub(crate) own: Option<(P, Sum)>,
    /// The sum of a window that ended.
    pub(crate) ended: Option<(P, Sum)>,
    /// There was no room to queue or to sum the refusal.
    pub(crate) shed: bool,
    /// The refusal began a window.
    pub(crate) opened: bool,
}

/// The queue has no room for the sum of a window.
struct NoRoom;

impl Sums {
    pub(crate) fn new(alone: u32, window: Duration, most: usize) -> Self {
        Self {
            alone,
            window,
            most,
            windows: HashMap::new(),
            by_age: BTreeMap::new(),
            opened: 0,
            summed: 0,
            total_summed: 0,
            closed: false,
        }
    }

    /// Counts a refusal. `reserve` returns a place in the queue, if one is free.
    pub(crate) fn add<P>(
        &mut self,
        refusal: Refusal,
        now: Instant,
        mut reserve: impl FnMut() -> Option<P>,
    ) -> Added<P> {
        let mut added = Added { own: None, ended: None, shed: false, opened: false };
        let id = (refusal.key, refusal.outcome, refusal.secret);
        let ends = match self.windows.get(&id) {
            Some(window) if window.takes(refusal.at, self.window) => None,
            Some(_) => Some(id),
            None if self.windows.len() < self.most => None,
            None => self.by_age.first_key_value().map(|(_, oldest)| *oldest),
        };
        if let Some(id) = ends {
            added.ended = self.end(id, &mut reserve).unwrap_or_default();
        }
        if !self.windows.contains_key(&id) {
            if self.windows.len() >= self.most {
                added.shed = true;
                return added;
            }
            self.open(id, refusal.at, now);
            added.opened = true;
        }
        let Some(window) = self.windows.get_mut(&id) else { return added };
        if window.alone < self.alone
            && let Some(place) = reserve()
        {
            window.alone += 1;
            added.own = Some((place, Sum::of(refusal)));
            return added;
        }
        match &mut window.sum {
            Some(sum) => match sum.count.checked_add(1) {
                Some(count) => *sum = Sum { last: refusal, count },
                None => added.shed = true,
            },
            none => *none = Some(Sum::of(refusal)),
        }
        self.summed += u64::from(!added.shed);
        self.total_summed += u64::from(!added.shed);
        added
    }

    /// Ends the windows whose time has passed, and the `least` oldest at any age. Returns
    /// their sums as far as there is room for them.
    pub(crate) fn end_old<P>(
        &mut self,
        now: Instant,
        least: usize,
        mut reserve: impl FnMut() -> Option<P>,
    ) -> Vec<(P, Sum)> {
        let (mut ended, mut left_to_end) = (Vec::new(), least);
        while let Some((id, time)) = self.oldest(now)
            && (left_to_end > 0 || time.is_zero())
            && let Ok(sum) = self.end(id, &mut reserve)
        {
            left_to_end = left_to_end.saturating_sub(1);
            ended.extend(sum);
        }
        ended
    }

    /// How long the oldest window still lasts.
    pub(crate) fn time_left(&self, now: Instant) -> Option<Duration> {
        self.oldest(now).map(|(_, left)| left)
    }

    /// How many refusals are in open sums.
    pub(crate) fn summed(&self) -> u64 {
        self.summed
    }

    /// How many refusals were summed so far.
    pub(crate) fn total_summed(&self) -> u64 {
        self.total_summed
    }

    /// Drops all sums, and returns how many refusals were in them.
    pub(crate) fn give_up(&mut self) -> u64 {
        self.windows.clear();
        self.by_age.clear();
        std::mem::take(&mut self.summed)
    }

    fn oldest(&self, now: Instant) -> Option<(WindowId, Duration)> {
        let id = *self.by_age.first_key_value()?.1;
        let age = now.saturating_duration_since(self.windows.get(&id)?.opened);
        Some((id, self.window.saturating_sub(age)))
    }

    fn open(&mut self, id: WindowId, since: Timestamp, now: Instant) {
        self.opened += 1;
        let window = Window { number: self.opened, opened: now, since, alone: 0, sum: None };
        self.by_age.insert(window.number, id);
        self.windows.insert(id, window);
    }

    /// Ends a window, unless it has a sum for which there is no room.
    fn end<P>(
        &mut self,
        id: WindowId,
        reserve: &mut impl FnMut() -> Option<P>,
    ) -> Result<Option<(P, Sum)>, NoRoom> {
        let summed = self.windows.get(&id).is_some_and(|window| window.sum.is_some());
        let place = if summed { Some(reserve().ok_or(NoRoom)?) } else { None };
        let window = self.windows.remove(&id);
        if let Some(window) = &window {
            self.by_age.remove(&window.number);
        }
        let ended = place.zip(window.and_then(|window| window.sum));
        let counted = ended.as_ref().map_or(0, |(_, sum)| u64::from(sum.count));
        self.summed = self.summed.saturating_sub(counted);
        Ok(ended)
    }
}

impl Window {
    /// Whether the window includes this time. Threads may overtake each other, so a time
    /// slightly before the window belongs to it as well.
    fn takes(&self, at: Timestamp, length: Duration) -> bool {
        let full = self.sum.as_ref().is_some_and(|sum| sum.count == u32::MAX);
        !full && at < self.since.saturating_add(length) && self.since < at.saturating_add(length)
    }
}

#[cfg(test)]
mod tests;
