//! What each kernel program may cost: a checked-in file, so that growth is somebody's decision.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use anyhow::{Context, Error, Result, bail, ensure};

use crate::bytecode::STACK_LIMIT;
use crate::object_file::Cost;

/// Programs and the most they may cost: lines of `program instructions stack`.
#[derive(Debug)]
pub(crate) struct Budget(BTreeMap<String, Cost>);

impl FromStr for Budget {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let mut programs = BTreeMap::new();
        for (number, line) in (1..).zip(text.lines()) {
            let content = line.split('#').next().unwrap_or_default();
            let words: Vec<&str> = content.split_whitespace().collect();
            let (program, cost) = match words[..] {
                [] => continue,
                [program, instructions, stack] => (|| {
                    let cost = Cost { instructions: instructions.parse()?, stack: stack.parse()? };
                    ensure!(cost.stack <= STACK_LIMIT, "the kernel allows {STACK_LIMIT} bytes of stack");
                    Ok((program, cost))
                })(),
                _ => Err(Error::msg("expected `program instructions stack`")),
            }
            .with_context(|| format!("line {number}: '{line}'"))?;
            if programs.insert(program.to_owned(), cost).is_some() {
                bail!("line {number}: {program} has a budget already");
            }
        }
        Ok(Self(programs))
    }
}

/// A difference between budget and programs.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Excess {
    Instructions { program: String, is: u32, allowed: u32 },
    Stack { program: String, is: u32, allowed: u32 },
    Unbudgeted { program: String, cost: Cost },
    Unknown { program: String },
}

impl fmt::Display for Excess {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Instructions { program, is, allowed } => {
                write!(f, "{program} has {is} instructions, its budget is {allowed}")
            }
            Self::Stack { program, is, allowed } => {
                write!(f, "{program} uses {is} bytes of stack, its budget is {allowed}")
            }
            Self::Unbudgeted { program, cost } => {
                write!(
                    f,
                    "{program} has no budget; it needs `{program} {} {}`",
                    cost.instructions, cost.stack
                )
            }
            Self::Unknown { program } => write!(f, "{program} has a budget, but there is no such program"),
        }
    }
}

impl Budget {
    /// Compares with what the programs cost.
    pub(crate) fn excesses(&self, costs: &BTreeMap<String, Cost>) -> Vec<Excess> {
        let mut excesses = Vec::new();
        for (program, cost) in costs {
            let program = program.clone();
            let Some(allowed) = self.0.get(&program) else {
                excesses.push(Excess::Unbudgeted { program, cost: *cost });
                continue;
            };
            if cost.instructions > allowed.instructions {
                let (is, allowed) = (cost.instructions, allowed.instructions);
                excesses.push(Excess::Instructions { program: program.clone(), is, allowed });
            }
            if cost.stack > allowed.stack {
                excesses.push(Excess::Stack { program, is: cost.stack, allowed: allowed.stack });
            }
        }
        let gone = self.0.keys().filter(|program| !costs.contains_key(*program));
        excesses.extend(gone.map(|program| Excess::Unknown { program: program.clone() }));
        excesses
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_within_their_budget_pass() {
        assert_eq!(
            excesses("# why\ningress 100 64 # tight\n\n", [("ingress", 100, 64)]),
            Vec::<String>::new()
        );
    }

    #[test]
    fn each_excess_is_named() {
        let costs = [("egress", 10, 32), ("ingress", 101, 96)];
        assert_eq!(
            excesses("ingress 100 64\nclock 2 32\n", costs),
            [
                "egress has no budget; it needs `egress 10 32`",
                "ingress has 101 instructions, its budget is 100",
                "ingress uses 96 bytes of stack, its budget is 64",
                "clock has a budget, but there is no such program",
            ]
        );
    }

    #[test]
    fn bad_lines_are_named() {
        for (text, error) in [
            ("\ningress 100", "line 2: 'ingress 100': expected `program instructions stack`"),
            ("ingress many 32", "line 1: 'ingress many 32': invalid digit found in string"),
            ("ingress 100 1024", "line 1: 'ingress 100 1024': the kernel allows 512 bytes of stack"),
            ("a 1 32\na 2 32", "line 2: a has a budget already"),
        ] {
            assert_eq!(format!("{:#}", text.parse::<Budget>().unwrap_err()), error);
        }
    }

    fn excesses<const N: usize>(budget: &str, costs: [(&str, u32, u32); N]) -> Vec<String> {
        let costs =
            costs.map(|(program, instructions, stack)| (program.to_owned(), Cost { instructions, stack }));
        let excesses = budget.parse::<Budget>().unwrap().excesses(&costs.into());
        excesses.iter().map(Excess::to_string).collect()
    }
}
