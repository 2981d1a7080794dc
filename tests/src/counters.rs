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

/// How many connections this namespace has reset so far.
///
/// # Errors
///
/// If the kernel does not say.
pub fn resets_sent(namespace: &Namespace) -> Result<u64> {
    value(&read(namespace, "snmp")?, "Tcp:", "OutRsts")
}

/// Everything that the kernel has counted of TCP here, in words: what a test says that does not know why.
///
/// # Errors
///
/// If the kernel does not say.
pub fn tcp(namespace: &Namespace) -> Result<String> {
    let (netstat, snmp) = (read(namespace, "netstat")?, read(namespace, "snmp")?);
    let counters = counters(&netstat, "TcpExt:")?.chain(counters(&snmp, "Tcp:")?);
    let counted = counters.filter(|(_, value)| *value != "0").map(|(name, value)| format!("{name} {value}"));
    Ok(counted.collect::<Vec<_>>().join(", "))
}

/// How many datagrams had no room in the buffers of the sockets that they came to, so far.
///
/// # Errors
///
/// If the kernel does not say.
pub fn overflowing_datagrams(namespace: &Namespace) -> Result<u64> {
    let v6 = read(namespace, "snmp6")?;
    let v6 = v6.lines().find_map(|line| line.strip_prefix("Udp6RcvbufErrors"));
    let v6: u64 = v6.context("no Udp6RcvbufErrors")?.trim().parse().context("a count")?;
    Ok(value(&read(namespace, "snmp")?, "Udp:", "RcvbufErrors")? + v6)
}

/// A value of `/proc/net/netstat` or `snmp`.
fn value(text: &str, prefix: &str, name: &str) -> Result<u64> {
    let value = counters(text, prefix)?.find(|(known, _)| *known == name);
    value.with_context(|| format!("no {name} after {prefix}"))?.1.parse().context("a count")
}

/// Names and values: a line of names, then one of values, with one prefix.
fn counters<'a>(text: &'a str, prefix: &str) -> Result<impl Iterator<Item = (&'a str, &'a str)>> {
    let mut lines = text.lines().filter_map(|line| line.strip_prefix(prefix));
    let names = lines.next().with_context(|| format!("no names after {prefix}"))?;
    let values = lines.next().with_context(|| format!("no values after {prefix}"))?;
    Ok(names.split_whitespace().zip(values.split_whitespace()))
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
