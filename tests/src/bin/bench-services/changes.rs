//! How soon services are as they should be.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use serde::Serialize;
use sluice_tests::bench::summary::Summary;

use crate::{
    bed::{Bed, Start},
    peer::System,
};

/// Where a change takes long, fewer of them are timed.
const TIME: Duration = Duration::from_secs(4);

/// What a number of services costs a system before any packet, all in seconds and bytes.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Row {
    pub(crate) services: u32,
    pub(crate) system: System,
    pub(crate) start: Start,
    /// From when a service is made until a pod reaches it.
    pub(crate) made: Summary,
    /// From when its endpoint is gone until a connection is refused.
    pub(crate) gone: Summary,
    /// How many of each were timed.
    pub(crate) changes: u32,
}

/// Times changes, at most so many.
pub(crate) fn measure(bed: &mut Bed, services: u32, start: Start, most: u32) -> Result<Row> {
    let begin = Instant::now();
    let (mut made, mut gone) = (Vec::new(), Vec::new());
    while made.is_empty() || (made.len() < usize::try_from(most)? && begin.elapsed() < TIME) {
        let [one, other] = bed.change()?.context("a system without services")?;
        made.push(one);
        gone.push(other);
    }
    let changes = u32::try_from(made.len())?;
    let (made, gone) = Summary::of(made).zip(Summary::of(gone)).context("no changes")?;
    Ok(Row { services, system: bed.system, start, made, gone, changes })
}
