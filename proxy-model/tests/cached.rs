//! What CPUs remember of flows: it must never show in what becomes of a packet, only in how often the flow table is asked.

use std::collections::HashSet;

use k8s_openapi::api::core::v1::Service;
use proptest::prelude::*;
use proxy_common::{
    cache::TupleHash,
    config::NodeSettings,
    flow::{FlowState, TcpFlags},
    lb::{self, Packet, Translation, Verdict},
    shortcut::{Shortcut, ShortcutFlags},
    tuple::{Endpoint, FlowKey, Hook, Protocol},
};
use proxy_model::Options;
use serde_json::json;

use crate::common::{
    node::{Node, POD_DEVICE, UPLINK, end},
    objects::{apply, load_balancer, replace, slice_with},
};

const TCP: Protocol = Protocol::TCP;
const UDP: Protocol = Protocol::UDP;
const SYN: TcpFlags = TcpFlags::SYN;
const ACK: TcpFlags = TcpFlags::ACK;
const SYN_ACK: TcpFlags = TcpFlags::SYN.with(TcpFlags::ACK);
const FIN: TcpFlags = TcpFlags::FIN.with(TcpFlags::ACK);
const RST: TcpFlags = TcpFlags::RST;

/// Ticks of the clock per second.
const HZ: u32 = 100;
/// How long CPUs remember, in ticks.
const LIFETIME: u32 = 10;
/// Between the timeouts of 30 and 60 s; so are twice and three times as much between others.
const SILENCE: u32 = 45;
/// All shorter waits together, in ticks, are less than any timeout, and than what lies between it and a multiple of
/// [`SILENCE`]: a flow's time in the table may be as old as what is remembered of it, so within that time of its end a flow may
/// be over a moment earlier.
const SHORT_WAITS: u32 = 450;

const CLIENT: &str = "10.244.1.5:40000";
const WEB: &str = "10.96.0.1:80";
const BACKENDS: [&[&str]; 4] = [&["10.244.2.1", "10.244.1.7!"], &["10.244.2.1"], &["10.244.1.7!"], &[]];

/// A Service of TCP and UDP with a ClusterIP and NodePorts.
fn web() -> Service {
    let port = |name: &str, protocol: &str| json!({ "name": name, "protocol": protocol, "port": 80, "nodePort": 30080 });
    let spec = json!({ "clusterIP": "10.96.0.1", "type": "NodePort", "ports": [port("tcp", "TCP"), port("udp", "UDP")] });
    load_balancer("web", spec, &[])
}

/// Another one with the same backends, which wants connections reset.
fn alias() -> Service {
    let ports = json!([{ "name": "tcp", "protocol": "TCP", "port": 80 }]);
    let mut alias = load_balancer("alias", json!({ "clusterIP": "10.96.0.2", "ports": ports }), &[]);
    let asks = ("sluice.io/reset-on-backend-removal".to_owned(), "true".to_owned());
    alias.metadata.annotations = Some([asks].into());
    alias
}

fn node(remembers: bool) -> Node {
    let mut node = Node::with(Options::on_node("node-a"));
    node.settings = NodeSettings::new(HZ);
    node.remembers = remembers;
    replace(&mut node.model, vec![web(), alias()], vec![]);
    node.model.set_node_addresses(["192.0.2.1".parse().unwrap()]);
    serve(&mut node, BACKENDS[0]);
    node
}

fn serve(node: &mut Node, addresses: &[&str]) {
    let port = |name: &str, protocol: &str| json!({ "name": name, "port": 8080, "protocol": protocol });
    for service in ["web", "alias"] {
        apply(
            &mut node.model,
            slice_with(service, addresses, json!([port("tcp", "TCP"), port("udp", "UDP")])),
        );
    }
    node.settle();
}

/// A packet at a hook.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct At {
    key: FlowKey,
    device: u32,
    masquerade: bool,
}

impl At {
    fn ingress(from: &str, to: &str, protocol: Protocol, device: u32) -> Self {
        Self { key: FlowKey::new(end(from), end(to), protocol, Hook::INGRESS), device, masquerade: false }
    }

    fn decide(self, node: &Node, flags: TcpFlags) -> Verdict {
        let Self { key, device, masquerade } = self;
        let flags = if key.protocol == UDP { TcpFlags::default() } else { flags };
        let packet = Packet { key, flags, length: 100, device };
        match key.hook {
            Hook::INGRESS => lb::ingress(node, node, &packet),
            _ => lb::egress(node, &packet, masquerade),
        }
    }

    /// Where the packet, or an answer to it, is seen next.
    fn next(self, verdict: Verdict) -> Option<Self> {
        let key = self.key;
        let (source, destination, masquerade) = match (verdict, key.hook) {
            (Verdict::Pass, _) => (key.source_end(), key.destination_end(), false),
            (Verdict::Rewrite(Translation { end, other_port, masquerade, dsr: _ }), Hook::INGRESS) => {
                (Endpoint { address: key.source, port: other_port }, end, masquerade)
            }
            (Verdict::Rewrite(Translation { end, other_port, .. }), _) => {
                (end, Endpoint { address: key.destination, port: other_port }, false)
            }
            _ => return None,
        };
        Some(match key.hook {
            Hook::INGRESS => Self {
                key: FlowKey::new(source, destination, key.protocol, Hook::EGRESS),
                device: UPLINK,
                masquerade,
            },
            _ => Self {
                key: FlowKey::new(destination, source, key.protocol, Hook::INGRESS),
                device: UPLINK,
                masquerade: false,
            },
        })
    }
}

#[derive(Clone, Debug)]
enum Step {
    /// One of the packets that have been seen so far.
    Packet {
        which: usize,
        flags: TcpFlags,
        cpu: u32,
    },
    /// A client's first packet, the answer, and three more of the client's.
    Connect {
        which: usize,
        cpu: u32,
    },
    /// The last one again, several times.
    Repeat {
        count: usize,
        cpu: u32,
    },
    Wait(u32),
    Silence,
    Sweep,
    Serve(usize),
}

fn step() -> impl Strategy<Value = Step> {
    let flags = prop::sample::select(&[SYN, SYN_ACK, ACK, ACK, ACK, FIN, RST][..]);
    prop_oneof![
        12 => (any::<prop::sample::Index>(), flags, 0..2u32)
            .prop_map(|(which, flags, cpu)| Step::Packet { which: which.index(1 << 16), flags, cpu }),
        6 => (0..5usize, 0..2u32).prop_map(|(which, cpu)| Step::Connect { which, cpu }),
        8 => (1..4usize, 0..2u32).prop_map(|(count, cpu)| Step::Repeat { count, cpu }),
        4 => prop::sample::select(&[1, 2, LIFETIME - 1, LIFETIME, LIFETIME + 1][..]).prop_map(Step::Wait),
        1 => Just(Step::Silence),
        1 => Just(Step::Sweep),
        2 => (0..BACKENDS.len()).prop_map(Step::Serve),
    ]
}

/// A node whose CPUs remember, one whose CPUs do not, and the packets that have been seen.
struct Pair {
    nodes: [Node; 2],
    /// Of each CPU of the first one, past its stack; few, so that tuples meet there.
    shortcuts: [[Shortcut; 8]; 2],
    /// How many packets took one.
    gone_through: usize,
    packets: Vec<At>,
    known: HashSet<At>,
}

impl Pair {
    fn new() -> Self {
        let packets = vec![
            At::ingress(CLIENT, WEB, TCP, POD_DEVICE),
            At::ingress(CLIENT, WEB, UDP, POD_DEVICE),
            At::ingress(CLIENT, "10.96.0.2:80", TCP, POD_DEVICE),
            At::ingress("203.0.113.9:40000", "192.0.2.1:30080", TCP, UPLINK),
            At::ingress("203.0.113.9:40000", "192.0.2.1:30080", UDP, UPLINK),
        ];
        let known = packets.iter().copied().collect();
        Self {
            nodes: [node(true), node(false)],
            shortcuts: Default::default(),
            gone_through: 0,
            packets,
            known,
        }
    }

    /// Lets both nodes decide. Returns where the packet, or an answer to it, is seen next.
    fn send(&mut self, packet: At, flags: TcpFlags, cpu: u32) -> Option<At> {
        let shortcut = self.take_shortcut(packet, flags, cpu);
        let [remembers, looks_up] = &self.nodes;
        if let Some(answer) = shortcut {
            let routed = packet.next(packet.decide(looks_up, flags)).unwrap();
            assert_eq!(routed.next(routed.decide(looks_up, flags)), Some(answer), "{packet:?} {flags:?}");
            self.gone_through += 1;
            return Some(answer);
        }
        let verdict = packet.decide(looks_up, flags);
        assert_eq!(packet.decide(remembers, flags), verdict, "{packet:?} {flags:?}");
        let next = packet.next(verdict)?;
        if self.known.len() < 64 && self.known.insert(next) {
            self.packets.push(next);
        }
        Some(next)
    }

    /// Lets the first node decide before the stack. Returns the answer to a packet that goes past it.
    fn take_shortcut(&mut self, At { key, device, .. }: At, flags: TcpFlags, cpu: u32) -> Option<At> {
        let [node, _] = &self.nodes;
        node.cpu.set(cpu);
        if key.hook != Hook::INGRESS || device != UPLINK || !lb::may_go_through(node, key.destination) {
            return None;
        }
        let flags = if key.protocol == UDP { TcpFlags::default() } else { flags };
        let packet = Packet { key, flags, length: 100, device };
        let hash = TupleHash::of(&key);
        let shortcut = &mut self.shortcuts[cpu as usize][hash.place(1).at % 8];
        if !lb::is_remembered(node, &packet, 0, hash, shortcut) {
            let mut routed = FlowKey::default();
            shortcut.renew(&key, device, 0);
            if !lb::learn_entry(node, &packet, shortcut, &mut routed)
                || !lb::learn_exit(node, &packet, shortcut, &routed)
            {
                return None;
            }
        }
        if !shortcut.flags.contains(ShortcutFlags::THROUGH) {
            return None;
        }
        lb::note_through(node, shortcut, packet.length);
        let (source, destination) = (shortcut.source_end(), shortcut.destination_end());
        let key = FlowKey::new(destination, source, key.protocol, Hook::INGRESS);
        Some(At { key, device: UPLINK, masquerade: false })
    }

    fn connect(&mut self, there: At, cpu: u32) {
        let mut hop = Some((there, SYN));
        // The request enters and leaves, its answer enters and leaves.
        for flags in [SYN, SYN_ACK, SYN_ACK, SYN_ACK] {
            hop = hop.and_then(|(packet, now)| Some((self.send(packet, now, cpu)?, flags)));
        }
        for _ in 0..3 {
            let next = self.send(there, ACK, cpu);
            next.and_then(|packet| self.send(packet, ACK, cpu));
        }
    }
}

proptest! {
    #[test]
    fn nobody_sees_that_cpus_remember(steps in prop::collection::vec(step(), 1..250)) {
        let mut pair = Pair::new();
        let mut last = (pair.packets[0], SYN);
        let mut waited = 0;
        for step in steps {
            match step {
                Step::Packet { which, flags, cpu } => {
                    last = (pair.packets[which % pair.packets.len()], flags);
                    pair.send(last.0, last.1, cpu);
                }
                Step::Repeat { count, cpu } => (0..count).for_each(|_| {
                    pair.send(last.0, last.1, cpu);
                }),
                Step::Connect { which, cpu } => {
                    last = (pair.packets[which], ACK);
                    pair.connect(last.0, cpu);
                }
                Step::Wait(ticks) if waited + ticks <= SHORT_WAITS => {
                    waited += ticks;
                    pair.nodes.iter().for_each(|node| node.pass(ticks));
                }
                Step::Wait(_) => {}
                Step::Silence => pair.nodes.iter().for_each(|node| node.pass(SILENCE * HZ)),
                Step::Sweep => pair.nodes.iter().for_each(Node::sweep),
                Step::Serve(set) => pair.nodes.iter_mut().for_each(|node| serve(node, BACKENDS[set])),
            }
        }
        let [remembers, looks_up] = &pair.nodes;
        prop_assert_eq!(remembers.counted(), looks_up.counted());
        prop_assert_eq!(&*remembers.drops.borrow(), &*looks_up.drops.borrow());
    }
}

/// Asks of the flow table that a packet caused.
fn lookups(node: &Node, packet: At, flags: TcpFlags) -> usize {
    let before = node.lookups.get();
    assert!(matches!(packet.decide(node, flags), Verdict::Rewrite(_)), "{packet:?}");
    node.lookups.get() - before
}

/// A connection that has just been established, with its client's packet and its backend's.
fn connected(node: &Node) -> [At; 2] {
    let there = At::ingress(CLIENT, WEB, TCP, POD_DEVICE);
    let routed = there.next(there.decide(node, SYN)).unwrap().key;
    let back = FlowKey::new(routed.destination_end(), routed.source_end(), TCP, Hook::EGRESS);
    let back = At { key: back, device: POD_DEVICE, masquerade: false };
    lookups(node, back, SYN_ACK);
    lookups(node, there, ACK);
    [there, back]
}

#[test]
fn a_busy_flow_asks_the_table_twice_in_a_tenth_of_a_second_on_each_cpu() {
    let node = node(true);
    for packet in connected(&node) {
        for cpu in [0, 1] {
            node.cpu.set(cpu);
            assert!(lookups(&node, packet, ACK) > 0, "the first packet on this CPU");
            lookups(&node, packet, ACK);
            for tick in 0..LIFETIME {
                assert_eq!(lookups(&node, packet, ACK), 0, "{cpu} {tick}");
                node.pass(1);
            }
            assert!(lookups(&node, packet, ACK) > 0, "it is too long ago");
            assert!(lookups(&node, packet, ACK) > 0, "what the table knew of the flow was as old");
            assert_eq!(lookups(&node, packet, ACK), 0, "renewed");
        }
    }
}

#[test]
fn a_slow_flow_takes_no_place() {
    let node = node(true);
    let [packet, _] = connected(&node);
    for _ in 0..5 {
        node.pass(2);
        assert!(lookups(&node, packet, ACK) > 0);
    }
}

#[test]
fn a_flow_that_ends_is_forgotten_by_all_cpus_in_both_directions() {
    let node = node(true);
    let both = connected(&node);
    for cpu in [0, 1] {
        node.cpu.set(cpu);
        for packet in both {
            lookups(&node, packet, ACK);
            assert_eq!(lookups(&node, packet, ACK), 0);
        }
    }
    lookups(&node, both[0], RST);
    assert_eq!(node.state_of(CLIENT, WEB), Some(FlowState::RESET));
    for cpu in [0, 1] {
        node.cpu.set(cpu);
        for packet in both {
            assert!(lookups(&node, packet, ACK) > 0);
        }
    }
}

/// A client of a backend's node that died dials anew: its SYN takes the connection to another backend.
#[test]
fn what_follows_a_connection_that_moved_goes_where_it_went() {
    let mut node = node(true);
    serve(&mut node, BACKENDS[1]);
    let [packet, _] = connected(&node);
    lookups(&node, packet, ACK);
    assert_eq!(lookups(&node, packet, ACK), 0);
    serve(&mut node, BACKENDS[2]);
    assert_eq!(lookups(&node, packet, ACK), 0, "TCP keeps its backend");
    node.cpu.set(1);
    let moved = packet.decide(&node, SYN);
    node.cpu.set(0);
    assert_eq!(packet.decide(&node, ACK), moved);
}

/// The property above holds for shortcuts only if some are taken.
#[test]
fn what_comes_from_outside_goes_past_the_stack_in_both_directions() {
    let mut pair = Pair::new();
    // On another node.
    pair.nodes.iter_mut().for_each(|node| serve(node, BACKENDS[1]));
    for which in [3, 4] {
        let there = pair.packets[which];
        pair.connect(there, 0);
        let before = pair.gone_through;
        let back = pair.send(there, ACK, 0).unwrap();
        let again = pair.send(back, ACK, 0).unwrap();
        assert_eq!((again.key, pair.gone_through), (there.key, before + 2));
        let lookups = pair.nodes[0].lookups.get();
        pair.send(there, ACK, 0);
        pair.send(back, ACK, 0);
        assert_eq!((pair.nodes[0].lookups.get(), pair.gone_through), (lookups, before + 4), "remembered");
    }
}
