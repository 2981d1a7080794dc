//! Addresses to serve at, as flags and configuration write them.

use std::net::SocketAddr;

use proxy_model::parse_ip;

/// Where kube-proxy serves `/healthz`.
pub(super) const HEALTHZ_PORT: u16 = 10256;
/// Where kube-proxy serves `/metrics`.
pub(super) const METRICS_PORT: u16 = 10249;

/// All addresses and the loopback address, of the family of `bindAddress` (HZ-01, MAPI).
pub(super) fn defaults(bind_address: &str) -> (&'static str, &'static str) {
    match parse_ip(bind_address) {
        Some(ip) if ip.is_ipv6() => ("::", "::1"),
        _ => ("0.0.0.0", "127.0.0.1"),
    }
}

/// The address with the port, if it is an address without one. Whatever else it is, validation will say.
pub(super) fn with_port(text: &str, port: u16) -> String {
    match parse_ip(text) {
        // Not what it was read as: kube-proxy prints what was given.
        Some(_) if text.contains(':') => format!("[{text}]:{port}"),
        Some(_) => format!("{text}:{port}"),
        None => text.to_owned(),
    }
}

/// An address with a port from 1, IPv6 in brackets.
pub(super) fn parse(text: &str) -> Option<SocketAddr> {
    let (host, port) = text.rsplit_once(':')?;
    let ip = match host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
        Some(host) => parse_ip(host)?,
        None if host.contains(':') => return None,
        None => parse_ip(host)?,
    };
    // `u16::from_str` would take a plus sign.
    let port = port.bytes().all(|byte| byte.is_ascii_digit()).then(|| port.parse().ok()).flatten()?;
    (port != 0).then(|| SocketAddr::new(ip, port))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_is_appended_to_what_has_none() {
        for (text, expected) in [
            ("10.0.0.1", "10.0.0.1:7"),
            ("10.0.0.1:80", "10.0.0.1:80"),
            ("010.0.0.1", "010.0.0.1:7"),
            ("::", "[::]:7"),
            ("fd00::1", "[fd00::1]:7"),
            ("[fd00::1]:80", "[fd00::1]:80"),
            ("[fd00::1]", "[fd00::1]"),
            ("localhost", "localhost"),
            ("", ""),
        ] {
            assert_eq!(with_port(text, 7), expected, "{text}");
        }
    }

    #[test]
    fn defaults_are_of_the_family_of_the_bind_address() {
        assert_eq!(defaults("0.0.0.0"), ("0.0.0.0", "127.0.0.1"));
        assert_eq!(defaults("fd00::1"), ("::", "::1"));
        assert_eq!(defaults("nonsense"), ("0.0.0.0", "127.0.0.1"));
    }

    #[test]
    fn only_addresses_with_ports_can_be_served_at() {
        for (text, expected) in [
            ("10.0.0.1:80", Some("10.0.0.1:80")),
            ("010.0.0.01:80", Some("10.0.0.1:80")),
            ("[::]:10256", Some("[::]:10256")),
            ("10.0.0.1", None),
            ("10.0.0.1:0", None),
            ("10.0.0.1:65536", None),
            ("10.0.0.1:+80", None),
            ("10.0.0.1:", None),
            ("::1:80", None),
            ("[10.0.0.1:80", None),
            ("localhost:80", None),
            (":80", None),
            ("", None),
        ] {
            assert_eq!(parse(text), expected.map(|text| text.parse().unwrap()), "{text}");
        }
    }
}
