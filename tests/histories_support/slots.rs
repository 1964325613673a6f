//! What the threads know of the keys.

use keygate::KeyId;
use serde::{Deserialize, Serialize};

/// A place for one key after another.
#[derive(Default)]
pub(crate) struct Slot {
    pub(crate) key: Option<(u32, KeyId)>,
    /// Whether a thread is creating the next key.
    pub(crate) is_creating: bool,
    /// The secrets of the key, oldest first.
    pub(crate) secrets: Vec<Secret>,
    /// Secrets of deleted keys.
    pub(crate) dead: Vec<Secret>,
}

#[derive(Clone, Deserialize, Serialize)]
pub(crate) struct Secret {
    pub(crate) key: u32,
    pub(crate) number: u64,
    pub(crate) text: String,
}

/// A change of the key in a slot.
#[derive(Clone, Deserialize, Serialize)]
pub(crate) enum News {
    Created([u8; 16], Secret),
    Rotated(Secret),
    Deleted(u32),
}

impl Slot {
    pub(crate) fn learn(&mut self, news: News) {
        let current = self.key.map(|(key, _)| key);
        match news {
            News::Created(id, secret) => {
                (self.key, self.is_creating) = (Some((secret.key, KeyId::from_bytes(id))), false);
                self.dead.extend(std::mem::replace(&mut self.secrets, vec![secret]));
                let surplus = self.dead.len().saturating_sub(16);
                self.dead.drain(..surplus);
            }
            News::Rotated(secret) if current == Some(secret.key) => self.secrets.push(secret),
            News::Rotated(secret) => self.dead.push(secret),
            News::Deleted(key) if current == Some(key) => self.key = None,
            News::Deleted(_) => {}
        }
    }
}
