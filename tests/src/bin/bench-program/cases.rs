//! What is measured.

use std::net::SocketAddr;

use anyhow::{Context as _, Result, ensure};
use proxy_agent::datapath::Program;
use proxy_common::{
    backend::BackendId,
    frontend::{FrontendFlags, ServiceId},
    tuple::Protocol,
};
use sluice_tests::{
    bench::summary::Summary,
    kernel::Kernel,
    machine,
    packets::{Frame, Transport, flags},
    uplink::Uplink,
};

use crate::{
    Args,
    driver::{Driver, Flows, Hook, Target},
    report::{Figure, Report},
};

/// New flows of one measurement: fewer than the table holds, and than the driver can tell apart.
const NEW_FLOWS: u32 = 100_000;
/// Of a middling Maglev table.
const MAGLEV_SLOTS: usize = 16_381;
/// Flows that take turns, where there are many.
const MANY: u32 = 1 << 16;
const FLOOR: &str = "floor, IPv4 TCP";
const SERVICE: ServiceId = ServiceId(1);
/// `XDP_TX`: sent on.
const TX: u32 = 3;
/// `TC_ACT_SHOT`: dropped.
const SHOT: u32 = 2;

/// Goals, in nanoseconds.
const TC: f64 = 50.0;
const XDP: f64 = 45.0;
const NOT_OURS: f64 = 8.0;
const NEW: f64 = 700.0;
const OF_MANY: f64 = 150.0;
const REFUSED: f64 = 150.0;

/// Measures everything.
pub(crate) fn measure(args: &Args) -> Result<Report> {
    let mut bench = Bench { driver: Driver::load(&args.object)?, args, cases: Vec::new() };
    for v6 in [false, true] {
        for protocol in [Protocol::TCP, Protocol::UDP] {
            bench.stack(v6, protocol)?;
        }
    }
    for v6 in [false, true] {
        for protocol in [Protocol::TCP, Protocol::UDP] {
            bench.uplink(v6, protocol)?;
        }
    }
    let device = nix::net::if_::if_nametoindex("up0")?;
    let hooks = [Hook::Tc, Hook::Xdp { device }];
    let frame = Frame::tcp("10.244.1.9:40000".parse()?, "10.96.0.10:80".parse()?, flags::ACK);
    for (hook, name, case) in [
        (Hook::Tc, "floor_parse", "tc: parse only"),
        (Hook::Tc, "floor_miss", "tc: parse, a hash lookup that misses"),
        (Hook::Tc, "floor_miss_long", "tc: the same with a key of 40 bytes, as flows have"),
        (Hook::Tc, "floor_dnat", "tc: parse, hash lookup, DNAT with the checksum by helper"),
        (hooks[1], "xdp_floor_dnat", "XDP: parse, hash lookup, DNAT"),
    ] {
        let target = bench.driver.program(name, hook)?;
        bench.figure(FLOOR, case, &target, &frame, None)?;
    }
    for (hook, name, case) in [(Hook::Tc, "floor_dnat", "tc"), (hooks[1], "xdp_floor_dnat", "XDP")] {
        let target = bench.driver.program(name, hook)?;
        bench.driver.prepare(&frame, Flows::Many(u64::from(MANY)))?;
        bench.driver.time(&target, MANY)?;
        bench.many(FLOOR, &format!("{case}: the same, one of {MANY} flows"), &target, None)?;
    }
    let mut overhead = [0.0; 2];
    for (overhead, hook) in overhead.iter_mut().zip(hooks) {
        let empty = bench.driver.empty(hook)?;
        bench.driver.prepare(&frame, Flows::One)?;
        let runs = (0..args.runs).map(|_| bench.driver.time(&empty, args.packets));
        *overhead = Summary::of(runs.collect::<Result<_>>()?).context("no runs")?.median;
    }
    let Bench { cases, .. } = bench;
    let (kernel, cpu) = (machine::kernel()?, machine::cpu());
    Ok(Report { kernel, cpu, runs: args.runs, packets: args.packets, overhead, cases })
}

struct Bench<'a> {
    driver: Driver,
    args: &'a Args,
    cases: Vec<Figure>,
}

impl Bench<'_> {
    /// At the tc hooks: a pod asks a ClusterIP.
    fn stack(&mut self, v6: bool, protocol: Protocol) -> Result<()> {
        let parse = |v4: &str, v6_text: &str| if v6 { v6_text.parse() } else { v4.parse() };
        let client: SocketAddr = parse("10.244.1.9:40000", "[fd00:244:1::9]:40000")?;
        let vip = parse("10.96.0.10:80", "[fd00:96::10]:80")?;
        let backend = parse("10.244.2.6:9090", "[fd00:244:2::6]:9090")?;
        let stranger = parse("192.0.2.77:80", "[2001:db8::77]:80")?;
        let mut kernel = Kernel::load()?;
        kernel.set_new_flow_limit(0)?;
        kernel.serve(SERVICE, vip, protocol, 1, &[backend])?;
        let is_tcp = protocol == Protocol::TCP;
        let frame = |source, destination, tcp_flags| {
            Frame::new(source, destination, if is_tcp { Transport::Tcp(tcp_flags) } else { Transport::Udp })
        };
        let group = group("tc", v6, protocol);
        kernel.run(Program::Ingress, &frame(client, vip, flags::SYN).bytes())?;
        kernel.run(Program::Egress, &frame(backend, client, flags::SYN | flags::ACK).bytes())?;
        kernel.run(Program::Ingress, &frame(client, vip, flags::ACK).bytes())?;
        for (program, case, frame, goal) in [
            (Program::Ingress, "request, existing flow", frame(client, vip, flags::ACK), TC),
            (Program::Egress, "reply, existing flow", frame(backend, client, flags::ACK), TC),
            (Program::Ingress, "not ours, entering", frame(client, stranger, flags::ACK), NOT_OURS),
            (Program::Egress, "not ours, leaving", frame(client, stranger, flags::ACK), NOT_OURS),
        ] {
            let target = stack_program(&mut kernel, program)?;
            self.figure(&group, case, &target, &frame, Some(goal))?;
        }
        if !is_tcp {
            self.many_flows(&group, &mut kernel, &frame(client, vip, 0))?;
        }
        let opens = frame(client, vip, flags::SYN);
        self.new_flows(&group, "new flow", &mut kernel, &opens)?;
        self.refused_flows(&group, &mut kernel, &opens)?;
        kernel.template.flags = FrontendFlags::MAGLEV;
        kernel.serve(SERVICE, vip, protocol, 1, &[backend])?;
        kernel.set_slots(vip, protocol, &[BackendId(1); MAGLEV_SLOTS])?;
        self.new_flows(&group, "new flow, by hash", &mut kernel, &opens)
    }

    /// Before the stack: somebody outside asks a NodePort whose backend is on another node.
    fn uplink(&mut self, v6: bool, protocol: Protocol) -> Result<()> {
        let mut uplink = Uplink::new(v6, protocol)?;
        let (hook, program) =
            (Hook::Xdp { device: uplink.device }, uplink.kernel.xdp_program(uplink.mode)?.fd()?.try_clone()?);
        let target = Target { program, hook, action: TX };
        let group = group("XDP", v6, protocol);
        let [(request, ..), (reply, ..)] = uplink.both_ways();
        for (case, frame) in [("request, sent on", &request), ("reply, sent on", &reply)] {
            self.figure(&group, case, &target, frame, Some(XDP))?;
        }
        let elsewhere = SocketAddr::new(uplink.client.ip(), 80);
        let stranger = Frame { destination: elsewhere, ..request };
        self.figure(&group, "not ours", &Target { action: hook.pass(), ..target }, &stranger, Some(NOT_OURS))
    }

    /// One flow.
    fn figure(
        &mut self,
        group: &str,
        case: &str,
        target: &Target,
        frame: &Frame,
        goal: Option<f64>,
    ) -> Result<()> {
        if !self.wants(group, case) {
            return Ok(());
        }
        let empty = self.driver.empty(target.hook)?;
        self.driver.prepare(frame, Flows::One)?;
        self.driver.time(target, self.args.packets / 10 + 1)?;
        let nets = (0..self.args.runs).map(|_| self.net(target, &empty, self.args.packets));
        let nets = nets.collect::<Result<_>>()?;
        self.note(group, case, nets, goal)
    }

    /// Flows that exist, each of which waits for all others' packets.
    fn many_flows(&mut self, group: &str, kernel: &mut Kernel, frame: &Frame) -> Result<()> {
        let target = stack_program(kernel, Program::Ingress)?;
        kernel.clear_flows()?;
        self.driver.prepare(frame, Flows::Many(u64::from(MANY)))?;
        self.driver.time(&target, MANY)?;
        expect_flows(kernel, MANY)?;
        self.many(group, &format!("request, one of {MANY} flows"), &target, Some(OF_MANY))?;
        expect_flows(kernel, MANY)
    }

    /// The driver is prepared for many flows, and they exist.
    fn many(&mut self, group: &str, case: &str, target: &Target, goal: Option<f64>) -> Result<()> {
        if !self.wants(group, case) {
            return Ok(());
        }
        let empty = self.driver.empty(target.hook)?;
        let packets = self.args.packets.max(MANY);
        let nets = (0..self.args.runs).map(|_| self.net(target, &empty, packets)).collect::<Result<_>>()?;
        self.note(group, case, nets, goal)
    }

    /// Every packet opens a flow; between measurements they are removed.
    fn new_flows(&mut self, group: &str, case: &str, kernel: &mut Kernel, frame: &Frame) -> Result<()> {
        if !self.wants(group, case) {
            return Ok(());
        }
        let target = stack_program(kernel, Program::Ingress)?;
        let empty = self.driver.empty(target.hook)?;
        let mut nets = Vec::new();
        for _ in 0..self.args.runs.min(5) {
            kernel.clear_flows()?;
            self.driver.prepare(frame, Flows::New)?;
            let gross = self.driver.time(&target, NEW_FLOWS)?;
            expect_flows(kernel, NEW_FLOWS)?;
            self.driver.prepare(frame, Flows::New)?;
            nets.push(gross - self.driver.time(&empty, NEW_FLOWS)?);
        }
        self.note(group, case, nets, Some(NEW))
    }

    /// Every packet would open a flow, and next to none may.
    fn refused_flows(&mut self, group: &str, kernel: &mut Kernel, frame: &Frame) -> Result<()> {
        let case = "new flow, beyond the limit";
        if !self.wants(group, case) {
            return Ok(());
        }
        let target = Target { action: SHOT, ..stack_program(kernel, Program::Ingress)? };
        let empty = self.driver.empty(Hook::Tc)?;
        let mut nets = Vec::new();
        kernel.set_new_flow_limit(1)?;
        for _ in 0..self.args.runs {
            kernel.clear_flows()?;
            self.driver.prepare(frame, Flows::New)?;
            let gross = self.driver.time(&target, NEW_FLOWS)?;
            self.driver.prepare(frame, Flows::New)?;
            nets.push(gross - self.driver.time(&empty, NEW_FLOWS)?);
        }
        kernel.set_new_flow_limit(0)?;
        self.note(group, case, nets, Some(REFUSED))
    }

    fn wants(&self, group: &str, case: &str) -> bool {
        format!("{group}: {case}").contains(&self.args.only)
    }

    /// Nanoseconds per packet without those of an empty program.
    fn net(&mut self, target: &Target, empty: &Target, packets: u32) -> Result<f64> {
        let gross = self.driver.time(target, packets)?;
        Ok(gross - self.driver.time(empty, packets)?)
    }

    fn note(&mut self, group: &str, case: &str, nets: Vec<f64>, target: Option<f64>) -> Result<()> {
        let net = Summary::of(nets).context("no runs")?;
        self.cases.push(Figure { group: group.to_owned(), case: case.to_owned(), net, target });
        Ok(())
    }
}

fn stack_program(kernel: &mut Kernel, program: Program) -> Result<Target> {
    let program = kernel.program(program)?.fd()?.try_clone()?;
    Ok(Target { program, hook: Hook::Tc, action: Hook::Tc.pass() })
}

/// Each flow is two entries.
fn expect_flows(kernel: &Kernel, flows: u32) -> Result<()> {
    let (entries, drops) = (kernel.flows()?.len(), kernel.drops()?);
    ensure!(entries == 2 * flows as usize, "{flows} flows made {entries} entries; drops: {drops:?}");
    Ok(())
}

fn group(hook: &str, v6: bool, protocol: Protocol) -> String {
    let transport = if protocol == Protocol::TCP { "TCP" } else { "UDP" };
    format!("{hook}, {} {transport}", if v6 { "IPv6" } else { "IPv4" })
}
