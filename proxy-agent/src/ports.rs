//! Ranges of ports that others use.

use std::{fmt, io, num::ParseIntError, str::FromStr};

use serde::{Deserialize, Serialize};

/// Ports one after the other, both ends included.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct PortRange {
    first: u16,
    last: u16,
}

/// The text is no range of ports.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParseRangeError {
    /// A part is no port.
    #[error("not a range of ports such as 30000-32767, 30000+2767 or 30000")]
    NotANumber(#[from] ParseIntError),
    /// It ends before it begins, or beyond the last port.
    #[error("the range is empty or goes beyond port 65535")]
    Empty,
}

impl PortRange {
    /// Where the API server takes NodePorts from, unless it is told otherwise.
    pub const NODE_PORTS: Self = Self { first: 30_000, last: 32_767 };
    /// Where the kernel takes the ports of sockets from, unless it is told otherwise.
    pub const SOCKETS: Self = Self { first: 32_768, last: 60_999 };

    /// Its first and last port.
    #[must_use]
    pub const fn ends(self) -> (u16, u16) {
        (self.first, self.last)
    }

    /// Where this network namespace's kernel takes the ports of sockets from.
    pub fn of_sockets() -> io::Result<Self> {
        let text = std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range")?;
        Self::parse_sysctl(&text).map_err(io::Error::other)
    }

    fn new(first: u16, last: u16) -> Result<Self, ParseRangeError> {
        if first <= last { Ok(Self { first, last }) } else { Err(ParseRangeError::Empty) }
    }

    /// Two numbers with blanks between them.
    fn parse_sysctl(text: &str) -> Result<Self, ParseRangeError> {
        let (first, last) = text.trim().split_once(char::is_whitespace).ok_or(ParseRangeError::Empty)?;
        Self::new(first.parse()?, last.trim().parse()?)
    }
}

impl FromStr for PortRange {
    type Err = ParseRangeError;

    /// Reads a range as the API server's `--service-node-port-range` is written: `first-last`, `first+more` or one port.
    fn from_str(text: &str) -> Result<Self, ParseRangeError> {
        if let Some((first, last)) = text.split_once('-') {
            Self::new(first.trim().parse()?, last.trim().parse()?)
        } else if let Some((first, more)) = text.split_once('+') {
            let (first, more): (u16, u16) = (first.trim().parse()?, more.trim().parse()?);
            Self::new(first, first.checked_add(more).ok_or(ParseRangeError::Empty)?)
        } else {
            let port = text.trim().parse()?;
            Self::new(port, port)
        }
    }
}

impl fmt::Display for PortRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.first, self.last)
    }
}

impl TryFrom<String> for PortRange {
    type Error = ParseRangeError;

    fn try_from(text: String) -> Result<Self, ParseRangeError> {
        text.parse()
    }
}

impl From<PortRange> for String {
    fn from(range: PortRange) -> Self {
        range.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_read_as_the_api_server_reads_them() {
        for (text, first, last) in [
            ("30000-32767", 30_000, 32_767),
            ("30000 - 32767", 30_000, 32_767),
            ("30000+2767", 30_000, 32_767),
            ("30000+0", 30_000, 30_000),
            ("31000", 31_000, 31_000),
            ("0-65535", 0, 65_535),
        ] {
            assert_eq!(text.parse(), Ok(PortRange { first, last }), "{text}");
        }
        for text in ["", "-", "30000-", "30000-29999", "30000-65536", "65535+1", "1-2-3", "http", "-5"] {
            assert!(text.parse::<PortRange>().is_err(), "{text:?}");
        }
        assert_eq!(PortRange::NODE_PORTS.to_string().parse(), Ok(PortRange::NODE_PORTS));
    }

    #[test]
    fn the_kernel_writes_two_numbers() {
        assert_eq!(PortRange::parse_sysctl("32768\t60999\n"), Ok(PortRange::SOCKETS));
        assert!(PortRange::parse_sysctl("32768").is_err());
        assert!(PortRange::of_sockets().is_ok());
    }
}
