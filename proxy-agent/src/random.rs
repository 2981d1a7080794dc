//! Random numbers, good enough to spread nodes and free of a dependency.

use std::hash::{BuildHasher as _, RandomState};

/// A random number: each `RandomState` has new keys.
pub(crate) fn random() -> u32 {
    let bytes = RandomState::new().hash_one(()).to_ne_bytes();
    u32::from_ne_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])
}
