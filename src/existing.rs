//! Keys that were issued before keygate: their formats and digests, and how they are adopted.
//!
//! The guide goes through it [step by step](crate::guide::adopting).

pub use crate::key::existing::{DigestKind, ExistingDigest, ExistingFormat};
pub use crate::manager::adopt::{AdoptError, AdoptReport, Adopted};
pub use crate::manager::adopted::AdoptedKey;
pub use crate::manager::asking::{ExistingKeys, FoundKey};
