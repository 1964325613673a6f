//! Cursors of audit pages:
//! `cargo +nightly fuzz run cursor -- -max_total_time=60 -dict=fuzz/dictionaries/cursor.dict`.
//!
//! A text is the one text of its cursor, or is refused; the cursor of any record
//! survives its text, and cursors are ordered as their records are.
#![no_main]

use keygate::audit::{AuditCursor, AuditEvent, AuditId, AuditRecord, Outcome, RequestEvent};
use keygate::{KeyId, OrgId, Timestamp};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    if let Ok(text) = std::str::from_utf8(input) {
        let read = text.parse::<AuditCursor>();
        assert_eq!(read.ok().map(|c| (c.at(), c.id().to_bytes())), reference(text), "{text:?}");
        if let Ok(cursor) = read {
            assert_eq!(cursor.to_string(), text);
        }
    }
    if let Some((one, rest)) = input.split_first_chunk::<24>() {
        let one = of_a_record(one);
        assert_eq!(one.to_string().parse(), Ok(one));
        if let Some(other) = rest.first_chunk::<24>() {
            let other = of_a_record(other);
            let places = [one, other].map(|c| (c.at(), c.id().to_bytes()));
            assert_eq!(one.cmp(&other), places[0].cmp(&places[1]));
            assert_eq!(one.to_string() == other.to_string(), one == other);
        }
    }
});

/// 16 digits of two's complement microseconds within the years 1 to 9999, 32 of the id.
fn reference(text: &str) -> Option<(Timestamp, [u8; 16])> {
    let mut values = text.chars().map(|c| "0123456789abcdef".find(c).map(|v| v as u64));
    let micros = (0..16).try_fold(0, |sum, _| Some(sum << 4 | values.next()??))?;
    let mut id = [0; 16];
    for byte in &mut id {
        *byte = (values.next()?? << 4 | values.next()??) as u8;
    }
    let at = Timestamp::from_unix_micros(micros as i64)?;
    values.next().is_none().then_some((at, id))
}

fn of_a_record(bytes: &[u8; 24]) -> AuditCursor {
    let (micros, id) = bytes.split_first_chunk::<8>().unwrap();
    let range = Timestamp::MIN.unix_micros()..=Timestamp::MAX.unix_micros();
    let micros = i64::from_be_bytes(*micros).clamp(*range.start(), *range.end());
    AuditCursor::of(&AuditRecord {
        id: AuditId::from_bytes(id.try_into().unwrap()),
        at: Timestamp::from_unix_micros(micros).unwrap(),
        org: OrgId::new("acme").unwrap(),
        key: KeyId::from_bytes([1; 16]),
        event: AuditEvent::Request(RequestEvent::new("GET", "/", Outcome::Allowed)),
    })
}
