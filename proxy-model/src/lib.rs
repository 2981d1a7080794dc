//! model

mod change;

pub use change::{Change, Event, ObjectName};
