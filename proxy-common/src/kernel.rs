//! What the agent fills into the kernel programs before they are loaded, by what it knows of this kernel.

/// The helper that programs name in place of the kernel's function `bpf_cast_to_kern_ctx`: numbers of such functions differ from
/// kernel to kernel. No kernel has a helper of this number.
pub const CAST_TO_KERN_CTX: usize = 0x7ca5_7c78;

/// The name of the programs' constant that says where `ip_summed` is in an `sk_buff`: a byte's offset, then the lowest of its
/// bits. Zeros if that is not known.
pub const IP_SUMMED: &str = "IP_SUMMED";
