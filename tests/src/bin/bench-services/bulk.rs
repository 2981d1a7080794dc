//! One connection that sends as much as it can.

use std::{
    io::Write as _,
    net::{SocketAddr, TcpStream},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use sluice_tests::{
    bench::{
        message::UPLOAD,
        time::{self, SoftirqThread},
    },
    traffic::PATIENCE,
};
use socket2::SockRef;

/// Bytes that are written at a time.
const BLOCK: usize = 1 << 17;

/// Bytes per second, and seconds of CPU time for each byte, after a tenth of the time in which buffers fill.
pub(crate) fn run(to: SocketAddr, duration: Duration, softirq: SoftirqThread) -> Result<(f64, f64)> {
    let mut stream = TcpStream::connect(to).with_context(|| format!("connect to {to}"))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    SockRef::from(&stream).set_linger(Some(Duration::ZERO))?;
    stream.write_all(UPLOAD)?;
    send_for(&mut stream, duration / 10)?;
    let (begin, cpu) = (Instant::now(), time::of_work(softirq)?);
    let bytes = send_for(&mut stream, duration)?;
    let (elapsed, cpu) = (begin.elapsed(), time::of_work(softirq)? - cpu);
    Ok((bytes / elapsed.as_secs_f64(), cpu.as_secs_f64() / bytes))
}

fn send_for(stream: &mut TcpStream, duration: Duration) -> Result<f64> {
    let (begin, block, mut bytes) = (Instant::now(), vec![0; BLOCK], 0.0);
    while begin.elapsed() < duration {
        bytes += stream.write(&block).context("nobody takes what is sent")? as f64;
    }
    Ok(bytes)
}
