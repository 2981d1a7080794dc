//! `cargo xtask bench program`: nanoseconds per packet of the kernel programs, beside the floor.
//!
//! Every figure is net: the same driver in front of an empty program is measured in turn with each target and
//! subtracted, run by run, so that a drift of the machine's speed hits both alike.

use std::{io::Write as _, path::PathBuf, time::Duration};

use anyhow::{Context as _, Result, ensure};
use aya::{
    Ebpf,
    maps::{Array, MapData, ProgramArray},
    programs::{ProgramFd, SchedClassifier, TestRun as _, TestRunOptions},
};
use clap::Parser;
use nix::time::{ClockId, clock_gettime};
use proxy_agent::datapath::Program;
use proxy_common::{
    backend::BackendId,
    frontend::{FrontendFlags, ServiceId},
    tuple::Protocol,
};
use serde::Serialize;
use sluice_tests::{
    harness,
    kernel::Kernel,
    machine,
    packets::{Frame, Transport, flags},
};

/// Nanoseconds per packet of the kernel programs, beside the floor.
#[derive(Parser)]
struct Args {
    /// One JSON object instead of a table
    #[arg(long)]
    json: bool,
    /// Measurements of each case; the median counts
    #[arg(long, default_value_t = 31)]
    runs: usize,
    /// Packets of each measurement
    #[arg(long, default_value_t = 200_000)]
    packets: u32,
    /// The object with driver and floor programs
    #[arg(long, default_value = concat!(env!("CARGO_MANIFEST_DIR"), "/../target/bpf/sluice-bench.o"))]
    object: PathBuf,
}

/// What was measured.
#[derive(Serialize)]
struct Report {
    kernel: String,
    cpu: String,
    runs: usize,
    packets: u32,
    /// Loop, driver and tail call, nanoseconds; subtracted from every figure.
    overhead: f64,
    cases: Vec<Figure>,
}

/// One row, in net nanoseconds per packet.
#[derive(Serialize)]
struct Figure {
    group: &'static str,
    case: String,
    median: f64,
    min: f64,
    /// What it is meant to stay under.
    target: Option<f64>,
}

/// Bytes that the driver restores.
const RESTORED: usize = 96;
/// New flows of one measurement: fewer than the table holds, and than the driver can tell apart.
const NEW_FLOWS: u32 = 100_000;
/// Of a middling Maglev table.
const MAGLEV_SLOTS: usize = 16_381;
const SERVICE: ServiceId = ServiceId(1);

struct Bench {
    ebpf: Ebpf,
    kernel: Kernel,
    args: Args,
    empty: ProgramFd,
    /// The frame that the driver restores; the kernel takes the skb's protocol from the one it is given.
    frame: Vec<u8>,
}

fn main() -> Result<()> {
    let args = Args::parse();
    harness::requirements()?;
    let mut bench = Bench::load(args)?;
    let report = bench.measure_all()?;
    let text = if bench.args.json { serde_json::to_string_pretty(&report)? } else { table(&report) };
    writeln!(std::io::stdout(), "{text}")?;
    Ok(())
}

impl Bench {
    fn load(args: Args) -> Result<Self> {
        let object = std::fs::read(&args.object)
            .with_context(|| format!("{}: run `cargo xtask build`", args.object.display()))?;
        let kernel = Kernel::load()?;
        let mut ebpf = Ebpf::load(&object)?;
        let names: Vec<_> = ebpf.programs().map(|(name, _)| name.to_owned()).collect();
        for name in &names {
            find(&mut ebpf, name)?.load()?;
        }
        let empty = find(&mut ebpf, "empty")?.fd()?.try_clone()?;
        Ok(Self { ebpf, kernel, args, empty, frame: Vec::new() })
    }

    fn measure_all(&mut self) -> Result<Report> {
        let mut cases = Vec::new();
        for v6 in [false, true] {
            for protocol in [Protocol::TCP, Protocol::UDP] {
                self.measure_family(v6, protocol, &mut cases)?;
            }
        }
        let frame = Frame::tcp("10.244.1.9:40000".parse()?, "10.96.0.10:80".parse()?, flags::ACK);
        for (name, case) in [
            ("floor_parse", "parse only"),
            ("floor_miss", "parse, one hash lookup that misses"),
            ("floor_dnat", "parse, hash lookup, DNAT with the checksum by helper"),
        ] {
            let target = find(&mut self.ebpf, name)?.fd()?.try_clone()?;
            let (median, min) = self.net(&target, &frame)?;
            cases.push(Figure { group: "floor, IPv4 TCP", case: case.to_owned(), median, min, target: None });
        }
        let (overhead, _) = self.gross(&self.empty.try_clone()?, &frame)?;
        Ok(Report {
            kernel: machine::kernel()?,
            cpu: machine::cpu(),
            runs: self.args.runs,
            packets: self.args.packets,
            overhead,
            cases,
        })
    }

    fn measure_family(&mut self, v6: bool, protocol: Protocol, cases: &mut Vec<Figure>) -> Result<()> {
        let parse = |v4: &str, v6_text: &str| if v6 { v6_text.parse() } else { v4.parse() };
        let client = parse("10.244.1.9:40000", "[fd00:244:1::9]:40000")?;
        let vip = parse("10.96.0.10:80", "[fd00:96::10]:80")?;
        let backend = parse("10.244.2.6:9090", "[fd00:244:2::6]:9090")?;
        let stranger = parse("192.0.2.77:80", "[2001:db8::77]:80")?;
        self.kernel.serve(SERVICE, vip, protocol, 1, &[backend])?;
        let tcp = protocol == Protocol::TCP;
        let frame = |source, destination, tcp_flags| {
            Frame::new(source, destination, if tcp { Transport::Tcp(tcp_flags) } else { Transport::Udp })
        };
        let group = match (v6, tcp) {
            (false, true) => "IPv4 TCP",
            (false, false) => "IPv4 UDP",
            (true, true) => "IPv6 TCP",
            (true, false) => "IPv6 UDP",
        };
        self.kernel.run(Program::Ingress, &frame(client, vip, flags::SYN).bytes())?;
        self.kernel.run(Program::Egress, &frame(backend, client, flags::SYN | flags::ACK).bytes())?;
        self.kernel.run(Program::Ingress, &frame(client, vip, flags::ACK).bytes())?;
        for (program, name, frame, target) in [
            (Program::Ingress, "request, existing flow", frame(client, vip, flags::ACK), 100.0),
            (Program::Egress, "reply, existing flow", frame(backend, client, flags::ACK), 100.0),
            (Program::Ingress, "not ours, entering", frame(client, stranger, flags::ACK), 25.0),
            (Program::Egress, "not ours, leaving", frame(client, stranger, flags::ACK), 25.0),
        ] {
            let fd = self.kernel.program(program)?.fd()?.try_clone()?;
            let (median, min) = self.net(&fd, &frame)?;
            cases.push(Figure { group, case: name.to_owned(), median, min, target: Some(target) });
        }
        let (median, min) = self.new_flows(&frame(client, vip, flags::SYN))?;
        cases.push(Figure { group, case: "new flow".to_owned(), median, min, target: None });
        self.kernel.template.flags = FrontendFlags::MAGLEV;
        self.kernel.serve(SERVICE, vip, protocol, 1, &[backend])?;
        self.kernel.set_slots(vip, protocol, &[BackendId(1); MAGLEV_SLOTS])?;
        let (median, min) = self.new_flows(&frame(client, vip, flags::SYN))?;
        cases.push(Figure { group, case: "new flow, by hash".to_owned(), median, min, target: None });
        self.kernel.template.flags = FrontendFlags::default();
        self.kernel.clear_flows()
    }

    /// Every packet opens a flow; between measurements they are removed.
    fn new_flows(&mut self, frame: &Frame) -> Result<(f64, f64)> {
        let fd = self.kernel.program(Program::Ingress)?.fd()?.try_clone()?;
        let mut nets = Vec::new();
        for _ in 0..self.args.runs.min(5) {
            self.kernel.clear_flows()?;
            self.prepare(frame, true)?;
            self.aim(&fd)?;
            let gross = self.time(NEW_FLOWS)?;
            let (entries, drops) = (self.kernel.flows()?.len(), self.kernel.drops()?);
            ensure!(
                entries == 2 * NEW_FLOWS as usize,
                "{NEW_FLOWS} packets made {entries} entries; drops: {drops:?}"
            );
            self.prepare(frame, true)?;
            let empty = self.empty.try_clone()?;
            self.aim(&empty)?;
            nets.push(gross - self.time(NEW_FLOWS)?);
        }
        self.prepare(frame, false)?;
        Ok(median_and_min(nets))
    }

    /// Net nanoseconds per packet.
    fn net(&mut self, target: &ProgramFd, frame: &Frame) -> Result<(f64, f64)> {
        self.prepare(frame, false)?;
        let empty = self.empty.try_clone()?;
        self.aim(target)?;
        self.time(self.args.packets / 10 + 1)?;
        let mut nets = Vec::new();
        for _ in 0..self.args.runs {
            self.aim(target)?;
            let gross = self.time(self.args.packets)?;
            self.aim(&empty)?;
            nets.push(gross - self.time(self.args.packets)?);
        }
        Ok(median_and_min(nets))
    }

    fn gross(&mut self, target: &ProgramFd, frame: &Frame) -> Result<(f64, f64)> {
        self.prepare(frame, false)?;
        self.aim(target)?;
        let runs: Result<Vec<_>> = (0..self.args.runs).map(|_| self.time(self.args.packets)).collect();
        Ok(median_and_min(runs?))
    }

    /// Tells the driver which packet to restore, and whether to make each one a flow of its own.
    fn prepare(&mut self, frame: &Frame, vary: bool) -> Result<()> {
        let bytes = frame.bytes();
        let head = bytes.get(..RESTORED).context("frame too short to restore")?;
        let mut words = [0u64; RESTORED / 8];
        for (word, chunk) in words.iter_mut().zip(head.chunks_exact(8)) {
            *word = u64::from_ne_bytes(chunk.try_into()?);
        }
        self.frame.clone_from(&bytes);
        let mut packet: Array<&mut MapData, [u64; RESTORED / 8]> =
            map(&mut self.ebpf, "PACKET")?.try_into()?;
        packet.set(0, words, 0)?;
        let port_at = if frame.source.is_ipv4() { 34 } else { 54 };
        let mut variation: Array<&mut MapData, [u64; 2]> = map(&mut self.ebpf, "VARY")?.try_into()?;
        variation.set(0, [if vary { port_at } else { 0 }, 0], 0)?;
        Ok(())
    }

    /// Puts a program behind the driver.
    fn aim(&mut self, target: &ProgramFd) -> Result<()> {
        let mut array: ProgramArray<&mut MapData> = map(&mut self.ebpf, "TARGET")?.try_into()?;
        Ok(array.set(0, target, 0)?)
    }

    /// Nanoseconds of this thread's CPU time per packet.
    fn time(&mut self, repeat: u32) -> Result<f64> {
        let options = TestRunOptions { data_in: Some(&self.frame), repeat, ..TestRunOptions::default() };
        let driver = find(&mut self.ebpf, "drive")?;
        let before = Duration::from(clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID)?);
        let result = driver.test_run(options)?;
        let after = Duration::from(clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID)?);
        ensure!(
            result.return_value == u32::MAX,
            "the last packet was not passed on: {:#x}",
            result.return_value
        );
        Ok((after - before).as_nanos() as f64 / f64::from(repeat))
    }
}

fn find<'a>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut SchedClassifier> {
    let program = ebpf.program_mut(name).with_context(|| format!("no program {name} in the object"))?;
    Ok(program.try_into()?)
}

fn map<'a>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut aya::maps::Map> {
    ebpf.map_mut(name).with_context(|| format!("no map {name} in the object"))
}

fn median_and_min(mut values: Vec<f64>) -> (f64, f64) {
    values.sort_by(f64::total_cmp);
    (values.get(values.len() / 2).copied().unwrap_or(f64::NAN), values.first().copied().unwrap_or(f64::NAN))
}

fn table(report: &Report) -> String {
    let Report { kernel, cpu, runs, packets, overhead, cases } = report;
    let mut text = format!(
        "Nanoseconds per packet, net of {overhead:.1} for loop and driver.\n\
         Linux {kernel}, {cpu}; medians of {runs} runs of {packets} packets.\n\n\
         {:<18} {:<54} {:>7} {:>7} {:>7}",
        "", "", "median", "min", "target"
    );
    let mut group = "";
    for figure in cases {
        let heading = if figure.group == group { "" } else { figure.group };
        group = figure.group;
        let target = figure.target.map_or_else(String::new, |target| format!("{target:.0}"));
        text.push_str(&format!(
            "\n{heading:<18} {:<54} {:>7.1} {:>7.1} {target:>7}",
            figure.case, figure.median, figure.min
        ));
    }
    text
}
