//! What the decision needs from its surroundings.

use core::ops::DerefMut;

use crate::{
    addr::Addr,
    addresses::AddressFlags,
    affinity::{Affinity, AffinityKey},
    backend::{Backend, BackendId},
    cache::{Answer, TupleHash},
    config::NodeSettings,
    device::Device,
    drop::DropReason,
    filter::AddressRoles,
    flow::{Direction, Draft, FlowEntry, FlowHead, FlowState},
    frontend::{Frontend, FrontendKey, ServiceId, SlotRun},
    time::Ticks,
    tuple::{Endpoint, FlowKey, Hook},
};

use super::{
    Packet, Translation,
    direct::{Place, place},
    remember::{First, Found, masquerade, remember, reserve},
    select::{Selection, select},
    transition,
};

/// An entry of the flow table, where it lies: a copy of all of it is too much for a program's stack.
pub trait FlowRef: Copy {
    /// All but the key of the other direction.
    fn head(&self) -> FlowHead;
    /// Whether the other direction has this key.
    fn leads_to(&self, key: &FlowKey) -> bool;
    /// Hash of the key of the other direction.
    fn peer_hash(&self) -> TupleHash;
    /// What packets of this direction become at the hook that the entry is for.
    fn translation(&self, hook: Hook) -> Translation;
    /// Makes a draft of the same key say where packets go as this entry does: the other direction's key, and the flags.
    fn copy_to(&self, draft: &mut Draft);
    /// Records that this direction saw a packet.
    fn touch(&self, now: Ticks);
    /// Records a new state of the flow.
    fn enter(&self, state: FlowState, timeout: Ticks);
}

/// Why a flow could not be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InsertError {
    /// There is an entry with this key, and it was not to be replaced.
    Exists,
    /// No room.
    Full,
}

/// Whether an insertion may replace what is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Insert {
    /// Only if the key is free.
    New = 0,
    /// In any case.
    Replace = 1,
}

/// The tables, the clock and the dice, as the decision needs them.
pub trait Tables {
    /// A flow entry in place.
    type Flow<'a>: FlowRef
    where
        Self: 'a;
    /// Memory for a flow that is being written.
    type Draft<'a>: DerefMut<Target = Draft>
    where
        Self: 'a;

    /// The time.
    fn now(&self) -> Ticks;
    /// A random number, uniform over `u32`.
    fn random(&self) -> u32;
    /// The settings, which are there before the first packet.
    fn settings(&self) -> Option<&NodeSettings>;
    /// Roles that an address may have.
    fn roles(&self, address: Addr) -> AddressRoles;
    /// What is known about an address.
    fn address(&self, address: Addr) -> AddressFlags;
    /// A device by its number.
    fn device(&self, ifindex: u32) -> Option<Device>;
    /// The flow entry of a tuple.
    fn flow(&self, key: &FlowKey) -> Option<Self::Flow<'_>>;
    /// The flow entry at the key that an entry gives for its other direction. It may belong to another flow by now.
    fn other(&self, flow: Self::Flow<'_>) -> Option<Self::Flow<'_>>;
    /// Memory for the flow that this packet begins. What is in it is left over from an earlier one. One at a time.
    fn draft(&self) -> Option<Self::Draft<'_>>;
    /// Writes a flow entry into the flow table, and does nothing else; see [`Tables::insert_flow`].
    fn put_flow(&self, key: &FlowKey, entry: &FlowEntry, mode: Insert) -> Result<(), InsertError>;
    /// Removes a flow entry from the flow table, if it is there, and does nothing else; see [`Tables::remove_flow`].
    fn delete_flow(&self, key: &FlowKey);
    /// The service at an address and port.
    fn frontend(&self, key: &FrontendKey) -> Option<Frontend>;
    /// Whether the source ranges of a service port admit an address.
    fn admits(&self, service: ServiceId, source: Addr) -> bool;
    /// The backend in a slot.
    fn slot(&self, index: u32) -> Option<BackendId>;
    /// The mapping of a client.
    fn affinity(&self, key: &AffinityKey) -> Option<Affinity>;
    /// Writes the mapping of a client. A full table forgets another one.
    fn set_affinity(&self, key: &AffinityKey, value: &Affinity);
    /// Whether another flow may begin on this CPU now; if so, that counts as one.
    fn may_begin(&self) -> bool;
    /// A backend by its id.
    fn backend(&self, id: BackendId) -> Option<Backend>;
    /// Counts a flow that was given a backend.
    fn count_connection(&self, service: ServiceId);
    /// Counts a packet of a service.
    fn count_packet(&self, service: ServiceId, direction: Direction, bytes: u32);
    /// Counts a dropped packet of a service.
    fn count_drop(&self, service: ServiceId, reason: DropReason);

    /// What this CPU remembers for a tuple with this hash, whole. Whether it still holds is the caller's to judge.
    #[inline(always)]
    fn recall(&self, _key: &FlowKey, _hash: TupleHash) -> Option<Answer> {
        None
    }

    /// Remembers an answer on this CPU, if there is room for it.
    #[inline(always)]
    fn learn(&self, _key: &FlowKey, _hash: TupleHash, _answer: &Answer) {}

    /// The epoch of tuples with this hash.
    #[inline(always)]
    fn epoch(&self, _hash: TupleHash) -> u32 {
        0
    }

    /// Begins another epoch: what any CPU remembers for tuples with this hash is void from now on.
    #[inline(always)]
    fn outdate(&self, _hash: TupleHash) {}

    /// Writes a flow entry. What was remembered for its tuple is void, unless there was no entry: of such a tuple nothing is
    /// remembered, as who removes an entry says so, and one that the agent removes has been silent for much longer than answers
    /// hold.
    #[inline(always)]
    fn insert_flow(&self, key: &FlowKey, entry: &FlowEntry, mode: Insert) -> Result<(), InsertError> {
        let outcome = self.put_flow(key, entry, mode);
        if mode == Insert::Replace {
            self.outdate(TupleHash::of(key));
        }
        outcome
    }

    /// Removes a flow entry, if it is there, and what was remembered for its tuple.
    #[inline(always)]
    fn remove_flow(&self, key: &FlowKey) {
        self.delete_flow(key);
        self.outdate(TupleHash::of(key));
    }

    /// Tells whoever listens that the draft has become a flow, begun by a packet of a device.
    #[inline(always)]
    fn tell_flow(&self, _device: u32) {}

    /// [`place`] over these tables.
    #[inline(always)]
    fn place(&self, run: SlotRun, end: &Endpoint) -> Place
    where
        Self: Sized,
    {
        place(self, run, end)
    }

    /// [`select`] over these tables.
    #[inline(always)]
    fn select(&self, packet: &Packet, mode: Insert) -> Selection
    where
        Self: Sized,
    {
        select(self, packet, mode)
    }

    /// [`remember`] over these tables.
    #[inline(always)]
    fn remember(&self, packet: &Packet, chosen: Selection, mode: Insert) -> Option<DropReason>
    where
        Self: Sized,
    {
        remember(self, packet, chosen, mode)
    }

    /// [`masquerade`] over these tables.
    #[inline(always)]
    fn masquerade(&self, packet: &Packet, mode: Insert) -> Option<DropReason>
    where
        Self: Sized,
    {
        masquerade(self, packet, mode)
    }

    /// [`transition`] over these tables.
    #[inline(always)]
    fn transition(&self, packet: &Packet) -> bool
    where
        Self: Sized,
    {
        transition(self, packet)
    }

    /// [`reserve`] over these tables.
    #[inline(always)]
    fn reserve(&self, first: First) -> Found
    where
        Self: Sized,
    {
        reserve(self, first)
    }

    /// How long a flow may stay silent in a state.
    #[inline(always)]
    fn timeout(&self, state: FlowState) -> Ticks {
        self.settings().map_or(Ticks::default(), |settings| settings.timeouts.of(state))
    }

    /// A duration of so many seconds in ticks.
    #[inline(always)]
    fn seconds(&self, seconds: u32) -> Ticks {
        self.settings().map_or(Ticks::default(), |settings| settings.ticks(seconds))
    }
}
