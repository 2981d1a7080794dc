//! Questions over HTTP, one per connection.

use std::{
    collections::BTreeMap,
    io::{Read as _, Write as _},
    net::SocketAddr,
};

use anyhow::{Context as _, Result};

use super::{PATIENCE, Source, connect_raw};
use crate::netns::Namespace;

/// What was answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply {
    /// Status code.
    pub status: u16,
    /// Headers, by names in lower case.
    pub headers: BTreeMap<String, String>,
    /// Body.
    pub body: String,
}

impl Reply {
    /// A header's value; empty if it is not there.
    #[must_use]
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", String::as_str)
    }

    fn parse(text: &str) -> Option<Self> {
        let (head, body) = text.split_once("\r\n\r\n")?;
        let mut lines = head.split("\r\n");
        let status = lines.next()?.split(' ').nth(1)?.parse().ok()?;
        let header = |line: &str| {
            let (name, value) = line.split_once(':')?;
            Some((name.to_lowercase(), value.trim().to_owned()))
        };
        Some(Self { status, headers: lines.filter_map(header).collect(), body: body.to_owned() })
    }
}

/// Asks from a namespace, with further headers.
///
/// # Errors
///
/// If nobody listens, or does not answer in time, or not in HTTP.
pub fn ask(
    from: &Namespace,
    to: SocketAddr,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
) -> Result<Reply> {
    let mut stream = connect_raw(from, to, Source::AnyPort, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut request = format!("{method} {path} HTTP/1.1\r\nHost: {to}\r\nConnection: close\r\n");
    for (name, value) in headers {
        request += &format!("{name}: {value}\r\n");
    }
    request += "\r\n";
    stream.write_all(request.as_bytes()).with_context(|| format!("ask {to}"))?;
    let mut text = String::new();
    stream.read_to_string(&mut text).with_context(|| format!("the answer of {to}"))?;
    Reply::parse(&text).with_context(|| format!("{to} answers in no HTTP: {text:?}"))
}

/// Asks with `GET`.
///
/// # Errors
///
/// As [`ask`].
pub fn get(from: &Namespace, to: SocketAddr, path: &str) -> Result<Reply> {
    ask(from, to, "GET", path, &[])
}
