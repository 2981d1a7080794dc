//! Times one program: a driver in the kernel restores the packet and calls it, again and again.

use std::{path::Path, time::Duration};

use anyhow::{Context as _, Result, bail, ensure};
use aya::{
    Ebpf, Pod,
    maps::{Array, MapData, ProgramArray},
    programs::{Program, ProgramFd, SchedClassifier, TestRun as _, TestRunOptions, Xdp},
};
use nix::time::{ClockId, clock_gettime};
use sluice_tests::{kernel::xdp_context, packets::Frame};

/// Bytes that the driver restores.
const RESTORED: usize = 96;

/// Where a program is run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Hook {
    /// With the stack's view of the packet.
    Tc,
    /// Before the stack, on what came by this device of this thread's network namespace.
    Xdp { device: u32 },
}

impl Hook {
    /// Of the driver, and of the empty program.
    const fn programs(self) -> [&'static str; 2] {
        match self {
            Self::Tc => ["drive", "empty"],
            Self::Xdp { .. } => ["xdp_drive", "xdp_empty"],
        }
    }

    const fn target(self) -> &'static str {
        match self {
            Self::Tc => "TARGET",
            Self::Xdp { .. } => "XDP_TARGET",
        }
    }

    /// `TC_ACT_UNSPEC` or `XDP_PASS`.
    pub(crate) const fn pass(self) -> u32 {
        match self {
            Self::Tc => u32::MAX,
            Self::Xdp { .. } => 2,
        }
    }
}

/// A program, and what it does with every packet.
pub(crate) struct Target {
    pub(crate) program: ProgramFd,
    pub(crate) hook: Hook,
    pub(crate) action: u32,
}

/// How packets differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Flows {
    One,
    /// So many, a power of two up to 2^24, in no order.
    Many(u64),
    /// Every packet is of another one, up to 2^24.
    New,
}

pub(crate) struct Driver {
    ebpf: Ebpf,
    /// What the kernel is given; it takes the skb's protocol from it.
    frame: Vec<u8>,
}

impl Driver {
    /// Loads everything in an object.
    pub(crate) fn load(object: &Path) -> Result<Self> {
        let bytes = std::fs::read(object)
            .with_context(|| format!("{}: run `cargo xtask build`", object.display()))?;
        let mut ebpf = Ebpf::load(&bytes)?;
        for (name, program) in ebpf.programs_mut() {
            match program {
                Program::SchedClassifier(program) => program.load()?,
                Program::Xdp(program) => program.load()?,
                _ => bail!("{name} is of another type"),
            }
        }
        Ok(Self { ebpf, frame: Vec::new() })
    }

    /// A program of the object.
    pub(crate) fn program(&mut self, name: &str, hook: Hook) -> Result<Target> {
        let program = self.ebpf.program(name).with_context(|| format!("no program {name} in the object"))?;
        Ok(Target { program: program.fd()?.try_clone()?, hook, action: hook.pass() })
    }

    /// The program that does nothing.
    pub(crate) fn empty(&mut self, hook: Hook) -> Result<Target> {
        let [_, empty] = hook.programs();
        self.program(empty, hook)
    }

    /// Tells the driver which packet to restore, and how packets differ.
    pub(crate) fn prepare(&mut self, frame: &Frame, flows: Flows) -> Result<()> {
        let bytes = frame.bytes();
        let head = bytes.get(..RESTORED).context("frame too short to restore")?;
        let mut words = [0_u64; RESTORED / 8];
        for (word, chunk) in words.iter_mut().zip(head.chunks_exact(8)) {
            *word = u64::from_ne_bytes(chunk.try_into()?);
        }
        self.frame = bytes;
        self.array::<[u64; RESTORED / 8]>("PACKET")?.set(0, words, 0)?;
        let port = if frame.source.is_ipv4() { 34 } else { 54 };
        let (at, mask, stride) = match flows {
            Flows::One => (0, 0, 0),
            Flows::Many(count) => {
                ensure!(count.is_power_of_two(), "{count} flows");
                // Odd, and far from any power of two: the golden ratio's.
                (port, count - 1, 0x9e37_79b1)
            }
            Flows::New => (port, u64::MAX, 1),
        };
        // The driver's `Variation`: where, how many have run, bits of the number, stride.
        self.array::<[u64; 4]>("VARY")?.set(0, [at, 0, mask, stride], 0)?;
        Ok(())
    }

    /// Nanoseconds of this thread's CPU time per packet.
    pub(crate) fn time(&mut self, target: &Target, packets: u32) -> Result<f64> {
        let map = self.ebpf.map_mut(target.hook.target()).context("no array of targets")?;
        let mut array: ProgramArray<&mut MapData> = map.try_into()?;
        array.set(0, &target.program, 0)?;
        let before = Duration::from(clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID)?);
        let action = self.run(target.hook, packets)?;
        let after = Duration::from(clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID)?);
        ensure!(action == target.action, "{:?}: the last packet got {action:#x}", target.hook);
        Ok((after - before).as_nanos() as f64 / f64::from(packets))
    }

    /// Drives packets through; returns what the program did with the last one.
    fn run(&mut self, hook: Hook, repeat: u32) -> Result<u32> {
        let [name, _] = hook.programs();
        let driver = self.ebpf.program_mut(name).with_context(|| format!("no program {name}"))?;
        let options = TestRunOptions { data_in: Some(&self.frame), repeat, ..TestRunOptions::default() };
        let result = match hook {
            Hook::Tc => <&mut SchedClassifier>::try_from(driver)?.test_run(options),
            Hook::Xdp { device } => {
                let context = xdp_context(device, &self.frame)?;
                let options = TestRunOptions { ctx_in: Some(&context), ..options };
                <&mut Xdp>::try_from(driver)?.test_run(options)
            }
        };
        Ok(result.context("BPF_PROG_TEST_RUN")?.return_value)
    }

    fn array<T: Pod>(&mut self, name: &str) -> Result<Array<&mut MapData, T>> {
        Ok(self.ebpf.map_mut(name).with_context(|| format!("no map {name} in the object"))?.try_into()?)
    }
}
