//! Tells the agent where the kernel programs are that it embeds.
//!
//! They are not built here: they need another compiler, which `cargo xtask build` finds or installs.

use std::env;
use std::path::Path;

fn main() {
    println!("cargo::rerun-if-env-changed={VARIABLE}");
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the package is in a workspace");
    let object = workspace.join(env::var_os(VARIABLE).unwrap_or(DEFAULT.into()));
    // The agent's include_bytes! would notice a change too, but not that a missing object has come.
    println!("cargo::rerun-if-changed={}", object.display());
    match object.canonicalize() {
        Ok(object) => println!("cargo::rustc-env={VARIABLE}={}", object.display()),
        Err(error) => {
            println!(
                "cargo::error=no kernel programs at {} ({error}): run `cargo xtask build`",
                object.display()
            );
        }
    }
}

/// Names the object to the compiler, and to this script when it is not where `cargo xtask build` leaves it.
const VARIABLE: &str = "SLUICE_DATAPATH_OBJECT";

const DEFAULT: &str = "target/bpf/sluice-datapath.o";
