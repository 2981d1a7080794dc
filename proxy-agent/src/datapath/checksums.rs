//! How the programs change a transport's checksum: by writing it, if this kernel lets them see how far it has come, or by
//! asking the kernel to.

use std::{borrow::Cow, fmt, fs};

use aya::{Ebpf, programs::SchedClassifier};
use proxy_common::kernel;

use super::btf::{self, BitField, Types};

/// How checksums are changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Checksums {
    /// By writing the field, twice as fast as the other way. Only a sum over the whole packet takes a helper.
    Written(Summed),
    /// By `bpf_l4_csum_replace`, because of that.
    ByHelper(String),
}

/// How a program gets to know how far a checksum has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Summed {
    /// The number of the function that makes a context an `sk_buff`.
    cast: u32,
    /// Where the field lies in that: the byte, and the lowest bit of it.
    place: [u32; 2],
}

/// Whether the programs may look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ChecksumPolicy {
    /// If the kernel lets them.
    #[default]
    WrittenIfPossible,
    /// In no case, as on a kernel that does not let them.
    ByHelper,
}

/// Where the field lies if nobody knows.
pub(super) const NOWHERE: [u32; 2] = [0; 2];

/// The kernel's function, from Linux 6.2 on (commit fd264ca02094, "bpf: Add a kfunc to type cast from bpf uapi ctx to kernel ctx").
const FUNCTION: &str = "bpf_cast_to_kern_ctx";
/// The program that does nothing else.
const PROBE: &str = "sluice_summed";
/// `call`, of a helper.
const CALL: [u8; 4] = [0x85, 0, 0, 0];
/// `call`, of a function of the kernel (`BPF_PSEUDO_KFUNC_CALL`).
const CALL_KERNEL: [u8; 4] = [0x85, 0x20, 0, 0];
/// Bytes of an instruction.
const INSTRUCTION: usize = 8;

impl Checksums {
    /// What this kernel's types say.
    pub(super) fn of_this_kernel(policy: ChecksumPolicy) -> Self {
        if policy == ChecksumPolicy::ByHelper {
            return Self::ByHelper("it was asked for".to_owned());
        }
        match fs::read(btf::VMLINUX) {
            Ok(bytes) => match Summed::find(&bytes) {
                Ok(summed) => Self::Written(summed),
                Err(reason) => Self::ByHelper(reason),
            },
            Err(error) => Self::ByHelper(format!("{}: {error}", btf::VMLINUX)),
        }
    }

    /// The object with the right calls in its programs.
    pub(super) fn prepare<'a>(&self, object: &'a [u8]) -> Cow<'a, [u8]> {
        match self {
            Self::Written(summed) => Cow::Owned(call(object, summed.cast)),
            Self::ByHelper(_) => Cow::Borrowed(object),
        }
    }

    /// What the programs' constant `IP_SUMMED` is.
    pub(super) const fn place(&self) -> &[u32; 2] {
        match self {
            Self::Written(summed) => &summed.place,
            Self::ByHelper(_) => &NOWHERE,
        }
    }

    /// Tries it on the smallest program. `Some` if the kernel refuses: then it is to be the other way.
    pub(super) fn refused(&self, ebpf: &mut Ebpf) -> Option<Self> {
        let Self::Written(_) = self else { return None };
        let program: &mut SchedClassifier = ebpf.program_mut(PROBE)?.try_into().ok()?;
        let error = program.load().err()?;
        Some(Self::ByHelper(format!("the kernel refused {FUNCTION}: {}", crate::report(&error))))
    }
}

impl fmt::Display for Checksums {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Written(_) => f.write_str("by the programs"),
            Self::ByHelper(reason) => write!(f, "by helper: {reason}"),
        }
    }
}

impl Summed {
    /// Finds it in a description of the kernel's types, or says what is missing there.
    fn find(types: &[u8]) -> Result<Self, String> {
        let types = Types::parse(types).ok_or_else(|| format!("cannot read {}", btf::VMLINUX))?;
        let cast = types.function(FUNCTION).ok_or_else(|| format!("this kernel has no {FUNCTION}"))?;
        match types.bits("sk_buff", "ip_summed") {
            Some(BitField { offset, width: 2 }) if offset % 8 <= 6 => {
                Ok(Self { cast, place: [offset / 8, offset % 8] })
            }
            other => Err(format!("ip_summed is not where it was: {other:?}")),
        }
    }
}

/// The object with calls of the kernel's function `number` where programs name the helper that stands for it.
fn call(object: &[u8], number: u32) -> Vec<u8> {
    // A number beyond any helper's: in nothing but such a call do these bytes come together.
    let named = kernel::CAST_TO_KERN_CTX.to_le_bytes();
    let mut object = object.to_vec();
    for instruction in object.chunks_exact_mut(INSTRUCTION) {
        if let Some((operation, operand)) = instruction.split_at_mut_checked(CALL.len())
            && operation == CALL
            && operand == &named[..4]
        {
            operation.copy_from_slice(&CALL_KERNEL);
            operand.copy_from_slice(&number.to_le_bytes());
        }
    }
    object
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_named_call_is_changed() {
        // call marker; call 5; r1 = marker
        let marker = [0x78, 0x7c, 0xa5, 0x7c];
        let code = [[CALL, marker], [CALL, [5, 0, 0, 0]], [[0xb7, 1, 0, 0], marker]];
        let bytes = code.as_flattened().as_flattened();
        let expected = [[CALL_KERNEL, [0x39, 0x30, 0, 0]], code[1], code[2]];
        assert_eq!(call(bytes, 12345), expected.as_flattened().as_flattened());
    }

    #[test]
    fn a_kernel_without_the_function_is_told() {
        assert_eq!(Summed::find(&[]), Err("cannot read /sys/kernel/btf/vmlinux".to_owned()));
    }
}
