//! The keys that are looked up, and the audit records that are written.

use std::cell::Cell;
use std::sync::Arc;

use keygate::audit::{AuditEvent, AuditId, AuditRecord, CountryCode, Outcome, RequestEvent};
use keygate::store::KeyDigest;
use keygate::{Allowlist, ApiKey, KeyId, KeyName, OrgId, Timestamp};

const ORGS: u64 = 10_000;
const KEYS_PER_ORG: u64 = 20;
/// As many keys are in use while audit records are written.
const ACTIVE_KEYS: f64 = 1_000.0;

pub(crate) struct Data {
    pub(crate) keys: Vec<ApiKey>,
    /// The digests of all keys, in an order unlike that of the rows or of the index.
    pub(crate) shuffled: Arc<[KeyDigest]>,
    next_record: Cell<u64>,
}

impl Data {
    pub(crate) fn new() -> Self {
        let keys: Vec<ApiKey> = (0..ORGS * KEYS_PER_ORG).map(key).collect();
        let mut shuffled: Vec<KeyDigest> = keys.iter().map(|key| key.digest).collect();
        shuffled.sort_by_cached_key(|digest| *KeyDigest::of(digest.as_bytes()).as_bytes());
        Self { keys, shuffled: shuffled.into(), next_record: Cell::new(0) }
    }

    /// New request records, in the order of their times.
    pub(crate) fn records(&self, count: usize) -> Vec<AuditRecord> {
        let first = self.next_record.get();
        let end = first + count as u64;
        self.next_record.set(end);
        (first..end).map(|number| self.record(number)).collect()
    }

    fn record(&self, number: u64) -> AuditRecord {
        // In no order, and a few keys make most of the requests.
        let random = number.wrapping_mul(0x9E37_79B9_7F4A_7C15) as f64 / u64::MAX as f64;
        let key = &self.keys[(random.powi(3) * ACTIVE_KEYS) as usize];
        AuditRecord {
            id: AuditId::from_bytes((u128::from(number) | 0x5EED << 64).to_be_bytes()),
            at: at(number.cast_signed() * 5),
            org: key.org.clone(),
            key: key.id,
            event: AuditEvent::Request({
                let mut event = RequestEvent::new(
                    "GET",
                    format!("/v1/organisations/acme/things/{number}"),
                    Outcome::Allowed,
                );
                event.ip = Some([10, 1, (number >> 8) as u8, number as u8].into());
                event.country = CountryCode::new("NL");
                event.status = Some(200);
                event
            }),
        }
    }
}

fn key(number: u64) -> ApiKey {
    let digest = KeyDigest::of(format!("bench {number}"));
    let entries = [
        format!("10.{}.{}.0/24", number >> 8 & 0xFF, number & 0xFF),
        format!("2001:db8:{:x}::/48", number & 0xFFFF),
    ];
    ApiKey {
        id: KeyId::from_bytes(*digest.as_bytes().last_chunk().unwrap()),
        org: OrgId::new(format!("org-{:05}", number % ORGS)).unwrap(),
        name: KeyName::new(format!("CI deploy {number}")).unwrap(),
        digest,
        allowlist: Allowlist::parse(entries).unwrap(),
        created_at: at(number.cast_signed()),
        expires_at: Some(at(31_536_000_000_000)),
        last_used_at: Some(at(86_400_000_000)),
        ..ApiKey::sample(0)
    }
}

fn at(micros: i64) -> Timestamp {
    Timestamp::from_unix_micros(1_769_860_800_000_000 + micros).unwrap()
}
