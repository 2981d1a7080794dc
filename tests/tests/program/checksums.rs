//! Who changes checksums: the programs themselves, or the kernel for them.

use std::path::Path;

use anyhow::ensure;
use sluice_tests::kernel::changing_checksums_by_helper;

use super::{bed::for_each, packets};

/// Every kernel that Sluice runs on has the function that it takes, but not every one says where.
#[test]
fn programs_write_checksums_where_the_kernel_describes_its_types() {
    for_each(|case| {
        let expected = Path::new("/sys/kernel/btf/vmlinux").exists();
        ensure!(case.kernel.writes_checksums() == expected, "types described: {expected}");
        Ok(())
    });
}

#[test]
fn packets_are_the_same_if_the_kernel_changes_their_checksums() {
    changing_checksums_by_helper(|| {
        for_each(|case| {
            ensure!(!case.kernel.writes_checksums());
            Ok(())
        });
        packets::requests_go_to_the_backend_and_replies_come_from_the_service();
        packets::options_and_extension_headers_are_stepped_over();
        packets::fragments_follow_the_first_one_both_ways();
        packets::a_datagram_without_checksum_stays_without();
        packets::checksums_are_exact_whatever_the_payload();
    });
}
