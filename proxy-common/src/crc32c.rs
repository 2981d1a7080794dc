//! CRC32c (RFC 9260 appendix A), SCTP's checksum: how it changes when a few bytes do.
//!
//! It covers the whole packet, and nothing of the network header, so a new address leaves it alone and a new port does
//! not. CRCs are linear: the change of the CRC is the CRC of the change, and what follows the changed bytes is zero there.
//! Behind `n` zero bytes a CRC is multiplied by x^8n modulo the polynomial, which takes one multiplication for each
//! hexadecimal digit of `n`.

/// The polynomial, lowest power in the highest bit.
const POLYNOMIAL: u32 = 0x82f6_3b78;
/// Hexadecimal digits of the longest packet's length.
const DIGITS: usize = 4;

/// x^(8 * n * 16^k), by k and n.
const POWERS: [[u32; 16]; DIGITS] = {
    // x^0 is bit 31.
    const ONE: u32 = 1 << 31;
    let mut powers = [[ONE; 16]; DIGITS];
    let mut unit = ONE >> 8;
    let mut k = 0;
    while k < DIGITS {
        let mut n = 1;
        while n < 16 {
            powers[k][n] = multiply(powers[k][n - 1], unit);
            n += 1;
        }
        unit = multiply(powers[k][15], unit);
        k += 1;
    }
    powers
};

/// The product of two polynomials modulo [`POLYNOMIAL`]. Without branches: a verifier would follow them all.
#[inline(always)]
const fn multiply(a: u32, b: u32) -> u32 {
    let mut product = 0;
    let mut shifted = b;
    let mut bit = 0;
    while bit < 32 {
        product ^= shifted & 0u32.wrapping_sub(a >> (31 - bit) & 1);
        shifted = shifted >> 1 ^ POLYNOMIAL & 0u32.wrapping_sub(shifted & 1);
        bit += 1;
    }
    product
}

/// What to XOR into a packet's CRC, a number as in [`u32::from_le_bytes`] of the field, when four bytes of it change.
/// `changed` is the XOR of old and new, likewise little-endian, and `behind` how many bytes follow them, less than 2^16.
#[must_use]
#[inline(always)]
pub const fn change(changed: u32, behind: u32) -> u32 {
    // Four bytes through an empty register come out multiplied by x^32.
    let mut crc = multiply(changed, POWERS[0][4]);
    let mut k = 0;
    while k < DIGITS {
        crc = multiply(crc, POWERS[k][(behind >> (4 * k)) as usize & 15]);
        k += 1;
    }
    crc
}

#[cfg(test)]
mod tests {
    use std::vec::Vec;

    use proptest::prelude::*;

    use super::*;

    /// By definition, bit by bit.
    fn naive(bytes: &[u8]) -> u32 {
        let mut crc = u32::MAX;
        for byte in bytes {
            crc ^= u32::from(*byte);
            for _ in 0..8 {
                crc = if crc & 1 == 1 { crc >> 1 ^ POLYNOMIAL } else { crc >> 1 };
            }
        }
        !crc
    }

    #[test]
    fn the_definition_gives_the_published_check_value() {
        assert_eq!(naive(b"123456789"), 0xe306_9283);
    }

    proptest! {
        #[test]
        fn the_change_is_that_of_computing_anew(before: Vec<u8>, old: [u8; 4], new: [u8; 4], behind: Vec<u8>) {
            let packet = |word: [u8; 4]| [&before[..], &word, &behind].concat();
            let changed = u32::from_le_bytes(old) ^ u32::from_le_bytes(new);
            let expected = naive(&packet(old)) ^ naive(&packet(new));
            prop_assert_eq!(change(changed, u32::try_from(behind.len()).unwrap()), expected);
        }
    }
}
