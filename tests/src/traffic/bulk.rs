//! Large transfers: a stream in which every block differs, and its digest.

use std::sync::{OnceLock, atomic::AtomicU64, atomic::Ordering};

use ring::digest;

/// Bytes of a digest.
pub(super) const DIGEST: usize = digest::SHA256_OUTPUT_LEN;
/// Bytes of a block.
pub(super) const BLOCK: usize = 1 << 18;

/// Who sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// The client.
    Upload,
    /// The server.
    Download,
}

impl Direction {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Upload, Self::Download];
}

/// The bytes to send, block by block. Blocks are numbered, so one that is lost, repeated or moved changes the
/// digest.
pub(super) struct Stream {
    block: Vec<u8>,
    left: u64,
    number: u64,
}

impl Stream {
    pub(super) fn new(length: u64) -> Self {
        Self { block: noise().to_vec(), left: length, number: 0 }
    }

    /// The next block, empty at the end.
    pub(super) fn next_block(&mut self) -> &[u8] {
        // A number every 4 KiB, so that each segment of a large send differs from its neighbours too.
        for page in self.block.chunks_exact_mut(4096) {
            if let Some(stamp) = page.first_chunk_mut() {
                *stamp = self.number.to_be_bytes();
            }
            self.number += 1;
        }
        let length = usize::try_from(self.left).map_or(BLOCK, |left| left.min(BLOCK));
        self.left -= length as u64;
        &self.block[..length]
    }
}

/// A digest in the making.
pub(super) struct Digest(digest::Context);

impl Digest {
    pub(super) fn new() -> Self {
        // SHA-256 because `ring` has it in assembly: fast in a debug build too.
        Self(digest::Context::new(&digest::SHA256))
    }

    pub(super) fn add(&mut self, bytes: &[u8], progress: &AtomicU64) {
        self.0.update(bytes);
        progress.fetch_add(bytes.len() as u64, Ordering::Relaxed);
    }

    pub(super) fn finish(self) -> [u8; DIGEST] {
        let mut bytes = [0; DIGEST];
        bytes.copy_from_slice(self.0.finish().as_ref());
        bytes
    }
}

/// A block of bytes without a pattern (xorshift).
fn noise() -> &'static [u8] {
    static NOISE: OnceLock<Vec<u8>> = OnceLock::new();
    NOISE.get_or_init(|| {
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        let next = std::iter::repeat_with(|| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state.to_ne_bytes()
        });
        next.take(BLOCK / 8).flatten().collect()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_has_its_length_and_no_two_equal_blocks() {
        let mut stream = Stream::new(2 * BLOCK as u64 + 5);
        let first = stream.next_block().to_vec();
        let second = stream.next_block().to_vec();
        assert_eq!((first.len(), second.len()), (BLOCK, BLOCK));
        assert_ne!(first, second);
        assert_eq!(stream.next_block().len(), 5);
        assert!(stream.next_block().is_empty());
    }
}
