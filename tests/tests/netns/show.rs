//! What the commands say of the kernel is what was done.

mod explain;
mod flows;
mod machine;
mod monitor;

use serde_json::Value;

/// The elements of a list in an answer.
fn list<'a>(answer: &'a Value, name: &str) -> &'a [Value] {
    answer[name].as_array().map(Vec::as_slice).unwrap_or_default()
}
