//! The hash behind consistent choices: of a packet's tuple here, of backends' addresses where tables are made.
//!
//! Every node, of whatever architecture and build, has to come to the same number. So it is a published one
//! (`MurmurHash3_x86_32`, Austin Appleby), with fixed seeds, over words that are little-endian wherever they are. It takes one
//! register of state and a dozen instructions a word, which suits the kernel; CRC32c does not do, as it is linear: tuples that
//! differ in the same bits would differ by the same number, and it has no final step that spreads them. It keeps nobody from
//! choosing a tuple for the sake of its hash.

use crate::tuple::FlowKey;

/// Of tuples.
const TUPLES: u32 = 0x51c0_7001;

/// The hash of words in memory order, as of the bytes that they are.
#[must_use]
#[inline(always)]
pub const fn murmur3<const WORDS: usize>(words: [u32; WORDS], seed: u32) -> u32 {
    let mut hash = seed;
    let mut at = 0;
    while at < WORDS {
        let word =
            u32::from_le(words[at]).wrapping_mul(0xcc9e_2d51).rotate_left(15).wrapping_mul(0x1b87_3593);
        hash = (hash ^ word).rotate_left(13).wrapping_mul(5).wrapping_add(0xe654_6b64);
        at += 1;
    }
    #[expect(clippy::cast_possible_truncation, reason = "the length of an array of numbers, in bytes")]
    let length = (4 * WORDS) as u32;
    hash ^= length;
    hash = (hash ^ hash >> 16).wrapping_mul(0x85eb_ca6b);
    hash = (hash ^ hash >> 13).wrapping_mul(0xc2b2_ae35);
    hash ^ hash >> 16
}

/// The hash of a client's packet to a service: of its address and port, the frontend's port, and the protocol.
///
/// The frontend's address is left out: a NodePort has one on each node, and a client is to find the same backend by all.
#[must_use]
#[inline(always)]
pub const fn of_request(key: &FlowKey) -> u32 {
    let [a, b, c, d] = key.source.words();
    let [s, t] = key.source_port.raw().to_ne_bytes();
    let [u, v] = key.destination_port.raw().to_ne_bytes();
    murmur3(
        [a, b, c, d, u32::from_ne_bytes([s, t, u, v]), u32::from_ne_bytes([key.protocol.0, 0, 0, 0])],
        TUPLES,
    )
}

#[cfg(test)]
mod tests {
    use std::{net::SocketAddr, vec, vec::Vec};

    use super::*;
    use crate::{
        endian::Be16,
        tuple::{Endpoint, Hook, Protocol},
    };

    fn key(client: SocketAddr, frontend: SocketAddr, protocol: Protocol) -> FlowKey {
        let end = |end: SocketAddr| Endpoint { address: end.ip().into(), port: Be16::from_host(end.port()) };
        FlowKey::new(end(client), end(frontend), protocol, Hook::INGRESS)
    }

    fn of(client: &str, frontend: &str, protocol: Protocol) -> u32 {
        of_request(&key(client.parse().unwrap(), frontend.parse().unwrap(), protocol))
    }

    /// Published test vectors, as far as they are whole words.
    #[test]
    fn the_published_values_come_out() {
        let of_bytes = |bytes: [u8; 4], seed| murmur3([u32::from_ne_bytes(bytes)], seed);
        assert_eq!(murmur3([], 0), 0);
        assert_eq!(murmur3([], 1), 0x514e_28b7);
        assert_eq!(murmur3([], u32::MAX), 0x81f1_6f39);
        assert_eq!(of_bytes([0; 4], 0), 0x2362_f9de);
        assert_eq!(of_bytes([0xff; 4], 0), 0x7629_3b50);
        assert_eq!(of_bytes([0x21, 0x43, 0x65, 0x87], 0), 0xf55b_516b);
        assert_eq!(of_bytes([0x21, 0x43, 0x65, 0x87], 0x5082_edee), 0x2362_f9de);
    }

    /// Nodes of different versions choose alike: these never change. Computed apart, from the description of the algorithm.
    #[test]
    fn tuples_have_the_same_hash_for_ever() {
        let tcp = Protocol::TCP;
        let found = [
            of("192.0.2.1:40000", "203.0.113.1:80", tcp),
            of("[2001:db8::1]:40000", "[2001:db8::2]:80", tcp),
            of("192.0.2.1:40000", "203.0.113.1:80", Protocol::UDP),
        ];
        assert_eq!(found, [0x8bab_9c0c, 0x5e4a_5dab, 0xeaae_33f8], "{found:x?}");
    }

    #[test]
    fn it_asks_for_all_but_the_address_of_the_frontend() {
        let base = of("192.0.2.1:40000", "203.0.113.1:80", Protocol::TCP);
        assert_eq!(of("192.0.2.1:40000", "203.0.113.9:80", Protocol::TCP), base);
        for (client, frontend, protocol) in [
            ("192.0.2.2:40000", "203.0.113.1:80", Protocol::TCP),
            ("192.0.2.1:40001", "203.0.113.1:80", Protocol::TCP),
            ("192.0.2.1:40000", "203.0.113.1:81", Protocol::TCP),
            ("192.0.2.1:40000", "203.0.113.1:80", Protocol::UDP),
        ] {
            assert_ne!(of(client, frontend, protocol), base, "{client} {frontend} {protocol:?}");
        }
    }

    /// Chi-squared over the slots of a table, as [`crate::frontend::SlotRun`] makes them of hashes, for the clients that there
    /// are: one host with many ports, many hosts with the same port, and hosts that count both up.
    #[test]
    fn what_clients_do_spreads_over_all_slots() {
        const SLOTS: u32 = 251;
        const CLIENTS: u32 = 251 * 200;
        let run = crate::frontend::SlotRun { base: 0, count: SLOTS };
        let v4 = |host: u32, port: u32| {
            let [_, b, c, d] = host.to_be_bytes();
            SocketAddr::new([10, b, c, d].into(), u16::try_from(port).unwrap())
        };
        let v6 = |host: u32, port: u32| {
            let [a, b, c, d] = host.to_be_bytes().map(u16::from);
            SocketAddr::new([0x2001, 0xdb8, 0, 0, a, b, c, d].into(), u16::try_from(port).unwrap())
        };
        let all = || 0..CLIENTS;
        let clients: [(&str, Vec<SocketAddr>); 4] = [
            ("ports", all().map(|n| v4(7, 1024 + n)).collect()),
            ("hosts", all().map(|n| v4(n, 40_000)).collect()),
            ("both", all().map(|n| v4(n / 7, 32_768 + n % 7)).collect()),
            ("IPv6 hosts", all().map(|n| v6(n, 40_000)).collect()),
        ];
        for (name, clients) in clients {
            let mut hits = vec![0u32; SLOTS as usize];
            for client in clients {
                let key = key(client, "203.0.113.1:443".parse().unwrap(), Protocol::TCP);
                hits[run.choose(of_request(&key)).unwrap() as usize] += 1;
            }
            let expected = f64::from(CLIENTS / SLOTS);
            let squares: Vec<f64> =
                hits.iter().map(|&n| (f64::from(n) - expected).powi(2) / expected).collect();
            let chi: f64 = squares.iter().sum();
            // 250 degrees of freedom: mean 250, deviation 22.4. Five deviations.
            assert!((138.0..362.0).contains(&chi), "{name}: {chi}");
        }
    }
}
