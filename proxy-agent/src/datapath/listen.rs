//! Listening to the datapath's events: one listener at a time, on a lease that ends with it.

use std::{fs::File, io, os::fd::AsFd as _, path::PathBuf, time::Duration};

use aya::maps::{MapData, MapError, RingBuf};
use nix::{
    errno::Errno,
    fcntl::{Flock, FlockArg},
    poll::{PollFd, PollFlags, PollTimeout, poll},
    time::{ClockId, clock_gettime},
};
use proxy_common::{
    event::{Event, EventKinds, Lease},
    tables::{EventLease, Events, LostEvents, Table},
};
use zerocopy::FromBytes as _;

use super::{
    map::{ArrayTable, PerCpuTable, TableError, open_ring},
    pins::Pins,
};

/// How long the programs go on telling after the listener has last said that it is there.
const LEASE: Duration = Duration::from_secs(3);
/// How long it waits before it says so again.
const RENEWAL: Duration = Duration::from_secs(1);

/// Why nobody can listen.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// A table cannot be used.
    #[error(transparent)]
    Table(#[from] TableError),
    /// Somebody else does.
    #[error("somebody listens already: another `sluice monitor` runs on this node")]
    Taken,
    /// The directory of pins cannot be locked.
    #[error("cannot lock {}", path.display())]
    Lock {
        /// The directory.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The ring cannot be used.
    #[error("cannot read the ring of events")]
    Ring(#[from] MapError),
    /// The clock cannot be read, or waiting failed.
    #[error("cannot wait for events")]
    Wait(#[source] io::Error),
}

/// Somebody who listens.
pub struct EventStream {
    ring: RingBuf<MapData>,
    lease: ArrayTable<EventLease>,
    lost: PerCpuTable<LostEvents>,
    /// Events that were lost before, by others or as told.
    lost_before: u64,
    wants: EventKinds,
    /// Ends with this process, however it ends.
    _lock: Flock<File>,
}

impl EventStream {
    /// Begins to listen.
    ///
    /// # Errors
    ///
    /// If somebody else does, or the kernel refuses.
    pub fn open(pins: &Pins, wants: EventKinds) -> Result<Self, ListenError> {
        let path = pins.maps();
        let locked = File::open(&path).map_err(|error| (error, None)).and_then(|directory| {
            Flock::lock(directory, FlockArg::LockExclusiveNonblock)
                .map_err(|(_, errno)| (errno.into(), Some(errno)))
        });
        let lock = locked.map_err(|(source, errno)| match errno {
            Some(Errno::EWOULDBLOCK) => ListenError::Taken,
            _ => ListenError::Lock { path, source },
        })?;
        let mut stream = Self {
            ring: open_ring::<Events>(pins)?,
            lease: ArrayTable::open(pins)?,
            lost: PerCpuTable::open(pins)?,
            lost_before: 0,
            wants,
            _lock: lock,
        };
        // What an earlier listener did not hear is nobody's any more.
        while stream.ring.next().is_some() {}
        stream.lost_before = stream.lost()?;
        stream.renew()?;
        Ok(stream)
    }

    /// Waits for events, a second at most, and hands over what there is. Returns how many were lost since the last time,
    /// because they came faster than they were taken.
    ///
    /// # Errors
    ///
    /// If the kernel refuses.
    pub fn hear(&mut self, mut hear: impl FnMut(&Event)) -> Result<u64, ListenError> {
        self.renew()?;
        let timeout = PollTimeout::try_from(RENEWAL).unwrap_or(PollTimeout::ZERO);
        let mut ready = [PollFd::new(self.ring.as_fd(), PollFlags::POLLIN)];
        match poll(&mut ready, timeout) {
            // A signal that somebody handles is no event.
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => return Err(ListenError::Wait(errno.into())),
        }
        // As many as the ring holds, so that the lease is renewed however fast they come.
        for _ in 0..Events::CAPACITY as usize / size_of::<Event>() {
            let Some(record) = self.ring.next() else {
                break;
            };
            if let Ok(event) = Event::read_from_bytes(&record) {
                hear(&event);
            }
        }
        let lost = self.lost()?;
        let news = lost.saturating_sub(self.lost_before);
        self.lost_before = lost;
        Ok(news)
    }

    /// Says that somebody is still there.
    fn renew(&mut self) -> Result<(), ListenError> {
        let now = clock_gettime(ClockId::CLOCK_MONOTONIC).map_err(|errno| ListenError::Wait(errno.into()))?;
        let until = Duration::from(now) + LEASE;
        let until = u64::try_from(until.as_nanos()).unwrap_or(u64::MAX);
        Ok(self.lease.put(0, &Lease { until, wants: self.wants, reserved: 0 })?)
    }

    fn lost(&self) -> Result<u64, TableError> {
        Ok(self.lost.get(0)?.iter().sum())
    }
}

impl Drop for EventStream {
    fn drop(&mut self) {
        // If it fails, the lease ends by itself.
        drop(self.lease.put(0, &Lease::default()));
    }
}
