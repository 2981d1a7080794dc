//! A connection that is never empty.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
};

use anyhow::{Result, anyhow, bail};

use super::{Connection, Direction};
use crate::wait::wait_until;

/// Bytes between comparisons of digests.
const PART: u64 = 32 << 20;

/// Moves data on one connection at full speed until stopped, and compares it by digest all along.
#[derive(Debug)]
pub struct Pump {
    /// Name of the machine at the other end, and who sends: for error messages.
    what: String,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<Result<()>>>,
}

#[derive(Debug, Default)]
struct Shared {
    bytes: AtomicU64,
    stop: AtomicBool,
}

impl Pump {
    /// Starts on a connection.
    #[must_use]
    pub fn start(mut connection: Connection, direction: Direction) -> Self {
        let shared = Arc::new(Shared::default());
        let theirs = Arc::clone(&shared);
        let what = format!("the {direction:?} with {} from {:?}", connection.backend, connection.seen_as);
        let thread = thread::spawn(move || {
            while !theirs.stop.load(Ordering::Relaxed) {
                connection.transfer(direction, PART, &theirs.bytes)?;
            }
            Ok(())
        });
        Self { what, shared, thread: Some(thread) }
    }

    /// Waits until `more` bytes have moved from now on.
    ///
    /// # Errors
    ///
    /// If they do not.
    pub fn expect_more(&self, more: u64) -> Result<()> {
        let goal = self.shared.bytes.load(Ordering::Relaxed) + more;
        wait_until(&format!("{} makes progress", self.what), || {
            if self.thread.as_ref().is_none_or(JoinHandle::is_finished) {
                bail!("the connection broke");
            }
            Ok((self.shared.bytes.load(Ordering::Relaxed) >= goal).then_some(()))
        })
    }

    /// Ends it after the part that is under way. Returns how many bytes arrived whole.
    ///
    /// # Errors
    ///
    /// If the transfer broke or a digest differed.
    pub fn stop(mut self) -> Result<u64> {
        self.shared.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.join().map_err(|_| anyhow!("the transferring thread panicked"))??;
        }
        Ok(self.shared.bytes.load(Ordering::Relaxed))
    }
}

impl Drop for Pump {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
    }
}
