//! Previous secrets that were refused because they had ended.

use std::collections::HashSet;
use std::sync::{Mutex, PoisonError};

use crate::key::digest::{BuildUniformHasher, KeyDigest};

/// How many are remembered; beyond that, all are forgotten.
const MOST: usize = 10_000;

/// Digests of previous secrets that were presented after their end, so that a clock that
/// steps back does not make them work again in this process. Only someone who has such a
/// secret can add one.
#[derive(Debug, Default)]
pub(super) struct Ended(Mutex<HashSet<KeyDigest, BuildUniformHasher>>);

impl Ended {
    pub(super) fn insert(&self, digest: KeyDigest) {
        let mut ended = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if ended.len() >= MOST {
            ended.clear();
        }
        ended.insert(digest);
    }

    pub(super) fn contains(&self, digest: &KeyDigest) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).contains(digest)
    }
}
