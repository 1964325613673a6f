//! A key that was issued before keygate, as it is handed over.

use crate::allowlist::Allowlist;
use crate::key::existing::ExistingDigest;
use crate::key::name::KeyName;
use crate::org::OrgId;
use crate::record::Status;
use crate::record::attributes::Metadata;
use crate::runtime::clock::Timestamp;
use crate::scopes::Scopes;

/// A key that was issued before keygate.
///
/// ```
/// use keygate::existing::{AdoptedKey, DigestKind};
/// use keygate::{KeyName, Metadata, OrgId, Timestamp};
///
/// let hex = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
/// let digest = DigestKind::sha256().read(hex)?;
/// let key = AdoptedKey::new(OrgId::new("acme")?, KeyName::new("CI")?, "acme_live_4fT9x", digest)
///     .created_at("2021-03-04T05:06:07Z".parse()?)
///     .metadata(Metadata::new().with("plan", "pro")?);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AdoptedKey {
    pub(super) org: OrgId,
    pub(super) name: KeyName,
    pub(super) key_prefix: String,
    pub(super) digest: ExistingDigest,
    pub(super) environment: Option<Box<str>>,
    pub(super) created_at: Option<Timestamp>,
    pub(super) created_by: Option<String>,
    pub(super) expires_at: Option<Timestamp>,
    pub(super) last_used_at: Option<Timestamp>,
    pub(super) status: Status,
    pub(super) allowlist: Allowlist,
    pub(super) metadata: Metadata,
    pub(super) scopes: Option<Scopes>,
}

impl AdoptedKey {
    /// The longest shown prefix, in bytes.
    pub const MAX_KEY_PREFIX_LEN: usize = 40;

    /// An active key that never expires and may be used from every address. `key_prefix` is
    /// what is shown to recognise it: its first characters, or others of your choice, of 1
    /// to 40 visible ASCII characters.
    pub fn new(
        org: OrgId,
        name: KeyName,
        key_prefix: impl Into<String>,
        digest: ExistingDigest,
    ) -> Self {
        Self {
            org,
            name,
            key_prefix: key_prefix.into(),
            digest,
            environment: None,
            created_at: None,
            created_by: None,
            expires_at: None,
            last_used_at: None,
            status: Status::Active,
            allowlist: Allowlist::default(),
            metadata: Metadata::new(),
            scopes: None,
        }
    }

    /// Sets the environment that it belongs to. Otherwise it belongs to the default one.
    pub fn environment(self, name: &str) -> Self {
        Self { environment: Some(name.into()), ..self }
    }

    /// Sets when it was created. The default is now.
    pub fn created_at(self, at: Timestamp) -> Self {
        Self { created_at: Some(at), ..self }
    }

    /// Sets the name of the user who created it.
    pub fn created_by(self, name: impl Into<String>) -> Self {
        Self { created_by: Some(name.into()), ..self }
    }

    /// Sets when it expires, which may have passed.
    pub fn expires_at(self, at: Timestamp) -> Self {
        Self { expires_at: Some(at), ..self }
    }

    /// Sets when it was last used.
    pub fn last_used_at(self, at: Timestamp) -> Self {
        Self { last_used_at: Some(at), ..self }
    }

    /// Sets its status.
    pub fn status(self, status: Status) -> Self {
        Self { status, ..self }
    }

    /// Restricts it to this list.
    pub fn allowlist(self, allowlist: Allowlist) -> Self {
        Self { allowlist, ..self }
    }

    /// Adds the host's own metadata.
    pub fn metadata(self, metadata: Metadata) -> Self {
        Self { metadata, ..self }
    }

    /// Sets what it may be used for. Needed if the service has scopes.
    pub fn scopes(self, scopes: Scopes) -> Self {
        Self { scopes: Some(scopes), ..self }
    }
}
