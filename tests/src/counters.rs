//! What the kernel knows about the inside of a namespace.

use std::collections::BTreeSet;

use anyhow::{Context as _, Result};

use crate::netns::Namespace;

/// How many SYNs have had to be repeated so far. Repetition hides a lost packet from everybody but this counter.
///
/// # Errors
///
/// If the kernel does not say.
pub fn syn_retransmissions(namespace: &Namespace) -> Result<u64> {
    value(&read(namespace, "netstat")?, "TcpExt:", "TCPSynRetrans")
}

/// How many TCP segments this namespace has had to repeat so far, or thought so.
///
/// # Errors
///
/// If the kernel does not say.
pub fn repeated_segments(namespace: &Namespace) -> Result<u64> {
    value(&read(namespace, "snmp")?, "Tcp:", "RetransSegs")
}

/// How many of them the other end has called needless, as the first one had arrived, only late (RFC 2883).
///
/// # Errors
///
/// If the kernel does not say.
pub fn needless_segments(namespace: &Namespace) -> Result<u64> {
    value(&read(namespace, "netstat")?, "TcpExt:", "TCPDSACKRecvSegs")
}

/// How many connections this namespace has reset so far.
///
/// # Errors
///
/// If the kernel does not say.
pub fn resets_sent(namespace: &Namespace) -> Result<u64> {
    value(&read(namespace, "snmp")?, "Tcp:", "OutRsts")
}

/// A value of `/proc/net/netstat` or `snmp`: a line of names, then one of values, with one prefix.
fn value(text: &str, prefix: &str, name: &str) -> Result<u64> {
    let mut lines = text.lines().filter_map(|line| line.strip_prefix(prefix));
    let names = lines.next().with_context(|| format!("no names after {prefix}"))?;
    let values = lines.next().with_context(|| format!("no values after {prefix}"))?;
    let value = names.split(' ').zip(values.split(' ')).find(|(known, _)| *known == name);
    value.with_context(|| format!("no {name} after {prefix}"))?.1.parse().context("a count")
}

/// Frames and bytes that a device has received.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Received {
    /// Frames. A large segment that was never split is one.
    pub frames: u64,
    /// Bytes.
    pub bytes: u64,
}

/// What a device of a namespace has received so far.
///
/// # Errors
///
/// If there is no such device.
pub fn received(namespace: &Namespace, device: &str) -> Result<Received> {
    let text = read(namespace, "dev")?;
    let find = |line: &str| Some(line.trim_start().strip_prefix(device)?.strip_prefix(':')?.to_owned());
    let line = text.lines().find_map(find).with_context(|| format!("no device {device}"))?;
    let mut fields = line.split_whitespace();
    let mut next = || fields.next().context("a field of /proc/net/dev")?.parse().context("a count");
    Ok(Received { bytes: next()?, frames: next()? })
}

/// Names of the devices in a namespace.
///
/// # Errors
///
/// If the kernel does not say.
pub fn devices(namespace: &Namespace) -> Result<BTreeSet<String>> {
    let name = |line: &str| Some(line.split_once(':')?.0.trim().to_owned());
    Ok(read(namespace, "dev")?.lines().filter_map(name).collect())
}

fn read(namespace: &Namespace, name: &str) -> Result<String> {
    let path = format!("/proc/thread-self/net/{name}");
    namespace.run(|| std::fs::read_to_string(&path).with_context(|| format!("read {path}")))
}
