//! Records and refusals for the unit tests.

use crate::audit::record::{
    AuditEvent, AuditId, AuditRecord, ChangeAction, ChangeEvent, ChangePhase, Outcome, RequestEvent,
};
use crate::audit::sums::Refusal;
use crate::key::id::KeyId;
use crate::org::OrgId;
use crate::record::SecretUsed;
use crate::runtime::clock::Timestamp;

pub(super) fn record(number: u128, event: AuditEvent) -> AuditRecord {
    AuditRecord {
        id: AuditId::from_bytes(number.to_be_bytes()),
        at: Timestamp::MIN,
        org: OrgId::sample(),
        key: KeyId::from_bytes([0; 16]),
        event,
    }
}

pub(super) fn change(number: u128) -> AuditRecord {
    let event = ChangeEvent::new("ada", ChangeAction::Created, ChangePhase::Begun);
    record(number, AuditEvent::Change(event))
}

pub(crate) fn request(number: u128, outcome: Outcome, count: u32) -> AuditRecord {
    let event = RequestEvent { count, ..RequestEvent::new("GET", "/", outcome) };
    record(number, AuditEvent::Request(event))
}

pub(super) fn refusal() -> Refusal {
    Refusal {
        at: Timestamp::MIN,
        org: OrgId::sample(),
        key: KeyId::from_bytes([0; 16]),
        outcome: Outcome::Revoked,
        status: 401,
        method: "GET".into(),
        path: "/".into(),
        ip: None,
        secret: SecretUsed::Current,
    }
}
