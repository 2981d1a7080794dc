//! Addresses to listen on, as flags write them.

use std::net::{IpAddr, SocketAddr};

/// The text is no address to listen on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not an IP address, or an IP address and a port, such as 0.0.0.0:10256 or [::]:10256")]
pub struct ParseAddressError;

/// An address with or without a port (FLAG-12, FLAG-13). What is left out, is as in `default`; so is everything if the text is
/// empty, which in kube-proxy disables nothing either (FLAG-43).
///
/// # Errors
///
/// If it is something else, or the port is 0 (LIFE-03).
pub fn bind_address(text: &str, default: SocketAddr) -> Result<SocketAddr, ParseAddressError> {
    if text.is_empty() {
        return Ok(default);
    }
    let address = match text.parse::<IpAddr>() {
        Ok(ip) => SocketAddr::new(ip, default.port()),
        Err(_) => text.parse().map_err(|_| ParseAddressError)?,
    };
    if address.port() == 0 { Err(ParseAddressError) } else { Ok(address) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_may_be_left_out() {
        let default: SocketAddr = "0.0.0.0:10256".parse().unwrap();
        for (text, address) in [
            ("", "0.0.0.0:10256"),
            ("192.0.2.1", "192.0.2.1:10256"),
            ("192.0.2.1:80", "192.0.2.1:80"),
            ("::", "[::]:10256"),
            ("fd00::1", "[fd00::1]:10256"),
            ("[::1]:65535", "[::1]:65535"),
        ] {
            assert_eq!(bind_address(text, default), Ok(address.parse().unwrap()), "{text}");
        }
        for text in
            [" ", ":80", "localhost", "192.0.2.1:", "192.0.2.1:0", "192.0.2.1:65536", "[::1]", "10256"]
        {
            assert_eq!(bind_address(text, default), Err(ParseAddressError), "{text}");
        }
    }
}
