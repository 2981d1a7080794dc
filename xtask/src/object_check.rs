//! Rules for the objects of the kernel programs that no compiler enforces.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};

use crate::budget::{Budget, Excess};
use crate::object_file::{Cost, ObjectFile};
use crate::process::{relative, report, workspace};

/// Reads an object and checks what holds for every one: no panic in it, and a licence the kernel accepts.
pub(crate) fn rules(path: &Path) -> Result<BTreeMap<String, Cost>> {
    let bytes = fs::read(path).with_context(|| format!("cannot read {}", relative(path)))?;
    let object = ObjectFile::parse(&bytes).with_context(|| format!("cannot read {}", relative(path)))?;
    let mut broken = panics(&object);
    broken.extend(object.undefined.iter().map(|name| format!("{name} is undefined")));
    if object.license != LICENSE {
        let is = object.license.escape_ascii();
        broken.push(format!("the license section is '{is}', not '{}'", LICENSE.escape_ascii()));
    }
    if !broken.is_empty() {
        bail!("{}: {}", relative(path), broken.join("; "));
    }
    object.costs().with_context(|| relative(path).to_string())
}

/// Compares the programs that the agent attaches with the checked-in budget.
pub(crate) fn within_budget(costs: &BTreeMap<String, Cost>) -> Result<()> {
    for (program, cost) in costs {
        report(format_args!(
            "{program:<28} {:>6} instructions {:>4} bytes of stack",
            cost.instructions, cost.stack
        ));
    }
    let path = workspace().join(BUDGET);
    let text = fs::read_to_string(&path).with_context(|| format!("cannot read {BUDGET}"))?;
    let budget: Budget = text.parse().context(BUDGET)?;
    let excesses: Vec<String> = budget.excesses(costs).iter().map(Excess::to_string).collect();
    if !excesses.is_empty() {
        bail!("{}; the budget is in {BUDGET}", excesses.join("; "));
    }
    Ok(())
}

/// What is left of code that panics. The verifier would refuse such a program, but could not say why it is there.
fn panics(object: &ObjectFile) -> Vec<String> {
    let panics = object.panics().into_iter();
    panics
        .map(|(function, callers)| format!("{function} panics (called by {})", callers.join(", ")))
        .collect()
}

/// The kernel gives helpers such as `bpf_l4_csum_replace` to programs that say this, to the letter.
const LICENSE: &[u8] = b"Dual MIT/GPL\0";

const BUDGET: &str = "xtask/budget.txt";
