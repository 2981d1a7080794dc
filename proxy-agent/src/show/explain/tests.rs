//! Explanations of tables that are made by hand.

use std::net::{IpAddr, SocketAddr};

use proxy_common::{
    addr::Addr,
    addresses::AddressFlags,
    affinity::{Affinity, AffinityKey},
    backend::{Backend, BackendFlags, BackendId, Generation},
    config::{Network, NodeSettings, SocketSettings},
    device::{Device, DeviceFlags},
    filter::{AddressRoles, FilterPosition},
    frontend::{Frontend, FrontendFlags, FrontendKey, ServiceId, SlotRun},
    pod::{Levels, PodReason, PodReasons},
    ranges::SourceRange,
    time::Ticks,
    tuple::Protocol,
};

use super::{
    AttachedHook, Explanation, Outcome, Path, Target, compose,
    decide::{Client, end},
    source::Asker,
    view::View,
};
use crate::show::{Paint, Show as _, names::Names};

const WEB: ServiceId = ServiceId(7);
const PODS: u32 = 5;
const UPLINK: u32 = 2;
const VIP: &str = "10.96.0.10:80";
const NODE_PORT: &str = "192.0.2.1:30080";
const SERVED: AddressRoles = AddressRoles::FRONTEND.with(AddressRoles::NODE);

/// A node with a service, two backends, and a record of a third.
struct Scene {
    view: View,
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn target(text: &str) -> Target {
    Target { end: text.parse().unwrap(), protocol: Protocol::TCP }
}

impl Scene {
    /// The first backend is on the node.
    fn new(flags: FrontendFlags) -> Self {
        let mut view = View::empty(NodeSettings::new(100), Ticks(1_000_000));
        let uplink = Device { source_v4: ip("192.0.2.1").into(), ..Device::default() };
        view.devices.insert(UPLINK, uplink);
        view.devices.insert(PODS, Device { flags: DeviceFlags::LOCAL_CLIENTS, ..uplink });
        let mut scene = Self { view };
        let near = BackendFlags::LOCAL.with(BackendFlags::LOCAL_SET);
        scene.add_backend(1, "10.244.1.5:8080", near.with(BackendFlags::CLUSTER_SET));
        scene.add_backend(2, "10.244.2.7:8080", BackendFlags::CLUSTER_SET);
        scene.add_backend(3, "10.244.2.8:8080", BackendFlags::default());
        let frontend = Frontend {
            service: WEB,
            flags,
            affinity: 0,
            slots: SlotRun { base: 0, count: 2 },
            outside: SlotRun { base: 0, count: 1 },
        };
        for end in [VIP, NODE_PORT] {
            scene.add_frontend(end, frontend);
        }
        scene.view.slots.extend([(0, BackendId(1)), (1, BackendId(2))]);
        scene
    }

    fn add_backend(&mut self, id: u32, address: &str, flags: BackendFlags) {
        let end = end(address.parse().unwrap());
        let flags = BackendFlags::LIVE.with(flags);
        let record = Backend {
            address: end.address,
            port: end.port,
            flags,
            generation: Generation(1),
            service: WEB,
            reserved: 0,
        };
        self.view.backends.insert(BackendId(id), record);
    }

    fn add_frontend(&mut self, text: &str, frontend: Frontend) {
        let Target { end: address, protocol } = target(text);
        let (end, is_vip) = (end(address), text == VIP);
        let (facts, key) = if is_vip {
            (AddressFlags::CLUSTER_IP, FrontendKey::new(end, protocol))
        } else {
            (AddressFlags::NODE.with(AddressFlags::NODE_PORTS), FrontendKey::node_port(end, protocol))
        };
        self.view.addresses.insert(end.address, facts);
        self.view.frontends.insert(key, frontend);
        let FilterPosition { line, at } = FilterPosition::of(end.address);
        self.view.filter.entry(line).or_default().roles[at] = SERVED;
    }

    /// What is explained to a client behind a device.
    fn explain(&self, client: &str, device: u32, to: &str) -> Explanation {
        self.explain_from(client, None, device, to)
    }

    /// The same to one that has said which port it comes from.
    fn explain_from(&self, client: &str, port: Option<u16>, device: u32, to: &str) -> Explanation {
        let ingress = AttachedHook { program: "sluice_ingress", id: Some(40) };
        let asker = Asker {
            client: Client { address: Some(ip(client)), port, device, at_socket: false },
            device_name: Some(if device == PODS { "veth5" } else { "eth0" }.to_owned()),
            device_found: Some("given"),
            pod: None,
            socket_hooks: Vec::new(),
            ingress: Some(ingress),
        };
        self.ask(&asker, to)
    }

    fn ask(&self, asker: &Asker, to: &str) -> Explanation {
        let names = Names::from([(7, "default/web:http/TCP/IPv4")]);
        compose::compose(&self.view, &target(to), asker, &names)
    }
}

fn possible(explanation: &Explanation) -> Vec<String> {
    let possible = explanation.backends.iter().filter(|candidate| candidate.possible);
    possible.map(|candidate| candidate.address.to_string()).collect()
}

#[test]
fn sources_are_rewritten_for_the_reason_that_is_told() {
    let plain = FrontendFlags::default();
    for (flags, client, device) in [
        (plain, "10.244.1.9", PODS),
        (plain, "10.244.1.5", PODS),
        (plain, "192.0.2.77", UPLINK),
        (plain, "10.244.2.7", UPLINK),
        (FrontendFlags::MASQUERADE, "10.244.1.9", PODS),
        (FrontendFlags::MASQUERADE, "192.0.2.77", UPLINK),
    ] {
        let explanation = Scene::new(flags).explain(client, device, VIP);
        assert_eq!(possible(&explanation).len(), 2);
        for candidate in explanation.backends.iter().filter(|candidate| candidate.possible) {
            let is_told = candidate.masqueraded_why.is_some();
            assert_eq!(candidate.masqueraded, Some(is_told), "{flags:?} {client}: {candidate:?}");
        }
    }
}

#[test]
fn the_dice_decide_between_all_backends_of_the_set_and_no_others() {
    let mut scene = Scene::new(FrontendFlags::BY_ORIGIN);
    let both = ["10.244.1.5:8080", "10.244.2.7:8080"];
    assert_eq!(possible(&scene.explain("192.0.2.77", UPLINK, NODE_PORT)), both[..1]);
    scene.view.settings.pod_networks[0] = Network::new(ip("10.244.0.0").into(), 16);
    let inside = scene.explain("10.244.2.9", UPLINK, NODE_PORT);
    assert_eq!(possible(&inside), both);
    assert_eq!(
        inside.origin.as_ref().map(|origin| origin.why.as_str()),
        Some("in the pod network 10.244.0.0/16")
    );
    assert_eq!(inside.backends.len(), 3);
    let left_out = inside.backends.iter().find(|candidate| !candidate.in_set).unwrap();
    assert_eq!(left_out.why_not.as_deref(), Some("not ready: keeps the flows that it has"));
}

#[test]
fn a_frontend_that_the_filter_does_not_know_is_passed_by() {
    let mut scene = Scene::new(FrontendFlags::default());
    scene.view.filter.clear();
    let explanation = scene.explain("10.244.1.9", PODS, VIP);
    assert_eq!(explanation.verdict.outcome, Outcome::Passed);
    assert!(explanation.frontend.is_none());
}

#[test]
fn pods_whose_sockets_are_served_are_answered_there_unless_packets_must_decide() {
    let at_socket = |flags: FrontendFlags, reason| {
        let mut scene = Scene::new(flags);
        scene.view.settings.sockets =
            SocketSettings { pods: PodReasons::KNOWN, levels: Levels::new([3]), ..SocketSettings::OFF };
        scene.view.pod = Some(PodReasons::of(reason));
        let hook = |program| AttachedHook { program, id: None };
        let asker = Asker {
            client: Client { address: Some(ip("10.244.1.9")), port: None, device: PODS, at_socket: true },
            device_name: None,
            device_found: None,
            pod: scene.view.pod,
            socket_hooks: vec![hook("sluice_connect4")],
            ingress: Some(hook("sluice_ingress")),
        };
        scene.ask(&asker, VIP)
    };
    for (flags, reason, path) in [
        (FrontendFlags::default(), PodReason::Eligible, Path::Socket),
        (FrontendFlags::default(), PodReason::ServiceMesh, Path::Tc),
        (FrontendFlags::MASQUERADE, PodReason::Eligible, Path::Tc),
    ] {
        let explanation = at_socket(flags, reason);
        assert_eq!((explanation.path, possible(&explanation).len()), (path, 2), "{flags:?} {reason:?}");
        let text = explanation.table(Paint::Plain);
        assert!(text.contains(&format!("; the client's pod is {}", reason.as_str())), "{text}");
    }
}

#[test]
fn a_process_bound_to_a_clusterip_of_the_node_comes_first() {
    let mut scene = Scene::new(FrontendFlags::default());
    let both = AddressFlags::CLUSTER_IP.with(AddressFlags::NODE);
    scene.view.addresses.insert(end(VIP.parse().unwrap()).address, both);
    let served = scene.explain("10.244.1.9", PODS, VIP);
    assert_eq!(served.verdict.outcome, Outcome::Served);
    scene.view.listens = true;
    let passed = scene.explain("10.244.1.9", PODS, VIP);
    assert_eq!(passed.verdict.outcome, Outcome::Passed);
    assert!(passed.verdict.text.contains("a process of the node listens"), "{passed:#?}");
}

#[test]
fn people_see_the_way_from_the_client_to_the_verdict() {
    let restricted = FrontendFlags::BY_ORIGIN.with(FrontendFlags::RESTRICTED);
    let mut scene = Scene::new(restricted);
    scene.view.ranges.push(SourceRange::new(WEB, ip("192.0.2.0").into(), 24));
    for frontend in scene.view.frontends.values_mut() {
        (frontend.affinity, frontend.outside.count) = (600, 2);
    }
    let client = Addr::from(ip("192.0.2.77"));
    let used_to =
        Affinity { backend: BackendId(1), generation: Generation(1), last: Ticks(1_000_000 - 6_100) };
    scene.view.affinities.insert(AffinityKey { client, service: WEB }, used_to);
    let expected = "\
client    192.0.2.77, through eth0 (an uplink; given)
to        192.0.2.1:30080/TCP, a NodePort of default/web:http/TCP/IPv4
decided   as its packets enter the node, by sluice_ingress (40)
sources   the service's source ranges admit 192.0.2.77: 192.0.2.0/24
origin    outside the cluster: nothing tells pods from others (--cluster-cidr, --detect-local-mode)
set       local, 2 backends: externalTrafficPolicy is Local
affinity  10m; used to 10.244.1.5:8080, last connection 1m1s ago
verdict   goes to 10.244.1.5:8080, which the client is used to

BACKEND          WHERE      STATE     IN SET  SOURCE  WHY
10.244.1.5:8080  here       serving   yes     kept
10.244.2.7:8080  elsewhere  serving   yes     -       the client is used to another backend
10.244.2.8:8080  elsewhere  draining  no      -       on another node";
    assert_eq!(scene.explain("192.0.2.77", UPLINK, NODE_PORT).table(Paint::Plain), expected);

    let expected = "\
client    198.51.100.7, through eth0 (an uplink; given)
to        192.0.2.1:30080/TCP, a NodePort of default/web:http/TCP/IPv4
decided   as its packets enter the node, by sluice_ingress (40)
sources   the service's source ranges do not admit 198.51.100.7: 192.0.2.0/24
origin    outside the cluster: nothing tells pods from others (--cluster-cidr, --detect-local-mode)
set       local, 2 backends: externalTrafficPolicy is Local
affinity  10m; the client is new
verdict   is dropped without a word: the client is in none of loadBalancerSourceRanges
";
    let refused = scene.explain("198.51.100.7", UPLINK, NODE_PORT).table(Paint::Plain);
    assert!(refused.starts_with(expected), "{refused}");

    let unknown = scene.explain("192.0.2.77", UPLINK, "10.96.0.10:81").table(Paint::Plain);
    let to: SocketAddr = "10.96.0.10:81".parse().unwrap();
    let expected = format!(
        "to        {to}/TCP, no frontend; served at that address are 80/TCP\n\
         decided   as its packets enter the node, by sluice_ingress (40)\n\
         verdict   is refused at once: the Service has no such port or protocol; clients are told"
    );
    assert!(unknown.ends_with(&expected), "{unknown}");
}

/// To a backend on another node, a client outside is itself.
#[test]
fn a_client_keeps_its_address_where_backends_nodes_answer() {
    let scene = Scene::new(FrontendFlags::DSR);
    let explanation = scene.explain("198.51.100.7", UPLINK, NODE_PORT);
    assert!(explanation.set.is_some_and(|set| set.dsr), "{:?}", explanation.set);
    let possible: Vec<_> = explanation.backends.iter().filter(|row| row.possible).collect();
    assert!(possible.len() > 1 && possible.iter().all(|row| row.masqueraded == Some(false)), "{possible:?}");
    let masqueraded = Scene::new(FrontendFlags::default()).explain("198.51.100.7", UPLINK, NODE_PORT);
    assert!(masqueraded.backends.iter().any(|row| row.masqueraded == Some(true)), "not without it");
}

#[test]
fn a_maglev_table_leads_each_port_to_one_backend() {
    let mut scene = Scene::new(FrontendFlags::MAGLEV);
    for slot in 0..251 {
        scene.view.slots.insert(10 + slot, BackendId(1 + slot % 2));
    }
    for frontend in scene.view.frontends.values_mut() {
        frontend.slots = SlotRun { base: 10, count: 251 };
    }
    let from_any_port = scene.explain("198.51.100.7", UPLINK, NODE_PORT);
    assert_eq!(from_any_port.set.map(|set| (set.by_hash, set.backends)), Some((true, 2)));
    assert_eq!(
        from_any_port.verdict.text,
        "goes to one of 2 backends, by the hash of its address and port: --from IP:PORT tells which"
    );
    let reached: Vec<_> = (40_000..40_016)
        .map(|port| {
            let explanation = scene.explain_from("198.51.100.7", Some(port), UPLINK, NODE_PORT);
            let possible: Vec<_> =
                explanation.backends.iter().filter(|row| row.possible).map(|row| row.address).collect();
            let [only] = possible[..] else { panic!("{port}: {possible:?}") };
            let text = format!("goes to {only}, by the hash of its address and port");
            assert_eq!(explanation.verdict.text, text);
            let other = explanation.backends.iter().find(|row| row.in_set && !row.possible).unwrap();
            let why = "the hash of the client's port leads to another backend";
            assert_eq!(other.why_not.as_deref(), Some(why));
            only
        })
        .collect();
    assert!(reached.iter().any(|backend| *backend != reached[0]), "{reached:?}");
}
