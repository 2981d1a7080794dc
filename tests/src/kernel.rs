//! The real programs over real maps, without devices: filled by hand, run by `BPF_PROG_TEST_RUN`.

use std::{
    cell::Cell,
    net::SocketAddr,
    path::Path,
    sync::atomic::{AtomicU32, Ordering},
};

use anyhow::{Context as _, Result};
use aya::programs::{TestRun as _, TestRunOptions, XdpMode as Attachment, links::FdLink};
use proxy_agent::datapath::{
    self, ArrayTable, Capacities, ChecksumPolicy, Datapath, HashTable, PerCpuTable, Pins, Program, Resizing,
};
use proxy_common::{
    addr::Addr,
    addresses::AddressFlags,
    affinity::{Affinity, AffinityKey},
    backend::{Backend, BackendFlags, BackendId, Generation},
    cache::{EPOCHS, TupleHash},
    config::{NodeFlags, NodeSettings},
    counters::ServiceCounters,
    device::{Device, DeviceFlags},
    drop::DropReason,
    endian::Be16,
    filter::{AddressRoles, FilterLine, FilterPosition},
    flow::FlowEntry,
    frontend::{Frontend, FrontendKey, ServiceId, SlotRun},
    tables::{
        AddressFilter, Addresses, Affinities, Backends, Devices, Drops, FlowEpochs, Flows, Frontends,
        Passages, ServiceTraffic, Settings, Slots, XdpDevices,
    },
    time::Ticks,
    tuple::{Endpoint, FlowKey, Protocol},
    xdp::{Passage, XdpDevice, XdpMode},
};

use crate::{
    netns::Namespace,
    sandbox::{BPFFS, Sandbox},
};

/// Lets one end of a pair take what a program at the other end sends back: the kernel's pairs look for such frames only where
/// there is a program, too (`veth_xdp_flush`). This one passes everything, for as long as the link is held.
///
/// # Errors
///
/// If the kernel refuses.
pub fn take_what_xdp_sends(namespace: &Namespace, device: &str) -> Result<FdLink> {
    namespace.run(|| {
        let mut kernel = Kernel::load()?;
        namespace.enter()?;
        let program = kernel.xdp_program(XdpMode::Native)?;
        let link = program.attach(device, Attachment::Driver)?;
        Ok(FdLink::try_from(program.take_link(link)?)?)
    })
}

thread_local! {
    /// How the programs of this thread's tests change checksums.
    static POLICY: Cell<ChecksumPolicy> = const { Cell::new(ChecksumPolicy::WrittenIfPossible) };
}

/// Does something with programs that leave checksums to the kernel's helpers, as where it does not let them write.
///
/// # Panics
///
/// If `act` does.
pub fn changing_checksums_by_helper(act: impl FnOnce()) {
    /// Programs are as usual again when this is gone.
    struct Asked;
    impl Drop for Asked {
        fn drop(&mut self) {
            POLICY.take();
        }
    }
    let _asked = Asked;
    POLICY.set(ChecksumPolicy::ByHelper);
    act();
}

/// What a tc program told the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Pass it on (`TCX_NEXT`).
    Next,
    /// Drop it.
    Drop,
    /// Send it out by another device, or the same.
    Redirect,
    /// Something else.
    Other(u32),
}

/// What became of a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Output {
    /// The program's answer.
    pub action: Action,
    /// The packet afterwards.
    pub frame: Vec<u8>,
}

/// A loaded datapath with tables of its own.
pub struct Kernel {
    pins: Pins,
    datapath: Datapath,
    next_slot: u32,
    /// What [`Kernel::serve`] says of a frontend beyond its backends.
    pub template: Frontend,
}

/// Number of the loopback device.
const LOOPBACK: u32 = 1;

/// A backend that gets new flows.
pub const SERVING: BackendFlags = BackendFlags::LIVE.with(BackendFlags::CLUSTER_SET);

/// The context of a frame that came by a device: `struct xdp_md` with data, its end, metadata, device, queue, and what a
/// redirected packet leaves by.
///
/// # Errors
///
/// If the frame is longer than any.
pub fn xdp_context(device: u32, frame: &[u8]) -> Result<Vec<u8>> {
    let end = u32::try_from(frame.len())?;
    Ok([0, end, 0, device, 0, 0].into_iter().flat_map(u32::to_ne_bytes).collect())
}

/// The end that an address and port are.
#[must_use]
pub fn end(address: SocketAddr) -> Endpoint {
    Endpoint { address: Addr::from(address.ip()), port: Be16::from_host(address.port()) }
}

impl Kernel {
    /// Loads the datapath. The calling thread stays in the sandbox. Checksums are written if this kernel lets programs do so,
    /// but see [`changing_checksums_by_helper`].
    ///
    /// # Errors
    ///
    /// If the kernel refuses.
    pub fn load() -> Result<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        Sandbox::shared()?.enter()?;
        let name = format!("kernel-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let pins = Pins::new(&Path::new(BPFFS).join(name));
        let datapath = datapath::load(&pins, Capacities::default(), Resizing::Allowed, POLICY.get())
            .map_err(|error| anyhow::anyhow!(proxy_agent::report(&error)))?;
        // The kernel runs programs on the loopback device, unless told otherwise.
        let local = Device { flags: DeviceFlags::LOCAL_CLIENTS, ..Device::default() };
        HashTable::<Devices>::open(&pins)?.put(&LOOPBACK, &local)?;
        Ok(Self { pins, datapath, next_slot: 0, template: Frontend::default() })
    }

    /// Loads it anew, as an agent that is started with these capacities; moves no tables.
    ///
    /// # Errors
    ///
    /// If the kernel refuses.
    pub fn reload(&mut self, capacities: Capacities) -> Result<()> {
        self.datapath = datapath::load(&self.pins, capacities, Resizing::Allowed, POLICY.get())?;
        Ok(())
    }

    /// Where the maps are pinned.
    #[must_use]
    pub fn pins(&self) -> &Pins {
        &self.pins
    }

    /// A loaded program.
    ///
    /// # Errors
    ///
    /// If the object has no such program.
    pub fn program(&mut self, program: Program) -> Result<&mut aya::programs::SchedClassifier> {
        Ok(self.datapath.program(program)?)
    }

    /// The program that meets packets before the stack in this mode, loaded.
    ///
    /// # Errors
    ///
    /// If the object has no such program.
    pub fn xdp_program(&mut self, mode: XdpMode) -> Result<&mut aya::programs::Xdp> {
        Ok(self.datapath.xdp_program(mode)?)
    }

    /// Whether the programs write checksums themselves.
    #[must_use]
    pub fn writes_checksums(&self) -> bool {
        self.datapath.writes_checksums()
    }

    /// Programs a service, in the agent's order. Its backends get the ids `first_backend`, and so on.
    ///
    /// # Errors
    ///
    /// If a table cannot be written.
    pub fn serve(
        &mut self,
        service: ServiceId,
        frontend: SocketAddr,
        protocol: Protocol,
        first_backend: u32,
        backends: &[SocketAddr],
    ) -> Result<()> {
        self.add_role(frontend, AddressRoles::FRONTEND)?;
        let base = self.next_slot;
        for (id, &address) in (first_backend..).zip(backends) {
            self.set_backend(BackendId(id), service, address, SERVING, Generation(1))?;
            ArrayTable::<Slots>::open(&self.pins)?.put(self.next_slot, &BackendId(id))?;
            self.next_slot += 1;
        }
        let slots = SlotRun { base, count: self.next_slot - base };
        let value = Frontend { service, slots, ..self.template };
        HashTable::<Frontends>::open(&self.pins)?.put(&FrontendKey::new(end(frontend), protocol), &value)?;
        Ok(())
    }

    /// Gives a frontend that is served a run of these slots instead.
    ///
    /// # Errors
    ///
    /// If there is none, or a table cannot be written.
    pub fn set_slots(
        &mut self,
        frontend: SocketAddr,
        protocol: Protocol,
        backends: &[BackendId],
    ) -> Result<()> {
        let base = self.next_slot;
        for id in backends {
            ArrayTable::<Slots>::open(&self.pins)?.put(self.next_slot, id)?;
            self.next_slot += 1;
        }
        let slots = SlotRun { base, count: self.next_slot - base };
        let key = FrontendKey::new(end(frontend), protocol);
        let mut table = HashTable::<Frontends>::open(&self.pins)?;
        let value = table.get(&key)?.context("no such frontend")?;
        Ok(table.put(&key, &Frontend { slots, ..value })?)
    }

    /// Writes a backend record.
    ///
    /// # Errors
    ///
    /// If a table cannot be written.
    pub fn set_backend(
        &mut self,
        id: BackendId,
        service: ServiceId,
        address: SocketAddr,
        flags: BackendFlags,
        generation: Generation,
    ) -> Result<()> {
        self.add_role(address, AddressRoles::BACKEND)?;
        let Endpoint { address, port } = end(address);
        let value = Backend { address, port, flags, generation, service, reserved: 0 };
        Ok(ArrayTable::<Backends>::open(&self.pins)?.put(id.0, &value)?)
    }

    /// Writes what is known about an address, and gives it a role.
    ///
    /// # Errors
    ///
    /// If a table cannot be written.
    pub fn set_address(
        &mut self,
        address: SocketAddr,
        flags: AddressFlags,
        role: AddressRoles,
    ) -> Result<()> {
        self.add_role(address, role)?;
        Ok(HashTable::<Addresses>::open(&self.pins)?.put(&Addr::from(address.ip()), &flags)?)
    }

    /// Writes how an uplink stands.
    ///
    /// # Errors
    ///
    /// If the table cannot be written.
    pub fn set_xdp_device(&mut self, index: u32, row: XdpDevice) -> Result<()> {
        Ok(HashTable::<XdpDevices>::open(&self.pins)?.put(&index, &row)?)
    }

    fn add_role(&mut self, address: SocketAddr, role: AddressRoles) -> Result<()> {
        let mut filter = ArrayTable::<AddressFilter>::open(&self.pins)?;
        let FilterPosition { line, at } = FilterPosition::of(Addr::from(address.ip()));
        let mut value: FilterLine = filter.get(line)?.unwrap_or_default();
        value.roles[at] = value.roles[at].with(role);
        Ok(filter.put(line, &value)?)
    }

    /// Runs a program on a frame.
    ///
    /// # Errors
    ///
    /// If the kernel refuses to.
    pub fn run(&mut self, program: Program, frame: &[u8]) -> Result<Output> {
        let mut out = vec![0; frame.len() + 256];
        let options =
            TestRunOptions { data_in: Some(frame), data_out: Some(&mut out), ..TestRunOptions::default() };
        let result = self.program(program)?.test_run(options).context("BPF_PROG_TEST_RUN")?;
        out.truncate(result.data_size_out as usize);
        let action = match result.return_value {
            u32::MAX => Action::Next,
            2 => Action::Drop,
            7 => Action::Redirect,
            other => Action::Other(other),
        };
        Ok(Output { action, frame: out })
    }

    /// Runs the program that meets packets before the stack in this mode on a frame that came by a device of this thread's network
    /// namespace. Returns its action and the frame afterwards.
    ///
    /// # Errors
    ///
    /// If the kernel refuses to.
    pub fn run_xdp(&mut self, mode: XdpMode, device: u32, frame: &[u8]) -> Result<(u32, Vec<u8>)> {
        let mut out = vec![0; frame.len() + 256];
        let context = xdp_context(device, frame)?;
        let options = TestRunOptions {
            data_in: Some(frame),
            data_out: Some(&mut out),
            ctx_in: Some(&context),
            ..TestRunOptions::default()
        };
        let result = self.xdp_program(mode)?.test_run(options).context("BPF_PROG_TEST_RUN")?;
        out.truncate(result.data_size_out as usize);
        Ok((result.return_value, out))
    }

    /// What became of packets before the stack, in the order of [`Passage::ALL`].
    ///
    /// # Errors
    ///
    /// If the table cannot be read.
    pub fn passages(&self) -> Result<[u64; 3]> {
        let table = PerCpuTable::<Passages>::open(&self.pins)?;
        let mut counts = [0; 3];
        for (count, passage) in counts.iter_mut().zip(Passage::ALL) {
            *count = table.get(passage as u32)?.iter().sum();
        }
        Ok(counts)
    }

    /// The kernel's time, as flows are stamped with it.
    ///
    /// # Errors
    ///
    /// If the kernel does not say.
    pub fn now(&mut self) -> Result<Ticks> {
        Ok(self.datapath.now()?)
    }

    /// The mapping of a client.
    ///
    /// # Errors
    ///
    /// If the table cannot be read.
    pub fn affinity(&self, key: &AffinityKey) -> Result<Option<Affinity>> {
        Ok(HashTable::<Affinities>::open(&self.pins)?.get(key)?)
    }

    /// Writes the mapping of a client.
    ///
    /// # Errors
    ///
    /// If the table cannot be written.
    pub fn set_affinity(&mut self, key: &AffinityKey, value: &Affinity) -> Result<()> {
        Ok(HashTable::<Affinities>::open(&self.pins)?.put(key, value)?)
    }

    /// Ticks of the kernel's clock per second.
    ///
    /// # Errors
    ///
    /// If the table cannot be read.
    pub fn ticks_per_second(&self) -> Result<u32> {
        let settings = ArrayTable::<Settings>::open(&self.pins)?.get(0)?.context("no settings")?;
        Ok(settings.ticks_per_second)
    }

    /// Switches something on beside sockets.
    ///
    /// # Errors
    ///
    /// If there are no settings, or they cannot be written.
    pub fn set_flags(&mut self, flags: NodeFlags) -> Result<()> {
        let mut table = ArrayTable::<Settings>::open(&self.pins)?;
        let settings = table.get(0)?.context("no settings")?;
        Ok(table.put(0, &NodeSettings { flags, ..settings })?)
    }

    /// Lets so many flows begin in each second on each CPU; 0: any number.
    ///
    /// # Errors
    ///
    /// If there are no settings, or they cannot be written.
    pub fn set_new_flow_limit(&mut self, new_flows: u32) -> Result<()> {
        let mut table = ArrayTable::<Settings>::open(&self.pins)?;
        let settings = table.get(0)?.context("no settings")?;
        Ok(table.put(0, &NodeSettings { new_flows, ..settings })?)
    }

    /// A flow entry.
    ///
    /// # Errors
    ///
    /// If the table cannot be read.
    pub fn flow(&self, key: &FlowKey) -> Result<Option<FlowEntry>> {
        Ok(HashTable::<Flows>::open(&self.pins)?.get(key)?)
    }

    /// Writes a flow entry.
    ///
    /// # Errors
    ///
    /// If a table cannot be written.
    pub fn set_flow(&mut self, key: &FlowKey, entry: &FlowEntry) -> Result<()> {
        HashTable::<Flows>::open(&self.pins)?.put(key, entry)?;
        self.outdate(key)
    }

    /// Removes a flow entry behind the programs' back: what they remember of it holds.
    ///
    /// # Errors
    ///
    /// If the table cannot be written.
    pub fn lose_flow(&mut self, key: &FlowKey) -> Result<()> {
        HashTable::<Flows>::open(&self.pins)?.delete(key)?;
        Ok(())
    }

    /// Makes what the programs remember of a tuple void.
    ///
    /// # Errors
    ///
    /// If a table cannot be written.
    pub fn outdate(&mut self, key: &FlowKey) -> Result<()> {
        outdate(&mut ArrayTable::open(&self.pins)?, TupleHash::of(key).epoch())
    }

    /// All flow entries.
    ///
    /// # Errors
    ///
    /// If the table cannot be read.
    pub fn flows(&self) -> Result<Vec<(FlowKey, FlowEntry)>> {
        Ok(HashTable::<Flows>::open(&self.pins)?.entries().collect::<Result<_, _>>()?)
    }

    /// Removes all flow entries.
    ///
    /// # Errors
    ///
    /// If the table cannot be read or written.
    pub fn clear_flows(&mut self) -> Result<()> {
        forget_flows(&self.pins)
    }

    /// The counters of a service, summed over the CPUs.
    ///
    /// # Errors
    ///
    /// If the table cannot be read.
    pub fn traffic(&self, service: ServiceId) -> Result<ServiceCounters> {
        let values = PerCpuTable::<ServiceTraffic>::open(&self.pins)?.get(service.0)?;
        Ok(values.into_iter().fold(ServiceCounters::default(), ServiceCounters::plus))
    }

    /// Drops by reason, those that happened.
    ///
    /// # Errors
    ///
    /// If the table cannot be read.
    pub fn drops(&self) -> Result<Vec<(DropReason, u64)>> {
        let table = PerCpuTable::<Drops>::open(&self.pins)?;
        let mut drops = Vec::new();
        for reason in DropReason::ALL {
            let count: u64 = table.get(reason as u32)?.iter().sum();
            if count > 0 {
                drops.push((reason, count));
            }
        }
        Ok(drops)
    }
}

/// Removes all flow entries, and what any CPU remembers of them.
///
/// # Errors
///
/// If a table cannot be read or written.
pub fn forget_flows(pins: &Pins) -> Result<()> {
    let mut table = HashTable::<Flows>::open(pins)?;
    let keys = table.entries().map(|entry| entry.map(|(key, _)| key)).collect::<Result<Vec<_>, _>>()?;
    keys.iter().try_for_each(|key| table.delete(key).map(drop))?;
    let mut epochs = ArrayTable::open(pins)?;
    (0..EPOCHS).try_for_each(|index| outdate(&mut epochs, index))
}

/// Begins another epoch for some tuples, so that the flow table is asked about them.
fn outdate(epochs: &mut ArrayTable<FlowEpochs>, index: u32) -> Result<()> {
    let epoch = epochs.get(index)?.context("no such epoch")?;
    Ok(epochs.put(index, &epoch.wrapping_add(1))?)
}
