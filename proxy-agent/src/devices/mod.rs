//! The node's network devices, addresses and ways out, and what follows from them for each device.
//!
//! ```text
//! rtnetlink --list--> Inventory --+-- placement: do the programs belong on it?
//!                                 +-- row:       class, pod traffic, source addresses
//!                                 +-- xdp:       are its packets met before the stack?
//!                                 +-- delivery:  are packets delivered past the stack?
//! ```
//!
//! Only [`watch`](Devices) asks the kernel, and [`ways_to`] for people; everything else is a function of an [`Inventory`].

mod class;
mod delivery;
mod inventory;
mod placement;
mod row;
mod source;
mod watch;
mod way;
mod xdp;

pub use class::{Class, ClassRules, NamePattern, ParsePatternError};
pub use delivery::{BridgeNetfilter, LocalDelivery};
pub use inventory::{Address, Device, DeviceKind, Ifindex, Inventory, LinkHeader, Standing};
pub use placement::{Skip, placement};
pub use row::{DeviceRules, PodDevices, row};
pub use source::node_address;
pub use watch::{DeviceError, Devices, list, name_of};
pub use way::{Way, way_to, ways_to};
pub use xdp::{Conntrack, ParseXdpError, XdpPolicy, XdpRules};
