//! A connection that is never silent.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use anyhow::{Result, anyhow, bail};

use super::Connection;
use crate::wait::wait_until;

/// Pause between messages: the machine has more to do than this.
const PACE: Duration = Duration::from_millis(1);

/// Sends numbered messages on a connection, one after the other's echo, until stopped.
#[derive(Debug)]
pub struct Chatter {
    /// Name of the machine at the other end.
    pub backend: String,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<Result<()>>>,
}

#[derive(Debug, Default)]
struct Shared {
    echoed: AtomicU64,
    stop: AtomicBool,
}

impl Chatter {
    /// Starts on a connection.
    ///
    /// # Errors
    ///
    /// If it is broken.
    pub fn start(mut connection: Connection) -> Result<Self> {
        connection.start_echo()?;
        let shared = Arc::new(Shared::default());
        let theirs = Arc::clone(&shared);
        let backend = connection.backend.clone();
        let thread = thread::spawn(move || {
            while !theirs.stop.load(Ordering::Relaxed) {
                connection.echo(theirs.echoed.load(Ordering::Relaxed))?;
                theirs.echoed.fetch_add(1, Ordering::Relaxed);
                thread::sleep(PACE);
            }
            Ok(())
        });
        Ok(Self { backend, shared, thread: Some(thread) })
    }

    /// Waits until `more` messages have come back from now on: proof that the connection lives.
    ///
    /// # Errors
    ///
    /// If they do not.
    pub fn expect_more(&self, more: u64) -> Result<()> {
        let goal = self.shared.echoed.load(Ordering::Relaxed) + more;
        wait_until("the echoing connection makes progress", || {
            if self.thread.as_ref().is_none_or(JoinHandle::is_finished) {
                bail!("the echoing connection to {} broke", self.backend);
            }
            Ok((self.shared.echoed.load(Ordering::Relaxed) >= goal).then_some(()))
        })
    }

    /// Ends it. Returns how many messages came back.
    ///
    /// # Errors
    ///
    /// If one did not.
    pub fn stop(mut self) -> Result<u64> {
        self.shared.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.join().map_err(|_| anyhow!("the echoing thread panicked"))??;
        }
        Ok(self.shared.echoed.load(Ordering::Relaxed))
    }
}

impl Drop for Chatter {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
    }
}
