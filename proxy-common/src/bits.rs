//! Sets of bits: what all of them can do, written once.

/// Gives a set of bits, `struct Set(pub integer)`, its operations. With names for its bits, lowest first, also their
/// listing and a `Debug` made of it.
macro_rules! bit_set {
    ($set:ident) => {
        impl $set {
            /// Whether all bits of `other` are set.
            #[must_use]
            #[inline(always)]
            pub const fn contains(self, other: Self) -> bool {
                self.0 & other.0 == other.0
            }

            /// Whether any bit of `other` is set.
            #[must_use]
            #[inline(always)]
            pub const fn intersects(self, other: Self) -> bool {
                self.0 & other.0 != 0
            }

            /// Both sets of bits.
            #[must_use]
            #[inline(always)]
            pub const fn with(self, other: Self) -> Self {
                Self(self.0 | other.0)
            }
        }
    };
    ($set:ident, $names:expr) => {
        bit_set!($set);

        impl $set {
            /// The names of the bits that are set.
            pub fn names(self) -> impl Iterator<Item = &'static str> {
                $names
                    .into_iter()
                    .enumerate()
                    .filter(move |(bit, _)| self.0 >> bit & 1 == 1)
                    .map(|(_, name)| name)
            }
        }

        impl core::fmt::Debug for $set {
            fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
                f.debug_set().entries(self.names()).finish()
            }
        }
    };
}

pub(crate) use bit_set;
