//! From the embedded object to loaded programs over pinned maps.

use aya::{
    Ebpf, EbpfError, EbpfLoader, VerifierLogLevel, include_bytes_aligned,
    programs::{ProgramError, SchedClassifier},
};
use aya_log::EbpfLogger;
use log::Log;
use proxy_common::{
    config::NodeSettings,
    tables::{
        AddressFilter, Affinities, Backends, Drops, Flows, Frontends, ServiceNames, ServiceTraffic, Settings,
        Slots, Table,
    },
    time::Ticks,
};

use super::{
    clock::{self, ClockError},
    map::{ArrayTable, HashTable, PerCpuTable, TableError},
    pins::{PinError, Pins},
    preflight::{self, PreflightError},
};

/// The datapath object, built by `cargo xtask build` and embedded here.
pub static OBJECT: &[u8] = include_bytes_aligned!(env!("SLUICE_DATAPATH_OBJECT"));

/// A program of the object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Program {
    /// tc ingress.
    Ingress,
    /// tc egress.
    Egress,
    /// Tells the time; attached nowhere.
    Clock,
}

impl Program {
    /// Every program.
    pub const ALL: [Self; 3] = [Self::Ingress, Self::Egress, Self::Clock];

    /// Its name in the object.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ingress => "sluice_ingress",
            Self::Egress => "sluice_egress",
            Self::Clock => "sluice_clock",
        }
    }
}

/// Why the datapath could not be loaded.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// Kernel or process cannot run it.
    #[error(transparent)]
    Preflight(#[from] PreflightError),
    /// The pins cannot be used.
    #[error(transparent)]
    Pins(#[from] PinError),
    /// A pinned map does not fit, or cannot be used.
    #[error(transparent)]
    Table(#[from] TableError),
    /// The object or its maps were refused.
    #[error("cannot load the datapath object")]
    Object(#[source] Box<EbpfError>),
    /// The object lacks a program.
    #[error("the datapath object has no program {0}")]
    Absent(&'static str),
    /// The kernel refused a program.
    #[error("the kernel refused program {program}")]
    Program {
        /// Its name.
        program: &'static str,
        /// Why; includes the verifier's log.
        #[source]
        source: Box<ProgramError>,
    },
    /// The kernel's clock cannot be read.
    #[error(transparent)]
    Clock(#[from] ClockError),
}

/// The loaded datapath.
pub struct Datapath {
    ebpf: Ebpf,
    logger: Option<EbpfLogger<&'static dyn Log>>,
}

impl Datapath {
    /// A loaded program.
    pub fn program(&mut self, program: Program) -> Result<&mut SchedClassifier, LoadError> {
        find(&mut self.ebpf, program)
    }

    /// The kernel's time, which flow entries are stamped with.
    pub fn now(&mut self) -> Result<Ticks, LoadError> {
        Ok(clock::now(find(&mut self.ebpf, Program::Clock)?)?)
    }

    /// What the programs log, if this object's do.
    pub fn take_logger(&mut self) -> Option<EbpfLogger<&'static dyn Log>> {
        self.logger.take()
    }
}

/// Creates or adopts the maps below `pins` and loads the programs. Nothing is attached; when this fails,
/// whatever was attached before goes on as it was.
pub fn load(pins: &Pins) -> Result<Datapath, LoadError> {
    preflight::check()?;
    pins.create()?;
    let mut loader = EbpfLoader::new();
    loader.verifier_log_level(VerifierLogLevel::STATS);
    fn pin<'a, T: Table>(loader: &mut EbpfLoader<'a>, pins: &Pins) {
        loader.map_pin_path(T::NAME, pins.map::<T>());
    }
    pin::<Frontends>(&mut loader, pins);
    pin::<Slots>(&mut loader, pins);
    pin::<Backends>(&mut loader, pins);
    pin::<Flows>(&mut loader, pins);
    pin::<AddressFilter>(&mut loader, pins);
    pin::<ServiceNames>(&mut loader, pins);
    pin::<ServiceTraffic>(&mut loader, pins);
    pin::<Affinities>(&mut loader, pins);
    pin::<Settings>(&mut loader, pins);
    pin::<Drops>(&mut loader, pins);
    let mut ebpf = loader.load(OBJECT).map_err(|error| LoadError::Object(Box::new(error)))?;
    check_pins(pins)?;
    // Before the programs are loaded, while the object still owns the map of the log.
    let logger = EbpfLogger::init(&mut ebpf).ok();
    for program in Program::ALL {
        let refused = |source| LoadError::Program { program: program.name(), source: Box::new(source) };
        find(&mut ebpf, program)?.load().map_err(refused)?;
    }
    let hz = clock::rate(find(&mut ebpf, Program::Clock)?)?;
    tracing::debug!(hz, "kernel clock");
    ArrayTable::<Settings>::open(pins)?.put(0, &NodeSettings::new(hz))?;
    Ok(Datapath { ebpf, logger })
}

/// aya adopts whatever is pinned under a name, so look at what it adopted before a program runs on it.
fn check_pins(pins: &Pins) -> Result<(), TableError> {
    HashTable::<Frontends>::open(pins)?;
    ArrayTable::<Slots>::open(pins)?;
    ArrayTable::<Backends>::open(pins)?;
    HashTable::<Flows>::open(pins)?;
    ArrayTable::<AddressFilter>::open(pins)?;
    HashTable::<ServiceNames>::open(pins)?;
    PerCpuTable::<ServiceTraffic>::open(pins)?;
    HashTable::<Affinities>::open(pins)?;
    ArrayTable::<Settings>::open(pins)?;
    PerCpuTable::<Drops>::open(pins)?;
    Ok(())
}

fn find(ebpf: &mut Ebpf, program: Program) -> Result<&mut SchedClassifier, LoadError> {
    let name = program.name();
    let found = ebpf.program_mut(name).ok_or(LoadError::Absent(name))?;
    found.try_into().map_err(|source| LoadError::Program { program: name, source: Box::new(source) })
}
