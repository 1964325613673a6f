//! What the service offers to one organisation.

use std::time::Duration;

use crate::key::formats::Environment;
use crate::manager::KeyManager;
use crate::org::OrgId;
use crate::record::Limits;
use crate::scopes::ScopeCatalog;

/// The options of a request depend on it, and so does the OpenAPI document.
#[derive(Clone, Debug)]
pub(super) struct Offer {
    pub(super) limits: Limits,
    /// None unless the service has named ones.
    pub(super) environments: Vec<Environment>,
    pub(super) scopes: Option<ScopeCatalog>,
    /// The longest overlap of a rotation.
    pub(super) max_overlap: Duration,
}

impl Offer {
    pub(super) fn new(keys: &KeyManager, org: &OrgId) -> Self {
        Self {
            limits: keys.limits(org),
            environments: keys.environments().cloned().collect(),
            scopes: keys.scopes().cloned(),
            max_overlap: keys.max_overlap(),
        }
    }
}
