//! Is there an order of the changes to a key that explains every verification of it?
//!
//! The store numbers the versions of a key, so the order of the successful changes is known.
//! Unknown is *when* each change took effect: at some instant between its call and its return,
//! and not before the previous change. A caller that saw version `n` during a call shows that
//! `n` existed by the end of the call and that `n + 1` did not exist before its beginning.
//! Each observation gives a lower or an upper bound for those instants. A history can be
//! explained if and only if, along the order, no lower bound is later than an upper bound. No
//! search is needed.

use std::collections::HashMap;
use std::fmt;

use keygate::Denial;

use super::event::{Attempt, Event, Outcome, State, Version};

/// What the order has to explain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Demand {
    /// Each verification by itself. A cache promises this: while a change is under way, one
    /// caller may see it before another.
    Each,
    /// All verifications by one order: the key behaves as if one caller at a time used and
    /// changed it.
    Together,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Decided by a version that had been replaced before the call began.
    TooLate,
    /// Decided by a version whose change had not begun.
    TooEarly,
    /// Refused, and no change explains it.
    NoCause,
    /// The outcome does not match the version.
    Misjudged,
    /// A version made by no change or by two, or different from what was asked for.
    Unmade,
    /// Changes or verifications contradict each other in time.
    Disorder,
}

#[derive(Clone, Debug)]
pub(crate) struct Violation {
    pub(crate) kind: Kind,
    text: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {}", self.kind, self.text)
    }
}

/// Checks the history of one key. `expires` is the first microsecond at which it is expired,
/// by the clock of the spans.
pub(crate) fn check(events: &[Event], expires: Option<u64>, demand: Demand) -> Vec<Violation> {
    let mut checker = Checker { expires, found: Vec::new() };
    if let Some(mut changes) = checker.changes(events) {
        checker.verifications(events, &mut changes, demand);
    }
    checker.found
}

struct Checker {
    expires: Option<u64>,
    found: Vec<Violation>,
}

/// Every successful change, in order. Entry `n` made version `n`. The entry after the last
/// version is the deletion.
struct Changes {
    states: Vec<State>,
    rotations: Vec<usize>,
    deleted: bool,
    /// For each secret, the change that issued it and the change that ended it, if any.
    lives: HashMap<u64, (usize, Option<usize>)>,
    bounds: Bounds,
}

/// The earliest and the latest time at which each change may have taken effect.
#[derive(Clone)]
struct Bounds {
    from: Vec<u64>,
    to: Vec<u64>,
}

impl Bounds {
    fn new(places: usize) -> Self {
        Self { from: vec![0; places], to: vec![u64::MAX; places] }
    }

    fn not_before(&mut self, place: usize, instant: u64) {
        self.from[place] = self.from[place].max(instant);
    }

    fn not_after(&mut self, place: usize, instant: u64) {
        self.to[place] = self.to[place].min(instant);
    }

    /// A change is not before the previous one nor after the next one. Returns the first
    /// change for which no instant is left.
    fn close(&mut self) -> Option<usize> {
        for place in 1..self.from.len() {
            self.from[place] = self.from[place].max(self.from[place - 1]);
        }
        for place in (1..self.to.len()).rev() {
            self.to[place - 1] = self.to[place - 1].min(self.to[place]);
        }
        (1..self.from.len()).find(|&place| self.from[place] > self.to[place])
    }
}

impl Changes {
    /// The index after the last version.
    fn end(&self) -> usize {
        self.states.len()
    }

    fn around(&self, place: usize) -> String {
        let span = |place: usize| match (self.bounds.from.get(place), self.bounds.to.get(place)) {
            (Some(from), Some(&to)) if to < u64::MAX => format!("{from}..{to}"),
            _ => "never".to_owned(),
        };
        format!("change {place} took effect in {}, the next in {}", span(place), span(place + 1))
    }
}

impl Checker {
    fn violation(&mut self, kind: Kind, text: impl Into<String>) {
        self.found.push(Violation { kind, text: text.into() });
    }

    /// The order of the changes; `None` if they have no consistent order.
    fn changes(&mut self, events: &[Event]) -> Option<Changes> {
        let mut claims: Vec<Vec<&Event>> = vec![Vec::new()];
        let mut deletions = Vec::new();
        for event in events {
            match event.outcome {
                Outcome::Created(version)
                | Outcome::Updated(_, version)
                | Outcome::Rotated(version) => {
                    let revision = version.revision as usize;
                    if claims.len() <= revision {
                        claims.resize(revision + 1, Vec::new());
                    }
                    claims[revision].push(event);
                }
                Outcome::Deleted => deletions.push(event),
                _ => {}
            }
        }
        if deletions.len() > 1 {
            self.violation(Kind::Unmade, format!("deleted more than once: {deletions:?}"));
            return None;
        }
        let end = claims.len();
        let mut changes = Changes {
            states: Vec::with_capacity(end),
            rotations: Vec::new(),
            deleted: !deletions.is_empty(),
            lives: HashMap::new(),
            bounds: Bounds::new(end + 1),
        };
        // Index 0 is the time before the key was created.
        let nothing = State { secret: 0, revoked: false, home_only: false, name: 0 };
        changes.states.push(nothing);
        for (place, claims) in claims.iter().enumerate().skip(1) {
            self.version(place, claims, &mut changes)?;
        }
        for event in deletions {
            changes.bounds.not_before(end, event.span.call);
            changes.bounds.not_after(end, event.span.back);
        }
        if let Some(place) = changes.bounds.close() {
            let text = format!("the changes contradict their order: {}", changes.around(place));
            self.violation(Kind::Disorder, text);
            return None;
        }
        Some(changes)
    }

    /// Of the callers that report this version, one made it. The others found it.
    fn version(&mut self, place: usize, claims: &[&Event], changes: &mut Changes) -> Option<()> {
        let before = changes.states[place - 1];
        let Some(state) = claims.first().map(|event| state_of(event)) else {
            self.violation(Kind::Unmade, format!("no change made version {place}"));
            return None;
        };
        let makes = |event: &&&Event| match event.outcome {
            Outcome::Created(_) => place == 1,
            Outcome::Rotated(_) => {
                place > 1
                    && state.secret != before.secret
                    && State { secret: state.secret, ..before } == state
            }
            Outcome::Updated(patch, _) => {
                place > 1 && state != before && patch.apply(before) == state
            }
            _ => false,
        };
        let finds = |event: &&Event| match event.outcome {
            Outcome::Updated(patch, _) => patch.apply(state) == state,
            _ => false,
        };
        let is_certain = |event: &&&Event| !matches!(event.outcome, Outcome::Updated(..));
        let certain: Vec<_> = claims.iter().filter(is_certain).collect();
        let makers: Vec<_> = match certain[..] {
            [] => claims.iter().filter(makes).collect(),
            [one] => [one].into_iter().filter(makes).collect(),
            _ => Vec::new(),
        };
        let agree = claims.iter().all(|event| state_of(event) == state);
        let explained = claims.iter().all(|event| finds(event) || makers.contains(&event));
        if makers.is_empty() || !agree || !explained {
            let text =
                format!("version {place} after {before:?} does not match its request: {claims:?}");
            self.violation(Kind::Unmade, text);
            return None;
        }
        // The change was not made before the call of any caller that may have made it. A
        // caller that returned it shows that it existed by then and had not been replaced
        // before the call.
        let made = makers.iter().map(|event| event.span.call).min().unwrap_or_default();
        changes.bounds.not_before(place, made);
        for event in claims {
            changes.bounds.not_after(place, event.span.back);
            changes.bounds.not_before(place + 1, event.span.call);
        }
        if state.secret != before.secret || place == 1 {
            changes.rotations.push(place);
            if let Some(ended) = changes.lives.get_mut(&before.secret) {
                ended.1 = Some(place);
            }
            changes.lives.insert(state.secret, (place, None));
        }
        changes.states.push(state);
        Some(())
    }

    fn verifications(&mut self, events: &[Event], changes: &mut Changes, demand: Demand) {
        let mut together = changes.bounds.clone();
        let clean = self.found.len();
        for event in events {
            match event.outcome {
                Outcome::Accepted { secret, home, seen } => {
                    self.seen(event, secret, seen, home, None, changes, &mut together);
                }
                Outcome::Denied { secret, home, seen, denial } => {
                    self.seen(event, secret, seen, home, Some(denial), changes, &mut together);
                }
                Outcome::Unknown { secret } => self.unknown(event, secret, changes, &mut together),
                Outcome::NotFound(_) => {
                    let end = changes.deleted.then_some(changes.end());
                    self.gone(event, end, changes, &mut together);
                }
                Outcome::Conflict(attempt) => self.conflict(event, attempt, changes),
                Outcome::Created(_)
                | Outcome::Updated(..)
                | Outcome::Rotated(_)
                | Outcome::Deleted => {}
            }
        }
        if demand == Demand::Together && self.found.len() == clean {
            changes.bounds = together;
            if let Some(place) = changes.bounds.close() {
                let text = format!("no one order explains all: {}", changes.around(place));
                self.violation(Kind::Disorder, text);
            }
        }
    }

    #[allow(clippy::too_many_arguments, reason = "one verification")]
    fn seen(
        &mut self,
        event: &Event,
        secret: u64,
        seen: Version,
        home: bool,
        denial: Option<Denial>,
        changes: &Changes,
        together: &mut Bounds,
    ) {
        let (place, state) = (seen.revision as usize, seen.state);
        if place == 0 || changes.states.get(place) != Some(&state) {
            return self.violation(Kind::Unmade, format!("{event:?}: no change made that version"));
        }
        // The state is that of one instant; the time is that of the same or a later instant.
        let not_yet = self.expires.is_none_or(|at| event.span.call / 1_000 < at);
        let by_now = self.expires.is_some_and(|at| event.span.back / 1_000 >= at);
        let allowed = home || !state.home_only;
        let fits = match denial {
            None => !state.revoked && not_yet && allowed,
            Some(Denial::Revoked) => state.revoked,
            Some(Denial::Expired) => !state.revoked && by_now,
            Some(Denial::IpNotAllowed) => !state.revoked && not_yet && !allowed,
            Some(_) => false,
        };
        if !fits || state.secret != secret {
            return self
                .violation(Kind::Misjudged, format!("{event:?}, expiry {:?}", self.expires));
        }
        if changes.bounds.from[place] > event.span.back {
            let text = format!("{event:?}: {}", changes.around(place));
            return self.violation(Kind::TooEarly, text);
        }
        if changes.bounds.to[place + 1] < event.span.call {
            let text = format!("{event:?}: {}", changes.around(place));
            return self.violation(Kind::TooLate, text);
        }
        together.not_after(place, event.span.back);
        together.not_before(place + 1, event.span.call);
    }

    fn unknown(&mut self, event: &Event, secret: u64, changes: &Changes, together: &mut Bounds) {
        let Some(&(issued, ended)) = changes.lives.get(&secret) else {
            return self
                .violation(Kind::NoCause, format!("{event:?}: no change issued that secret"));
        };
        // Presented before the issuing call returned: the key may not exist yet.
        if event.span.call <= changes.bounds.to[issued] {
            return;
        }
        let ended = ended.or(changes.deleted.then_some(changes.end()));
        self.gone(event, ended, changes, together);
    }

    /// The caller found no key, because of that change.
    fn gone(
        &mut self,
        event: &Event,
        since: Option<usize>,
        changes: &Changes,
        together: &mut Bounds,
    ) {
        match since {
            Some(place) if changes.bounds.from[place] <= event.span.back => {
                together.not_after(place, event.span.back);
            }
            Some(place) => {
                let text = format!("{event:?}: {}", changes.around(place));
                self.violation(Kind::NoCause, text);
            }
            None => self.violation(Kind::NoCause, format!("{event:?}: the key existed")),
        }
    }

    /// Another change took effect in between. For a rotation, it must be another rotation.
    fn conflict(&mut self, event: &Event, attempt: Attempt, changes: &Changes) {
        let meanwhile = |place: usize| {
            changes.bounds.from[place] <= event.span.back
                && changes.bounds.to[place] >= event.span.call
        };
        let explained = match attempt {
            Attempt::Rotate => changes.rotations.iter().any(|&place| meanwhile(place)),
            Attempt::Update => (1..changes.end()).any(meanwhile),
            Attempt::Delete => false,
        };
        if !explained {
            self.violation(Kind::NoCause, format!("{event:?}: no change came in between"));
        }
    }
}

fn state_of(event: &Event) -> State {
    match event.outcome {
        Outcome::Created(version) | Outcome::Updated(_, version) | Outcome::Rotated(version) => {
            version.state
        }
        _ => panic!("{event:?} makes no version"),
    }
}
