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
pub fn wait_until<T>(what: &str, mut ready: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    let start = Instant::now();
    loop {
        if let Some(answer) = ready().with_context(|| format!("waiting until {what}"))? {
            return Ok(answer);
        }
        if start.elapsed() > PATIENCE {
            return Err(anyhow!("waited {PATIENCE:?} until {what}, in vain"));
        }
        thread::sleep(INTERVAL);
    }
}
