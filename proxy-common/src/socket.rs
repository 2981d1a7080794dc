//! Sockets: what a process was told, and what it believes.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::{
    addr::Addr,
    backend::{BackendId, Generation},
    bits::bit_set,
    endian::Be16,
    tuple::Endpoint,
};

/// A socket and somebody whom it talks to; key of the socket table. 32 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct SocketKey {
    /// Cookie of the socket, low half first.
    pub cookie: [u32; 2],
    /// The other's address.
    pub address: Addr,
    /// The other's port, network byte order.
    pub port: Be16,
    /// Which of the two questions this answers.
    pub view: View,
    /// Always zero.
    pub reserved: u8,
    /// Always zero.
    pub padding: u32,
}

/// A kernel's cookie as tables have it, in words: low half first.
#[must_use]
#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "a half at a time")]
pub const fn halves(cookie: u64) -> [u32; 2] {
    [cookie as u32, (cookie >> 32) as u32]
}

/// Which question a socket entry answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(transparent)]
pub struct View(u8);

impl View {
    /// The process speaks to a service: which backend is that?
    pub const SERVICE: Self = Self(0);
    /// The kernel names a backend: which service does the process take it for?
    pub const BACKEND: Self = Self(1);
}

impl SocketKey {
    /// What a socket knows about `end` in this view.
    #[must_use]
    #[inline(always)]
    pub const fn new(cookie: u64, end: Endpoint, view: View) -> Self {
        let cookie = halves(cookie);
        Self { cookie, address: end.address, port: end.port, view, reserved: 0, padding: 0 }
    }
}

/// Facts about a socket and its backend, as bits.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(transparent)]
pub struct SocketFacts(pub u16);

impl SocketFacts {
    /// The connection is reset when the backend is gone.
    pub const RESET: Self = Self(1);
}

bit_set!(SocketFacts, ["reset"]);

/// What is known; value of the socket table. 28 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct SocketEntry {
    /// Address of the backend, or of the service, by view.
    pub address: Addr,
    /// Its port, network byte order.
    pub port: Be16,
    /// Facts.
    pub facts: SocketFacts,
    /// The backend.
    pub backend: BackendId,
    /// Its generation when it was chosen.
    pub generation: Generation,
}

impl SocketEntry {
    /// Address and port.
    #[must_use]
    #[inline(always)]
    pub const fn end(&self) -> Endpoint {
        Endpoint { address: self.address, port: self.port }
    }
}
