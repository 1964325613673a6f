//! The checker on histories of which it is known whether they can be explained.

use keygate::Denial;

use super::checker::{Demand, Kind, check};
use super::event::{Change, Event, Outcome, Patch, Span, State, Version};

const NEW: State =
    State { secret: 1, previous: None, revoked: false, home_only: false, reads: true, name: 0 };
const NOTHING: Patch =
    Patch { revoked: None, home_only: None, reads: None, name: None, ends_previous: false };
const REVOKE: Patch = Patch { revoked: Some(true), ..NOTHING };
const ENABLE: Patch = Patch { revoked: Some(false), ..NOTHING };
const ONE: Version = Version { revision: 1, state: NEW };

fn at(start: u64, end: u64, outcome: Outcome) -> Event {
    Event { span: Span { start, end }, outcome }
}

/// The second change.
fn second(outcome: Outcome) -> Event {
    at(20, 30, outcome)
}

/// The third change.
fn third(outcome: Outcome) -> Event {
    at(40, 50, outcome)
}

fn version(revision: u32, state: State) -> Version {
    Version { revision, state }
}

fn revoked(state: State) -> State {
    State { revoked: true, ..state }
}

fn verified(start: u64, secret: u64, seen: Version, denial: Option<Denial>) -> Event {
    at(start, start + 1, Outcome::Verified { secret, home: true, seen, denial })
}

fn accepted(start: u64, seen: Version) -> Event {
    verified(start, seen.state.secret, seen, None)
}

fn denied(start: u64, seen: Version, denial: Denial) -> Event {
    verified(start, seen.state.secret, seen, Some(denial))
}

fn unknown(start: u64, secret: u64) -> Event {
    at(start, start + 1, Outcome::Unknown(secret))
}

/// The kinds of violations after the creation, for both demands.
fn verdicts(events: &[Event], expires: Option<u64>) -> [Vec<Kind>; 2] {
    let events = [&[at(0, 10, Outcome::Created(ONE, expires))], events].concat();
    [Demand::Separately, Demand::Together]
        .map(|demand| check(&events, demand).iter().map(|violation| violation.kind).collect())
}

fn assert_legal(events: &[Event]) {
    assert_eq!(verdicts(events, None), [vec![], vec![]], "{events:?}");
}

fn assert_illegal(kind: Kind, events: &[Event]) {
    assert_eq!(verdicts(events, None), [vec![kind], vec![kind]], "{events:?}");
}

#[test]
fn calls_that_do_not_overlap_are_legal() {
    let (two, three) = (version(2, revoked(NEW)), version(3, NEW));
    let four = version(4, State { secret: 2, ..NEW });
    assert_legal(&[
        accepted(11, ONE),
        at(20, 30, Outcome::Updated(REVOKE, two)),
        denied(31, two, Denial::Revoked),
        at(40, 50, Outcome::Updated(ENABLE, three)),
        accepted(51, three),
        at(60, 70, Outcome::Rotated(four)),
        unknown(71, 1),
        accepted(71, four),
        at(80, 90, Outcome::Deleted),
        unknown(91, 2),
        unknown(91, 1),
        at(93, 94, Outcome::NotFound),
    ]);
}

#[test]
fn during_a_revocation_both_decisions_are_legal() {
    let two = version(2, revoked(NEW));
    let revocation = second(Outcome::Updated(REVOKE, two));
    assert_legal(&[revocation, accepted(21, ONE)]);
    assert_legal(&[revocation, accepted(30, ONE)]);
    assert_legal(&[revocation, denied(19, two, Denial::Revoked)]);
    assert_illegal(Kind::Outdated, &[revocation, accepted(31, ONE)]);
    assert_illegal(Kind::Premature, &[revocation, denied(15, two, Denial::Revoked)]);
}

#[test]
fn an_old_secret_fails_after_the_rotation_and_not_before() {
    let rotation = second(Outcome::Rotated(version(2, State { secret: 2, ..NEW })));
    assert_legal(&[rotation, unknown(25, 1)]);
    assert_legal(&[rotation, accepted(25, ONE)]);
    assert_illegal(Kind::Unexplained, &[rotation, unknown(15, 1)]);
    assert_illegal(Kind::Outdated, &[rotation, accepted(31, ONE)]);
    assert_illegal(Kind::Unexplained, &[rotation, unknown(31, 2)]);
    // The new secret may not exist before the rotation returns.
    assert_legal(&[rotation, unknown(29, 2)]);
    assert_illegal(Kind::Unexplained, &[rotation, unknown(31, 7)]);
}

#[test]
fn case_59_an_old_secret_works_until_its_end_or_the_change_that_ends_it() {
    let overlap = State { secret: 2, previous: Some((1, 5)), ..NEW };
    let two = version(2, overlap);
    let rotation = second(Outcome::Rotated(two));
    let old = |start| verified(start, 1, two, None);
    let late = verified(6_000, 1, two, Some(Denial::Expired));
    assert_legal(&[rotation, old(31), accepted(31, two), late]);
    assert_illegal(Kind::Unexplained, &[rotation, unknown(31, 1)]);
    assert_illegal(Kind::WrongDecision, &[rotation, old(5_000)]);
    assert_illegal(Kind::Outdated, &[rotation, accepted(31, ONE)]);
    let three = |state| version(3, State { previous: None, ..state });
    let end = Patch { ends_previous: true, ..NOTHING };
    for outcome in [
        Outcome::Rotated(version(3, State { secret: 3, previous: Some((2, 9)), ..NEW })),
        Outcome::Updated(REVOKE, three(revoked(overlap))),
        Outcome::Updated(end, three(overlap)),
    ] {
        let ended = third(outcome);
        assert_legal(&[rotation, old(45), ended, unknown(51, 1)]);
        assert_illegal(Kind::Outdated, &[rotation, ended, old(51)]);
        assert_illegal(Kind::Unexplained, &[rotation, ended, unknown(31, 1)]);
    }
    // A revocation ends the previous secret, and a rotation keeps no other secret.
    let kept = third(Outcome::Updated(REVOKE, version(3, revoked(overlap))));
    let foreign = State { secret: 3, previous: Some((1, 9)), ..NEW };
    for wrong in [kept, third(Outcome::Rotated(version(3, foreign)))] {
        assert_illegal(Kind::WrongVersion, &[rotation, wrong]);
    }
}

#[test]
fn a_key_is_missing_only_after_its_deletion() {
    let deletion = second(Outcome::Deleted);
    let missing = |start| at(start, start + 1, Outcome::NotFound);
    assert_legal(&[deletion, unknown(25, 1)]);
    assert_legal(&[deletion, missing(25)]);
    for missed in [unknown(11, 1), missing(11)] {
        assert_illegal(Kind::Unexplained, &[deletion, missed]);
        assert_illegal(Kind::Unexplained, &[missed]);
    }
    assert_illegal(Kind::Outdated, &[deletion, accepted(31, ONE)]);
    assert_illegal(Kind::WrongVersion, &[deletion, third(Outcome::Deleted)]);
}

#[test]
fn an_edit_of_the_name_does_not_explain_a_refusal() {
    let two = version(2, State { name: 7, ..NEW });
    let rename = second(Outcome::Updated(Patch { name: Some(7), ..NOTHING }, two));
    assert_legal(&[rename, accepted(25, two)]);
    assert_illegal(Kind::Unexplained, &[rename, unknown(25, 1)]);
    assert_illegal(Kind::WrongDecision, &[rename, denied(25, two, Denial::Revoked)]);
}

#[test]
fn an_address_decides_only_about_a_restricted_key() {
    let two = version(2, State { home_only: true, ..NEW });
    let patch = Patch { home_only: Some(true), ..NOTHING };
    let restriction = second(Outcome::Updated(patch, two));
    let abroad =
        |seen, denial| at(31, 32, Outcome::Verified { secret: 1, home: false, seen, denial });
    let not_allowed = Denial::IpNotAllowed;
    assert_legal(&[restriction, abroad(two, Some(not_allowed)), accepted(31, two)]);
    assert_illegal(Kind::WrongDecision, &[restriction, abroad(two, None)]);
    assert_illegal(Kind::Outdated, &[restriction, abroad(ONE, None)]);
    assert_illegal(Kind::WrongDecision, &[restriction, abroad(ONE, Some(not_allowed))]);
    assert_illegal(Kind::WrongDecision, &[restriction, denied(31, two, not_allowed)]);
}

#[test]
fn the_scopes_of_the_version_that_was_seen_decide() {
    let two = version(2, State { reads: false, ..NEW });
    let edit = second(Outcome::Updated(Patch { reads: Some(false), ..NOTHING }, two));
    let lacks = |start, seen| denied(start, seen, Denial::InsufficientScope);
    assert_legal(&[edit, accepted(25, ONE), lacks(27, two)]);
    assert_illegal(Kind::WrongDecision, &[edit, accepted(31, two)]);
    assert_illegal(Kind::Outdated, &[edit, accepted(31, ONE)]);
    assert_illegal(Kind::WrongDecision, &[edit, lacks(25, ONE)]);
    assert_illegal(Kind::Premature, &[edit, lacks(15, two)]);
}

#[test]
fn a_key_expires_at_its_instant() {
    let expires = Some(5);
    let call = |start, end, denial| {
        [at(start, end, Outcome::Verified { secret: 1, home: true, seen: ONE, denial })]
    };
    let expired = Some(Denial::Expired);
    for legal in [call(100, 200, None), call(4_999, 9_000, None), call(4_000, 5_000, expired)] {
        assert_eq!(verdicts(&legal, expires), [vec![], vec![]], "{legal:?}");
    }
    for illegal in [call(5_000, 5_001, None), call(100, 4_999, expired)] {
        assert_eq!(verdicts(&illegal, expires), [[Kind::WrongDecision]; 2], "{illegal:?}");
    }
    assert_illegal(Kind::WrongDecision, &call(5_000, 6_000, expired));
}

#[test]
fn a_conflict_needs_another_change_at_the_same_time() {
    let rotation = second(Outcome::Rotated(version(2, State { secret: 2, ..NEW })));
    let conflict = |start, end| at(start, end, Outcome::Conflict(Change::Rotate));
    assert_legal(&[rotation, conflict(25, 40)]);
    assert_legal(&[rotation, conflict(5, 21)]);
    assert_illegal(Kind::Unexplained, &[rotation, conflict(31, 40)]);
    let revocation = second(Outcome::Updated(REVOKE, version(2, revoked(NEW))));
    assert_illegal(Kind::Unexplained, &[revocation, conflict(25, 40)]);
}

#[test]
fn an_update_without_an_effect_makes_no_version() {
    let two = version(2, revoked(NEW));
    let revocation = |start, end| at(start, end, Outcome::Updated(REVOKE, two));
    assert_legal(&[revocation(20, 40), revocation(25, 30), revocation(50, 60)]);
    // The key was revoked when the first of both calls returned.
    let both = [revocation(20, 40), revocation(25, 30), accepted(31, ONE)];
    assert_illegal(Kind::Outdated, &both);
}

#[test]
fn a_lost_edit_and_a_second_version_of_that_number_are_found() {
    let renamed = State { name: 7, ..NEW };
    let rename = Patch { name: Some(7), ..NOTHING };
    let revocation = Outcome::Updated(REVOKE, version(2, revoked(NEW)));
    let rotated =
        |revision, secret| second(Outcome::Rotated(version(revision, State { secret, ..NEW })));
    for wrong in [
        &[at(20, 40, revocation), at(25, 45, Outcome::Updated(rename, version(2, renamed)))][..],
        &[second(revocation), third(Outcome::Updated(rename, version(3, renamed)))],
        &[rotated(2, 2), rotated(2, 3)],
        &[rotated(3, 2)],
        &[accepted(20, version(2, renamed))],
        &[accepted(20, version(1, renamed))],
    ] {
        assert_illegal(Kind::WrongVersion, wrong);
    }
}

#[test]
fn changes_in_another_order_than_their_versions_are_found() {
    let (two, three) = (version(2, revoked(NEW)), version(3, NEW));
    let reversed = [third(Outcome::Updated(REVOKE, two)), second(Outcome::Updated(ENABLE, three))];
    assert_illegal(Kind::Contradiction, &reversed);
}

#[test]
fn verifications_that_only_together_have_no_order_are_found() {
    let two = version(2, revoked(NEW));
    let revocation = at(20, 90, Outcome::Updated(REVOKE, two));
    let rotation = at(20, 90, Outcome::Rotated(version(2, State { secret: 2, ..NEW })));
    for new_then_old in [
        [revocation, denied(30, two, Denial::Revoked), accepted(50, ONE)],
        [rotation, unknown(30, 1), accepted(50, ONE)],
    ] {
        assert_eq!(verdicts(&new_then_old, None), [vec![], vec![Kind::Contradiction]]);
    }
    assert_legal(&[revocation, accepted(30, ONE), denied(35, two, Denial::Revoked)]);
}
