//! Flows: what was decided for a connection, and how far the connection has come.
//!
//! A flow is two entries in the flow table, one per direction, each keyed by the tuple that its hook sees and
//! naming the other as its peer. State changes are rare and go to both entries; the time of the last packet
//! stays with the direction that saw it, so an ordinary packet touches one entry, one cache line.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::{
    backend::{BackendId, Generation},
    bits::bit_set,
    frontend::ServiceId,
    time::Ticks,
    tuple::{FlowKey, Protocol},
};

/// The TCP flags that matter here, as they stand in byte 13 of the header (RFC 9293 3.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct TcpFlags(pub u8);

impl TcpFlags {
    /// No more data from the sender.
    pub const FIN: Self = Self(0x01);
    /// Synchronise sequence numbers.
    pub const SYN: Self = Self(0x02);
    /// Reset the connection.
    pub const RST: Self = Self(0x04);
    /// The acknowledgement field is significant.
    pub const ACK: Self = Self(0x10);

    /// Whether this opens a connection: SYN without ACK or RST.
    #[must_use]
    #[inline(always)]
    pub const fn opens(self) -> bool {
        self.0 & (Self::SYN.0 | Self::ACK.0 | Self::RST.0) == Self::SYN.0
    }

    /// Whether some state is left as it is by a packet with these. UDP has none, so its packets may. See [`FlowState::is_steady`].
    #[must_use]
    #[inline(always)]
    pub const fn may_leave_state(self) -> bool {
        !self.intersects(Self::SYN.with(Self::FIN).with(Self::RST))
    }

    /// Whether it can only belong to a connection that was opened before.
    #[must_use]
    #[inline(always)]
    pub const fn goes_on(self) -> bool {
        self.0 & (Self::SYN.0 | Self::ACK.0) == Self::ACK.0 || self.0 & Self::RST.0 != 0
    }
}

bit_set!(TcpFlags);

/// Which way a packet of a flow goes.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(transparent)]
pub struct Direction(u8);

impl Direction {
    /// From the client.
    pub const ORIGINAL: Self = Self(0);
    /// From the backend.
    pub const REPLY: Self = Self(1);
}

impl core::fmt::Debug for Direction {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(if *self == Self::ORIGINAL { "original" } else { "reply" })
    }
}

/// Facts about one direction of a flow, as bits.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(transparent)]
pub struct FlowFlags(pub u8);

impl FlowFlags {
    /// When packets of this direction leave the node, their source is rewritten to one of its own addresses.
    pub const MASQUERADE: Self = Self(1);
    /// The client is told by a RST when the backend is gone; in its own direction.
    pub const RESET: Self = Self(2);
    /// Packets leave this node encapsulated, for the backend's node, which answers: no answer comes by here. In both
    /// directions.
    pub const DSR: Self = Self(4);
}

bit_set!(FlowFlags, ["masquerade", "reset", "dsr"]);

/// How far a flow has come. The names are netfilter's where the meaning is.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(transparent)]
pub struct FlowState(pub u8);

impl FlowState {
    /// UDP: the client sent, nobody answered yet.
    pub const UNREPLIED: Self = Self(0);
    /// UDP: both sides have sent.
    pub const REPLIED: Self = Self(1);
    /// TCP: the client's SYN was seen.
    pub const SYN_SENT: Self = Self(2);
    /// TCP: the backend answered it.
    pub const SYN_RECEIVED: Self = Self(3);
    /// TCP: the client acknowledged that.
    pub const ESTABLISHED: Self = Self(4);
    /// TCP: the client sent FIN, the backend did not.
    pub const CLIENT_CLOSED: Self = Self(5);
    /// TCP: the backend sent FIN, the client did not.
    pub const BACKEND_CLOSED: Self = Self(6);
    /// TCP: both sent FIN; stray segments are still translated.
    pub const TIME_WAIT: Self = Self(7);
    /// TCP: somebody sent RST.
    pub const RESET: Self = Self(8);
    /// The entry is void: the tuple now belongs to a connection that does not go through a service.
    pub const VOID: Self = Self(9);

    /// Number of states.
    pub const COUNT: usize = 10;

    /// The state of a flow that begins with a packet with `flags`. One that is taken up half way has to be confirmed by its
    /// client's next packet, like a handshake: what is established is kept for a day, and a flood of stray segments must not be.
    #[must_use]
    #[inline(always)]
    pub fn initial(protocol: Protocol, flags: TcpFlags) -> Self {
        match protocol {
            Protocol::UDP => Self::UNREPLIED,
            _ if flags.opens() => Self::SYN_SENT,
            _ => Self::SYN_RECEIVED,
        }
    }

    /// Whether no backend has answered for good yet, so that the flow may still move to another one.
    #[must_use]
    #[inline(always)]
    pub const fn is_embryonic(self) -> bool {
        self.0 == Self::UNREPLIED.0 || self.0 == Self::SYN_SENT.0 || self.0 == Self::SYN_RECEIVED.0
    }

    /// Whether some packets leave this state as it is, see [`FlowState::is_steady`].
    #[must_use]
    #[inline(always)]
    pub const fn runs(self) -> bool {
        self.0 == Self::UNREPLIED.0 || self.0 == Self::REPLIED.0 || self.0 == Self::ESTABLISHED.0
    }

    /// Whether the connection is over, and the tuple may open another one.
    #[must_use]
    #[inline(always)]
    pub const fn is_over(self) -> bool {
        self.0 >= Self::TIME_WAIT.0
    }

    /// Whether a client's packet with `flags` may take the flow to another backend if its own is gone. UDP has
    /// no connection to lose, nor has a TCP client that sends a SYN: it begins, or begins again after the backend's
    /// node died without a word. Any other TCP connection keeps its backend to its end (CT-20 of kube-proxy's
    /// behaviour).
    #[must_use]
    #[inline(always)]
    pub const fn may_move(self, flags: TcpFlags) -> bool {
        self.0 == Self::UNREPLIED.0 || self.0 == Self::REPLIED.0 || flags.opens()
    }

    /// Whether a client's segment with `flags` is answered by a RST if the flow asks for that and its backend is gone.
    /// Nobody answers a RST (RFC 9293 3.10.7.1), nor what strays behind a connection that has ended.
    #[must_use]
    #[inline(always)]
    pub const fn may_be_reset(self, flags: TcpFlags) -> bool {
        !flags.intersects(TcpFlags::RST) && self.0 != Self::TIME_WAIT.0 && self.0 != Self::VOID.0
    }

    /// Whether a packet of an ordinary, running flow leaves this state as it is. The cheap test in front of
    /// [`FlowState::advance`], which gives the same answer in full.
    #[must_use]
    #[inline(always)]
    pub fn is_steady(self, direction: Direction, flags: TcpFlags) -> bool {
        match self {
            Self::ESTABLISHED => flags.may_leave_state(),
            Self::REPLIED => true,
            Self::UNREPLIED => direction == Direction::ORIGINAL,
            _ => false,
        }
    }

    /// The state after a packet with `flags` (empty for UDP) in `direction`.
    ///
    /// Simpler than netfilter's table: sequence numbers are not followed, and what a state must protect
    /// against is written at its arm.
    #[must_use]
    pub fn advance(self, direction: Direction, flags: TcpFlags) -> Self {
        let original = direction == Direction::ORIGINAL;
        if self == Self::UNREPLIED || self == Self::REPLIED {
            return if original { self } else { Self::REPLIED };
        }
        if self == Self::VOID {
            return self;
        }
        if flags.intersects(TcpFlags::RST) {
            return Self::RESET;
        }
        let syn = flags.intersects(TcpFlags::SYN);
        if self.is_over() {
            // A SYN,ACK after the end answers a SYN that did not come through here: the client reuses its
            // port to dial the pod directly, and translating that connection's packets would break it. (A SYN
            // through the service opens the flow anew before this is asked.)
            if syn && !original {
                return Self::VOID;
            }
            // Sequence numbers are not followed, so anybody who knows the tuple can send a RST that its receiver
            // ignores (RFC 5961). A connection that goes on was not reset.
            return if self == Self::RESET && !syn { Self::ESTABLISHED } else { self };
        }
        match self {
            Self::SYN_SENT if syn && !original => return Self::SYN_RECEIVED,
            // A client that acknowledges has seen the answer, even if it did not come past this node.
            Self::SYN_SENT | Self::SYN_RECEIVED if original && !syn => {
                return if flags.intersects(TcpFlags::FIN) { Self::CLIENT_CLOSED } else { Self::ESTABLISHED };
            }
            _ => {}
        }
        if !flags.intersects(TcpFlags::FIN) {
            return self;
        }
        match self {
            Self::CLIENT_CLOSED if !original => Self::TIME_WAIT,
            Self::BACKEND_CLOSED if original => Self::TIME_WAIT,
            Self::CLIENT_CLOSED | Self::BACKEND_CLOSED => self,
            _ if original => Self::CLIENT_CLOSED,
            _ => Self::BACKEND_CLOSED,
        }
    }

    /// The state where only the client's packets come by. The backend's FIN is never seen: what the client has closed is taken
    /// for closed, and its packets keep it as long as there are any.
    #[must_use]
    #[inline(always)]
    pub const fn seen_from_one_side(self) -> Self {
        if self.0 == Self::CLIENT_CLOSED.0 { Self::TIME_WAIT } else { self }
    }

    /// The name used in output.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::UNREPLIED => "unreplied",
            Self::REPLIED => "replied",
            Self::SYN_SENT => "syn-sent",
            Self::SYN_RECEIVED => "syn-received",
            Self::ESTABLISHED => "established",
            Self::CLIENT_CLOSED => "client-closed",
            Self::BACKEND_CLOSED => "backend-closed",
            Self::TIME_WAIT => "time-wait",
            Self::RESET => "reset",
            Self::VOID => "void",
            _ => "unknown",
        }
    }
}

impl core::fmt::Debug for FlowState {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(self.as_str())
    }
}

/// One direction of a flow; value of the flow table. 64 bytes, one cache line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct FlowEntry {
    /// Key of the other direction. A packet of this direction leaves translation as that key's reverse: its
    /// new destination is the peer's source, its new source the peer's destination.
    pub peer: FlowKey,
    /// Everything else.
    pub head: FlowHead,
}

/// How a flow stands; part of its entries. 24 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct FlowHead {
    /// The backend chosen for the flow.
    pub backend: BackendId,
    /// Generation of that backend when it was chosen.
    pub generation: Generation,
    /// The service port it came through; [`ServiceId::NONE`] in the entries that rewrite sources, whose packets other
    /// entries count.
    pub service: ServiceId,
    /// When this direction last saw a packet.
    pub last_seen: Ticks,
    /// How long the flow may stay silent in its present state.
    pub timeout: Ticks,
    /// How far the flow has come; the same in both entries.
    pub state: FlowState,
    /// Which direction this entry is.
    pub direction: Direction,
    /// Facts about this direction.
    pub flags: FlowFlags,
    /// Always zero.
    pub reserved: u8,
}

impl FlowHead {
    /// Whether this direction has been silent for too long. The flow has expired when both have.
    #[must_use]
    #[inline(always)]
    pub const fn is_idle(&self, now: Ticks) -> bool {
        self.last_seen.age(now).exceeds(self.timeout)
    }
}

/// A flow that is being written: both keys, and an entry. 144 bytes, which a program's stack has no room for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Draft {
    /// Key of the way there.
    pub key: FlowKey,
    /// Key of the way back.
    pub reply: FlowKey,
    /// First the entry of the way back, then that of the way there.
    pub entry: FlowEntry,
}

#[cfg(test)]
mod tests {
    use super::*;

    const SYN: TcpFlags = TcpFlags::SYN;
    const SYN_ACK: TcpFlags = TcpFlags::SYN.with(TcpFlags::ACK);
    const ACK: TcpFlags = TcpFlags::ACK;
    const FIN: TcpFlags = TcpFlags::FIN.with(TcpFlags::ACK);
    const RST: TcpFlags = TcpFlags::RST;
    const UDP: TcpFlags = TcpFlags(0);
    use Direction as D;
    use FlowState as S;

    #[test]
    fn states_follow_the_packets() {
        let table = [
            (S::SYN_SENT, D::ORIGINAL, SYN, S::SYN_SENT),
            (S::SYN_SENT, D::REPLY, SYN_ACK, S::SYN_RECEIVED),
            (S::SYN_SENT, D::ORIGINAL, ACK, S::ESTABLISHED),
            (S::SYN_SENT, D::REPLY, RST, S::RESET),
            (S::SYN_RECEIVED, D::REPLY, SYN_ACK, S::SYN_RECEIVED),
            (S::SYN_RECEIVED, D::ORIGINAL, ACK, S::ESTABLISHED),
            (S::SYN_RECEIVED, D::ORIGINAL, FIN, S::CLIENT_CLOSED),
            (S::ESTABLISHED, D::ORIGINAL, ACK, S::ESTABLISHED),
            (S::ESTABLISHED, D::REPLY, ACK, S::ESTABLISHED),
            (S::ESTABLISHED, D::ORIGINAL, SYN, S::ESTABLISHED),
            (S::ESTABLISHED, D::ORIGINAL, FIN, S::CLIENT_CLOSED),
            (S::ESTABLISHED, D::REPLY, FIN, S::BACKEND_CLOSED),
            (S::CLIENT_CLOSED, D::REPLY, ACK, S::CLIENT_CLOSED),
            (S::CLIENT_CLOSED, D::ORIGINAL, FIN, S::CLIENT_CLOSED),
            (S::CLIENT_CLOSED, D::REPLY, FIN, S::TIME_WAIT),
            (S::BACKEND_CLOSED, D::REPLY, FIN, S::BACKEND_CLOSED),
            (S::BACKEND_CLOSED, D::ORIGINAL, FIN, S::TIME_WAIT),
            (S::TIME_WAIT, D::ORIGINAL, ACK, S::TIME_WAIT),
            (S::TIME_WAIT, D::REPLY, SYN_ACK, S::VOID),
            (S::RESET, D::REPLY, SYN_ACK, S::VOID),
            (S::RESET, D::ORIGINAL, ACK, S::ESTABLISHED),
            (S::RESET, D::REPLY, ACK, S::ESTABLISHED),
            (S::RESET, D::ORIGINAL, RST, S::RESET),
            (S::VOID, D::REPLY, RST, S::VOID),
            (S::UNREPLIED, D::ORIGINAL, UDP, S::UNREPLIED),
            (S::UNREPLIED, D::REPLY, UDP, S::REPLIED),
            (S::REPLIED, D::ORIGINAL, UDP, S::REPLIED),
        ];
        for (state, direction, flags, expected) in table {
            assert_eq!(state.advance(direction, flags), expected, "{state:?} + {direction:?} {flags:?}");
        }
    }

    #[test]
    fn the_cheap_test_never_contradicts_the_full_one() {
        for state in (0..=u8::MAX).map(FlowState) {
            for flags in (0..=u8::MAX).map(TcpFlags) {
                for direction in [D::ORIGINAL, D::REPLY] {
                    if state.is_steady(direction, flags) {
                        assert!(state.runs(), "{state:?}");
                        assert_eq!(
                            state.advance(direction, flags),
                            state,
                            "{state:?} {direction:?} {flags:?}"
                        );
                    }
                }
            }
        }
    }

    #[test]
    fn ages_survive_the_wrap_of_the_clock() {
        let entry = FlowHead { last_seen: Ticks(u32::MAX - 5), timeout: Ticks(10), ..FlowHead::default() };
        assert!(!entry.is_idle(Ticks(4)));
        assert!(entry.is_idle(Ticks(5)));
    }

    #[test]
    fn an_entry_touched_after_the_clock_was_read_is_alive() {
        let entry = FlowHead { last_seen: Ticks(7), timeout: Ticks(10), ..FlowHead::default() };
        assert!(!entry.is_idle(Ticks(6)));
        let wrapped = FlowHead { last_seen: Ticks(2), ..entry };
        assert!(!wrapped.is_idle(Ticks(u32::MAX)));
    }
}
