//! Packets for a device, as its driver would bring them: `BPF_PROG_TEST_RUN` with live frames.

use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use aya::{
    Ebpf,
    maps::Array,
    programs::{TestRun as _, TestRunAttrs, TestRunOptions, Xdp, XdpMode, xdp::XdpLink},
};

use crate::netns::Namespace;

/// The benchmarks' kernel programs.
pub const OBJECT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../target/bpf/sluice-bench.o");

/// Frames that there is room for.
pub const FRAMES: usize = 64;
/// Bytes of a frame: the shortest that Ethernet has, without its check sequence.
pub const FRAME: usize = 60;

/// Words that a frame takes in the map.
const WORDS: usize = FRAME.div_ceil(8);
/// Frames that are sent before anybody meets them; the queue of a veth has 256 places.
const BATCH: u32 = 64;

/// Room in front of frames, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Headroom {
    /// As drivers leave it that can run programs (`XDP_PACKET_HEADROOM`): 256.
    Programs,
    /// As most others do (`NET_SKB_PAD`): 64.
    Packets,
}

impl Headroom {
    /// What is taken away of the room that frames are made with.
    const fn taken(self) -> u32 {
        match self {
            Self::Programs => 0,
            Self::Packets => 256 - 64,
        }
    }
}

/// The generator, and what counts its packets where they end.
#[derive(Debug)]
pub struct Generator {
    ebpf: Ebpf,
    headroom: Headroom,
}

/// As long as this is held, UDP packets over IPv4 end at a device.
#[derive(Debug)]
pub struct Swallow(#[expect(dead_code, reason = "its drop takes the program off")] XdpLink);

impl Generator {
    /// A generator of these frames, in turn, with so much room in front of them.
    ///
    /// # Errors
    ///
    /// If the kernel refuses the programs.
    ///
    /// # Panics
    ///
    /// If a frame is shorter than [`FRAME`].
    pub fn load(frames: &[Vec<u8>; FRAMES], headroom: Headroom) -> Result<Self> {
        let bytes =
            std::fs::read(Path::new(OBJECT)).with_context(|| format!("{OBJECT}: run `cargo xtask build`"))?;
        let mut ebpf = Ebpf::load(&bytes)?;
        for name in ["xdp_generate", "xdp_swallow"] {
            program(&mut ebpf, name)?.load()?;
        }
        let map = ebpf.map_mut("FRAMES_SENT").context("no map of frames")?;
        let mut map = Array::<_, [u64; WORDS]>::try_from(map)?;
        for (index, frame) in (0..).zip(frames) {
            let mut bytes = [0; WORDS * 8];
            bytes[..FRAME].copy_from_slice(&frame[..FRAME]);
            let (words, _) = bytes.as_chunks();
            let words: Vec<_> = words.iter().map(|word| u64::from_ne_bytes(*word)).collect();
            map.set(index, <[u64; WORDS]>::try_from(words.as_slice())?, 0)?;
        }
        Ok(Self { ebpf, headroom })
    }

    /// Sends so many packets by a device of the namespace that the calling thread is in; returns when whatever the kernel does
    /// with them at once has been done.
    ///
    /// # Errors
    ///
    /// If the kernel refuses to.
    pub fn send(&mut self, device: u32, packets: u32) -> Result<()> {
        let map = self.ebpf.map_mut("GENERATOR").context("no generator")?;
        // Its `Generator`: the device, a count that begins anew, and room.
        Array::<_, [u32; 3]>::try_from(map)?.set(0, [device, 0, self.headroom.taken()], 0)?;
        let frame = [0; FRAME];
        let options = TestRunOptions {
            data_in: Some(&frame),
            repeat: packets,
            attrs: TestRunAttrs::new().xdp_live_frames(BATCH),
            ..TestRunOptions::default()
        };
        program(&mut self.ebpf, "xdp_generate")?.test_run(options).context("send live frames")?;
        Ok(())
    }

    /// Has UDP packets over IPv4 end at a device of a namespace, by its driver or before its stack.
    ///
    /// # Errors
    ///
    /// If there is no room for a program.
    pub fn swallow(&mut self, namespace: &Namespace, device: &str, mode: XdpMode) -> Result<Swallow> {
        let swallow = program(&mut self.ebpf, "xdp_swallow")?;
        namespace.run(|| {
            let link = swallow.attach(device, mode).with_context(|| format!("end at {device}"))?;
            Ok(Swallow(swallow.take_link(link)?))
        })
    }

    /// How many packets have ended.
    ///
    /// # Errors
    ///
    /// If the kernel does not say.
    pub fn swallowed(&self) -> Result<u64> {
        let map = self.ebpf.map("SWALLOWED").context("no count")?;
        Ok(Array::<_, u64>::try_from(map)?.get(&0, 0)?)
    }

    /// Sends so many packets, as [`send`](Self::send) does, and returns how many have ended meanwhile.
    ///
    /// # Errors
    ///
    /// If more are lost than a kernel may lose that puts its work off for a moment.
    pub fn send_until_ended(&mut self, device: u32, packets: u32) -> Result<u64> {
        let before = self.swallowed()?;
        self.send(device, packets)?;
        let ended = self.swallowed()? - before;
        ensure!(ended * 100 >= u64::from(packets) * 99, "{ended} of {packets} packets have ended");
        Ok(ended)
    }
}

fn program<'a>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut Xdp> {
    Ok(ebpf.program_mut(name).with_context(|| format!("no program {name}"))?.try_into()?)
}
