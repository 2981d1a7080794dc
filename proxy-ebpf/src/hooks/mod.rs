//! One module per kind of hook: from a verdict to what the kernel wants to hear.

pub(crate) mod delivery;
pub(crate) mod socket;
pub(crate) mod tc;
pub(crate) mod xdp;
