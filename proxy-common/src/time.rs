//! The kernel's clock, as flows and mappings are stamped with it.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// A time or a duration in kernel jiffies, modulo 2^32 (49 days at 1000 Hz).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(transparent)]
pub struct Ticks(pub u32);

impl Ticks {
    /// How long before `now` this time was; nothing if it was after. A reader's `now` is a moment old when it comes
    /// to an entry that another CPU keeps touching, and the difference of the two must not wrap to 49 days.
    #[must_use]
    #[inline(always)]
    pub const fn age(self, now: Self) -> Self {
        let age = now.0.wrapping_sub(self.0);
        if age > i32::MAX.cast_unsigned() { Self(0) } else { Self(age) }
    }

    /// Whether this duration is longer than `other`.
    #[must_use]
    #[inline(always)]
    pub const fn exceeds(self, other: Self) -> bool {
        self.0 > other.0
    }
}
