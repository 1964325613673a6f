//! Properties of all public types: they can be shared between threads, and errors implement
//! `Error`.
#![cfg(all(
    feature = "cache",
    feature = "conformance",
    feature = "geoip",
    feature = "postgres",
    feature = "serde",
    feature = "settings-page",
    feature = "sqlite"
))]

use std::error::Error;
use std::fmt::Debug;
use std::fs;

use keygate::audit::*;
use keygate::error::*;
use keygate::guard::*;
use keygate::manager::*;
use keygate::runtime::*;
use keygate::store::*;
use keygate::*;

fn is_shared<T: Send + Sync + Debug + 'static>() {}
fn is_error<T: Error + Send + Sync + 'static>() {}

/// The list is kept complete by `every_public_type_is_listed`.
macro_rules! all {
    ($check:ident: $($type:ty),* $(,)?) => {{
        $($check::<$type>();)*
        [$(stringify!($type)),*]
    }};
}

fn errors() -> Vec<&'static str> {
    all!(is_error:
        AdmitError, AllowlistError, AttributesError, AuditCursorError, AuditIdError, AuditError, BuildError, CacheError, CountryCodeError, Denial,
        DeliveryError, EntryProblem, ExpirationError, GeoIpError, ImportError, KeyDigestError,
        IdempotencyKeyError, KeyIdError, KeyNameError, MalformedKey, ManageError, MetadataError, NetworkError, OrgIdError,
        MissingScope, EnvironmentError, PostgresOpenError, PrefixError, RandomError, ScopeError, ScopesError,
        SettingsPageError, SqliteOpenError,
        StoreError, TimestampError, UnknownName, VerifyError,
        conformance::Violation, conformance::Violations,
        existing::AdoptError, ExistingDigestError, ExistingFormatError,
    )
    .into()
}

fn types() -> Vec<&'static str> {
    all!(is_shared:
        Actor, Admission, Allowlist, ApiKey, ApiKeyLayer, Attributes, ApiKeyService<()>, AuditCursor,
        AuditEvent, AuditId, AuditPage, AuditQuery, AuditRecord, AuditScope, AuditStats, CacheHealth,
        CacheState, CachedStore, ChangeAction, ChangeEvent, ChangePhase,
        ClientIp, CountryCode, Delivery, Expiration, HealthReport, IdempotencyKey, Imported, IssuedKey, KeyDigest, KeyFormat,
        KeyId, KeyManager, KeyManagerBuilder, KeyName, KeyPatch, KeyRejection, KeyUse, Limits,
        conformance::Report, conformance::TwoHandles<()>,
        ManualClock, MaxMindCountries, Metadata, MemoryAuditLog, MemoryStore, Network, NewKey, News, OrgId,
        OrgLimit, Outcome, PartHealth, PeerAddr, PlaintextKey, Position, PostgresChanges, PostgresOptions,
        PostgresStore, PreviousSecret, SecretUsed, ProxyHeader, RequestEvent, RequestInfo, ResponseBody<()>, Revision,
        Environment, Refusal, RequireScope, Scope, ScopeCatalog, Scopes, SettingsPage, ShutdownReport, SqliteOptions, SqliteStore, Status, SystemClock, Timestamp,
        TokioRuntime, VerifiedKey, WhenFull, WithDigest,
        existing::AdoptReport, existing::Adopted, existing::AdoptedKey, existing::DigestKind,
        existing::ExistingDigest, existing::ExistingFormat, existing::FoundKey,
        Box<dyn existing::ExistingKeys>, Box<dyn KeyImport>,
        Box<dyn AuditLog>, Box<dyn AuditSink>, Box<dyn Clock>, Box<dyn CountryLookup>,
        Box<dyn KeyExport>, Box<dyn KeyStore>, Box<dyn Runtime>,
    )
    .into()
}

#[test]
fn every_public_type_is_listed() {
    let root = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/src/lib.rs")).unwrap();
    let exports = root.split("pub use ").skip(1).map(|rest| rest.split(';').next().unwrap());
    let words = exports.flat_map(|export| export.split(|c: char| !c.is_ascii_alphanumeric()));
    let public = words.filter(|word| {
        let mut chars = word.chars();
        chars.next().is_some_and(|c| c.is_ascii_uppercase())
            && chars.any(|c| c.is_ascii_lowercase())
    });
    let listed = [errors(), types()].concat();
    // A future has its own auto traits. A feed belongs to one task, and so does a builder that
    // holds one.
    let apart = ["BoxFuture", "CachedStoreBuilder", "ChangeFeed", "ResponseFuture"];
    let is_listed =
        |name: &str| listed.iter().any(|listed| listed.split(['<', '>', ' ']).any(|w| w == name));
    let missing: Vec<_> = public.filter(|name| !apart.contains(name) && !is_listed(name)).collect();
    assert!(missing.is_empty(), "{missing:?}");
}
