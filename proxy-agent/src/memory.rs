//! Memory that was needed once.
#![expect(
    unsafe_code,
    reason = "the C library's allocator is asked for something that the standard library has no word for"
)]

/// Gives back to the kernel what nothing is in. A list of all objects of a large cluster takes a hundred megabytes for a moment,
/// and the C library would keep them.
pub(crate) fn give_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: looks for free memory alone, under the allocator's own locks (malloc_trim(3)).
    unsafe {
        nix::libc::malloc_trim(0);
    }
}
