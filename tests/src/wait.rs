//! Waiting for something to become true.

use std::{
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, anyhow};

use crate::traffic::PATIENCE;

const INTERVAL: Duration = Duration::from_millis(20);

/// Asks `ready` again and again until it has an answer.
///
/// # Errors
///
/// If it still has none after [`PATIENCE`], or as soon as it fails.
pub fn wait_until<T>(what: &str, ready: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    wait_at_most(PATIENCE, what, ready)
}

/// As [`wait_until`], for what lasts only a moment: asks without a pause.
///
/// # Errors
///
/// As for [`wait_until`].
pub fn catch<T>(what: &str, ready: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    poll(PATIENCE, Duration::ZERO, what, ready)
}

/// As [`wait_until`], for what may take its time.
///
/// # Errors
///
/// If there is no answer after `patience`, or as soon as `ready` fails.
pub fn wait_at_most<T>(
    patience: Duration,
    what: &str,
    ready: impl FnMut() -> Result<Option<T>>,
) -> Result<T> {
    poll(patience, INTERVAL, what, ready)
}

fn poll<T>(
    patience: Duration,
    interval: Duration,
    what: &str,
    mut ready: impl FnMut() -> Result<Option<T>>,
) -> Result<T> {
    let start = Instant::now();
    loop {
        if let Some(answer) = ready().with_context(|| format!("waiting until {what}"))? {
            return Ok(answer);
        }
        if start.elapsed() > patience {
            return Err(anyhow!("waited {patience:?} until {what}, in vain"));
        }
        thread::sleep(interval);
    }
}
