//! Ids, digests and organisations that are not in the store yet.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::audit::record::AuditId;
use crate::key::digest::KeyDigest;
use crate::key::id::KeyId;
use crate::org::OrgId;
use crate::runtime::clock::Timestamp;
use crate::store::conformance::expect;
use crate::store::conformance::violation::Violation;

/// 2026-01-31T12:00:00.000001Z, so that most properties notice if microseconds are lost.
const START: Timestamp = match Timestamp::from_unix_micros(1_769_860_800_000_001) {
    Some(start) => start,
    None => Timestamp::MIN,
};

/// The instant `micros` microseconds after [`START`].
pub(super) fn instant(micros: u64) -> Timestamp {
    START.saturating_add(Duration::from_micros(micros))
}

/// A sequence of values drawn from a random seed.
#[derive(Debug)]
pub(super) struct Fresh {
    seed: [u8; 16],
    count: AtomicU64,
}

impl Fresh {
    pub(super) fn new() -> Result<Self, Violation> {
        let mut seed = [0; 16];
        expect::made(getrandom::fill(&mut seed))?;
        Ok(Self { seed, count: AtomicU64::new(0) })
    }

    pub(super) fn count(&self) -> u64 {
        self.count.fetch_add(1, Ordering::Relaxed)
    }

    pub(super) fn digest(&self) -> KeyDigest {
        let mut input = self.seed.to_vec();
        input.extend(self.count().to_be_bytes());
        KeyDigest::of(input)
    }

    fn bytes<const N: usize>(&self) -> [u8; N] {
        let digest = self.digest();
        digest.as_bytes().first_chunk().copied().unwrap_or([0; N])
    }

    pub(super) fn number(&self) -> u64 {
        u64::from_be_bytes(self.bytes())
    }

    pub(super) fn key_id(&self) -> KeyId {
        let id = uuid::Builder::from_random_bytes(self.bytes()).into_uuid();
        KeyId::from_bytes(id.into_bytes())
    }

    pub(super) fn audit_id(&self) -> AuditId {
        AuditId::from_bytes(self.bytes())
    }

    pub(super) fn org(&self) -> Result<OrgId, Violation> {
        expect::made(OrgId::new(format!("conformance-{:016x}", self.number())))
    }

    /// Families of organisations that a database may confuse if it does not compare texts by
    /// their bytes.
    pub(super) fn similar_orgs(&self) -> Result<Vec<Vec<OrgId>>, Violation> {
        let (base, number) = (self.number().to_string(), self.number().to_string());
        let longest = format!("{base}{}", "é".repeat(116));
        let after = |beginning: &str, endings: &[&str]| -> Vec<String> {
            endings.iter().map(|ending| format!("{beginning}{ending}")).collect()
        };
        let families = [
            ["", "0", "+", "-", " ", "%"].map(|beginning| format!("{beginning}{number}")).to_vec(),
            after(
                &base,
                &["", " ", "  ", ".0", "e0", "\u{200b}", "'", "''", "\"", "\\", ";", "%", "_", "*"],
            ),
            after(
                &base,
                &["acme", "Acme", "ACME", "ac_e", "ac%", "ac*", "a[c]me", "a.me", "ａｃｍｅ"],
            ),
            after(
                &base,
                &["' OR '1'='1", "'; DROP TABLE keys; --", "$1", "?", ":org", "{}", "null", "NULL"],
            ),
            after(&base, &["café", "cafe\u{301}", "cafe", "CAFÉ"]),
            after(&base, &["straße", "strasse", "STRASSE"]),
            after(&base, &["file", "ﬁle"]),
            after(&base, &["i", "I", "ı", "İ"]),
            after(&base, &["k", "K", "\u{212a}", "σ", "ς", "Σ"]),
            after(&base, &["組織", "组织", "🏢", "🏣"]),
            after(&longest, &["a", "b", "é"]),
        ];
        let org = |text: String| expect::made(OrgId::new(text));
        families.map(|family| family.into_iter().map(org).collect()).into_iter().collect()
    }
}
