//! Values by name, each of which is there as long as somebody uses it.

use std::collections::HashMap;
use std::hash::Hash;
use std::ops::Deref;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The values in use, with the number of their users.
#[derive(Debug)]
pub(super) struct InUse<N, T>(Mutex<HashMap<N, (Arc<T>, usize)>>);

impl<N, T> Default for InUse<N, T> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<N: Clone + Eq + Hash, T: Default> InUse<N, T> {
    /// The value of this name, which all that use it share.
    pub(super) fn of(self: &Arc<Self>, name: N) -> Used<N, T> {
        let mut values = self.lock();
        let (value, users) = values.entry(name.clone()).or_default();
        *users += 1;
        let value = Arc::clone(value);
        drop(values);
        Used { all: Arc::clone(self), name, value }
    }
}

impl<N: Eq + Hash, T> InUse<N, T> {
    /// The value of this name, if it is in use.
    pub(super) fn get(&self, name: &N) -> Option<Arc<T>> {
        self.lock().get(name).map(|(value, _)| Arc::clone(value))
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<N, (Arc<T>, usize)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A use of a value.
#[derive(Debug)]
pub(super) struct Used<N: Eq + Hash, T> {
    all: Arc<InUse<N, T>>,
    name: N,
    value: Arc<T>,
}

impl<N: Eq + Hash, T> Deref for Used<N, T> {
    type Target = Arc<T>;

    fn deref(&self) -> &Arc<T> {
        &self.value
    }
}

impl<N: Eq + Hash, T> Drop for Used<N, T> {
    fn drop(&mut self) {
        let mut values = self.all.lock();
        if let Some((_, users)) = values.get_mut(&self.name) {
            *users -= 1;
            if *users == 0 {
                values.remove(&self.name);
            }
        }
    }
}

#[cfg(test)]
impl<N: Eq + Hash, T> InUse<N, T> {
    pub(super) fn len(&self) -> usize {
        self.lock().len()
    }
}
