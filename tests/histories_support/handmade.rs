//! The checker on handmade histories that are known to be right or wrong.

use keygate::Denial;

use super::checker::{Demand, Kind, check};
use super::event::{Attempt, Event, Outcome, Patch, Span, State, Version};

const NEW: State = State { secret: 1, revoked: false, home_only: false, name: 0 };
const REVOKE: Patch = Patch { revoked: Some(true), home_only: None, name: None };
const ENABLE: Patch = Patch { revoked: Some(false), home_only: None, name: None };

fn at(call: u64, back: u64, outcome: Outcome) -> Event {
    Event { span: Span { call, back }, outcome }
}

fn version(revision: u32, state: State) -> Version {
    Version { revision, state }
}

fn revoked(state: State) -> State {
    State { revoked: true, ..state }
}

fn created() -> Event {
    at(0, 10, Outcome::Created(version(1, NEW)))
}

fn accepted(call: u64, back: u64, seen: Version) -> Event {
    at(call, back, Outcome::Accepted { secret: seen.state.secret, home: true, seen })
}

fn denied(call: u64, back: u64, seen: Version, denial: Denial) -> Event {
    at(call, back, Outcome::Denied { secret: seen.state.secret, home: true, seen, denial })
}

fn unknown(call: u64, back: u64, secret: u64) -> Event {
    at(call, back, Outcome::Unknown { secret })
}

/// The violations for each verification by itself, and for all together.
fn verdicts(events: &[Event], expires: Option<u64>) -> [Vec<Kind>; 2] {
    [Demand::Each, Demand::Together].map(|demand| {
        check(events, expires, demand).iter().map(|violation| violation.kind).collect()
    })
}

fn assert_legal(events: &[Event]) {
    assert_eq!(verdicts(events, None), [vec![], vec![]], "{events:?}");
}

fn assert_illegal(events: &[Event], kind: Kind) {
    assert_eq!(verdicts(events, None), [vec![kind], vec![kind]], "{events:?}");
}

#[test]
fn a_sequential_history_is_legal() {
    let (one, two, three) = (version(1, NEW), version(2, revoked(NEW)), version(3, NEW));
    let four = version(4, State { secret: 2, ..NEW });
    assert_legal(&[
        created(),
        accepted(11, 12, one),
        at(20, 30, Outcome::Updated(REVOKE, two)),
        denied(31, 32, two, Denial::Revoked),
        at(40, 50, Outcome::Updated(ENABLE, three)),
        accepted(51, 52, three),
        at(60, 70, Outcome::Rotated(four)),
        unknown(71, 72, 1),
        accepted(71, 72, four),
        at(80, 90, Outcome::Deleted),
        unknown(91, 92, 2),
        unknown(91, 92, 1),
        at(93, 94, Outcome::NotFound(Attempt::Rotate)),
    ]);
}

#[test]
fn during_a_revocation_both_answers_are_legal_and_afterwards_only_one() {
    let (one, two) = (version(1, NEW), version(2, revoked(NEW)));
    let revocation = at(20, 30, Outcome::Updated(REVOKE, two));
    assert_legal(&[created(), revocation, accepted(21, 22, one)]);
    assert_legal(&[created(), revocation, accepted(30, 31, one)]);
    assert_legal(&[created(), revocation, denied(19, 20, two, Denial::Revoked)]);
    assert_illegal(&[created(), revocation, accepted(31, 32, one)], Kind::TooLate);
    assert_illegal(&[created(), revocation, denied(15, 19, two, Denial::Revoked)], Kind::TooEarly);
}

#[test]
fn an_old_secret_works_until_the_rotation_begins_and_not_after_it_returned() {
    let two = version(2, State { secret: 2, ..NEW });
    let rotation = at(20, 30, Outcome::Rotated(two));
    let history = |event| [created(), rotation, event];
    assert_legal(&history(unknown(25, 26, 1)));
    assert_legal(&history(accepted(25, 26, version(1, NEW))));
    assert_illegal(&history(unknown(15, 19, 1)), Kind::NoCause);
    assert_illegal(&history(accepted(31, 32, version(1, NEW))), Kind::TooLate);
    assert_illegal(&history(unknown(31, 32, 2)), Kind::NoCause);
    // A secret cannot be known before it was returned, but accepting it would be correct.
    assert_legal(&history(unknown(29, 32, 2)));
    assert_illegal(&history(unknown(31, 32, 7)), Kind::NoCause);
}

#[test]
fn a_deleted_key_is_not_found_and_an_existing_key_is_found() {
    let history = |event| [created(), at(20, 30, Outcome::Deleted), event];
    assert_legal(&history(unknown(25, 26, 1)));
    assert_legal(&history(at(25, 26, Outcome::NotFound(Attempt::Update))));
    assert_illegal(&history(unknown(11, 19, 1)), Kind::NoCause);
    assert_illegal(&history(at(11, 19, Outcome::NotFound(Attempt::Update))), Kind::NoCause);
    assert_illegal(&history(accepted(31, 32, version(1, NEW))), Kind::TooLate);
    assert_illegal(&[created(), unknown(11, 12, 1)], Kind::NoCause);
    assert_illegal(&[created(), at(11, 12, Outcome::NotFound(Attempt::Delete))], Kind::NoCause);
    assert_illegal(&history(at(40, 50, Outcome::Deleted)), Kind::Unmade);
}

#[test]
fn an_edit_is_no_reason_to_refuse_a_key() {
    let two = version(2, State { name: 7, ..NEW });
    let rename = at(20, 30, Outcome::Updated(Patch { name: Some(7), ..Patch::default() }, two));
    assert_legal(&[created(), rename, accepted(25, 26, two)]);
    assert_illegal(&[created(), rename, unknown(25, 26, 1)], Kind::NoCause);
    assert_illegal(&[created(), rename, denied(25, 26, two, Denial::Revoked)], Kind::Misjudged);
}

#[test]
fn addresses_matter_only_for_restricted_keys() {
    let open = version(1, NEW);
    let restricted = version(2, State { home_only: true, ..NEW });
    let patch = Patch { home_only: Some(true), ..Patch::default() };
    let restriction = at(20, 30, Outcome::Updated(patch, restricted));
    let denial = Denial::IpNotAllowed;
    let abroad = |seen| at(31, 32, Outcome::Denied { secret: 1, home: false, seen, denial });
    let admitted = |seen| at(31, 32, Outcome::Accepted { secret: 1, home: false, seen });
    assert_legal(&[created(), restriction, abroad(restricted), accepted(31, 32, restricted)]);
    assert_illegal(&[created(), restriction, admitted(restricted)], Kind::Misjudged);
    assert_illegal(&[created(), restriction, admitted(open)], Kind::TooLate);
    assert_illegal(&[created(), restriction, abroad(open)], Kind::Misjudged);
    let at_home = denied(31, 32, restricted, denial);
    assert_illegal(&[created(), restriction, at_home], Kind::Misjudged);
}

#[test]
fn a_key_expires_at_its_instant() {
    let one = version(1, NEW);
    let expired = |call, back| denied(call, back, one, Denial::Expired);
    let verdict = |event| verdicts(&[created(), event], Some(5));
    assert_eq!(verdict(accepted(100, 200, one)), [vec![], vec![]]);
    assert_eq!(verdict(accepted(4_999, 9_000, one)), [vec![], vec![]]);
    assert_eq!(verdict(expired(4_000, 5_000)), [vec![], vec![]]);
    assert_eq!(verdict(accepted(5_000, 5_001, one)), [[Kind::Misjudged], [Kind::Misjudged]]);
    assert_eq!(verdict(expired(100, 4_999)), [[Kind::Misjudged], [Kind::Misjudged]]);
    assert_illegal(&[created(), expired(5_000, 6_000)], Kind::Misjudged);
}

#[test]
fn a_conflict_needs_a_change_in_between() {
    let two = version(2, State { secret: 2, ..NEW });
    let rotation = at(20, 30, Outcome::Rotated(two));
    let conflict = |call, back| at(call, back, Outcome::Conflict(Attempt::Rotate));
    assert_legal(&[created(), rotation, conflict(25, 40)]);
    assert_legal(&[created(), rotation, conflict(5, 21)]);
    assert_illegal(&[created(), rotation, conflict(31, 40)], Kind::NoCause);
    let revocation = at(20, 30, Outcome::Updated(REVOKE, version(2, revoked(NEW))));
    assert_illegal(&[created(), revocation, conflict(25, 40)], Kind::NoCause);
}

#[test]
fn an_update_that_finds_its_values_made_no_version() {
    let two = version(2, revoked(NEW));
    let revocation = |call, back| at(call, back, Outcome::Updated(REVOKE, two));
    assert_legal(&[created(), revocation(20, 40), revocation(25, 30), revocation(50, 60)]);
    // The caller that returned first saw the version, whichever call made it.
    let early = [created(), revocation(20, 40), revocation(25, 30)];
    assert_illegal(&[&early[..], &[accepted(31, 32, version(1, NEW))]].concat(), Kind::TooLate);
}

#[test]
fn a_lost_or_repeated_edit_is_detected() {
    let renamed = State { name: 7, ..NEW };
    let rename = Patch { name: Some(7), ..Patch::default() };
    // The revocation was overwritten.
    let lost = [
        created(),
        at(20, 40, Outcome::Updated(REVOKE, version(2, revoked(NEW)))),
        at(25, 45, Outcome::Updated(rename, version(2, renamed))),
    ];
    assert_illegal(&lost, Kind::Unmade);
    let undone = [
        created(),
        at(20, 30, Outcome::Updated(REVOKE, version(2, revoked(NEW)))),
        at(35, 45, Outcome::Updated(rename, version(3, renamed))),
    ];
    assert_illegal(&undone, Kind::Unmade);
    let two = |secret| version(2, State { secret, ..NEW });
    let twice =
        [created(), at(20, 30, Outcome::Rotated(two(2))), at(20, 30, Outcome::Rotated(two(3)))];
    assert_illegal(&twice, Kind::Unmade);
    let gap = [created(), at(20, 30, Outcome::Rotated(version(3, State { secret: 2, ..NEW })))];
    assert_illegal(&gap, Kind::Unmade);
    let unmade = [created(), accepted(20, 30, version(2, renamed))];
    assert_illegal(&unmade, Kind::Unmade);
    assert_illegal(&[created(), accepted(20, 30, version(1, renamed))], Kind::Unmade);
}

#[test]
fn changes_out_of_version_order_are_detected() {
    let (two, three) = (version(2, revoked(NEW)), version(3, NEW));
    let later_first = [
        created(),
        at(40, 50, Outcome::Updated(REVOKE, two)),
        at(20, 30, Outcome::Updated(ENABLE, three)),
    ];
    assert_illegal(&later_first, Kind::Disorder);
}

#[test]
fn individually_possible_but_jointly_impossible_answers_are_detected() {
    let (one, two) = (version(1, NEW), version(2, revoked(NEW)));
    let revocation = at(20, 90, Outcome::Updated(REVOKE, two));
    let new_then_old =
        [created(), revocation, denied(30, 40, two, Denial::Revoked), accepted(50, 60, one)];
    assert_eq!(verdicts(&new_then_old, None), [vec![], vec![Kind::Disorder]]);
    let old_then_new =
        [created(), revocation, accepted(30, 40, one), denied(35, 60, two, Denial::Revoked)];
    assert_legal(&old_then_new);
    // The same with an old secret.
    let rotation = at(20, 90, Outcome::Rotated(version(2, State { secret: 2, ..NEW })));
    let gone_then_there = [created(), rotation, unknown(30, 40, 1), accepted(50, 60, one)];
    assert_eq!(verdicts(&gone_then_there, None), [vec![], vec![Kind::Disorder]]);
}
