//! Pods, as far as it matters whether they are served at their sockets.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::bits::bit_set;

/// A cgroup by the kernel's number of it, which is also the inode of its directory; key of the pod table. 8 bytes.
#[derive(
    Clone,
    Copy,
    Debug,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    Default,
    FromBytes,
    IntoBytes,
    Immutable,
    KnownLayout,
)]
#[repr(transparent)]
pub struct CgroupId(pub u64);

/// What decides whether a pod is served at its sockets or left to packets. The number is a bit of [`PodReasons`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum PodReason {
    /// Nothing is known of it. No entry says so: it is what the absence of one means.
    Unknown = 0,
    /// Nothing says that it must see the service's address on its packets.
    Eligible = 1,
    /// Its label asks for sockets.
    OptedIn = 2,
    /// Its label asks for packets.
    OptedOut = 3,
    /// Its label asks for something that there is not.
    UnknownChoice = 4,
    /// It asks for a container runtime of its own, which may be a sandbox or a virtual machine with another kernel.
    RuntimeClass = 5,
    /// It is a virtual machine.
    VirtualMachine = 6,
    /// A service mesh takes its connections and must see whom they are for.
    ServiceMesh = 7,
}

impl PodReason {
    /// Every reason, in the order of its number.
    pub const ALL: [Self; 8] = [
        Self::Unknown,
        Self::Eligible,
        Self::OptedIn,
        Self::OptedOut,
        Self::UnknownChoice,
        Self::RuntimeClass,
        Self::VirtualMachine,
        Self::ServiceMesh,
    ];

    /// The name used in output.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::Eligible => "eligible",
            Self::OptedIn => "opted-in",
            Self::OptedOut => "opted-out",
            Self::UnknownChoice => "unknown-choice",
            Self::RuntimeClass => "runtime-class",
            Self::VirtualMachine => "virtual-machine",
            Self::ServiceMesh => "service-mesh",
        }
    }
}

/// Reasons as bits: that of one pod in the pod table, those for which pods are served in the settings.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(transparent)]
pub struct PodReasons(pub u32);

bit_set!(PodReasons);

impl PodReasons {
    /// No pod is served.
    pub const NONE: Self = Self(0);
    /// The pods that are known not to need the service's address.
    pub const KNOWN: Self = Self::of(PodReason::Eligible).with(Self::of(PodReason::OptedIn));
    /// All pods but those that opted out, and those of which it is not clear whether they did.
    pub const ALL_BUT_OPTED_OUT: Self = Self::KNOWN
        .with(Self::of(PodReason::Unknown))
        .with(Self::of(PodReason::RuntimeClass))
        .with(Self::of(PodReason::VirtualMachine))
        .with(Self::of(PodReason::ServiceMesh));

    /// One reason.
    #[must_use]
    #[inline(always)]
    pub const fn of(reason: PodReason) -> Self {
        Self(1 << reason as u32)
    }

    /// The reason, if there is just one.
    #[must_use]
    pub fn only(self) -> Option<PodReason> {
        PodReason::ALL.into_iter().find(|reason| Self::of(*reason) == self)
    }
}

/// Room for the longest name: a namespace of 63 bytes, a name of 253, a separator.
pub const POD_NAME_BYTES: usize = 320;

/// A pod; value of the pod table. 324 bytes, of which the datapath reads the first four.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct PodEntry {
    /// What decides about it: one reason.
    pub reason: PodReasons,
    /// `namespace/name`, padded with zeros; for people, who may read the table without the API.
    pub name: [u8; POD_NAME_BYTES],
}

/// The levels of the cgroup hierarchy that pods' cgroups are at, where the root's is 0. There are few: kubelet has one for
/// pods of the class Guaranteed, and one below it for others. 4 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(transparent)]
pub struct Levels(
    /// Ascending; what is not needed is 0 and comes last.
    [u8; 4],
);

impl Levels {
    /// None.
    pub const NONE: Self = Self([0; 4]);

    /// The first four of these, which must ascend. The root is no pod's.
    #[must_use]
    pub fn new(ascending: impl IntoIterator<Item = u8>) -> Self {
        let mut levels = Self::NONE;
        for (slot, level) in levels.0.iter_mut().zip(ascending) {
            *slot = level;
        }
        levels
    }

    /// Each of them.
    #[inline(always)]
    pub fn each(self) -> impl Iterator<Item = u8> {
        self.0.into_iter().take_while(|level| *level != 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_positions_in_the_list() {
        for (at, reason) in PodReason::ALL.into_iter().enumerate() {
            assert_eq!(reason as usize, at);
            assert_eq!(PodReasons::of(reason).only(), Some(reason));
        }
        assert_eq!(PodReasons::KNOWN.only(), None);
    }

    #[test]
    fn who_opted_out_is_served_by_no_policy_and_who_is_unknown_by_one() {
        use PodReason::{Eligible, OptedIn, OptedOut, RuntimeClass, ServiceMesh, Unknown, UnknownChoice};
        let served =
            |policy: PodReasons| PodReason::ALL.map(|reason| policy.contains(PodReasons::of(reason)));
        for reason in [OptedOut, UnknownChoice] {
            assert!(!served(PodReasons::KNOWN)[reason as usize]);
            assert!(!served(PodReasons::ALL_BUT_OPTED_OUT)[reason as usize]);
        }
        for reason in [Unknown, RuntimeClass, ServiceMesh] {
            assert!(!served(PodReasons::KNOWN)[reason as usize]);
            assert!(served(PodReasons::ALL_BUT_OPTED_OUT)[reason as usize]);
        }
        for reason in [Eligible, OptedIn] {
            assert!(served(PodReasons::KNOWN)[reason as usize]);
            assert!(served(PodReasons::ALL_BUT_OPTED_OUT)[reason as usize]);
        }
        assert_eq!(served(PodReasons::NONE), [false; 8]);
    }

    #[test]
    fn levels_end_where_nothing_was_said() {
        let each = |levels: Levels| levels.each().collect::<std::vec::Vec<_>>();
        assert_eq!(each(Levels::NONE), []);
        assert_eq!(each(Levels::new([2, 3])), [2, 3]);
        assert_eq!(each(Levels::new([2, 3, 4, 5, 6])), [2, 3, 4, 5], "there is room for four");
    }
}
