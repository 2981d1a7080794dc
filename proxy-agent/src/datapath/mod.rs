//! The kernel side as the agent sees it: programs, maps, links. The only place that names aya.

mod attach;
mod batch;
mod capacity;
mod cleanup;
mod clock;
mod kept;
mod list;
mod listen;
mod load;
mod log;
mod map;
mod pins;
mod preflight;
mod probe;
mod resize;
mod retire;
mod sockets;
mod sweep;
mod tables;

pub use attach::{AttachError, PinnedHook, attach, detach_others, pinned_hooks, programs};
pub use capacity::{Capacities, table_capacities};
pub use cleanup::{CleanupError, Removed, cleanup};
pub use clock::{Clock, ClockError};
pub use kept::KeepError;
pub use listen::{EventStream, ListenError};
pub use load::{Datapath, LoadError, OBJECT, Program, Resizing, SocketProgram, load};
pub use log::forward as forward_log;
pub use map::{ArrayTable, HashTable, PerCpuHashTable, PerCpuTable, TableError, TrieTable};
pub use pins::{PinError, Pins};
pub use preflight::PreflightError;
pub use probe::{Feature, VERIFIER_LIMIT, Verified, check_process, features, program_names, verify};
pub use resize::move_tables;
pub use retire::{RetireError, retire};
pub use sockets::{SocketHook, SocketHookError, attach_socket, detach_sockets, socket_hooks};
pub use sweep::{Pressure, Sweep, sweep};
pub use tables::KernelTables;
