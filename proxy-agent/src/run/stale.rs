//! Connected sockets of the node's processes whose backend is gone: they are aborted. Those of UDP always (CT-08), those of
//! TCP if their Service asks for it.
//!
//! What such a socket sends passes no program, and the kernel connects nobody to somebody else: left alone, it would send
//! to the dead for as long as its process cares. Aborted, it tells its process, which makes a new one and gets a backend
//! that lives.
//!
//! Which sockets got their backend from Sluice is in the socket table, and what has been there longest without being asked
//! about is forgotten first when that is full. Nobody asks about a socket that only sends. So those that are still connected
//! are written anew from time to time.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use proxy_common::{
    socket::{SocketFacts, SocketKey, View},
    tables::{Backends, Sockets},
};
use proxy_model::{Family, Transport};
use tokio::task::{JoinError, JoinSet};
use tracing::{info, warn};

use super::{RETRY, reached};
use crate::{
    datapath::{ArrayTable, HashTable, Pins, TableError},
    diag::{Aborted, Diag, DiagError, StateFlags},
};

/// When sockets are looked at after a backend was retired: at once, and again for those that had it by then and were not
/// connected yet. That takes microseconds, or as long as the kernel lets a process wait for its turn.
const LOOKS: [Duration; 3] = [Duration::ZERO, Duration::from_millis(50), Duration::from_secs(1)];
/// How long after a look the next one is due if nothing happens, so that the table forgets none of these sockets: long
/// before others can fill it, which takes 65,536 conversations.
const REGULARLY: Duration = Duration::from_secs(30);
/// After a look this many times its duration pass before the next: a fifth of the time, where sockets are many and backends
/// come and go all the time.
const SHARE: u32 = 4;

/// Why stale sockets could not be found or aborted.
#[derive(Debug, thiserror::Error)]
enum StaleError {
    #[error(transparent)]
    Table(#[from] TableError),
    #[error(transparent)]
    Diag(#[from] DiagError),
}

/// What a look has found.
type Looked = (BTreeSet<Transport>, Result<BTreeMap<Transport, usize>, StaleError>);

/// Looks for sockets whose backend is gone whenever backends have gone.
pub(super) struct StaleSockets {
    pins: Pins,
    /// Protocols whose sockets are looked at, and how far that has come.
    protocols: BTreeMap<Transport, Looks>,
    looking: JoinSet<Looked>,
    /// Before that, nothing is looked at again.
    rested: Instant,
    /// Why it failed the last time, if it did.
    failure: Option<String>,
}

/// The looks at the sockets of a protocol.
#[derive(Clone, Copy, Debug)]
struct Looks {
    /// When the latest backend was retired.
    since: Instant,
    /// How many of the looks after that have been begun.
    begun: usize,
    /// When the latest look of all began.
    latest: Instant,
    /// Whether there may be sockets that the table must not forget.
    is_regular: bool,
}

impl Looks {
    /// When the next one is due; `None` if there is nothing to look for.
    fn due(&self) -> Option<Instant> {
        let soon = LOOKS.get(self.begun).map(|&delay| self.since + delay);
        soon.or(self.is_regular.then(|| self.latest + REGULARLY))
    }
}

impl StaleSockets {
    /// Looks at sockets of those `protocols` that this kernel can abort; says so if it cannot.
    pub(super) fn new(pins: &Pins, protocols: &[Transport]) -> Self {
        let is_able = |transport: &Transport| {
            let found = Diag::open().and_then(|mut diag| diag.inability(*transport));
            let problem = match found {
                Ok(None) => return true,
                Ok(Some(unable)) => unable.to_string(),
                Err(error) => crate::report(&error),
            };
            match transport {
                Transport::Tcp => {
                    warn!("{problem}: no Service can have TCP connections of the node's processes reset");
                }
                _ => warn!("{problem}: connected UDP sockets of the node stay with a backend that is gone"),
            }
            false
        };
        let now = Instant::now();
        let looks = |transport| Looks {
            since: now,
            begun: LOOKS.len(),
            latest: now,
            is_regular: transport == Transport::Udp,
        };
        let able = protocols.iter().copied().filter(is_able);
        let protocols = able.map(|transport| (transport, looks(transport)));
        Self {
            pins: pins.clone(),
            protocols: protocols.collect(),
            looking: JoinSet::new(),
            rested: Instant::now(),
            failure: None,
        }
    }

    /// Backends of these protocols have gone. `resets` says whether a Service wants TCP connections reset.
    pub(super) fn note(&mut self, retired: &BTreeSet<Transport>, resets: bool) {
        let now = Instant::now();
        self.schedule(retired, now);
        if let Some(looks) = self.protocols.get_mut(&Transport::Tcp) {
            looks.is_regular = resets;
        }
        // Does not wait for whatever else the agent has to do.
        if self.looking.is_empty() && self.rested <= now {
            self.begin();
        }
    }

    fn schedule(&mut self, transports: &BTreeSet<Transport>, since: Instant) {
        for (_, looks) in self.protocols.iter_mut().filter(|(transport, _)| transports.contains(transport)) {
            (looks.since, looks.begun) = (since, 0);
        }
    }

    /// Takes the next step, when it is due. Nothing is lost when the future is dropped.
    pub(super) async fn proceed(&mut self) {
        if self.looking.is_empty() {
            let due = self.protocols.values().filter_map(Looks::due).min();
            reached(due.map(|due| due.max(self.rested))).await;
            self.begin();
        }
        if let Some(looked) = self.looking.join_next().await {
            self.finish(looked);
        }
    }

    /// A thread of its own: there may be many sockets.
    fn begin(&mut self) {
        let now = Instant::now();
        let mut transports = BTreeSet::new();
        for (&transport, looks) in &mut self.protocols {
            if looks.due().is_some_and(|due| due <= now) {
                looks.begun = LOOKS.len().min(looks.begun + 1);
                looks.latest = now;
                transports.insert(transport);
            }
        }
        if transports.is_empty() {
            return;
        }
        let pins = self.pins.clone();
        self.rested = now;
        self.looking.spawn_blocking(move || {
            let found =
                transports.iter().map(|&transport| Ok((transport, look(&pins, transport)?))).collect();
            (transports, found)
        });
    }

    fn finish(&mut self, looked: Result<Looked, JoinError>) {
        let now = Instant::now();
        self.rested = now + now.duration_since(self.rested) * SHARE;
        let failure = match looked {
            Ok((_, Ok(found))) => {
                for (transport, sockets) in found.into_iter().filter(|(_, sockets)| *sockets > 0) {
                    info!(protocol = transport.as_str(), sockets, "aborted sockets whose backend is gone");
                }
                None
            }
            Ok((transports, Err(error))) => {
                self.schedule(&transports, now + RETRY);
                Some(crate::report(&error))
            }
            Err(error) => Some(error.to_string()),
        };
        if let Some(failure) = &failure
            && self.failure.as_ref() != Some(failure)
        {
            warn!("{failure}; sockets may stay connected to a backend that is gone; will try again");
        }
        self.failure = failure;
    }
}

/// The states of sockets that are, or are about to be, connected.
fn connected(transport: Transport) -> StateFlags {
    match transport {
        Transport::Tcp => {
            StateFlags::all() - (StateFlags::LISTEN | StateFlags::CLOSE | StateFlags::TIME_WAIT)
        }
        Transport::Udp | Transport::Sctp => StateFlags::ESTABLISHED,
    }
}

/// Aborts the sockets of a protocol whose backend is gone. Returns how many there were. The socket table knows which ones
/// got their backend from Sluice: those that dialled a pod are not there.
fn look(pins: &Pins, transport: Transport) -> Result<usize, StaleError> {
    let (mut known, backends) = (HashTable::<Sockets>::open(pins)?, ArrayTable::<Backends>::open(pins)?);
    let mut diag = Diag::open()?;
    let (mut aborted, mut refused) = (0, None);
    for family in Family::ALL {
        for socket in diag.list(transport, family, connected(transport))? {
            let key = SocketKey::new(socket.cookie(), socket.peer(), View::BACKEND);
            let Some(entry) = known.get(&key)? else {
                continue;
            };
            // TCP stays with its backend unless that was agreed otherwise when it connected (CT-20).
            if transport == Transport::Tcp && !entry.facts.contains(SocketFacts::RESET) {
                continue;
            }
            if backends.get(entry.backend.0)?.is_some_and(|backend| backend.serves(entry.generation)) {
                known.put(&key, &entry)?;
                continue;
            }
            match diag.abort(transport, &socket) {
                Ok(outcome) => aborted += usize::from(outcome == Aborted::Now),
                // The others must not wait for this one.
                Err(error) => refused = Some(error),
            }
        }
    }
    refused.map_or(Ok(aborted), |error| Err(error.into()))
}
