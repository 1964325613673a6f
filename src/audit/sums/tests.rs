//! Tests of the sums.

use super::*;
use crate::audit::samples;
use proptest::prelude::*;

const WINDOW: Duration = Duration::from_secs(10);

fn at(micros: i64) -> Timestamp {
    Timestamp::from_unix_micros(micros).unwrap()
}

fn refusal(key: u8, micros: i64) -> Refusal {
    let (key, path) = (KeyId::from_bytes([key; 16]), micros.to_string().into());
    Refusal { at: at(micros), key, path, ..samples::refusal() }
}

/// The counts of the records to queue: of the sum that ended and of the refusal itself.
fn counts<P>(added: &Added<P>) -> (Option<u32>, Option<u32>) {
    let count = |queued: &Option<(P, Sum)>| queued.as_ref().map(|(_, sum)| sum.count);
    (count(&added.ended), count(&added.own))
}

fn seconds(seconds: i64) -> i64 {
    seconds * 1_000_000
}

#[test]
fn the_first_refusals_of_a_window_have_their_own_records_and_the_rest_are_summed() {
    let (mut sums, now) = (Sums::new(2, WINDOW, 9), Instant::now());
    let mut add = |micros| sums.add(refusal(1, micros), now, || Some(()));
    for micros in [0, 1] {
        assert_eq!(counts(&add(micros)), (None, Some(1)));
    }
    // Threads can overtake each other: the last two belong to the same window.
    for micros in [2, seconds(10) - 1, 3, -5] {
        assert_eq!(counts(&add(micros)), (None, None));
    }
    let added = add(seconds(10));
    assert_eq!(counts(&added), (Some(4), Some(1)));
    let last = added.ended.unwrap().1.last;
    assert_eq!((last.at, &*last.path), (at(-5), "-5"), "the time and path of the last one");
    // A clock that is set back starts another window.
    assert_eq!(counts(&add(0)), (None, Some(1)));
}

#[test]
fn each_outcome_of_a_key_has_its_own_sums() {
    let (mut sums, now) = (Sums::new(0, WINDOW, 9), Instant::now());
    for outcome in [Outcome::Revoked, Outcome::Expired, Outcome::IpNotAllowed] {
        for key in [1, 2] {
            sums.add(Refusal { outcome, ..refusal(key, 0) }, now, || Some(()));
        }
    }
    // And so has each secret.
    let secret = SecretUsed::Previous;
    sums.add(Refusal { secret, ..refusal(1, 0) }, now, || Some(()));
    let ended = sums.end_old(now, usize::MAX, || Some(()));
    assert!(ended.len() == 7 && ended.iter().all(|(_, sum)| sum.count == 1));
}

#[test]
fn windows_also_end_by_the_process_clock_and_the_oldest_ends_first() {
    let (mut sums, start) = (Sums::new(0, WINDOW, 9), Instant::now());
    let later = |seconds| start + Duration::from_secs(seconds);
    // The clock of the records stands still.
    sums.add(refusal(1, 0), start, || Some(()));
    sums.add(refusal(2, 0), later(4), || Some(()));
    assert_eq!(sums.time_left(later(4)), Some(Duration::from_secs(6)));
    assert!(sums.end_old(later(9), 0, || Some(())).is_empty());
    let ended = sums.end_old(later(10), 0, || Some(()));
    assert_eq!((ended.len(), ended[0].1.last.key), (1, KeyId::from_bytes([1; 16])));
    assert_eq!(sums.time_left(later(10)), Some(Duration::from_secs(4)));
    assert_eq!((sums.end_old(later(14), 0, || Some(())).len(), sums.summed()), (1, 0));
    assert_eq!(sums.time_left(later(14)), None);
}

#[test]
fn without_room_refusals_are_added_to_the_open_sum() {
    let (mut sums, now) = (Sums::new(5, WINDOW, 9), Instant::now());
    for time in [0, 1, 60] {
        let added = sums.add(refusal(1, seconds(time)), now, || None::<()>);
        assert_eq!((counts(&added), added.shed), ((None, None), false));
    }
    assert!(sums.end_old(now, usize::MAX, || None::<()>).is_empty());
    assert_eq!(sums.summed(), 3);
    let added = sums.add(refusal(1, seconds(120)), now, || Some(()));
    assert_eq!((counts(&added), sums.summed()), ((Some(3), Some(1)), 0));
}

#[test]
fn the_number_of_open_windows_is_bounded_and_the_oldest_makes_room() {
    let (mut sums, now) = (Sums::new(0, WINDOW, 3), Instant::now());
    for key in 1..=3 {
        sums.add(refusal(key, 0), now, || Some(()));
    }
    let added = sums.add(refusal(4, 0), now, || Some(()));
    assert_eq!(added.ended.unwrap().1.last.key, KeyId::from_bytes([1; 16]));
    assert_eq!((sums.windows.len(), sums.by_age.len(), sums.summed()), (3, 3, 3));
    // If the queue has no room either, the refusal is counted as shed.
    let added = sums.add(refusal(5, 0), now, || None::<()>);
    assert_eq!((counts(&added), added.shed, sums.summed()), ((None, None), true, 3));
    assert!(!sums.add(refusal(4, 0), now, || None::<()>).shed);
}

#[test]
fn a_sum_ends_before_its_counter_overflows() {
    let (mut sums, now) = (Sums::new(0, WINDOW, 3), Instant::now());
    sums.add(refusal(1, 0), now, || Some(()));
    let window = sums.windows.values_mut().next().unwrap();
    window.sum.as_mut().unwrap().count = u32::MAX;
    sums.summed = u32::MAX.into();
    assert!(sums.add(refusal(1, 1), now, || None::<()>).shed);
    let added = sums.add(refusal(1, 2), now, || Some(()));
    assert_eq!((counts(&added), sums.summed()), ((Some(u32::MAX), None), 1));
}

#[derive(Clone, Debug)]
enum Step {
    Refuse(u8, Outcome),
    /// Moves the clock of the records.
    Clock(i64),
    /// Moves the monotonic clock of the process.
    Pass(u64),
    Room(bool),
    End,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        3 => (0u8..4).prop_map(|key| Step::Refuse(key, Outcome::Revoked)),
        3 => (0u8..4).prop_map(|key| Step::Refuse(key, Outcome::Expired)),
        1 => (-15i64..15).prop_map(Step::Clock),
        1 => (0u64..15).prop_map(Step::Pass),
        1 => any::<bool>().prop_map(Step::Room),
        1 => Just(Step::End),
    ]
}

proptest! {
    /// For any order of windows, clocks and room: each refusal is in one record, in an open
    /// sum or shed. It is counted for its own key and outcome, and each window has a bounded
    /// number of individual records.
    #[test]
    fn every_refusal_is_counted_exactly_once(
        alone in 0u32..4,
        most in 1usize..5,
        steps in proptest::collection::vec(step(), 0..120),
    ) {
        let mut sums = Sums::new(alone, WINDOW, most);
        let (mut clock, mut now, mut room) = (0, Instant::now(), true);
        let (mut made, mut counted) = (HashMap::new(), HashMap::new());
        let mut alone_since_opened = HashMap::new();
        for step in steps {
            let reserve = || room.then_some(());
            let mut queued: Vec<((), Sum)> = Vec::new();
            match step {
                Step::Refuse(key, outcome) => {
                    let refusal = Refusal { outcome, ..refusal(key, seconds(clock)) };
                    let id = (refusal.key, outcome);
                    let added = sums.add(refusal, now, reserve);
                    *made.entry(id).or_insert(0) += u64::from(!added.shed);
                    prop_assert!(!added.shed || !room);
                    if added.opened {
                        alone_since_opened.insert(id, 0);
                    }
                    if added.own.is_some() {
                        let own = alone_since_opened.get_mut(&id).unwrap();
                        *own += 1;
                        prop_assert!(*own <= alone);
                    }
                    queued.extend(added.own);
                    queued.extend(added.ended);
                }
                Step::Clock(by) => clock += by,
                Step::Pass(time) => now += Duration::from_secs(time),
                Step::Room(there) => room = there,
                Step::End => queued = sums.end_old(now, 0, reserve),
            }
            prop_assert!(room || queued.is_empty());
            for (_, sum) in queued {
                *counted.entry((sum.last.key, sum.last.outcome)).or_insert(0) += u64::from(sum.count);
            }
            prop_assert!(sums.windows.len() <= most && sums.windows.len() == sums.by_age.len());
            let total: u64 = made.values().sum();
            prop_assert_eq!(counted.values().sum::<u64>() + sums.summed(), total);
        }
        for (_, sum) in sums.end_old(now, usize::MAX, || Some(())) {
            *counted.entry((sum.last.key, sum.last.outcome)).or_insert(0) += u64::from(sum.count);
        }
        counted.retain(|_, count| *count > 0);
        made.retain(|_, count| *count > 0);
        prop_assert_eq!(counted, made);
        prop_assert_eq!((sums.summed(), sums.windows.len()), (0, 0));
    }
}
