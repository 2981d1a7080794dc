//! The kernel programs under `BPF_PROG_TEST_RUN`: exact bytes out, exact counters, for both families and protocols.

mod program {
    mod affinity;
    mod bed;
    mod cached;
    mod capacity;
    mod checksums;
    mod dsr;
    mod errors;
    mod events;
    mod flows;
    mod limit;
    mod load;
    mod maglev;
    mod packets;
    mod reset;
    mod tables;
    mod xdp;
}
