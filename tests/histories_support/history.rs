//! The history that processes make together.

use std::collections::{HashMap, HashSet};

use super::checker::{Demand, Violation, check};
use super::event::{Event, Outcome, Span};

/// Events, each with the number of its key.
pub(crate) type Log = Vec<(u32, Event)>;

/// What the processes did to the keys.
#[derive(Default)]
pub(crate) struct History {
    /// The events of each key.
    keys: HashMap<u32, Vec<Event>>,
    /// How many verifications found a version that the other process made.
    pub(crate) handovers: usize,
}

impl History {
    /// Adds the events of a process.
    pub(crate) fn add(&mut self, log: Log) {
        let made = |(key, event): &(u32, Event)| Some((*key, event.outcome.version()?.revision));
        let made: HashSet<_> = log.iter().filter_map(made).collect();
        for (key, event) in log {
            if let Outcome::Verified { seen, .. } = event.outcome
                && !made.contains(&(key, seen.revision))
            {
                self.handovers += 1;
            }
            self.keys.entry(key).or_default().push(event);
        }
    }

    pub(crate) fn violations(&self, demand: Demand) -> Vec<Violation> {
        self.keys.values().flat_map(|events| check(events, demand)).collect()
    }

    /// The number of operations with such an outcome.
    pub(crate) fn count(&self, is_counted: impl Fn(Outcome) -> bool) -> usize {
        self.keys.values().flatten().filter(|event| is_counted(event.outcome)).count()
    }

    /// The number of verifications during a change of their key.
    pub(crate) fn races(&self) -> usize {
        let races_of_key = |events: &Vec<Event>| {
            let is_change = |event: &&Event| {
                matches!(
                    event.outcome,
                    Outcome::Updated(..) | Outcome::Rotated(_) | Outcome::Deleted
                )
            };
            let changes: Vec<Span> =
                events.iter().filter(is_change).map(|event| event.span).collect();
            let races = |event: &&Event| {
                let overlaps = |change: &Span| {
                    change.start <= event.span.end && event.span.start <= change.end
                };
                matches!(event.outcome, Outcome::Verified { .. } | Outcome::Unknown(_))
                    && changes.iter().any(overlaps)
            };
            events.iter().filter(races).count()
        };
        self.keys.values().map(races_of_key).sum()
    }
}
