//! Checks whether some order of the changes to a key explains every verification of it.
//!
//! The store numbers the versions of a key, so the order of the successful changes is known.
//! When each of them took effect is not known, except that it was between its call and its
//! return and not before the previous change. A call that saw version `n` shows that `n` took
//! effect before the call ended, and that `n + 1` did not take effect before the call began.
//! These are bounds for the instant of each change. The history can be explained if and only
//! if each change has an instant within its bounds that is not before that of the previous one.

use std::collections::HashMap;
use std::fmt;

use keygate::Denial;

use super::event::{Change, Event, Outcome, State, Version};

/// What has to be explained.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Demand {
    /// Each verification alone. A cache promises this: during a change, one caller may see it
    /// before another does.
    Separately,
    /// All verifications together: the key behaves as if its callers took turns.
    Together,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A version decided that was replaced before the call began.
    Outdated,
    /// A version decided that no call had begun to make.
    Premature,
    /// A call was refused, and no change explains it.
    Unexplained,
    /// The version that was seen decides otherwise.
    WrongDecision,
    /// No call made the version, two calls did, or it is not what the call asked for.
    WrongVersion,
    /// The times of the changes, or of the verifications, contradict each other.
    Contradiction,
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

type Checked = Result<(), Violation>;

fn violation(kind: Kind, text: impl Into<String>) -> Checked {
    Err(Violation { kind, text: text.into() })
}

/// Checks the history of one key.
pub(crate) fn check(events: &[Event], demand: Demand) -> Vec<Violation> {
    let mut checker = Checker::default();
    if let Err(violation) = checker.add_changes(events) {
        return vec![violation];
    }
    checker.together = checker.bounds.clone();
    let explained = events.iter().map(|event| checker.explain(event));
    let mut found: Vec<_> = explained.filter_map(Checked::err).collect();
    if demand == Demand::Together && found.is_empty() {
        found.extend(checker.together.close().err());
    }
    found
}

/// The successful changes in their order. Place `n` is that of the change to version `n`, and
/// the place after the last version is that of the deletion.
#[derive(Default)]
struct Checker {
    /// The state at place 0 is that before the creation.
    states: Vec<State>,
    /// The first microsecond at which the key is expired.
    expires: Option<u64>,
    /// The place of the deletion.
    deleted: Option<usize>,
    rotations: Vec<usize>,
    /// The places at which each secret was issued and ended.
    secrets: HashMap<u64, (usize, Option<usize>)>,
    bounds: Bounds,
    /// The bounds that result from all verifications together.
    together: Bounds,
}

/// The earliest and the latest instant at which each change may have taken effect.
#[derive(Clone, Default)]
struct Bounds {
    from: Vec<u64>,
    to: Vec<u64>,
}

impl Bounds {
    fn not_before(&mut self, place: usize, instant: u64) {
        self.from[place] = self.from[place].max(instant);
    }

    fn not_after(&mut self, place: usize, instant: u64) {
        self.to[place] = self.to[place].min(instant);
    }

    /// Applies the order of the changes to the bounds.
    fn close(&mut self) -> Checked {
        for place in 1..self.from.len() {
            self.from[place] = self.from[place].max(self.from[place - 1]);
        }
        for place in (1..self.to.len()).rev() {
            self.to[place - 1] = self.to[place - 1].min(self.to[place]);
        }
        match (1..self.from.len()).find(|&place| self.from[place] > self.to[place]) {
            Some(place) => violation(Kind::Contradiction, self.around(place)),
            None => Ok(()),
        }
    }

    fn around(&self, place: usize) -> String {
        let span = |place: usize| match (self.from.get(place), self.to.get(place)) {
            (Some(from), Some(&to)) if to < u64::MAX => format!("{from}..{to}"),
            _ => "never".to_owned(),
        };
        format!("change {place} took effect in {}, the next in {}", span(place), span(place + 1))
    }
}

impl Checker {
    fn add_changes(&mut self, events: &[Event]) -> Checked {
        let mut claims: Vec<Vec<&Event>> = vec![Vec::new()];
        let mut deletions = Vec::new();
        for event in events {
            if let Some(version) = event.outcome.version() {
                let revision = version.revision as usize;
                claims.resize(claims.len().max(revision + 1), Vec::new());
                claims[revision].push(event);
            }
            match event.outcome {
                Outcome::Created(_, expires) => self.expires = expires,
                Outcome::Deleted => deletions.push(event),
                _ => {}
            }
        }
        let end = claims.len();
        self.bounds = Bounds { from: vec![0; end + 1], to: vec![u64::MAX; end + 1] };
        self.states.push(State::default());
        for (place, claims) in claims.iter().enumerate().skip(1) {
            self.add_version(place, claims)?;
        }
        match deletions[..] {
            [] => {}
            [event] => {
                self.deleted = Some(end);
                self.bounds.not_before(end, event.span.start);
                self.bounds.not_after(end, event.span.end);
            }
            _ => return violation(Kind::WrongVersion, format!("deleted twice: {deletions:?}")),
        }
        self.bounds.close()
    }

    /// Of the calls that report this version, one made it and the others found it.
    fn add_version(&mut self, place: usize, claims: &[&Event]) -> Checked {
        let before = self.states[place - 1];
        let state_of = |event: &&Event| event.outcome.version().map(|version| version.state);
        let Some(state) = claims.first().and_then(state_of) else {
            return violation(Kind::WrongVersion, format!("no call made version {place}"));
        };
        let can_make = |event: &&&Event| match event.outcome {
            Outcome::Created(..) => place == 1,
            Outcome::Rotated(_) => {
                place > 1
                    && state.secret != before.secret
                    && State { secret: state.secret, previous: state.previous, ..before } == state
                    && state.previous.is_none_or(|(old, _)| old == before.secret && !before.revoked)
            }
            Outcome::Updated(patch, _) => {
                place > 1 && state != before && patch.apply(before) == state
            }
            _ => false,
        };
        let can_find = |event: &Event| match event.outcome {
            Outcome::Updated(patch, _) => patch.apply(state) == state,
            _ => false,
        };
        // A creation or rotation cannot have found its version.
        let certain: Vec<&Event> =
            claims.iter().copied().filter(|event| !can_find(event)).collect();
        let makers: Vec<&&Event> = match certain[..] {
            [] => claims.iter().filter(can_make).collect(),
            [_] => certain.iter().filter(can_make).collect(),
            _ => Vec::new(),
        };
        let agree = claims.iter().all(|event| state_of(event) == Some(state));
        let Some(made) = makers.iter().map(|event| event.span.start).min().filter(|_| agree) else {
            let text =
                format!("version {place} after {before:?} is not what was asked: {claims:?}");
            return violation(Kind::WrongVersion, text);
        };
        // The version did not exist before its maker began. Every call that reports it had it
        // by its end, and began before the next version.
        self.bounds.not_before(place, made);
        for event in claims {
            self.bounds.not_after(place, event.span.end);
            self.bounds.not_before(place + 1, event.span.start);
        }
        if state.secret != before.secret || place == 1 {
            self.rotations.push(place);
            self.secrets.insert(state.secret, (place, None));
        }
        for ended in before.secrets().filter(|old| state.secrets().all(|kept| kept != *old)) {
            self.secrets.entry(ended).and_modify(|(_, end)| *end = Some(place));
        }
        self.states.push(state);
        Ok(())
    }

    fn explain(&mut self, event: &Event) -> Checked {
        match event.outcome {
            Outcome::Verified { secret, home, seen, denial } => {
                self.explain_verified(event, secret, home, seen, denial)
            }
            Outcome::Unknown(secret) => self.explain_unknown(event, secret),
            Outcome::NotFound => self.explain_missing(event, self.deleted),
            Outcome::Conflict(change) => self.explain_conflict(event, change),
            _ => Ok(()),
        }
    }

    fn explain_verified(
        &mut self,
        event: &Event,
        secret: u64,
        home: bool,
        seen: Version,
        denial: Option<Denial>,
    ) -> Checked {
        let (place, state, span) = (seen.revision as usize, seen.state, event.span);
        if place == 0 || self.states.get(place) != Some(&state) {
            return violation(Kind::WrongVersion, format!("{event:?}: no call made that version"));
        }
        // The key was read at one instant, and the clock at the same or a later one.
        let until = state.previous.filter(|(old, _)| *old == secret).map(|(_, until)| until);
        let end = [self.expires, until].into_iter().flatten().min();
        let not_yet = end.is_none_or(|at| span.start / 1_000 < at);
        let by_now = end.is_some_and(|at| span.end / 1_000 >= at);
        let is_allowed = home || !state.home_only;
        let fits = match denial {
            None => !state.revoked && not_yet && is_allowed && state.reads,
            Some(Denial::Revoked) => state.revoked,
            Some(Denial::Expired) => !state.revoked && by_now,
            Some(Denial::IpNotAllowed) => !state.revoked && not_yet && !is_allowed,
            Some(Denial::InsufficientScope) => {
                !state.revoked && not_yet && is_allowed && !state.reads
            }
            Some(_) => false,
        };
        if !fits || state.secrets().all(|own| own != secret) {
            return violation(
                Kind::WrongDecision,
                format!("{event:?}, the secret ends at {end:?}"),
            );
        }
        let text = || format!("{event:?}: {}", self.bounds.around(place));
        if self.bounds.from[place] > span.end {
            return violation(Kind::Premature, text());
        }
        if self.bounds.to[place + 1] < span.start {
            return violation(Kind::Outdated, text());
        }
        self.together.not_after(place, span.end);
        self.together.not_before(place + 1, span.start);
        Ok(())
    }

    fn explain_unknown(&mut self, event: &Event, secret: u64) -> Checked {
        let Some(&(issued, ended)) = self.secrets.get(&secret) else {
            return violation(Kind::Unexplained, format!("{event:?}: no call issued that secret"));
        };
        // If the call that issued the secret has not returned, the secret may not exist yet.
        if event.span.start <= self.bounds.to[issued] {
            return Ok(());
        }
        self.explain_missing(event, ended.or(self.deleted))
    }

    /// The call found nothing, because of the change at that place.
    fn explain_missing(&mut self, event: &Event, since: Option<usize>) -> Checked {
        match since {
            Some(place) if self.bounds.from[place] <= event.span.end => {
                self.together.not_after(place, event.span.end);
                Ok(())
            }
            Some(place) => {
                let text = format!("{event:?}: {}", self.bounds.around(place));
                violation(Kind::Unexplained, text)
            }
            None => violation(Kind::Unexplained, format!("{event:?}: the key existed")),
        }
    }

    /// Another change took effect during the call. For a rotation, it was another rotation.
    fn explain_conflict(&mut self, event: &Event, change: Change) -> Checked {
        let (start, end) = (event.span.start, event.span.end);
        let during =
            |place: &usize| self.bounds.from[*place] <= end && self.bounds.to[*place] >= start;
        let is_explained = match change {
            Change::Rotate => self.rotations.iter().any(during),
            Change::Update => (1..self.states.len()).any(|place| during(&place)),
            Change::Delete => false,
        };
        match is_explained {
            true => Ok(()),
            false => violation(Kind::Unexplained, format!("{event:?}: no change came between")),
        }
    }
}
