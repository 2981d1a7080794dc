//! What this kernel has of what the datapath needs, and whether it takes the programs: tried, with nothing attached.

use std::collections::BTreeSet;

use aya::{
    EbpfLoader, VerifierLogLevel,
    maps::MapType,
    programs::{ProgramError, ProgramType, SchedClassifier, TcAttachType, loaded_programs},
    sys::{BpfHelper, is_helper_supported, is_map_supported, is_program_supported},
};
use proxy_common::xdp::XdpMode;

use super::{
    checksums::{ChecksumPolicy, Checksums},
    load::{self, Datapath, LoadError},
    preflight::{self, PreflightError},
    program::{Program, SocketProgram, xdp_program_name},
};

/// Something that the kernel may have or not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Feature {
    /// What it is: `program type`, `map type`, `helper`, `hook`.
    pub kind: &'static str,
    /// Its name in the kernel.
    pub name: &'static str,
    /// Whether it is there; why that cannot be told, if it cannot.
    pub supported: Result<bool, String>,
}

/// A program that was loaded.
#[derive(Debug)]
pub struct Verified {
    /// Its name.
    pub program: &'static str,
    /// How many instructions the verifier walked, if the kernel tells; why it refused it, if it did.
    pub walked: Result<Option<u32>, LoadError>,
}

/// Most instructions that the verifier walks before it gives up (`BPF_COMPLEXITY_LIMIT_INSNS`).
pub const VERIFIER_LIMIT: u32 = 1_000_000;

/// Says whether this process lacks capabilities, or the kernel is too old.
///
/// # Errors
///
/// What is missing.
pub fn check_process() -> Result<(), PreflightError> {
    preflight::check()
}

/// The features that the programs use and that are not as old as everything else.
#[must_use]
pub fn features() -> Vec<Feature> {
    use BpfHelper as H;
    const TC: ProgramType = ProgramType::SchedClassifier;
    const SOCKET: ProgramType = ProgramType::CgroupSockAddr;
    let feature = |kind, name, supported| Feature { kind, name, supported };
    let mut features = Vec::new();
    for (program, name) in [(TC, "sched_cls"), (SOCKET, "cgroup_sock_addr")] {
        let supported = is_program_supported(program).map_err(|error| crate::report(&error));
        features.push(feature("program type", name, supported));
    }
    for (map, name) in [
        (MapType::Hash, "hash"),
        (MapType::PerCpuHash, "percpu_hash"),
        (MapType::LruHash, "lru_hash"),
        (MapType::LpmTrie, "lpm_trie"),
        (MapType::Array, "array"),
        (MapType::PerCpuArray, "percpu_array"),
        (MapType::RingBuf, "ringbuf"),
    ] {
        let supported = is_map_supported(map).map_err(|error| crate::report(&error));
        features.push(feature("map type", name, supported));
    }
    for (program, helper, name) in [
        (TC, H::BPF_FUNC_jiffies64, "bpf_jiffies64"),
        (TC, H::BPF_FUNC_l4_csum_replace, "bpf_l4_csum_replace"),
        (TC, H::BPF_FUNC_csum_update, "bpf_csum_update"),
        (TC, H::BPF_FUNC_skb_change_tail, "bpf_skb_change_tail"),
        (TC, H::BPF_FUNC_skb_adjust_room, "bpf_skb_adjust_room"),
        (TC, H::BPF_FUNC_ringbuf_reserve, "bpf_ringbuf_reserve"),
        (TC, H::BPF_FUNC_sk_lookup_tcp, "bpf_sk_lookup_tcp"),
        (TC, H::BPF_FUNC_sk_lookup_udp, "bpf_sk_lookup_udp"),
        (SOCKET, H::BPF_FUNC_sk_lookup_tcp, "bpf_sk_lookup_tcp (sockets)"),
        (SOCKET, H::BPF_FUNC_get_current_ancestor_cgroup_id, "bpf_get_current_ancestor_cgroup_id"),
        (SOCKET, H::BPF_FUNC_get_current_pid_tgid, "bpf_get_current_pid_tgid"),
        (SOCKET, H::BPF_FUNC_get_netns_cookie, "bpf_get_netns_cookie"),
        (SOCKET, H::BPF_FUNC_get_socket_cookie, "bpf_get_socket_cookie"),
        (SOCKET, H::BPF_FUNC_set_retval, "bpf_set_retval"),
    ] {
        let supported = is_helper_supported(program, helper).map_err(|error| crate::report(&error));
        features.push(feature("helper", name, supported));
    }
    // What does not know the hook cannot list it.
    let tcx = SchedClassifier::query_tcx("lo", TcAttachType::Ingress).is_ok();
    features.push(feature("hook", "tcx", Ok(tcx)));
    features
}

/// Loads every program over maps that nobody else knows and that end with this function. Nothing is attached.
///
/// # Errors
///
/// If the kernel refuses the maps.
pub fn verify() -> Result<Vec<Verified>, LoadError> {
    let wanted = Checksums::of_this_kernel(ChecksumPolicy::WrittenIfPossible);
    let mut loader = EbpfLoader::new();
    loader.verifier_log_level(VerifierLogLevel::STATS);
    let (ebpf, checksums) = load::open(&mut loader, &wanted)?;
    let mut datapath = Datapath::over(ebpf, &checksums);
    let mut verified = Vec::new();
    for program in Program::ALL {
        let walked = datapath.program(program).map(|loaded| walked(loaded.info()));
        verified.push(Verified { program: program.name(), walked });
    }
    for program in SocketProgram::ALL {
        let walked = datapath.socket_program(program).map(|loaded| walked(loaded.info()));
        verified.push(Verified { program: program.name(), walked });
    }
    for mode in XdpMode::ALL {
        let walked = datapath.xdp_program(mode).map(|loaded| walked(loaded.info()));
        verified.push(Verified { program: xdp_program_name(mode), walked });
    }
    Ok(verified)
}

fn walked<E>(info: Result<aya::programs::ProgramInfo, E>) -> Option<u32> {
    info.ok()?.verified_instruction_count()
}

/// The names of all programs in the kernel. To list them takes `CAP_SYS_ADMIN`.
///
/// # Errors
///
/// If the kernel does not tell this process.
pub fn program_names() -> Result<BTreeSet<String>, ProgramError> {
    let mut names = BTreeSet::new();
    for program in loaded_programs() {
        names.extend(program?.name_as_str().map(str::to_owned));
    }
    Ok(names)
}
