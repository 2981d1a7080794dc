//! What the agent sets and the datapath obeys.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::{
    addr::Addr,
    bits::bit_set,
    dsr,
    endian::Be16,
    flow::FlowState,
    limit::{self, Rate},
    pod::{Levels, PodReasons},
    socket::halves,
    time::Ticks,
};

/// Settings of the datapath; value of the settings table.
///
/// A table rather than read-only memory of the programs, because ticks per second are known only after asking
/// the running kernel, by a program of the same object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct NodeSettings {
    /// How long flows may stay silent.
    pub timeouts: Timeouts,
    /// Ticks of the kernel's clock per second.
    pub ticks_per_second: u32,
    /// Whose sources are pods, if local traffic is detected by address; at most one network per family (DLOC-01, DLOC-02).
    pub pod_networks: [Network; 2],
    /// Source ports that may be given to packets.
    pub source_ports: SourcePorts,
    /// Which processes are served at their sockets, and how.
    pub sockets: SocketSettings,
    /// Everything else that is yes or no.
    pub flags: NodeFlags,
    /// Flows that may begin through services in each second on each CPU; 0: any number.
    pub new_flows: u32,
    /// UDP port by which nodes send each other packets for their backends, network byte order.
    pub dsr_port: Be16,
    /// Always zero.
    pub reserved: [u8; 2],
}

impl NodeSettings {
    /// The defaults for a kernel whose clock ticks `hz` times a second: kube-proxy's timeouts, the kernel's and the API
    /// server's default port ranges, and no detection of local traffic.
    #[must_use]
    pub const fn new(hz: u32) -> Self {
        Self {
            timeouts: Timeouts::new(hz, &TimeoutSettings::DEFAULT),
            ticks_per_second: hz,
            pod_networks: [Network::NONE; 2],
            source_ports: SourcePorts::outside([(32_768, 60_999), (30_000, 32_767)]),
            sockets: SocketSettings::OFF,
            flags: NodeFlags(0),
            new_flows: limit::NEW_FLOWS,
            dsr_port: Be16::from_host(dsr::PORT),
            reserved: [0; 2],
        }
    }

    /// How fast flows may begin on each CPU.
    #[must_use]
    #[inline(always)]
    pub const fn new_flow_rate(&self) -> Rate {
        Rate { per_second: self.new_flows, ticks_per_second: self.ticks_per_second }
    }

    /// A duration in ticks.
    #[must_use]
    #[inline(always)]
    pub const fn ticks(&self, seconds: u32) -> Ticks {
        Ticks(seconds.saturating_mul(self.ticks_per_second))
    }
}

/// What is switched on beside sockets, as bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(transparent)]
pub struct NodeFlags(pub u32);

impl NodeFlags {
    /// TCP connections to Maglev frontends that are not known here go on where their hash leads: netfilter translates none of
    /// them.
    pub const TAKE_UP: Self = Self(1);
}

bit_set!(NodeFlags);

/// Which processes are served at their sockets, and how. 52 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct SocketSettings {
    /// Cookie of the network namespace that the node's own processes are in, low half first.
    pub host_namespace: [u32; 2],
    /// What is switched on, and what the agent knows.
    pub flags: SocketFlags,
    /// Reasons for which the TCP of a pod is served, where a socket decides as a packet would.
    pub pods: PodReasons,
    /// Where to look for the pod that a process belongs to.
    pub levels: Levels,
    /// The node's IPv4 address, as source ranges know its processes; all zero bytes if it has none.
    pub node_v4: Addr,
    /// The same for IPv6.
    pub node_v6: Addr,
}

impl SocketSettings {
    /// Nobody is.
    pub const OFF: Self = Self {
        host_namespace: [0; 2],
        flags: SocketFlags(0),
        pods: PodReasons::NONE,
        levels: Levels::NONE,
        node_v4: Addr::from_v6_words([0; 4]),
        node_v6: Addr::from_v6_words([0; 4]),
    };

    /// Whether a network namespace is the node's own.
    #[must_use]
    #[inline(always)]
    pub const fn is_host(&self, namespace: u64) -> bool {
        let ([low, high], [its_low, its_high]) = (self.host_namespace, halves(namespace));
        low == its_low && high == its_high
    }

    /// The address that the node's processes have for source ranges, of the family of `peer`.
    #[must_use]
    #[inline(always)]
    pub const fn node_for(&self, peer: Addr) -> Addr {
        if peer.is_v4() { self.node_v4 } else { self.node_v6 }
    }
}

/// What is switched on at sockets, and what the agent knows about them, as bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(transparent)]
pub struct SocketFlags(pub u32);

impl SocketFlags {
    /// The node's own processes are served.
    pub const HOST: Self = Self(1);
    /// The node's own processes reach NodePorts at loopback addresses (NP-10).
    pub const LOCALHOST_NODE_PORTS: Self = Self(2);
    /// The agent has been told which pods there are. This and the next are for people; the datapath does not ask.
    pub const PODS_LISTED: Self = Self(4);
    /// The agent does not see the root of the cgroup hierarchy, so it cannot say at which levels pods are.
    pub const LEVELS_UNKNOWN: Self = Self(8);
}

bit_set!(SocketFlags);

/// A network: addresses that are equal under a mask. 32 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Network {
    address: [u32; 4],
    mask: [u32; 4],
}

impl Network {
    /// No address is in it.
    pub const NONE: Self = Self { address: [u32::MAX; 4], mask: [0; 4] };

    /// The addresses that share the first `length` bits of `address`: at most 32 for IPv4, 128 for IPv6.
    #[must_use]
    pub const fn new(address: Addr, length: u32) -> Self {
        let mut bits = if address.is_v4() { length + 96 } else { length };
        let mut network = Self { address: address.words(), mask: [0; 4] };
        let mut at = 0;
        while at < 4 {
            let taken = if bits > 32 { 32 } else { bits };
            let mask = if taken == 0 { 0 } else { u32::MAX << (32 - taken) };
            network.mask[at] = mask.to_be();
            network.address[at] &= network.mask[at];
            bits -= taken;
            at += 1;
        }
        network
    }

    /// Its first address, and how many bits all its addresses share with that, of the address's own family.
    #[must_use]
    pub const fn prefix(&self) -> (Addr, u32) {
        let first = Addr::from_v6_words(self.address);
        let [a, b, c, d] = self.mask;
        let bits = a.count_ones() + b.count_ones() + c.count_ones() + d.count_ones();
        (first, if first.is_v4() { bits.saturating_sub(96) } else { bits })
    }

    /// Whether the address is in it.
    #[must_use]
    #[inline(always)]
    pub const fn contains(&self, address: Addr) -> bool {
        let [a, b, c, d] = address.words();
        let [ma, mb, mc, md] = self.mask;
        let [na, nb, nc, nd] = self.address;
        (a & ma) ^ na | (b & mb) ^ nb | (c & mc) ^ nc | (d & md) ^ nd == 0
    }
}

/// The ports that source rewriting may use: what neither the host's own sockets (`ip_local_port_range`) nor NodePorts use.
/// 16 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct SourcePorts {
    /// Disjoint; what is not needed is empty.
    ranges: [PortRange; 3],
    /// All of them together.
    total: u32,
}

/// Ports one after the other, in host byte order. 4 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct PortRange {
    first: u16,
    count: u16,
}

impl PortRange {
    const EMPTY: Self = Self { first: 0, count: 0 };

    #[inline(always)]
    const fn contains(self, port: u16) -> bool {
        port.wrapping_sub(self.first) < self.count
    }
}

impl SourcePorts {
    /// The lowest port that is given: those below are for privileged processes.
    const LOWEST: u16 = 1024;

    /// The ports from 1024 outside two ranges, which are given by their first and last port.
    #[must_use]
    pub const fn outside(taken: [(u16, u16); 2]) -> Self {
        let [a, b] = taken;
        let [(first_low, last_low), (first_high, last_high)] = if a.0 <= b.0 { [a, b] } else { [b, a] };
        let mut ports = Self { ranges: [PortRange::EMPTY; 3], total: 0 };
        ports.add(0, Self::LOWEST as u32, first_low as u32);
        ports.add(1, last_low as u32 + 1, first_high as u32);
        let last = if last_low > last_high { last_low } else { last_high };
        ports.add(2, last as u32 + 1, u16::MAX as u32 + 1);
        ports
    }

    /// Adds the ports from `first` to before `end`.
    #[expect(clippy::cast_possible_truncation, reason = "bounded by the number of ports from 1024")]
    const fn add(&mut self, at: usize, first: u32, end: u32) {
        let first = if first < Self::LOWEST as u32 { Self::LOWEST as u32 } else { first };
        if end > first {
            self.ranges[at] = PortRange { first: first as u16, count: (end - first) as u16 };
            self.total += end - first;
        }
    }

    /// How many there are.
    #[must_use]
    pub const fn len(&self) -> u32 {
        self.total
    }

    /// Whether there are none.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.total == 0
    }

    /// Whether a port, in host byte order, is one of them.
    #[must_use]
    #[inline(always)]
    pub const fn contains(&self, port: u16) -> bool {
        let [a, b, c] = self.ranges;
        a.contains(port) || b.contains(port) || c.contains(port)
    }

    /// The port, in host byte order, for a random number that is uniform over `u32`; 0 if there are none.
    #[must_use]
    #[inline(always)]
    #[expect(clippy::cast_possible_truncation, reason = "less than the number of ports")]
    pub const fn choose(&self, random: u32) -> u16 {
        let at = ((random as u64 * self.total as u64) >> 32) as u32;
        let [a, b, c] = self.ranges;
        // Without branches: the programs ask in a loop, and the verifier would follow each way through it.
        let beyond_a = (at >= a.count as u32) as u32;
        let beyond_b = (at >= a.count as u32 + b.count as u32) as u32;
        let skipped = beyond_a * a.count as u32 + beyond_b * b.count as u32;
        let to_b = beyond_a.wrapping_mul((b.first as u32).wrapping_sub(a.first as u32));
        let to_c = beyond_b.wrapping_mul((c.first as u32).wrapping_sub(b.first as u32));
        (a.first as u32).wrapping_add(to_b).wrapping_add(to_c).wrapping_add(at - skipped) as u16
    }
}

/// How long a flow may stay silent, by state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Timeouts {
    by_state: [Ticks; SLOTS],
}

/// Room for every state, rounded up to a power of two: the index is masked, so neither a branch nor the
/// verifier has to bound it.
const SLOTS: usize = 16;
const _: () = assert!(FlowState::COUNT <= SLOTS);

/// The timeouts that an administrator can set, in seconds. The others are conntrack's defaults.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TimeoutSettings {
    /// An established TCP connection (CT-32).
    pub tcp_established: u32,
    /// A TCP connection that one side has closed (CT-33).
    pub tcp_close_wait: u32,
    /// A UDP flow without answers (CT-35).
    pub udp: u32,
    /// A UDP flow with answers (CT-35).
    pub udp_stream: u32,
}

impl TimeoutSettings {
    /// kube-proxy's where it sets one by default, else conntrack's.
    pub const DEFAULT: Self = Self { tcp_established: 86_400, tcp_close_wait: 3_600, ..Self::CONNTRACK };

    /// conntrack's, unless somebody changes them (`nf_conntrack_proto_tcp.c`, `nf_conntrack_proto_udp.c`).
    pub const CONNTRACK: Self =
        Self { tcp_established: 432_000, tcp_close_wait: 60, udp: 30, udp_stream: 120 };
}

impl Timeouts {
    /// The longest one: a quarter of the clock's circle, 12 days at 1000 ticks a second. A flow that has been silent for
    /// half of it would look new again, and somebody has to find it before.
    const LONGEST: Ticks = Ticks(1 << 30);

    /// What an administrator says, and conntrack's defaults where nobody is asked, for a kernel whose clock ticks `hz`
    /// times a second.
    #[must_use]
    pub const fn new(hz: u32, settings: &TimeoutSettings) -> Self {
        let mut seconds = [0u32; FlowState::COUNT];
        seconds[FlowState::UNREPLIED.0 as usize] = settings.udp;
        seconds[FlowState::REPLIED.0 as usize] = settings.udp_stream;
        seconds[FlowState::SYN_SENT.0 as usize] = 120;
        seconds[FlowState::SYN_RECEIVED.0 as usize] = 60;
        seconds[FlowState::ESTABLISHED.0 as usize] = settings.tcp_established;
        seconds[FlowState::CLIENT_CLOSED.0 as usize] = settings.tcp_close_wait;
        seconds[FlowState::BACKEND_CLOSED.0 as usize] = settings.tcp_close_wait;
        seconds[FlowState::TIME_WAIT.0 as usize] = 120;
        seconds[FlowState::RESET.0 as usize] = 10;
        seconds[FlowState::VOID.0 as usize] = 0;
        let mut by_state = [Ticks(0); SLOTS];
        let mut at = 0;
        while at < FlowState::COUNT {
            let ticks = seconds[at].saturating_mul(hz);
            by_state[at] = if ticks > Self::LONGEST.0 { Self::LONGEST } else { Ticks(ticks) };
            at += 1;
        }
        Self { by_state }
    }

    /// The timeout of a state; 0 for a state that does not exist.
    #[must_use]
    #[inline(always)]
    pub fn of(&self, state: FlowState) -> Ticks {
        self.by_state.get(usize::from(state.0) & (SLOTS - 1)).copied().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, net::IpAddr};

    use super::*;

    fn addr(text: &str) -> Addr {
        text.parse::<IpAddr>().unwrap().into()
    }

    #[test]
    fn networks_contain_their_own_family_only() {
        let v4 = Network::new(addr("10.244.7.9"), 16);
        assert!(v4.contains(addr("10.244.0.0")) && v4.contains(addr("10.244.255.255")));
        assert!(!v4.contains(addr("10.245.0.0")) && !v4.contains(addr("::a:f4:0:0")));
        let v6 = Network::new(addr("fd00:10:244::"), 48);
        assert!(v6.contains(addr("fd00:10:244:ffff::1")));
        assert!(!v6.contains(addr("fd00:10:245::1")) && !v6.contains(addr("10.244.0.1")));
        assert_eq!((v4.prefix(), v6.prefix()), ((addr("10.244.0.0"), 16), (addr("fd00:10:244::"), 48)));
        let all = Network::new(addr("0.0.0.0"), 0);
        assert!(all.contains(addr("192.0.2.1")) && !all.contains(addr("2001:db8::1")));
        assert!(!Network::NONE.contains(addr("255.255.255.255")));
        assert!(!Network::NONE.contains(addr("ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff")));
    }

    #[test]
    fn source_ports_are_exactly_those_outside() {
        for taken in [
            [(32_768, 60_999), (30_000, 32_767)],
            [(1024, 65_535), (30_000, 32_767)],
            [(30_000, 32_767), (30_500, 31_000)],
            [(1, 100), (65_000, 65_535)],
            [(2_000, 3_000), (0, 0)],
        ] {
            let ports = SourcePorts::outside(taken);
            let expected: BTreeSet<u16> = (1024..=u16::MAX)
                .filter(|port| taken.iter().all(|&(first, last)| !(first..=last).contains(port)))
                .collect();
            let contained: BTreeSet<u16> = (0..=u16::MAX).filter(|&port| ports.contains(port)).collect();
            assert_eq!(contained, expected, "{taken:?}");
            assert_eq!(ports.len() as usize, expected.len());
            assert_eq!(ports.is_empty(), expected.is_empty());
            let total = u64::from(ports.len());
            let chosen: BTreeSet<u16> =
                (0..total).map(|n| ports.choose(u32::try_from((n << 32).div_ceil(total)).unwrap())).collect();
            assert_eq!(chosen, expected, "{taken:?}");
        }
    }

    #[test]
    fn every_state_but_void_has_a_timeout() {
        let timeouts = Timeouts::new(250, &TimeoutSettings::DEFAULT);
        assert_eq!(timeouts.of(FlowState::ESTABLISHED), Ticks(86_400 * 250));
        assert_eq!(timeouts.of(FlowState::CLIENT_CLOSED), Ticks(3_600 * 250));
        for state in (0..FlowState::VOID.0).map(FlowState) {
            assert_ne!(timeouts.of(state), Ticks(0), "{state:?}");
        }
        assert_eq!(timeouts.of(FlowState(FlowState::VOID.0 + 1)), Ticks(0));
    }

    /// CT-32, CT-33, CT-35.
    #[test]
    fn timeouts_are_as_somebody_says_up_to_what_the_clock_can_tell() {
        let settings =
            TimeoutSettings { tcp_established: u32::MAX, tcp_close_wait: 60, udp: 7, udp_stream: 1_000_000 };
        let timeouts = Timeouts::new(1000, &settings);
        for (state, expected) in [
            (FlowState::ESTABLISHED, 1 << 30),
            (FlowState::CLIENT_CLOSED, 60_000),
            (FlowState::BACKEND_CLOSED, 60_000),
            (FlowState::UNREPLIED, 7_000),
            (FlowState::REPLIED, 1_000_000_000),
            (FlowState::SYN_SENT, 120_000),
        ] {
            assert_eq!(timeouts.of(state), Ticks(expected), "{state:?}");
        }
        // The longest one can still be told from nothing, a day later.
        let (born, day) = (Ticks(u32::MAX - 7), 86_400_000);
        let silent = born.age(Ticks(born.0.wrapping_add((1 << 30) + day)));
        assert!(silent.exceeds(timeouts.of(FlowState::ESTABLISHED)));
    }
}
