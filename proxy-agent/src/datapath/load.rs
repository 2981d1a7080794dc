//! From the embedded object to loaded programs over pinned maps.

use std::{
    borrow::Cow,
    collections::{BTreeMap, BTreeSet},
};

use aya::{
    Ebpf, EbpfError, EbpfLoader, VerifierLogLevel, include_bytes_aligned,
    maps::{Map, MapData},
    programs::{CgroupSockAddr, ProgramError, SchedClassifier, Xdp},
};
use aya_log::EbpfLogger;
use log::Log;
use proxy_common::{
    config::NodeSettings,
    kernel,
    tables::{Growth, Settings, Table},
    time::Ticks,
    xdp::XdpMode,
};
use tracing::error;

use super::{
    capacity::Capacities,
    checksums::{self, ChecksumPolicy, Checksums},
    clock::{self, ClockError},
    kept::{self, KeepError, Kind},
    list::{self, Visitor},
    map::{self, ArrayTable, TableError},
    pins::{PinError, Pins},
    preflight::{self, PreflightError},
    program::{Program, SocketProgram, xdp_program_name},
    resize,
};

/// The datapath object, built by `cargo xtask build` and embedded here.
pub static OBJECT: &[u8] = include_bytes_aligned!(env!("SLUICE_DATAPATH_OBJECT"));

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
    /// The object has a map that no table describes: it would neither be pinned nor compared.
    #[error("the datapath object has a map {0}, which this build knows nothing of")]
    UnknownMap(String),
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
    /// The kernel refused programs that others stand in for.
    #[error("the kernel refused programs: {}", .0.join(", "))]
    Refused(Vec<&'static str>),
    /// The kernel's clock cannot be read.
    #[error(transparent)]
    Clock(#[from] ClockError),
    /// The program that tells it cannot be pinned.
    #[error(transparent)]
    Kept(#[from] KeepError),
}

/// The loaded datapath.
pub struct Datapath {
    ebpf: Ebpf,
    logger: Option<EbpfLogger<&'static dyn Log>>,
    /// Where programs are kept that stand in for those that are refused; `None` if there are none.
    pins: Option<Pins>,
    classifiers: Standbys<SchedClassifier>,
    socket_programs: Standbys<CgroupSockAddr>,
    /// Own programs that are pinned.
    kept: BTreeSet<&'static str>,
    /// Whether the programs write checksums themselves.
    writes_checksums: bool,
}

/// Programs of an earlier agent, in the place of this one's that the kernel refuses.
type Standbys<P> = BTreeMap<&'static str, P>;

impl Datapath {
    /// An object whose maps are there, and none of whose programs are.
    pub(super) fn over(ebpf: Ebpf, checksums: &Checksums) -> Self {
        Self {
            ebpf,
            logger: None,
            pins: None,
            classifiers: Standbys::new(),
            socket_programs: Standbys::new(),
            kept: BTreeSet::new(),
            writes_checksums: matches!(checksums, Checksums::Written(_)),
        }
    }

    /// A program, loaded by now. If the kernel refuses it, the one that served last.
    pub fn program(&mut self, program: Program) -> Result<&mut SchedClassifier, LoadError> {
        ready(&mut self.ebpf, &mut self.classifiers, self.pins.as_ref(), program)
    }

    /// A program for sockets, loaded by now. If the kernel refuses it, the one that served last.
    pub fn socket_program(&mut self, program: SocketProgram) -> Result<&mut CgroupSockAddr, LoadError> {
        ready(&mut self.ebpf, &mut self.socket_programs, self.pins.as_ref(), program)
    }

    /// The program that meets packets before the stack in this mode, loaded by now.
    pub fn xdp_program(&mut self, mode: XdpMode) -> Result<&mut Xdp, LoadError> {
        let name = xdp_program_name(mode);
        let refused = |source| LoadError::Program { program: name, source: Box::new(source) };
        let found = self.ebpf.program_mut(name).ok_or(LoadError::Absent(name))?;
        let found: &mut Xdp = found.try_into().map_err(refused)?;
        if found.fd().is_err() {
            found.load().map_err(refused)?;
        }
        Ok(found)
    }

    /// Loads the programs that are otherwise loaded when something wants them. Fails if the kernel refuses one.
    pub fn load_all(&mut self) -> Result<(), LoadError> {
        Program::ALL.into_iter().try_for_each(|program| self.program(program).map(drop))?;
        SocketProgram::ALL.into_iter().try_for_each(|program| self.socket_program(program).map(drop))?;
        XdpMode::ALL.into_iter().try_for_each(|mode| self.xdp_program(mode).map(drop))?;
        let refused: Vec<_> = self.refused().collect();
        if refused.is_empty() { Ok(()) } else { Err(LoadError::Refused(refused)) }
    }

    /// The programs that the kernel has refused, and that those of an earlier agent stand in for.
    pub fn refused(&self) -> impl Iterator<Item = &'static str> {
        self.classifiers.keys().chain(self.socket_programs.keys()).copied()
    }

    /// Pins this agent's programs that are loaded, for the next one. They should serve by now.
    pub fn keep(&mut self) -> Result<(), KeepError> {
        let Self { ebpf, pins: Some(pins), kept, .. } = self else { return Ok(()) };
        Program::ALL.into_iter().try_for_each(|program| keep(ebpf, pins, kept, program))?;
        SocketProgram::ALL.into_iter().try_for_each(|program| keep(ebpf, pins, kept, program))
    }

    /// Whether the programs write checksums themselves, which is faster than to have the kernel do it.
    #[must_use]
    pub const fn writes_checksums(&self) -> bool {
        self.writes_checksums
    }

    /// The kernel's time, which flow entries are stamped with.
    pub fn now(&mut self) -> Result<Ticks, LoadError> {
        Ok(clock::now(self.program(Program::Clock)?)?)
    }

    /// What the programs log, if this object's do.
    pub fn take_logger(&mut self) -> Option<EbpfLogger<&'static dyn Log>> {
        self.logger.take()
    }
}

/// The program, or the one that stands in for it.
fn ready<'a, K: Kind>(
    ebpf: &'a mut Ebpf,
    standbys: &'a mut Standbys<K::Loaded>,
    pins: Option<&Pins>,
    kind: K,
) -> Result<&'a mut K::Loaded, LoadError> {
    let name = kind.name();
    if !standbys.contains_key(name) {
        let own = find(ebpf, kind)?;
        let loaded = if K::is_loaded(own) { Ok(()) } else { K::load(own) };
        if let Err(source) = loaded {
            let refusal = LoadError::Program { program: name, source: Box::new(source) };
            // Without a pin, nothing can stand in.
            let standby = pins.and_then(|pins| kind.open(&pins.program(name)).ok());
            let Some(standby) = standby else { return Err(refusal) };
            error!("{}; the {name} of an earlier agent goes on serving", crate::report(&refusal));
            standbys.insert(name, standby);
        }
    }
    match standbys.get_mut(name) {
        Some(standby) => Ok(standby),
        None => find(ebpf, kind),
    }
}

fn keep<K: Kind>(
    ebpf: &mut Ebpf,
    pins: &Pins,
    kept: &mut BTreeSet<&'static str>,
    kind: K,
) -> Result<(), KeepError> {
    // What the object lacks, nobody could have loaded.
    let Ok(own) = find(ebpf, kind) else { return Ok(()) };
    if K::is_loaded(own) && !kept.contains(kind.name()) {
        kept::keep(pins, kind, own)?;
        kept.insert(kind.name());
    }
    Ok(())
}

fn find<K: Kind>(ebpf: &mut Ebpf, kind: K) -> Result<&mut K::Loaded, LoadError> {
    let name = kind.name();
    let found = ebpf.program_mut(name).ok_or(LoadError::Absent(name))?;
    K::select(found).map_err(|source| LoadError::Program { program: name, source: Box::new(source) })
}

/// Whether pinned tables may be given other capacities.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resizing {
    /// No agent writes to them, and whatever is attached gets this build's programs.
    Allowed,
    /// Neither is known.
    Forbidden,
}

/// Creates or adopts the maps below `pins`, with these capacities as far as their entries fit, and loads the programs that
/// every node runs. Nothing is attached; when this fails, whatever was attached before goes on as it was. A program that the
/// kernel refuses is no failure if an earlier agent's can stand in for it. After programs have been attached, tables may have to
/// be moved ([`move_tables`](super::move_tables)).
pub fn load(
    pins: &Pins,
    capacities: Capacities,
    resizing: Resizing,
    policy: ChecksumPolicy,
) -> Result<Datapath, LoadError> {
    preflight::check()?;
    pins.create()?;
    let capacities = match resizing {
        Resizing::Allowed => capacities.granted(pins)?,
        Resizing::Forbidden => capacities,
    };
    let wanted = Checksums::of_this_kernel(policy);
    let mut loader = EbpfLoader::new();
    loader.verifier_log_level(VerifierLogLevel::STATS);
    let mut pinning = Pinning { loader: &mut loader, pins, capacities, resizing, replaced: Vec::new() };
    list::visit(&mut pinning)?;
    let replaced = pinning.replaced;
    let (mut ebpf, checksums) = open(&mut loader, &wanted)?;
    tracing::info!("transport checksums are changed {checksums}");
    list::visit(&mut Replacing { pins, replaced })?;
    // aya adopts whatever is pinned under a name, so look at what it adopted before a program runs on it.
    let mut check = Check { pins, names: BTreeSet::new() };
    list::visit(&mut check)?;
    resize::lead(pins)?;
    // Before the programs are loaded, while the object still owns the map of the log.
    let logger = EbpfLogger::init(&mut ebpf).ok();
    check.expect_complete(&ebpf)?;
    let mut datapath = Datapath { logger, pins: Some(pins.clone()), ..Datapath::over(ebpf, &checksums) };
    for program in Program::EVERYWHERE {
        datapath.program(program)?;
    }
    let clock = datapath.program(Program::Clock)?;
    // Others who read the tables need the time from the start.
    kept::keep(pins, Program::Clock, clock)?;
    let hz = clock::rate(clock)?;
    tracing::debug!(hz, "kernel clock");
    settle(pins, hz)?;
    Ok(datapath)
}

/// Creates or adopts the maps of the object, whose programs change checksums in that way if the kernel takes it, else by helper.
/// Says which it is.
pub(super) fn open<'a>(
    loader: &mut EbpfLoader<'a>,
    wanted: &'a Checksums,
) -> Result<(Ebpf, Cow<'a, Checksums>), LoadError> {
    let mut load = |place, object: &[u8]| {
        let loaded = loader.override_global(kernel::IP_SUMMED, place, true).load(object);
        loaded.map_err(|error| LoadError::Object(Box::new(error)))
    };
    let mut ebpf = load(wanted.place(), &wanted.prepare(OBJECT))?;
    match wanted.refused(&mut ebpf) {
        None => Ok((ebpf, Cow::Borrowed(wanted))),
        Some(instead) => Ok((load(&checksums::NOWHERE, OBJECT)?, Cow::Owned(instead))),
    }
}

/// Leaves the settings of an earlier run in force until somebody has better ones. On first start there are none, and
/// nothing works without the clock's rate.
fn settle(pins: &Pins, hz: u32) -> Result<(), TableError> {
    let mut settings = ArrayTable::<Settings>::open(pins)?;
    match settings.get(0)? {
        Some(found) if found.ticks_per_second == hz => Ok(()),
        _ => settings.put(0, &NodeSettings::new(hz)),
    }
}

/// Tells the loader where every table is pinned, and how large it is to be if it is not there.
struct Pinning<'a, 'b> {
    loader: &'a mut EbpfLoader<'b>,
    pins: &'a Pins,
    capacities: Capacities,
    resizing: Resizing,
    /// Tables that are there and get another map before programs are loaded.
    replaced: Vec<&'static str>,
}

impl Visitor for Pinning<'_, '_> {
    type Error = TableError;

    fn visit<T: Table>(&mut self) -> Result<(), TableError> {
        let (path, next) = (self.pins.map::<T>(), self.pins.next_map::<T>());
        let capacity = self.capacities.of::<T>();
        let is_resized = match map::capacity::<T>(self.pins) {
            Ok(found) => found != capacity && self.resizing == Resizing::Allowed,
            Err(TableError::Absent { .. }) => false,
            Err(error) => return Err(error),
        };
        let path = match T::GROWTH {
            Growth::Replaced if is_resized => {
                resize::forget_copy::<T>(self.pins)?;
                self.replaced.push(T::NAME);
                next
            }
            Growth::Moved(array) => {
                self.loader.map_pin_path(array, self.pins.maps().join(array));
                // One that an agent has begun to move is moved on.
                if is_resized || next.exists() { next } else { path }
            }
            Growth::Replaced | Growth::Fixed => path,
        };
        self.loader.map_max_entries(T::NAME, capacity).map_pin_path(T::NAME, path);
        Ok(())
    }
}

/// Lets copies take the place of tables.
struct Replacing<'a> {
    pins: &'a Pins,
    replaced: Vec<&'static str>,
}

impl Visitor for Replacing<'_> {
    type Error = TableError;

    fn visit<T: Table>(&mut self) -> Result<(), TableError> {
        if self.replaced.contains(&T::NAME) { resize::replace::<T>(self.pins) } else { Ok(()) }
    }
}

/// Compares every table with its pin.
struct Check<'a> {
    pins: &'a Pins,
    names: BTreeSet<&'static str>,
}

impl Visitor for Check<'_> {
    type Error = TableError;

    fn visit<T: Table>(&mut self) -> Result<(), TableError> {
        self.names.insert(T::NAME);
        if let Growth::Moved(array) = T::GROWTH {
            self.names.insert(array);
        }
        map::capacity::<T>(self.pins).map(drop)
    }
}

impl Check<'_> {
    /// Fails if the object has other maps that two packets share.
    fn expect_complete(&self, ebpf: &Ebpf) -> Result<(), LoadError> {
        match ebpf.maps().find(|(name, map)| !self.names.contains(name) && !is_private(name, map)) {
            Some((unknown, _)) => Err(LoadError::UnknownMap(unknown.to_owned())),
            None => Ok(()),
        }
    }
}

/// Whether a map is nobody's business but a program's: read-only memory such as `.rodata`, or room for one value on each
/// CPU, which a stack has no room for and which means nothing between packets.
fn is_private(name: &str, map: &Map) -> bool {
    let is_room = |map: &MapData| map.info().is_ok_and(|info| info.max_entries() == 1);
    name.starts_with('.') || matches!(map, Map::PerCpuArray(map) if is_room(map))
}
