//! Whether a service answers, asked again and again.

use std::{
    io::ErrorKind,
    net::SocketAddr,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use socket2::{Domain, Socket, Type};

/// How long a connection may take: many times what it does. Where nothing serves, SYNs vanish, and the next one is to follow soon.
const ANSWER: Duration = Duration::from_millis(2);
/// Between two questions.
const PAUSE: Duration = Duration::from_micros(200);

/// Waits until connections succeed.
///
/// # Errors
///
/// If they never do.
pub(crate) fn wait_until_reached(to: SocketAddr, patience: Duration) -> Result<()> {
    wait_until(to, true, patience).map(drop)
}

/// Waits until a connection succeeds, or is refused. One that is not answered in time is neither: whoever is to answer may be busy.
/// Returns when it was known.
///
/// # Errors
///
/// If that is never so.
pub(crate) fn wait_until(to: SocketAddr, is_reached: bool, patience: Duration) -> Result<Instant> {
    let begin = Instant::now();
    loop {
        let asked = Instant::now();
        if connects(to)? == Some(is_reached) {
            // That it is reached is known when it answers; that it is not, from when it was asked.
            return Ok(if is_reached { Instant::now() } else { asked });
        }
        ensure!(
            begin.elapsed() < patience,
            "{to}: waited {patience:?} until connections succeed: {is_reached}"
        );
        thread::sleep(PAUSE);
    }
}

/// Waits until nobody has had this answer for a while: rules that change answer one way and the other for a moment.
///
/// # Errors
///
/// If somebody goes on having it.
pub(crate) fn wait_until_no_more(to: SocketAddr, is_reached: bool, patience: Duration) -> Result<()> {
    /// Questions in a row.
    const ENOUGH: u32 = 50;
    let begin = Instant::now();
    let mut without = 0;
    while without < ENOUGH {
        without = if connects(to)? == Some(is_reached) { 0 } else { without + 1 };
        ensure!(begin.elapsed() < patience, "{to}: connections that succeed: {is_reached}, for {patience:?}");
        thread::sleep(PAUSE);
    }
    Ok(())
}

/// Whether a connection succeeds or is refused; `None` if neither.
fn connects(to: SocketAddr) -> Result<Option<bool>> {
    let socket = Socket::new(Domain::for_address(to), Type::STREAM, None)?;
    // With a reset, so that neither end remembers it.
    socket.set_linger(Some(Duration::ZERO))?;
    Ok(match socket.connect_timeout(&to.into(), ANSWER) {
        Ok(()) => Some(true),
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => Some(false),
        Err(_) => None,
    })
}
